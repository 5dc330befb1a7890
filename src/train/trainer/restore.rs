//! What of a trainer a rank writes down, and how it is put back from what these or other ranks wrote.

use super::{Progress, Trainer};
use crate::error::{Error, Result};
use crate::optim::Optimizer;
use crate::store::snapshot::{Series, Snapshot, StateSize};

impl Trainer {
    /// The states of those that a step changes which this rank writes down: where moments are shared out, each writes its own, and
    /// the first what all have alike.
    pub fn kept_states(&self) -> Vec<StateSize> {
        let own = |s: &&StateSize| self.world.is_first() || Optimizer::is_moment(&s.name);
        self.written.iter().filter(own).cloned().collect()
    }

    /// Over how many ranks moments are shared out.
    pub fn shards(&self) -> usize {
        self.shards
    }

    /// Refuses a checkpoint of other states; what fills up pages that ranks share out may differ.
    fn check_states(&self, snapshot: &Snapshot) -> Result<()> {
        let (theirs, parts) = (&snapshot.manifest().states, snapshot.manifest().parts);
        let most = parts.max(self.shards);
        let slack = if most > 1 { Optimizer::unit(most) } else { 0 };
        let whole = |s: &StateSize, shards: usize| {
            if Optimizer::is_moment(&s.name) { s.bytes * shards as u64 } else { s.bytes }
        };
        let is_there = |ours: &StateSize| {
            let found = theirs.iter().find(|s| s.name == ours.name);
            found.is_some_and(|s| whole(s, parts).abs_diff(whole(ours, self.shards)) <= slack)
        };
        match self.written.iter().find(|s| !is_there(s)) {
            None => Ok(()),
            Some(ours) => Err(Error::file(
                snapshot.folder(),
                format!(
                    "holds no state {} of {} bytes, which this run has: it is a checkpoint of another recipe, or of an \
                     adapter with other limits",
                    ours.name,
                    whole(ours, self.shards)
                ),
            )),
        }
    }

    /// Puts everything as it was when a checkpoint was taken. Results that were not taken are dropped.
    ///
    /// # Errors
    /// If the checkpoint holds other states than this recipe has on this adapter, or cannot be read, or the device fails.
    pub async fn restore(&mut self, snapshot: &Snapshot, progress: Progress) -> Result<()> {
        self.check_states(snapshot)?;
        while !self.under_way.is_empty() {
            self.take().await?;
        }
        while self.apply.as_ref().is_some_and(|apply| apply.pending() > 0) {
            self.apply.as_mut().expect("there is one").read(|_| ()).await?;
        }
        self.rewards.clear();
        self.tokens.clear();
        let (parts, series) = (snapshot.manifest().parts, snapshot.folder().parent().map(Series::at));
        for part in 0..parts {
            let opened = match (part, &series) {
                (0, _) | (_, None) => snapshot.clone(),
                (_, Some(series)) => Snapshot::open(&series.part(part).step(snapshot.manifest().step))?,
            };
            for piece in opened.pieces() {
                let (state, offset, bytes) = piece?;
                let moment = Optimizer::is_moment(state);
                let size = |all: &[StateSize]| all.iter().find(|s| s.name == state).map_or(0, |s| s.bytes);
                // Where it begins in the whole, and what of the whole is this rank's.
                let first = offset + if moment { part as u64 * size(&opened.manifest().states) } else { 0 };
                let own = size(&self.written);
                let from = if moment && self.shards > 1 { self.world.rank() as u64 * own } else { 0 };
                let (start, end) = (first.max(from), (first + bytes.len() as u64).min(from + own));
                if start < end {
                    let bytes = &bytes[(start - first) as usize..(end - first) as usize];
                    self.states.write(state, start - from, bytes).await?;
                }
            }
        }
        self.loader.restore(progress.loader);
        self.submitted = progress.step;
        self.progress = progress;
        Ok(())
    }
}
