//! A training run from its flags to its folder: adapter, kernels, ranks, what is told, and what is kept.

use super::super::alive::{Alive, leave_with_supervisor};
use super::super::finetune::Kind;
use super::super::mpi::{Process, among};
use super::super::progress::{RankLog, observer};
use super::super::signals::Stop;
use super::super::{hub, paths, profile, ranks, selector};
use super::TrainArgs;
use super::auto::choose;
use crate::base::{Bytes, Limits};
use crate::compile::{Chooser, settle};
use crate::data::{Batch, SMALLEST_VOCAB};
use crate::error::Error;
use crate::estimate::{Job, Parameters, remedy};
use crate::gpu::{Gpu, Selector, list};
use crate::model::{ModelConfig, find_config};
use crate::run::{Choice, Choices, Recorder, TuneMode, Tuner, compile_early};
use crate::store::{ADAPTER_WEIGHTS, Loaded, check_room};
use crate::train::{
    Base, Ending, Event, Observer, Pace, Precision, Prepared, Recipe, Resumption, RunLock, StepTotals, Subject, Tasks,
    Trainer, World, check_fits, plans, prepare_from, put_back, save, schedule, unheard_copies,
};
use anyhow::{Context, Result, anyhow};
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// The steps that `--profile` records: the first pays for page faults and the driver's lazy work.
const PROFILED: std::ops::Range<usize> = 1..11;

/// A training run of some kind, of one process or of all that a launcher started.
pub async fn run(args: TrainArgs, kind: Kind) -> Result<u8> {
    let (patience, resumed) = (args.ranks.patience(), args.taken_up(&kind).ok().flatten());
    among(patience, |process| {
        let done = pollster::block_on(run_among(args, kind, process));
        if let (Err(error), Some(folder)) = (&done, resumed)
            && error.chain().any(|cause| cause.downcast_ref().is_some_and(Error::is_refusal))
        {
            RunLock::refuse(&folder);
        }
        done
    })
}

async fn run_among(args: TrainArgs, kind: Kind, process: Option<&Process>) -> Result<u8> {
    let is_first = process.is_none_or(|process| process.rank() == 0);
    if is_first {
        leave_with_supervisor();
    }
    let _alive = Alive::give(args.silence().filter(|_| is_first));
    let mut notes = Vec::new();
    if let Some(process) = process {
        notes.extend(process.compare_clocks()?);
    }
    if let Some(folder) = args.taken_up(&kind)? {
        RunLock::check(&folder)?;
        let mut put_back = || Ok(put_back(&folder, &mut |text| notes.push(text))?);
        match process {
            Some(process) => process.on_each_machine(put_back)?,
            None => put_back()?,
        }
    }
    let mut damage = Vec::new();
    let found = args.recipe(&kind, &mut |text| damage.push(text));
    if found.is_err() && is_first {
        // Why nothing was put back that is wanted.
        notes.iter().for_each(|text| tell!("danlu: {text}"));
    }
    let (mut recipe, resumption) = found?;
    notes.extend(damage);
    if args.is_auto() {
        let chosen = choose(&args, &recipe, process).await?;
        recipe.mesh = chosen.mesh;
        notes.push(chosen.why);
    } else if let Some(process) = process {
        recipe = ranks::shared_by(process.size(), recipe, args.mesh().is_some())?;
    }
    if args.print_recipe {
        if is_first {
            say!("{}", recipe.resolved().to_toml().trim_end());
        }
        return Ok(0);
    }
    notes.extend(schedule(&recipe).doubt());
    let asked = Arc::new(AtomicBool::new(false));
    let own = process.map(|process| process.log(&recipe.out)).transpose()?.flatten();
    let mut observer = own.unwrap_or_else(|| observer(args.log_format, args.quiet, &recipe, asked.clone()));
    notes.into_iter().for_each(|text| observer.event(&Event::Note { text }));
    // What can be refused early is: before the data is read, and before anything is computed.
    Tasks::read(&recipe)?;
    writable(&recipe.out, "output folder", "choose another with --out")?;
    writable(&paths::cache(), "cache folder", "set DANLU_CACHE to another")?;
    args.profile.as_deref().filter(|_| is_first).map_or(Ok(()), paths::try_file)?;
    let base = open_base(&recipe)?;
    let mut config = match &base {
        Some(base) => base.checkpoint.config().clone(),
        None => find_config(&recipe.config)?,
    };
    recipe.check_split(&config)?;
    let wanted = selector(recipe.adapter.as_deref());
    // Of a process its place among those of its machine, whose adapters they share; threads of one share all of them.
    let (place, ranks) = process.map_or((0, recipe.mesh.ranks()), |process| process.local());
    let adapters = match recipe.mesh.ranks() {
        1 => vec![wanted],
        _ => wanted.spread(&list().await, ranks, args.ranks.share_adapter)?.into_iter().map(Selector::Number).collect(),
    };
    let gpu = open(&adapters, place).await?;
    keep_pipelines(&gpu, observer.as_mut());
    if base.is_none() {
        // How large the vocabulary will be is not known yet: what does not fit with the smallest never will.
        config.vocab_size = config.vocab_size.min(SMALLEST_VOCAB);
    }
    // A process sees to its own part, and says which rank it is; threads of one have this one see to all that are unlike.
    let unlike = process.map_or_else(|| recipe.mesh.unlike(), |process| vec![process.rank()]);
    let refused = AtomicBool::new(false);
    let fits = |config: &ModelConfig| fits(&gpu, &unlike, &recipe, config, base.as_ref(), &refused);
    // A driver compiles for seconds, or takes its time with what it has kept: meanwhile it is seen whether all fits, and data are
    // read.
    let prepared = std::thread::scope(|scope| {
        scope.spawn(|| compile_step(&gpu, &recipe, base.as_deref(), &refused));
        let mut prepare = || Ok(prepare_from(&recipe, base.clone(), &paths::cache(), observer.as_mut())?);
        let prepared = fits(&config).and_then(|()| match process {
            Some(process) => process.in_turn(prepare),
            None => prepare(),
        });
        let fitting = prepared.and_then(|prepared| fits(&prepared.config).map(|()| prepared));
        refused.store(fitting.is_err(), Ordering::Relaxed);
        fitting
    })?;
    let stop = Stop::listen(asked)?;
    let patience = args.ranks.patience().work;
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
            None => {
                let log: Box<dyn Observer + Send> = Box::new(RankLog::open(&run.recipe.out, world.rank())?);
                (pollster::block_on(open(&adapters, world.rank()))?, log)
            }
        };
        pollster::block_on(run.rank(&gpu, &world, observer.as_mut()))
    })
}

/// The adapter of one of the ranks of this machine. Those that have the same one share its memory.
async fn open(adapters: &[Selector], place: usize) -> Result<Gpu> {
    let gpu = Gpu::open(&adapters[place]).await?;
    let sharers = adapters.iter().filter(|adapter| **adapter == adapters[place]).count() as u64;
    let limits = gpu.limits();
    Ok(gpu.within(Limits { memory_bytes: limits.memory_bytes.map(|all| all / sharers), ..limits.clone() }))
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
        // Kernels are measured for what plans are made by.
        let gpu = &gpu.within(world.least(gpu.limits())?);
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
        let (mut trainer, plan, apply) =
            Trainer::among(gpu, recipe, prepared, &mut choices, world, loaded).await.map_err(|error| match error {
                Error::Memory { .. } => advised(error, gpu.limits(), recipe, &prepared.config, prepared.base.as_ref()),
                error => error.into(),
            })?;
        let job = Job { config: prepared.config.clone(), recipe: recipe.clone(), base: None, lengths: 1 };
        let Parameters { model: parameters, trained } = job.parameters()?;
        if world.is_first() {
            let name = if recipe.lora.is_some() { ADAPTER_WEIGHTS } else { "model.safetensors" };
            check_room(&recipe.out.join(name), trained * 4)?;
        }
        let fitted = trainer.fit.as_ref().and_then(|fit| fit.note());
        let validated = validated(recipe, &trainer, prepared);
        let notes = trainer.subject.note(&prepared.config).into_iter().chain(fitted).chain(validated);
        let copies = unheard_copies(recipe, &plan).filter(|_| args.weight_copies == Some(true));
        notes.chain(recipe.unheard()).chain(copies).for_each(|text| {
            observer.event(&Event::Note { text });
        });
        if world.is_first() {
            // What was measured is a convenience: a cache that cannot be written costs the next start some seconds.
            if let Err(error) = tuner.save() {
                observer.event(&Event::Note { text: format!("measurements were not kept: {error}") });
            }
        }
        if let Some(folder) = &args.dump
            && let Some(initial) = trainer.whole_on_first().await?
        {
            dump(folder, recipe, prepared, &trainer, initial).await?;
        }
        trainer.take_reference(recipe, prepared, &paths::cache(), stop.asked(), observer).await?;
        if let Some(resumption) = resumption {
            resumption.restore(&mut trainer, prepared).await?;
        }
        let plans = [(&plan, recipe.runs())].into_iter().chain(apply.iter().map(|plan| (plan, 1)));
        let limit = roofline.as_ref().map(|roofline| Pace::of(roofline, plans.clone()));
        observer.event(&Event::Ready {
            adapter: gpu.report().line(),
            parameters,
            trained,
            held: trainer.held(),
            train_tokens: prepared.loader.train_tokens(),
            val_tokens: prepared.loader.val_tokens(),
            totals: StepTotals::of(plans, trainer.device_bytes()),
            step_limit: limit.map(|limit| limit.step_seconds),
            steps: recipe.steps,
            weights_seconds: trainer.weights_seconds,
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

/// Refuses what takes more memory than there is on one of these ranks, and says what would fit; names the rank where not all say the
/// same. What is compiled beside it is `refused` before that is looked for.
fn fits(
    gpu: &Gpu,
    ranks: &[usize],
    recipe: &Recipe,
    config: &ModelConfig,
    base: Option<&Arc<Base>>,
    refused: &AtomicBool,
) -> Result<()> {
    let check = |&rank: &usize| Some((rank, check_fits(gpu, rank, recipe, config, base.map(|base| &**base)).err()?));
    let mut failed: Vec<_> = ranks.iter().filter_map(check).collect();
    let all_same = failed.len() == ranks.len() && failed.iter().all(|(_, e)| e.to_string() == failed[0].1.to_string());
    if failed.is_empty() {
        return Ok(());
    }
    refused.store(true, Ordering::Relaxed);
    let (rank, error) = failed.swap_remove(0);
    let error = advised(error, gpu.limits(), recipe, config, base);
    Err(if all_same { error } else { error.context(format!("rank {rank}")) })
}

/// A refusal with what would fit. What an adapter has that does not tell its memory, or that others use as well, is known only
/// by its refusal: then half of what was asked for is taken to be there.
fn advised(
    error: Error,
    limits: &Limits,
    recipe: &Recipe,
    config: &ModelConfig,
    base: Option<&Arc<Base>>,
) -> anyhow::Error {
    let job = Job { config: config.clone(), recipe: recipe.clone(), base: base.cloned(), lengths: 1 };
    let known = recipe.memory.into_iter().chain(limits.memory_bytes.map(Bytes)).min_by_key(|bytes| bytes.0);
    let memory = match &error {
        Error::Memory { had: 0, .. } => job.bytes(limits).ok().map(|bytes| Bytes(bytes / 2)),
        _ => known,
    };
    match (memory.and_then(|memory| remedy(&job, limits, memory)), error) {
        (Some(text), Error::Invalid(error)) => Error::Invalid(format!("{error}; {text}")).into(),
        (Some(text), error) => anyhow!("{error}; {text}"),
        (None, error) => error.into(),
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

/// Compiles what training and validation will most probably run: whatever the tokenizer's vocabulary turns out to be, and
/// without measuring, since the data are being read beside it.
fn compile_step(gpu: &Gpu, recipe: &Recipe, base: Option<&Base>, stop: &AtomicBool) {
    let mut tuner = Tuner::new(gpu, recipe.tune.min(TuneMode::Cached), Some(&paths::cache()));
    let config = base.map_or_else(|| find_config(&recipe.config), |base| Ok(base.checkpoint.config().clone()));
    let plans = config.and_then(|config| {
        let plan = |chooser: &mut dyn Chooser| plans(&config, recipe, base, gpu.limits(), chooser);
        pollster::block_on(settle(&mut tuner, plan))
    });
    // Whatever is wrong with the plan is said where it is run.
    if let Ok(plans) = plans {
        compile_early(gpu, [&plans.train, &plans.eval].into_iter().chain(&plans.apply), stop);
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
async fn dump(
    folder: &Path,
    recipe: &Recipe,
    prepared: &Prepared,
    trainer: &Trainer,
    (subject, pages): (Subject, Vec<Vec<f32>>),
) -> Result<()> {
    save(folder, recipe, prepared, &subject, &pages)?;
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
mod tests {
    use super::*;

    /// Where the memory is not known, the driver's refusal is: it ends in what would fit, too.
    #[test]
    fn a_driver_s_refusal_says_what_would_fit() {
        let recipe = Recipe { batch: 8, ..Recipe::default() };
        let config = find_config("story-1m").unwrap();
        let refusal = || {
            let (what, adapter, advice) = ("buffer 3".into(), "a card".into(), "its memory is full".into());
            Error::Memory { what, wanted: 5000, had: 0, adapter, advice }
        };
        let said = |memory_bytes| {
            let limits = Limits { memory_bytes, ..Limits::default() };
            advised(refusal(), &limits, &recipe, &config, None).to_string()
        };
        let half = said(None);
        assert!(half.starts_with(&format!("{}; what fits ", refusal())), "{half}");
        assert!(half.contains("--batch ") && half.contains(" as it is"), "{half}");
        // Also where the adapter said that it had more: others have it.
        assert_eq!(said(Some(1 << 40)), half);
    }
}
