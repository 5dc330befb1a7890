//! `danlu plan`.

use super::hub;
use super::profile::training_steps;
use super::scale;
use crate::base::{Bytes, Limits};
use crate::bench::Profile;
use crate::compile::{First, Plan, Trade, human_bytes};
use crate::estimate::{Answer, Fits, Job, MachineFile, Planned, Prices, Span};
use crate::gpu::Gpu;
use crate::model::{DpoConfig, ModelConfig, find_config};
use crate::nn::{BaseDtype, LoraConfig};
use crate::optim::{Rule, Shard, Update};
use crate::parallel::Mesh;
use crate::run::{TuneMode, Tuner};
use crate::train::{Precision, Recipe, optimizer, train_plan};
use anyhow::{Result, bail};
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
    /// Batches of one step, as of `danlu train`: the plan of one, and below it that of the update.
    #[arg(long, default_value_t = 1)]
    accumulate: u32,
    /// Tokens of one sequence.
    #[arg(long, default_value_t = 128)]
    seq: usize,
    /// Optimizer, as of `danlu train`.
    #[arg(long, value_name = "adamw|adamw8bit|muon|sgd", default_value = "adamw")]
    optimizer: Rule,
    /// When parameters change, as of `danlu train`: layer by layer no gradients are kept.
    #[arg(long, value_name = "step|layer", default_value = "step")]
    update: Update,
    /// The norm that gradients are scaled down to, 0 for never: layer by layer that takes a pass of its own.
    #[arg(long, value_name = "NORM", default_value_t = 1.0)]
    clip: f64,
    /// Decay of a moving average of the parameters, as of `danlu train`.
    #[arg(long, value_name = "DECAY", default_value_t = 0.0)]
    ema: f64,
    /// Device memory, such as 6GB: the largest batch and sequence that fit it, and what of a step is computed again to
    /// keep to it.
    #[arg(long, alias = "budget", value_name = "SIZE", conflicts_with = "measure")]
    memory: Option<Bytes>,
    /// `f32`, or `mixed`, as of `danlu train`.
    #[arg(long, value_name = "f32|mixed", default_value = "f32")]
    precision: Precision,
    #[command(flatten)]
    adapters: LoraArgs,
    /// What the ranks of --mesh share out, as of `danlu train`.
    #[arg(long, value_name = "none|optimizer", default_value = "none", conflicts_with_all = ["measure", "nodes"])]
    shard: Shard,
    /// Preference pairs, as of `danlu dpo`: --batch counts pairs.
    #[arg(long, conflicts_with = "measure")]
    dpo: bool,
    /// Time on this machine: h100, h100-500w, h200, a100, mi300x, sunway, cpu, a TOML file like those of machines/, or what `danlu bench --json` wrote. With --nodes several, separated by commas, side by side.
    #[arg(long, value_name = "NAME|FILE", value_delimiter = ',')]
    machine: Vec<String>,
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    scale: scale::ScaleArgs,
    /// Print every step: its kernel, operations, bytes, and where it writes.
    #[arg(long)]
    list: bool,
    /// Print JSON, with every step.
    #[arg(long)]
    json: bool,
    /// Run the step on the adapter and print where its time goes, by operator.
    #[arg(long, conflicts_with_all = ["lora_rank", "base_dtype", "machine", "update"])]
    measure: bool,
    /// Plan for this adapter, and not for the least that every adapter offers.
    #[command(flatten)]
    adapter: super::AdapterArgs,
}

/// Adapters in place of all weights.
#[derive(Debug, Args)]
struct LoraArgs {
    /// Train adapters of this rank, and no weights [default with --base-dtype: 16].
    #[arg(long, value_name = "RANK")]
    lora_rank: Option<usize>,
    /// Which layers get adapters: names such as q_proj, or patterns with * [default: every linear layer].
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    lora_targets: Vec<String>,
    /// Adapters with magnitudes of their own (DoRA).
    #[arg(long)]
    dora: bool,
    /// In which dtype the frozen weights are held; nf4 is QLoRA [default with --lora-rank: keep].
    #[arg(long, value_name = "keep|f32|f16|bf16|q8_0|nf4")]
    base_dtype: Option<BaseDtype>,
}

impl LoraArgs {
    fn config(&self) -> Option<LoraConfig> {
        let plain = LoraConfig::default();
        let asked = self.lora_rank.is_some() || self.base_dtype.is_some() || self.dora || !self.lora_targets.is_empty();
        asked.then(|| LoraConfig {
            rank: self.lora_rank.unwrap_or(plain.rank),
            targets: self.lora_targets.clone(),
            dora: self.dora,
            base_dtype: self.base_dtype.unwrap_or(plain.base_dtype),
            ..plain
        })
    }
}

/// The run that the step is one of.
#[derive(Debug, Args)]
struct RunArgs {
    /// Steps of the whole run: its time, energy and price.
    #[arg(long, value_name = "COUNT", conflicts_with = "tokens")]
    steps: Option<u64>,
    /// Tokens of the whole run, such as 15e9.
    #[arg(long, value_name = "COUNT", value_parser = amount)]
    tokens: Option<f64>,
    /// Price of an hour of the adapter [default: the machine file's].
    #[arg(long, value_name = "PRICE", value_parser = amount)]
    price: Option<f64>,
    /// Watts that the machine draws while it computes [default: the machine file's].
    #[arg(long, value_name = "WATTS", value_parser = amount)]
    watts: Option<f64>,
}

impl RunArgs {
    fn span(&self) -> Option<Span> {
        self.steps.map(Span::Steps).or(self.tokens.map(|tokens| Span::Tokens(tokens as u64)))
    }

    fn prices(&self, machine: Option<&MachineFile>) -> Prices {
        Prices {
            per_hour: self.price.or(machine.and_then(|m| m.price)),
            watts: self.watts.or(machine.and_then(|m| m.watts)),
        }
    }
}

fn amount(text: &str) -> Result<f64, String> {
    let value = text.parse().ok().filter(|v: &f64| *v >= 0.0 && v.is_finite());
    value.ok_or_else(|| format!("`{text}` is no number from 0 up"))
}

/// Says what a run takes. Without `--adapter` no device is touched.
pub fn plan(args: PlanArgs) -> Result<()> {
    let recipe = Recipe {
        batch: args.batch,
        accumulate: args.accumulate,
        seq: args.seq,
        optimizer: args.optimizer,
        update: args.update,
        clip: args.clip,
        ema: args.ema,
        memory: args.memory,
        precision: args.precision,
        lora: args.adapters.config(),
        dpo: args.dpo.then(DpoConfig::default),
        mesh: if args.scale.nodes.is_empty() { args.scale.mesh()?.unwrap_or(Mesh::ONE) } else { Mesh::ONE },
        shard: args.shard,
        ..Recipe::default()
    };
    recipe.check()?;
    let mut machines = args.machine.iter().map(|name| MachineFile::find(name)).collect::<Result<Vec<_>, _>>()?;
    let config = find_config(&hub::resolve_config(&args.config)?)?;
    if !args.scale.nodes.is_empty() {
        let run = scale::Run { tokens: args.run.tokens, price: args.run.price, watts: args.run.watts };
        return scale::plan(&args.scale, &config, [args.batch, args.seq], &machines, &run, args.json);
    }
    if machines.len() > 1 {
        bail!("--machine names {} machines; several are compared with --nodes only", machines.len());
    }
    let machine = machines.pop();
    let limits = match args.adapter.adapter {
        _ if args.measure => return pollster::block_on(measure(&args, &recipe, &config)),
        Some(_) => pollster::block_on(Gpu::open(&args.adapter.selector()))?.limits().clone(),
        // The largest buffers: whether the model fits a real adapter is then for the reader to see.
        None => Limits { max_buffer_bytes: Limits::COUNTABLE_BYTES, ..Limits::default() },
    };
    let memory = args.memory.or(limits.memory_bytes.map(Bytes)).or(machine.as_ref().and_then(|m| m.memory));
    // Only a budget is planned for: what an adapter happens to have free is not a property of the plan.
    let limits = Limits { memory_bytes: None, ..limits };
    let job = Job { config, recipe };
    let plans = job.plans(&limits, &mut First)?;
    let fits = memory.map(|memory| Fits::find(&job, &limits, memory, args.memory.is_some())).transpose()?;
    let mut answer = Answer::of(&job, &plans, fits, machine.as_ref())?;
    if let Some(span) = args.run.span() {
        answer = answer.over(span, args.run.prices(machine.as_ref()));
    }
    if args.json {
        say!("{}", json(&plans.train, Some((&answer, &plans)), None)?);
    } else {
        if args.list {
            say!("{}\n", plans.train);
        }
        say!("{}", answer.to_string().trim_end());
        let traded = plans.trade.as_ref().filter(|trade| !trade.again.is_empty());
        traded.iter().for_each(|trade| say!("\n{}", table(trade, &plans)));
    }
    Ok(plans.check(args.memory)?)
}

/// The trade as a table: equal values of all layers are one row.
fn table(trade: &Trade, plans: &Planned) -> String {
    let mut rows: Vec<(String, usize, u64, u64)> = Vec::new();
    for again in &trade.again {
        let part = |p: &str| if p.parse::<u64>().is_ok() { "*" } else { p }.to_string();
        let name = again.name.split('.').map(part).collect::<Vec<_>>().join(".");
        match rows.iter_mut().find(|row| row.0 == name) {
            Some((_, count, saved, flops)) => {
                (*count, *saved, *flops) = (*count + 1, *saved + again.saved, *flops + again.flops)
            }
            None => rows.push((name, 1, again.saved, again.flops)),
        }
    }
    let (budget, beside) = (human_bytes(trade.budget + plans.beside()), human_bytes(plans.beside()));
    let mut text = format!("recomputation, for {budget} of which validation takes {beside}\n");
    text += &format!("{:<58} {:>12}\n", "with every activation kept", human_bytes(trade.before));
    for (name, count, saved, flops) in rows {
        let gflop = flops as f64 / 1e9;
        text += &format!("  {count:>4} x {name:<49} {:>12} less, {gflop:>9.3} Gflop more\n", human_bytes(saved));
    }
    let (reached, added) = (human_bytes(trade.reached), 100.0 * plans.added());
    text + &format!("{:<58} {reached:>12}, {added:.1} % more operations", "reached")
}

/// The plan with its totals, the answer, and with the measured seconds of every step if there are any.
fn json(plan: &Plan, answered: Option<(&Answer, &Planned)>, seconds: Option<&[f64]>) -> Result<String> {
    let mut value = serde_json::to_value(plan)?;
    value["totals"] = serde_json::to_value(plan.totals())?;
    if let Some((answer, plans)) = answered {
        value["answer"] = serde_json::to_value(answer)?;
        if let Some(trade) = &plans.trade {
            value["trade"] = serde_json::to_value(trade)?;
            value["trade"]["beside"] = plans.beside().into();
        }
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
