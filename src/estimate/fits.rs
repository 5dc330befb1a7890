//! The largest batch and the longest sequence that fit a number of bytes, found by plans and not by rules of thumb.

use super::Job;
use crate::base::{Bytes, Limits};
use crate::error::{Error, Result};
use serde::Serialize;

/// Most sequences that are tried, and most tokens of one.
const MOST: usize = 1 << 20;
/// Sequences are tried in steps of this many tokens.
const TOKENS: usize = 64;

/// With recomputation numbers are looked for until the next that was tried is not a sixteenth larger: each plan takes
/// seconds there.
const FINE: usize = 16;

/// What fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Fits {
    /// Bytes that were allowed.
    pub memory: u64,
    /// The most sequences of the asked length, of all ranks of the mesh, every activation kept; 0 if not even one fits on each.
    pub batch: usize,
    /// The most tokens of the asked number of sequences, in steps of 64, or of as many as ranks share evenly, every activation kept;
    /// 0 if not even so many fit.
    pub seq: usize,
    /// The model's context, where sequences are as long as that has room for and memory would hold longer ones.
    pub context: Option<usize>,
    /// Sequences and tokens that fit where activations are computed again, to a sixteenth; where that was asked for.
    pub recomputed: Option<(usize, usize)>,
}

impl Fits {
    /// The largest batch at the job's sequence, and the longest sequence at its batch, that take at most `memory` bytes,
    /// validation with them; with `again`, also where activations are computed again.
    ///
    /// # Errors
    /// As [`Job::plans`].
    pub fn find(job: &Job, limits: &Limits, memory: Bytes, again: bool) -> Result<Fits> {
        // Ranks share a sequence in equal parts, two each.
        let parts = if job.recipe.mesh.sequence > 1 { 2 * job.recipe.mesh.sequence } else { 1 };
        let tokens =
            (TOKENS..).step_by(TOKENS).find(|tokens| tokens.is_multiple_of(parts)).expect("there is a common multiple");
        let longest = job.config.max_context().div_ceil(tokens).min(MOST / tokens);
        // Ranks share a batch in equal parts.
        let ranks = job.recipe.mesh.data;
        let by_batch = |memory| move |n: usize| job.sized(n * ranks, job.recipe.seq, memory).bytes(limits);
        let by_seq = |memory| move |n: usize| job.sized(job.recipe.batch, n * tokens, memory).bytes(limits);
        let batch = largest(MOST, 0, memory, usize::MAX, &by_batch(None))?;
        let seq = largest(longest, 0, memory, usize::MAX, &by_seq(None))?;
        let most = job.config.max_context() / parts * parts;
        let mut fits = Fits {
            memory: memory.0,
            batch: batch * ranks,
            seq: (seq * tokens).min(most),
            context: None,
            recomputed: None,
        };
        if again {
            let batch = largest(MOST, batch, memory, FINE, &by_batch(Some(memory)))?;
            let seq = largest(longest, seq, memory, FINE, &by_seq(Some(memory)))?;
            fits.recomputed = Some((batch * ranks, (seq * tokens).min(most)));
        }
        fits.context = (seq == longest && longest < MOST / tokens).then_some(most);
        Ok(fits)
    }
}

/// The largest number up to `most` of which `bytes` is at most `memory`; `fits` does. Bytes grow with the number, and
/// nearly by a straight line, so that few numbers are tried. It is enough to be right to one part in `fine`.
fn largest(
    most: usize,
    fits: usize,
    Bytes(memory): Bytes,
    fine: usize,
    bytes: &dyn Fn(usize) -> Result<u64>,
) -> Result<usize> {
    let (mut low, mut high) = (fits, most + 1);
    // What is known of the line: a number and its bytes, twice.
    let mut known: Vec<(usize, u64)> = Vec::new();
    let (mut tries, mut is_line) = (0, true);
    let mut next = (low + 1).min(most);
    while low + 1 + low / fine < high {
        match bytes(next) {
            Ok(bytes) => {
                known.push((next, bytes));
                *if bytes <= memory { &mut low } else { &mut high } = next;
            }
            // Too large for a buffer, or to be counted: where that begins, the line does not say.
            Err(Error::Memory { .. } | Error::Invalid(_)) => (high, is_line) = (next, false),
            Err(e) => return Err(e),
        }
        tries += 1;
        let middle = low + (high - low) / 2;
        let line = known.len().checked_sub(2).map(|i| (known[i], known[i + 1]));
        let guess = match line {
            Some(((a, x), (b, y))) if x != y && a != b => {
                let slope = (y as f64 - x as f64) / (b as f64 - a as f64);
                (a as f64 + (memory as f64 - x as f64) / slope).floor().clamp(0.0, most as f64) as usize
            }
            // Where activations are computed again, a few times as much fits.
            _ => 2 * next,
        };
        // Where the line says nothing new, the middle does.
        next = match guess {
            _ if tries > 12 || !is_line => middle,
            guess if guess <= low => low + 1,
            guess if guess >= high => high - 1,
            guess => guess,
        };
    }
    Ok(low)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn what_no_buffer_holds_does_not_fit_and_is_soon_found() {
        let tried = Cell::new(0);
        for end in [1, 2, 131_072, MOST] {
            tried.set(0);
            let bytes = |n: usize| {
                tried.set(tried.get() + 1);
                if n < end { Ok(7 * n as u64) } else { Err(Error::Invalid("no buffer".into())) }
            };
            assert_eq!(largest(MOST, 0, Bytes(u64::MAX), usize::MAX, &bytes).unwrap(), end - 1);
            assert!(tried.get() < 60, "{} tries", tried.get());
        }
    }

    #[test]
    fn the_largest_is_found_and_nothing_beyond() {
        let tried = Cell::new(0);
        for (fixed, each, memory) in [(1000, 7, 1_000_000), (0, 1, 5), (10, 1000, 9), (5, 0, 5), (0, 3, 3 << 20)] {
            for wave in [0, 2] {
                let bytes = |n: usize| {
                    tried.set(tried.get() + 1);
                    Ok(fixed + each * n as u64 + wave * (n as u64 % 3))
                };
                tried.set(0);
                let found = largest(MOST, 0, Bytes(memory), usize::MAX, &bytes).unwrap();
                let fits = |n: usize| n == 0 || bytes(n).unwrap() <= memory;
                assert!(fits(found) && (found == MOST || !fits(found + 1)), "{fixed} {each} {memory}: {found}");
                assert!(tried.get() < 40, "{} tries", tried.get());
                let near = largest(MOST, 0, Bytes(memory), 16, &bytes).unwrap();
                assert!(fits(near) && near <= found && found <= near + near / 16 + 1, "{near} {found}");
            }
        }
    }
}
