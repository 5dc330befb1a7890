//! How far a model's results may lie from exact ones: the bar of each operator, carried through the model.
//!
//! Operators are held to |y - r| <= c·ε·√K·rms(r) each, c = 16 (docs/numerics.md). What a model makes of such errors
//! depends on its depth, its weights and, under AdamW, on gradients near zero, so no formula in ε and K alone bounds its
//! results. They are drawn instead: the operators' f64 references compute the graph several times, every result of every
//! operator with a random error of standard deviation c/4·ε·√K·rms(r) (the largest of ten thousand normal errors lies
//! four of these away, so this is an engine whose operators all just pass). The draws give each element of each result
//! its own deviation σ, and the bars are those of an operator again: four σ and 2ε|r| for an element, the root mean
//! square of σ for the tensor. Nothing in them was fitted to what a device gives. Where the draws never move an element
//! (the gradients of tokens that do not occur), the device must give it exactly.

use super::golden::Numbers;
use super::interpret::Noise;
use danlu::base::{Rng, Tolerance};
use rayon::prelude::*;
use std::collections::BTreeMap;

const DRAWS: u64 = 12;

/// Deviations of every element, by tensor.
#[derive(Clone)]
pub struct Spread {
    /// The results without errors.
    pub exact: Numbers,
    deviations: BTreeMap<String, Vec<f64>>,
    /// The largest error met so far, as a share of its bar, and what it was.
    pub worst: (f64, String),
}

impl Spread {
    /// `run` computes the results by references, with errors if it is given any.
    pub fn new(run: impl Fn(Option<&mut Noise>) -> Numbers + Sync) -> Spread {
        let exact = run(None);
        let draw = |draw| run(Some(&mut Noise { size: Tolerance::f32(1).c / 4.0, rng: Rng::new(1, draw) }));
        let draws: Vec<Numbers> = (0..DRAWS).into_par_iter().map(draw).collect();
        let deviation = |name: &String, i: usize, exact: f64| {
            let squares = draws.iter().map(|draw| (draw[name][i] - exact).powi(2));
            (squares.sum::<f64>() / DRAWS as f64).sqrt()
        };
        let of = |(name, exact): (&String, &Vec<f64>)| {
            (name.clone(), exact.iter().enumerate().map(|(i, &x)| deviation(name, i, x)).collect())
        };
        let deviations = exact.iter().map(of).collect();
        Spread { exact, deviations, worst: (0.0, String::new()) }
    }

    /// The deviation of each element of a result.
    pub fn deviations(&self, name: &str) -> &[f64] {
        &self.deviations[name]
    }

    /// Holds a result to its bars around `expected`, which is itself known within `known`.
    pub fn check(&mut self, name: &str, got: &[f64], expected: &[f64], known: f64) {
        assert_eq!(got.len(), self.deviations[name].len(), "{name}");
        self.check_from(name, 0, got, expected, known);
    }

    /// The same for the elements from `first` on.
    pub fn check_from(&mut self, name: &str, first: usize, got: &[f64], expected: &[f64], known: f64) {
        assert_eq!(got.len(), expected.len(), "{name}");
        let deviations = &self.deviations[name][first..first + got.len()];
        let (mut squares, mut allowed_squares) = (0.0, 0.0);
        for (i, ((y, r), deviation)) in got.iter().zip(expected).zip(deviations).enumerate() {
            let (error, bar) = ((y - r).abs(), 4.0 * deviation + 2.0 * f64::from(f32::EPSILON) * r.abs() + known);
            // A result that is no number must not pass.
            assert!(error <= bar, "{name}[{}]: {y}, expected {r}; {error:.3e} apart, the bar is {bar:.3e}", first + i);
            if error > self.worst.0 * bar {
                self.worst = (error / bar, format!("{name}[{}]: {error:.2e} where the bar is {bar:.2e}", first + i));
            }
            squares += error * error;
            allowed_squares += (deviation + known).powi(2);
        }
        let n = got.len() as f64;
        let (rms, bar) = ((squares / n).sqrt(), (allowed_squares / n).sqrt());
        assert!(rms <= bar, "{name}: root mean square error {rms:.3e}, the bar is {bar:.3e}");
        if rms > self.worst.0 * bar {
            self.worst = (rms / bar, format!("{name}: root mean square {rms:.2e} where the bar is {bar:.2e}"));
        }
    }
}
