//! Reads Hugging Face's config.json. Whatever we would compute wrongly is refused here, each with a sentence that says
//! which key of which file holds what, and what to do.

use super::ModelConfig;
use crate::error::{Error, Result};
use serde_json::{Map, Value};
use std::path::Path;

/// The architectures that we run.
const KNOWN: &str = "LlamaForCausalLM";
/// Largest width that is believed; it keeps every product of sizes within 64 bits.
const MAX_SIZE: usize = 1 << 20;

impl ModelConfig {
    /// Reads and checks a config.json.
    ///
    /// # Errors
    /// If the file cannot be read, is not JSON, or describes a model that we do not run.
    pub fn read(path: &Path) -> Result<ModelConfig> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
        ModelConfig::parse(&text, path)
    }

    /// Checks the text of a config.json; `path` is for the messages.
    ///
    /// # Errors
    /// As [`ModelConfig::read`].
    pub fn parse(text: &str, path: &Path) -> Result<ModelConfig> {
        let map: Map<String, Value> = serde_json::from_str(text)
            .map_err(|e| Error::file(path, format!("is not a JSON object ({e}); give a Hugging Face config.json")))?;
        let keys = Keys { path, map: &map };
        keys.check_architecture()?;
        keys.check_variants()?;
        let heads = keys.size("num_attention_heads", None)?;
        let hidden_size = keys.size("hidden_size", None)?;
        let vocab_size = keys.size_up_to("vocab_size", None, 1 << 24)?;
        let config = ModelConfig {
            vocab_size,
            hidden_size,
            intermediate_size: keys.size("intermediate_size", None)?,
            num_hidden_layers: keys.size_up_to("num_hidden_layers", None, 4096)?,
            num_attention_heads: heads,
            num_key_value_heads: keys.size("num_key_value_heads", Some(heads))?,
            head_dim: keys.head_dim(hidden_size, heads)?,
            max_position_embeddings: keys.size_up_to("max_position_embeddings", Some(2048), 1 << 24)?,
            rms_norm_eps: keys.positive("rms_norm_eps", 1e-6)?,
            rope_theta: keys.rope_theta()?,
            tie_word_embeddings: keys.flag("tie_word_embeddings", false)?,
            bos_token_id: keys.tokens("bos_token_id", 1, vocab_size)?.first().copied(),
            eos_token_ids: keys.tokens("eos_token_id", 2, vocab_size)?,
            initializer_range: keys.positive("initializer_range", 0.02)?,
        };
        keys.check_heads(&config)?;
        Ok(config)
    }
}

/// The keys of one file, with the words for what is wrong with them.
struct Keys<'a> {
    path: &'a Path,
    map: &'a Map<String, Value>,
}

impl Keys<'_> {
    /// The value under a key; null counts as absent, as it does for `transformers`.
    fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    fn refuse(&self, key: &str, value: &Value, what: impl AsRef<str>) -> Error {
        Error::file(self.path, format!("\"{key}\" is {value}; {}", what.as_ref()))
    }

    fn size(&self, key: &str, default: Option<usize>) -> Result<usize> {
        self.size_up_to(key, default, MAX_SIZE)
    }

    fn size_up_to(&self, key: &str, default: Option<usize>, max: usize) -> Result<usize> {
        let Some(value) = self.get(key) else {
            let missing = || Error::file(self.path, format!("\"{key}\" is missing; give it as a whole number"));
            return default.ok_or_else(missing);
        };
        match value.as_u64() {
            Some(n) if n >= 1 && n <= max as u64 => Ok(n as usize),
            _ => Err(self.refuse(key, value, format!("it must be a whole number from 1 to {max}"))),
        }
    }

    fn positive(&self, key: &str, default: f64) -> Result<f64> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => self.positive_value(key, value),
        }
    }

    fn positive_value(&self, key: &str, value: &Value) -> Result<f64> {
        let number = value.as_f64().filter(|x| x.is_finite() && *x > 0.0);
        number.ok_or_else(|| self.refuse(key, value, "it must be a number above 0"))
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool> {
        let Some(value) = self.get(key) else { return Ok(default) };
        value.as_bool().ok_or_else(|| self.refuse(key, value, "it must be true or false"))
    }

    /// Token ids: one, several, or none. Absent means `default`, as in `transformers`, where the vocabulary has it.
    fn tokens(&self, key: &str, default: u32, vocab: usize) -> Result<Vec<u32>> {
        let Some(value) = self.map.get(key) else {
            return Ok(if (default as usize) < vocab { vec![default] } else { vec![] });
        };
        let list = match value {
            Value::Null => return Ok(vec![]),
            Value::Array(list) => list.clone(),
            one => vec![one.clone()],
        };
        let id = |v: &Value| v.as_u64().filter(|&id| id < vocab as u64).map(|id| id as u32);
        let ids: Option<Vec<u32>> = list.iter().map(id).collect();
        ids.ok_or_else(|| {
            self.refuse(key, value, format!("token ids are whole numbers below \"vocab_size\" = {vocab}"))
        })
    }

    fn check_architecture(&self) -> Result<()> {
        let llama = match (self.get("architectures"), self.get("model_type")) {
            (Some(Value::Array(list)), _) if !list.is_empty() => list.iter().all(|a| a == KNOWN),
            (Some(_), _) => false,
            (None, Some(kind)) => kind == "llama",
            (None, None) => {
                let message = format!("\"architectures\" is missing; say which model this is (known: {KNOWN})");
                return Err(Error::file(self.path, message));
            }
        };
        if llama {
            return Ok(());
        }
        let key = if self.get("architectures").is_some() { "architectures" } else { "model_type" };
        Err(self.refuse(key, &self.map[key], format!("this architecture is not known; known: {KNOWN}")))
    }

    /// Refuses what changes the numbers and is not computed here.
    fn check_variants(&self) -> Result<()> {
        if let Some(act) = self.get("hidden_act").filter(|a| **a != "silu") {
            return Err(self.refuse("hidden_act", act, "only \"silu\" is known"));
        }
        for key in ["attention_bias", "mlp_bias"] {
            if self.flag(key, false)? {
                return Err(self.refuse(key, &self.map[key], "biases are not supported; use a model without them"));
            }
        }
        if let Some(value) = self.get("quantization_config") {
            let method = value.get("quant_method").unwrap_or(value);
            let what = "quantised weights are not supported; use the model's full-precision version";
            return Err(self.refuse("quantization_config", method, what));
        }
        for key in ["rope_scaling", "rope_parameters"] {
            let Some(value) = self.get(key) else { continue };
            let kind = value.get("rope_type").or_else(|| value.get("type"));
            let default = value.is_object() && kind.map_or(key == "rope_parameters", |kind| kind == "default");
            if !default {
                let name = format!("{key}.rope_type");
                let what = "only \"default\" rotary embedding is known; use a model without rope scaling";
                return Err(self.refuse(&name, kind.unwrap_or(value), what));
            }
        }
        Ok(())
    }

    fn rope_theta(&self) -> Result<f64> {
        match self.get("rope_parameters").and_then(|p| p.get("rope_theta")).filter(|v| !v.is_null()) {
            Some(value) => self.positive_value("rope_parameters.rope_theta", value),
            None => self.positive("rope_theta", 10_000.0),
        }
    }

    fn head_dim(&self, hidden: usize, heads: usize) -> Result<usize> {
        if self.get("head_dim").is_none() && !hidden.is_multiple_of(heads) {
            let what =
                format!("\"num_attention_heads\" = {heads} does not divide it; change one, or give \"head_dim\"");
            return Err(self.refuse("hidden_size", &hidden.into(), what));
        }
        let head_dim = self.size("head_dim", Some((hidden / heads).max(1)))?;
        if head_dim % 4 != 0 || head_dim > 256 {
            return Err(self.refuse(
                "head_dim",
                &head_dim.into(),
                "heads must be a multiple of 4 wide, and at most 256",
            ));
        }
        Ok(head_dim)
    }

    fn check_heads(&self, config: &ModelConfig) -> Result<()> {
        let (heads, kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
        if heads % kv_heads != 0 {
            let fits: Vec<String> = (1..=heads).filter(|k| heads % k == 0).map(|k| k.to_string()).collect();
            let what = format!("it must divide \"num_attention_heads\" = {heads}: {}", fits.join(", "));
            return Err(self.refuse("num_key_value_heads", &kv_heads.into(), what));
        }
        if config.query_size() > MAX_SIZE {
            let what = format!("times \"head_dim\" = {} it must be at most {MAX_SIZE}", config.head_dim);
            return Err(self.refuse("num_attention_heads", &heads.into(), what));
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "parse_tests.rs"]
mod tests;
