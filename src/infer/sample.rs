//! Picks the next token from logits: temperature, top-k, top-p, or the most likely one.

use crate::base::Rng;
use crate::error::{Error, Result};

/// How to pick. The same seed and logits give the same tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 takes the most likely token.
    pub temperature: f32,
    /// Only this many most likely tokens; 0 for all.
    pub top_k: usize,
    /// Only the most likely tokens whose probabilities sum up to this (Holtzman et al., 2020); 1 for all.
    pub top_p: f32,
    /// Seed of the draws.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling { temperature: 0.8, top_k: 0, top_p: 0.95, seed: 0 }
    }
}

impl Sampling {
    /// The most likely token, always.
    pub fn greedy() -> Self {
        Sampling { temperature: 0.0, ..Sampling::default() }
    }

    /// # Errors
    /// If a value lies outside its range.
    pub fn check(&self) -> Result<()> {
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            let t = self.temperature;
            return Err(Error::Invalid(format!(
                "temperature {t} is not a number from 0 up; 0 takes the likeliest token"
            )));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(Error::Invalid(format!("top-p {} is not above 0 and at most 1", self.top_p)));
        }
        Ok(())
    }
}

/// Draws tokens one after the other.
#[derive(Debug)]
pub struct Sampler {
    sampling: Sampling,
    rng: Rng,
    order: Vec<u32>,
}

impl Sampler {
    /// A sampler at the start of its seed's draws.
    pub fn new(sampling: Sampling) -> Self {
        let rng = Rng::named(sampling.seed, "sampling");
        Sampler { sampling, rng, order: Vec::new() }
    }

    /// The next token from the logits of all tokens. Logits that are not numbers are never picked.
    ///
    /// # Errors
    /// If no logit is a number: the model is broken.
    pub fn pick(&mut self, logits: &[f32]) -> Result<u32> {
        self.order.clear();
        self.order.extend((0..logits.len() as u32).filter(|&i| logits[i as usize] > f32::NEG_INFINITY));
        let logit = |i: &u32| logits[*i as usize];
        if self.order.is_empty() {
            return Err(Error::Device("the model gave no finite logit; its weights may be damaged".into()));
        }
        // Ties go to the lower id, so that the order is total.
        self.order.sort_unstable_by(|a, b| logit(b).total_cmp(&logit(a)).then(a.cmp(b)));
        if self.sampling.temperature == 0.0 {
            return Ok(self.order[0]);
        }
        if self.sampling.top_k > 0 {
            self.order.truncate(self.sampling.top_k);
        }
        let top = f64::from(logit(&self.order[0]));
        let weight = |i: &u32| ((f64::from(logit(i)) - top) / f64::from(self.sampling.temperature)).exp();
        let total: f64 = self.order.iter().map(weight).sum();
        let mut kept = 0.0;
        let mut count = 0;
        for i in &self.order {
            kept += weight(i);
            count += 1;
            if kept >= f64::from(self.sampling.top_p) * total {
                break;
            }
        }
        let mut left = self.rng.uniform() * kept;
        for i in &self.order[..count] {
            left -= weight(i);
            if left < 0.0 {
                return Ok(*i);
            }
        }
        Ok(self.order[count - 1])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frequencies(sampling: Sampling, logits: &[f32]) -> Vec<usize> {
        let mut sampler = Sampler::new(sampling);
        let mut counts = vec![0; logits.len()];
        for _ in 0..2000 {
            counts[sampler.pick(logits).unwrap() as usize] += 1;
        }
        counts
    }

    #[test]
    fn greedy_takes_the_first_of_equals() {
        assert_eq!(Sampler::new(Sampling::greedy()).pick(&[0.0, 2.0, 2.0, f32::NAN]).unwrap(), 1);
    }

    #[test]
    fn top_k_and_top_p_cut_the_tail() {
        let logits = [3.0, 2.0, 1.0, 0.0];
        let all = Sampling { temperature: 1.0, top_p: 1.0, ..Sampling::default() };
        assert!(frequencies(all.clone(), &logits).iter().all(|&n| n > 0));
        assert_eq!(frequencies(Sampling { top_k: 2, ..all.clone() }, &logits)[2..], [0, 0]);
        // softmax gives 0.64, 0.24, 0.09, 0.03: two tokens reach 0.8.
        assert_eq!(frequencies(Sampling { top_p: 0.8, ..all }, &logits)[2..], [0, 0]);
    }

    #[test]
    fn a_seed_repeats() {
        let draw = |seed| frequencies(Sampling { seed, ..Sampling::default() }, &[1.0, 1.0, 1.0]);
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }

    #[test]
    fn broken_logits_are_said() {
        assert!(Sampler::new(Sampling::default()).pick(&[f32::NAN]).is_err());
    }
}
