//! How fast each pair of a head turns: the rotary frequencies with what stretches them to longer texts, in f64, by the
//! formulas of `transformers`. Legend: R turned elements of a head, S positions.

use serde::Serialize;
use std::f64::consts::TAU;

/// The rotary embedding of a model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f64,
    /// R: elements of a head that turn, from its first on; even. The others stay.
    pub width: usize,
    /// What stretches it.
    pub scaling: RopeScaling,
}

/// What stretches rotary positions to texts longer than those of pre-training.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RopeScaling {
    /// Nothing.
    Default,
    /// Positions divided by a factor (Chen et al., 2023).
    Linear {
        /// The factor.
        factor: f64,
    },
    /// A larger base for texts longer than `max_position_embeddings`, none for shorter ones.
    Dynamic {
        /// How much longer.
        factor: f64,
    },
    /// Llama 3.1: slow pairs are divided, fast ones stay, those between are blended.
    Llama3 {
        /// Divisor of slow pairs.
        factor: f64,
        /// Pairs that turn fewer times than this within the original context are slow.
        low: f64,
        /// Pairs that turn more often are fast.
        high: f64,
        /// The context of pre-training.
        original: usize,
    },
    /// YaRN (Peng et al., 2023).
    Yarn {
        /// Divisor of slow pairs.
        factor: f64,
        /// The context of pre-training.
        original: usize,
        /// Pairs that turn more often than this within the original context stay.
        fast: f64,
        /// Pairs that turn fewer times are divided.
        slow: f64,
        /// True where the ramp between the two begins and ends at whole pairs.
        truncate: bool,
        /// Scales queries and keys.
        attention: f64,
    },
    /// LongRoPE (Ding et al., 2024): a divisor for each pair. With two equal lists this is any list of divisors, such as
    /// GGUF's `rope_freqs.weight`.
    Long {
        /// R/2 divisors for texts up to the original context.
        short: Vec<f64>,
        /// R/2 divisors for longer ones.
        long: Vec<f64>,
        /// The context of pre-training.
        original: usize,
        /// Scales queries and keys.
        attention: f64,
    },
}

/// What a table of angles is made of.
#[derive(Debug, Clone, PartialEq)]
pub struct Frequencies {
    /// R/2 angles of one position, in radians.
    pub inverse: Vec<f64>,
    /// Factor of every cosine and sine.
    pub attention: f64,
}

impl RopeConfig {
    /// The frequencies for texts planned to have up to `planned` tokens, of a model for `trained`
    /// (`max_position_embeddings`). Where they depend on the length of the text, they are those that `transformers` takes
    /// for a text of `planned` tokens: a plan has one table, so that cached keys stay true.
    pub fn frequencies(&self, planned: usize, trained: usize) -> Frequencies {
        let plain = |theta: f64| -> Vec<f64> {
            (0..self.width / 2).map(|i| theta.powf(-2.0 * i as f64 / self.width as f64)).collect()
        };
        let inverse = plain(self.theta);
        let unscaled = |inverse| Frequencies { inverse, attention: 1.0 };
        match &self.scaling {
            RopeScaling::Default => unscaled(inverse),
            RopeScaling::Linear { factor } => unscaled(inverse.iter().map(|f| f / factor).collect()),
            RopeScaling::Dynamic { factor } => unscaled(plain(self.stretched(*factor, planned, trained))),
            &RopeScaling::Llama3 { factor, low, high, original } => {
                let scale = |f: f64| {
                    let turns = original as f64 * f / TAU;
                    let smooth = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                    (1.0 - smooth) * f / factor + smooth * f
                };
                unscaled(inverse.into_iter().map(scale).collect())
            }
            &RopeScaling::Yarn { factor, original, fast, slow, truncate, attention } => {
                let ramp = self.ramp(original as f64, fast, slow, truncate);
                let blend = |(f, ramp): (f64, f64)| f / factor * ramp + f * (1.0 - ramp);
                Frequencies { inverse: inverse.into_iter().zip(ramp).map(blend).collect(), attention }
            }
            RopeScaling::Long { short, long, original, attention } => {
                let divisors = if planned > *original { long } else { short };
                let inverse = inverse.iter().zip(divisors).map(|(f, d)| f / d).collect();
                Frequencies { inverse, attention: *attention }
            }
        }
    }

    /// The base that texts of up to `planned` tokens have with [`RopeScaling::Dynamic`].
    fn stretched(&self, factor: f64, planned: usize, trained: usize) -> f64 {
        let (length, r) = (planned.max(trained) as f64, self.width as f64);
        let stretch = factor * length / trained as f64 - (factor - 1.0);
        // With one pair there is nothing to stretch: its frequency is 1 whatever the base.
        let power = if self.width > 2 { r / (r - 2.0) } else { 1.0 };
        self.theta * stretch.powf(power)
    }

    /// What gives [`RopeConfig::frequencies`] of texts of `planned` tokens for any text.
    pub fn turned_for(&self, planned: usize, trained: usize) -> RopeConfig {
        match &self.scaling {
            &RopeScaling::Dynamic { factor } => {
                let theta = self.stretched(factor, planned, trained);
                RopeConfig { theta, scaling: RopeScaling::Default, ..self.clone() }
            }
            RopeScaling::Long { short, long, original, attention } => {
                let all = if planned > *original { long } else { short };
                let (short, long, original, attention) = (all.clone(), all.clone(), *original, *attention);
                RopeConfig { scaling: RopeScaling::Long { short, long, original, attention }, ..self.clone() }
            }
            _ => self.clone(),
        }
    }

    /// YaRN's share of division for every pair, from 0 (turns often: stays) to 1.
    fn ramp(&self, original: f64, fast: f64, slow: f64, truncate: bool) -> impl Iterator<Item = f64> {
        // The pair that turns `turns` times within the original context.
        let pair = |turns: f64| self.width as f64 * (original / (turns * TAU)).ln() / (2.0 * self.theta.ln());
        let (mut low, mut high) = (pair(fast), pair(slow));
        if truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(self.width as f64 - 1.0));
        if low == high {
            high += 0.001;
        }
        (0..self.width / 2).map(move |i| ((i as f64 - low) / (high - low)).clamp(0.0, 1.0))
    }

    /// Tokens that the model is meant for: more than `trained` where scaling goes beyond it.
    pub fn max_context(&self, trained: usize) -> usize {
        match self.scaling {
            RopeScaling::Linear { factor } | RopeScaling::Dynamic { factor } => (trained as f64 * factor) as usize,
            RopeScaling::Yarn { factor, original, .. } => trained.max((original as f64 * factor) as usize),
            _ => trained,
        }
    }
}

/// The `partial_rotary_factor` by which `turned` of `width` elements turn: whoever reads it multiplies and drops what is
/// behind the point, so the quotient's own rounding must not fall below it.
pub fn rotary_share(turned: u64, width: u64) -> f64 {
    let share = turned as f64 / width as f64;
    if share * (width as f64) < turned as f64 { share.next_up() } else { share }
}

#[cfg(test)]
#[path = "rope_tests.rs"]
mod tests;
