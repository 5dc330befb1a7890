//! Picks the next token from logits.

use super::Sampling;
use crate::base::Rng;
use crate::error::{Error, Result};
use std::collections::HashMap;

/// Tokens sorted at first where a probability decides how many are needed.
const FIRST: usize = 64;

/// Draws the tokens of one text, one after the other, as its [`Sampling`] says. What it draws is a function of the
/// settings, the logits and how many tokens it drew before; nothing else that the device computes changes it.
#[derive(Debug)]
pub struct Sampler {
    sampling: Sampling,
    rng: Rng,
    /// For each token of the text so far, how often it was drawn here; 0 for tokens of the prompt. Where nothing asks for it,
    /// nothing.
    counts: HashMap<u32, u32>,
    /// Candidates: logit after biases and penalties, and id.
    order: Vec<(f32, u32)>,
}

impl Sampler {
    /// A sampler at the start of its seed's draws, for a text that begins with `prompt`.
    pub fn new(sampling: Sampling, prompt: &[u32]) -> Self {
        let rng = Rng::named(sampling.seed, "sampling");
        let counts = prompt.iter().filter(|_| sampling.counts()).map(|&t| (t, 0)).collect();
        Sampler { sampling, rng, counts, order: Vec::new() }
    }

    /// The same with room for so many tokens to be drawn, so that counting them allocates nothing.
    pub(super) fn with_room(mut self, tokens: usize) -> Self {
        self.counts.reserve(if self.sampling.counts() { tokens } else { 0 });
        self
    }

    /// How many of the likeliest tokens are enough to draw from, where that is known before the logits are: the device
    /// then sends no more than these.
    pub fn needs(&self) -> Option<usize> {
        self.sampling.needs()
    }

    /// The next token from the logits of all tokens. Logits that are not numbers are never picked.
    ///
    /// # Errors
    /// If no logit is a number: the model is broken.
    pub fn pick(&mut self, logits: &[f32]) -> Result<u32> {
        let mut order = std::mem::take(&mut self.order);
        order.clear();
        order.extend(logits.iter().copied().zip(0..));
        if self.sampling.changes_logits() {
            self.change(&mut order);
        }
        let token = self.draw(&mut order);
        self.order = order;
        token
    }

    /// The same from the likeliest tokens alone, descending and at least as many as [`Sampler::needs`] says. Ids beyond
    /// all vocabularies are none.
    ///
    /// # Errors
    /// As [`Sampler::pick`].
    pub fn pick_of(&mut self, likeliest: &[(f32, u32)]) -> Result<u32> {
        let mut order = std::mem::take(&mut self.order);
        order.clear();
        order.extend(likeliest.iter().filter(|(_, id)| *id != u32::MAX));
        let token = self.draw(&mut order);
        self.order = order;
        token
    }

    /// Biases and penalties.
    fn change(&self, order: &mut [(f32, u32)]) {
        let s = &self.sampling;
        for (&id, &bias) in &s.logit_bias {
            if let Some((logit, _)) = order.get_mut(id as usize) {
                *logit += bias;
            }
        }
        for (&id, &count) in &self.counts {
            let Some((logit, _)) = order.get_mut(id as usize) else { continue };
            *logit = if *logit > 0.0 { *logit / s.repetition_penalty } else { *logit * s.repetition_penalty };
            if count > 0 {
                *logit -= s.frequency_penalty * count as f32 + s.presence_penalty;
            }
        }
    }

    fn draw(&mut self, order: &mut Vec<(f32, u32)>) -> Result<u32> {
        order.retain(|(logit, _)| *logit > f32::NEG_INFINITY && *logit < f32::INFINITY);
        let Some(&best) = order.iter().reduce(|a, b| if before(a, b).is_le() { a } else { b }) else {
            return Err(Error::NoNumber("the model gave no finite logit; its weights may be damaged".into()));
        };
        let token = if self.sampling.temperature == 0.0 { best.1 } else { self.draw_from(order, f64::from(best.0)) };
        if self.sampling.counts() {
            *self.counts.entry(token).or_default() += 1;
        }
        Ok(token)
    }

    /// Draws by temperature, top-k, top-p and min-p; `top` is the largest logit.
    fn draw_from(&mut self, order: &mut Vec<(f32, u32)>, top: f64) -> u32 {
        let s = &self.sampling;
        if s.top_k > 0 && s.top_k < order.len() {
            order.select_nth_unstable_by(s.top_k - 1, before);
            order.truncate(s.top_k);
        }
        let weight = |logit: f32| ((f64::from(logit) - top) / f64::from(s.temperature)).exp();
        let total: f64 = order.iter().map(|(logit, _)| weight(*logit)).sum();
        let wanted = f64::from(s.top_p) * total;
        // Few of many tokens hold most of the probability: only they are sorted.
        let (mut sorted, mut kept, mut count) = (0, 0.0, 0);
        while count < order.len() {
            if count == sorted {
                let more = (order.len() - sorted).min(FIRST.max(7 * sorted));
                if sorted + more < order.len() {
                    order[sorted..].select_nth_unstable_by(more, before);
                }
                order[sorted..sorted + more].sort_unstable_by(before);
                sorted += more;
            }
            let w = weight(order[count].0);
            // The likeliest token stays whatever the settings say.
            if count > 0 && (kept >= wanted || w < f64::from(s.min_p)) {
                break;
            }
            kept += w;
            count += 1;
        }
        let mut left = self.rng.uniform() * kept;
        for (logit, id) in &order[..count] {
            left -= weight(*logit);
            if left < 0.0 {
                return *id;
            }
        }
        order[count - 1].1
    }
}

/// Larger logits first; ties go to the lower id, so that the order is total.
fn before(a: &(f32, u32), b: &(f32, u32)) -> std::cmp::Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frequencies(sampling: Sampling, logits: &[f32]) -> Vec<usize> {
        let mut counts = vec![0; logits.len()];
        let mut sampler = Sampler::new(sampling, &[]);
        for _ in 0..2000 {
            sampler.counts.clear();
            counts[sampler.pick(logits).unwrap() as usize] += 1;
        }
        counts
    }

    fn all() -> Sampling {
        Sampling { temperature: 1.0, top_p: 1.0, top_k: 0, ..Sampling::default() }
    }

    fn greedy(sampling: Sampling, prompt: &[u32], logits: &[f32]) -> u32 {
        Sampler::new(Sampling { temperature: 0.0, ..sampling }, prompt).pick(logits).unwrap()
    }

    #[test]
    fn greedy_takes_the_first_of_equals() {
        assert_eq!(greedy(all(), &[], &[0.0, 2.0, 2.0, f32::NAN]), 1);
        assert_eq!(greedy(all(), &[], &[0.0, f32::INFINITY, f32::NEG_INFINITY]), 0);
    }

    #[test]
    fn the_tail_is_cut() {
        // softmax gives 0.64, 0.24, 0.09, 0.03; relative to the likeliest 1, 0.37, 0.14, 0.05.
        let logits = [3.0, 2.0, 1.0, 0.0];
        assert!(frequencies(all(), &logits).iter().all(|&n| n > 0));
        for (sampling, left) in [
            (Sampling { top_k: 2, ..all() }, 2),
            (Sampling { top_k: 9, ..all() }, 4),
            (Sampling { top_p: 0.8, ..all() }, 2),
            // Of the two that top-k leaves, the first alone holds 0.73.
            (Sampling { top_k: 2, top_p: 0.7, ..all() }, 1),
            (Sampling { min_p: 0.1, ..all() }, 3),
            (Sampling { min_p: 1.0, ..all() }, 1),
            // Twice the temperature: 1, 0.61, 0.37, 0.22.
            (Sampling { min_p: 0.3, temperature: 2.0, ..all() }, 3),
        ] {
            let counts = frequencies(sampling.clone(), &logits);
            assert_eq!(counts.iter().filter(|&&n| n > 0).count(), left, "{sampling:?}: {counts:?}");
        }
    }

    #[test]
    fn frequencies_are_the_softmax() {
        let logits = [0.0, 1.0, -1.0];
        let sum: f64 = logits.iter().map(|x| f64::from(*x).exp()).sum();
        for (n, x) in frequencies(all(), &logits).into_iter().zip(logits) {
            let p = f64::from(x).exp() / sum;
            // Four standard deviations of 2000 draws.
            assert!((n as f64 / 2000.0 - p).abs() < 4.0 * (p * (1.0 - p) / 2000.0).sqrt(), "{n} draws of {p}");
        }
    }

    /// What sorting everything gives, a part of the tokens being sorted or all.
    #[test]
    fn a_long_tail_is_cut_where_sorting_all_would_cut_it() {
        let mut rng = Rng::new(1, 1);
        let logits: Vec<f32> = (0..5000).map(|_| rng.normal() as f32).collect();
        for (top_p, flat) in [(0.02, 1.0), (0.5, 1.0), (0.97, 1.0), (0.3, 8.0)] {
            let sampling = Sampling { top_p, temperature: flat, ..all() };
            let mut order: Vec<(f32, u32)> = logits.iter().copied().zip(0..).collect();
            order.sort_by(before);
            let weight = |x: f32| (f64::from(x - order[0].0) / f64::from(flat)).exp();
            let total: f64 = order.iter().map(|x| weight(x.0)).sum();
            let mut kept = 0.0;
            let count = order
                .iter()
                .take_while(|x| {
                    let go = kept < f64::from(top_p) * total;
                    kept += weight(x.0);
                    go
                })
                .count();
            let mut sampler = Sampler::new(sampling, &[]);
            let allowed: Vec<u32> = order[..count].iter().map(|x| x.1).collect();
            for _ in 0..300 {
                assert!(allowed.contains(&sampler.pick(&logits).unwrap()), "top-p {top_p}");
            }
        }
    }

    #[test]
    fn penalties_and_biases_are_those_of_the_field() {
        let logits = [2.0, 1.5, -1.0, -1.2];
        let bias = |id, by| Sampling { logit_bias: [(id, by)].into(), ..all() };
        assert_eq!(greedy(bias(2, 3.5), &[], &logits), 2);
        assert_eq!(greedy(bias(0, -100.0), &[], &logits), 1);
        assert_eq!(greedy(bias(9, 100.0), &[], &logits), 0, "a token beyond the vocabulary");
        // transformers: positive logits are divided, negative ones multiplied; the prompt counts.
        let repetition = Sampling { repetition_penalty: 1.5, ..all() };
        assert_eq!(greedy(repetition.clone(), &[0], &logits), 1);
        assert_eq!(greedy(repetition, &[2], &[-3.0, -3.0, -1.0, -1.2]), 3);
        // OpenAI: what was drawn counts, the prompt does not.
        let presence = Sampling { presence_penalty: 0.6, temperature: 0.0, ..all() };
        let mut sampler = Sampler::new(presence, &[1]);
        assert_eq!([0; 3].map(|_| sampler.pick(&logits).unwrap()), [0, 1, 0]);
        let frequency = Sampling { frequency_penalty: 0.3, temperature: 0.0, ..all() };
        let mut sampler = Sampler::new(frequency, &[1]);
        assert_eq!([0; 5].map(|_| sampler.pick(&logits).unwrap()), [0, 0, 1, 0, 1]);
    }

    #[test]
    fn few_candidates_give_what_all_would() {
        let mut rng = Rng::new(5, 2);
        let logits: Vec<f32> = (0..300).map(|_| rng.normal() as f32).collect();
        let mut order: Vec<(f32, u32)> = logits.iter().copied().zip(0..).collect();
        order.sort_by(before);
        for sampling in [Sampling { top_k: 5, top_p: 0.9, seed: 3, ..all() }, Sampling::greedy()] {
            let (mut whole, mut few) = (Sampler::new(sampling.clone(), &[]), Sampler::new(sampling, &[]));
            let needs = few.needs().unwrap();
            for extra in 0..50 {
                assert_eq!(few.pick_of(&order[..needs + extra]).unwrap(), whole.pick(&logits).unwrap());
            }
        }
        assert_eq!(Sampler::new(all(), &[]).needs(), None);
        assert_eq!(Sampler::new(Sampling { top_k: 5, presence_penalty: 1.0, ..all() }, &[]).needs(), None);
    }

    #[test]
    fn a_seed_repeats() {
        let draw = |seed| frequencies(Sampling { seed, ..Sampling::default() }, &[1.0, 1.0, 1.0]);
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }

    #[test]
    fn broken_logits_are_said() {
        assert!(Sampler::new(Sampling::default(), &[]).pick(&[f32::NAN]).is_err());
    }
}
