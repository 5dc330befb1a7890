//! A text that grows token by token, up to a stop string.

use super::{Finish, Stops};
use crate::data::{StreamDecoder, Tokenizer};
use crate::error::Result;

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
