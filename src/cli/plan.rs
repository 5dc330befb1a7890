//! `danlu plan`.

use crate::base::Limits;
use crate::compile::First;
use crate::compile::Plan;
use crate::gpu::Gpu;
use crate::model::ModelConfig;
use crate::model::find_config;
use crate::run::{Executor, States};
use crate::train::{Recipe, fill, optimizer, train_plan};
use anyhow::Result;
use clap::Args;
use std::collections::BTreeMap;

/// Flags of `danlu plan`.
#[derive(Debug, Args)]
pub struct PlanArgs {
    /// A preset, a config.json, or a folder that holds one.
    #[arg(long, value_name = "PRESET|FILE", default_value = "story-1m")]
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
    let config = find_config(&args.config)?;
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

/// Times every step of the plan on the device and sums up by operator and kernel.
async fn measure(args: &PlanArgs, recipe: &Recipe, config: &ModelConfig) -> Result<()> {
    let gpu = Gpu::open(&args.adapter.selector()).await?;
    let plan = train_plan(config, args.batch, args.seq, &optimizer(recipe), gpu.limits(), &mut First)?;
    let mut states = States::new(&gpu);
    let mut executor = Executor::new(&gpu, &plan, &mut states).await?;
    fill(config, &mut executor, &states).await?;
    let warm = std::time::Instant::now();
    executor.run().await?;
    tell!("first run {:.3} s", warm.elapsed().as_secs_f64());
    let whole = std::time::Instant::now();
    executor.run().await?;
    let whole = whole.elapsed().as_secs_f64();
    let seconds = executor.profile().await?;
    if args.json {
        say!("{}", json(&plan, Some(&seconds))?);
        return Ok(());
    }
    say!("{}", table(&plan, &seconds));
    let gflop = plan.totals().flops as f64 / 1e9;
    say!("one run undisturbed: {whole:.4} s, {:.1} GFLOP/s", gflop / whole);
    Ok(())
}

fn table(plan: &Plan, seconds: &[f64]) -> String {
    let mut sums: BTreeMap<String, (f64, u64, u64, usize)> = BTreeMap::new();
    for (step, &s) in plan.steps.iter().zip(seconds) {
        let sum = sums.entry(format!("{} {}", step.op, step.variant)).or_default();
        *sum = (sum.0 + s, sum.1 + step.flops, sum.2 + step.bytes, sum.3 + 1);
    }
    let mut rows: Vec<_> = sums.into_iter().collect();
    rows.sort_by(|a, b| b.1.0.total_cmp(&a.1.0));
    let mut text = format!("{:<44} {:>6} {:>10} {:>9} {:>8}\n", "operator, kernel", "steps", "ms", "GFLOP/s", "GB/s");
    for (name, (s, flops, bytes, count)) in rows {
        let (ms, rate, bandwidth) = (s * 1e3, flops as f64 / s / 1e9, bytes as f64 / s / 1e9);
        text += &format!("{name:<44} {count:>6} {ms:>10.2} {rate:>9.2} {bandwidth:>8.2}\n");
    }
    text
}
