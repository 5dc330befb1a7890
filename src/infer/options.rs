//! What a generator is planned for, what it is asked, and how a text ends.

use super::Sampling;
use crate::base::{DType, TensorType};
use crate::error::{Error, Result};
use crate::model::ModelConfig;
use std::path::PathBuf;

/// What happens when a text fills the KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Overflow {
    /// The text ends, with [`Finish::ContextFull`]. A prompt that does not fit is refused.
    #[default]
    Stop,
    /// Of the text, the first token and the newest half of the context stay; they are fed again, and the text goes on.
    /// Of a prompt that does not fit, the same remains.
    Shift,
}

/// What a [`super::Generator`] is planned for. All runs are planned at once, and refused if they do not fit together; caches
/// and the run of single tokens are allocated at once, runs of more tokens when a text first needs them, and kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Tokens that each sequence can hold; at most what the model was made for.
    pub context: usize,
    /// Sequences at a time.
    pub batch: usize,
    /// Dtype of the KV cache: f32, f16 or q8_0.
    pub cache: DType,
    /// What happens when a sequence is full.
    pub overflow: Overflow,
    /// Where a [`crate::run::Tuner`] keeps what it measured ([`crate::run::Tuner::serving`]); without it what ships is taken.
    pub tuning: Option<PathBuf>,
}

impl From<usize> for Options {
    /// One sequence of this many tokens over a cache in f32.
    fn from(context: usize) -> Self {
        Options { context, batch: 1, cache: DType::F32, overflow: Overflow::Stop, tuning: None }
    }
}

impl Options {
    /// The same with what the model and common sense allow.
    pub(super) fn for_model(mut self, config: &ModelConfig) -> Self {
        self.context = self.context.clamp(1, config.max_context().max(1));
        self.batch = self.batch.max(1);
        self
    }

    /// Bytes of the KV cache of a model.
    pub fn cache_bytes(&self, config: &ModelConfig) -> u64 {
        let dims = [self.batch, self.context, config.num_key_value_heads, config.head_dim];
        let ty = TensorType { shape: dims.into(), dtype: self.cache };
        2 * config.num_hidden_layers as u64 * ty.bytes()
    }

    /// # Errors
    /// If a prompt is empty, holds a token that the model does not know, or is too long for the context where that does
    /// not shift.
    pub fn check_prompt(&self, prompt: &[u32], config: &ModelConfig) -> Result<()> {
        if prompt.is_empty() {
            return Err(Error::Invalid("the prompt is empty; give at least one token".into()));
        }
        config.check_tokens(prompt)?;
        let options = self.clone().for_model(config);
        match options.overflow {
            _ if prompt.len() <= options.context => Ok(()),
            Overflow::Shift if options.context > 1 => Ok(()),
            _ => Err(options.too_long(prompt.len(), config)),
        }
    }

    pub(super) fn too_long(&self, tokens: usize, config: &ModelConfig) -> Error {
        let (context, most) = (self.context, config.max_context());
        let raise = if context < most { format!(", raise --context (up to {most})") } else { String::new() };
        let shift = if self.overflow == Overflow::Stop { ", or give --context-full shift" } else { "" };
        Error::Invalid(format!(
            "the text has {tokens} tokens and the context holds {context}; shorten the prompt{raise}{shift}"
        ))
    }

    /// What stays of a text that is too long.
    pub(super) fn shifted(&self, text: &[u32]) -> Vec<u32> {
        let keep = (self.context / 2).min(text.len());
        let first = text.iter().take(keep.min(1));
        first.chain(&text[text.len() - keep.saturating_sub(1)..]).copied().collect()
    }
}

/// One text to continue.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// The text so far.
    pub prompt: Vec<u32>,
    /// Most tokens to add.
    pub count: usize,
    /// How they are picked.
    pub sampling: Sampling,
}

/// Why a text ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// The model said so.
    EndOfText,
    /// As many tokens as were asked for.
    Length,
    /// The KV cache is full.
    ContextFull,
    /// The receiver of the tokens wanted no more.
    Stopped,
}

/// What there is to hear of a text under way.
#[derive(Debug)]
pub enum News {
    /// Its next token; answered with whether more are wanted.
    Token(u32),
    /// It ended, could not be begun, or the model had no numbers for it.
    End(Result<Finish>),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_context_and_the_first_token_stay() {
        let text: Vec<u32> = (0..20).collect();
        let shifted = |context: usize, length: usize| Options::from(context).shifted(&text[..length]);
        assert_eq!(shifted(10, 10), [0, 6, 7, 8, 9]);
        assert_eq!(shifted(10, 20), [0, 16, 17, 18, 19]);
        assert_eq!(shifted(3, 3), [0]);
        assert!(shifted(1, 1).is_empty());
    }
}
