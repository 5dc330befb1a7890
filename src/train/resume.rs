//! Where a run can be taken up, and what may be changed of it then.

use super::log::RECIPE;
use super::{About, Prepared, Recipe, Trainer, schedule};
use crate::error::{Error, Result};
use crate::store::snapshot::{Series, Snapshot};
use std::collections::BTreeMap;
use std::path::Path;

/// Keys that change nothing of what is computed, or only what is to come by the person's wish. A name ending in a dot is
/// that of a group.
const FREE: [&str; 16] = [
    "memory",
    "adapter",
    "mesh",
    "interleave",
    "shard",
    "compare_every",
    "tune",
    "prompt",
    "prompts",
    "eval_tasks",
    "eval_limit",
    "out",
    "eval_every",
    "patience",
    "checkpoint.",
    "recovery.",
];

/// A run that can be taken up.
#[derive(Debug)]
pub struct Resumption {
    /// Its recipe.
    pub recipe: Recipe,
    /// Its newest whole checkpoint; without one it begins at the first step.
    pub from: Option<(Snapshot, About)>,
}

impl Resumption {
    /// Looks into a run's folder; `note` hears of checkpoints that are damaged.
    ///
    /// # Errors
    /// If it holds no run, or one that this version cannot take up.
    pub fn find(folder: &Path, note: &mut dyn FnMut(String)) -> Result<Resumption> {
        let mut passed = |step: u64, error: Error| note(format!("the checkpoint of step {step} is not used: {error}"));
        let out = folder.to_path_buf();
        if let Some(snapshot) = Series::of(folder).newest(&mut passed) {
            let about = About::read(&snapshot)?;
            let recipe = Recipe { out, ..about.recipe.clone() };
            return Ok(Resumption { recipe, from: Some((snapshot, about)) });
        }
        let recipe = folder.join(RECIPE);
        if !recipe.is_file() {
            let message = format!("holds no run that could be taken up: neither a checkpoint nor {RECIPE}");
            return Err(Error::file(folder, message));
        }
        Ok(Resumption { recipe: Recipe { out, ..Recipe::open(&recipe)? }, from: None })
    }

    /// Steps done.
    pub fn step(&self) -> u64 {
        self.from.as_ref().map_or(0, |(_, about)| about.progress.step)
    }

    /// Takes a changed recipe in place of the run's, if the run stays the same with it.
    ///
    /// # Errors
    /// A sentence with the first key whose value may not change.
    pub fn change(&mut self, wanted: Recipe) -> Result<()> {
        let (had, has) = (self.recipe.resolved().values(), wanted.resolved().values());
        let free = |key: &str| FREE.iter().any(|f| key == *f || (f.ends_with('.') && key.starts_with(f)));
        let keys = had.keys().chain(has.keys());
        let Some(key) = keys.into_iter().find(|key| had.get(*key) != has.get(*key) && !free(key) && *key != "steps")
        else {
            return self.change_steps(wanted);
        };
        let show = |of: &BTreeMap<String, String>| of.get(key).cloned().unwrap_or_else(|| "not set".into());
        Err(Error::Invalid(format!(
            "{key} is {} in the run that is taken up, and would be {}: a resumed run keeps its recipe; leave that out, or \
             start anew with another --out",
            show(&had),
            show(&has)
        )))
    }

    fn change_steps(&mut self, wanted: Recipe) -> Result<()> {
        let (done, steps) = (self.step(), wanted.steps);
        if steps < done {
            return Err(Error::Invalid(format!("steps would be {steps}, and {done} are done already; ask for more")));
        }
        let (old, new) = (schedule(&self.recipe.resolved()), schedule(&wanted.resolved()));
        if steps != self.recipe.steps && (0..done).any(|step| old.rate(step).to_bits() != new.rate(step).to_bits()) {
            return Err(Error::Invalid(format!(
                "steps is {} in the run that is taken up, and would be {steps}: by this schedule the learning rate of the \
                 {done} steps that are done would have been another; keep it, or go on from the model that was written",
                self.recipe.steps
            )));
        }
        self.recipe = wanted;
        Ok(())
    }

    /// Brings a fresh trainer to where the run was.
    ///
    /// # Errors
    /// If the data have changed, the checkpoint does not fit, or the device fails.
    pub async fn restore(&self, trainer: &mut Trainer, prepared: &Prepared) -> Result<()> {
        let Some((snapshot, about)) = &self.from else { return Ok(()) };
        about.check_content(prepared)?;
        trainer.restore(snapshot, about.progress.clone()).await
    }
}

/// What is to be gone on with in this folder, in words: "with 3 of 9 steps done". Nothing of a run that has come to its end,
/// or has no checkpoint. One whose checkpoints cannot be read is none that may be written over.
pub fn unfinished(folder: &Path) -> Option<String> {
    let all = Series::of(folder).list();
    let read = |(_, folder): &(u64, std::path::PathBuf)| About::read(&Snapshot::open(folder).ok()?).ok();
    match all.iter().rev().find_map(read) {
        Some(About { progress, recipe, .. }) if progress.step < recipe.steps => {
            Some(format!("with {} of {} steps done", progress.step, recipe.steps))
        }
        None if !all.is_empty() => Some("with checkpoints that cannot be read".into()),
        _ => None,
    }
}
