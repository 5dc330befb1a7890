//! What a run looks at between steps, beside validation: texts that the model writes, and tasks of `danlu eval`.

use super::{Base, Recipe, Subject, Trainer};
use crate::compile::human_bytes;
use crate::data::Tokenizer;
use crate::error::Result;
use crate::eval::{Form, Item, Metric, Task, evaluate, read_items};
use crate::gpu::Gpu;
use crate::infer::{Generator, Sampling, Scorer};
use crate::nn::{Declare, PARAMETERS};
use crate::run::States;
use std::path::PathBuf;
use std::sync::Arc;

/// Tokens of a sample.
const SAMPLE_TOKENS: usize = 80;
/// Tokens that are scored at once, at most.
const SCORED_TOKENS: usize = 1024;

/// Files of items.
pub struct Tasks(Vec<TaskFile>);

struct TaskFile {
    name: String,
    file: PathBuf,
    form: Form,
    items: Vec<Item>,
}

impl Tasks {
    /// Reads those of a recipe.
    ///
    /// # Errors
    /// If a file cannot be read, or holds other than items.
    pub fn read(recipe: &Recipe) -> Result<Tasks> {
        let read = |file: &PathBuf| {
            let (form, items) = read_items(file, Some(recipe.eval_limit))?;
            let name = file.file_stem().map_or(String::new(), |name| name.to_string_lossy().into_owned());
            Ok(TaskFile { name, file: file.clone(), form, items })
        };
        recipe.eval_tasks.iter().map(read).collect::<Result<_>>().map(Tasks)
    }
}

/// The model that is looked at.
enum Seen {
    /// Not yet known.
    Nothing,
    /// This one, in these states.
    Model(Arc<dyn Declare>, States),
    /// One that has no room on the first rank, or that cannot be looked at.
    TooLarge,
}

/// Samples and tasks, with what they keep on the device once they have been asked for.
pub(super) struct Look {
    tasks: Tasks,
    /// The model as it is looked at.
    seen: Seen,
    scorer: Option<Scorer>,
    sampler: Option<Generator>,
}

impl Look {
    pub(super) fn new(recipe: &Recipe) -> Result<Look> {
        Ok(Look { tasks: Tasks::read(recipe)?, seen: Seen::Nothing, scorer: None, sampler: None })
    }

    /// There is no room for the whole model on the first rank's host; says so the first time.
    pub(super) fn refuse(&mut self) -> Option<String> {
        let told = matches!(std::mem::replace(&mut self.seen, Seen::TooLarge), Seen::TooLarge);
        (!told).then(|| {
            "the whole model has no room in the first rank's host: there are no samples or tasks on the way".into()
        })
    }

    /// Nothing more is looked at, and what that took is given back.
    pub(super) fn end(&mut self) {
        (self.seen, self.scorer, self.sampler) = (Seen::TooLarge, None, None);
    }

    /// Tasks are not asked any more.
    pub(super) fn end_tasks(&mut self) {
        (self.tasks, self.scorer) = (Tasks(Vec::new()), None);
    }

    /// Takes the model as it is now: the trainer's own, or, where ranks have parts of it, the `whole` that was put together of
    /// them, which is kept on this rank's device beside its own part. Says so the first time that there is no room for it.
    ///
    /// # Errors
    /// If the device fails, or the model that was begun with cannot be read.
    pub(super) async fn see(
        &mut self,
        gpu: &Gpu,
        trainer: &Trainer,
        whole: Option<(Subject, Vec<Vec<f32>>)>,
        base: Option<&Base>,
    ) -> Result<Option<String>> {
        let Some((subject, pages)) = whole else {
            if matches!(self.seen, Seen::Nothing) {
                self.seen = Seen::Model(trainer.subject.whole(), trainer.shown.clone());
            }
            return Ok(None);
        };
        if matches!(self.seen, Seen::Nothing) {
            let frozen = subject.adapted.as_ref().map_or(0, |adapted| adapted.base.bytes());
            let bytes = frozen + pages.iter().map(|page| 4 * page.len() as u64).sum::<u64>();
            if gpu.limits().memory_bytes.is_some_and(|all| trainer.device_bytes() + bytes > all) {
                self.seen = Seen::TooLarge;
                return Ok(Some(format!(
                    "the whole model, {}, has no room beside this rank's part of it: there are no samples or tasks on the way",
                    human_bytes(bytes)
                )));
            }
            let mut states = States::new(gpu);
            if let (Some(base), Some(adapted)) = (base, &subject.adapted) {
                base.checkpoint.stream(&mut states, &adapted.base, &mut |_| ()).await?;
                if let Some(lora) = &adapted.lora {
                    // For the lengths of rows, where magnitudes are trained: what is trained is put there below.
                    base.checkpoint.stream_fresh(&mut states, &adapted.base, lora, 0).await?;
                }
            }
            self.seen = Seen::Model(subject.whole(), states);
        }
        let Seen::Model(_, states) = &mut self.seen else { return Ok(None) };
        for (i, page) in pages.iter().enumerate() {
            let name = format!("{PARAMETERS}.{i}");
            states.buffer(&name, 4 * page.len() as u64).await?;
            states.write(&name, 0, bytemuck::cast_slice(page)).await?;
        }
        Ok(None)
    }

    /// A text for each prompt of the recipe: prompt and continuation.
    pub(super) async fn samples(
        &mut self,
        gpu: &Gpu,
        recipe: &Recipe,
        trainer: &Trainer,
        tokenizer: &Tokenizer,
    ) -> Result<Vec<String>> {
        let Seen::Model(params, states) = &self.seen else { return Ok(Vec::new()) };
        if self.sampler.is_none() {
            let (params, states) = (params.clone(), states.clone());
            self.sampler = Some(Generator::new(gpu, &trainer.model, params, states, recipe.seq).await?);
        }
        let generator = self.sampler.as_mut().expect("made above");
        let mut texts = Vec::new();
        for prompt in std::iter::once(&recipe.prompt).chain(&recipe.prompts) {
            generator.reset();
            let mut prompt = tokenizer.encode_prompt(prompt)?;
            prompt.truncate(generator.context().saturating_sub(1).max(1));
            let mut tokens = prompt.clone();
            let sampling = Sampling { seed: recipe.seed, ..Sampling::default() };
            let count = SAMPLE_TOKENS.min(generator.context().saturating_sub(prompt.len()));
            let take = |token| {
                tokens.push(token);
                Ok(true)
            };
            generator.generate(&prompt, count, &sampling, take).await?;
            texts.push(tokenizer.decode(&tokens)?);
        }
        Ok(texts)
    }

    /// The figures of each task, with its name and the number of its items.
    pub(super) async fn tasks(
        &mut self,
        gpu: &Gpu,
        trainer: &Trainer,
        tokenizer: &Tokenizer,
    ) -> Result<Vec<(String, usize, Vec<Metric>)>> {
        let Seen::Model(params, states) = &self.seen else { return Ok(Vec::new()) };
        let mut told = Vec::new();
        for task in &self.tasks.0 {
            let scorer = self
                .scorer
                .get_or_insert_with(|| Scorer::new(gpu, &trainer.model, params.clone(), states.clone(), SCORED_TOKENS));
            let asked = Task { file: &task.file, form: task.form, items: &task.items, limit: None, shots: 0, seed: 0 };
            let report = evaluate(scorer, tokenizer, &asked, &mut |_, _| ()).await?;
            told.push((task.name.clone(), report.items, report.metrics));
        }
        Ok(told)
    }
}
