//! Reads Hugging Face's config.json. Whatever we would compute wrongly is refused here, each with a sentence that says
//! which key of which file holds what, and what to do.

use super::config::{Biases, Experts, LayerConfig, MOST_PARAMETERS, ModelConfig};
use super::family::{BiasRule, ExpertRule, FAMILIES, Family, WindowRule};
use super::keys::{Keys, MAX_SIZE};
use super::parse_rope::{Sizes, rope};
use crate::base::read_bytes;
use crate::error::{Error, Result};
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::path::Path;

/// Longest config.json, or generation_config.json, that is believed.
pub const MOST_CONFIG: u64 = 4 << 20;

impl ModelConfig {
    /// Reads and checks a config.json.
    ///
    /// # Errors
    /// If the file cannot be read, is not JSON, or describes a model that we do not run.
    pub fn read(path: &Path) -> Result<ModelConfig> {
        ModelConfig::parse(&config_text(path)?, path)
    }

    /// Checks the text of a config.json; `path` is for the messages.
    ///
    /// # Errors
    /// As [`ModelConfig::read`].
    pub fn parse(text: &str, path: &Path) -> Result<ModelConfig> {
        let map: Map<String, Value> = serde_json::from_str(text)
            .map_err(|e| Error::file(path, format!("is not a JSON object ({e}); give a Hugging Face config.json")))?;
        ModelConfig::from_map(&map, path)
    }

    /// Checks the keys of a config.json; `path` is for the messages.
    ///
    /// # Errors
    /// If they describe a model that we do not run.
    pub fn from_map(map: &Map<String, Value>, path: &Path) -> Result<ModelConfig> {
        let keys = Keys { path, map, prefix: String::new() };
        let family = keys.family()?;
        let defaults = &family.defaults;
        keys.check_variants(family)?;
        let heads = keys.size("num_attention_heads", None)?;
        let hidden_size = keys.size("hidden_size", None)?;
        let vocab_size = keys.size_up_to("vocab_size", None, 1 << 24)?;
        let intermediate_size = keys.size("intermediate_size", None)?;
        let layers = keys.size_up_to("num_hidden_layers", None, 4096)?;
        let head_dim = keys.head_dim(hidden_size, heads, defaults.head_dim)?;
        let positions = if family.alibi { "model_max_length" } else { "max_position_embeddings" };
        let max_positions = keys.size_up_to(positions, Some(defaults.max_positions), 1 << 24)?;
        // Null means as many as query heads, as nothing does where the family has no default.
        let kv_default = defaults.key_value_heads.filter(|_| !map.contains_key("num_key_value_heads"));
        let config = ModelConfig {
            family,
            vocab_size,
            hidden_size,
            intermediate_size,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: keys.size("num_key_value_heads", Some(kv_default.unwrap_or(heads)))?,
            head_dim,
            max_position_embeddings: max_positions,
            rms_norm_eps: keys.positive("rms_norm_eps", defaults.rms_norm_eps)?,
            rope: rope(&keys, family, &Sizes { head_dim, max_positions })?,
            layers: keys.layers(family, layers)?,
            biases: keys.biases(family)?,
            experts: keys.experts(family)?,
            tie_word_embeddings: keys.flag("tie_word_embeddings", defaults.tied)?,
            bos_token_id: keys.tokens("bos_token_id", defaults.bos, vocab_size)?.first().copied(),
            eos_token_ids: keys.tokens("eos_token_id", defaults.eos, vocab_size)?,
            initializer_range: keys.positive("initializer_range", 0.02)?,
        };
        keys.check_heads(&config)?;
        keys.check_parameters(&config)?;
        Ok(config)
    }
}

/// The text of a config.json.
///
/// # Errors
/// If it cannot be read, is longer than [`MOST_CONFIG`], or something else.
pub fn config_text(path: &Path) -> Result<String> {
    let bytes = read_bytes(path, MOST_CONFIG)?;
    if bytes.starts_with(b"GGUF") {
        return Err(Error::file(path, "is a GGUF file and no config.json; give a Hugging Face config.json"));
    }
    let binary = |_| Error::file(path, "is no config.json: it is not UTF-8 text; give a Hugging Face config.json");
    String::from_utf8(bytes).map_err(binary)
}

/// Names that are known, for messages.
fn known(names: impl Fn(&'static Family) -> &'static [&'static str]) -> String {
    let all: BTreeSet<&str> = FAMILIES.iter().flat_map(|family| names(family).iter().copied()).collect();
    all.into_iter().collect::<Vec<_>>().join(", ")
}

impl Keys<'_> {
    /// The row of the table.
    fn family(&self) -> Result<&'static Family> {
        let architectures = || known(|family| family.architectures);
        let Some(value) = self.get("architectures") else {
            let Some(kind) = self.get("model_type") else {
                let what = "\"architectures\" is missing; say which model this is";
                return Err(Error::file(self.path, format!("{what} (known: {})", architectures())));
            };
            let types = || known(|family| std::slice::from_ref(&family.model_type));
            return self.row(|family| kind == family.model_type).ok_or_else(|| self.unknown("model_type", types()));
        };
        let list = value.as_array().filter(|list| !list.is_empty());
        let named = |family: &Family, name: &Value| family.architectures.iter().any(|known| name == known);
        let row = list.and_then(|list| self.row(|family| list.iter().all(|name| named(family, name))));
        row.ok_or_else(|| self.unknown("architectures", architectures()))
    }

    /// The first row that is named and applies.
    fn row(&self, named: impl Fn(&Family) -> bool) -> Option<&'static Family> {
        FAMILIES.iter().find(|family| named(family) && (family.applies)(self.map))
    }

    fn unknown(&self, key: &str, known: String) -> Error {
        self.refuse(key, &self.map[key], format!("this architecture is not known; known: {known}"))
    }

    /// Refuses what changes the numbers and is not computed here.
    fn check_variants(&self, family: &Family) -> Result<()> {
        if let Some(act) = self.get("hidden_act").filter(|a| **a != "silu") {
            return Err(self.refuse("hidden_act", act, "only \"silu\" is known"));
        }
        for (key, known) in [
            ("attention_bias", !matches!(family.biases, BiasRule::Never | BiasRule::Qkv)),
            ("mlp_bias", family.biases == BiasRule::AttentionAndMlp),
        ] {
            if !known && self.flag(key, false)? {
                let what = format!("{} models have no such biases; this is another architecture", family.models);
                return Err(self.refuse(key, &self.map[key], what));
            }
        }
        if let Some(value) = self.get("clip_qkv") {
            return Err(self.refuse("clip_qkv", value, "clipped queries, keys and values are not supported"));
        }
        if let Some(value) = self.get("quantization_config") {
            let method = value.get("quant_method").unwrap_or(value);
            let what = "quantised weights are not supported; use the model's full-precision version";
            return Err(self.refuse("quantization_config", method, what));
        }
        Ok(())
    }

    fn biases(&self, family: &Family) -> Result<Biases> {
        let attention = || self.flag("attention_bias", false);
        Ok(match family.biases {
            BiasRule::Never => Biases::default(),
            BiasRule::Qkv => Biases { qkv: true, ..Biases::default() },
            BiasRule::Attention => Biases { qkv: attention()?, output: attention()?, mlp: false },
            BiasRule::AttentionAndMlp => {
                Biases { qkv: attention()?, output: attention()?, mlp: self.flag("mlp_bias", false)? }
            }
        })
    }

    /// Switches of all layers.
    fn layers(&self, family: &Family, count: usize) -> Result<Vec<LayerConfig>> {
        let rotary = self.rotary(family, count)?;
        let windows = self.windows(family, &rotary)?;
        let sparse = self.sparse(family, count)?;
        let layer = |i: usize| LayerConfig { rotary: rotary[i], window: windows[i], sparse: sparse[i] };
        Ok((0..count).map(layer).collect())
    }

    fn rotary(&self, family: &Family, count: usize) -> Result<Vec<bool>> {
        if !family.no_rope_layers {
            return Ok(vec![!family.alibi; count]);
        }
        let Some(value) = self.get("no_rope_layers") else {
            let interval = self.size("no_rope_layer_interval", Some(4))?;
            return Ok((1..=count).map(|i| i % interval != 0).collect());
        };
        let list = value.as_array().filter(|list| list.len() >= count);
        let flag = |v: &Value| v.as_u64().filter(|v| *v < 2).map(|v| v == 1);
        let rotary = list.and_then(|list| list[..count].iter().map(flag).collect());
        rotary.ok_or_else(|| {
            self.refuse("no_rope_layers", value, format!("it must list a 1 (turned) or 0 for each of {count} layers"))
        })
    }

    fn windows(&self, family: &Family, rotary: &[bool]) -> Result<Vec<Option<usize>>> {
        let count = rotary.len();
        let given = |default: Option<usize>| match self.map.get("sliding_window") {
            None => Ok(default),
            Some(Value::Null) => Ok(None),
            Some(_) => self.size_up_to("sliding_window", None, 1 << 24).map(Some),
        };
        let used = self.flag("use_sliding_window", false)?;
        let (window, chosen): (_, Box<dyn Fn(usize) -> bool>) = match family.window {
            WindowRule::Never => return Ok(vec![None; count]),
            WindowRule::Every(default) => return Ok(vec![given(default)?; count]),
            _ if !used => return Ok(vec![None; count]),
            WindowRule::EveryIfUsed => return Ok(vec![given(Some(4096))?; count]),
            WindowRule::FromLayer => {
                // 0 is a layer too, so this is no size.
                let from = match self.get("max_window_layers") {
                    None => 28,
                    Some(value) => value
                        .as_u64()
                        .ok_or_else(|| self.refuse("max_window_layers", value, "it must be a number of layers"))?,
                };
                (given(Some(4096))?, Box::new(move |i| i as u64 >= from))
            }
            WindowRule::WithoutRope => (given(None)?, Box::new(|i| !rotary[i])),
        };
        let types = self.layer_types(count)?;
        let chosen = |i: usize| types.as_ref().map_or_else(|| chosen(i), |types| types[i]);
        Ok((0..count).map(|i| window.filter(|_| chosen(i))).collect())
    }

    /// True for each layer with a window.
    fn layer_types(&self, count: usize) -> Result<Option<Vec<bool>>> {
        let Some(value) = self.get("layer_types") else { return Ok(None) };
        let list = value.as_array().filter(|list| list.len() == count);
        let kind = |v: &Value| match v.as_str() {
            Some("sliding_attention") => Some(true),
            Some("full_attention") => Some(false),
            _ => None,
        };
        let types: Option<Vec<bool>> = list.and_then(|list| list.iter().map(kind).collect());
        types.map(Some).ok_or_else(|| {
            let what = format!("it must list \"full_attention\" or \"sliding_attention\" for each of {count} layers");
            self.refuse("layer_types", value, what)
        })
    }

    /// True for each layer with experts.
    fn sparse(&self, family: &Family, count: usize) -> Result<Vec<bool>> {
        match family.experts {
            ExpertRule::Never => Ok(vec![false; count]),
            ExpertRule::Mixtral => Ok(vec![true; count]),
            ExpertRule::Qwen => {
                let step = self.size("decoder_sparse_step", Some(1))?;
                let dense = match self.get("mlp_only_layers") {
                    None => vec![],
                    Some(value) => {
                        let list = value.as_array().and_then(|list| list.iter().map(Value::as_u64).collect());
                        let list: Option<Vec<u64>> = list;
                        list.ok_or_else(|| self.refuse("mlp_only_layers", value, "it must be a list of layers"))?
                    }
                };
                Ok((0..count).map(|i| !dense.contains(&(i as u64)) && (i + 1) % step == 0).collect())
            }
        }
    }

    fn experts(&self, family: &Family) -> Result<Option<Experts>> {
        let (count, width, normalise) = match family.experts {
            ExpertRule::Never => return Ok(None),
            ExpertRule::Mixtral => ("num_local_experts", "intermediate_size", true),
            ExpertRule::Qwen => ("num_experts", "moe_intermediate_size", self.flag("norm_topk_prob", false)?),
        };
        // `transformers` 5 writes either name.
        let count = if self.get(count).is_some() { count } else { "num_local_experts" };
        let per_token = if family.experts == ExpertRule::Mixtral { Some(2) } else { None };
        let experts = Experts {
            count: self.size(count, None)?,
            per_token: self.size("num_experts_per_tok", per_token)?,
            intermediate_size: self.size(width, None)?,
            normalise,
            balance: self.balance()?,
            z: match self.get("router_z_loss_coef") {
                Some(value) if value.as_f64() != Some(0.0) => self.positive("router_z_loss_coef", 0.001)?,
                _ => 0.0,
            },
        };
        if experts.per_token > experts.count {
            let what = format!("there are only \"{count}\" = {} experts", experts.count);
            return Err(self.refuse("num_experts_per_tok", &experts.per_token.into(), what));
        }
        Ok(Some(experts))
    }

    /// The share of the experts' balance in the loss.
    fn balance(&self) -> Result<f64> {
        let key = "router_aux_loss_coef";
        if !self.flag("output_router_logits", false)? || self.get(key).is_some_and(|v| v.as_f64() == Some(0.0)) {
            return Ok(0.0);
        }
        self.positive(key, 0.001)
    }

    fn head_dim(&self, hidden: usize, heads: usize, default: Option<usize>) -> Result<usize> {
        let default = default.filter(|_| !self.map.contains_key("head_dim"));
        if self.get("head_dim").is_none() && default.is_none() && !hidden.is_multiple_of(heads) {
            let what =
                format!("\"num_attention_heads\" = {heads} does not divide it; change one, or give \"head_dim\"");
            return Err(self.refuse("hidden_size", &hidden.into(), what));
        }
        let head_dim = self.size("head_dim", Some(default.unwrap_or(hidden / heads).max(1)))?;
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

    fn check_parameters(&self, config: &ModelConfig) -> Result<()> {
        let count = config.counted_parameters();
        if count <= u128::from(MOST_PARAMETERS) {
            return Ok(());
        }
        let what =
            format!("its sizes make a model of {count} parameters, and none of more than {MOST_PARAMETERS} is known");
        Err(Error::file(self.path, format!("{what}; one of them is wrong")))
    }
}

#[cfg(test)]
#[path = "parse_tests.rs"]
mod tests;
