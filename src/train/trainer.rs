//! The device's side of training: one plan for a step, one for validation, and the states that they share.

use super::{Base, Fit, Plans, Precision, Prepared, Progress, Recipe, Subject, plans};
use crate::base::{Rng, TensorType};
use crate::compile::{Chooser, First, Plan, compile, settle};
use crate::data::{Batch, Loader, LoaderState, Prefetch};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::graph::Graph;
use crate::model::{Llama, ModelConfig};
use crate::nn::{Adapted, DROPOUT, Declare, ParamLayout, Params};
use crate::optim::{HYPER, LossScaling, Optimizer, SCALER, Schedule};
use crate::run::{Choice, Choices, Executor, Recorder, Results, States, check_memory, device_bytes};
use crate::store::snapshot::{Snapshot, StateSize};
use std::time::Instant;

/// Where the documents of packed rows begin.
const STARTS: &str = "starts";

/// A model and everything that changes while it is trained.
pub struct Trainer {
    /// The model.
    pub model: Llama,
    /// What of it is trained, and where that lies.
    pub subject: Subject,
    /// Parameters and moments on the device.
    pub states: States,
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
    eval: Executor,
    batches: Prefetch,
    val_batch: Batch,
    written: Vec<StateSize>,
    device_bytes: u64,
    submitted: u64,
    data_wait: f64,
}

/// What a step reports.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepResult {
    /// Mean cross entropy in nats a token.
    pub loss: f32,
    /// Global norm of the gradient before clipping.
    pub grad_norm: f32,
    /// Where the loss is scaled: the next step's scale, and the steps left out so far because a gradient overflowed.
    pub loss_scale: Option<(f32, u64)>,
}

impl StepResult {
    fn of(results: Results<'_>) -> Self {
        let first = |name| results.first(name).unwrap_or(f32::NAN);
        let skipped = results.element(SCALER, 2).map(|n| n as u64);
        let loss_scale = results.first(SCALER).zip(skipped);
        StepResult { loss: first("loss"), grad_norm: first("grad_norm"), loss_scale }
    }
}

/// The optimizer of a recipe.
pub fn optimizer(recipe: &Recipe) -> Optimizer {
    Optimizer {
        beta1: recipe.beta1,
        beta2: recipe.beta2,
        epsilon: recipe.epsilon,
        weight_decay: recipe.weight_decay,
        max_norm: recipe.clip,
        loss_scaling: (recipe.precision == Precision::Mixed)
            .then(|| LossScaling { interval: recipe.loss_scale_interval, ..LossScaling::default() }),
    }
}

/// The schedule of a recipe.
pub fn schedule(recipe: &Recipe) -> Schedule {
    Schedule { lr: recipe.lr, min_lr: recipe.lr * recipe.lr_floor, warmup: recipe.warmup_steps(), total: recipe.steps }
}

/// The graph of a training step, if what trains which pages is given, or of validation; rows of several documents are
/// `packed`.
pub(super) fn graph(
    model: &Llama,
    params: &dyn Declare,
    [batch, seq]: [usize; 2],
    packed: bool,
    trained: Option<(&Optimizer, &ParamLayout)>,
) -> Result<Graph> {
    // Every size and sum of the plan is then far from the end of 64 bits.
    let token = model.config().train_flops_per_token(seq);
    let flops = token.saturating_mul(batch as u128).saturating_mul(seq as u128);
    if flops > 1 << 62 {
        let message = format!("a step of {batch} sequences of {seq} tokens takes {flops} operations with this model");
        return Err(Error::Invalid(format!("{message}, more than can be counted; choose a smaller --batch or --seq")));
    }
    let mut g = Graph::new();
    let params: Params = params.declare(&mut g)?;
    let tokens = g.input("tokens", TensorType::u32([batch, seq]));
    let targets = g.input("targets", TensorType::u32([batch, seq]));
    let starts = packed.then(|| g.input(STARTS, TensorType::u32([batch, seq])));
    let loss = model.loss(&mut g, &params, tokens, targets, starts)?;
    // Validation tells of the model that is saved, whose parameters are f32.
    if trained.is_some_and(|(o, _)| o.loss_scaling.is_some()) {
        g.narrow();
    }
    match trained {
        Some((optimizer, layout)) => optimizer.train_step(&mut g, layout, &params, loss)?,
        None => g.output("loss", loss),
    }
    Ok(g)
}

/// The plan of one training step, without touching a device.
///
/// # Errors
/// If the model fits no buffer of an adapter with these limits.
pub fn train_plan(
    config: &ModelConfig,
    batch: usize,
    seq: usize,
    optimizer: &Optimizer,
    limits: &crate::base::Limits,
    chooser: &mut dyn Chooser,
) -> Result<Plan> {
    compile(&train_graph(config, batch, seq, optimizer, limits)?, limits, chooser)
}

/// The graph that [`train_plan`] compiles.
///
/// # Errors
/// If a step would take more operations than can be counted.
pub fn train_graph(
    config: &ModelConfig,
    batch: usize,
    seq: usize,
    optimizer: &Optimizer,
    limits: &crate::base::Limits,
) -> Result<Graph> {
    let model = Llama::new(config.clone());
    let layout = ParamLayout::new(model.param_specs(), limits.max_buffer_bytes);
    graph(&model, &layout, [batch, seq], false, Some((optimizer, &layout)))
}

/// Gives a plan of [`train_plan`] fresh parameters and some tokens, so that it can be timed: how long experts take
/// depends on which tokens choose them.
///
/// # Errors
/// If the device fails.
pub async fn fill(config: &ModelConfig, executor: &mut Executor, states: &States) -> Result<()> {
    let limits = states.gpu().limits();
    let layout = ParamLayout::new(Llama::new(config.clone()).param_specs(), limits.max_buffer_bytes);
    for (i, page) in layout.init(0).iter().enumerate() {
        states.write(&format!("param.{i}"), 0, bytemuck::cast_slice(page)).await?;
    }
    let count = executor.input("tokens").map_or(0, |ty| ty.shape.elements());
    let mut rng = Rng::new(0, 0);
    let tokens: Vec<u32> = (0..count).map(|_| rng.below(config.vocab_size) as u32).collect();
    executor.set("tokens", &tokens)?;
    executor.set("targets", &tokens)
}

/// Refuses a run that is too big for the adapter, before anything is allocated or measured.
///
/// # Errors
/// As [`Fit::check`]; [`Error::Memory`] with the bytes wanted and had.
pub fn check_fits(gpu: &Gpu, recipe: &Recipe, config: &ModelConfig, base: Option<&Base>) -> Result<()> {
    let plans = plans(config, recipe, base, gpu.limits(), &mut First)?;
    plans.fit.as_ref().map_or(Ok(()), Fit::check)?;
    check_memory(gpu, &[&plans.train, &plans.eval], &States::new(gpu))
}

/// Gives a plan its batch.
fn set(executor: &mut Executor, batch: &Batch) -> Result<()> {
    executor.set("tokens", &batch.tokens)?;
    executor.set("targets", &batch.targets)?;
    if executor.input(STARTS).is_some() {
        executor.set(STARTS, &batch.starts)?;
    }
    Ok(())
}

impl Trainer {
    /// Plans, allocates and initialises: fresh weights from the recipe's seed, or those of the model that training begins
    /// with, streamed from disk. Gives the plan of a step as well.
    ///
    /// # Errors
    /// If the adapter has no room, or refuses a kernel; or the model's weights cannot be read.
    pub async fn new(
        gpu: &Gpu,
        recipe: &Recipe,
        prepared: &Prepared,
        chooser: &mut dyn Chooser,
    ) -> Result<(Trainer, Plan)> {
        let model = Llama::new(prepared.config.clone());
        let base = prepared.base.as_deref();
        let subject = Subject::new(&model, recipe, base, gpu.limits())?;
        let optimizer = optimizer(recipe);
        let mut choices = Choices::new(&[], chooser);
        let Plans { train: plan, eval, fit } =
            settle(&mut choices, |chooser| plans(&prepared.config, recipe, base, gpu.limits(), chooser)).await?;
        let kernels = choices.made();
        fit.as_ref().map_or(Ok(()), Fit::check)?;
        let mut states = States::new(gpu);
        let device_bytes = device_bytes([&plan, &eval], &|_| false);
        let train = Executor::new(gpu, &plan, &mut states).await?;
        let eval = Executor::new(gpu, &eval, &mut states).await?;
        begin(&mut states, &subject, base, recipe.seed).await?;
        if let Some(scaling) = optimizer.loss_scaling {
            states.write(SCALER, 0, bytemuck::cast_slice(&scaling.initial())).await?;
        }
        let val_batch = prepared.loader.empty_batch();
        let batches = Prefetch::new(prepared.loader.clone());
        let size = |(name, bytes): (&str, u64)| StateSize { name: name.into(), bytes };
        let trainer = Trainer {
            model,
            subject,
            states,
            fit,
            kernels,
            progress: Progress::default(),
            optimizer,
            schedule: schedule(recipe),
            seed: recipe.seed,
            train,
            eval,
            batches,
            val_batch,
            written: plan.written_states().into_iter().map(size).collect(),
            device_bytes,
            submitted: 0,
            data_wait: 0.0,
        };
        Ok((trainer, plan))
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
        (self.submitted, self.batches.state())
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
        while self.train.pending() > 0 {
            self.result().await?;
        }
        for piece in snapshot.pieces() {
            let (state, offset, bytes) = piece?;
            self.states.write(state, offset, &bytes).await?;
        }
        self.batches.restore(progress.loader);
        self.submitted = progress.step;
        self.progress = progress;
        Ok(())
    }

    /// Submits the next step; its result is taken later, by [`Trainer::result`].
    ///
    /// # Errors
    /// If the device failed.
    pub async fn submit(&mut self) -> Result<()> {
        let asked = Instant::now();
        let batch = self.batches.next_batch();
        self.data_wait = asked.elapsed().as_secs_f64();
        set(&mut self.train, batch)?;
        // As far as there is dropout: what it leaves out depends on seed and step alone.
        self.train.set(DROPOUT, &[(self.seed ^ (self.seed >> 32)) as u32, self.submitted as u32])?;
        let lr = self.rate(self.submitted);
        self.train.set(HYPER, &self.optimizer.hyper(lr, self.submitted))?;
        self.train.submit().await?;
        self.submitted += 1;
        Ok(())
    }

    /// The oldest result not taken yet.
    ///
    /// # Errors
    /// If the device failed.
    pub async fn result(&mut self) -> Result<StepResult> {
        self.train.read(StepResult::of).await
    }

    /// Mean loss over the targets of held-out batches: the same `count` every time.
    ///
    /// # Errors
    /// If the device failed.
    pub async fn validate(&mut self, count: u64) -> Result<f64> {
        let (mut sum, mut counted) = (0.0, 0);
        for index in 0..count {
            self.batches.loader().val_batch(index, count, &mut self.val_batch);
            set(&mut self.eval, &self.val_batch)?;
            self.eval.submit().await?;
            let tokens = self.val_batch.counted();
            sum += f64::from(self.eval.read(StepResult::of).await?.loss) * tokens as f64;
            counted += tokens;
        }
        Ok(sum / counted as f64)
    }

    /// Validation batches of `sequences` sequences at most.
    pub fn val_batches(&self, sequences: u64) -> u64 {
        let batch = (self.val_batch.rows() as u64).max(1);
        sequences.div_ceil(batch).clamp(1, self.batches.loader().val_batches())
    }

    /// Where what is trained lies.
    pub fn layout(&self) -> &ParamLayout {
        &self.subject.layout
    }

    /// What is trained, in the layout's pages.
    ///
    /// # Errors
    /// If the device failed.
    pub async fn pages(&self) -> Result<Vec<Vec<f32>>> {
        let mut pages = Vec::new();
        for i in 0..self.layout().pages().len() {
            pages.push(bytemuck::pod_collect_to_vec(&self.states.read(&format!("param.{i}")).await?));
        }
        Ok(pages)
    }

    /// Tokens of one step.
    pub fn tokens_per_step(&self) -> u64 {
        self.val_batch.tokens.len() as u64
    }

    /// The batches, for whoever wants to write them down.
    pub fn loader(&self) -> &Loader {
        self.batches.loader()
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
