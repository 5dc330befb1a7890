//! A whole training run: steps, validation, samples, saving, and an early end when asked.

use super::{Event, Observer, Prepared, Recipe, StepResult, Trainer};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::infer::{Generator, Sampling};
use crate::store::{FolderFile, save_folder};
use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Steps over which speed is averaged.
const WINDOW: usize = 20;
/// Tokens of a sample.
const SAMPLE_TOKENS: usize = 80;

/// Runs a prepared trainer to its end, or until `stop` is set, and saves the model to the recipe's folder.
///
/// # Errors
/// If the loss is no longer a number, the device failed, or the model cannot be written.
pub async fn run(
    gpu: &Gpu,
    recipe: &Recipe,
    prepared: &Prepared,
    trainer: &mut Trainer,
    step_limit: Option<f64>,
    stop: &AtomicBool,
    observer: &mut dyn Observer,
) -> Result<()> {
    let mut pace = Pace { started: Instant::now(), recent: VecDeque::new(), step_limit };
    let val_batches = trainer.val_batches(recipe.val_sequences);
    let mut sampler: Option<Generator> = None;
    let mut done = 0;
    while done < recipe.steps {
        let stopping = stop.load(Ordering::Relaxed);
        let boundary = |step: u64| step.is_multiple_of(recipe.eval_interval()) || step == recipe.steps;
        // One step is always under way while the result of the one before is read, but for the pauses.
        let pause = boundary(trainer.submitted()) && trainer.submitted() > done;
        if trainer.submitted() < recipe.steps && !stopping && !pause {
            trainer.submit().await?;
            if trainer.submitted() == done + 1 && !boundary(done + 1) {
                continue;
            }
        }
        if trainer.submitted() == done {
            break;
        }
        let result = trainer.result().await?;
        done += 1;
        observer.event(&pace.step(done, result, trainer)?);
        if boundary(done) {
            let loss = trainer.validate(val_batches).await?;
            observer.event(&Event::Validation { step: done, loss });
            let text = sample(gpu, recipe, prepared, trainer, &mut sampler).await?;
            observer.event(&Event::Sample { step: done, text });
            pace.recent.clear();
        }
    }
    if done == 0 {
        return Err(Error::Invalid("stopped before the first step was done; nothing was saved".into()));
    }
    let pages = trainer.pages().await?;
    save(&recipe.out, prepared, trainer, &pages)?;
    observer.event(&Event::Saved {
        step: done,
        folder: recipe.out.clone(),
        seconds: pace.started.elapsed().as_secs_f64(),
        interrupted: done < recipe.steps,
    });
    Ok(())
}

/// Speed over the last steps.
struct Pace {
    started: Instant,
    recent: VecDeque<Instant>,
    step_limit: Option<f64>,
}

impl Pace {
    fn step(&mut self, step: u64, result: StepResult, trainer: &Trainer) -> Result<Event> {
        // An overflow of scaled gradients is answered by a smaller scale; one without any scale is not.
        let is_scaled = result.loss_scale.is_some_and(|(scale, _)| scale >= 1.0);
        if !(result.loss.is_finite() && (result.grad_norm.is_finite() || is_scaled)) {
            let (loss, norm) = (result.loss, result.grad_norm);
            return Err(Error::Invalid(format!(
                "step {step} gave loss {loss} and gradient norm {norm}: training diverged; try a lower --lr, or a longer \
                 warmup. Nothing was saved."
            )));
        }
        self.recent.push_back(Instant::now());
        if self.recent.len() > WINDOW {
            self.recent.pop_front();
        }
        let span = self.recent.back().zip(self.recent.front()).map(|(b, a)| b.duration_since(*a).as_secs_f64());
        let per_step = match self.recent.len() {
            0 | 1 => self.started.elapsed().as_secs_f64() / step as f64,
            n => span.unwrap_or(0.0) / (n - 1) as f64,
        };
        Ok(Event::Step {
            step,
            loss: result.loss,
            lr: trainer.rate(step - 1),
            grad_norm: result.grad_norm,
            loss_scale: result.loss_scale.map(|(scale, _)| scale),
            skipped: result.loss_scale.map(|(_, skipped)| skipped),
            tokens_per_second: trainer.tokens_per_step() as f64 / per_step,
            roofline: self.step_limit.map(|limit| limit / per_step),
        })
    }
}

async fn sample(
    gpu: &Gpu,
    recipe: &Recipe,
    prepared: &Prepared,
    trainer: &Trainer,
    kept: &mut Option<Generator>,
) -> Result<String> {
    if kept.is_none() {
        let (model, layout) = (&trainer.model, &trainer.layout);
        *kept = Some(Generator::new(gpu, model, Arc::new(layout.clone()), trainer.states.clone(), recipe.seq).await?);
    }
    let generator = kept.as_mut().expect("made above");
    generator.reset();
    let mut prompt = prepared.tokenizer.encode_prompt(&recipe.prompt)?;
    prompt.truncate(generator.context().saturating_sub(1).max(1));
    let mut tokens = prompt.clone();
    let sampling = Sampling { seed: recipe.seed, ..Sampling::default() };
    let count = SAMPLE_TOKENS.min(generator.context().saturating_sub(prompt.len()));
    generator
        .generate(&prompt, count, &sampling, |token| {
            tokens.push(token);
            Ok(true)
        })
        .await?;
    prepared.tokenizer.decode(&tokens)
}

/// Writes the model as a Hugging Face folder, tokenizer and all.
///
/// # Errors
/// If the folder cannot be written.
pub fn save(folder: &Path, prepared: &Prepared, trainer: &Trainer, pages: &[Vec<f32>]) -> Result<()> {
    let files: Vec<(String, Vec<u8>)> = prepared.tokenizer.files(prepared.config.max_position_embeddings)?;
    let files: Vec<FolderFile> = files.iter().map(|(name, content)| FolderFile { name, content }).collect();
    save_folder(folder, &prepared.config, &trainer.layout, pages, &files)
}
