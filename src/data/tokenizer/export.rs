//! A tokenizer as GGUF files hold it: the keys `tokenizer.ggml.*`, the inverse of `vocabulary.rs`.

use serde_json::Value as Json;
use std::collections::{HashMap, HashSet};
use std::path::Path;

use super::Tokenizer;
use super::pre::Pre;
use crate::error::{Error, Result};
use crate::store::gguf::{Array, Metadata, Value};

/// `tokenizer.ggml.token_type`.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

impl Tokenizer {
    /// The keys of a GGUF file's vocabulary, for an embedding of `rows` rows: those that no token has get names of their
    /// own. SentencePiece's scores are not in a tokenizer.json, but their order is, in its merges: a piece gets the
    /// negated rank of its first merge.
    ///
    /// # Errors
    /// If this is no BPE, it has more tokens than rows, or cuts words in a way that GGUF has no name for.
    pub fn gguf_keys(&self, rows: usize) -> Result<Metadata> {
        let text = self.inner.to_string(false).map_err(|error| Error::Invalid(format!("tokenizer: {error}")))?;
        let json: Json = serde_json::from_str(&text).map_err(|e| Error::Invalid(format!("tokenizer: {e}")))?;
        let refuse = |why: String| Error::Invalid(format!("this tokenizer cannot be written into a GGUF file: {why}"));
        if json["model"]["type"] != "BPE" {
            return Err(refuse(format!("it is a {} and no BPE", json["model"]["type"])));
        }
        if self.vocab_size > rows {
            return Err(refuse(format!("it has {} tokens for {rows} rows of the embedding", self.vocab_size)));
        }
        let mut metadata = Metadata::new(Path::new("tokenizer"));
        let mut set = |key: &str, value: Value| {
            metadata.set(&format!("tokenizer.ggml.{key}"), value);
        };
        let merges = merges(&json["model"]["merges"]);
        let pieces = json["model"]["byte_fallback"] == true;
        let strings = |texts: &[String]| Value::Array(Array::strings(texts.iter().map(String::as_str)));
        let (tokens, types) = self.tokens(&json, rows);
        if pieces {
            set("model", Value::String("llama".into()));
            set("pre", Value::String("default".into()));
            set("scores", Value::Array(Array::f32s(&scores(&tokens, &types, &merges))));
            // A text begins with a space where the normalizer, or in newer files the pre-tokenizer, puts one.
            let spaced = json["normalizer"].to_string().contains("\"Prepend\"")
                || json["pre_tokenizer"]["prepend_scheme"].as_str().is_some_and(|scheme| scheme != "never");
            set("add_space_prefix", Value::Bool(spaced));
        } else {
            let ignores_merges = json["model"]["ignore_merges"] == true;
            let cuts = cuts(&json["pre_tokenizer"]);
            let pre = Pre::called(&cuts, ignores_merges);
            let unknown = || refuse(format!("GGUF has no name for how it cuts words: {}", cuts.join("  ")));
            set("model", Value::String("gpt2".into()));
            set("pre", Value::String(pre.ok_or_else(unknown)?.into()));
            let lines: Vec<String> = merges.iter().map(|(a, b)| format!("{a} {b}")).collect();
            set("merges", strings(&lines));
        }
        set("tokens", strings(&tokens));
        set("token_type", Value::Array(Array::i32s(&types)));
        let unknown = json["model"]["unk_token"].as_str().and_then(|t| self.inner.token_to_id(t));
        for (key, id) in [("bos", self.bos), ("eos", self.eos), ("unknown", unknown)] {
            if let Some(id) = id {
                set(&format!("{key}_token_id"), Value::u32(id));
            }
        }
        set("add_bos_token", Value::Bool(self.adds_bos));
        set("add_eos_token", Value::Bool(false));
        if let Some(Json::String(template)) = self.config.get("chat_template") {
            metadata.set("tokenizer.chat_template", Value::String(template.clone()));
        }
        Ok(metadata)
    }

    /// Text and type of every token, by id.
    fn tokens(&self, json: &Json, rows: usize) -> (Vec<String>, Vec<i32>) {
        let mut tokens: Vec<String> = (0..rows).map(|id| format!("[PAD{id}]")).collect();
        let mut types = vec![UNUSED; rows];
        let unknown = json["model"]["unk_token"].as_str();
        let is_byte = |text: &str| text.len() == 6 && text.starts_with("<0x") && text.ends_with('>');
        for (text, id) in self.inner.get_vocab(true) {
            types[id as usize] = match text.as_str() {
                t if Some(t) == unknown => UNKNOWN,
                t if json["model"]["byte_fallback"] == true && is_byte(t) => BYTE,
                _ => NORMAL,
            };
            tokens[id as usize] = text;
        }
        for (&id, token) in &self.inner.get_added_tokens_decoder() {
            if types[id as usize] != UNKNOWN {
                types[id as usize] = if token.special { CONTROL } else { USER_DEFINED };
            }
        }
        (tokens, types)
    }
}

/// Merges, which are pairs in newer files and lines in older ones.
fn merges(json: &Json) -> Vec<(String, String)> {
    let pair = |merge: &Json| match merge {
        Json::String(line) => line.split_once(' ').map(|(a, b)| (a.to_string(), b.to_string())),
        pair => Some((pair[0].as_str()?.to_string(), pair[1].as_str()?.to_string())),
    };
    json.as_array().into_iter().flatten().filter_map(pair).collect()
}

/// The expressions by which a pre-tokenizer cuts.
fn cuts(json: &Json) -> Vec<String> {
    match json["type"].as_str() {
        Some("Sequence") => json["pretokenizers"].as_array().into_iter().flatten().flat_map(cuts).collect(),
        Some("Split") => json["pattern"]["Regex"].as_str().map(str::to_string).into_iter().collect(),
        Some("ByteLevel") if json["use_regex"] != false => vec![super::pre::GPT2.to_string()],
        Some("Digits") if json["individual_digits"] == true => vec![r"\p{N}".to_string()],
        _ => vec![],
    }
}

/// A score for each token: the sooner it is made, the higher.
fn scores(tokens: &[String], types: &[i32], merges: &[(String, String)]) -> Vec<f32> {
    let mut ranks: HashMap<String, usize> = HashMap::new();
    let mut seen = HashSet::new();
    for (left, right) in merges {
        let made = format!("{left}{right}");
        if seen.insert(made.clone()) {
            ranks.insert(made, seen.len());
        }
    }
    let score = |(id, (text, kind)): (usize, (&String, &i32))| match (ranks.get(text), *kind) {
        (Some(rank), _) => -(*rank as f32),
        (None, NORMAL) => -((merges.len() + id) as f32),
        _ => 0.0,
    };
    tokens.iter().zip(types).enumerate().map(score).collect()
}
