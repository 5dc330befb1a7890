//! The device's side of training: one plan for a step, one for validation, and the states that they share.

use super::graphs::{REFERENCE, STARTS};
use super::preferring::{References, Rewards};
use super::{Base, Fit, GroupOptions, Plans, Precision, Prepared, Progress, Recipe, Subject, plans};
use crate::compile::{Chooser, First, Plan, settle};
use crate::data::{Batch, Loader, LoaderState, Prefetch};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::model::{Llama, ModelConfig};
use crate::nn::{Adapted, DROPOUT, PARAMETERS, ParamLayout};
use crate::optim::{EMA, HYPER, JUDGE, KEEP, LossScaling, Optimizer, Schedule, Settings};
use crate::run::{Choice, Choices, Executor, Recorder, Results, States, check_memory, device_bytes};
use crate::store::snapshot::{Snapshot, StateSize};
use std::collections::VecDeque;
use std::time::Instant;

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
    /// What the host knows of the run: changed by [`super::run`], and by [`Trainer::restore`].
    pub progress: Progress,
    optimizer: Optimizer,
    schedule: Schedule,
    seed: u64,
    train: Executor,
    /// What follows the batches of a step, where there are several.
    apply: Option<Executor>,
    batches: u32,
    pub(super) eval: Executor,
    pub(super) loader: Prefetch,
    /// Of pairs, what the model that training began with says of them.
    pub(super) references: Option<References>,
    /// Of several batches of pairs, those of a step that were read already.
    rewards: VecDeque<Rewards>,
    val_batch: Batch,
    written: Vec<StateSize>,
    device_bytes: u64,
    submitted: u64,
    data_wait: f64,
}

/// What a step reports.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepResult {
    /// Mean cross entropy in nats a token; of preference pairs, their mean loss.
    pub loss: f32,
    /// Global norm of the gradient before clipping.
    pub grad_norm: f32,
    /// Where the loss is scaled: the next step's scale.
    pub loss_scale: Option<f32>,
    /// Steps left out so far because a gradient overflowed or was an outlier.
    pub skipped: u64,
    /// Whether this one was.
    pub left_out: bool,
    /// Of preference pairs.
    pub rewards: Option<Rewards>,
}

impl StepResult {
    fn of(results: Results<'_>) -> Self {
        let first = |name| results.first(name).unwrap_or(f32::NAN);
        let judged = |index| results.element(JUDGE, index);
        StepResult {
            loss: first("loss"),
            grad_norm: first("grad_norm"),
            // Without scaling it stays 0.
            loss_scale: judged(0).filter(|scale| *scale > 0.0),
            skipped: judged(2).map_or(0, |n| n as u64),
            left_out: judged(7).is_some_and(|flag| flag > 0.0),
            rewards: Rewards::of(&results),
        }
    }
}

/// The optimizer of a recipe.
pub fn optimizer(recipe: &Recipe) -> Optimizer {
    let own = |group: &GroupOptions| Settings {
        params: group.params.clone(),
        rate: group.lr.map_or(1.0, |lr| lr / recipe.lr),
        weight_decay: group.weight_decay,
    };
    Optimizer {
        rule: recipe.optimizer,
        beta1: recipe.beta1,
        beta2: recipe.beta2,
        epsilon: recipe.epsilon,
        momentum: recipe.momentum,
        nesterov: recipe.momentum > 0.0,
        weight_decay: recipe.weight_decay,
        max_norm: if recipe.clip > 0.0 { recipe.clip } else { f64::INFINITY },
        outlier: recipe.recovery.outlier,
        loss_scaling: (recipe.precision == Precision::Mixed)
            .then(|| LossScaling { interval: recipe.loss_scale_interval, ..LossScaling::default() }),
        ema: recipe.ema,
        settings: recipe.groups.iter().map(own).collect(),
        update: recipe.update,
    }
}

/// The schedule of a recipe.
pub fn schedule(recipe: &Recipe) -> Schedule {
    Schedule {
        shape: recipe.schedule,
        lr: recipe.lr,
        min_lr: recipe.lr * recipe.lr_floor,
        warmup: recipe.warmup_steps(),
        total: recipe.steps,
        decay: recipe.decay_steps(),
        restarts: recipe.restarts,
    }
}

/// Refuses a run that is too big for the adapter, before anything is allocated or measured.
///
/// # Errors
/// As [`Fit::check`]; [`Error::Memory`] with the bytes wanted and had.
pub fn check_fits(gpu: &Gpu, recipe: &Recipe, config: &ModelConfig, base: Option<&Base>) -> Result<()> {
    let plans = plans(config, recipe, base, gpu.limits(), &mut First)?;
    plans.fit.as_ref().map_or(Ok(()), Fit::check)?;
    let all: Vec<&Plan> = [&plans.train, &plans.eval].into_iter().chain(&plans.apply).collect();
    check_memory(gpu, &all, &States::new(gpu))
}

/// Gives a plan its batch.
pub(super) fn set(executor: &mut Executor, batch: &Batch) -> Result<()> {
    executor.set("tokens", &batch.tokens)?;
    executor.set("targets", &batch.targets)?;
    if executor.input(STARTS).is_some() {
        executor.set(STARTS, &batch.starts)?;
    }
    Ok(())
}

/// Gives a plan of preference pairs what its batch is compared with.
fn refer(executor: &mut Executor, batch: &Batch, references: Option<&References>) -> Result<()> {
    match references {
        Some(references) => executor.set(REFERENCE, &references.of(batch)?),
        None if executor.input(REFERENCE).is_some() => {
            Err(Error::Invalid("pairs are trained on once their reference is taken: Trainer::take_reference".into()))
        }
        None => Ok(()),
    }
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
        let model = Llama::new(prepared.config.clone());
        let base = prepared.base.as_deref();
        let subject = Subject::new(&model, recipe, base, gpu.limits())?;
        let optimizer = optimizer(recipe);
        let mut choices = Choices::new(&[], chooser);
        let Plans { train: plan, apply, eval, fit } =
            settle(&mut choices, |chooser| plans(&prepared.config, recipe, base, gpu.limits(), chooser)).await?;
        let kernels = choices.made();
        fit.as_ref().map_or(Ok(()), Fit::check)?;
        let mut states = States::new(gpu);
        let device_bytes = device_bytes([&plan, &eval].into_iter().chain(&apply), &|_| false);
        let train = Executor::new(gpu, &plan, &mut states).await?;
        let apply_run = match &apply {
            Some(plan) => Some(Executor::new(gpu, plan, &mut states).await?),
            None => None,
        };
        // Validation sees the average in the parameters' place, where there is one.
        let averages = optimizer.ema > 0.0;
        let shown = |states: &States| if averages { states.renamed(EMA, PARAMETERS) } else { states.clone() };
        let eval = match averages {
            true => Executor::new(gpu, &eval, &mut shown(&states)).await?,
            false => Executor::new(gpu, &eval, &mut states).await?,
        };
        begin(&mut states, &subject, base, recipe.seed).await?;
        for i in (0..subject.layout.pages().len()).filter(|_| averages) {
            let page = states.read(&format!("{PARAMETERS}.{i}")).await?;
            states.write(&format!("{EMA}.{i}"), 0, &page).await?;
        }
        if let Some(scaling) = optimizer.loss_scaling {
            states.write(JUDGE, 0, bytemuck::cast_slice(&scaling.initial())).await?;
        }
        let val_batch = prepared.loader.empty_batch();
        let loader = Prefetch::new(prepared.loader.clone());
        let size = |(name, bytes): (&str, u64)| StateSize { name: name.into(), bytes };
        let trainer = Trainer {
            model,
            subject,
            shown: shown(&states),
            states,
            fit,
            kernels,
            progress: Progress::default(),
            optimizer,
            schedule: schedule(recipe),
            seed: recipe.seed,
            train,
            apply: apply_run,
            batches: recipe.accumulate,
            eval,
            loader,
            references: None,
            rewards: VecDeque::new(),
            val_batch,
            written: apply.as_ref().unwrap_or(&plan).written_states().into_iter().map(size).collect(),
            device_bytes,
            submitted: 0,
            data_wait: 0.0,
        };
        Ok((trainer, plan, apply))
    }

    /// From now on tells `recorder` what every step does when; with `None` no longer.
    pub fn record(&mut self, recorder: Option<&Recorder>) {
        self.train.record(recorder, "train step");
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

    /// Seconds that the last submitted step waited for its batch.
    pub fn data_wait(&self) -> f64 {
        self.data_wait
    }

    /// Steps done so far, and where the data stand, for a checkpoint; all that was submitted must be done.
    pub fn position(&self) -> (u64, LoaderState) {
        (self.submitted, self.loader.state())
    }

    /// Puts everything as it was when a checkpoint was taken. Results that were not taken are dropped.
    ///
    /// # Errors
    /// If the checkpoint holds other states than this recipe has on this adapter, or cannot be read, or the device fails.
    pub async fn restore(&mut self, snapshot: &Snapshot, progress: Progress) -> Result<()> {
        let theirs = &snapshot.manifest().states;
        if let Some(ours) = self.written.iter().find(|s| !theirs.contains(s)) {
            return Err(Error::file(
                snapshot.folder(),
                format!(
                    "holds no state {} of {} bytes, which this run has: it is a checkpoint of another recipe, or of an \
                     adapter with other limits",
                    ours.name, ours.bytes
                ),
            ));
        }
        for run in [Some(&mut self.train), self.apply.as_mut()].into_iter().flatten() {
            while run.pending() > 0 {
                run.read(|_| ()).await?;
            }
        }
        self.rewards.clear();
        for piece in snapshot.pieces() {
            let (state, offset, bytes) = piece?;
            self.states.write(state, offset, &bytes).await?;
        }
        self.loader.restore(progress.loader);
        self.submitted = progress.step;
        self.progress = progress;
        Ok(())
    }

    /// Submits the next step; its result is taken later, by [`Trainer::result`].
    ///
    /// # Errors
    /// If the device failed.
    pub async fn submit(&mut self) -> Result<()> {
        self.data_wait = 0.0;
        let hyper = self.optimizer.hyper(self.rate(self.submitted));
        for index in 0..self.batches {
            let asked = Instant::now();
            // As far as there is dropout: what it leaves out depends on seed and batch alone.
            let seed = [(self.seed ^ (self.seed >> 32)) as u32, self.loader.state().step as u32];
            let batch = self.loader.next_batch();
            self.data_wait += asked.elapsed().as_secs_f64();
            if self.apply.is_some() && self.train.is_full() {
                self.rewards.extend(self.train.read(|results| Rewards::of(&results)).await?);
            }
            set(&mut self.train, batch)?;
            refer(&mut self.train, batch, self.references.as_ref())?;
            self.train.set(DROPOUT, &seed)?;
            self.train.set(HYPER, &hyper)?;
            self.train.set(KEEP, &[f32::from(u8::from(index > 0))])?;
            self.train.submit().await?;
        }
        if let Some(apply) = &mut self.apply {
            apply.set(HYPER, &hyper)?;
            apply.submit().await?;
        }
        self.submitted += 1;
        Ok(())
    }

    /// The oldest result not taken yet.
    ///
    /// # Errors
    /// If the device failed.
    pub async fn result(&mut self) -> Result<StepResult> {
        let Some(apply) = &mut self.apply else { return self.train.read(StepResult::of).await };
        let mut result = apply.read(StepResult::of).await?;
        if self.references.is_some() {
            while self.rewards.len() < self.batches as usize {
                self.rewards.extend(self.train.read(|results| Rewards::of(&results)).await?);
            }
            result.rewards = Rewards::mean(self.rewards.drain(..self.batches as usize));
        }
        Ok(result)
    }

    /// Mean loss over the targets of held-out batches, the same `count` every time; of preference pairs over these, with their
    /// rewards.
    ///
    /// # Errors
    /// If the device failed.
    pub async fn validate(&mut self, count: u64) -> Result<(f64, Option<Rewards>)> {
        let (mut sum, mut counted, mut rewards) = (0.0, 0, Vec::new());
        for index in 0..count {
            self.loader.loader().val_batch(index, count, &mut self.val_batch);
            set(&mut self.eval, &self.val_batch)?;
            refer(&mut self.eval, &self.val_batch, self.references.as_ref())?;
            self.eval.submit().await?;
            let result = self.eval.read(StepResult::of).await?;
            rewards.extend(result.rewards);
            // Batches hold equally many pairs.
            let weight = if result.rewards.is_some() { 1 } else { self.val_batch.counted() };
            sum += f64::from(result.loss) * weight as f64;
            counted += weight;
        }
        Ok((sum / counted as f64, Rewards::mean(rewards)))
    }

    /// Validation batches of `sequences` sequences at most.
    pub fn val_batches(&self, sequences: u64) -> u64 {
        let batch = (self.val_batch.rows() as u64).max(1);
        sequences.div_ceil(batch).clamp(1, self.loader.loader().val_batches())
    }

    /// Where what is trained lies.
    pub fn layout(&self) -> &ParamLayout {
        &self.subject.layout
    }

    /// What is trained, as it is validated, in the layout's pages.
    ///
    /// # Errors
    /// If the device failed.
    pub async fn pages(&self) -> Result<Vec<Vec<f32>>> {
        let mut pages = Vec::new();
        for i in 0..self.layout().pages().len() {
            pages.push(bytemuck::pod_collect_to_vec(&self.shown.read(&format!("{PARAMETERS}.{i}")).await?));
        }
        Ok(pages)
    }

    /// Tokens of one step.
    pub fn tokens_per_step(&self) -> u64 {
        self.val_batch.tokens.len() as u64 * u64::from(self.batches)
    }

    /// The batches, for whoever wants to write them down.
    pub fn loader(&self) -> &Loader {
        self.loader.loader()
    }
}

/// Gives the states what they hold before the first step.
async fn begin(states: &mut States, subject: &Subject, base: Option<&Base>, seed: u64) -> Result<()> {
    match (base, &subject.adapted) {
        (Some(base), Some(Adapted { base: frozen, lora })) => {
            base.checkpoint.stream(states, frozen, &mut |_| {}).await?;
            match lora {
                Some(lora) => base.checkpoint.stream_fresh(states, frozen, lora, seed).await,
                None => Ok(()),
            }
        }
        (Some(base), None) => base.checkpoint.stream_pages(states, &subject.layout, &mut |_| {}).await,
        (None, _) => {
            for (i, page) in subject.layout.init(seed).iter().enumerate() {
                states.write(&format!("param.{i}"), 0, bytemuck::cast_slice(page)).await?;
            }
            Ok(())
        }
    }
}
