//! Text from tokens as they come: never half a character, and in the end exactly what decoding them at once gives.

use super::tokenizer::Tokenizer;
use crate::error::Result;

/// Tokens of a prompt that what comes after it is decoded with.
const CONTEXT: usize = 16;

/// Turns one token after another into pieces of text.
///
/// A token may hold a part of a character, and some decoders treat the first token of a text in a special way. So each
/// token is decoded after those before it, and what is new is given out once it ends with a whole character.
#[derive(Debug)]
pub struct StreamDecoder<'a> {
    tokenizer: &'a Tokenizer,
    /// The tokens still needed: `..given` were given out and serve as context, the rest waits.
    ids: Vec<u32>,
    given: usize,
}

impl<'a> StreamDecoder<'a> {
    /// Starts after a prompt (empty for none), whose text is not given out.
    pub fn new(tokenizer: &'a Tokenizer, prompt: &[u32]) -> Self {
        // Bytes that are tokens are decoded by the run: one that begins within a character is none, however it goes on.
        let is_torn = |from: &usize| {
            let text = tokenizer.decode(&prompt[*from..]);
            text.is_ok_and(|text| text.starts_with(char::REPLACEMENT_CHARACTER))
        };
        let from = prompt.len().saturating_sub(CONTEXT);
        let from = (from.saturating_sub(CONTEXT)..=from).rev().find(|from| !is_torn(from)).unwrap_or(from);
        let context = &prompt[from..];
        StreamDecoder { tokenizer, ids: context.to_vec(), given: context.len() }
    }

    /// Takes the next token and gives the text that became whole, which may be empty.
    ///
    /// # Errors
    /// Those of [`Tokenizer::decode`].
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        let (context, all) = self.decode()?;
        if all.ends_with(char::REPLACEMENT_CHARACTER) || all.len() <= context {
            return Ok(String::new());
        }
        let text = all.get(context..).unwrap_or("").to_string();
        // The old context is dropped only if the new one has a text of its own to stand on.
        if !self.tokenizer.decode(&self.ids[self.given..])?.trim().is_empty() {
            self.ids.drain(..self.given);
        }
        self.given = self.ids.len();
        Ok(text)
    }

    /// Gives what is still waiting; half a character comes out as U+FFFD.
    ///
    /// # Errors
    /// Those of [`Tokenizer::decode`].
    pub fn finish(self) -> Result<String> {
        let (context, all) = self.decode()?;
        Ok(all.get(context..).unwrap_or("").to_string())
    }

    /// The length of the context's text, and the text of everything.
    fn decode(&self) -> Result<(usize, String)> {
        let context = self.tokenizer.decode(&self.ids[..self.given])?;
        Ok((context.len(), self.tokenizer.decode(&self.ids)?))
    }
}
