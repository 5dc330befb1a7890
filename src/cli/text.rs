//! What is said of texts: how fast they came.

use crate::base::count;
use crate::data::Tokenizer;
use crate::error::Error;
use crate::store::Checkpoint;
use std::time::Instant;

/// A model's tokenizer; what it has to say is told.
///
/// # Errors
/// Those of [`Tokenizer::of`].
pub fn tokenizer(checkpoint: &Checkpoint) -> Result<Tokenizer, Error> {
    let tokenizer = Tokenizer::of(checkpoint)?;
    tokenizer.notes().iter().for_each(|note| tell!("danlu: {note}"));
    Ok(tokenizer)
}

/// For flags: a number of things.
///
/// # Errors
/// If it is none.
pub fn whole(text: &str) -> Result<usize, &'static str> {
    text.parse().map_err(|_| "it must be a whole number from 0 up")
}

/// When a text began, and when its first token came.
pub struct Watch {
    start: Instant,
    first: Option<Instant>,
}

impl Watch {
    /// Begins now.
    pub fn start() -> Watch {
        Watch { start: Instant::now(), first: None }
    }

    /// A token came.
    pub fn token(&mut self) {
        self.first.get_or_insert_with(Instant::now);
    }

    /// Seconds so far.
    pub fn seconds(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }

    /// What was done in which time: the prompt up to the first token, and the tokens after it.
    pub fn summary(&self, prompt: usize, tokens: usize) -> String {
        let rate =
            |tokens: usize, seconds: f64| format!("{:.2} s, {:.1} tok/s", seconds, tokens as f64 / seconds.max(1e-9));
        let Some(first) = self.first else {
            let prompt_tokens = count(prompt, "prompt token");
            return format!("{prompt_tokens} in {}", rate(prompt, self.seconds()));
        };
        let before = (first - self.start).as_secs_f64();
        let after = tokens.saturating_sub(1);
        let decoding = if after == 0 {
            String::new()
        } else {
            format!("; {after} more in {}", rate(after, first.elapsed().as_secs_f64()))
        };
        let prompt_tokens = count(prompt, "prompt token");
        format!("{prompt_tokens} and the first of the text in {}{decoding}", rate(prompt, before))
    }
}
