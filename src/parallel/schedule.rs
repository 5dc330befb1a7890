//! In which order the ranks of the pipeline axis work: one forward, one backward (Narayanan et al., "PipeDream", 2019), with
//! several stages a rank interleaved (Narayanan et al., "Efficient large-scale language model training on GPU clusters", 2021).
//! Plain numbers, so that each rank knows what all others do when.

use crate::error::{Error, Result};

/// Which pass over a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Pass {
    /// From the tokens to the loss.
    Forward,
    /// From the loss to the gradients.
    Backward,
}

/// What a rank does at once: a pass over one of its stages for one micro-batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Turn {
    /// Which pass.
    pub pass: Pass,
    /// Which stage of all, the first being 0.
    pub stage: usize,
    /// Which micro-batch.
    pub batch: usize,
}

/// A pipeline and what goes through it in a step. Stage s is rank s mod `ranks`'s.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pipeline {
    /// Ranks of the axis.
    pub ranks: usize,
    /// Stages of each: more than one interleave.
    pub each: usize,
    /// Micro-batches of a step.
    pub batches: usize,
}

impl Pipeline {
    /// All stages.
    pub fn stages(&self) -> usize {
        self.ranks * self.each
    }

    /// Whose a stage is.
    pub fn rank_of(&self, stage: usize) -> usize {
        stage % self.ranks
    }

    /// Refuses what no order is known for.
    ///
    /// # Errors
    /// A sentence with the numbers, and what to do.
    pub fn check(&self) -> Result<()> {
        let Pipeline { ranks, each, batches } = *self;
        if each > 1 && !batches.is_multiple_of(ranks) {
            let message = format!(
                "{each} interleaved stages a rank take micro-batches in groups of {ranks}, one for each rank of the pipeline, and \
                 a step has {batches}; make accumulate a multiple of {ranks}, or leave interleave out"
            );
            return Err(Error::Invalid(message));
        }
        Ok(())
    }

    /// Work of one pass of a rank, in order: in groups of as many micro-batches as there are ranks, each through all of the
    /// rank's stages.
    fn pass(&self, pass: Pass, rank: usize) -> Vec<Turn> {
        let group = if self.each > 1 { self.ranks } else { self.batches };
        let mut turns = Vec::new();
        for first in (0..self.batches).step_by(group) {
            for own in 0..self.each {
                let own = if pass == Pass::Forward { own } else { self.each - 1 - own };
                let stage = own * self.ranks + rank;
                turns.extend((first..(first + group).min(self.batches)).map(|batch| Turn { pass, stage, batch }));
            }
        }
        turns
    }

    /// All that a rank does in a step. It begins with forward passes, as many as let the last rank begin with backward ones
    /// at once and no more; then both take turns, so that what waits for its backward pass does not grow with the micro-batches.
    pub fn order(&self, rank: usize) -> Vec<Turn> {
        let (forward, backward) = (self.pass(Pass::Forward, rank), self.pass(Pass::Backward, rank));
        let behind = self.ranks - 1 - rank;
        let ahead = if self.each > 1 { 2 * behind + (self.each - 1) * self.ranks } else { behind };
        let ahead = ahead.min(forward.len());
        let mut turns = forward[..ahead].to_vec();
        for (i, &turn) in backward.iter().enumerate() {
            turns.extend(forward.get(ahead + i));
            turns.push(turn);
        }
        turns
    }

    /// The forward passes of a rank alone.
    pub fn forward(&self, rank: usize) -> Vec<Turn> {
        self.pass(Pass::Forward, rank)
    }

    /// One sentence about it.
    pub fn note(&self) -> String {
        let Pipeline { ranks, each, batches } = *self;
        let stages = if each > 1 { format!("{each} stages each") } else { "a stage each".into() };
        let (bubble, share) = (100.0 * self.bubble(), 100.0 * self.bubble() / (1.0 + self.bubble()));
        format!(
            "a pipeline of {ranks} ranks with {stages} takes {batches} micro-batches a step: by (P-1)/(M·V) a rank waits for others \
             {bubble:.1} % of the time that it works, which is {share:.1} % of a step"
        )
    }

    /// How long each rank waits for others, as a share of the time for which it works, where all stages take equally long and
    /// messages no time.
    pub fn bubble(&self) -> f64 {
        (self.ranks - 1) as f64 / (self.batches * self.each) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    /// When each turn ends if forward passes take 1 and backward ones 2; panics where ranks wait for each other for ever.
    fn play(pipeline: Pipeline) -> (HashMap<Turn, usize>, Vec<usize>) {
        let orders: Vec<Vec<Turn>> = (0..pipeline.ranks).map(|rank| pipeline.order(rank)).collect();
        let (mut done, mut at) = (HashMap::new(), vec![(0, 0); pipeline.ranks]);
        while at.iter().zip(&orders).any(|((next, _), order)| *next < order.len()) {
            let before = done.len();
            for (rank, order) in orders.iter().enumerate() {
                let (next, now) = at[rank];
                let Some(&turn) = order.get(next) else { continue };
                let of = |pass, stage| done.get(&Turn { pass, stage, ..turn }).copied();
                let last = turn.stage + 1 == pipeline.stages();
                let ready = match turn.pass {
                    Pass::Forward if turn.stage == 0 => Some(0),
                    Pass::Forward => of(Pass::Forward, turn.stage - 1),
                    Pass::Backward if last => of(Pass::Forward, turn.stage),
                    Pass::Backward => of(Pass::Backward, turn.stage + 1),
                };
                let Some(ready) = ready else { continue };
                let end = now.max(ready) + if turn.pass == Pass::Forward { 1 } else { 2 };
                done.insert(turn, end);
                at[rank] = (next + 1, end);
            }
            assert!(done.len() > before, "{pipeline:?} stands still");
        }
        (done, at.into_iter().map(|(_, end)| end).collect())
    }

    #[test]
    fn every_turn_is_taken_once_and_the_bubble_is_the_textbooks() {
        for (ranks, each, batches) in
            [(2, 1, 1), (2, 1, 8), (4, 1, 2), (4, 1, 8), (2, 2, 4), (4, 2, 8), (3, 4, 6), (8, 3, 16)]
        {
            let pipeline = Pipeline { ranks, each, batches };
            let (done, ends) = play(pipeline);
            assert_eq!(done.len(), 2 * pipeline.stages() * batches);
            let work = 3 * each * batches;
            // The first rank is the first to begin and the last to end.
            let bubble = (ends[0] - work) as f64 / work as f64;
            assert!((bubble - pipeline.bubble()).abs() < 1e-9, "{pipeline:?}: {bubble}");
        }
    }

    /// Validation has one micro-batch, however many stages a rank has: each stage takes it once.
    #[test]
    fn one_micro_batch_is_one_turn_of_each_stage() {
        let pipeline = Pipeline { ranks: 4, each: 2, batches: 1 };
        for rank in 0..4 {
            let turn = |stage| Turn { pass: Pass::Forward, stage, batch: 0 };
            assert_eq!(pipeline.forward(rank), [turn(rank), turn(4 + rank)]);
        }
    }

    /// Micro-batches whose forward pass over a stage is done and whose backward pass is not: as many as there are stages from
    /// there to the end, at most.
    #[test]
    fn few_micro_batches_are_under_way() {
        let pipeline = Pipeline { ranks: 4, each: 1, batches: 16 };
        for rank in 0..4 {
            let (mut now, mut most) = (0i32, 0);
            for turn in pipeline.order(rank) {
                now += if turn.pass == Pass::Forward { 1 } else { -1 };
                most = most.max(now);
            }
            assert_eq!((now, most), (0, 4 - rank as i32));
        }
    }

    #[test]
    fn what_has_no_order_is_refused() {
        let said = Pipeline { ranks: 4, each: 2, batches: 6 }.check().unwrap_err().to_string();
        assert!(said.contains("in groups of 4") && said.contains("a step has 6"), "{said}");
        Pipeline { ranks: 4, each: 1, batches: 6 }.check().unwrap();
    }
}
