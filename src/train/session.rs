//! A whole training run: steps, validation, samples, checkpoints, saving; an early end when asked; and back to a checkpoint
//! where training diverges.

mod conclude;

use super::folder::{RunId, RunLock, begin};
use super::keeper::{Keeper, Kept};
use super::log::RunLog;
use super::look::Look;
use super::pace::Speed;
use super::{
    About, Event, Neighbours, Observer, OnDivergence, Pace, Prepared, Recipe, StepResult, Subject, Trainer, Verdict,
    World, flops_per_token,
};
use crate::data::hash::hash as hash_of;
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::store::snapshot::{Manifest, Series, Snapshot};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// All steps are done.
    Complete,
    /// Validation has not become better for as long as the recipe allows.
    Early,
    /// It was asked to stop.
    Interrupted,
}

/// Runs a prepared trainer to its end, or until `stop` is set, and saves the model to the recipe's folder; on the way
/// checkpoints and metrics, as the recipe says. A trainer that was restored from a checkpoint goes on from there.
///
/// Of several ranks each calls it with its own trainer; the first writes, and one that is asked to stop stops all.
///
/// # Errors
/// If training diverges for good, the device failed, or the model cannot be written; if ranks differ, or another one failed.
pub async fn run(
    gpu: &Gpu,
    recipe: &Recipe,
    prepared: &Prepared,
    trainer: &mut Trainer,
    limit: Option<Pace>,
    stop: &AtomicBool,
    observer: &mut dyn Observer,
) -> Result<Ending> {
    let ended = Session::new(gpu, recipe, prepared, trainer, limit, stop, observer)?.run().await;
    // What is on disk outlives the device, and most devices can be opened again; and data that were damaged can be made anew.
    let more = |text: String| match Series::below(&recipe.out).list().last() {
        Some((step, _)) => format!(
            "{text}; the last checkpoint is that of step {step}: `danlu train --resume {}` goes on from it",
            recipe.out.display()
        ),
        None => format!("{text}; there is no checkpoint yet"),
    };
    ended.map_err(|error| match error {
        Error::Device(text) => Error::Device(more(text)),
        Error::File { path, message } => Error::File { path, message: more(message) },
        other => other,
    })
}

struct Session<'a> {
    gpu: &'a Gpu,
    recipe: &'a Recipe,
    prepared: &'a Prepared,
    trainer: &'a mut Trainer,
    stop: &'a AtomicBool,
    observer: &'a mut dyn Observer,
    series: Series,
    keeper: Option<Keeper>,
    copies: Option<Neighbours>,
    about: About,
    /// The first rank's.
    log: Option<RunLog>,
    /// The same one's: no other run writes to the folder.
    lock: Option<RunLock>,
    world: World,
    speed: Speed,
    /// Seconds of the processes before this one.
    earlier: f64,
    val_batches: u64,
    look: Look,
    /// The step that this process began after.
    begun: u64,
    /// The step whose checkpoint was taken last.
    taken: u64,
    /// The step of the checkpoint that training went back to last.
    back_at: Option<u64>,
    /// Why the last checkpoint is not on disk.
    failed: Option<Error>,
}

impl<'a> Session<'a> {
    fn new(
        gpu: &'a Gpu,
        recipe: &'a Recipe,
        prepared: &'a Prepared,
        trainer: &'a mut Trainer,
        limit: Option<Pace>,
        stop: &'a AtomicBool,
        observer: &'a mut dyn Observer,
    ) -> Result<Self> {
        let step = trainer.progress.step;
        let world = trainer.world().clone();
        let begun = world.is_first().then(|| {
            // Of a run that goes on and has lost its name others' copies may be its own.
            let is_known = step == 0 || RunId::read(&recipe.out).is_some();
            begin(recipe, step, trainer.device_bytes()).map(|begun| (begun, is_known))
        });
        let (mut log, mut lock) = (None, None);
        let mine = begun.map(|begun| {
            let ((own_log, own_lock, run), is_known) = begun?;
            (log, lock) = (Some(own_log), Some(own_lock));
            Ok((run, is_known))
        });
        let (run, is_known) = world.first::<(RunId, bool)>(mine)?;
        let copies = Neighbours::of(recipe, &run);
        copies.iter().filter(|_| is_known).for_each(Neighbours::forget_others);
        copies.iter().for_each(|copies| copies.forget_after(step));
        trainer.notes.extend(lock.iter().filter_map(|lock| lock.note.clone()));
        let series = Series::below(&recipe.out);
        let stay = (recipe.checkpoint.keep, recipe.keeps_best());
        let writers = if trainer.writers() > 1 { world.again()? } else { World::alone() };
        let writes = world.is_first() || writers.size() > 1;
        let keeper = recipe.checkpoint_interval().filter(|_| writes);
        let keeper = keeper.map(|_| Keeper::new(gpu, trainer, series.clone(), stay, writers, copies.clone()));
        let flops = flops_per_token(&prepared.config, recipe);
        Ok(Session {
            about: About::new(gpu, recipe, prepared, &trainer.kernels),
            log,
            lock,
            speed: Speed::new(limit, flops / world.size() as f64),
            world,
            earlier: trainer.progress.seconds,
            val_batches: trainer.val_batches(recipe.val_sequences),
            look: Look::new(recipe)?,
            begun: step,
            taken: step,
            back_at: None,
            failed: None,
            gpu,
            recipe,
            prepared,
            trainer,
            stop,
            observer,
            series,
            keeper,
            copies,
        })
    }

    fn tell(&mut self, event: Event) {
        let failed = self.log.as_mut().and_then(|log| log.event(&event));
        self.observer.event(&event);
        failed.into_iter().for_each(|text| self.note(text));
    }

    fn note(&mut self, text: String) {
        self.observer.event(&Event::Note { text });
    }

    fn done(&self) -> u64 {
        self.trainer.progress.step
    }

    fn is_last(&self, step: u64) -> bool {
        step == self.recipe.steps
    }

    fn is_evaluated(&self, step: u64) -> bool {
        step.is_multiple_of(self.recipe.eval_interval()) || self.is_last(step)
    }

    fn is_compared(&self, step: u64) -> bool {
        self.world.size() > 1 && self.recipe.compare_every > 0 && step.is_multiple_of(self.recipe.compare_every)
    }

    fn is_kept(&self, step: u64) -> bool {
        let due = |every| step.is_multiple_of(every) || self.is_last(step);
        self.recipe.checkpoint_interval().is_some_and(due)
    }

    /// Whether there is something to do after a step that no other may be under way for.
    fn is_boundary(&self, step: u64) -> bool {
        self.is_first(step) || self.is_evaluated(step) || self.is_kept(step) || self.is_compared(step)
    }

    /// Whether memory for checkpoints is made after this step: the first, which would wait for it otherwise.
    fn is_first(&self, step: u64) -> bool {
        step == self.begun + 1 && self.recipe.checkpoint_interval().is_some()
    }

    /// Whether validation has not become better for as long as the recipe allows.
    fn is_enough(&self) -> bool {
        self.recipe.patience > 0
            && self.trainer.progress.since_best >= self.recipe.patience
            && !self.is_last(self.done())
    }

    async fn run(mut self) -> Result<Ending> {
        self.compare(true).await?;
        if let Some(pipeline) = self.recipe.pipeline() {
            self.note(pipeline.note());
        }
        let notes = std::mem::take(&mut self.trainer.notes);
        notes.into_iter().for_each(|text| self.note(text));
        // A run that was killed after its end was due does not go on.
        let mut early = self.is_enough();
        while self.done() < self.recipe.steps && !early {
            self.hear();
            let (done, submitted) = (self.done(), self.trainer.submitted());
            // One step is always under way while the result of the one before is read, but for the pauses.
            let pause = submitted > done && self.is_boundary(submitted);
            if submitted < self.recipe.steps && !pause && !self.world.any(self.stop.load(Ordering::Relaxed))? {
                self.trainer.submit().await?;
                if submitted == done && !self.is_boundary(done + 1) {
                    continue;
                }
            }
            if self.trainer.submitted() == done {
                break;
            }
            let result = self.trainer.result().await?;
            early = match self.judge(&result) {
                Some(why) => self.roll_back(&why).await.map(|()| false)?,
                None => {
                    self.count(result);
                    self.is_boundary(self.done()) && self.rest().await?
                }
            };
        }
        if self.done() == 0 {
            self.note("stopped before the first step was done; nothing was saved".into());
            return Ok(Ending::Interrupted);
        }
        let ending = match () {
            () if early => Ending::Early,
            () if self.done() < self.recipe.steps => Ending::Interrupted,
            () => Ending::Complete,
        };
        self.conclude(ending).await
    }

    fn count(&mut self, result: StepResult) {
        let progress = &mut self.trainer.progress;
        progress.step += 1;
        progress.tokens += result.tokens;
        progress.skipped_in_row =
            if Verdict::of(&result) == Verdict::LeftOut { progress.skipped_in_row + 1 } else { 0 };
        progress.seconds = self.earlier + self.speed.seconds();
        let smoothed = progress.smooth(f64::from(result.loss));
        let event = self.speed.step(result, smoothed, self.trainer);
        self.tell(event);
    }

    /// Why training cannot go on after a step with this result, if it cannot.
    fn judge(&self, result: &StepResult) -> Option<String> {
        let (step, StepResult { loss, grad_norm, .. }) = (self.done() + 1, result);
        let row = self.trainer.progress.skipped_in_row + 1;
        match Verdict::of(result) {
            Verdict::LeftOut if row >= self.recipe.recovery.skipped => {
                Some(format!("the last {row} steps, up to step {step}, were left out"))
            }
            Verdict::Diverged => Some(format!("step {step} gave loss {loss} and gradient norm {grad_norm}")),
            _ => None,
        }
    }

    /// The step of the checkpoint that training may go back to.
    fn find_good(&mut self, why: &str, rollbacks: u32) -> Result<u64> {
        let advice = "training diverged; try a lower --lr, or a longer warmup";
        let options = &self.recipe.recovery;
        let kept = self.keeper.as_mut().and_then(Keeper::wait);
        kept.into_iter().for_each(|kept| self.kept(kept));
        if options.on_divergence == OnDivergence::Stop || rollbacks > options.most {
            let again = if rollbacks > 1 { format!(" after {} rollbacks", rollbacks - 1) } else { String::new() };
            return Err(Error::Invalid(format!("{why}: {advice}. No model was written{again}.")));
        }
        // One from which training diverged before may hold the harm already: the one before it is tried.
        let steps: Vec<u64> = self.series.list().into_iter().map(|(step, _)| step).collect();
        if steps.len() > 1 && steps.last() == self.back_at.as_ref() {
            self.series.forget_after(steps[steps.len() - 2]);
        }
        match self.series.newest(&mut |_, _| ()) {
            Some(snapshot) => Ok(snapshot.manifest().step),
            None => Err(Error::Invalid(format!("{why}: {advice}. Nothing was saved."))),
        }
    }

    /// Back to the last good checkpoint, with a lower rate.
    async fn roll_back(&mut self, why: &str) -> Result<()> {
        let options = &self.recipe.recovery;
        let (rollbacks, rate_scale) =
            (self.trainer.progress.rollbacks + 1, self.trainer.progress.rate_scale * options.rate);
        let found = if self.world.is_first() { Some(self.find_good(why, rollbacks)) } else { None };
        let snapshot = Snapshot::open(&self.series.step(self.world.first(found)?))?;
        let about = About::read(&snapshot)?;
        let seconds = self.trainer.progress.seconds;
        let progress = super::Progress { rollbacks, rate_scale, skipped_in_row: 0, seconds, ..about.progress };
        self.trainer.restore(&snapshot, progress).await?;
        let step = self.done();
        // Nobody reads from there any more.
        self.world.gather(0)?;
        if self.world.is_first() {
            self.series.forget_after(step);
        }
        (self.taken, self.back_at) = (step, Some(step));
        let failed = self.log.as_mut().and_then(|log| log.back_to(step));
        failed.into_iter().for_each(|text| self.note(text));
        self.speed.pause(Instant::now());
        self.note(format!(
            "{why}: training diverged; back to the checkpoint of step {step}, and on with {rate_scale} of the learning rate"
        ));
        Ok(())
    }

    /// Validation, a sample, a checkpoint; true if the run is to end early.
    async fn rest(&mut self) -> Result<bool> {
        if self.is_first(self.done())
            && let Some(keeper) = &mut self.keeper
        {
            keeper.prepare(self.trainer).await?;
        }
        let (step, mut began) = (self.done(), Instant::now());
        let (mut validation, mut is_best) = (None, false);
        if self.is_evaluated(step) {
            let (loss, rewards) = self.trainer.validate(self.val_batches).await?;
            if !loss.is_finite() {
                let why = format!("the validation loss after step {step} is {loss}");
                return self.roll_back(&why).await.map(|()| false);
            }
            self.tell(Event::Validation { step, loss, rewards });
            if let Some(shares) = self.trainer.expert_shares().await? {
                self.tell(Event::Experts { step, shares });
            }
            // Weights may be too large for a sample where a loss still is a number.
            let seen = match self.look().await {
                Err(Error::NoNumber(_)) => false,
                seen => seen.map(|()| true)?,
            };
            if self.world.any(!seen)? {
                let why = format!("a sample after step {step} could not be written: the model gave no finite logit");
                return self.roll_back(&why).await.map(|()| false);
            }
            let progress = &mut self.trainer.progress;
            is_best = progress.best.is_none_or(|(best, _)| loss < best);
            if is_best {
                (progress.best, progress.since_best) = (Some((loss, step)), 0);
            } else {
                progress.since_best += 1;
            }
            (validation, began) = (Some(loss), Instant::now());
        }
        if self.is_compared(step) {
            self.compare(false).await?;
        }
        // The best is there in the end, however slow the disk.
        let is_wanted = is_best && self.recipe.keeps_best() && self.recipe.checkpoint_interval().is_some();
        if self.is_kept(step) || is_wanted {
            let is_busy = self.keeper.as_ref().is_some_and(Keeper::is_busy) && !is_wanted;
            // Parts of several ranks are one checkpoint.
            let is_busy = if self.trainer.writers() > 1 { self.world.any(is_busy)? } else { is_busy };
            // Where steps are left out the parameters may be at fault, and must not take a good checkpoint's place.
            let row = self.trainer.progress.skipped_in_row;
            if (is_busy || row > 0) && !self.is_last(step) {
                let why = if row > 0 { "the step was left out" } else { "the one before is still being written" };
                self.note(format!("the checkpoint of step {step} is left out: {why}"));
            } else {
                self.keep(validation, began).await?;
            }
        }
        self.speed.pause(Instant::now());
        Ok(self.is_enough())
    }

    /// Takes a checkpoint of now; an earlier one that is still being written is waited for.
    async fn keep(&mut self, validation: Option<f64>, began: Instant) -> Result<()> {
        let Some(keeper) = &mut self.keeper else { return Ok(()) };
        let earlier = keeper.wait();
        let (step, loader) = self.trainer.position();
        self.trainer.progress.loader = loader;
        self.about.progress = self.trainer.progress.clone();
        let about = serde_json::to_value(&self.about).expect("plain data");
        let manifest = Manifest::new(step, validation, about, keeper.sizes().to_vec());
        let layout = Some(self.trainer.placed());
        let manifest = Manifest { parts: self.trainer.writers(), layout, ..manifest };
        keeper.take(self.trainer, manifest, began).await?;
        self.taken = step;
        earlier.into_iter().for_each(|kept| self.kept(kept));
        Ok(())
    }

    /// Hears from the thread that writes.
    fn hear(&mut self) {
        if let Some(kept) = self.keeper.as_mut().and_then(Keeper::poll) {
            self.kept(kept);
        }
    }

    fn kept(&mut self, kept: Kept) {
        self.failed = None;
        match kept {
            Kept::Saved { step, folder, bytes, stall, seconds, uncopied } => {
                self.tell(Event::Checkpoint { step, folder, bytes, stall, seconds });
                if let Some(error) = uncopied {
                    self.note(format!("of the checkpoint of step {step} neighbours have not all copies: {error}"));
                }
            }
            Kept::Failed { step, error } => {
                self.note(format!(
                    "there is no checkpoint of step {step}: {error}. Training goes on; the next is tried when due"
                ));
                self.failed = Some(error);
            }
        }
    }

    /// What must be the same on all ranks; at the start also what they work on.
    async fn compare(&mut self, start: bool) -> Result<()> {
        if self.world.size() == 1 {
            return Ok(());
        }
        let (content, hash) = (&self.about.content, |text: &str| hash_of(text.as_bytes()));
        if start {
            let recipe = Recipe { out: Default::default(), adapter: None, ..self.recipe.resolved() };
            self.world.compare(&[
                ("a program", hash(&self.about.build)),
                ("a recipe", hash(&recipe.to_toml())),
                ("a tokenizer", hash(&content.tokenizer)),
                ("data", hash(&content.tokens)),
                ("a model to begin with", hash(content.model.as_deref().unwrap_or_default())),
                ("a model's configuration", hash(content.config.as_deref().unwrap_or_default())),
                ("a step to go on from", self.done()),
            ])?;
        }
        self.trainer.compare_peers().await.map_err(|error| match error {
            Error::Rank(text) => Error::Rank(format!("{text}, after step {}", self.done())),
            other => other,
        })
    }

    /// Tasks and samples, by the first rank; where ranks have parts of the model, all of them send it theirs.
    async fn look(&mut self) -> Result<()> {
        if !self.trainer.has_room()? {
            self.look.refuse().into_iter().for_each(|text| self.note(text));
            return Ok(());
        }
        let whole = if self.trainer.is_in_parts() { self.trainer.whole_on_first().await? } else { None };
        if !self.world.is_first() {
            return Ok(());
        }
        // What is only looked at ends no run.
        match self.show(whole).await {
            Err(error @ Error::Memory { .. }) => {
                self.look.end();
                self.note(format!("there are no samples or tasks from here on: {error}"));
                Ok(())
            }
            shown => shown,
        }
    }

    async fn show(&mut self, whole: Option<(Subject, Vec<Vec<f32>>)>) -> Result<()> {
        let (step, tokenizer) = (self.done(), &self.prepared.tokenizer);
        let base = self.prepared.base.as_deref();
        if let Some(text) = self.look.see(self.gpu, self.trainer, whole, base).await? {
            self.note(text);
        }
        let told = match self.look.tasks(self.gpu, self.trainer, tokenizer).await {
            Err(error @ (Error::File { .. } | Error::Invalid(_))) => {
                self.look.end_tasks();
                self.note(format!("tasks are left out from here on: {error}"));
                Vec::new()
            }
            told => told?,
        };
        for (task, items, metrics) in told {
            self.tell(Event::Task { step, task, items, metrics });
        }
        for text in self.look.samples(self.gpu, self.recipe, self.trainer, tokenizer).await? {
            self.tell(Event::Sample { step, text });
        }
        Ok(())
    }
}
