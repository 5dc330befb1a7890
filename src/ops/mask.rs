//! Which keys a query sees, and what their distance costs.

use crate::graph::Kernel;
use std::ops::Range;

/// Which keys a query sees, and what their distance costs. A query stands at its position p, which is that of a key; one
/// beyond the last of S keys counts as standing at that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mask {
    /// A query sees at most this many keys, itself among them: p - window < j <= p (Beltagy et al., 2020, as in
    /// Mistral). `None`: all up to itself.
    pub window: Option<usize>,
    /// Adds -slope(h)·(p - j) to the scaled score (Press et al., 2022). The slopes of H heads are 2^(-8i/n) for
    /// i = 1 ..= n with n the largest power of two up to H, then 2^(-4i/n) for i = 1, 3, 5, ...
    pub alibi: bool,
}

impl Mask {
    /// The keys that a query at `p` sees, of S.
    pub(super) fn keys(&self, p: usize, s: usize) -> Range<usize> {
        let end = (p + 1).min(s);
        self.window.map_or(0, |w| end.saturating_sub(w))..end
    }

    /// ALiBi's slope of head `h` of `heads`; 0 without it.
    pub(super) fn slope(&self, h: usize, heads: usize) -> f64 {
        let n = power(heads);
        match h.checked_sub(n) {
            _ if !self.alibi => 0.0,
            None => (-8.0 * (h + 1) as f64 / n as f64).exp2(),
            Some(more) => (-4.0 * (2 * more + 1) as f64 / n as f64).exp2(),
        }
    }

    /// What is wrong with it.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.window == Some(0) { Err("a window of 0 keys sees nothing".into()) } else { Ok(()) }
    }

    /// Adds the header constants that `lib/query.wgsl` reads: none for a plain causal mask.
    pub(super) fn constants(&self, mut kernel: Kernel, heads: usize) -> Kernel {
        if let Some(window) = self.window {
            kernel = kernel.constant("WINDOW", window.min(1 << 30));
        }
        if self.alibi { kernel.constant("ALIBI", power(heads)) } else { kernel }
    }
}

/// The largest power of two up to `n`.
fn power(n: usize) -> usize {
    1 << n.ilog2()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_are_those_of_the_paper() {
        let alibi = Mask { alibi: true, window: None };
        let slopes = |heads: usize| (0..heads).map(|h| alibi.slope(h, heads)).collect::<Vec<_>>();
        assert_eq!(slopes(8), [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125, 0.00390625]);
        // Four of four heads, then every other one of eight heads.
        assert_eq!(slopes(6), [0.25, 0.0625, 0.015625, 0.00390625, 0.5, 0.125]);
        assert_eq!(Mask::default().slope(3, 8), 0.0);
    }

    #[test]
    fn a_window_moves_along() {
        let mask = Mask { window: Some(3), alibi: false };
        assert_eq!([0, 2, 5, 9].map(|p| mask.keys(p, 8)), [0..1, 0..3, 3..6, 5..8]);
        assert_eq!(Mask::default().keys(5, 8), 0..6);
        assert!(Mask { window: Some(0), alibi: false }.check().unwrap_err().contains("sees nothing"));
    }
}
