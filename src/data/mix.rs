//! Rows of several sources in the proportion of their weights: which source a row is of, and which of that source's rows it
//! is, is a function of the seed and the row's number.

use super::rows::permute;
use crate::error::{Error, Result};

/// Rows after which every source has had exactly its share.
const PERIOD: u64 = 1000;
/// Seeds the order of sources, apart from that of rows.
const MIX: u64 = 0x6D69_7865;

/// The proportion.
#[derive(Debug, Clone)]
pub(super) struct Mix {
    /// For each source the end of its rows among those of a period.
    ends: Vec<u64>,
    seed: u64,
}

impl Mix {
    /// A mix by weights, each above 0; the least share is a thousandth.
    pub fn new(weights: &[f64], seed: u64) -> Result<Mix> {
        if weights.is_empty() || weights.len() as u64 > PERIOD / 2 {
            return Err(Error::Invalid(format!("{} sources of data: from 1 to {}", weights.len(), PERIOD / 2)));
        }
        if let Some(wrong) = weights.iter().find(|w| !(**w > 0.0 && w.is_finite())) {
            return Err(Error::Invalid(format!(
                "a weight of {wrong} for a source of data; it must be a number above 0"
            )));
        }
        let sum: f64 = weights.iter().sum();
        let exact: Vec<f64> = weights.iter().map(|w| w / sum * PERIOD as f64).collect();
        let mut counts: Vec<u64> = exact.iter().map(|e| (*e as u64).max(1)).collect();
        // What rounding left over goes where it is missed most, and what it took comes from where it is missed least.
        while counts.iter().sum::<u64>() != PERIOD {
            let missing = |i: &usize| exact[*i] - counts[*i] as f64;
            let order = |a: &usize, b: &usize| missing(a).total_cmp(&missing(b));
            if counts.iter().sum::<u64>() < PERIOD {
                let most = (0..counts.len()).max_by(order).expect("not empty");
                counts[most] += 1;
            } else {
                let least = (0..counts.len()).filter(|&i| counts[i] > 1).min_by(order).expect("more than a period");
                counts[least] -= 1;
            }
        }
        let ends = counts.iter().scan(0, |end, count| {
            *end += count;
            Some(*end)
        });
        Ok(Mix { ends: ends.collect(), seed })
    }

    /// The source of row `row`, and the number of rows of that source before it.
    pub fn place(&self, row: u64) -> (usize, u64) {
        self.place_by(row, self.seed)
    }

    /// The same for held-out rows, whatever the seed.
    pub fn held_out(&self, row: u64) -> (usize, u64) {
        self.place_by(row, 0)
    }

    fn place_by(&self, row: u64, seed: u64) -> (usize, u64) {
        if self.ends.len() == 1 {
            return (0, row);
        }
        let (period, at) = (row / PERIOD, row % PERIOD);
        let source = |i: u64| {
            let drawn = permute(i, PERIOD, seed ^ MIX, period);
            self.ends.partition_point(|end| *end <= drawn)
        };
        let own = source(at);
        let share = self.ends[own] - if own == 0 { 0 } else { self.ends[own - 1] };
        (own, period * share + (0..at).filter(|&i| source(i) == own).count() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_of_a_source_comes_once_and_in_proportion() {
        let mix = Mix::new(&[0.7, 0.2, 0.1], 3).unwrap();
        let mut seen = [0; 3];
        for row in 0..2 * PERIOD {
            let (source, number) = mix.place(row);
            assert_eq!(number, seen[source], "row {row}");
            seen[source] += 1;
        }
        assert_eq!(seen, [1400, 400, 200]);
        let first: Vec<usize> = (0..20).map(|row| mix.place(row).0).collect();
        assert!(
            first.contains(&1) && first.iter().filter(|&&s| s == 0).count() < 20,
            "mixed from the start: {first:?}"
        );
    }

    #[test]
    fn small_weights_have_a_share_and_impossible_ones_are_refused() {
        let counts = |weights: &[f64]| Mix::new(weights, 0).unwrap().ends;
        assert_eq!(counts(&[1e-9, 1.0, 1.0]), [1, 500, 1000]);
        assert_eq!(counts(&[1.0, 1.0, 1.0]), [333, 666, 1000]);
        assert!(Mix::new(&[], 0).is_err());
        for weight in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let error = Mix::new(&[1.0, weight], 0).unwrap_err().to_string();
            assert!(error.starts_with("a weight of ") && error.ends_with("it must be a number above 0"), "{error}");
        }
    }
}
