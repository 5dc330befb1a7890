//! The metadata and small tensors by which a GGUF file describes a model: the inverse of `config.rs`.

use super::architectures::architecture_of;
use super::config::yarn_attention;
use super::metadata::NO_TOKEN;
use super::{Metadata, Value};
use crate::base::DType;
use crate::error::Result;
use crate::model::{ExpertRule, ModelConfig, RopeScaling};
use std::path::Path;

/// GGUF's number for files whose matrices are mostly of a dtype (`general.file_type`).
fn file_type(dtype: DType) -> u32 {
    match dtype {
        DType::F16 => 1,
        DType::Q4_0 => 2,
        DType::Q4_1 => 3,
        DType::Q8_0 => 7,
        DType::Q5_0 => 8,
        DType::Q5_1 => 9,
        DType::Q2K => 10,
        DType::Q3K => 12,
        DType::Q4K => 15,
        DType::Q5K => 17,
        DType::Q6K => 18,
        DType::BF16 => 32,
        // NF4 is no dtype of files.
        DType::F32 | DType::U32 | DType::Nf4 => 0,
    }
}

/// Says of what dtype the matrices mostly are.
pub(in crate::store) fn set_file_type(metadata: &mut Metadata, dtype: DType) {
    metadata.set("general.file_type", Value::u32(file_type(dtype)));
    if dtype.block().elements > 2 {
        metadata.set("general.quantization_version", Value::u32(2));
    }
}

/// The keys that describe a model.
///
/// # Errors
/// If GGUF has no architecture for it.
pub(in crate::store) fn describe(config: &ModelConfig, name: &str, path: &Path) -> Result<Metadata> {
    let architecture = architecture_of(config)?;
    let mut metadata = Metadata::new(path);
    metadata.set("general.architecture", Value::String(architecture.into()));
    metadata.set("general.name", Value::String(name.into()));
    let mut set = |key: &str, value: Value| {
        metadata.set(&format!("{architecture}.{key}"), value);
    };
    let count = |n: usize| Value::u32(n as u32);
    set("context_length", count(config.max_position_embeddings));
    set("embedding_length", count(config.hidden_size));
    set("block_count", count(config.num_hidden_layers));
    set("feed_forward_length", count(config.intermediate_size));
    set("attention.head_count", count(config.num_attention_heads));
    set("attention.head_count_kv", count(config.num_key_value_heads));
    set("attention.key_length", count(config.head_dim));
    set("attention.value_length", count(config.head_dim));
    set("attention.layer_norm_rms_epsilon", Value::f32(config.rms_norm_eps as f32));
    set("vocab_size", count(config.vocab_size));
    if let Some(window) = config.layers.iter().find_map(|l| l.window) {
        set("attention.sliding_window", count(window));
    }
    if let Some(experts) = config.experts {
        set("expert_count", count(experts.count));
        set("expert_used_count", count(experts.per_token));
        if config.family.experts == ExpertRule::Qwen {
            set("expert_feed_forward_length", count(experts.intermediate_size));
        }
    }
    if architecture == "baichuan" {
        set("attention.max_alibi_bias", Value::f32(if config.family.alibi { 8.0 } else { 0.0 }));
        set("unit_head", Value::Bool(config.family.unit_head));
    }
    set("rope.dimension_count", count(config.rope.width));
    set("rope.freq_base", Value::f32(config.rope.theta as f32));
    rope_scaling(&config.rope.scaling, &mut set);
    Ok(metadata)
}

fn rope_scaling(scaling: &RopeScaling, set: &mut dyn FnMut(&str, Value)) {
    let text = |kind: &str| Value::String(kind.into());
    let number = |x: f64| Value::f32(x as f32);
    match *scaling {
        // GGUF has no dynamic scaling: `lost` says so. Llama 3's is a tensor.
        RopeScaling::Default | RopeScaling::Dynamic { .. } | RopeScaling::Llama3 { .. } => {}
        RopeScaling::Linear { factor } => {
            set("rope.scaling.type", text("linear"));
            set("rope.scaling.factor", number(factor));
        }
        RopeScaling::Yarn { factor, original, fast, slow, attention, .. } => {
            set("rope.scaling.type", text("yarn"));
            set("rope.scaling.factor", number(factor));
            set("rope.scaling.original_context_length", Value::u32(original as u32));
            set("rope.scaling.yarn_beta_fast", number(fast));
            set("rope.scaling.yarn_beta_slow", number(slow));
            let extra = (attention / yarn_attention(factor)) as f32;
            if extra != 1.0 {
                set("rope.scaling.attn_factor", Value::f32(extra));
            }
        }
        RopeScaling::Long { original, attention, .. } => {
            set("rope.scaling.original_context_length", Value::u32(original as u32));
            set("rope.scaling.attn_factor", number(attention));
        }
    }
}

/// What of a model is lost in `read`, the configuration that a file of it says; nothing if both compute the same.
pub(in crate::store) fn lost(config: &ModelConfig, read: &ModelConfig) -> Option<&'static str> {
    let sizes =
        |c: &ModelConfig| [c.hidden_size, c.head_dim, c.num_attention_heads, c.num_key_value_heads, c.vocab_size];
    let experts = |c: &ModelConfig| c.experts.map(|e| (e.count, e.per_token, e.intermediate_size, e.normalise));
    let norms = |c: &ModelConfig| (c.norms(), c.qk_norm(), c.rms_norm_eps as f32);
    let head = |c: &ModelConfig| (c.tie_word_embeddings, c.family.unit_head);
    // Single precision is what GGUF has.
    let turn = |planned: usize| {
        let (a, b) = (config.frequencies(planned), read.frequencies(planned));
        let near = |a: f64, b: f64| (a - b).abs() <= 1e-6 * a.abs();
        a.inverse.len() == b.inverse.len()
            && near(a.attention, b.attention)
            && a.inverse.iter().zip(&b.inverse).all(|(a, b)| near(*a, *b))
    };
    // As far as its scaling reaches: dynamic scaling begins only beyond what was trained.
    let lengths = [1, config.max_position_embeddings, config.max_context()];
    let turns = config.family.alibi || lengths.into_iter().all(turn);
    let positions = match config.rope.scaling {
        RopeScaling::Dynamic { .. } => "its dynamic scaling of positions",
        _ => "its positions",
    };
    let rows = [
        (sizes(config) == sizes(read), "its sizes"),
        (config.layers == read.layers, "which layers have a window, rotation or experts"),
        (experts(config) == experts(read), "its experts"),
        (config.biases == read.biases, "its biases"),
        (norms(config) == norms(read), "its norms"),
        (head(config) == head(read), "its output projection"),
        (config.family.alibi == read.family.alibi && turns, positions),
    ];
    rows.into_iter().find(|(same, _)| !same).map(|(_, what)| what)
}

/// Says of a model without a token that begins or ends texts that it has none: where these keys are absent, readers take a
/// usual one. A token that the tokenizer itself puts before a text stays.
pub(in crate::store) fn set_no_tokens(metadata: &mut Metadata, config: &ModelConfig) {
    let adds_bos = metadata.flag("tokenizer.ggml.add_bos_token").ok().flatten() == Some(true);
    for (none, key) in [(config.bos_token_id.is_none() && !adds_bos, "bos"), (config.eos_token_ids.is_empty(), "eos")] {
        if none {
            metadata.set(&format!("tokenizer.ggml.{key}_token_id"), Value::u32(NO_TOKEN));
        }
    }
}

/// Of the tokens that end a model's texts, those that `read`, the configuration that a file of it says, has not.
pub(in crate::store) fn lost_ends(config: &ModelConfig, read: &ModelConfig) -> Vec<u32> {
    config.eos_token_ids.iter().filter(|id| !read.eos_token_ids.contains(id)).copied().collect()
}

/// The vectors of rotary factors that stand among the tensors.
pub(in crate::store) fn rope_tensors(config: &ModelConfig) -> Vec<(&'static str, Vec<f32>)> {
    let narrow = |values: &[f64]| values.iter().map(|&x| x as f32).collect::<Vec<_>>();
    match &config.rope.scaling {
        RopeScaling::Llama3 { .. } => {
            let plain = crate::model::RopeConfig { scaling: RopeScaling::Default, ..config.rope.clone() };
            let of = |rope: &crate::model::RopeConfig| rope.frequencies(1, config.max_position_embeddings).inverse;
            let divisors: Vec<f64> = of(&plain).iter().zip(of(&config.rope)).map(|(a, b)| a / b).collect();
            vec![("rope_freqs.weight", narrow(&divisors))]
        }
        RopeScaling::Long { short, long, .. } => {
            vec![("rope_factors_long.weight", narrow(long)), ("rope_factors_short.weight", narrow(short))]
        }
        _ => vec![],
    }
}
