//! `danlu plan`.

use super::hub;
use super::profile::training_steps;
use crate::base::Limits;
use crate::bench::Profile;
use crate::compile::First;
use crate::compile::Plan;
use crate::gpu::Gpu;
use crate::model::ModelConfig;
use crate::model::find_config;
use crate::run::{TuneMode, Tuner};
use crate::train::{Recipe, optimizer, train_plan};
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
    let recipe = Recipe { batch: args.batch, seq: args.seq, ..Recipe::default() };
    recipe.check()?;
    let config = find_config(&hub::resolve_config(&args.config)?)?;
    let limits = match args.adapter.adapter {
        _ if args.measure => return pollster::block_on(measure(&args, &recipe, &config)),
        Some(_) => pollster::block_on(crate::gpu::Gpu::open(&args.adapter.selector()))?.limits().clone(),
        // The largest buffers: whether the model fits a real adapter is then for the reader to see.
        None => Limits { max_buffer_bytes: Limits::COUNTABLE_BYTES, ..Limits::default() },
    };
    let plan = train_plan(&config, args.batch, args.seq, &optimizer(&recipe), &limits, &mut First)?;
    if args.json {
        say!("{}", json(&plan, None)?);
    } else {
        say!("{plan}");
    }
    Ok(())
}

/// The plan with its totals, and with the measured seconds of every step if there are any.
fn json(plan: &Plan, seconds: Option<&[f64]>) -> Result<String> {
    let mut value = serde_json::to_value(plan)?;
    value["totals"] = serde_json::to_value(plan.totals())?;
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
        say!("{}", json(&plan, Some(&seconds))?);
        return Ok(());
    }
    Profile::of(&recorded.runs, &recorded.roofline).iter().for_each(|profile| say!("{profile}"));
    let (gflop, whole) = (plan.totals().flops as f64 / 1e9, recorded.undisturbed.1);
    say!("one run undisturbed: {whole:.4} s, {:.1} GFLOP/s", gflop / whole);
    Ok(())
}
