//! Our names of parameters, which are Hugging Face's for LLaMA, and where a GGUF file keeps them.

use super::architectures::interleaved;
use crate::model::{ModelConfig, Source};

/// Parts of a layer: our name, GGUF's.
const PARTS: [(&str, &str); 16] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("mlp.gate", "ffn_gate_inp"),
    ("mlp.experts.gate_proj", "ffn_gate_exps"),
    ("mlp.experts.up_proj", "ffn_up_exps"),
    ("mlp.experts.down_proj", "ffn_down_exps"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
];

/// GGUF's name for one of our parameters.
pub(in crate::store) fn tensor_name(architecture: &str, name: &str) -> String {
    let (stem, kind) = name.rsplit_once('.').unwrap_or((name, "weight"));
    let Some((layer, part)) = stem.strip_prefix("model.layers.").and_then(|s| s.split_once('.')) else {
        let stem = match stem {
            "model.embed_tokens" => "token_embd",
            "model.norm" => "output_norm",
            "lm_head" => "output",
            other => other,
        };
        return format!("{stem}.{kind}");
    };
    let part = match (architecture, part) {
        ("olmo2", "post_attention_layernorm") => "post_attention_norm",
        _ => PARTS.iter().find(|(ours, _)| *ours == part).map_or(part, |(_, theirs)| theirs),
    };
    format!("blk.{layer}.{part}.{kind}")
}

/// Heads of a parameter that is stored for interleaved rotation.
pub(in crate::store) fn interleaved_heads(architecture: &str, config: &ModelConfig, name: &str) -> Option<usize> {
    let (stem, _) = name.rsplit_once('.')?;
    let heads = if stem.ends_with(".self_attn.q_proj") {
        config.num_attention_heads
    } else if stem.ends_with(".self_attn.k_proj") {
        config.num_key_value_heads
    } else {
        return None;
    };
    interleaved(architecture).then_some(heads)
}

/// Where a GGUF file of this architecture keeps a parameter.
pub(in crate::store) fn sources(architecture: &str, config: &ModelConfig, name: &str) -> Vec<Source> {
    let whole = tensor_name(architecture, name);
    if let ("phi3", Some((layer, part))) = (architecture, split(name)) {
        let (q, kv, f) = (config.query_size(), config.key_value_size(), config.intermediate_size);
        let packed = |tensor: &str, rows| vec![Source::rows(format!("blk.{layer}.{tensor}.weight"), rows)];
        match part {
            "self_attn.q_proj.weight" => return packed("attn_qkv", 0..q),
            "self_attn.k_proj.weight" => return packed("attn_qkv", q..q + kv),
            "self_attn.v_proj.weight" => return packed("attn_qkv", q + kv..q + 2 * kv),
            "mlp.gate_proj.weight" => return packed("ffn_up", 0..f),
            "mlp.up_proj.weight" => return packed("ffn_up", f..2 * f),
            _ => {}
        }
    }
    let source = Source::whole(whole);
    vec![match interleaved_heads(architecture, config, name) {
        Some(heads) => source.interleaved(heads),
        None => source,
    }]
}

fn split(name: &str) -> Option<(&str, &str)> {
    name.strip_prefix("model.layers.")?.split_once('.')
}

/// Tensors from which no parameter is made: rotary frequencies and factors, which the configuration holds.
pub(in crate::store) fn is_extra(name: &str) -> bool {
    name.starts_with("rope_f") || name.ends_with(".attn_rot_embd") || name.ends_with(".rope_freqs.weight")
}
