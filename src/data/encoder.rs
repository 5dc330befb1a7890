//! From what a corpus holds to tokens, each marked as to be predicted or not: texts whole, conversations by the model's chat
//! template with the answers alone to be predicted, or all of it.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::corpus::{Corpus, Piece, Record, Unit};
use super::form::{Chat, Example, Form};
use super::hash::Hasher;
use super::shard::{MASKED, Shard, ShardKind};
use super::template::{ChatTemplate, Json, Message, RenderOptions};
use super::tokenizer::Tokenizer;
use crate::error::{Error, Result};

/// Raised when the same records come to mean other tokens: shards made before are then made anew.
const ENCODING: u64 = 2;

/// What day it is for templates that write the date, in seconds since 1970: 26 July 2024, which Meta's templates write of
/// themselves where nobody tells them. Another day must not make other tokens of the same data.
const DAY: i64 = 1_721_952_000;

/// Roles that templates of models know; of any other it is said once, since a template may write it or leave it out.
const ROLES: [&str; 7] = ["system", "developer", "user", "assistant", "tool", "function", "ipython"];

/// Which tokens of a conversation are to be predicted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LossOn {
    /// The assistant's: its words, its calls of functions, and what ends its turn.
    #[default]
    Assistant,
    /// All.
    All,
}

impl std::fmt::Display for LossOn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            LossOn::Assistant => "assistant",
            LossOn::All => "all",
        })
    }
}

impl std::str::FromStr for LossOn {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "assistant" => Ok(LossOn::Assistant),
            "all" => Ok(LossOn::All),
            _ => Err(format!("`{text}` is none of assistant, all")),
        }
    }
}

/// Tokens of one unit; of a pair, both documents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// The tokens, with [`MASKED`] in those that are not to be predicted.
    pub tokens: Vec<u32>,
    /// Where in them documents end.
    pub ends: Vec<usize>,
}

/// Makes tokens of the units of one corpus.
#[derive(Debug)]
pub struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    eos: Option<u32>,
    chat: Option<Templates>,
    loss_on: LossOn,
    kind: ShardKind,
    strange: Mutex<BTreeSet<String>>,
}

/// Compiled once; models may have another template for conversations with tools.
#[derive(Debug)]
struct Templates {
    plain: ChatTemplate,
    tools: ChatTemplate,
    specials: Vec<String>,
    hash: u64,
}

impl<'a> Encoder<'a> {
    /// An encoder for what `corpus` holds.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a tokenizer without an end-of-text token where documents must end with one, and for pairs beside
    /// other examples; those of the chat template where the corpus holds conversations.
    pub fn new(tokenizer: &'a Tokenizer, corpus: &Corpus, loss_on: LossOn) -> Result<Encoder<'a>> {
        let forms = corpus.forms();
        let talks = forms.iter().any(|form| *form != Form::Text);
        let chat = if talks { Some(Templates::of(tokenizer)?) } else { None };
        let texts = forms.iter().any(|form| matches!(form, Form::Text | Form::Completion)) || !talks;
        let eos = tokenizer.eos();
        if eos.is_none() && (texts || chat.as_ref().is_some_and(|chat| chat.plain.is_fallback())) {
            let advice = "name one as eos_token in tokenizer_config.json";
            return Err(Error::Invalid(format!("the tokenizer has no end-of-text token; {advice}")));
        }
        if forms.len() > 1 && forms.contains(&Form::Preference) {
            return Err(Error::Invalid(
                "preference pairs and other examples lie in one folder; give them apart".into(),
            ));
        }
        let kind = match () {
            () if forms.contains(&Form::Preference) => ShardKind::Pairs,
            () if talks => ShardKind::Examples,
            () => ShardKind::Text,
        };
        Ok(Encoder { tokenizer, eos, chat, loss_on, kind, strange: Mutex::default() })
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        self.tokenizer
    }

    /// What the documents of its shard are.
    pub fn kind(&self) -> ShardKind {
        self.kind
    }

    /// What the shard that it made holds, in words.
    pub fn told(&self, corpus: &Corpus, shard: &Shard) -> String {
        let held = shard.told();
        if self.kind == ShardKind::Text {
            return held;
        }
        let names: Vec<&str> = corpus.forms().iter().map(|form| form.name()).collect();
        let plain = "; the tokenizer has no chat template, so that names stand before the turns, as in a play";
        let plain = if self.is_fallback() && corpus.forms() != [Form::Completion] { plain } else { "" };
        let strange = self.strange.lock().unwrap_or_else(PoisonError::into_inner);
        let strange = match strange.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            [] => String::new(),
            ref roles => format!("; of roles that few models know: {}", roles.join(", ")),
        };
        format!("{held} in {} form{plain}{strange}", names.join(" and "))
    }

    /// Whether conversations are rendered by the plain template of a model that came with none.
    pub fn is_fallback(&self) -> bool {
        self.chat.as_ref().is_some_and(|chat| chat.plain.is_fallback())
    }

    /// Whether some tokens may be marked as not to be predicted.
    pub fn marks(&self) -> bool {
        self.chat.is_some() && self.loss_on == LossOn::Assistant
    }

    /// A hash of what the tokens are made from besides the tokenizer.
    pub fn source_hash(&self, corpus: &Corpus) -> u64 {
        let Some(chat) = &self.chat else { return corpus.content_hash() };
        let mut hasher = Hasher::new();
        for word in [ENCODING, corpus.content_hash(), chat.hash, self.loss_on as u64] {
            hasher.update(&word.to_le_bytes());
        }
        hasher.finish()
    }

    /// The tokens of one unit.
    ///
    /// # Errors
    /// With file and line: what is wrong with a record, or why the template refuses it.
    pub fn encode(&self, unit: &Unit) -> Result<Encoded> {
        match unit {
            Unit::Piece(piece) => self.piece(piece),
            Unit::Record(record) => {
                let place = |error: Error| match error {
                    Error::Invalid(message) => record.error(message),
                    other => other,
                };
                self.example(&record.example()?).map_err(place)
            }
        }
    }

    fn piece(&self, piece: &Piece) -> Result<Encoded> {
        let ids = self.tokenizer.encode(&piece.text)?;
        let prefix = self.tokenizer.document_prefix().filter(|_| piece.starts_document);
        let end = self.eos.filter(|_| piece.ends_document);
        let tokens: Vec<u32> = prefix.into_iter().chain(ids).chain(end).collect();
        let ends = if piece.ends_document { vec![tokens.len()] } else { Vec::new() };
        Ok(Encoded { tokens, ends })
    }

    /// The tokens of an example, as they stand in a shard.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the tokenizer's or the template's words.
    pub fn example(&self, example: &Example) -> Result<Encoded> {
        let one = |tokens: Vec<u32>| Encoded { ends: vec![tokens.len()], tokens };
        match example {
            Example::Text(text) => {
                let ids = self.tokenizer.encode(text)?;
                Ok(one(self.tokenizer.document_prefix().into_iter().chain(ids).chain(self.eos).collect()))
            }
            Example::Completion { prompt, answer } => {
                let text = format!("{prompt}{answer}");
                let prefix = self.tokenizer.document_prefix().map(|id| id | self.mask());
                let ids = self.marked(&text, std::slice::from_ref(&(prompt.len()..text.len())))?;
                Ok(one(prefix.into_iter().chain(ids).chain(self.eos).collect()))
            }
            Example::Chat(chat) => Ok(one(self.chat(chat)?)),
            Example::Pair(both) => {
                let mut tokens = Vec::new();
                let mut ends = Vec::new();
                for side in both.iter() {
                    tokens.extend(self.example(side)?.tokens);
                    ends.push(tokens.len());
                }
                Ok(Encoded { tokens, ends })
            }
        }
    }

    fn mask(&self) -> u32 {
        if self.loss_on == LossOn::All { 0 } else { MASKED }
    }

    fn chat(&self, chat: &Chat) -> Result<Vec<u32>> {
        let templates = self.chat.as_ref().expect("made for corpora with conversations");
        let template = if chat.tools.is_some() { &templates.tools } else { &templates.plain };
        let options = RenderOptions { tools: chat.tools.clone(), now: DAY, ..RenderOptions::default() };
        let counts = |index: usize| chat.is_answer(index);
        for role in chat.messages.iter().map(Message::role).filter(|role| !ROLES.contains(&role.as_str())) {
            self.strange.lock().unwrap_or_else(PoisonError::into_inner).insert(role);
        }
        if self.loss_on == LossOn::All {
            let text = template.render(&chat.messages, &options)?.text;
            template.check_parts(&chat.messages, &text)?;
            let mut ids = self.marked(&text, &[])?;
            ids.extend(self.eos.filter(|_| template.is_fallback()));
            return Ok(ids);
        }
        let rendered = template.render_answers(&chat.messages, &options, &templates.specials, &counts)?;
        template.check_parts(&chat.messages, &rendered.text)?;
        let mut ids = self.marked(&rendered.text, &rendered.answers)?;
        // The plain template has no mark that ends a turn.
        let last = chat.messages.len() - 1;
        let end = self.eos.filter(|_| template.is_fallback());
        ids.extend(end.map(|id| if chat.is_answer(last) { id } else { id | MASKED }));
        if ids.iter().all(|id| id & MASKED != 0) {
            return Err(Error::Invalid("has no token to predict: the template does not mark its answer".into()));
        }
        Ok(ids)
    }

    /// A text's tokens; those that reach into none of the answers are masked, unless all count.
    fn marked(&self, text: &str, answers: &[Range<usize>]) -> Result<Vec<u32>> {
        if self.loss_on == LossOn::All { self.tokenizer.encode(text) } else { mark(self.tokenizer, text, answers) }
    }
}

/// A text's tokens, those masked that reach into none of the answers, which are in order.
fn mark(tokenizer: &Tokenizer, text: &str, answers: &[Range<usize>]) -> Result<Vec<u32>> {
    let mut answers = answers.iter().peekable();
    let mut tokens = Vec::new();
    for (id, range) in tokenizer.encode_ranges(text)? {
        while answers.next_if(|answer| answer.end <= range.start).is_some() {}
        let inside = answers.peek().is_some_and(|answer| range.end.max(range.start + 1) > answer.start);
        tokens.push(if inside { id } else { id | MASKED });
    }
    Ok(tokens)
}

impl Templates {
    fn of(tokenizer: &Tokenizer) -> Result<Templates> {
        let [plain, tools] = [ChatTemplate::of(tokenizer, false)?, ChatTemplate::of(tokenizer, true)?];
        let mut hasher = Hasher::new();
        for source in [plain.source(), tools.source()] {
            hasher.update(&(source.len() as u64).to_le_bytes());
            hasher.update(source.as_bytes());
        }
        for (name, text) in tokenizer.special_tokens() {
            hasher.update(format!("{name}\n{text}\n").as_bytes());
        }
        Ok(Templates { plain, tools, specials: tokenizer.special_texts(), hash: hasher.finish() })
    }
}

impl Record {
    /// What it says.
    ///
    /// # Errors
    /// With file and line: broken JSON, wrong fields, an empty answer, another form than the file's.
    pub fn example(&self) -> Result<Example> {
        let json: Json = self.json()?;
        self.form.parse(&json).map_err(|message| self.error(message))
    }
}

#[cfg(test)]
mod tests;
