//! The rows of one shard: windows of running text, or documents, alone in a row or several in one. Which tokens row n holds is
//! a function of the seed and n.
//! Legend: T tokens a row.

use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::batch::{IGNORE, Row};
use super::lengths::GRAIN;
use super::pack::Bins;
use super::shard::{MASKED, Shard};
use crate::base::Rng;
use crate::error::{Error, Result};

/// Streams of the seed's random numbers: one for window offsets, and one a round of the permutation.
const OFFSET_STREAM: u64 = 0x6F66_6673;
const ROUND_STREAM: u64 = 0x726F_756E;
/// Seeds the choice of the documents that are held out, which no run's seed changes.
const HELD_OUT: u64 = 0x6865_6C64;
/// Four rounds make a Feistel network a strong permutation (Luby and Rackoff, 1988).
const ROUNDS: u64 = 4;
/// With fewer windows than this, all of them matter more than shifting their borders.
const SHIFT_FROM: u64 = 16;

/// What is done with a document that is longer than a row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Overlong {
    /// Its end is cut off.
    #[default]
    Truncate,
    /// It is left out.
    Drop,
    /// It is cut into several, of which each sees nothing of the others.
    Split,
}

impl std::str::FromStr for Overlong {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "truncate" => Ok(Overlong::Truncate),
            "drop" => Ok(Overlong::Drop),
            "split" => Ok(Overlong::Split),
            _ => Err(format!("`{text}` is none of truncate, drop, split")),
        }
    }
}

/// How a shard's tokens are laid out in rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RowLayout {
    /// Running text in windows of T, whatever documents they hold.
    #[default]
    Windows,
    /// One document a row, filled up.
    Padded(Overlong),
    /// As many documents in a row as fit.
    Packed(Overlong),
    /// One document a row, filled up; rows 2n and 2n + 1 are the better and the worse of a pair. What is longer is cut off.
    Pairs,
}

/// How documents came to be rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RowCounts {
    /// Documents of the shard; of pairs, pairs.
    pub documents: u64,
    /// Of these, documents longer than a row; of pairs, answers, of which each has two.
    pub overlong: u64,
    /// Documents, parts of split ones, or answers of pairs, of which nothing is to be predicted; they are left out, and their pairs.
    pub unanswered: u64,
    /// Rows in all, held out or not.
    pub rows: u64,
    /// Tokens in them, those that fill up not counted.
    pub tokens: u64,
}

impl RowCounts {
    /// The share of the rows that is tokens, from 0 to 1.
    pub fn fill(&self, seq: usize) -> f64 {
        self.tokens as f64 / (self.rows * seq as u64).max(1) as f64
    }

    /// What is to be said of how documents came to be rows of `seq` tokens, unless they are windows.
    pub fn told(&self, layout: RowLayout, seq: usize) -> Vec<String> {
        let overlong = match layout {
            RowLayout::Windows => return Vec::new(),
            RowLayout::Padded(overlong) | RowLayout::Packed(overlong) => overlong,
            RowLayout::Pairs => Overlong::Truncate,
        };
        let RowCounts { documents, overlong: long, unanswered, rows, .. } = *self;
        let mut notes = Vec::new();
        let pairs = layout == RowLayout::Pairs;
        let what = if pairs { "pairs" } else { "documents" };
        // What is too long, or says nothing, is one answer of a pair.
        let (all, each) = if pairs { (2 * documents, "answers") } else { (documents, what) };
        if long > 0 {
            let done = match overlong {
                Overlong::Truncate => "their ends are cut off",
                Overlong::Drop => "they are left out",
                Overlong::Split => "they are split",
            };
            notes.push(format!("{long} of {all} {each} are longer than {seq} tokens: {done} (--overlong)"));
        }
        if unanswered > 0 && pairs {
            let text = format!(
                "of {unanswered} answers nothing is to be predicted within {seq} tokens: their pairs are left out"
            );
            notes.push(text);
        } else if unanswered > 0 {
            let (it, is) = if unanswered == 1 { ("part is", "it") } else { ("parts are", "them") };
            notes.push(format!("{unanswered} {it} left out: nothing of {is} is to be predicted within {seq} tokens"));
        }
        let share = 100.0 * self.fill(seq);
        let advice =
            if matches!(layout, RowLayout::Padded(_)) && share < 80.0 { "; --pack would fill them" } else { "" };
        let kept = if pairs && rows < all { format!("{} of ", rows / 2) } else { String::new() };
        notes.push(format!(
            "{kept}{documents} {what} in {rows} rows of {seq} tokens, which are {share:.1} % full{advice}"
        ));
        notes
    }
}

/// A shard as rows.
#[derive(Debug)]
pub(super) struct Rows {
    shard: Arc<Shard>,
    seq: usize,
    seed: u64,
    kind: Kind,
    padded: bool,
    /// Rows an epoch.
    pub train: u64,
    /// Rows held out.
    pub val: u64,
    /// Tokens trained on, and held out.
    pub train_tokens: u64,
    pub val_tokens: u64,
    pub counts: RowCounts,
}

#[derive(Debug)]
enum Kind {
    Windows,
    Documents { segments: Vec<Segment>, train: Bins, val: Bins, pairs: bool },
}

/// A document, or a part of one, that stands in a row: `len` tokens from `at`, of which all but the first are targets.
#[derive(Debug, Clone, Copy)]
struct Segment {
    at: u64,
    len: u32,
}

impl Segment {
    /// Places in a row: nothing follows the last token, so it needs none.
    fn slots(self) -> usize {
        self.len as usize - 1
    }
}

impl Rows {
    /// Divides a shard into rows of `seq` tokens: those to train on, and a share `val_fraction` held out, at least one.
    ///
    /// # Errors
    /// [`Error::Invalid`] for less than one row of each part.
    pub fn new(shard: Arc<Shard>, layout: RowLayout, seq: usize, seed: u64, val_fraction: f64) -> Result<Rows> {
        match layout {
            RowLayout::Windows => Rows::windows(shard, seq, seed, val_fraction),
            _ => Rows::documents(shard, layout, seq, seed, val_fraction),
        }
    }

    fn windows(shard: Arc<Shard>, seq: usize, seed: u64, val_fraction: f64) -> Result<Rows> {
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
        let train = if whole < SHIFT_FROM { whole } else { whole - 1 };
        let val = (val_tokens - 1) / seq as u64;
        let rows = train + val;
        let counts =
            RowCounts { documents: shard.documents(), rows, tokens: rows * seq as u64, ..RowCounts::default() };
        let (kind, padded) = (Kind::Windows, false);
        Ok(Rows { shard, seq, seed, kind, padded, train, val, train_tokens, val_tokens, counts })
    }

    fn documents(shard: Arc<Shard>, layout: RowLayout, seq: usize, seed: u64, val_fraction: f64) -> Result<Rows> {
        let (pairs, overlong) = match layout {
            RowLayout::Padded(overlong) | RowLayout::Packed(overlong) => (false, overlong),
            RowLayout::Windows | RowLayout::Pairs => (true, Overlong::Truncate),
        };
        let each = if pairs { 2 } else { 1 };
        let (count, mut counts) = (shard.documents() / each, RowCounts::default());
        counts.documents = count;
        if count < 2 {
            let what = match overlong {
                _ if pairs => "pair",
                Overlong::Split => "document",
                _ => "example",
            };
            return Err(Error::Invalid(format!(
                "there is {count} {what}, and two are needed: one is held out; give more data"
            )));
        }
        let held_out = ((count as f64 * val_fraction) as u64).clamp(1, count - 1);
        let (mut segments, mut parts): (Vec<Segment>, [Vec<u32>; 2]) = (Vec::new(), [Vec::new(), Vec::new()]);
        for unit in 0..count {
            let first = segments.len();
            for document in unit * each..(unit + 1) * each {
                cut(&shard, shard.document(document)?, seq, overlong, &mut segments, &mut counts)?;
            }
            numbered(segments.len())?;
            if pairs && segments.len() < first + 2 {
                segments.truncate(first);
                continue;
            }
            let part = usize::from(permute(unit, count, HELD_OUT, 0) < held_out);
            // Of a pair the first stands for both.
            parts[part].extend((first as u32..segments.len() as u32).step_by(each as usize));
        }
        let slots = |item: u32| segments[item as usize].slots();
        let tokens =
            |part: &[u32]| part.iter().map(|&i| (i..i + each as u32).map(slots).sum::<usize>() as u64).sum::<u64>();
        let [train_tokens, val_tokens] = [tokens(&parts[0]), tokens(&parts[1])];
        let [train, val] = parts.map(|part| match layout {
            RowLayout::Packed(_) => Bins::pack(&part, slots, seq),
            _ => Bins::single(part.into_iter()),
        });
        let [train_rows, val_rows] = [train.rows() * each, val.rows() * each];
        if train_rows == 0 || val_rows == 0 {
            let dropped = counts.unanswered + if overlong == Overlong::Drop { counts.overlong } else { 0 };
            let (all, what) = if pairs { (count * each, "answers") } else { (count, "examples") };
            let left = match train_rows {
                0 => "and none is left to train on or to hold out; use a larger --seq or more data",
                _ => {
                    "and of the others none is held out; use a larger --seq, more data, or a larger val_fraction in a recipe"
                }
            };
            return Err(Error::Invalid(format!(
                "of {all} {what} {dropped} were left out, as too long for {seq} tokens or without an answer within them, {left}"
            )));
        }
        (counts.rows, counts.tokens) = (train_rows + val_rows, train_tokens + val_tokens);
        let kind = Kind::Documents { segments, train, val, pairs };
        let padded = !matches!(layout, RowLayout::Packed(_));
        Ok(Rows { shard, seq, seed, kind, padded, train: train_rows, val: val_rows, train_tokens, val_tokens, counts })
    }

    /// Rows that stay together: those of a pair.
    pub fn each(&self) -> u64 {
        if matches!(self.kind, Kind::Documents { pairs: true, .. }) { 2 } else { 1 }
    }

    /// Whether a row holds one document, however short.
    pub fn is_padded(&self) -> bool {
        self.padded
    }

    /// Tokens of row `number` before it is filled up; of a pair those of the longer one.
    pub fn used(&self, number: u64) -> usize {
        match &self.kind {
            Kind::Documents { train, .. } if self.padded => {
                let (unit, bins) = (number / self.each(), train.rows());
                self.used_in(train, permute(unit % bins, bins, self.seed, unit / bins))
            }
            _ => self.seq,
        }
    }

    /// The same of a held-out row.
    pub fn val_used(&self, number: u64) -> usize {
        match &self.kind {
            Kind::Documents { val, .. } if self.padded => self.used_in(val, number % self.val / self.each()),
            _ => self.seq,
        }
    }

    fn used_in(&self, bins: &Bins, bin: u64) -> usize {
        let Kind::Documents { segments, .. } = &self.kind else { return self.seq };
        let item = bins.row(bin)[0] as usize;
        segments[item..][..self.each() as usize].iter().map(|segment| segment.slots()).max().unwrap_or(self.seq)
    }

    /// Adds to `counts[n]` the rows of up to [`GRAIN`]·n tokens, held out or not.
    pub fn count_used(&self, counts: &mut [u64]) {
        let Kind::Documents { train, val, .. } = &self.kind else { return };
        for bins in [train, val] {
            (0..bins.rows()).for_each(|bin| counts[self.used_in(bins, bin).div_ceil(GRAIN)] += self.each());
        }
    }

    /// Fills row `number` of all epochs, one after another, each in an order of its own.
    ///
    /// # Errors
    /// As [`Shard::read`].
    pub fn fill(&self, number: u64, row: Row<'_>) -> Result<()> {
        match &self.kind {
            Kind::Windows => self.window(self.window_start(number), row),
            Kind::Documents { train, pairs, .. } => {
                let (each, bins) = (if *pairs { 2 } else { 1 }, train.rows());
                let unit = number / each;
                let bin = permute(unit % bins, bins, self.seed, unit / bins);
                self.bin(train, bin, number % each, row)
            }
        }
    }

    /// Fills held-out row `number`, which counts on from the first after the last.
    ///
    /// # Errors
    /// As [`Shard::read`].
    pub fn fill_val(&self, number: u64, row: Row<'_>) -> Result<()> {
        let number = number % self.val;
        match &self.kind {
            Kind::Windows => self.window(self.train_tokens + number * self.seq as u64, row),
            Kind::Documents { val, pairs, .. } => {
                let each = if *pairs { 2 } else { 1 };
                self.bin(val, number / each, number % each, row)
            }
        }
    }

    /// The offset in the shard where window `number` begins.
    pub(super) fn window_start(&self, number: u64) -> u64 {
        let (epoch, index) = (number / self.train, number % self.train);
        let slack = self.train_tokens - 1 - self.train * self.seq as u64;
        let offset = Rng::new(self.seed ^ OFFSET_STREAM, epoch).below(slack as usize + 1) as u64;
        offset + permute(index, self.train, self.seed, epoch) * self.seq as u64
    }

    fn window(&self, at: u64, row: Row<'_>) -> Result<()> {
        self.shard.read(at, row.tokens)?;
        self.shard.read(at + 1, row.targets)?;
        row.starts.fill(0);
        Ok(())
    }

    /// The documents of a bin, one after another; then nothing, as a document of its own.
    fn bin(&self, bins: &Bins, bin: u64, side: u64, row: Row<'_>) -> Result<()> {
        let Kind::Documents { segments, .. } = &self.kind else { unreachable!("bins are of documents") };
        let mut at = 0;
        for &item in bins.row(bin) {
            let segment = segments[item as usize + side as usize];
            let end = at + segment.slots();
            self.shard.read(segment.at, &mut row.tokens[at..end])?;
            self.shard.read_marked(segment.at + 1, &mut row.targets[at..end])?;
            row.targets[at..end].iter_mut().filter(|t| **t & MASKED != 0).for_each(|t| *t = IGNORE);
            row.starts[at..end].fill(at as u32);
            at = end;
        }
        row.tokens[at..].fill(0);
        row.targets[at..].fill(IGNORE);
        row.starts[at..].fill(at as u32);
        Ok(())
    }
}

/// Refuses more segments than numbers of 32 bits tell apart.
fn numbered(segments: usize) -> Result<()> {
    match u32::try_from(segments) {
        Ok(_) => Ok(()),
        Err(_) => Err(Error::Invalid(format!(
            "there are more than {} documents, or parts of them, to be packed or filled up, and no more are told apart; give \
             a part of the data, or text to be read in windows",
            u32::MAX
        ))),
    }
}

/// A document's segments of at most `seq` + 1 tokens, those left out that predict nothing.
fn cut(
    shard: &Shard,
    document: Range<u64>,
    seq: usize,
    overlong: Overlong,
    into: &mut Vec<Segment>,
    counts: &mut RowCounts,
) -> Result<()> {
    let (len, most) = (document.end - document.start, seq as u64 + 1);
    counts.overlong += u64::from(len > most);
    let parts = match overlong {
        _ if len <= most => 1,
        Overlong::Truncate => 1,
        Overlong::Drop => 0,
        Overlong::Split => (len - 1).div_ceil(seq as u64),
    };
    for part in 0..parts {
        let at = document.start + part * seq as u64;
        let segment = Segment { at, len: (document.end - at).min(most) as u32 };
        if segment.len >= 2 && (len <= most || predicts(shard, segment)?) {
            into.push(segment);
        } else {
            counts.unanswered += 1;
        }
    }
    Ok(())
}

/// Whether any token of a segment is to be predicted.
fn predicts(shard: &Shard, segment: Segment) -> Result<bool> {
    if !shard.is_marked() {
        return Ok(true);
    }
    let mut tokens = vec![0; segment.slots()];
    shard.read_marked(segment.at + 1, &mut tokens)?;
    Ok(tokens.iter().any(|token| token & MASKED == 0))
}

/// Where `index` of 0..n goes in the permutation of this seed and epoch: a Feistel network on the next even number of bits,
/// walked until it lands below n (Black and Rogaway, 2002, "cycle walking"), so no table is kept for any n.
pub(super) fn permute(index: u64, n: u64, seed: u64, epoch: u64) -> u64 {
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
