//! The device's side of training: one plan for a step, one for validation, and the states that they share.

use super::axes::Axes;
use super::fit::{plans_of_lengths, plans_of_rank};
use super::inputs::Inputs;
use super::load::{LOAD, Load};
use super::preferring::{References, Rewards};
use super::{Base, Fit, Plans, Prepared, Progress, Recipe, StepResult, Subject, World, optimizer, schedule};
use crate::compile::{Chooser, First, Plan, settle};
use crate::data::{Batch, LoaderState, Prefetch};
use crate::error::{Error, Result};
use crate::gpu::{Gpu, host_memory};
use crate::model::{Llama, ModelConfig};
use crate::nn::{PARAMETERS, ParamLayout};
use crate::optim::{EMA, HYPER, JUDGE, KEEP, Optimizer, Schedule, Shard};
use crate::parallel::Mesh;
use crate::run::{Choice, Choices, Executor, Recorder, Results, States, bytes_beside, check_memory, device_bytes};
use crate::store::Loaded;
use crate::store::snapshot::StateSize;
use std::collections::VecDeque;
use std::time::Instant;

mod begin;
mod compare;
mod restore;
mod whole;

use begin::begin;
pub(super) use begin::make_copies;
use restore::of_page;

/// Bytes of states that are hashed at a time.
const HASHED: u64 = 32 << 20;

/// A model and everything that changes while it is trained.
pub struct Trainer {
    /// The model.
    pub model: Llama,
    /// What of it is trained, and where that lies.
    pub subject: Subject,
    /// Parameters and moments on the device.
    pub states: States,
    /// The same, with their moving average in the place of the parameters where one is kept: what the model is that is
    /// validated and saved.
    pub shown: States,
    /// How a step was made to fit the memory, where that is limited or known.
    pub fit: Option<Fit>,
    /// The kernels that were chosen.
    pub kernels: Vec<Choice>,
    /// Seconds in which the weights were drawn, or read, and written to the device.
    pub weights_seconds: f64,
    /// What the host knows of the run: changed by [`super::run`], and by [`Trainer::restore`].
    pub progress: Progress,
    /// Bytes that this host has for checkpoints and a whole model, where that is known: all that are free, unless this is changed.
    pub host_memory: fn() -> Option<u64>,
    optimizer: Optimizer,
    schedule: Schedule,
    seed: u64,
    /// By the length of their rows, ascending.
    runs: Vec<Run>,
    /// Of which of them batches are under way, the oldest first.
    under_way: VecDeque<usize>,
    /// Tokens of the steps that are, and the seconds that each waited for its batches.
    given: VecDeque<(u64, f64)>,
    /// What follows the batches of a step, where there are several.
    apply: Option<Executor>,
    batches: u32,
    /// Of each batch that a plan takes.
    inputs: Vec<Inputs>,
    pub(super) loader: Prefetch,
    /// Of pairs, what the model that training began with says of them.
    pub(super) references: Option<References>,
    /// Of several batches of pairs, those of a step that were read already; none of ranks without the last stage.
    rewards: VecDeque<Option<Rewards>>,
    val_batch: Batch,
    /// This rank's tokens of a batch, where it has not all.
    part: Vec<u32>,
    written: Vec<StateSize>,
    device_bytes: u64,
    submitted: u64,
    idle: Option<f64>,
    world: World,
    pub(super) axes: Axes,
    mesh: Mesh,
    shard: Shard,
    load: Option<Load>,
    shards: usize,
    /// What is to be said aloud before training goes on.
    pub(super) notes: Vec<String>,
}

/// A step and validation of one length of rows.
struct Run {
    seq: usize,
    train: Executor,
    eval: Executor,
}

/// Batches under way at most.
const UNDER_WAY: usize = 2;

/// Refuses a run of which this rank's part is too big for its adapter, before anything is allocated or measured.
///
/// # Errors
/// As [`Fit::check`]; [`Error::Memory`] with the bytes wanted and had.
pub fn check_fits(gpu: &Gpu, rank: usize, recipe: &Recipe, config: &ModelConfig, base: Option<&Base>) -> Result<()> {
    let plans = plans_of_rank(rank, config, recipe, base, gpu.limits(), &mut First)?;
    plans.fit.as_ref().map_or(Ok(()), Fit::check)?;
    let all: Vec<&Plan> = [&plans.train, &plans.eval].into_iter().chain(&plans.apply).collect();
    check_memory(gpu, &all, &States::new(gpu))
}

impl Trainer {
    /// Plans, allocates and initialises: fresh weights from the recipe's seed, or those of the model that training begins
    /// with, streamed from disk. Gives the plans of a batch, and of the update that follows several, as well.
    ///
    /// # Errors
    /// If the adapter has no room, or refuses a kernel; or the model's weights cannot be read.
    pub async fn new(
        gpu: &Gpu,
        recipe: &Recipe,
        prepared: &Prepared,
        chooser: &mut dyn Chooser,
    ) -> Result<(Trainer, Plan, Option<Plan>)> {
        Trainer::among(gpu, recipe, prepared, chooser, &World::alone(), &mut |_| {}).await
    }

    /// The same for one of the ranks that the recipe's mesh has; `loaded` hears of a model's weights on their way. It
    /// trains on its part of every batch, and takes the kernels that the first rank of its stage chooses.
    ///
    /// # Errors
    /// As [`Trainer::new`]; if there are other than the mesh's ranks, or one of them fails.
    pub async fn among(
        gpu: &Gpu,
        recipe: &Recipe,
        prepared: &Prepared,
        chooser: &mut dyn Chooser,
        world: &World,
        loaded: &mut dyn FnMut(Loaded),
    ) -> Result<(Trainer, Plan, Option<Plan>)> {
        if world.size() != recipe.mesh.ranks() {
            let (mesh, ranks, has) = (recipe.mesh, recipe.mesh.ranks(), world.size());
            let message = format!("the mesh {mesh} has {ranks} ranks, and {has} were started; make them as many");
            return Err(Error::Invalid(message));
        }
        let gpu = &gpu.within(world.least(gpu.limits())?);
        let model = Llama::new(prepared.config.clone());
        let base = prepared.base.as_deref();
        let (axes, rank) = (Axes::of(world, recipe.mesh)?, world.rank());
        let subject = Subject::of_rank(rank, &model, recipe, base, gpu.limits())?;
        let optimizer = optimizer(recipe);
        // The first rank of each stage chooses kernels, and all others that hold some of it take the same.
        let leaders = axes.leaders();
        let heard = leaders.iter().position(|leader| *leader == rank).map_or(leaders.len(), |place| place.min(1));
        let mut theirs: Vec<Choice> = Vec::new();
        for &leader in &leaders[..heard] {
            theirs.extend(world.told_by::<Vec<Choice>>(leader, None)?);
        }
        let mut choices = Choices::new(&theirs, chooser);
        let lengths = prepared.loader.lengths();
        let mut planned = settle(&mut choices, |chooser| {
            plans_of_lengths(rank, &prepared.config, recipe, lengths, base, gpu.limits(), chooser)
        })
        .await;
        let kernels = choices.made();
        for &leader in &leaders[heard..] {
            let told = planned.as_ref().map(|_| kernels.clone()).map_err(|e| Error::Invalid(e.to_string()));
            let told = world.told_by(leader, (leader == rank).then_some(told));
            planned = planned.and_then(|plans| told.map(|_| plans));
        }
        let mut shorter = planned?;
        let Plans { train: plan, apply, eval: eval_plan, fit } = shorter.pop().expect("rows have a length");
        compare::plans([Some(&plan), apply.as_ref(), Some(&eval_plan)], recipe.mesh, world)?;
        fit.as_ref().map_or(Ok(()), Fit::check)?;
        let mut states = States::new(gpu);
        let own = device_bytes([&plan, &eval_plan].into_iter().chain(&apply), &|_| false);
        let more = |plans: &Plans| bytes_beside(&plans.train, &plan) + bytes_beside(&plans.eval, &eval_plan);
        let device_bytes = own + shorter.iter().map(more).sum::<u64>();
        let mut train = Executor::new(gpu, &plan, &mut states).await?;
        axes.join(&mut train, &plan).await?;
        let mut apply_run = match &apply {
            Some(plan) => Some(Executor::new(gpu, plan, &mut states).await?),
            None => None,
        };
        if let (Some(run), Some(plan)) = (&mut apply_run, &apply) {
            axes.join(run, plan).await?;
        }
        // Validation sees the average in the parameters' place, where there is one.
        let averages = optimizer.ema > 0.0;
        let shown = |states: &States| if averages { states.renamed(EMA, PARAMETERS) } else { states.clone() };
        let mut eval = match averages {
            true => Executor::new(gpu, &eval_plan, &mut shown(&states)).await?,
            false => Executor::new(gpu, &eval_plan, &mut states).await?,
        };
        axes.join(&mut eval, &eval_plan).await?;
        let mut runs = Vec::new();
        for (plans, &seq) in shorter.iter().zip(prepared.loader.lengths()) {
            let mut train = Executor::beside(gpu, &plans.train, &mut states, &train).await?;
            let mut eval = Executor::beside(gpu, &plans.eval, &mut shown(&states), &eval).await?;
            axes.join(&mut train, &plans.train).await?;
            axes.join(&mut eval, &plans.eval).await?;
            runs.push(Run { seq, train, eval });
        }
        runs.push(Run { seq: prepared.loader.longest(), train, eval });
        let began = Instant::now();
        begin(&mut states, &subject, base, recipe.seed, loaded).await?;
        let weights_seconds = began.elapsed().as_secs_f64();
        make_copies(&mut states, &optimizer, &subject.layout).await?;
        for i in (0..subject.layout.pages().len()).filter(|_| averages) {
            let (page, average) = (states.read(&format!("{PARAMETERS}.{i}")).await?, format!("{EMA}.{i}"));
            let bytes = states.get(&average)?.bytes() as usize;
            let first = if bytes < page.len() { subject.layout.sharers_of(i).place * bytes } else { 0 };
            states.write(&average, 0, &page[first..first + bytes]).await?;
        }
        if let Some(scaling) = optimizer.loss_scaling {
            states.write(JUDGE, 0, bytemuck::cast_slice(&scaling.initial())).await?;
        }
        let loader = prepared.loader.share(axes.share(), axes.shares());
        let val_batch = loader.empty_batch();
        let loader = Prefetch::new(loader);
        // Sums are made anew by every step, and copies by whoever reads parameters.
        let written = apply.as_ref().unwrap_or(&plan).written_states().into_iter();
        let size = |(name, bytes): (&str, u64)| {
            let place = of_page(name).map_or(0, |(_, page)| subject.layout.sharers_of(page).place as u64);
            let first = if recipe.shard.divides(name) { place * bytes } else { 0 };
            StateSize { first, ..StateSize::whole(name, bytes) }
        };
        let written =
            written.filter(|(name, _)| !Optimizer::is_sum(name) && !Optimizer::is_copy(name)).map(size).collect();
        let trainer = Trainer {
            model,
            subject,
            shown: shown(&states),
            states,
            fit,
            kernels,
            weights_seconds,
            progress: Progress::default(),
            host_memory,
            optimizer,
            schedule: schedule(recipe),
            seed: recipe.seed,
            runs,
            under_way: VecDeque::with_capacity(UNDER_WAY),
            given: VecDeque::with_capacity(UNDER_WAY),
            apply: apply_run,
            batches: recipe.accumulate,
            inputs: Inputs::of_step(recipe),
            loader,
            references: None,
            rewards: VecDeque::new(),
            val_batch,
            part: Vec::new(),
            written,
            device_bytes,
            submitted: 0,
            idle: None,
            world: world.clone(),
            axes,
            mesh: recipe.mesh,
            shard: recipe.shard,
            load: Load::of(&prepared.config, recipe),
            shards: recipe.shards(),
            notes: Vec::new(),
        };
        Ok((trainer, plan, apply))
    }

    /// From now on tells `recorder` what every step does when; with `None` no longer.
    pub fn record(&mut self, recorder: Option<&Recorder>) {
        let longest = self.runs.len() - 1;
        for (i, run) in self.runs.iter_mut().enumerate() {
            let of = if i == longest { String::new() } else { format!(" of {} tokens a row", run.seq) };
            run.train.record(recorder, &format!("train step{of}"));
        }
    }

    /// Steps submitted so far.
    pub fn submitted(&self) -> u64 {
        self.submitted
    }

    /// Learning rate of a step, the first being 0.
    pub fn rate(&self, step: u64) -> f64 {
        self.schedule.rate(step) * self.progress.rate_scale
    }

    /// The states that a step changes: with [`Trainer::progress`], all that a run is.
    pub fn written_states(&self) -> &[StateSize] {
        &self.written
    }

    /// Device bytes of the plans' buffers, states that both use counted once.
    pub fn device_bytes(&self) -> u64 {
        self.device_bytes
    }

    /// On a pipeline: the share of the last submitted step for which this rank waited for other stages.
    pub fn idle(&self) -> Option<f64> {
        self.idle
    }

    /// Steps done so far, and where the data stand, for a checkpoint; all that was submitted must be done.
    pub fn position(&self) -> (u64, LoaderState) {
        (self.submitted, self.loader.state())
    }

    /// Submits the next step; its result is taken later, by [`Trainer::result`].
    ///
    /// # Errors
    /// If the device failed.
    pub async fn submit(&mut self) -> Result<()> {
        let began = Instant::now();
        self.axes.take_waited();
        let hyper = self.optimizer.hyper(self.rate(self.submitted));
        let (mut tokens, mut waited) = (0, 0.0);
        for index in 0..self.batches {
            // Those of a pipeline are one run.
            let place = index as usize % self.inputs.len();
            if place == 0 && self.apply.is_some() && self.under_way.len() == UNDER_WAY {
                self.take().await?;
            }
            let asked = Instant::now();
            // As far as there is dropout: what it leaves out depends on seed and batch alone, whoever computes which rows.
            let seed = (self.seed ^ (self.seed >> 32)) as u32;
            let seed = [seed, self.loader.state().step as u32, self.axes.share() as u32];
            let batch = self.loader.next_batch()?;
            waited += asked.elapsed().as_secs_f64();
            tokens += batch.tokens.len() as u64;
            let at = self.runs.iter().position(|run| run.seq == batch.seq).ok_or_else(unknown_length)?;
            let train = &mut self.runs[at].train;
            self.inputs[place].set(train, batch, self.axes.sequence(), &mut self.part)?;
            self.inputs[place].set_dropout(train, &seed)?;
            self.inputs[place].refer(train, batch, self.references.as_ref())?;
            if place + 1 < self.inputs.len() {
                continue;
            }
            train.set(HYPER, &hyper)?;
            train.set(KEEP, &[f32::from(u8::from(index > 0))])?;
            train.is_last(index + 1 == self.batches);
            train.submit().await?;
            self.under_way.push_back(at);
        }
        self.given.push_back((tokens, waited));
        if let Some(apply) = &mut self.apply {
            apply.set(HYPER, &hyper)?;
            apply.submit().await?;
        }
        self.submitted += 1;
        self.idle = self.axes.take_waited().map(|seconds| seconds / began.elapsed().as_secs_f64());
        Ok(())
    }

    /// The oldest result not taken yet.
    ///
    /// # Errors
    /// If the device failed.
    pub async fn result(&mut self) -> Result<StepResult> {
        let (tokens, data_wait) = self.given.pop_front().unwrap_or_default();
        let tokens = tokens * self.axes.shares() as u64;
        let Some(apply) = &mut self.apply else {
            let at = self.under_way.pop_front().ok_or_else(|| Error::Graph("no step is under way".into()))?;
            let result = self.runs[at].train.read(StepResult::with(self.load)).await?;
            let rewards = self.over_ranks(result.rewards)?;
            return Ok(StepResult { tokens, data_wait, rewards, ..result });
        };
        let mut result = StepResult { tokens, data_wait, ..apply.read(StepResult::with(self.load)).await? };
        if self.references.is_some() {
            let runs = self.batches as usize / self.inputs.len();
            while self.rewards.len() < runs {
                self.take().await?;
            }
            let own = Rewards::mean(self.rewards.drain(..runs).flatten());
            result.rewards = self.over_ranks(own)?;
        }
        Ok(result)
    }

    /// Of each layer with experts the share of the last step's slots that fell on each; nothing if there are none.
    ///
    /// # Errors
    /// If the device failed.
    pub async fn expert_shares(&self) -> Result<Option<Vec<Vec<f32>>>> {
        let Some(load) = self.load.filter(|_| self.states.get(LOAD).is_ok()) else { return Ok(None) };
        Ok(Some(load.shares(&self.states.read(LOAD).await?)))
    }

    /// Takes the results of the oldest batch that is under way.
    async fn take(&mut self) -> Result<()> {
        let Some(at) = self.under_way.pop_front() else { return Ok(()) };
        let of = |results: Results<'_>| Rewards::mean(self.inputs.iter().filter_map(|inputs| inputs.rewards(&results)));
        let rewards = self.runs[at].train.read(of).await?;
        self.rewards.extend(self.references.as_ref().map(|_| rewards));
        Ok(())
    }

    /// Validation, given this batch.
    pub(super) fn eval(&mut self, batch: &Batch) -> Result<&mut Executor> {
        let run = self.runs.iter_mut().find(|run| run.seq == batch.seq).ok_or_else(unknown_length)?;
        self.inputs[0].set(&mut run.eval, batch, self.axes.sequence(), &mut self.part)?;
        Ok(&mut run.eval)
    }

    /// Mean loss over the targets of held-out batches, the same `count` every time; of preference pairs over these, with their
    /// rewards.
    ///
    /// # Errors
    /// If the device failed.
    pub async fn validate(&mut self, count: u64) -> Result<(f64, Option<Rewards>)> {
        let (mut sum, mut counted, mut rewards) = (0.0, 0, Vec::new());
        for index in 0..count {
            self.loader.loader().val_batch(index, count, &mut self.val_batch)?;
            let batch = &self.val_batch;
            let run = self.runs.iter_mut().find(|run| run.seq == batch.seq).ok_or_else(unknown_length)?;
            let targets = self.inputs[0].set(&mut run.eval, batch, self.axes.sequence(), &mut self.part)?;
            self.inputs[0].refer(&mut run.eval, batch, self.references.as_ref())?;
            run.eval.submit().await?;
            let result = run.eval.read(StepResult::of).await?;
            rewards.extend(result.rewards);
            // Batches hold equally many pairs.
            let weight = if result.rewards.is_some() { 1 } else { targets };
            // Without a target there is no mean.
            sum += if weight > 0 { f64::from(result.loss) * weight as f64 } else { 0.0 };
            counted += weight;
        }
        let rewards = self.over_ranks(Rewards::mean(rewards))?;
        Ok((self.world.sum(sum)? / self.world.sum(counted as f64)?, rewards))
    }

    /// Validation batches of `sequences` sequences at most.
    pub fn val_batches(&self, sequences: u64) -> u64 {
        let batch = (self.loader.loader().options().batch as u64).max(1);
        sequences.div_ceil(batch).clamp(1, self.loader.loader().val_batches())
    }

    /// Where what is trained lies.
    pub fn layout(&self) -> &ParamLayout {
        &self.subject.layout
    }

    /// Tokens of one step of the longest rows, over all ranks.
    pub fn tokens_per_step(&self) -> u64 {
        let own = (self.val_batch.rows() * self.loader.loader().longest()) as u64 * u64::from(self.batches);
        own * self.axes.shares() as u64
    }

    /// The ranks of which this is one.
    pub fn world(&self) -> &World {
        &self.world
    }
}

fn unknown_length() -> Error {
    Error::Graph("a batch has rows of a length that no plan is of".into())
}
