//! What a run looks at between steps, beside validation: texts that the model writes, and tasks of `danlu eval`.

use super::{Recipe, Trainer};
use crate::data::Tokenizer;
use crate::error::Result;
use crate::eval::{Form, Item, Metric, Task, evaluate, read_items};
use crate::gpu::Gpu;
use crate::infer::{Generator, Sampling, Scorer};
use std::path::PathBuf;

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

/// Samples and tasks, with what they keep on the device once they have been asked for.
pub(super) struct Look {
    tasks: Tasks,
    scorer: Option<Scorer>,
    sampler: Option<Generator>,
}

impl Look {
    pub(super) fn new(recipe: &Recipe) -> Result<Look> {
        Ok(Look { tasks: Tasks::read(recipe)?, scorer: None, sampler: None })
    }

    /// A text for each prompt of the recipe: prompt and continuation.
    pub(super) async fn samples(
        &mut self,
        gpu: &Gpu,
        recipe: &Recipe,
        trainer: &Trainer,
        tokenizer: &Tokenizer,
    ) -> Result<Vec<String>> {
        if self.sampler.is_none() {
            let (model, params) = (&trainer.model, trainer.subject.whole());
            self.sampler = Some(Generator::new(gpu, model, params, trainer.states.clone(), recipe.seq).await?);
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
        let mut told = Vec::new();
        for task in &self.tasks.0 {
            let scorer = self.scorer.get_or_insert_with(|| {
                Scorer::new(gpu, &trainer.model, trainer.subject.whole(), trainer.states.clone(), SCORED_TOKENS)
            });
            let asked = Task { file: &task.file, form: task.form, items: &task.items, limit: None, shots: 0, seed: 0 };
            let report = evaluate(scorer, tokenizer, &asked, &mut |_, _| ()).await?;
            told.push((task.name.clone(), report.items, report.metrics));
        }
        Ok(told)
    }
}
