//! A text that grows token by token, up to a stop string; and how fast it did.

use crate::data::{StreamDecoder, Tokenizer};
use crate::error::Result;
use crate::infer::{Finish, Stops};
use std::time::Instant;

/// One continuation as it comes.
pub struct Growing<'a> {
    decoder: Option<StreamDecoder<'a>>,
    stops: Stops,
    /// What was given out so far.
    pub text: String,
    /// Tokens so far.
    pub tokens: usize,
    /// True once a stop string has ended it.
    pub stopped: bool,
}

impl<'a> Growing<'a> {
    /// The continuation of a prompt.
    pub fn new(tokenizer: &'a Tokenizer, prompt: &[u32], stops: Vec<String>) -> Self {
        let decoder = Some(StreamDecoder::new(tokenizer, prompt));
        Growing { decoder, stops: Stops::new(stops), text: String::new(), tokens: 0, stopped: false }
    }

    /// Takes a token; gives the text that may be shown. Nothing comes after `stopped`.
    ///
    /// # Errors
    /// If the tokenizer cannot decode.
    pub fn push(&mut self, token: u32) -> Result<String> {
        self.tokens += 1;
        let text = self.decoder.as_mut().map_or(Ok(String::new()), |decoder| decoder.push(token))?;
        Ok(self.show(&text))
    }

    /// Gives what was held back.
    ///
    /// # Errors
    /// As [`Growing::push`].
    pub fn finish(&mut self) -> Result<String> {
        let Some(decoder) = self.decoder.take().filter(|_| !self.stopped) else { return Ok(String::new()) };
        let mut text = self.show(&decoder.finish()?);
        if !self.stopped {
            let rest = self.stops.finish();
            self.text += &rest;
            text += &rest;
        }
        Ok(text)
    }

    fn show(&mut self, text: &str) -> String {
        let (shown, stopped) = self.stops.push(text);
        self.stopped |= stopped;
        self.text += &shown;
        shown
    }

    /// Why it ended, in a word.
    pub fn reason(&self, finish: Finish) -> &'static str {
        match finish {
            _ if self.stopped => "stop",
            Finish::EndOfText => "end_of_text",
            Finish::Length => "length",
            Finish::ContextFull => "context_full",
            Finish::Stopped => "stopped",
        }
    }
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
            return format!("{prompt} prompt tokens in {}", rate(prompt, self.seconds()));
        };
        let before = (first - self.start).as_secs_f64();
        let after = tokens.saturating_sub(1);
        let decoding = if after == 0 {
            String::new()
        } else {
            format!("; {after} more in {}", rate(after, first.elapsed().as_secs_f64()))
        };
        format!("{prompt} prompt tokens and the first of the text in {}{decoding}", rate(prompt, before))
    }
}
