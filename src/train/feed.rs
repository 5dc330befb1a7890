//! What a batch's plan is given: tokens, targets, starts and references, of a rank those of its part.

use super::graphs::{REFERENCE, STARTS, TOKEN};
use super::preferring::References;
use crate::data::{Batch, IGNORE};
use crate::error::{Error, Result};
use crate::parallel::SequenceAxis;
use crate::run::Executor;

/// Gives a plan its batch: rows that are whole.
pub(super) fn set(executor: &mut Executor, batch: &Batch) -> Result<()> {
    set_part(executor, batch, None, &mut Vec::new()).map(|_| ())
}

/// Gives a plan this rank's tokens of a batch; how many targets count among them.
pub(super) fn set_part(
    executor: &mut Executor,
    batch: &Batch,
    axis: Option<SequenceAxis>,
    part: &mut Vec<u32>,
) -> Result<u64> {
    let packed = executor.input(STARTS).is_some();
    let Some(axis) = axis else {
        executor.set("tokens", &batch.tokens)?;
        executor.set("targets", &batch.targets)?;
        if packed {
            executor.set(STARTS, &batch.starts)?;
        }
        return Ok(batch.counted());
    };
    axis.cut(batch.seq, &batch.tokens, part);
    executor.set("tokens", part)?;
    if packed {
        axis.cut_starts(batch.seq, &batch.starts, part);
        executor.set(STARTS, part)?;
    }
    axis.cut(batch.seq, &batch.targets, part);
    executor.set("targets", part)?;
    Ok(part.iter().filter(|&&target| target != IGNORE).count() as u64)
}

/// One over the number of a row's targets.
fn per_target(targets: &[u32]) -> f32 {
    1.0 / targets.iter().filter(|&&target| target != IGNORE).count().max(1) as f32
}

/// Gives a plan of preference pairs what its batch is compared with.
pub(super) fn refer(executor: &mut Executor, batch: &Batch, references: Option<&References>) -> Result<()> {
    if executor.input(TOKEN).is_some() {
        executor.set(TOKEN, &batch.targets.chunks_exact(batch.seq).map(per_target).collect::<Vec<f32>>())?;
    }
    match references {
        Some(references) => executor.set(REFERENCE, &references.of(batch)?),
        None if executor.input(REFERENCE).is_some() => {
            Err(Error::Invalid("pairs are trained on once their reference is taken: Trainer::take_reference".into()))
        }
        None => Ok(()),
    }
}
