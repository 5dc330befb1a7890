//! What lies beside a tokenizer.json and belongs to it: tokenizer_config.json, and chat templates in files of their own.

use serde_json::{Map, Value, json};
use std::path::Path;

use super::Tokenizer;
use crate::error::{Error, Result};

/// Keys of special tokens that chat templates may write.
const SPECIAL: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// Names of tokens that end an answer, whatever the configuration calls the end of a text.
const TURN_ENDS: [&str; 10] = [
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<end_of_turn>",
    "<|return|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|end_of_role|>",
];

/// Reads the configuration of a folder's tokenizer. Templates in files take the place of those in it, as newer versions of
/// `transformers` write them.
pub(super) fn read_config(folder: &Path) -> Result<Map<String, Value>> {
    let file = folder.join("tokenizer_config.json");
    let mut config: Map<String, Value> = match std::fs::read(&file) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map_err(|error| Error::file(&file, format!("is not a JSON object: {error}")))?,
        Err(_) => Map::new(),
    };
    let read = |path: &Path| std::fs::read_to_string(path).map_err(|error| Error::io("read", path, error));
    let mut named = Vec::new();
    let default = folder.join("chat_template.jinja");
    if default.is_file() {
        named.push(("default".to_string(), read(&default)?));
    }
    if let Ok(entries) = std::fs::read_dir(folder.join("additional_chat_templates")) {
        let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        paths.retain(|path| path.extension().is_some_and(|ending| ending == "jinja"));
        paths.sort();
        for path in paths {
            named.push((path.file_stem().unwrap_or_default().to_string_lossy().into_owned(), read(&path)?));
        }
    }
    let templates = match named.as_slice() {
        [] => return Ok(config),
        [(name, template)] if name == "default" => json!(template),
        named => named.iter().map(|(name, template)| json!({"name": name, "template": template})).collect(),
    };
    config.insert("chat_template".into(), templates);
    Ok(config)
}

impl Tokenizer {
    /// The model's chat template, in Jinja: of several the one for tools if those are wanted and there is one, or the one
    /// named "default".
    pub fn chat_template(&self, tools: bool) -> Option<&str> {
        match self.config.get("chat_template")? {
            Value::String(template) => Some(template),
            Value::Array(named) => {
                let find = |name: &str| named.iter().find(|t| t["name"] == name).and_then(|t| t["template"].as_str());
                Some("tool_use").filter(|_| tools).and_then(find).or_else(|| find("default"))
            }
            _ => None,
        }
    }

    /// Special tokens by the names that chat templates call them, such as `bos_token`.
    pub fn special_tokens(&self) -> Vec<(String, String)> {
        let own = |key: &str| match key {
            "bos_token" => self.bos,
            "eos_token" => self.eos,
            _ => None,
        };
        let text = |key: &str| match self.config.get(key) {
            Some(value) => value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_string),
            None => own(key).and_then(|id| self.inner.id_to_token(id)),
        };
        SPECIAL.iter().filter_map(|key| Some((key.to_string(), text(key)?))).collect()
    }

    /// Every token that ends an answer: the end of the text, and special tokens that are known to end a turn.
    pub fn turn_ends(&self) -> Vec<u32> {
        let marked = self.inner.get_added_tokens_decoder();
        let special = |name: &&str| self.inner.token_to_id(name).filter(|id| marked.get(id).is_some_and(|t| t.special));
        let mut ids: Vec<u32> = TURN_ENDS.iter().filter_map(special).chain(self.eos).chain(self.eot).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}
