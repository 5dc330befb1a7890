//! Where the states of a run's pages lie on its ranks, and how a checkpoint of any layout is read into another: states of one
//! kind are one sequence of blocks of 256 elements, the same however pages are cut and shared out.

use super::{About, Recipe, Subject};
use crate::base::Limits;
use crate::error::{Error, Result};
use crate::model::Llama;
use crate::nn::ParamLayout;
use crate::optim::{Optimizer, Shard};
use crate::store::snapshot::{Series, Snapshot, StateSize};
use std::ops::Range;

/// How states of pages are shared out.
pub(super) struct Dealt {
    layout: ParamLayout,
    /// Blocks before each page.
    blocks: Vec<usize>,
    shard: Shard,
    ranks: usize,
}

/// Which bytes of all pages' states of one kind a rank's state holds, without what fills it up.
pub(super) struct Held<'a> {
    pub(super) kind: &'a str,
    pub(super) bytes: Range<u64>,
}

impl Dealt {
    pub(super) fn new(layout: &ParamLayout, shard: Shard, ranks: usize) -> Dealt {
        let shard = if ranks > 1 { shard } else { Shard::None };
        Dealt { layout: layout.clone(), blocks: layout.blocks(), shard, ranks }
    }

    /// As the run had it that took a checkpoint of this model.
    ///
    /// # Errors
    /// As [`Subject::new`].
    pub(super) fn of(snapshot: &Snapshot, model: &Llama, own: &ParamLayout, limits: &Limits) -> Result<Dealt> {
        let (recipe, ranks) = (About::read(snapshot)?.recipe, snapshot.manifest().parts);
        if recipe.lora.is_some() || own.parts().is_some() {
            return Ok(Dealt::new(own, Shard::None, 1));
        }
        let recipe = Recipe { shard: if ranks > 1 { recipe.shard } else { Shard::None }, ..recipe };
        Ok(Dealt::new(&Subject::new(model, &recipe, None, limits)?.layout, recipe.shard, ranks))
    }

    /// What a state holds on a rank; nothing for a state of no page.
    pub(super) fn held<'a>(&self, state: &'a str, rank: usize) -> Option<Held<'a>> {
        let (kind, page) = state.rsplit_once('.')?;
        let page: usize = page.parse().ok()?;
        let (elements, each) = (self.layout.pages().get(page)?.elements, Optimizer::block_bytes(state));
        let divided = self.shard.divides(state);
        let own = if divided { elements / self.ranks } else { elements };
        let first = self.blocks[page] + if divided { rank * own / 256 } else { 0 };
        let end = (first as u64 * each + self.bytes(state, own)).min(self.blocks[page + 1] as u64 * each);
        Some(Held { kind, bytes: first as u64 * each..end.max(first as u64 * each) })
    }

    /// Bytes of a state of so many elements.
    fn bytes(&self, state: &str, elements: usize) -> u64 {
        let each = Optimizer::block_bytes(state);
        // Of the last block only its elements are there, but all of its scales.
        if each < 256 { each * elements.div_ceil(256) as u64 } else { each * elements as u64 / 256 }
    }

    /// Refuses a checkpoint of other states than `wanted`, which these hold.
    ///
    /// # Errors
    /// A sentence that names the first.
    pub(super) fn check(&self, snapshot: &Snapshot, wanted: &[StateSize], theirs: &Dealt) -> Result<()> {
        let held = &snapshot.manifest().states;
        let is_whole = |s: &StateSize| {
            let page =
                s.name.rsplit_once('.').and_then(|(_, page)| theirs.layout.pages().get(page.parse::<usize>().ok()?));
            let own = |elements: usize| if theirs.shard.divides(&s.name) { elements / theirs.ranks } else { elements };
            page.is_some_and(|page| theirs.bytes(&s.name, own(page.elements)) == s.bytes)
        };
        let blocks = |of: &Dealt| of.blocks.last().copied();
        let of_kind = |s: &StateSize, kind: &str| s.name.rsplit_once('.').is_some_and(|(own, _)| own == kind);
        let is_there = |ours: &&StateSize| match ours.name.rsplit_once('.') {
            Some((kind, _)) => {
                held.iter().filter(|s| of_kind(s, kind) && is_whole(s)).count() == theirs.layout.pages().len()
            }
            None => held.iter().any(|s| s.name == ours.name && s.bytes == ours.bytes),
        };
        match wanted.iter().find(|ours| !is_there(ours) || blocks(self) != blocks(theirs)) {
            None => Ok(()),
            Some(ours) => {
                let message = format!(
                    "holds no state {} of {} bytes, which this run has: it is a checkpoint of another recipe, or of an \
                     adapter with other limits",
                    ours.name, ours.bytes
                );
                Err(Error::file(snapshot.folder(), message))
            }
        }
    }
}

/// A checkpoint's parts, each of a rank, in their order.
///
/// # Errors
/// If one is gone or damaged.
pub(super) fn parts(snapshot: &Snapshot) -> Result<Vec<Snapshot>> {
    let series = snapshot.folder().parent().map(Series::at);
    let part = |part: usize| match (part, &series) {
        (0, _) | (_, None) => Ok(snapshot.clone()),
        (_, Some(series)) => Snapshot::open(&series.part(part).step(snapshot.manifest().step)),
    };
    (0..snapshot.manifest().parts).map(part).collect()
}

/// The bytes of `from`, which begin at its first, that lie in `to`: where they begin there, and they themselves.
pub(super) fn common<'a>(from: &Range<u64>, bytes: &'a [u8], to: &Range<u64>) -> Option<(u64, &'a [u8])> {
    let (start, end) = (from.start.max(to.start), from.end.min(to.end));
    (start < end).then(|| (start - to.start, &bytes[(start - from.start) as usize..(end - from.start) as usize]))
}
