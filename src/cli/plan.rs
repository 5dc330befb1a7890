//! `danlu plan`.

use super::finetune::LoraArgs;
use super::hub;
use super::paths;
use super::profile::training_steps;
use super::scale;
use crate::base::{Bytes, Limits};
use crate::bench::Profile;
use crate::compile::{First, Plan, Trade, human_bytes};
use crate::error::Error;
use crate::estimate::{Answer, Fits, Job, MachineFile, Planned, Prices, Span};
use crate::gpu::Gpu;
use crate::model::{ModelConfig, find_config};
use crate::optim::{Rule, Shard, Update};
use crate::parallel::Mesh;
use crate::run::{Records, TuneMode, Tuner};
use crate::store::Checkpoint;
use crate::train::{Base, Precision, Recipe, optimizer, train_plan, unheard_copies};
use anyhow::{Result, anyhow, bail};
use clap::Args;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Flags of `danlu plan`.
#[derive(Debug, Args)]
pub struct PlanArgs {
    /// A recipe, whose keys the flags override: read as `danlu finetune` does where it names a model, as `danlu dpo` where it has
    /// the group [dpo], and else as `danlu train`.
    #[arg(long, value_name = "FILE")]
    recipe: Option<PathBuf>,
    /// A preset, a config.json, a folder that holds one, or a name on the hub: org/model [default: story-1m].
    #[arg(long, value_name = "PRESET|FILE|NAME")]
    config: Option<String>,
    /// A model to go on with, as of `danlu train`: a folder, a GGUF file, whose weights count in their own dtypes, or a name on the
    /// hub, of which only the configuration is fetched.
    #[arg(long, value_name = "PATH|NAME", conflicts_with = "config")]
    model: Option<String>,
    /// Sequences of one batch [default: 2].
    #[arg(long, value_name = "COUNT")]
    batch: Option<usize>,
    /// Batches of one step, as of `danlu train`: the plan of one, and below it that of the update [default: 1].
    #[arg(long, value_name = "COUNT")]
    accumulate: Option<u32>,
    /// Tokens of one sequence [default: 128].
    #[arg(long, value_name = "TOKENS")]
    seq: Option<usize>,
    /// Rows of several documents, as of `danlu train`.
    #[arg(long, value_name = "true|false", num_args = 0..=1, default_missing_value = "true")]
    pack: Option<bool>,
    /// Lengths of rows, as of `danlu train`, where examples are not packed. Which there are the data say: here those with which a
    /// run takes most [default: 1].
    #[arg(long, value_name = "COUNT", conflicts_with = "measure")]
    lengths: Option<usize>,
    /// Optimizer, as of `danlu train` [default: adamw].
    #[arg(long, value_name = "adamw|adamw8bit|muon|sgd")]
    optimizer: Option<Rule>,
    /// When parameters change, as of `danlu train`: layer by layer no gradients are kept [default: step].
    #[arg(long, value_name = "step|layer")]
    update: Option<Update>,
    /// The norm that gradients are scaled down to, 0 for never: layer by layer that takes a pass of its own [default: 1].
    #[arg(long, value_name = "NORM")]
    clip: Option<f64>,
    /// Decay of a moving average of the parameters, as of `danlu train`.
    #[arg(long, value_name = "DECAY")]
    ema: Option<f64>,
    /// Device memory, such as 6GB: the largest batch and sequence that fit it, and what of a step is computed again to
    /// keep to it.
    #[arg(long, alias = "budget", value_name = "SIZE", conflicts_with = "measure")]
    memory: Option<Bytes>,
    /// `f32`, or `mixed`, as of `danlu train`.
    #[arg(long, value_name = "f32|mixed")]
    precision: Option<Precision>,
    /// With mixed precision: whether weights are kept in f16 as well, two bytes a parameter [default: true]; ranks of --nodes keep none.
    #[arg(long, value_name = "true|false", num_args = 0..=1, default_missing_value = "true", conflicts_with = "nodes")]
    weight_copies: Option<bool>,
    /// Room at other ranks' experts, as of `danlu train` [default: for all that may come].
    #[arg(long, value_name = "FACTOR", allow_negative_numbers = true, conflicts_with_all = ["measure", "nodes"])]
    expert_capacity: Option<f64>,
    #[command(flatten)]
    adapters: LoraArgs,
    /// Preference pairs, as of `danlu dpo`: --batch counts pairs.
    #[arg(long, conflicts_with = "measure")]
    dpo: bool,
    /// Time on this machine, and not on the adapter that --adapter names: h100, h100-500w, h200, a100, mi300x, sunway, cpu, a TOML file like those of machines/, or what `danlu bench --json` wrote. With --nodes several, separated by commas, side by side.
    #[arg(long, value_name = "NAME|FILE", value_delimiter = ',')]
    machine: Vec<String>,
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    scale: scale::ScaleArgs,
    /// Print every step: its kernel, operations, bytes, and where it writes.
    #[arg(long, conflicts_with = "measure")]
    list: bool,
    /// Print JSON, with every step.
    #[arg(long)]
    json: bool,
    /// Run the step on the adapter and print where its time goes, by operator.
    #[arg(long, conflicts_with_all = ["recipe", "model", "pack", "lora_rank", "base_dtype", "machine", "update"])]
    measure: bool,
    /// Plan for this adapter, and not for the least that every adapter offers: its limits, its memory and, where it was measured,
    /// its time.
    #[command(flatten)]
    adapter: super::AdapterArgs,
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

    /// Refuses what nothing would be said of: time is a machine's, or that of an adapter that was measured, and a price that of a
    /// run.
    fn check(&self, has_machine: bool, has_nodes: bool, adapter: Option<&str>) -> Result<()> {
        let given = [
            ("--steps", self.steps.is_some()),
            ("--tokens", self.tokens.is_some()),
            ("--price", self.price.is_some()),
            ("--watts", self.watts.is_some()),
        ];
        if self.steps == Some(0) || self.tokens == Some(0.0) {
            let flag = if self.steps.is_some() { "--steps" } else { "--tokens" };
            bail!("{flag} is 0; a run has at least 1");
        }
        let given = |from: usize| given[from..].iter().find(|(_, given)| *given).map(|(flag, _)| flag);
        if let Some(flag) = given(0).filter(|_| !has_machine) {
            let otherwise = adapter
                .map_or("leave it out".into(), |name| format!("measure this one first, by {}", measured_by(name)));
            bail!(
                "{flag} asks for the time of a run, which only a machine tells: add --machine, such as h100, or {otherwise}"
            );
        }
        if let Some(flag) = given(2).filter(|_| !has_nodes && self.span().is_none()) {
            bail!("{flag} is of a whole run: say how long that is, by --steps or --tokens, or leave it out");
        }
        Ok(())
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

impl PlanArgs {
    /// A recipe with the flags in place of its keys.
    fn put(&self, mut r: Recipe) -> Result<Recipe> {
        fn put<T: Clone>(flag: &Option<T>, key: &mut T) {
            if let Some(value) = flag {
                *key = value.clone();
            }
        }
        put(&self.config, &mut r.config);
        // A preset is named in the place of the recipe's model.
        r.model = self.model.clone().or(r.model.filter(|_| self.config.is_none()));
        put(&self.batch, &mut r.batch);
        put(&self.accumulate, &mut r.accumulate);
        put(&self.seq, &mut r.seq);
        put(&self.pack, &mut r.pack);
        put(&self.lengths, &mut r.lengths);
        put(&self.optimizer, &mut r.optimizer);
        put(&self.update, &mut r.update);
        put(&self.clip, &mut r.clip);
        put(&self.ema, &mut r.ema);
        put(&self.precision, &mut r.precision);
        put(&self.weight_copies, &mut r.weight_copies);
        r.memory = self.memory.or(r.memory);
        r.lora = self.adapters.over(r.lora);
        if self.dpo {
            r.dpo.get_or_insert_default();
        }
        if !self.scale.nodes.is_empty() {
            return Ok(Recipe { mesh: Mesh::ONE, shard: Shard::None, interleave: 1, expert_capacity: None, ..r });
        }
        put(&self.scale.shard, &mut r.shard);
        put(&self.scale.interleave, &mut r.interleave);
        let mesh = self.scale.mesh()?;
        if mesh.is_some_and(|mesh| mesh.expert == 1) {
            // As `danlu train` has it, whose flag takes what it goes with from the recipe.
            r.expert_capacity = None;
        }
        r.mesh = mesh.unwrap_or(r.mesh);
        r.expert_capacity = self.expert_capacity.or(r.expert_capacity);
        Ok(r)
    }
}

/// The recipe of a file as the command reads it whose it is.
fn recipe(file: Option<&Path>) -> Result<Recipe> {
    let Some(file) = file else { return Ok(Recipe::default()) };
    let plain = Recipe::open(file)?;
    Ok(match () {
        () if plain.dpo.is_some() => Recipe::open_over(file, false, Recipe::preferring)?,
        () if plain.model.is_some() => Recipe::open_over(file, false, Recipe::finetuning)?,
        () => plain,
    })
}

/// The model that is trained, and what of it is there.
pub fn model(recipe: &Recipe) -> Result<(ModelConfig, Option<Arc<Base>>)> {
    let Some(name) = &recipe.model else { return Ok((find_config(&hub::resolve_config(&recipe.config)?)?, None)) };
    if !Path::new(name).exists() {
        return Ok((find_config(&hub::resolve_config(name)?)?, None));
    }
    // What its weights are is not asked, and they are not read.
    let base = Base { checkpoint: Checkpoint::open(Path::new(name))?, name: name.clone(), hash: 0 };
    Ok((base.checkpoint.config().clone(), Some(Arc::new(base))))
}

/// What a plan of mixed precision leaves open that is for no adapter in particular.
const WITHOUT_F16: &str = "this plan is for an adapter whose shaders have no f16; one that has it keeps, reads and writes less: --adapter, \
                           or --machine (h100, say), plans for that";

/// Says what a run takes. Without `--adapter` no device is touched.
pub fn plan(args: PlanArgs) -> Result<()> {
    let has_nodes = !args.scale.nodes.is_empty();
    // The adapter that time is asked of; whether it was measured is known when it is opened.
    let named = args.adapter.adapter.as_deref().filter(|_| args.machine.is_empty() && !has_nodes && !args.measure);
    if named.is_none() {
        args.run.check(!args.machine.is_empty(), has_nodes, None)?;
    }
    let recipe = args.put(recipe(args.recipe.as_deref())?)?;
    recipe.check()?;
    let is_even = recipe.pack || recipe.mesh.ranks() > 1 || !args.scale.nodes.is_empty();
    if let Some(lengths) = args.lengths.filter(|&lengths| lengths > 1 && is_even) {
        bail!(
            "--lengths is {lengths}, and rows that are packed, or those of several ranks, all have --seq tokens: leave it out"
        );
    }
    let mut machines = args.machine.iter().map(|name| MachineFile::find(name)).collect::<Result<Vec<_>, _>>()?;
    let (mut config, base) = model(&recipe)?;
    // As training does with a model that begins from nothing.
    let positions = config.max_position_embeddings;
    let is_raised = recipe.model.is_none() && recipe.seq > positions;
    config.max_position_embeddings = if is_raised { recipe.seq } else { positions };
    if !args.scale.nodes.is_empty() {
        let (lora, dpo) = (recipe.lora.is_some(), recipe.dpo.is_some());
        if lora || dpo {
            let what = if lora { "adapters (lora)" } else { "preference pairs (dpo)" };
            bail!(
                "--nodes plans steps that train the whole model on text, and this recipe has {what}: leave one of the two out"
            );
        }
        let of_steps = |steps: u64| steps as f64 * f64::from(recipe.accumulate) * (recipe.batch * recipe.seq) as f64;
        let tokens = args.run.tokens.or(args.run.steps.map(of_steps));
        let run = scale::Run { tokens, price: args.run.price, watts: args.run.watts };
        return scale::plan(&args.scale, &config, &recipe, &machines, &run, args.json);
    }
    let asked = args.scale.shard.is_some_and(|shard| shard != Shard::None);
    if let Some(text) = recipe.unheard().into_iter().next().filter(|_| asked) {
        bail!(text);
    }
    if machines.len() > 1 {
        bail!("--machine names {} machines; several are compared with --nodes only", machines.len());
    }
    let mut machine = machines.pop();
    let is_known = machine.is_some() || args.adapter.adapter.is_some();
    let limits = match args.adapter.adapter {
        _ if args.measure => return pollster::block_on(measure(&args, &recipe, &config)),
        Some(_) => {
            let gpu = pollster::block_on(Gpu::open(&args.adapter.selector()))?;
            if named.is_some() {
                let records = Records::load(&paths::cache(), &gpu.report().id());
                machine = MachineFile::remembered(&records, gpu.limits().is_cpu);
                args.run.check(machine.is_some(), false, named)?;
            }
            gpu.limits().clone()
        }
        None => MachineFile::limits(machine.as_ref()),
    };
    let memory = recipe.memory.or(limits.memory_bytes.map(Bytes)).or(machine.as_ref().and_then(|m| m.memory));
    // Only a budget is planned for: what an adapter happens to have free is not a property of the plan.
    let limits = Limits { memory_bytes: None, ..limits };
    let asked = recipe.memory;
    let job = Job { config, recipe, base, lengths: args.lengths.unwrap_or(1) };
    let plans = job.plans(&limits, &mut First).map_err(|error| of_one_rank(error, job.recipe.mesh))?;
    let copies = unheard_copies(&job.recipe, &plans.train).filter(|_| args.weight_copies == Some(true));
    copies.map_or(Ok(()), |text| Err(anyhow!(text)))?;
    let fits = memory.map(|memory| Fits::find(&job, &limits, memory, asked.is_some())).transpose()?;
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
        if job.recipe.precision == Precision::Mixed && !is_known {
            say!("\n{}", WITHOUT_F16);
        }
        named.and_then(|name| unlearned(name, machine.as_ref())).iter().for_each(|text| say!("\n{text}"));
        if machine.as_ref().is_some_and(|machine| named.is_none() && !machine.is_learned()) {
            say!("\n{}", AT_THE_ROOFLINE);
        }
        if is_raised {
            say!(
                "\nsequences of {} tokens exceed the configuration's {positions} positions: training raises them",
                job.recipe.seq
            );
        }
        let ranks = job.recipe.mesh.ranks();
        if let Some(machine) = machine.as_ref().filter(|machine| !machine.knows_messages(ranks, ranks)) {
            say!("\nwhat its ranks send is not in this time: of {} it is not known what messages cost", machine.name);
        }
        let traded = plans.fit.as_ref().map(|fit| &fit.trade).filter(|trade| !trade.again.is_empty());
        traded.iter().for_each(|trade| say!("\n{}", table(trade, &plans)));
    }
    plans.check().map_err(|error| match is_known {
        true => error.into(),
        false => anyhow!(
            "{error}; so it is within what every adapter offers: --adapter NUMBER plans for one of those that are here"
        ),
    })
}

/// What is to be said of a machine of which nothing but its limits is known.
const AT_THE_ROOFLINE: &str = "this is the time at the roofline, which few kernels reach";

/// The command that measures an adapter of that name.
fn measured_by(adapter: &str) -> String {
    format!("danlu bench train --adapter {adapter}")
}

/// What is not known of the time of a step on the adapter that was named, and how that is changed.
fn unlearned(adapter: &str, machine: Option<&MachineFile>) -> Option<String> {
    let measured = measured_by(adapter);
    match machine {
        None => Some(format!("how long a step takes there is not known yet: {measured} measures it")),
        Some(machine) if !machine.is_learned() => {
            Some(format!("{AT_THE_ROOFLINE}: {measured} learns how near those here come"))
        }
        Some(_) => None,
    }
}

/// What one rank has no room for many together may have: the way to plan for those.
fn of_one_rank(error: Error, mesh: Mesh) -> anyhow::Error {
    match error {
        Error::Memory { .. } if mesh != Mesh::ONE => anyhow!(
            "{error}; this is the plan of one rank of {mesh}, and --nodes and --machine look for the mesh of a whole machine"
        ),
        error => error.into(),
    }
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
    text + &format!("{:<58} {reached:>12}, which adds {added:.1} % to a step's work", "reached")
}

/// The plan with its totals, the answer, and with the measured seconds of every step if there are any.
fn json(plan: &Plan, answered: Option<(&Answer, &Planned)>, seconds: Option<&[f64]>) -> Result<String> {
    let mut value = serde_json::to_value(plan)?;
    value["totals"] = serde_json::to_value(plan.totals())?;
    if let Some((answer, plans)) = answered {
        value["answer"] = serde_json::to_value(answer)?;
        if let Some(fit) = &plans.fit {
            value["trade"] = serde_json::to_value(&fit.trade)?;
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
    let of_more = [
        ("several ranks (--mesh)", recipe.mesh.ranks() > 1),
        ("several batches (--accumulate)", recipe.accumulate > 1),
        ("adapters (--lora-rank and its like)", recipe.lora.is_some()),
    ];
    if let Some((what, _)) = of_more.into_iter().find(|(_, is)| *is) {
        bail!(
            "--measure times a step of one batch that trains the whole model on one adapter, and not of {what}: leave one of the two out"
        );
    }
    let gpu = Gpu::open(&args.adapter.selector()).await?;
    let optimizer = optimizer(recipe);
    let plan = train_plan(config, recipe.batch, recipe.seq, &optimizer, gpu.limits(), &mut First)?;
    let mut tuner = Tuner::new(&gpu, TuneMode::Full, None);
    let recorded = training_steps(&gpu, &mut tuner, (config, &optimizer), &plan, 1).await?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use clap::FromArgMatches;

    /// What the help says is what a plan without flags is of.
    #[test]
    fn defaults_are_as_they_are_said() {
        let command = PlanArgs::augment_args(clap::Command::new("plan"));
        let args = PlanArgs::from_arg_matches(&command.clone().get_matches_from(["plan"])).unwrap();
        let recipe = args.put(recipe(None).unwrap()).unwrap();
        for (flag, value) in [("batch", recipe.batch), ("accumulate", recipe.accumulate as usize), ("seq", recipe.seq)]
        {
            let arg = command.get_arguments().find(|arg| arg.get_id() == flag).unwrap();
            let help = arg.get_help().unwrap().to_string();
            assert!(help.ends_with(&format!("[default: {value}]")), "{flag} is {value}: {help}");
        }
    }
}
