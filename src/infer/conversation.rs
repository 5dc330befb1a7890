//! A conversation with a model: messages → its template's text → tokens → an answer, piece by piece. The KV cache keeps
//! what two renderings have in common, so that a turn costs what is new in it.

use super::{Finish, Generator, Growing, Sampling};
use crate::data::{ChatTemplate, Message, RenderOptions, Tokenizer};
use crate::error::{Error, Result};

/// What a model without a template of its own would go on to write: the next speaker's name.
const NEXT_SPEAKER: [&str; 2] = ["\nUser:", "\nSystem:"];

/// One answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Its text.
    pub text: String,
    /// Why it ended.
    pub finish: Finish,
    /// Its tokens.
    pub tokens: usize,
    /// Tokens of the conversation before it.
    pub prompt: usize,
    /// Of these, tokens that the cache still held.
    pub reused: usize,
    /// Messages that were left out of it because the context is too small for all.
    pub dropped: usize,
}

/// Messages, and a model that answers them.
pub struct Conversation {
    generator: Generator,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    ends: Vec<u32>,
    stops: Vec<String>,
    messages: Vec<Message>,
    /// Messages that no longer fit: so many after the system message are left out.
    dropped: usize,
}

impl Conversation {
    /// An empty conversation.
    pub fn new(generator: Generator, tokenizer: Tokenizer, template: ChatTemplate) -> Conversation {
        let ends = tokenizer.turn_ends();
        let mut conversation =
            Conversation { generator, tokenizer, template, ends, stops: vec![], messages: Vec::new(), dropped: 0 };
        conversation.set_stops(Vec::new());
        conversation
    }

    /// Answers end before any of these texts.
    pub fn set_stops(&mut self, mut stops: Vec<String>) {
        stops.extend(NEXT_SPEAKER.map(String::from).into_iter().filter(|_| self.template.is_fallback()));
        self.stops = stops;
    }

    /// All messages so far, those that no longer fit included.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// Puts other messages in their place.
    pub fn set_messages(&mut self, messages: Vec<Message>) {
        self.messages = messages;
        self.dropped = 0;
    }

    /// Says something, without waiting for an answer.
    pub fn push(&mut self, message: Message) {
        self.messages.push(message);
    }

    /// Takes the newest message back.
    pub fn pop(&mut self) -> Option<Message> {
        let message = self.messages.pop();
        self.dropped = self.dropped.min(self.messages.len());
        message
    }

    /// What the model is told about itself; `None` says nothing.
    pub fn set_system(&mut self, text: Option<&str>) {
        if system(&self.messages) == 1 {
            self.messages.remove(0);
        }
        if let Some(text) = text {
            self.messages.insert(0, Message::new("system", text));
        }
    }

    /// Tokens that the model can have before it.
    pub fn context(&self) -> usize {
        self.generator.context()
    }

    /// Tokens of the conversation as it stands.
    ///
    /// # Errors
    /// If the template refuses it.
    pub fn tokens(&self, options: &RenderOptions) -> Result<usize> {
        let kept = keep(&self.messages, self.dropped);
        let options = RenderOptions { add_generation_prompt: false, ..options.clone() };
        if kept.is_empty() { Ok(0) } else { Ok(self.encode(&kept, &options)?.len()) }
    }

    /// Lets the model answer, and keeps what it says as a message. `receive` hears the text as it comes, and an empty
    /// one now and then while the model still reads and where a token shows nothing, until it says to stop. Where the
    /// conversation does not fit into the context, its oldest turns are left out, but for the system message.
    ///
    /// # Errors
    /// If the template refuses the conversation, its last message alone is too long, or the device fails. The messages stay
    /// as they were.
    pub async fn answer(
        &mut self,
        sampling: &Sampling,
        most: usize,
        options: &RenderOptions,
        mut receive: impl FnMut(&str) -> bool,
    ) -> Result<Answer> {
        let options = RenderOptions { add_generation_prompt: true, ..options.clone() };
        let encode = |messages: &[Message]| self.encode(messages, &options);
        let (prompt, dropped) = fit(&self.messages, self.dropped, self.context(), most, encode)?;
        self.dropped = dropped;
        let reused = self.generator.held(&prompt);
        if !self.generator.read(&prompt, || receive("")).await? {
            let (text, finish) = (String::new(), Finish::Stopped);
            self.messages.push(Message::new("assistant", &text));
            return Ok(Answer { text, finish, tokens: 0, prompt: prompt.len(), reused, dropped });
        }
        let mut growing = Growing::new(&self.tokenizer, &prompt, self.stops.clone());
        let mut speech = Speech { text: String::new(), receive: &mut receive };
        let mut closed = false;
        let ends = &self.ends;
        let finish = self
            .generator
            .generate(&prompt, most, sampling, |token| {
                closed = ends.contains(&token);
                if closed {
                    return Ok(false);
                }
                let listens = speech.show(&growing.push(token)?);
                Ok(listens && !growing.stopped)
            })
            .await?;
        speech.show(&growing.finish()?);
        let text = speech.text;
        let finish = if growing.stopped || closed { Finish::EndOfText } else { finish };
        self.messages.push(Message::new("assistant", &text));
        Ok(Answer { text, finish, tokens: growing.tokens, prompt: prompt.len(), reused, dropped })
    }

    fn encode(&self, messages: &[Message], options: &RenderOptions) -> Result<Vec<u32>> {
        // The template writes the special tokens itself.
        self.tokenizer.encode(&self.template.render(messages, options)?.text)
    }
}

/// An answer as it is heard: white space before its first word belongs to the template, not to it.
struct Speech<'a> {
    text: String,
    receive: &'a mut dyn FnMut(&str) -> bool,
}

impl Speech<'_> {
    /// False if the receiver wants no more.
    fn show(&mut self, text: &str) -> bool {
        let text = if self.text.is_empty() { text.trim_start() } else { text };
        self.text.push_str(text);
        // Also where there is nothing to show yet, and the receiver may want no more.
        (self.receive)(text)
    }
}

/// 1 if the first message is the system's.
fn system(messages: &[Message]) -> usize {
    usize::from(messages.first().is_some_and(|first| first.role() == "system"))
}

/// The messages without the `dropped` oldest ones after the system message.
fn keep(messages: &[Message], dropped: usize) -> Vec<Message> {
    let system = system(messages);
    messages[..system].iter().chain(messages.iter().skip(system + dropped)).cloned().collect()
}

/// The tokens of as many messages as leave room for an answer, and how many had to go. Once some must go, more go than
/// must: half of the context is free then, so that not every turn moves what the cache holds.
fn fit(
    messages: &[Message],
    mut dropped: usize,
    context: usize,
    most: usize,
    encode: impl Fn(&[Message]) -> Result<Vec<u32>>,
) -> Result<(Vec<u32>, usize)> {
    let mut room = most.clamp(1, (context / 4).max(1));
    let system = system(messages);
    loop {
        let tokens = encode(&keep(messages, dropped))?;
        if tokens.len() + room <= context {
            return Ok((tokens, dropped));
        }
        room = (context / 2).max(room);
        // Up to the next question, so that the conversation begins with one.
        let start = system + dropped;
        let next = (start + 1..messages.len()).find(|&at| messages[at].role() == "user");
        match next {
            Some(next) => dropped += next - start,
            None if tokens.len() < context => return Ok((tokens, dropped)),
            None => {
                return Err(Error::Invalid(format!(
                    "the message is too long: with what must stand before it, it has {} tokens, and the context holds \
                     {context}; shorten it, or give --context",
                    tokens.len()
                )));
            }
        }
    }
}

#[cfg(test)]
mod tests;
