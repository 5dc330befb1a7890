//! What lies beside a tokenizer.json and belongs to it: tokenizer_config.json, and chat templates in files of their own.

use serde_json::{Map, Value, json};
use std::io::ErrorKind;
use std::path::Path;

use super::Tokenizer;
use crate::base::{read_optional_text, read_text};
use crate::error::{Error, Result};
use crate::store::TEMPLATES_FOLDER;
use crate::store::gguf::ENDS;

/// Longest tokenizer_config.json that is believed; the largest published ones have a megabyte.
const MOST_CONFIG: u64 = 16 << 20;
/// Longest chat template that is believed, fifty times any published one, and how many of them.
const MOST_TEMPLATE: u64 = 1 << 20;
const MOST_TEMPLATES: usize = 64;

/// Keys of special tokens that chat templates may write.
const SPECIAL: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// Reads the configuration of a folder's tokenizer. Templates in files take the place of those in it, as newer versions of
/// `transformers` write them; chat_template.json, as older ones wrote it, is read where no other place has one.
pub(super) fn read_config(folder: &Path) -> Result<Map<String, Value>> {
    let mut config = read_object(&folder.join("tokenizer_config.json"))?.unwrap_or_default();
    let templates = match read_templates(folder)?.as_slice() {
        [] if config.get("chat_template").is_some_and(|template| !template.is_null()) => return Ok(config),
        [] => match read_object(&folder.join("chat_template.json"))?.and_then(|mut old| old.remove("chat_template")) {
            Some(template) => template,
            None => return Ok(config),
        },
        [(name, template)] if name == "default" => json!(template),
        named => named.iter().map(|(name, template)| json!({"name": name, "template": template})).collect(),
    };
    config.insert("chat_template".into(), templates);
    Ok(config)
}

/// The object in a JSON file, where there is one.
fn read_object(file: &Path) -> Result<Option<Map<String, Value>>> {
    let Some(text) = read_optional_text(file, MOST_CONFIG)? else { return Ok(None) };
    let object = serde_json::from_str(&text);
    object.map(Some).map_err(|error| Error::file(file, format!("is not a JSON object: {error}")))
}

/// Names and texts of the templates that are files.
fn read_templates(folder: &Path) -> Result<Vec<(String, String)>> {
    let mut named = Vec::new();
    if let Some(default) = read_optional_text(&folder.join("chat_template.jinja"), MOST_TEMPLATE)? {
        named.push(("default".to_string(), default));
    }
    let folder = folder.join(TEMPLATES_FOLDER);
    let fail = |error| Error::io("read", &folder, error);
    let entries = match std::fs::read_dir(&folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(named),
        entries => entries.map_err(fail)?,
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(fail)?.path();
        if path.extension().is_some_and(|ending| ending == "jinja") {
            paths.push(path);
        }
        if paths.len() > MOST_TEMPLATES {
            return Err(Error::file(
                &folder,
                format!("holds more than {MOST_TEMPLATES} chat templates; no real model does"),
            ));
        }
    }
    paths.sort();
    for path in paths {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        named.push((name, read_text(&path, MOST_TEMPLATE)?));
    }
    Ok(named)
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
        let mut ids: Vec<u32> = ENDS.iter().filter_map(special).chain(self.eos).chain(self.eot).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}
