//! A measured time: its median, and how far single measurements lie apart.

use crate::error::Result;
use crate::gpu::{Gpu, Submission, time};
use serde::{Deserialize, Serialize};

/// Seconds that something takes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    /// The middle one of all measurements.
    pub median: f64,
    /// The shortest.
    pub low: f64,
    /// The longest.
    pub high: f64,
}

impl Timing {
    /// Of one measurement or more.
    pub fn of(mut seconds: Vec<f64>) -> Timing {
        seconds.sort_by(f64::total_cmp);
        let at = |i: usize| seconds.get(i).copied().unwrap_or(f64::NAN);
        Timing { median: at(seconds.len() / 2), low: at(0), high: at(seconds.len().saturating_sub(1)) }
    }

    /// The same times, each by this factor.
    pub fn scaled(self, factor: f64) -> Timing {
        Timing { median: self.median * factor, low: self.low * factor, high: self.high * factor }
    }

    /// Of what `record` records: `runs` measurements, each the mean over as many repetitions as fill two milliseconds.
    pub(super) async fn measure(gpu: &Gpu, runs: usize, record: impl Fn(&mut Submission)) -> Result<Timing> {
        // The first run also pays for page faults and the driver's lazy work.
        let first = mean(gpu, 1, &record).await?;
        // What takes long is not waited for a second time only to learn how often to repeat it.
        let first = if first > 0.1 { first } else { first.min(mean(gpu, 1, &record).await?) };
        let mut seconds = Vec::new();
        for _ in 0..runs.max(1) {
            seconds.push(mean(gpu, repeats(first), &record).await?);
        }
        Ok(Timing::of(seconds))
    }
}

/// Mean seconds of `repeat` repetitions in one pass.
pub(super) async fn mean(gpu: &Gpu, repeat: usize, record: impl Fn(&mut Submission)) -> Result<f64> {
    let repeated = |s: &mut Submission| {
        (0..repeat).for_each(|_| record(s));
        Ok(())
    };
    time(gpu, repeated).await.map(|t| t / repeat as f64)
}

/// Runs that fill two milliseconds.
pub(super) fn repeats(seconds: f64) -> usize {
    (2e-3 / seconds.max(1e-6)).clamp(1.0, 1000.0) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_one_counts() {
        assert_eq!(Timing::of(vec![3.0, 1.0, 9.0]), Timing { median: 3.0, low: 1.0, high: 9.0 });
        assert_eq!(Timing::of(vec![2.0]).scaled(0.5), Timing { median: 1.0, low: 1.0, high: 1.0 });
        assert_eq!((repeats(1.0), repeats(1e-4), repeats(0.0)), (1, 20, 1000));
    }
}
