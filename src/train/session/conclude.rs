//! The end of a run: its last checkpoint, its model, and what nobody needs any more.

use super::{Ending, Session};
use crate::error::Result;
use crate::store::snapshot::Snapshot;
use crate::train::folder::{RunId, RunLock};
use crate::train::keeper::Keeper;
use crate::train::{Event, Trained, save_run};
use std::time::Instant;

impl Session<'_> {
    /// The last checkpoint, and the model; of a run that is whole then neighbours keep nothing.
    pub(super) async fn conclude(mut self, ending: Ending) -> Result<Ending> {
        let (copies, world) = (self.copies.take(), self.world.clone());
        let is_written = self.leave(ending).await?;
        if let Some(copies) = copies.filter(|_| is_written && ending != Ending::Interrupted) {
            // Only who writes checkpoints knows that the last one failed, and all ranks do the same.
            if !world.any(self.failed.is_some())? {
                copies.remove(&world)?;
            }
        }
        self.lock.take().filter(|_| ending != Ending::Interrupted).into_iter().for_each(RunLock::end);
        Ok(ending)
    }

    /// Gives whether the whole model is written, on all ranks alike: where it is not, checkpoints alone hold what was trained.
    async fn leave(&mut self, ending: Ending) -> Result<bool> {
        let step = self.done();
        if self.taken != step {
            self.keep(None, Instant::now()).await?;
        }
        let kept = self.keeper.as_mut().and_then(Keeper::wait);
        kept.into_iter().for_each(|kept| self.kept(kept));
        let of = if ending == Ending::Early { self.back_to_best().await? } else { step };
        if !self.trainer.has_room()? {
            let out = self.recipe.out.display();
            self.note(format!("the whole model has no room in the first rank's host: `danlu export {out}` makes it where there is some"));
            return Ok(false);
        }
        let Some((subject, pages)) = self.trainer.whole_on_first().await? else { return Ok(true) };
        self.about.progress = self.trainer.progress.clone();
        let is = Trained { step: of, about: self.about.clone(), run: RunId::read(&self.recipe.out) };
        save_run(self.recipe, self.prepared, &subject, &pages, &is)?;
        self.tell(Event::Saved {
            step,
            folder: self.recipe.out.clone(),
            seconds: self.trainer.progress.seconds,
            interrupted: ending == Ending::Interrupted,
            resumable: step > 0 && self.taken == step && self.failed.is_none(),
            base: self.recipe.lora.as_ref().and(self.recipe.model.clone()),
        });
        // The model lies there; whoever counts on going on must know that nothing else does.
        match self.failed.take_if(|_| ending == Ending::Interrupted) {
            Some(error) => Err(error),
            None => Ok(true),
        }
    }

    /// The parameters of the best checkpoint, where that is still there; gives their step.
    async fn back_to_best(&mut self) -> Result<u64> {
        let (done, patience) = (self.done(), self.recipe.patience);
        let Some((loss, step)) = self.trainer.progress.best else { return Ok(done) };
        self.note(format!(
            "validation has not become better than {loss:.4}, after step {step}, {patience} times in a row"
        ));
        if !self.world.first(self.world.is_first().then(|| Ok(self.series.whole(step).is_ok())))? {
            self.note(format!("there is no checkpoint of it: the model that is written is that of step {done}"));
            return Ok(done);
        }
        let (snapshot, progress) = (Snapshot::open(&self.series.step(step))?, self.trainer.progress.clone());
        self.trainer.restore(&snapshot, progress).await?;
        self.note(format!("the model that is written is that of step {step}"));
        Ok(step)
    }
}
