//! What of a trainer a rank writes down, and how it is put back from what these or other ranks wrote.

use super::{Progress, Trainer};
use crate::error::Result;
use crate::store::snapshot::{Snapshot, StateSize};
use crate::train::dealt::{Dealt, common, parts};

impl Trainer {
    /// The states of those that a step changes which this rank writes down: where some are shared out, each writes its own, and
    /// the first what all have alike.
    pub fn kept_states(&self) -> Vec<StateSize> {
        let own = |s: &&StateSize| self.world.is_first() || self.shard.divides(&s.name);
        self.written.iter().filter(own).cloned().collect()
    }

    /// Over how many ranks states are shared out.
    pub fn shards(&self) -> usize {
        self.shards
    }

    /// Puts everything as it was when a checkpoint was taken. Results that were not taken are dropped.
    ///
    /// # Errors
    /// If the checkpoint holds other states than this recipe has on this adapter, or cannot be read, or the device fails.
    pub async fn restore(&mut self, snapshot: &Snapshot, progress: Progress) -> Result<()> {
        let ours = Dealt::new(self.layout(), self.shard, self.shards);
        let theirs = Dealt::of(snapshot, &self.model, self.layout(), self.states.gpu().limits())?;
        ours.check(snapshot, &self.written, &theirs)?;
        while !self.under_way.is_empty() {
            self.take().await?;
        }
        while self.apply.as_ref().is_some_and(|apply| apply.pending() > 0) {
            self.apply.as_mut().expect("there is one").read(|_| ()).await?;
        }
        self.rewards.clear();
        self.tokens.clear();
        let (own, rank) = (&self.written, self.axes.share());
        for (part, opened) in parts(snapshot)?.iter().enumerate() {
            for piece in opened.pieces() {
                let (state, offset, bytes) = piece?;
                let Some(held) = theirs.held(state, part) else {
                    if own.iter().any(|s| s.name == state) {
                        self.states.write(state, offset, &bytes).await?;
                    }
                    continue;
                };
                // What fills up their pages is nobody's.
                let first = held.bytes.start + offset;
                let from = first..(first + bytes.len() as u64).min(held.bytes.end);
                for to in own {
                    let Some(mine) = ours.held(&to.name, rank).filter(|mine| mine.kind == held.kind) else { continue };
                    if let Some((at, bytes)) = common(&from, &bytes, &mine.bytes) {
                        self.states.write(&to.name, at, bytes).await?;
                    }
                }
            }
        }
        self.loader.restore(progress.loader);
        self.submitted = progress.step;
        self.progress = progress;
        Ok(())
    }
}
