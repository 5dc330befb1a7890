//! The learning rate over time: linear warm-up, then half a cosine (Loshchilov and Hutter, 2017).

use std::f64::consts::PI;

/// Learning rate by step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// The highest rate, reached in the last step of the warm-up.
    pub lr: f64,
    /// The rate that the cosine falls to.
    pub min_lr: f64,
    /// Steps of the warm-up.
    pub warmup: u64,
    /// Steps in all. From here on the rate is `min_lr`.
    pub total: u64,
}

impl Schedule {
    /// The rate of `step`, the first being 0: lr·(step+1)/warmup while step < warmup, then
    /// min + (lr - min)/2 · (1 + cos(π·(step - warmup)/(total - warmup))).
    pub fn rate(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.lr * (step + 1) as f64 / self.warmup as f64;
        }
        if step >= self.total {
            return self.min_lr;
        }
        let progress = (step - self.warmup) as f64 / (self.total - self.warmup) as f64;
        self.min_lr + 0.5 * (self.lr - self.min_lr) * (1.0 + (PI * progress).cos())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rises_then_falls() {
        let s = Schedule { lr: 1e-2, min_lr: 1e-3, warmup: 3, total: 11 };
        let rates: Vec<f64> = (0..13).map(|step| s.rate(step)).collect();
        let cosine = |k: f64| 1e-3 + 0.5 * 9e-3 * (1.0 + (PI * k / 8.0).cos());
        let expected = [
            1e-2 / 3.0,
            2e-2 / 3.0,
            1e-2,
            1e-2,
            cosine(1.0),
            cosine(2.0),
            cosine(3.0),
            5.5e-3,
            cosine(5.0),
            cosine(6.0),
            cosine(7.0),
            1e-3,
            1e-3,
        ];
        for (step, (rate, expected)) in rates.iter().zip(expected).enumerate() {
            assert!((rate - expected).abs() < 1e-15, "step {step}: {rate}, not {expected}");
        }
    }

    #[test]
    fn degenerate_spans_stay_finite() {
        for (warmup, total) in [(0, 0), (5, 5), (10, 5), (0, 1)] {
            let s = Schedule { lr: 1.0, min_lr: 0.1, warmup, total };
            assert!((0..20).all(|step| s.rate(step).is_finite() && s.rate(step) > 0.0));
        }
    }
}
