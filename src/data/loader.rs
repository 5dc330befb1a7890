//! Batches from shards: which tokens a step sees is a function of (seed, step) and of how many rows a step has, so a position is
//! one number, whoever computes them and however far rows are filled up.

use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::batch::Batch;
use super::hash::Hasher;
use super::lengths::{self, GRAIN};
use super::mix::Mix;
use super::rows::{RowCounts, RowLayout, Rows};
use super::shard::Shard;
use crate::error::{Error, Result};

// Legend: B batch rows, T tokens a row.

/// Batches of which it is said how long they are.
const TOLD: u64 = 4096;

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
    /// At most so many lengths of rows that hold one document and are filled up; with 1 all are of T tokens.
    pub lengths: usize,
    /// Batches that make a step, whose rows are dealt to it together.
    pub accumulate: usize,
}

impl Default for LoaderOptions {
    fn default() -> Self {
        LoaderOptions { batch: 8, seq: 256, seed: 0, val_fraction: 0.05, lengths: 1, accumulate: 1 }
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

/// Fills batches `[B, T]`; of rows that are filled up T is the shortest of a few lengths that holds all of a batch.
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
    /// Lengths that batches have, ascending.
    lengths: Vec<usize>,
    /// Of rows that are picked to be alike in length within a step: the steps that are dealt together.
    window: Option<u64>,
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
    /// [`Error::Invalid`] for a source with less than one row of each part, for B, T or batches of a step of 0, an impossible
    /// fraction or weight, pairs beside other examples, and an odd B for pairs.
    pub fn mixed(sources: Vec<LoaderSource>, options: LoaderOptions) -> Result<Loader> {
        let LoaderOptions { batch, seq, seed, val_fraction, lengths: most, accumulate } = options;
        if batch == 0 || seq == 0 || accumulate == 0 {
            return Err(Error::Invalid(format!(
                "a step of {accumulate} batches of {batch} rows of {seq} tokens is empty; all must be at least 1"
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
        let pairs = sources.iter().filter(|source| source.layout == RowLayout::Pairs).count();
        if pairs > 0 && pairs < sources.len() {
            return Err(Error::Invalid("preference pairs and other examples do not go into one batch".into()));
        }
        let rows = sources.into_iter().map(|s| Rows::new(s.shard, s.layout, seq, seed, val_fraction));
        let sources = Arc::new(rows.collect::<Result<Vec<_>>>()?);
        let lengths = if most > 1 && sources.iter().all(Rows::is_padded) {
            let mut counts = vec![0; seq.div_ceil(GRAIN) + 1];
            sources.iter().for_each(|rows| rows.count_used(&mut counts));
            lengths::choose(&counts, most, seq)
        } else {
            vec![seq]
        };
        let part = 0..options.batch;
        let mut loader =
            Loader { sources, mix, options, checksum, state: LoaderState::default(), part, lengths, window: None };
        // Of several sources a row's own is not found fast enough for that.
        let each = loader.units() * accumulate as u64;
        if let [only] = &loader.sources[..]
            && only.is_padded()
            && each > 1
        {
            loader.window = Some(lengths::window(only.train / only.each(), each));
        }
        Ok(loader)
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

    /// The same batches, all of the longest length that was asked for.
    pub fn filled_up(&self) -> Loader {
        Loader { lengths: vec![self.options.seq], ..self.clone() }
    }

    /// What stays together in a batch and is dealt: rows, or pairs of them.
    fn units(&self) -> u64 {
        self.options.batch as u64 / self.sources[0].each()
    }

    /// The lengths that batches have, ascending.
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// The longest of them.
    pub fn longest(&self) -> usize {
        self.lengths[self.lengths.len() - 1]
    }

    /// The shortest length that holds so many tokens.
    fn length(&self, used: usize) -> usize {
        self.lengths.iter().copied().find(|length| *length >= used).unwrap_or(self.options.seq)
    }

    /// The length of the batch of any step.
    fn length_of(&self, rows: &[(usize, u64)]) -> usize {
        match self.lengths[..] {
            [only] => only,
            _ => self.length(rows.iter().map(|&(source, row)| self.sources[source].used(row)).max().unwrap_or(0)),
        }
    }

    /// Which rows of which sources any batch holds.
    fn rows_of(&self, step: u64) -> Vec<(usize, u64)> {
        let (each, units) = (self.sources[0].each(), self.units());
        let rows = |(source, unit): (usize, u64)| (unit * each..(unit + 1) * each).map(move |row| (source, row));
        let Some(window) = self.window else {
            return (0..units).flat_map(|unit| rows(self.mix.place(step * units + unit))).collect();
        };
        // Batches of a step are parts of what is dealt to it, as those of ranks are.
        let (seed, batches) = (self.options.seed, self.options.accumulate as u64);
        let used = |unit| self.sources[0].used(unit * each);
        let all = lengths::deal(step / batches, units * batches, window, seed, used);
        let own = &all[(step % batches * units) as usize..][..units as usize];
        own.iter().flat_map(|unit| rows((0, *unit))).collect()
    }

    /// After so many batches every row of a single source has come.
    pub fn batches_per_epoch(&self) -> u64 {
        let batches = self.rows_per_epoch().div_ceil(self.options.batch as u64);
        self.window.map_or(batches, |window| batches.next_multiple_of(window * self.options.accumulate as u64))
    }

    /// What is to be said of the lengths of rows, where there are others than was asked for.
    pub fn told(&self) -> Option<String> {
        let seq = self.options.seq;
        if self.lengths == [seq] {
            return None;
        }
        // Of each step one batch, each time the next one.
        let batches = self.options.accumulate as u64;
        let count = self.batches_per_epoch().min(TOLD).div_ceil(batches);
        let batch = |step: u64| self.rows_of(step * batches + step % batches);
        let tokens: u64 = (0..count).map(|step| self.length_of(&batch(step)) as u64).sum();
        let saved = 100.0 * (1.0 - tokens as f64 / (count * seq as u64) as f64);
        let names: Vec<String> = self.lengths.iter().map(usize::to_string).collect();
        let (last, shorter) = names.split_last().expect("there is a length");
        let list = if shorter.is_empty() { last.clone() } else { format!("{} or {last}", shorter.join(", ")) };
        Some(format!(
            "rows are filled up to {list} tokens, as a batch needs: {saved:.0} % fewer are computed than with {seq} (--lengths)"
        ))
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

    /// Rows that are held out.
    pub fn val_rows(&self) -> u64 {
        self.sources.iter().map(|rows| rows.val).sum()
    }

    /// How each source's documents came to be rows.
    pub fn counts(&self) -> Vec<RowCounts> {
        self.sources.iter().map(|rows| rows.counts).collect()
    }

    /// Whether there are rows that hold one document, however short.
    pub fn is_padded(&self) -> bool {
        self.sources.iter().any(Rows::is_padded)
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
    ///
    /// # Errors
    /// As [`Shard::read`].
    pub fn next_batch(&mut self, batch: &mut Batch) -> Result<()> {
        self.batch(self.state.step, batch)?;
        self.state.step += 1;
        Ok(())
    }

    /// Fills the batch of any step.
    ///
    /// # Errors
    /// As [`Shard::read`].
    pub fn batch(&self, step: u64, batch: &mut Batch) -> Result<()> {
        let rows = self.rows_of(step);
        self.shape(batch, self.length_of(&rows));
        for (row, (source, number)) in rows[self.part.clone()].iter().enumerate() {
            self.sources[*source].fill(*number, batch.row(row))?;
        }
        Ok(())
    }

    /// How many whole validation batches the held-out part holds, at least 1: the last rows of one may repeat the first.
    pub fn val_batches(&self) -> u64 {
        (self.val_rows() / self.options.batch as u64).max(1)
    }

    /// Fills validation batch `index` of `count`: the same tokens every time, spread over the held-out part.
    ///
    /// # Errors
    /// As [`Shard::read`].
    pub fn val_batch(&self, index: u64, count: u64, batch: &mut Batch) -> Result<()> {
        let own = self.options.batch as u64;
        let rows = count.max(1) * own;
        let each = self.sources[0].each();
        let place = |b: usize| {
            let row = index * own + b as u64;
            let (source, unit) = self.mix.held_out(row / each);
            let val = self.sources[source].val;
            // Neighbours of pairs must stay together.
            let spread = self.sources.len() == 1 && rows <= val && each == 1;
            (source, if spread { row * val / rows } else { unit * each + row % each })
        };
        let used =
            (0..self.options.batch).map(place).map(|(source, number)| self.sources[source].val_used(number)).max();
        self.shape(batch, self.length(used.unwrap_or(0)));
        for (at, b) in self.part.clone().enumerate() {
            let (source, number) = place(b);
            self.sources[source].fill_val(number, batch.row(at))?;
        }
        Ok(())
    }

    fn shape(&self, batch: &mut Batch, seq: usize) {
        assert!(batch.rows() == self.part.len(), "a batch must hold {} rows", self.part.len());
        batch.reshape(seq);
    }
}

#[cfg(test)]
mod tests;
