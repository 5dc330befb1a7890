//! `danlu train`, and what `danlu finetune` shares with it.

use super::finetune::{Kind, LoraArgs};
use super::mpi::{Process, among};
use super::progress::{LogFormat, observer};
use super::signals::Stop;
use super::{AdapterArgs, hub, paths, profile, ranks, selector};
use crate::base::Bytes;
use crate::compile::{Chooser, settle};
use crate::data::{Batch, DataSource, DataSources, LossOn, Overlong, SMALLEST_VOCAB};
use crate::estimate::{Job, remedy};
use crate::gpu::{Gpu, Selector, list};
use crate::model::{ModelConfig, find_config};
use crate::optim::{Rule, Shape, Shard, Update};
use crate::parallel::Mesh;
use crate::run::{Choice, Choices, Recorder, TuneMode, Tuner, compile_early};
use crate::store::{HubPart, Loaded};
use crate::train::{
    Base, Ending, Event, Observer, OnDivergence, Pace, Precision, Prepared, Recipe, Resumption, Tasks, Trainer, World,
    check_fits, plans, prepare_from, save, unfinished,
};
use anyhow::{Context, Result, bail};
use clap::Args;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The steps that `--profile` records: the first pays for page faults and the driver's lazy work.
const PROFILED: std::ops::Range<usize> = 1..11;

/// Flags of `danlu train`; each overrides the recipe's key of the same name.
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// A TOML recipe; flags override its keys.
    #[arg(long, value_name = "FILE")]
    recipe: Option<PathBuf>,
    /// A preset, a config.json, a folder that holds one, or a name on the hub: org/model [default: story-1m].
    #[arg(long, value_name = "PRESET|FILE|NAME")]
    config: Option<String>,
    /// A model to go on with, tokenizer and all: a folder, a GGUF file or a name on the hub.
    #[arg(long, value_name = "PATH|NAME", conflicts_with_all = ["config", "tokenizer"])]
    model: Option<String>,
    /// Text, examples as JSONL or JSON (text, messages, prompt/completion, Alpaca, ShareGPT), or a folder of them; several
    /// with the weights of their rows [default: embedded stories].
    #[arg(long, value_name = "FILE|FOLDER[=WEIGHT]")]
    data: Vec<DataSource>,
    /// Pack documents into full rows, of which each sees nothing of the others.
    #[arg(long, value_name = "true|false", num_args = 0..=1, default_missing_value = "true")]
    pack: Option<bool>,
    /// Rows of examples that are not packed have at most so many lengths, as their tokens suggest; 1: all have --seq
    /// [default: 4].
    #[arg(long, value_name = "COUNT", allow_negative_numbers = true)]
    lengths: Option<usize>,
    /// What to do with documents longer than a row [default: text is split, examples are truncated].
    #[arg(long, value_name = "truncate|drop|split")]
    overlong: Option<Overlong>,
    /// Which tokens of a conversation are to be predicted [default: assistant].
    #[arg(long, value_name = "assistant|all")]
    loss_on: Option<LossOn>,
    /// An existing tokenizer.json, or a name on the hub [default: a BPE trained on the data].
    #[arg(long, value_name = "FILE|NAME")]
    tokenizer: Option<PathBuf>,
    /// Optimizer steps.
    #[arg(long, allow_negative_numbers = true)]
    steps: Option<u64>,
    /// Sequences that are computed at a time.
    #[arg(long, allow_negative_numbers = true)]
    batch: Option<usize>,
    /// Batches of one step: gradients are added up, each token weighing the same [default: 1].
    #[arg(long, value_name = "BATCHES", allow_negative_numbers = true)]
    accumulate: Option<u32>,
    /// Tokens of one sequence.
    #[arg(long, allow_negative_numbers = true)]
    seq: Option<usize>,
    /// Most device memory of a step and of validation, such as 6GB: activations that do not fit are computed again
    /// [default: what the adapter has].
    #[arg(long, value_name = "SIZE")]
    memory: Option<Bytes>,
    /// `f32`, or `mixed`: products round their operands to f16, and the loss is scaled.
    #[arg(long, value_name = "f32|mixed")]
    precision: Option<Precision>,
    /// How parameters follow from gradients [default: adamw].
    #[arg(long, value_name = "adamw|adamw8bit|muon|sgd")]
    optimizer: Option<Rule>,
    /// When parameters change: after the backward pass, or, to keep no gradients, layer by layer in it: with clipping that
    /// takes twice the time [default: step].
    #[arg(long, value_name = "step|layer")]
    update: Option<Update>,
    /// Highest learning rate.
    #[arg(long, allow_negative_numbers = true)]
    lr: Option<f64>,
    /// The gradient is scaled down to this global norm, 0 for never [default: 1].
    #[arg(long, value_name = "NORM", allow_negative_numbers = true)]
    clip: Option<f64>,
    /// How it goes on after the warm-up [default: cosine].
    #[arg(long, value_name = "constant|linear|cosine|wsd")]
    schedule: Option<Shape>,
    /// Keep a moving average of the parameters with this decay, such as 0.999, and validate and write that.
    #[arg(long, value_name = "DECAY", allow_negative_numbers = true)]
    ema: Option<f64>,
    /// Seed of weights, data order and samples.
    #[arg(long, allow_negative_numbers = true)]
    seed: Option<u64>,
    /// Folder for the model [default: runs/model].
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Text that the samples go on from.
    #[arg(long)]
    prompt: Option<String>,
    /// Take up the run in this folder, or in --out, from its last checkpoint: as if it had never stopped.
    #[arg(long, value_name = "FOLDER", num_args = 0..=1, conflicts_with = "recipe")]
    resume: Option<Option<PathBuf>>,
    /// Start anew even where the folder holds a run that has not come to its end.
    #[arg(long, conflicts_with = "resume")]
    force: bool,
    /// Steps between checkpoints, 0 for none [default: as often as validation].
    #[arg(long, value_name = "STEPS", allow_negative_numbers = true)]
    checkpoint_every: Option<u64>,
    /// How many of the last checkpoints stay, beside the best by validation [default: 2].
    #[arg(long, value_name = "COUNT", allow_negative_numbers = true)]
    keep: Option<usize>,
    /// Steps between validations [default: a tenth of all].
    #[arg(long, value_name = "STEPS", allow_negative_numbers = true)]
    eval_every: Option<u64>,
    /// Most sequences of one validation [default: 32].
    #[arg(long, value_name = "COUNT", allow_negative_numbers = true)]
    val_sequences: Option<u64>,
    /// End after this many validations without a lower loss [default: never].
    #[arg(long, value_name = "COUNT", allow_negative_numbers = true)]
    patience: Option<u64>,
    /// When training diverges: back to the last checkpoint and on with a lower rate, or stop [default: rollback].
    #[arg(long, value_name = "rollback|stop")]
    on_divergence: Option<OnDivergence>,
    /// Print the recipe that flags and files come to, as TOML, and train nothing.
    #[arg(long)]
    print_recipe: bool,
    /// Score these files of items, as `danlu eval --items` takes them, after each validation.
    #[arg(long, value_name = "FILE,...", value_delimiter = ',')]
    eval_tasks: Option<Vec<PathBuf>>,
    /// Say nothing but where the model lies.
    #[arg(long)]
    quiet: bool,
    /// How the run is reported.
    #[arg(long, value_enum, default_value_t)]
    log_format: LogFormat,
    /// Which kernels: `full` measures candidates once and remembers, `cached` measures nothing, `off` takes the first
    /// [default: full].
    #[arg(long, value_name = "off|cached|full")]
    tune: Option<TuneMode>,
    /// Also write the initial model, tokens.bin and val.bin there, for comparison with another trainer.
    #[arg(long, value_name = "FOLDER")]
    dump: Option<PathBuf>,
    /// Record the ten steps after the first: a table of where their time goes at the end, and there a trace that
    /// ui.perfetto.dev opens.
    #[arg(long, value_name = "FILE")]
    profile: Option<PathBuf>,
    /// Axes along which ranks share the work, such as data=4: each has an adapter of its own [default: one rank].
    #[arg(long, value_name = "data=N")]
    mesh: Option<Mesh>,
    /// What ranks share out among them: the optimizer's moments, or nothing [default: none].
    #[arg(long, value_name = "none|optimizer")]
    shard: Option<Shard>,
    /// Steps after which ranks compare what must be the same on all, 0 for never [default: 100].
    #[arg(long, value_name = "STEPS", allow_negative_numbers = true)]
    compare_every: Option<u64>,
    /// Let several ranks share an adapter, also where that is a GPU.
    #[arg(long)]
    share_adapter: bool,
    /// A rank that the others wait for longer than this has failed.
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    rank_timeout: u64,
    #[command(flatten)]
    lora: LoraArgs,
    #[command(flatten)]
    adapter: AdapterArgs,
}

impl TrainArgs {
    /// The recipe of a run that is to be started, or of that which is to be taken up.
    pub fn aim(&self, kind: &Kind) -> Result<Recipe> {
        let Some(folder) = &self.resume else { return Ok(self.put(kind.over(kind.recipe(self.recipe.as_deref())?))) };
        let folder = folder.clone().or(self.out.clone()).unwrap_or(kind.recipe(None)?.out);
        Ok(Resumption::find(&folder, &mut |_| ())?.recipe)
    }

    /// How long a rank is waited for.
    fn patience_with_ranks(&self) -> Option<Duration> {
        Some(Duration::from_secs(self.rank_timeout.max(1)))
    }

    /// The recipe, and where the run is taken up, if it is; `note` hears of checkpoints that are damaged.
    fn recipe(&self, kind: &Kind, note: &mut dyn FnMut(String)) -> Result<(Recipe, Option<Resumption>)> {
        let Some(folder) = &self.resume else {
            let recipe = self.over(kind.over(kind.recipe(self.recipe.as_deref())?))?;
            kind.check(&recipe)?;
            if let Some(state) = unfinished(&recipe.out).filter(|_| !self.force) {
                let out = recipe.out.display();
                bail!(
                    "{out} holds a run {state}: go on with it with --resume {out}, choose another --out, or give it up with \
                     --force"
                );
            }
            return Ok((recipe, None));
        };
        let folder = folder.clone().or(self.out.clone()).unwrap_or(kind.recipe(None)?.out);
        let mut resumption = Resumption::find(&folder, note)?;
        kind.check_resumed(&resumption.recipe)?;
        let wanted = self.over(kind.over(resumption.recipe.clone()))?;
        resumption.change(Recipe { out: folder, ..wanted })?;
        Ok((resumption.recipe.clone(), Some(resumption)))
    }

    /// A recipe with the flags in place of its keys, checked, and with names on the hub resolved.
    fn over(&self, recipe: Recipe) -> Result<Recipe> {
        let mut r = self.put(recipe);
        r.check()?;
        if r.model.is_none() {
            r.config = hub::resolve_config(&r.config)?;
        }
        for source in &mut r.data.0 {
            source.path = hub::resolve_data(&source.path)?;
        }
        r.tokenizer = r.tokenizer.map(|t| hub::resolve_part(&t, HubPart::Tokenizer)).transpose()?;
        Ok(r)
    }

    /// A recipe with the flags in place of its keys.
    fn put(&self, mut r: Recipe) -> Recipe {
        fn put<T: Clone>(flag: &Option<T>, key: &mut T) {
            if let Some(value) = flag {
                *key = value.clone();
            }
        }
        put(&self.config, &mut r.config);
        put(&self.steps, &mut r.steps);
        put(&self.batch, &mut r.batch);
        put(&self.seq, &mut r.seq);
        put(&self.precision, &mut r.precision);
        put(&self.accumulate, &mut r.accumulate);
        put(&self.optimizer, &mut r.optimizer);
        put(&self.update, &mut r.update);
        put(&self.lr, &mut r.lr);
        put(&self.clip, &mut r.clip);
        put(&self.schedule, &mut r.schedule);
        put(&self.ema, &mut r.ema);
        put(&self.seed, &mut r.seed);
        put(&self.out, &mut r.out);
        put(&self.prompt, &mut r.prompt);
        put(&self.keep, &mut r.checkpoint.keep);
        put(&self.patience, &mut r.patience);
        put(&self.on_divergence, &mut r.recovery.on_divergence);
        r.eval_every = self.eval_every.or(r.eval_every);
        put(&self.val_sequences, &mut r.val_sequences);
        r.checkpoint.every = self.checkpoint_every.or(r.checkpoint.every);
        r.memory = self.memory.or(r.memory);
        r.model = self.model.clone().or(r.model);
        r.lora = self.lora.over(r.lora);
        put(&self.pack, &mut r.pack);
        put(&self.lengths, &mut r.lengths);
        put(&self.loss_on, &mut r.loss_on);
        r.overlong = self.overlong.or(r.overlong);
        if !self.data.is_empty() {
            r.data = DataSources(self.data.clone());
        }
        r.tokenizer = self.tokenizer.clone().or(r.tokenizer);
        r.adapter = self.adapter.adapter.clone().or(r.adapter);
        put(&self.tune, &mut r.tune);
        put(&self.mesh, &mut r.mesh);
        put(&self.shard, &mut r.shard);
        put(&self.compare_every, &mut r.compare_every);
        put(&self.eval_tasks, &mut r.eval_tasks);
        r
    }
}

/// Trains a model and saves it; gives the exit code.
pub async fn train(args: TrainArgs) -> Result<u8> {
    run(args, Kind::Train).await
}

/// A training run of some kind, of one process or of all that a launcher started.
pub async fn run(args: TrainArgs, kind: Kind) -> Result<u8> {
    among(args.patience_with_ranks(), |process| pollster::block_on(run_among(args, kind, process)))
}

async fn run_among(args: TrainArgs, kind: Kind, process: Option<&Process>) -> Result<u8> {
    let mut notes = Vec::new();
    let (mut recipe, resumption) = args.recipe(&kind, &mut |text| notes.push(text))?;
    if let Some(process) = process {
        recipe = process.share(recipe, args.mesh.is_some())?;
    }
    if args.print_recipe {
        if process.is_none_or(|process| process.rank() == 0) {
            say!("{}", recipe.resolved().to_toml().trim_end());
        }
        return Ok(0);
    }
    let own = process.map(|process| process.log(&recipe.out)).transpose()?.flatten();
    let mut observer = own.unwrap_or_else(|| observer(args.log_format, args.quiet, &recipe));
    notes.into_iter().for_each(|text| observer.event(&Event::Note { text }));
    // What can be refused early is: before the data is read, and before anything is computed.
    Tasks::read(&recipe)?;
    writable(&recipe.out, "output folder", "choose another with --out")?;
    writable(&paths::cache(), "cache folder", "set DANLU_CACHE to another")?;
    let base = open_base(&recipe)?;
    let mut config = match &base {
        Some(base) => base.checkpoint.config().clone(),
        None => find_config(&recipe.config)?,
    };
    let wanted = selector(recipe.adapter.as_deref());
    // Of a process its place among those of its machine, whose adapters they share; threads of one share all of them.
    let (place, ranks) = process.map_or((0, recipe.mesh.ranks()), |process| process.local());
    let adapters = match recipe.mesh.ranks() {
        1 => vec![wanted],
        _ => wanted.spread(&list().await, ranks, args.share_adapter)?.into_iter().map(Selector::Number).collect(),
    };
    let gpu = Gpu::open(&adapters[place]).await?;
    keep_pipelines(&gpu, observer.as_mut());
    if base.is_none() {
        // How large the vocabulary will be is not known yet: what does not fit with the smallest never will.
        config.vocab_size = config.vocab_size.min(SMALLEST_VOCAB);
    }
    fits(&gpu, &recipe, &config, base.as_deref())?;
    // A fresh driver compiles for seconds: meanwhile the stories are written.
    let refused = AtomicBool::new(false);
    let prepared = std::thread::scope(|scope| {
        scope.spawn(|| compile_step(&gpu, &recipe, base.as_deref(), &refused));
        let mut prepare = || Ok(prepare_from(&recipe, base.clone(), &paths::cache(), observer.as_mut())?);
        let prepared = match process {
            Some(process) => process.in_turn(prepare),
            None => prepare(),
        };
        refused.store(prepared.is_err(), Ordering::Relaxed);
        prepared
    })?;
    fits(&gpu, &recipe, &prepared.config, base.as_deref())?;
    let stop = Stop::listen()?;
    let patience = args.patience_with_ranks();
    let run = Run { args, recipe, resumption, prepared, stop };
    if let Some(process) = process {
        return run.rank(&gpu, &process.world(), observer.as_mut()).await;
    }
    if adapters.len() == 1 {
        return run.rank(&gpu, &World::alone(), observer.as_mut()).await;
    }
    let first = Mutex::new(Some((gpu, observer)));
    ranks::all(adapters.len(), patience, move |world| {
        let mine = if world.is_first() { first.lock().ok().and_then(|mut first| first.take()) } else { None };
        let (gpu, mut observer) = match mine {
            Some(mine) => mine,
            None => (pollster::block_on(Gpu::open(&adapters[world.rank()]))?, ranks::silent()),
        };
        pollster::block_on(run.rank(&gpu, &world, observer.as_mut()))
    })
}

/// What all ranks of a run work on.
struct Run {
    args: TrainArgs,
    recipe: Recipe,
    resumption: Option<Resumption>,
    prepared: Prepared,
    stop: Stop,
}

impl Run {
    /// What one rank does; gives the exit code.
    async fn rank(&self, gpu: &Gpu, world: &World, observer: &mut dyn Observer) -> Result<u8> {
        let Run { args, recipe, resumption, prepared, stop } = self;
        // The others take the kernels that the first has chosen.
        let mode = if world.is_first() { recipe.tune } else { TuneMode::Off };
        let mut tuner = Tuner::new(gpu, mode, Some(&paths::cache()));
        let roofline = match world.is_first() {
            true => Some(tuner.roofline(recipe.precision == Precision::Mixed).await?),
            false => None,
        };
        let kernels = resumption.as_ref().map_or(&[][..], |r| chosen(r, gpu, observer));
        let mut choices = Choices::new(kernels, &mut tuner);
        let loaded = &mut |loaded: Loaded| {
            observer.event(&Event::Loading { done: loaded.done, total: loaded.total });
        };
        let (mut trainer, plan, apply) = Trainer::among(gpu, recipe, prepared, &mut choices, world, loaded).await?;
        let fitted = trainer.fit.as_ref().and_then(|fit| fit.note());
        let validated = validated(recipe, &trainer, prepared);
        trainer.subject.note(&prepared.config).into_iter().chain(fitted).chain(validated).for_each(|text| {
            observer.event(&Event::Note { text });
        });
        if world.is_first() {
            // What was measured is a convenience: a cache that cannot be written costs the next start some seconds.
            if let Err(error) = tuner.save() {
                observer.event(&Event::Note { text: format!("measurements were not kept: {error}") });
            }
            if let Some(folder) = &args.dump {
                dump(folder, recipe, prepared, &trainer).await?;
            }
        }
        trainer.take_reference(recipe, prepared, &paths::cache(), stop.asked(), observer).await?;
        if let Some(resumption) = resumption {
            resumption.restore(&mut trainer, prepared).await?;
        }
        let plans = [(&plan, recipe.accumulate)].into_iter().chain(apply.iter().map(|plan| (plan, 1)));
        let limit = roofline.as_ref().map(|roofline| Pace::of(roofline, plans));
        observer.event(&Event::Ready {
            adapter: gpu.report().line(),
            parameters: trainer.layout().parameters(),
            train_tokens: prepared.loader.train_tokens(),
            val_tokens: prepared.loader.val_tokens(),
            totals: plan.totals(),
            step_limit: limit.map(|limit| limit.step_seconds),
            steps: recipe.steps,
        });
        if let Some(resumption) = resumption {
            observer.event(&Event::Resumed { step: resumption.step(), folder: recipe.out.clone() });
        }
        let recorder = Recorder::of(PROFILED);
        let profiled = args.profile.as_deref().filter(|_| world.is_first());
        if profiled.is_some() {
            trainer.record(Some(&recorder));
        }
        let ending = crate::train::run(gpu, recipe, prepared, &mut trainer, limit, stop.asked(), observer).await?;
        if world.is_first()
            && let Err(error) = gpu.save_pipelines()
        {
            observer.event(&Event::Note { text: format!("compiled shaders were not kept: {error}") });
        }
        if let (Some(file), Some(roofline)) = (profiled, &roofline) {
            profile::conclude(gpu, &recorder, roofline, file)?;
        }
        Ok(if ending == Ending::Interrupted { stop.code() } else { 0 })
    }
}

/// Refuses what takes more memory than there is, and says what would fit.
fn fits(gpu: &Gpu, recipe: &Recipe, config: &ModelConfig, base: Option<&Base>) -> Result<()> {
    let Err(error) = check_fits(gpu, recipe, config, base) else { return Ok(()) };
    let memory = recipe.memory.into_iter().chain(gpu.limits().memory_bytes.map(Bytes)).min_by_key(|bytes| bytes.0);
    let job = Job { config: config.clone(), recipe: recipe.clone() };
    match memory.and_then(|memory| remedy(&job, gpu.limits(), memory)) {
        Some(text) => bail!("{error}; {text}"),
        None => Err(error.into()),
    }
}

/// The model that the recipe goes on with, if it does.
fn open_base(recipe: &Recipe) -> Result<Option<Arc<Base>>> {
    let Some(model) = &recipe.model else { return Ok(None) };
    Ok(Some(Arc::new(Base::open(&hub::resolve(Path::new(model))?, model)?)))
}

/// The kernels that a run was begun with, where they may be taken again.
fn chosen<'a>(resumption: &'a Resumption, gpu: &Gpu, observer: &mut dyn Observer) -> &'a [Choice] {
    let Some((_, about)) = &resumption.from else { return &[] };
    match about.differs(gpu) {
        None => &about.kernels,
        Some(text) => {
            observer.event(&Event::Note { text });
            &[]
        }
    }
}

/// What was compiled before is a convenience: where it cannot be read, it is compiled again.
fn keep_pipelines(gpu: &Gpu, observer: &mut dyn Observer) {
    if let Err(error) = gpu.keep_pipelines(&paths::cache()) {
        observer.event(&Event::Note { text: format!("shaders are compiled anew: {error}") });
    }
}

/// Compiles what a training step will most probably run: whatever the tokenizer's vocabulary turns out to be, and without
/// measuring, since the data are being read beside it.
fn compile_step(gpu: &Gpu, recipe: &Recipe, base: Option<&Base>, stop: &AtomicBool) {
    let mut tuner = Tuner::new(gpu, recipe.tune.min(TuneMode::Cached), Some(&paths::cache()));
    let config = base.map_or_else(|| find_config(&recipe.config), |base| Ok(base.checkpoint.config().clone()));
    let plans = config.and_then(|config| {
        let plan = |chooser: &mut dyn Chooser| plans(&config, recipe, base, gpu.limits(), chooser);
        pollster::block_on(settle(&mut tuner, plan))
    });
    // Whatever is wrong with the plan is said where it is run.
    if let Ok(plans) = plans {
        compile_early(gpu, &plans.train, stop);
    }
}

/// Creates a folder and tries a file in it, so that hours of work cannot end with nowhere to put them. Folders that were
/// not there go again: a run that is refused leaves nothing.
fn writable(folder: &Path, what: &str, advice: &str) -> Result<()> {
    let absent: Vec<&Path> = folder.ancestors().take_while(|f| !f.as_os_str().is_empty() && !f.exists()).collect();
    let probe = folder.join(format!(".danlu-probe-{}", std::process::id()));
    let tried = std::fs::create_dir_all(folder).and_then(|()| std::fs::write(&probe, b"x"));
    let _ = std::fs::remove_file(&probe);
    for folder in absent {
        // Fails where another program has put something there in the meantime, which is right.
        let _ = std::fs::remove_dir(folder);
    }
    tried.with_context(|| format!("cannot write to the {what} {}; {advice}", folder.display()))
}

/// How much is validated, where that is not all that is held out.
fn validated(recipe: &Recipe, trainer: &Trainer, prepared: &Prepared) -> Option<String> {
    let (every, all) = (recipe.eval_interval(), prepared.loader.val_rows());
    let rows = trainer.val_batches(recipe.val_sequences) * recipe.sequences() as u64;
    let what = if every == 1 { "every step".into() } else { format!("every {every} steps") };
    (rows < all).then(|| {
        format!("validation, after {what}, is of {rows} of {all} held-out rows (--eval-every, --val-sequences)")
    })
}

/// The initial model, and every batch as `[B, T+1]` u32 little-endian rows.
async fn dump(folder: &Path, recipe: &Recipe, prepared: &Prepared, trainer: &Trainer) -> Result<()> {
    save(folder, recipe, prepared, &trainer.subject, &trainer.pages().await?)?;
    let loader = prepared.loader.filled_up();
    let mut batch = loader.empty_batch();
    let mut write =
        |name: &str, count: u64, fill: &dyn Fn(u64, &mut Batch) -> crate::error::Result<()>| -> Result<()> {
            let mut file = std::io::BufWriter::new(std::fs::File::create(folder.join(name))?);
            for index in 0..count {
                fill(index, &mut batch)?;
                for (inputs, targets) in batch.tokens.chunks_exact(batch.seq).zip(batch.targets.chunks_exact(batch.seq))
                {
                    file.write_all(bytemuck::cast_slice(inputs))?;
                    file.write_all(bytemuck::cast_slice(&targets[batch.seq - 1..]))?;
                }
            }
            Ok(file.flush()?)
        };
    let count = trainer.val_batches(recipe.val_sequences);
    write("tokens.bin", recipe.steps * u64::from(recipe.accumulate), &|step, batch| loader.batch(step, batch))?;
    write("val.bin", count, &|index, batch| loader.val_batch(index, count, batch))
}

#[cfg(test)]
#[path = "train_tests.rs"]
mod tests;
