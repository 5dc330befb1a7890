//! A vocabulary as GGUF files hold it, made into a tokenizer: SentencePiece's pieces with scores ("llama"), or byte-level
//! BPE with merges ("gpt2"). What the file leaves out has the value that llama.cpp gives it.

use serde_json::{Map, Value, json};
use std::collections::{HashMap, HashSet};
use tokenizers::decoders::DecoderWrapper;
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as Decoders;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::prepend::Prepend;
use tokenizers::normalizers::replace::Replace;
use tokenizers::normalizers::utils::Sequence as Normalizers;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer as Inner};

use super::pre::Pre;
use super::{Tokenizer, around_text};
use crate::error::{Error, Result};
use crate::store::gguf::token_type::{CONTROL, UNKNOWN, USER_DEFINED};

/// SentencePiece's sign for a space.
const SPACE: &str = "▁";
/// No published token is a tenth as long. Merges are found by cutting tokens everywhere, so their length is bounded.
const LONGEST: usize = 4096;
/// Of all merges together, ten times those of a vocabulary of 256,000: runs of one letter, each longer by one, have as many
/// as the cube of their length.
const MERGED_BYTES: usize = 64 << 20;
/// Of all cuts that are looked up, some fifty times those of a vocabulary of 256,000: a second or two.
const TRIED_BYTES: usize = 1 << 30;

/// The keys `tokenizer.ggml.*` (and `tokenizer.chat_template`) of a GGUF file. `Default` is a file without any.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Vocabulary {
    /// `model`: "llama" or "gpt2".
    pub model: String,
    /// `pre`: how byte-level BPE cuts words.
    pub pre: Option<String>,
    /// `tokens`, by id.
    pub tokens: Vec<String>,
    /// `scores`, one a token, or none at all; the higher, the earlier pieces are joined to it.
    pub scores: Vec<f32>,
    /// `token_type`, one a token, or none at all: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
    pub types: Vec<i32>,
    /// `merges`, "left right", the first the strongest.
    pub merges: Vec<String>,
    /// `bos_token_id`.
    pub bos: Option<u32>,
    /// `eos_token_id`.
    pub eos: Option<u32>,
    /// `eot_token_id`, the end of a turn.
    pub eot: Option<u32>,
    /// `unknown_token_id`.
    pub unknown: Option<u32>,
    /// `add_bos_token`.
    pub add_bos: Option<bool>,
    /// `add_eos_token`.
    pub add_eos: Option<bool>,
    /// `add_space_prefix`: whether SentencePiece puts a space before a text.
    pub add_space_prefix: Option<bool>,
    /// Special tokens take in the white space behind them, as Phi-3's do. No key says so; the architecture does.
    pub special_strips_right: bool,
    /// `tokenizer.chat_template`, in Jinja.
    pub chat_template: Option<String>,
    /// `tokenizer.chat_template.NAME`: templates for other uses, such as "tool_use", by name.
    pub named_templates: Vec<(String, String)>,
}

impl Vocabulary {
    /// Refuses what cannot be a vocabulary, and puts llama.cpp's values where the file is silent.
    fn complete(mut self) -> Result<(Vocabulary, Option<&'static Pre>)> {
        let invalid = |message: String| Err(Error::Invalid(message));
        let count = self.tokens.len();
        if count == 0 {
            return invalid("the vocabulary holds no tokens: tokenizer.ggml.tokens is missing or empty".into());
        }
        for (key, length) in [("scores", self.scores.len()), ("token_type", self.types.len())] {
            if length != 0 && length != count {
                return invalid(format!("tokenizer.ggml.{key} has {length} entries for {count} tokens"));
            }
        }
        if let Some(id) = self.tokens.iter().position(|token| token.len() > LONGEST) {
            let bytes = self.tokens[id].len();
            return invalid(format!("token {id} is {bytes} bytes long, and no token may be longer than {LONGEST}"));
        }
        let pre = match self.model.as_str() {
            "llama" => None,
            "gpt2" => {
                let name = self.pre.as_deref().unwrap_or("default");
                let Some(pre) = Pre::named(name) else {
                    let known = Pre::names();
                    return invalid(format!(
                        "tokenizer.ggml.pre is \"{name}\", which is unknown here; known are {known}"
                    ));
                };
                if self.merges.is_empty() {
                    return invalid("a byte-level vocabulary needs tokenizer.ggml.merges, and there are none".into());
                }
                Some(pre)
            }
            other => {
                return invalid(format!(
                    "tokenizer.ggml.model is \"{other}\"; known are llama (SentencePiece) and gpt2"
                ));
            }
        };
        let named = [("bos", self.bos), ("eos", self.eos), ("eot", self.eot), ("unknown", self.unknown)];
        if let Some((key, Some(id))) = named.into_iter().find(|(_, id)| id.is_some_and(|id| id as usize >= count)) {
            return invalid(format!("tokenizer.ggml.{key}_token_id is {id}, and there are only {count} tokens"));
        }
        for (id, token) in self.tokens.iter_mut().enumerate().filter(|(_, token)| token.is_empty()) {
            *token = format!("[EMPTY_{id}]");
        }
        // A text would have two ids; llama.cpp stops at such a file.
        let mut ids = HashMap::new();
        for (id, token) in self.tokens.iter().enumerate() {
            if let Some(first) = ids.insert(token, id) {
                return invalid(format!("tokens {first} and {id} of tokenizer.ggml.tokens are both {token:.80?}"));
            }
        }
        Ok((self, pre))
    }

    /// Pairs of pieces that join to a piece, the highest score first. SentencePiece has no list of merges: it joins
    /// whatever gives the piece of the highest score. Of equal scores the lower id comes first here, where SentencePiece
    /// takes whichever stands leftmost.
    fn merges_from_scores(&self) -> Result<Merges> {
        let pieces: HashSet<&str> = self.tokens.iter().map(String::as_str).collect();
        let lengths: HashSet<usize> = pieces.iter().map(|piece| piece.len()).collect();
        let score = |id: usize| self.scores.get(id).copied().unwrap_or(0.0);
        let mut order: Vec<usize> = (0..self.tokens.len()).collect();
        order.sort_by(|&a, &b| score(b).total_cmp(&score(a)).then(a.cmp(&b)));
        let (mut merges, mut bytes, mut tried) = (Merges::new(), 0, 0);
        for id in order {
            let token = self.tokens[id].as_str();
            // The longer left part first: in a run of equal characters the leftmost pair is the one that has it.
            for (at, _) in token.char_indices().skip(1).collect::<Vec<_>>().into_iter().rev() {
                let (left, right) = token.split_at(at);
                let possible = lengths.contains(&left.len()) && lengths.contains(&right.len());
                tried += if possible { token.len() } else { 0 };
                if possible && pieces.contains(left) && pieces.contains(right) {
                    merges.push((left.to_string(), right.to_string()));
                    bytes += token.len();
                }
            }
            let refuse = |what: &str, most: usize| {
                Err(Error::Invalid(format!(
                    "the tokens of tokenizer.ggml.tokens {what} in more ways than a vocabulary's are: at token {id} these \
                     take over {most} bytes"
                )))
            };
            if bytes > MERGED_BYTES {
                return refuse("are joined from each other", MERGED_BYTES);
            }
            if tried > TRIED_BYTES {
                return refuse("can be cut", TRIED_BYTES);
            }
        }
        Ok(merges)
    }

    /// The merges that the file lists.
    fn listed_merges(&self) -> Result<Merges> {
        let tokens: HashSet<&str> = self.tokens.iter().map(String::as_str).collect();
        let merge = |(rank, line): (usize, &String)| {
            let refuse =
                |what: String| Err(Error::Invalid(format!("merge {rank} of tokenizer.ggml.merges, {line:?}, {what}")));
            // A token may begin with a space, so the parting one is looked for after the first character.
            let first = line.chars().next().map_or(0, char::len_utf8);
            let Some(at) = line[first..].find(' ') else { return refuse("is no pair of tokens".into()) };
            let (left, right) = (&line[..first + at], &line[first + at + 1..]);
            let joined = format!("{left}{right}");
            match [left, right, &joined].into_iter().find(|part| !tokens.contains(part)) {
                Some(part) => refuse(format!("needs the token {part:?}, which is not there")),
                None => Ok((left.to_string(), right.to_string())),
            }
        };
        self.merges.iter().enumerate().map(merge).collect()
    }

    /// Tokens that are found in a text before anything is cut: control tokens and the like.
    fn added(&self) -> impl Iterator<Item = AddedToken> {
        self.tokens.iter().zip(&self.types).filter_map(|(token, kind)| match *kind {
            UNKNOWN | CONTROL => Some(AddedToken::from(token, true).rstrip(self.special_strips_right)),
            USER_DEFINED => Some(AddedToken::from(token, false).normalized(false)),
            _ => None,
        })
    }

    /// What a `tokenizer_config.json` would say, so that a model folder written from this file says it.
    fn config(&self) -> Map<String, Value> {
        let token = |id: Option<u32>| id.map(|id| json!(self.tokens[id as usize]));
        let special = [("bos_token", self.bos), ("eos_token", self.eos), ("unk_token", self.unknown)];
        let mut config: Map<_, _> =
            special.into_iter().filter_map(|(key, id)| Some((key.to_string(), token(id)?))).collect();
        let named = self.named_templates.iter().map(|(name, template)| (name.as_str(), template));
        let default = self.chat_template.iter().map(|template| ("default", template));
        let templates: Vec<Value> =
            default.chain(named).map(|(name, template)| json!({"name": name, "template": template})).collect();
        match (&self.chat_template, templates.len()) {
            (_, 0) => {}
            (Some(template), 1) => drop(config.insert("chat_template".into(), json!(template))),
            _ => drop(config.insert("chat_template".into(), json!(templates))),
        }
        config
    }
}

impl Tokenizer {
    /// A tokenizer from a vocabulary of a GGUF file.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a kind of vocabulary or a way of cutting words that is unknown, for lists that do not fit
    /// each other, and for ids and merges of tokens that are not there.
    pub fn from_vocabulary(vocabulary: Vocabulary) -> Result<Tokenizer> {
        let (vocabulary, pre) = vocabulary.complete()?;
        let merges = match pre {
            Some(_) => vocabulary.listed_merges()?,
            None => vocabulary.merges_from_scores()?,
        };
        assemble(&vocabulary, pre, merges)
            .map_err(|error| Error::Invalid(format!("the vocabulary cannot be used: {error}")))
    }
}

fn assemble(v: &Vocabulary, pre: Option<&Pre>, merges: Merges) -> tokenizers::Result<Tokenizer> {
    let mut ids = Vocab::default();
    ids.extend(v.tokens.iter().enumerate().map(|(id, token)| (token.clone(), id as u32)));
    let mut model = BPE::builder().vocab_and_merges(ids, merges);
    if let Some(pre) = pre {
        model = model.ignore_merges(pre.ignores_merges);
    } else {
        model = model.byte_fallback(true).fuse_unk(true);
        if let Some(id) = v.unknown {
            model = model.unk_token(v.tokens[id as usize].clone());
        }
    }
    let mut inner = Inner::new(model.build()?);
    if let Some(pre) = pre {
        inner.with_pre_tokenizer(Some(pre.build()?));
        inner.with_decoder(Some(ByteLevel::new(false, true, false)));
    } else {
        let spaced = v.add_space_prefix.unwrap_or(true);
        let mut normalizers = vec![Replace::new(" ", SPACE)?.into()];
        let mut decoders: Vec<DecoderWrapper> =
            vec![Replace::new(SPACE, " ")?.into(), ByteFallback::new().into(), Fuse::new().into()];
        if spaced {
            normalizers.insert(0, Prepend::new(SPACE.into()).into());
            decoders.push(Strip::new(' ', 1, 0).into());
        }
        inner.with_normalizer(Some(Normalizers::new(normalizers)))?;
        inner.with_decoder(Some(Decoders::new(decoders)));
    }
    inner.add_tokens(v.added())?;
    let adds_bos = v.add_bos.unwrap_or(pre.is_none_or(|pre| pre.adds_bos));
    let around = [(adds_bos, v.bos), (v.add_eos.unwrap_or(false), v.eos)].map(|(adds, id)| id.filter(|_| adds));
    if let around @ Some(_) = around_text(&inner, around)? {
        inner.with_post_processor(around);
    }
    Ok(Tokenizer { eot: v.eot, ..Tokenizer::finish(inner, v.config())? })
}

#[cfg(test)]
#[path = "vocabulary_tests.rs"]
mod tests;
