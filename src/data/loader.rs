//! Batches from a shard: which tokens a step sees is a function of (seed, step), so a position is one number.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::shard::Shard;
use crate::base::Rng;
use crate::error::{Error, Result};

// Legend: B batch rows, T tokens a row.

/// Streams of the seed's random numbers: one for window offsets, and one a round of the permutation.
const OFFSET_STREAM: u64 = 0x6F66_6673;
const ROUND_STREAM: u64 = 0x726F_756E;
/// Four rounds make a Feistel network a strong permutation (Luby and Rackoff, 1988).
const ROUNDS: u64 = 4;
/// With fewer windows than this, all of them matter more than shifting their borders.
const SHIFT_FROM: u64 = 16;

/// How batches are drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct LoaderOptions {
    /// Rows a batch, B.
    pub batch: usize,
    /// Tokens a row, T.
    pub seq: usize,
    /// Seeds the order.
    pub seed: u64,
    /// The share of the tokens, at the end, that is held out for validation: at least one row, 0.05 by default.
    pub val_fraction: f64,
}

impl Default for LoaderOptions {
    fn default() -> Self {
        LoaderOptions { batch: 8, seq: 256, seed: 0, val_fraction: 0.05 }
    }
}

/// Where a loader stands: the whole of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoaderState {
    /// The next step, from 0.
    pub step: u64,
}

/// Fills `[B, T]` inputs and targets; `targets[b, t]` is the token after `inputs[b, t]`.
///
/// An epoch takes every window of T tokens once, in an order of its own, from an offset of its own. Rows are numbered
/// through all steps (step · B + b), so that ranks can share a batch without changing it.
#[derive(Debug, Clone)]
pub struct Loader {
    shard: Arc<Shard>,
    options: LoaderOptions,
    train_tokens: u64,
    windows: u64,
    val_windows: u64,
    state: LoaderState,
}

impl Loader {
    /// Divides a shard into a train part and a held-out tail.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a text shorter than one row of each part, for B or T of 0, and for an impossible fraction.
    pub fn new(shard: Arc<Shard>, options: LoaderOptions) -> Result<Loader> {
        let LoaderOptions { batch, seq, val_fraction, .. } = options;
        if batch == 0 || seq == 0 {
            return Err(Error::Invalid(format!(
                "a batch of {batch} rows of {seq} tokens is empty; both must be at least 1"
            )));
        }
        if !(0.0..1.0).contains(&val_fraction) {
            return Err(Error::Invalid(format!("a held-out share of {val_fraction} is not in 0..1")));
        }
        let (tokens, row) = (shard.len(), seq as u64 + 1);
        if tokens < 2 * row {
            return Err(Error::Invalid(format!(
                "text shorter than one sequence: has {tokens} tokens, needs {} (a row of {row} to train on and one held out); \
                 use a smaller --seq or more text",
                2 * row
            )));
        }
        let val_tokens = ((tokens as f64 * val_fraction) as u64).clamp(row, tokens - row);
        let train_tokens = tokens - val_tokens;
        let whole = (train_tokens - 1) / seq as u64;
        let windows = if whole < SHIFT_FROM { whole } else { whole - 1 };
        let val_windows = (val_tokens - 1) / seq as u64;
        Ok(Loader { shard, options, train_tokens, windows, val_windows, state: LoaderState::default() })
    }

    /// The number of tokens trained on.
    pub fn train_tokens(&self) -> u64 {
        self.train_tokens
    }

    /// The number of tokens held out.
    pub fn val_tokens(&self) -> u64 {
        self.shard.len() - self.train_tokens
    }

    /// A hash of all tokens, held out or not.
    pub fn checksum(&self) -> u64 {
        self.shard.checksum()
    }

    /// Rows an epoch.
    pub fn rows_per_epoch(&self) -> u64 {
        self.windows
    }

    /// Where this loader stands.
    pub fn state(&self) -> LoaderState {
        self.state
    }

    /// Goes to a position; the next batch is the one that came next when it was saved.
    pub fn restore(&mut self, state: LoaderState) {
        self.state = state;
    }

    /// Fills the next step's batch, `[B, T]` each, and goes on.
    pub fn next_batch(&mut self, inputs: &mut [u32], targets: &mut [u32]) {
        self.batch(self.state.step, inputs, targets);
        self.state.step += 1;
    }

    /// Fills the batch of any step, `[B, T]` each.
    pub fn batch(&self, step: u64, inputs: &mut [u32], targets: &mut [u32]) {
        let (batch, seq) = (self.options.batch, self.options.seq);
        assert!(inputs.len() == batch * seq && targets.len() == batch * seq, "buffers must hold [{batch}, {seq}]");
        for (b, (inputs, targets)) in inputs.chunks_exact_mut(seq).zip(targets.chunks_exact_mut(seq)).enumerate() {
            self.row(step * batch as u64 + b as u64, inputs, targets);
        }
    }

    /// Fills row number `row` of the whole run, `[T]` each.
    pub fn row(&self, row: u64, inputs: &mut [u32], targets: &mut [u32]) {
        self.read(self.row_start(row), inputs, targets);
    }

    /// How many whole validation batches the held-out part holds, at least 1: the last rows of one may repeat the first.
    pub fn val_batches(&self) -> u64 {
        (self.val_windows / self.options.batch as u64).max(1)
    }

    /// Fills validation batch `index` of `count`, `[B, T]` each: the same tokens every time, spread over the held-out part.
    pub fn val_batch(&self, index: u64, count: u64, inputs: &mut [u32], targets: &mut [u32]) {
        let (batch, seq) = (self.options.batch as u64, self.options.seq);
        assert!(inputs.len() == self.options.batch * seq && targets.len() == inputs.len(), "buffers must hold [B, T]");
        let rows = count.max(1) * batch;
        for (b, (inputs, targets)) in inputs.chunks_exact_mut(seq).zip(targets.chunks_exact_mut(seq)).enumerate() {
            let row = index * batch + b as u64;
            let window = if rows <= self.val_windows { row * self.val_windows / rows } else { row };
            self.read(self.train_tokens + window % self.val_windows * seq as u64, inputs, targets);
        }
    }

    /// The offset in the shard where a row begins.
    fn row_start(&self, row: u64) -> u64 {
        let (epoch, index) = (row / self.windows, row % self.windows);
        let slack = self.train_tokens - 1 - self.windows * self.options.seq as u64;
        let offset = Rng::new(self.options.seed ^ OFFSET_STREAM, epoch).below(slack as usize + 1) as u64;
        offset + permute(index, self.windows, self.options.seed, epoch) * self.options.seq as u64
    }

    fn read(&self, at: u64, inputs: &mut [u32], targets: &mut [u32]) {
        self.shard.read(at, inputs);
        self.shard.read(at + 1, targets);
    }
}

/// Where `index` of 0..n goes in the permutation of this seed and epoch: a Feistel network on the next even number of bits,
/// walked until it lands below n (Black and Rogaway, 2002, "cycle walking"), so no table is kept for any n.
fn permute(index: u64, n: u64, seed: u64, epoch: u64) -> u64 {
    debug_assert!(index < n);
    let half = (u64::BITS - (n - 1).leading_zeros()).div_ceil(2).max(1);
    let mask = (1u64 << half) - 1;
    let mut at = index;
    loop {
        let (mut left, mut right) = (at >> half, at & mask);
        for round in 0..ROUNDS {
            let key = seed ^ ROUND_STREAM.wrapping_add(round).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            let noise = Rng::new(key.wrapping_add(epoch.rotate_left(32)), right).next_u64();
            (left, right) = (right, left ^ (noise & mask));
        }
        at = (left << half) | right;
        if at < n {
            return at;
        }
    }
}

#[cfg(test)]
mod tests;
