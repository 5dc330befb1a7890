//! `danlu plan`.

use super::hub;
use super::profile::training_steps;
use crate::base::{Bytes, Limits};
use crate::bench::Profile;
use crate::compile::{First, Plan, human_bytes};
use crate::gpu::Gpu;
use crate::model::ModelConfig;
use crate::model::find_config;
use crate::run::{TuneMode, Tuner};
use crate::train::{Fit, Plans, Precision, Recipe, optimizer, plans, train_plan};
use anyhow::Result;
use clap::Args;

/// Flags of `danlu plan`.
#[derive(Debug, Args)]
pub struct PlanArgs {
    /// A preset, a config.json, a folder that holds one, or a name on the hub: org/model.
    #[arg(long, value_name = "PRESET|FILE|NAME", default_value = "story-1m")]
    config: String,
    /// Sequences of one step.
    #[arg(long, default_value_t = 8)]
    batch: usize,
    /// Tokens of one sequence.
    #[arg(long, default_value_t = 128)]
    seq: usize,
    /// Most device memory of a step and of validation, such as 6GB: shows what is computed again to keep to it.
    #[arg(long, value_name = "SIZE", conflicts_with = "measure")]
    budget: Option<Bytes>,
    /// `f32`, or `mixed`, as of `danlu train`.
    #[arg(long, value_name = "f32|mixed", default_value = "f32")]
    precision: Precision,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Run the step on the adapter and print where its time goes, by operator.
    #[arg(long)]
    measure: bool,
    /// Plan for this adapter, and not for the least that every adapter offers.
    #[command(flatten)]
    adapter: super::AdapterArgs,
}

/// Prints the plan of a training step. Without `--adapter` no device is touched.
pub fn plan(args: PlanArgs) -> Result<()> {
    let recipe = Recipe {
        batch: args.batch,
        seq: args.seq,
        memory: args.budget,
        precision: args.precision,
        ..Recipe::default()
    };
    recipe.check()?;
    let config = find_config(&hub::resolve_config(&args.config)?)?;
    let limits = match args.adapter.adapter {
        _ if args.measure => return pollster::block_on(measure(&args, &recipe, &config)),
        Some(_) => pollster::block_on(crate::gpu::Gpu::open(&args.adapter.selector()))?.limits().clone(),
        // The largest buffers: whether the model fits a real adapter is then for the reader to see.
        None => Limits { max_buffer_bytes: Limits::COUNTABLE_BYTES, ..Limits::default() },
    };
    // Only a budget is planned for: what an adapter happens to have free is not a property of the plan.
    let limits = Limits { memory_bytes: None, ..limits };
    let Plans { train: plan, fit, .. } = plans(&config, &recipe, None, &limits, &mut First)?;
    if args.json {
        say!("{}", json(&plan, fit.as_ref(), None)?);
    } else {
        say!("{plan}");
        fit.iter().for_each(|fit| say!("\n{}", traded(fit)));
    }
    Ok(fit.as_ref().map_or(Ok(()), Fit::check)?)
}

/// The trade as a table: equal values of all layers are one row.
fn traded(fit: &Fit) -> String {
    let mut rows: Vec<(String, usize, u64, u64)> = Vec::new();
    for again in &fit.trade.again {
        let part = |p: &str| if p.parse::<u64>().is_ok() { "*" } else { p }.to_string();
        let name = again.name.split('.').map(part).collect::<Vec<_>>().join(".");
        match rows.iter_mut().find(|row| row.0 == name) {
            Some((_, count, saved, flops)) => {
                (*count, *saved, *flops) = (*count + 1, *saved + again.saved, *flops + again.flops)
            }
            None => rows.push((name, 1, again.saved, again.flops)),
        }
    }
    let mut text = format!(
        "recomputation, for {} of which validation takes {}\n",
        human_bytes(fit.allowed),
        human_bytes(fit.beside)
    );
    text += &format!("{:<58} {:>12}\n", "with every activation kept", human_bytes(fit.trade.before));
    for (name, count, saved, flops) in rows {
        let gflop = flops as f64 / 1e9;
        text += &format!("  {count:>4} x {name:<49} {:>12} less, {gflop:>9.3} Gflop more\n", human_bytes(saved));
    }
    let (reached, added) = (human_bytes(fit.trade.reached), fit.added());
    text + &format!("{:<58} {reached:>12}, {added} more operations", "reached")
}

/// The plan with its totals, and with the measured seconds of every step if there are any.
fn json(plan: &Plan, fit: Option<&Fit>, seconds: Option<&[f64]>) -> Result<String> {
    let mut value = serde_json::to_value(plan)?;
    value["totals"] = serde_json::to_value(plan.totals())?;
    if let Some(fit) = fit {
        value["trade"] = serde_json::to_value(&fit.trade)?;
        value["trade"]["beside"] = fit.beside.into();
    }
    for (i, s) in seconds.into_iter().flatten().enumerate() {
        value["steps"][i]["seconds"] = (*s).into();
    }
    Ok(serde_json::to_string_pretty(&value)?)
}

/// Times every step of the plan on the device and sums up by operator and kernel. Each step runs the first candidate, as
/// the printed plan says.
async fn measure(args: &PlanArgs, recipe: &Recipe, config: &ModelConfig) -> Result<()> {
    let gpu = Gpu::open(&args.adapter.selector()).await?;
    let plan = train_plan(config, args.batch, args.seq, &optimizer(recipe), gpu.limits(), &mut First)?;
    let mut tuner = Tuner::new(&gpu, TuneMode::Full, None);
    let recorded = training_steps(&gpu, &mut tuner, config, &plan, 1).await?;
    if args.json {
        let mut seconds = vec![0.0; plan.steps.len()];
        recorded.runs.iter().flat_map(|r| &r.device).for_each(|s| seconds[s.step] += s.end - s.begin);
        say!("{}", json(&plan, None, Some(&seconds))?);
        return Ok(());
    }
    Profile::of(&recorded.runs, &recorded.roofline).iter().for_each(|profile| say!("{profile}"));
    let (gflop, whole) = (plan.totals().flops as f64 / 1e9, recorded.undisturbed.1);
    say!("one run undisturbed: {whole:.4} s, {:.1} GFLOP/s", gflop / whole);
    Ok(())
}
