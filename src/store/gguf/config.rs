//! The configuration that a GGUF file's metadata describe, as Hugging Face would write it. What is absent takes the value
//! that llama.cpp gives it, or is read off the shapes of the tensors.

use super::Metadata;
use super::architectures::{self, architecture};
use super::tokens::{ENDS, special_token, token_type::CONTROL};
use crate::error::{Error, Result};
use crate::store::tensors::Tensors;
use serde_json::{Map, Value, json};

/// Hugging Face's keys, and GGUF's for the same, which follow the architecture's name.
const NAMES: [(&str, &str); 15] = [
    ("num_hidden_layers", "block_count"),
    ("hidden_size", "embedding_length"),
    ("intermediate_size", "feed_forward_length"),
    ("num_attention_heads", "attention.head_count"),
    ("num_key_value_heads", "attention.head_count_kv"),
    ("head_dim", "attention.key_length"),
    ("max_position_embeddings", "context_length"),
    ("model_max_length", "context_length"),
    ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
    ("rope_theta", "rope.freq_base"),
    ("sliding_window", "attention.sliding_window"),
    ("num_local_experts", "expert_count"),
    ("num_experts", "expert_count"),
    ("num_experts_per_tok", "expert_used_count"),
    ("moe_intermediate_size", "expert_feed_forward_length"),
];

/// An error about the configuration that [`config`] gave, with the keys that the file itself has.
pub(in crate::store) fn own_keys(error: Error, metadata: &Metadata) -> Error {
    match (error, architecture(metadata)) {
        (Error::File { path, message }, Ok(architecture)) => {
            let name = |text: String, (theirs, own): &(&str, &str)| {
                text.replace(&format!("\"{theirs}\""), &format!("\"{architecture}.{own}\" ({theirs})"))
            };
            Error::File { path, message: NAMES.iter().fold(message, name) }
        }
        (error, _) => error,
    }
}

/// A file's metadata under the prefix of its architecture.
struct Keys<'a> {
    metadata: &'a Metadata,
    architecture: &'a str,
    tensors: &'a Tensors,
}

/// The configuration, with Hugging Face's keys.
///
/// # Errors
/// If the architecture is not known, a key that cannot be guessed is missing, or one has another type.
pub(in crate::store) fn config(metadata: &Metadata, tensors: &Tensors) -> Result<Map<String, Value>> {
    let architecture = architecture(metadata)?;
    let keys = Keys { metadata, architecture, tensors };
    let mut map = Map::new();
    keys.sizes(&mut map)?;
    keys.attention(&mut map)?;
    keys.experts(&mut map)?;
    keys.rope(&mut map)?;
    keys.tokens(&mut map)?;
    let told = |key: &str, kind| Some(kind).filter(|_| architecture == "llama" && map.contains_key(key));
    let kind = told("num_local_experts", "mixtral").or_else(|| told("sliding_window", "mistral"));
    let row = architectures::find(architecture, kind).expect("an architecture that is known");
    if architecture == "baichuan" {
        keys.baichuan(&mut map)?;
    }
    map.insert("architectures".into(), json!([row.class]));
    map.insert("model_type".into(), json!(row.model_type));
    map.insert("hidden_act".into(), json!("silu"));
    Ok(map)
}

impl Keys<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    fn uint(&self, name: &str) -> Result<Option<u64>> {
        self.metadata.uint(&self.key(name))
    }

    fn number(&self, name: &str) -> Result<Option<f64>> {
        self.metadata.number(&self.key(name))
    }

    /// A number, or an array that holds it once a layer.
    fn uniform(&self, name: &str) -> Result<Option<u64>> {
        let key = self.key(name);
        if !matches!(self.metadata.get(&key), Some(super::Value::Array(_))) {
            return self.metadata.uint(&key);
        }
        let values = self.metadata.numbers(&key)?.unwrap_or_default();
        match values.first() {
            None => Err(Error::file(self.metadata.path(), format!("{key} is an empty list; convert the model anew"))),
            Some(first) if values.iter().all(|v| v == first) && *first >= 0.0 => Ok(Some(*first as u64)),
            _ => {
                let message = format!("{key} differs from layer to layer; only models of equal layers are known");
                Err(Error::file(self.metadata.path(), message))
            }
        }
    }

    fn missing(&self, name: &str) -> Error {
        Error::file(self.metadata.path(), format!("{} is missing; convert the model anew", self.key(name)))
    }

    fn dims(&self, tensor: &str) -> Option<&[usize]> {
        self.tensors.get(tensor).map(|t| t.shape.dims())
    }

    fn sizes(&self, map: &mut Map<String, Value>) -> Result<()> {
        let table = self.dims("token_embd.weight");
        let table = table.filter(|d| d.len() == 2).ok_or_else(|| {
            Error::file(self.metadata.path(), "holds no token_embd.weight of two dims: it is a vocabulary, no model")
        })?;
        let hidden = self.uint("embedding_length")?.unwrap_or(table[1] as u64);
        let layers = self.uint("block_count")?.ok_or_else(|| self.missing("block_count"))?;
        let inner = self.uniform("feed_forward_length")?.or_else(|| {
            let dims = self.dims("blk.0.ffn_down.weight")?;
            dims.last().map(|&f| f as u64)
        });
        let inner = match inner {
            Some(inner) => Some(inner),
            None => self.uint("expert_feed_forward_length")?,
        };
        map.insert("vocab_size".into(), json!(table[0]));
        map.insert("hidden_size".into(), json!(hidden));
        map.insert("num_hidden_layers".into(), json!(layers));
        map.insert("intermediate_size".into(), json!(inner.ok_or_else(|| self.missing("feed_forward_length"))?));
        map.insert("max_position_embeddings".into(), json!(self.uint("context_length")?.unwrap_or(2048)));
        map.insert("tie_word_embeddings".into(), json!(self.tensors.get("output.weight").is_none()));
        Ok(())
    }

    fn attention(&self, map: &mut Map<String, Value>) -> Result<()> {
        let heads = self.uniform("attention.head_count")?.ok_or_else(|| self.missing("attention.head_count"))?;
        let kv_heads = self.uniform("attention.head_count_kv")?.unwrap_or(heads);
        map.insert("num_attention_heads".into(), json!(heads));
        map.insert("num_key_value_heads".into(), json!(kv_heads));
        if let Some(width) = self.uint("attention.key_length")? {
            map.insert("head_dim".into(), json!(width));
            let values = self.uint("attention.value_length")?.unwrap_or(width);
            if values != width {
                let message = format!("its keys are {width} wide and its values {values}; only equal widths are known");
                return Err(Error::file(self.metadata.path(), message));
            }
        }
        let eps = self.number("attention.layer_norm_rms_epsilon")?.unwrap_or(1e-5);
        // Written as f32; the nearest decimal is what was meant.
        map.insert("rms_norm_eps".into(), decimal(eps));
        let window = self.uint("attention.sliding_window")?.filter(|w| *w > 0);
        if let (Some(window), "llama" | "phi3") = (window, self.architecture) {
            map.insert("sliding_window".into(), json!(window));
        }
        // Qwen 2 always has biases, and no key that says so.
        for (tensor, key) in [("blk.0.attn_q.bias", "attention_bias"), ("blk.0.ffn_up.bias", "mlp_bias")] {
            if self.architecture != "qwen2" && self.tensors.get(tensor).is_some() {
                map.insert(key.into(), json!(true));
            }
        }
        Ok(())
    }

    /// What tells Baichuan's models apart: the name of a key, and the weight of a loss. llama.cpp goes by the number of
    /// layers for the first and wants heads scaled beforehand for the second; files of ours say both.
    fn baichuan(&self, map: &mut Map<String, Value>) -> Result<()> {
        let alibi = self.number("attention.max_alibi_bias")?.map_or(map["num_hidden_layers"] == 40, |bias| bias > 0.0);
        if alibi {
            let positions = map.remove("max_position_embeddings");
            map.insert("model_max_length".into(), positions.unwrap_or_default());
        }
        if self.metadata.flag(&self.key("unit_head"))? == Some(true) {
            map.insert("z_loss_weight".into(), json!(0));
        }
        Ok(())
    }

    fn experts(&self, map: &mut Map<String, Value>) -> Result<()> {
        let Some(count) = self.uint("expert_count")?.filter(|n| *n > 0) else { return Ok(()) };
        let used = self.uint("expert_used_count")?.ok_or_else(|| self.missing("expert_used_count"))?;
        let name = if self.architecture == "llama" { "num_local_experts" } else { "num_experts" };
        map.insert(name.into(), json!(count));
        map.insert("num_experts_per_tok".into(), json!(used));
        if self.architecture != "llama" {
            let inner = self.uint("expert_feed_forward_length")?;
            map.insert("moe_intermediate_size".into(), json!(inner));
            // llama.cpp normalises the chosen experts' weights, as every published one of these does.
            map.insert("norm_topk_prob".into(), json!(true));
            map.insert("decoder_sparse_step".into(), json!(1));
            map.insert("mlp_only_layers".into(), json!([]));
        }
        Ok(())
    }

    fn rope(&self, map: &mut Map<String, Value>) -> Result<()> {
        map.insert("rope_theta".into(), decimal(self.number("rope.freq_base")?.unwrap_or(10_000.0)));
        if self.architecture == "smollm3" {
            map.insert("no_rope_layer_interval".into(), json!(4));
        }
        let (heads, hidden) = (map["num_attention_heads"].as_u64(), map["hidden_size"].as_u64());
        let width = map.get("head_dim").and_then(Value::as_u64);
        let width = width.or_else(|| hidden?.checked_div(heads?));
        if let (Some(turned), Some(width)) = (self.uint("rope.dimension_count")?, width)
            && turned != width
            && width > 0
        {
            map.insert("partial_rotary_factor".into(), json!(crate::model::rotary_share(turned, width)));
        }
        if let Some(scaling) = self.scaling(map)? {
            map.insert("rope_scaling".into(), scaling);
        }
        Ok(())
    }

    fn scaling(&self, map: &Map<String, Value>) -> Result<Option<Value>> {
        let original = self.uint("rope.scaling.original_context_length")?;
        if let Some(factors) = self.factors("rope_freqs.weight")? {
            let theta = map["rope_theta"].as_f64().unwrap_or(10_000.0);
            let context = original.or(map["max_position_embeddings"].as_u64()).unwrap_or(8192);
            return Ok(Some(super::scaling::llama3(&factors, theta, context)));
        }
        if let (Some(long), Some(short)) =
            (self.factors("rope_factors_long.weight")?, self.factors("rope_factors_short.weight")?)
        {
            let attention = self.number("rope.scaling.attn_factor")?.unwrap_or(1.0);
            return Ok(Some(json!({
                "rope_type": "longrope", "long_factor": long, "short_factor": short,
                "original_max_position_embeddings": original, "attention_factor": decimal(attention),
            })));
        }
        let kind = self.metadata.string(&self.key("rope.scaling.type"))?;
        let factor = match self.number("rope.scaling.factor")? {
            Some(factor) => Some(factor),
            None => self.number("rope.scale_linear")?,
        };
        let Some(factor) = factor.filter(|f| *f != 0.0 && *f != 1.0) else { return Ok(None) };
        match kind.unwrap_or("linear") {
            "none" => Ok(None),
            "linear" => Ok(Some(json!({"rope_type": "linear", "factor": decimal(factor)}))),
            "yarn" => Ok(Some(json!({
                "rope_type": "yarn", "factor": decimal(factor), "original_max_position_embeddings": original,
                // GGUF's factor comes on top of YaRN's own (Peng et al., 2023, equation 22); ours takes its place.
                "attention_factor": self.number("rope.scaling.attn_factor")?.map(|f| f * yarn_attention(factor)),
                "beta_fast": self.number("rope.scaling.yarn_beta_fast")?.map(decimal),
                "beta_slow": self.number("rope.scaling.yarn_beta_slow")?.map(decimal),
            }))),
            other => {
                let message =
                    format!("{} is {other:?}; known: none, linear, yarn, longrope", self.key("rope.scaling.type"));
                Err(Error::file(self.metadata.path(), message))
            }
        }
    }

    /// The values of a small vector.
    fn factors(&self, name: &str) -> Result<Option<Vec<f32>>> {
        let Some(tensor) = self.tensors.get(name) else { return Ok(None) };
        if tensor.shape.rank() != 1 || tensor.shape.last() > 1 << 12 || tensor.dtype()?.block().elements > 2 {
            return Err(tensor.fail("should hold a factor for every rotated pair of dims, in F32"));
        }
        let mut values = vec![0.0; tensor.shape.last()];
        crate::store::tensors::widen(tensor.dtype()?, tensor.bytes, &mut values);
        Ok(Some(values))
    }

    /// The tokens that begin and end a text.
    fn tokens(&self, map: &mut Map<String, Value>) -> Result<()> {
        let vocab = map["vocab_size"].as_u64().unwrap_or(0);
        let special =
            |name: &str| Ok::<_, Error>(special_token(self.metadata, name)?.filter(|id| u64::from(*id) < vocab));
        let bos = special("bos")?;
        let mut ends = Vec::new();
        for name in ["eos", "eot", "eom"] {
            ends.extend(special(name)?);
        }
        let texts = self.metadata.strings("tokenizer.ggml.tokens")?.unwrap_or_default();
        let types = self.metadata.numbers("tokenizer.ggml.token_type")?.unwrap_or_default();
        // A file that says that nothing ends a text means it.
        let endless = self.metadata.number("tokenizer.ggml.eos_token_id")? == Some(super::NO_TOKEN.into());
        for (i, (text, kind)) in texts.iter().zip(types).enumerate() {
            if !endless && kind == f64::from(CONTROL) && ENDS.contains(text) && (i as u64) < vocab {
                ends.push(i as u32);
            }
        }
        let mut seen = std::collections::HashSet::new();
        ends.retain(|id| seen.insert(*id));
        map.insert("bos_token_id".into(), json!(bos));
        map.insert("eos_token_id".into(), json!(ends));
        Ok(())
    }
}

/// YaRN's scale of queries and keys for a stretch by `factor`.
pub(super) fn yarn_attention(factor: f64) -> f64 {
    0.1 * factor.ln() + 1.0
}

/// A number that was written in single precision, as its shortest decimal.
fn decimal(x: f64) -> Value {
    let short: f64 = (x as f32).to_string().parse().unwrap_or(x);
    if f64::from(x as f32) == x { json!(short) } else { json!(x) }
}
