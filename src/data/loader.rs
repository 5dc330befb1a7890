//! Batches from shards: which tokens a step sees is a function of (seed, step), so a position is one number.

use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::batch::Batch;
use super::hash::Hasher;
use super::mix::Mix;
use super::rows::{RowCounts, RowLayout, Rows};
use super::shard::Shard;
use crate::error::{Error, Result};

// Legend: B batch rows, T tokens a row.

/// How batches are drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct LoaderOptions {
    /// Rows a batch, B.
    pub batch: usize,
    /// Tokens a row, T.
    pub seq: usize,
    /// Seeds the order.
    pub seed: u64,
    /// The share that is held out for validation, at least one row, 0.05 by default: of running text the end, of examples
    /// some that are the same for every seed.
    pub val_fraction: f64,
}

impl Default for LoaderOptions {
    fn default() -> Self {
        LoaderOptions { batch: 8, seq: 256, seed: 0, val_fraction: 0.05 }
    }
}

/// One of the shards that batches are drawn from.
#[derive(Debug, Clone)]
pub struct LoaderSource {
    /// The tokens.
    pub shard: Arc<Shard>,
    /// How they are laid out in rows.
    pub layout: RowLayout,
    /// Its share of the rows, as compared with the other sources' weights.
    pub weight: f64,
}

/// Where a loader stands: the whole of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoaderState {
    /// The next step, from 0.
    pub step: u64,
}

/// Fills batches `[B, T]`.
///
/// An epoch of a source takes every row of it once, in an order of its own, and of running text from an offset of its own.
/// Rows are numbered through all steps (step · B + b), so that ranks can share a batch without changing it.
#[derive(Debug, Clone)]
pub struct Loader {
    sources: Arc<Vec<Rows>>,
    mix: Mix,
    options: LoaderOptions,
    checksum: u64,
    state: LoaderState,
    /// The rows of every batch that it fills.
    part: Range<usize>,
}

impl Loader {
    /// Running text of one shard in windows: a train part and a held-out tail.
    ///
    /// # Errors
    /// Those of [`Loader::mixed`].
    pub fn new(shard: Arc<Shard>, options: LoaderOptions) -> Result<Loader> {
        Loader::mixed(vec![LoaderSource { shard, layout: RowLayout::Windows, weight: 1.0 }], options)
    }

    /// Several sources, each divided into a train part and a held-out one.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a source with less than one row of each part, for B or T of 0, an impossible fraction or weight,
    /// and an odd B for pairs.
    pub fn mixed(sources: Vec<LoaderSource>, options: LoaderOptions) -> Result<Loader> {
        let LoaderOptions { batch, seq, seed, val_fraction } = options;
        if batch == 0 || seq == 0 {
            return Err(Error::Invalid(format!(
                "a batch of {batch} rows of {seq} tokens is empty; both must be at least 1"
            )));
        }
        if !(0.0..1.0).contains(&val_fraction) {
            return Err(Error::Invalid(format!("a held-out share of {val_fraction} is not in 0..1")));
        }
        if batch % 2 == 1 && sources.iter().any(|source| source.layout == RowLayout::Pairs) {
            return Err(Error::Invalid(format!("a batch of {batch} rows does not hold whole pairs")));
        }
        let weights: Vec<f64> = sources.iter().map(|source| source.weight).collect();
        let mix = Mix::new(&weights, seed)?;
        let checksum = match &sources[..] {
            [only] => only.shard.checksum(),
            several => {
                let mut hasher = Hasher::new();
                several.iter().for_each(|source| hasher.update(&source.shard.checksum().to_le_bytes()));
                hasher.finish()
            }
        };
        let rows = sources.into_iter().map(|s| Rows::new(s.shard, s.layout, seq, seed, val_fraction));
        let sources = Arc::new(rows.collect::<Result<Vec<_>>>()?);
        let part = 0..options.batch;
        Ok(Loader { sources, mix, options, checksum, state: LoaderState::default(), part })
    }

    /// The same batches, of which this one fills the rows of part `index` of `parts` equal ones: all of them together are what
    /// one loader gives, whatever their number.
    ///
    /// # Panics
    /// If batches cannot be dealt so.
    pub fn share(&self, index: usize, parts: usize) -> Loader {
        let LoaderOptions { batch, .. } = self.options;
        assert!(index < parts && batch.is_multiple_of(parts), "part {index} of {parts} of {batch} rows");
        let rows = batch / parts;
        Loader { part: index * rows..(index + 1) * rows, ..self.clone() }
    }

    /// The number of tokens trained on.
    pub fn train_tokens(&self) -> u64 {
        self.sources.iter().map(|rows| rows.train_tokens).sum()
    }

    /// The number of tokens held out.
    pub fn val_tokens(&self) -> u64 {
        self.sources.iter().map(|rows| rows.val_tokens).sum()
    }

    /// A hash of all tokens, held out or not.
    pub fn checksum(&self) -> u64 {
        self.checksum
    }

    /// Rows an epoch: of several sources, all of theirs.
    pub fn rows_per_epoch(&self) -> u64 {
        self.sources.iter().map(|rows| rows.train).sum()
    }

    /// How each source's documents came to be rows.
    pub fn counts(&self) -> Vec<RowCounts> {
        self.sources.iter().map(|rows| rows.counts).collect()
    }

    /// How batches are drawn.
    pub fn options(&self) -> &LoaderOptions {
        &self.options
    }

    /// A batch of the right size, to be filled.
    pub fn empty_batch(&self) -> Batch {
        Batch::new(self.part.len(), self.options.seq)
    }

    /// Where this loader stands.
    pub fn state(&self) -> LoaderState {
        self.state
    }

    /// Goes to a position; the next batch is the one that came next when it was saved.
    pub fn restore(&mut self, state: LoaderState) {
        self.state = state;
    }

    /// Fills the next step's batch, and goes on.
    pub fn next_batch(&mut self, batch: &mut Batch) {
        self.batch(self.state.step, batch);
        self.state.step += 1;
    }

    /// Fills the batch of any step.
    pub fn batch(&self, step: u64, batch: &mut Batch) {
        self.check(batch);
        let rows = self.options.batch as u64;
        for (row, b) in self.part.clone().enumerate() {
            let (source, number) = self.mix.place(step * rows + b as u64);
            self.sources[source].fill(number, batch.row(row));
        }
    }

    /// How many whole validation batches the held-out part holds, at least 1: the last rows of one may repeat the first.
    pub fn val_batches(&self) -> u64 {
        let rows: u64 = self.sources.iter().map(|rows| rows.val).sum();
        (rows / self.options.batch as u64).max(1)
    }

    /// Fills validation batch `index` of `count`: the same tokens every time, spread over the held-out part.
    pub fn val_batch(&self, index: u64, count: u64, batch: &mut Batch) {
        self.check(batch);
        let own = self.options.batch as u64;
        let rows = count.max(1) * own;
        for (at, b) in self.part.clone().enumerate() {
            let row = index * own + b as u64;
            let (source, number) = self.mix.held_out(row);
            let val = self.sources[source].val;
            // Neighbours of pairs must stay together.
            let spread = self.sources.len() == 1 && rows <= val && !self.sources[source].has_pairs();
            let number = if spread { row * val / rows } else { number };
            self.sources[source].fill_val(number, batch.row(at));
        }
    }

    fn check(&self, batch: &Batch) {
        let (rows, seq) = (self.part.len(), self.options.seq);
        assert!(batch.seq == seq && batch.rows() == rows, "a batch must hold [{rows}, {seq}]");
    }
}

#[cfg(test)]
mod tests;
