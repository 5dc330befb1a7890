//! How tokens are picked: the settings, their order, and what they may be.

use crate::error::{Error, Result};
use std::collections::BTreeMap;

/// How to pick the tokens of one text. The same settings and logits give the same tokens.
///
/// They apply in this order: biases; penalties (repetition, then frequency and presence); temperature; top-k; top-p, of
/// what top-k left; min-p; the draw.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 takes the likeliest token.
    pub temperature: f32,
    /// Only this many likeliest tokens; 0 for all.
    pub top_k: usize,
    /// Only the likeliest tokens whose probabilities sum up to this (Holtzman et al., 2020); 1 for all.
    pub top_p: f32,
    /// Only tokens whose probability is at least this share of the likeliest one's (Nguyen et al., 2024); 0 for all.
    pub min_p: f32,
    /// Divides the positive logits of tokens that occurred, in the prompt or after it, and multiplies negative ones
    /// (Keskar et al., 2019; `transformers`); 1 for none.
    pub repetition_penalty: f32,
    /// Taken off the logits of tokens that were drawn (OpenAI); 0 for none.
    pub presence_penalty: f32,
    /// Taken off the logits of tokens as often as they were drawn (OpenAI); 0 for none.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens.
    pub logit_bias: BTreeMap<u32, f32>,
    /// Seed of the draws.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling {
            temperature: 0.8,
            top_k: 0,
            top_p: 0.95,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: BTreeMap::new(),
            seed: 0,
        }
    }
}

impl Sampling {
    /// The likeliest token, always.
    pub fn greedy() -> Self {
        Sampling { temperature: 0.0, ..Sampling::default() }
    }

    /// # Errors
    /// If a value lies outside its range.
    pub fn check(&self) -> Result<()> {
        let fail = |message: String| Err(Error::Invalid(message));
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            let t = self.temperature;
            return fail(format!("temperature {t} is not a number from 0 up; 0 takes the likeliest token"));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return fail(format!("top-p {} is not above 0 and at most 1", self.top_p));
        }
        if !(0.0..=1.0).contains(&self.min_p) {
            return fail(format!("min-p {} is not between 0 and 1", self.min_p));
        }
        if !(self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite()) {
            return fail(format!("repetition penalty {} is not a number above 0; 1 is none", self.repetition_penalty));
        }
        for (name, value) in [("presence", self.presence_penalty), ("frequency", self.frequency_penalty)] {
            if !value.is_finite() {
                return fail(format!("{name} penalty {value} is not a number"));
            }
        }
        match self.logit_bias.iter().find(|(_, bias)| !bias.is_finite()) {
            Some((id, bias)) => fail(format!("the bias of token {id} is {bias}, which is no finite number")),
            None => Ok(()),
        }
    }

    /// The same for a model of so many tokens.
    ///
    /// # Errors
    /// As [`Sampling::check`], or if a token with a bias is not among them.
    pub fn check_for(&self, vocabulary: usize) -> Result<()> {
        self.check()?;
        match self.logit_bias.keys().find(|&&id| id as usize >= vocabulary) {
            Some(id) => Err(Error::Invalid(format!(
                "a bias for token {id}: the model has {vocabulary} tokens, 0 to {}",
                vocabulary.saturating_sub(1)
            ))),
            None => Ok(()),
        }
    }

    /// True where it matters which tokens occurred, and how often.
    pub(super) fn counts(&self) -> bool {
        let penalties = [self.repetition_penalty - 1.0, self.presence_penalty, self.frequency_penalty];
        penalties.iter().any(|&p| p != 0.0)
    }

    /// True where logits are changed one by one before tokens are compared.
    pub(super) fn changes_logits(&self) -> bool {
        self.counts() || !self.logit_bias.is_empty()
    }

    /// See [`super::Sampler::needs`].
    pub(super) fn needs(&self) -> Option<usize> {
        match self.top_k {
            _ if self.changes_logits() => None,
            _ if self.temperature == 0.0 => Some(1),
            0 => None,
            k => Some(k),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_outside_of_their_range_are_refused() {
        let base = Sampling::default;
        for (sampling, message) in [
            (Sampling { temperature: -1.0, ..base() }, "temperature -1 is not a number from 0 up"),
            (Sampling { temperature: f32::NAN, ..base() }, "temperature NaN is not a number from 0 up"),
            (Sampling { top_p: 0.0, ..base() }, "top-p 0 is not above 0 and at most 1"),
            (Sampling { min_p: 1.5, ..base() }, "min-p 1.5 is not between 0 and 1"),
            (Sampling { repetition_penalty: 0.0, ..base() }, "repetition penalty 0 is not a number above 0; 1 is none"),
            (Sampling { presence_penalty: f32::INFINITY, ..base() }, "presence penalty inf is not a number"),
            (Sampling { frequency_penalty: f32::NAN, ..base() }, "frequency penalty NaN is not a number"),
            (Sampling { logit_bias: [(7, f32::NAN)].into(), ..base() }, "the bias of token 7 is NaN"),
            (
                Sampling { logit_bias: [(7, f32::INFINITY)].into(), ..base() },
                "token 7 is inf, which is no finite number",
            ),
        ] {
            let said = sampling.check().unwrap_err().to_string();
            assert!(said.contains(message), "{said}");
        }
        base().check().unwrap();
        let biased = Sampling { logit_bias: [(7, 1.0)].into(), ..base() };
        biased.check_for(8).unwrap();
        let said = biased.check_for(7).unwrap_err().to_string();
        assert!(said.contains("token 7: the model has 7 tokens, 0 to 6"), "{said}");
        Sampling::greedy().check().unwrap();
    }
}
