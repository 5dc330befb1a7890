//! A tokenizer as GGUF files hold it: the keys `tokenizer.ggml.*`, the inverse of `vocabulary.rs`.

use serde_json::Value as Json;
use std::collections::{HashMap, HashSet};
use std::path::Path;

use super::Tokenizer;
use super::gguf::{NAMED_TEMPLATE, TEMPLATE};
use super::pre::Pre;
use crate::error::{Error, Result};
use crate::store::gguf::token_type::{BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED};
use crate::store::gguf::{Array, Metadata, Value};

impl Tokenizer {
    /// The keys of a GGUF file's vocabulary, for an embedding of `rows` rows: those that no token has get names of their
    /// own. SentencePiece's scores are not in a tokenizer.json, but their order is, in its merges: a piece gets the
    /// negated rank of its first merge.
    ///
    /// # Errors
    /// If this is no BPE, it has more tokens than rows, or changes texts or cuts words in a way that GGUF has no name for.
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
        if merges.is_empty() && !pieces {
            return Err(refuse("it has no merges, without which nobody reads a byte-level vocabulary".into()));
        }
        let strings = |texts: &[String]| Value::Array(Array::strings(texts.iter().map(String::as_str)));
        let (tokens, types) = self.tokens(&json, rows);
        check_normalizers(&json, pieces).map_err(refuse)?;
        if pieces {
            check_uncut(&json).map_err(refuse)?;
            set("model", Value::String("llama".into()));
            set("pre", Value::String("default".into()));
            set("scores", Value::Array(Array::f32s(&scores(&tokens, &types, &merges))));
            // A text begins with a space where the normalizer, or in newer files the pre-tokenizer, puts one.
            let spaced = json["normalizer"].to_string().contains("\"Prepend\"")
                || json["pre_tokenizer"]["prepend_scheme"].as_str().is_some_and(|scheme| scheme != "never");
            set("add_space_prefix", Value::Bool(spaced));
        } else {
            let ignores_merges = json["model"]["ignore_merges"] == true;
            let cuts = cuts(&json).map_err(refuse)?;
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
        set("add_eos_token", Value::Bool(self.adds_eos));
        self.set_templates(&mut metadata);
        Ok(metadata)
    }

    /// The default chat template, and those with names, of which there is a list, too.
    fn set_templates(&self, metadata: &mut Metadata) {
        let named: Vec<(&str, &str)> = match self.config.get("chat_template") {
            Some(Json::String(template)) => vec![("default", template)],
            Some(Json::Array(list)) => {
                list.iter().filter_map(|entry| Some((entry["name"].as_str()?, entry["template"].as_str()?))).collect()
            }
            _ => vec![],
        };
        let names = || named.iter().map(|(name, _)| *name).filter(|name| *name != "default");
        if names().next().is_some() {
            metadata.set("tokenizer.chat_templates", Value::Array(Array::strings(names())));
        }
        for (name, template) in &named {
            let key = if *name == "default" { TEMPLATE.to_string() } else { format!("{NAMED_TEMPLATE}{name}") };
            metadata.set(&key, Value::String((*template).into()));
        }
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

/// The steps of a normalizer or pre-tokenizer, sequences taken apart.
fn steps(json: &Json) -> Vec<&Json> {
    match json.get("normalizers").or(json.get("pretokenizers")).and_then(Json::as_array) {
        Some(inner) => inner.iter().flat_map(steps).collect(),
        None if json.is_null() => vec![],
        None => vec![json],
    }
}

/// Refuses what changes a text before it is cut, other than what llama.cpp does to SentencePiece's texts, and NFC, of
/// which its converters take no notice either.
fn check_normalizers(json: &Json, pieces: bool) -> Result<(), String> {
    let known = |step: &&Json| match step["type"].as_str() {
        Some("NFC") => !pieces,
        Some("Prepend") => pieces && step["prepend"] == "▁",
        Some("Replace") => pieces && step["pattern"]["String"] == " " && step["content"] == "▁",
        _ => false,
    };
    match steps(&json["normalizer"]).into_iter().find(|step| !known(step)) {
        Some(step) => Err(format!("GGUF has no name for the normalizer {}", step["type"])),
        None => Ok(()),
    }
}

/// Refuses SentencePiece's vocabularies that are cut before they are joined.
fn check_uncut(json: &Json) -> Result<(), String> {
    let whole = |step: &&Json| step["type"] == "Metaspace" && step["replacement"] == "▁" && step["split"] == false;
    match steps(&json["pre_tokenizer"]).into_iter().find(|step| !whole(step)) {
        Some(step) => Err(format!("GGUF has no name for the pre-tokenizer {} of SentencePiece's tokens", step["type"])),
        None => Ok(()),
    }
}

/// The expressions by which a pre-tokenizer of bytes cuts, or what of it GGUF has no name for.
fn cuts(json: &Json) -> Result<Vec<String>, String> {
    let steps = steps(&json["pre_tokenizer"]);
    let Some((last, before)) = steps.split_last().filter(|(last, _)| last["type"] == "ByteLevel") else {
        return Err("its pre-tokenizer does not end with \"ByteLevel\", and GGUF knows no other".into());
    };
    let unknown = |step: &Json, how: &str| Err(format!("GGUF has no name for the pre-tokenizer {}{how}", step["type"]));
    let mut cuts = Vec::new();
    for step in before {
        match step["type"].as_str() {
            Some("Split") => match step["pattern"]["Regex"].as_str() {
                Some(regex) if step["behavior"] == "Isolated" && step["invert"] != true => cuts.push(regex.to_string()),
                Some(_) => return unknown(step, " that drops or joins what it cuts"),
                None => return unknown(step, " by a plain text"),
            },
            Some("Digits") if step["individual_digits"] == true => cuts.push(r"\p{N}".to_string()),
            Some("Digits") => cuts.push(r"\p{N}+".to_string()),
            _ => return unknown(step, ""),
        }
    }
    if last["add_prefix_space"] == true {
        return unknown(last, " that puts a space before a text");
    }
    if last["use_regex"] != false {
        cuts.push(super::pre::GPT2.to_string());
    }
    Ok(cuts)
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
