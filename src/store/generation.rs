//! generation_config.json, and what a GGUF file has in its place: how a model's makers would have its texts made.

use super::gguf::Metadata;
use crate::base::read_text;
use crate::error::{Error, Result};
use crate::model::MOST_CONFIG;
use serde_json::{Map, Value};
use std::path::Path;

/// Names under `general.sampling` in GGUF, as llama.cpp writes them, and those of generation_config.json.
const SAMPLING: [(&str, &str); 5] = [
    ("temp", "temperature"),
    ("top_k", "top_k"),
    ("top_p", "top_p"),
    ("min_p", "min_p"),
    ("penalty_repeat", "repetition_penalty"),
];

/// What a folder's generation_config.json says; nothing where there is none.
///
/// # Errors
/// If it cannot be read, or is no JSON object.
pub(super) fn of_folder(folder: &Path) -> Result<Map<String, Value>> {
    let file = folder.join("generation_config.json");
    if !file.is_file() {
        return Ok(Map::new());
    }
    serde_json::from_str(&read_text(&file, MOST_CONFIG)?).map_err(|e| {
        Error::file(&file, format!("is not a JSON object ({e}); give a Hugging Face generation_config.json"))
    })
}

/// The settings of sampling in a GGUF file, under the names of generation_config.json. What is no number is left out.
pub(super) fn of_gguf(metadata: &Metadata) -> Map<String, Value> {
    let setting = |(theirs, name): (&str, &str)| {
        let key = format!("general.sampling.{theirs}");
        // A whole number must stay one: top-k.
        let value = match metadata.uint(&key) {
            Ok(Some(whole)) => Value::from(whole),
            // 0.6 in f32 is meant, not its neighbour in f64.
            _ => Value::from((metadata.number(&key).ok()?? as f32).to_string().parse::<f64>().ok()?),
        };
        Some((name.to_string(), value))
    };
    SAMPLING.into_iter().filter_map(setting).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::gguf::Value as Gguf;

    #[test]
    fn a_gguf_files_settings_have_the_folders_names() {
        let mut metadata = Metadata::new(Path::new("x.gguf"));
        for (key, value) in [("temp", Gguf::f32(0.6)), ("top_k", Gguf::u32(20)), ("xtc_threshold", Gguf::f32(0.1))] {
            metadata.set(&format!("general.sampling.{key}"), value);
        }
        assert_eq!(Value::Object(of_gguf(&metadata)), serde_json::json!({"temperature": 0.6, "top_k": 20}));
    }

    #[test]
    fn a_folder_need_not_have_one() {
        let folder = tempfile::tempdir().unwrap();
        assert!(of_folder(folder.path()).unwrap().is_empty());
        std::fs::write(folder.path().join("generation_config.json"), "{\"top_k\": 3}").unwrap();
        assert_eq!(of_folder(folder.path()).unwrap()["top_k"], 3);
        std::fs::write(folder.path().join("generation_config.json"), "[3]").unwrap();
        let said = of_folder(folder.path()).unwrap_err().to_string();
        assert!(said.contains("generation_config.json: is not a JSON object ("), "{said}");
    }
}
