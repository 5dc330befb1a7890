//! What a step is given before it runs: its batches, and of pairs what they are compared with.

use super::Recipe;
use super::graphs::{REFERENCE, REWARDS, STARTS, TOKEN};
use super::preferring::{References, Rewards};
use crate::data::{Batch, IGNORE};
use crate::error::{Error, Result};
use crate::nn::DROPOUT;
use crate::parallel::SequenceAxis;
use crate::run::{Executor, Results};

/// Names of a plan's inputs of one batch, and of what it says of it.
pub(super) struct Inputs {
    tokens: String,
    targets: String,
    starts: String,
    dropout: String,
    reference: String,
    token: String,
    rewards: String,
}

impl Inputs {
    /// Of a plan of one batch, or of each that a pipeline takes.
    pub(super) fn of_step(recipe: &Recipe) -> Vec<Inputs> {
        match recipe.pipeline() {
            None => vec![Inputs::named(str::to_string)],
            Some(pipeline) => (0..pipeline.batches).map(|i| Inputs::named(|name| format!("{name}.{i}"))).collect(),
        }
    }

    fn named(name: impl Fn(&str) -> String) -> Inputs {
        Inputs {
            tokens: name("tokens"),
            targets: name("targets"),
            starts: name(STARTS),
            dropout: name(DROPOUT),
            reference: name(REFERENCE),
            token: name(TOKEN),
            rewards: name(REWARDS),
        }
    }

    /// Gives a plan its batch, or where a rank has not all tokens of a row, its own of these, by way of `part`; how many targets
    /// count among them.
    pub(super) fn set(
        &self,
        executor: &mut Executor,
        batch: &Batch,
        axis: Option<SequenceAxis>,
        part: &mut Vec<u32>,
    ) -> Result<u64> {
        let packed = executor.input(&self.starts).is_some();
        let Some(axis) = axis else {
            executor.set(&self.tokens, &batch.tokens)?;
            executor.set(&self.targets, &batch.targets)?;
            if packed {
                executor.set(&self.starts, &batch.starts)?;
            }
            return Ok(batch.counted());
        };
        axis.cut(batch.seq, &batch.tokens, part);
        executor.set(&self.tokens, part)?;
        if packed {
            axis.cut_starts(batch.seq, &batch.starts, part);
            executor.set(&self.starts, part)?;
        }
        axis.cut(batch.seq, &batch.targets, part);
        executor.set(&self.targets, part)?;
        Ok(part.iter().filter(|&&target| target != IGNORE).count() as u64)
    }

    /// What decides which elements are left out.
    pub(super) fn set_dropout(&self, executor: &mut Executor, seed: &[u32; 3]) -> Result<()> {
        executor.set(&self.dropout, seed)
    }

    /// Gives a plan of preference pairs what its batch is compared with, if that is done on this rank.
    pub(super) fn refer(&self, executor: &mut Executor, batch: &Batch, references: Option<&References>) -> Result<()> {
        if executor.input(&self.token).is_some() {
            let each = batch.targets.chunks_exact(batch.seq).map(per_target);
            executor.set(&self.token, &each.collect::<Vec<f32>>())?;
        }
        match references {
            Some(references) => executor.set(&self.reference, &references.of(batch)?),
            None if executor.input(&self.reference).is_some() => Err(Error::Invalid(
                "pairs are trained on once their reference is taken: Trainer::take_reference".into(),
            )),
            None => Ok(()),
        }
    }

    /// What a step made of it, if it was one of pairs and this rank says so.
    pub(super) fn rewards(&self, results: &Results<'_>) -> Option<Rewards> {
        Rewards::of(results, &self.rewards)
    }
}

/// One over the number of a row's targets.
fn per_target(targets: &[u32]) -> f32 {
    1.0 / targets.iter().filter(|&&target| target != IGNORE).count().max(1) as f32
}
