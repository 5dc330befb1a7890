//! The table of families: one row says by what name a model of it goes, which switches its layers have, what
//! `transformers` assumes where config.json is silent, and how its files pack their tensors. Everything else a
//! config.json says for itself (parse.rs). No family has code of its own.

use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

/// A row of the table.
#[derive(Debug)]
pub struct Family {
    /// The name of the row.
    pub name: &'static str,
    /// What its models are called.
    pub models: &'static str,
    /// `architectures` of its config.json; the first is the one that is written.
    pub architectures: &'static [&'static str],
    /// `model_type` of its config.json.
    pub model_type: &'static str,
    /// True for the config.json files of this row, where several rows share an architecture.
    pub applies: fn(&Map<String, Value>) -> bool,
    /// Which linear layers have biases.
    pub biases: BiasRule,
    /// Norm of queries and keys.
    pub qk_norm: QkNorm,
    /// Where the norms of a layer stand.
    pub norms: Norms,
    /// Which layers see a window only.
    pub window: WindowRule,
    /// True where `no_rope_layers` says which layers turn queries and keys.
    pub no_rope_layers: bool,
    /// True where positions are linear biases of attention (Press et al., 2022), and nothing is turned.
    pub alibi: bool,
    /// True where the rows of the output projection are scaled to unit length (Baichuan 2, 2023, §2.3).
    pub unit_head: bool,
    /// Which keys describe experts.
    pub experts: ExpertRule,
    /// Tensors that its files hold in one.
    pub packed: &'static [Packed],
    /// What absent keys mean.
    pub defaults: Defaults,
}

/// Which linear layers have biases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BiasRule {
    /// None.
    Never,
    /// Queries, keys and values.
    Qkv,
    /// All four of attention, where `attention_bias` is set.
    Attention,
    /// The same, and all three of the feed-forward block where `mlp_bias` is set.
    AttentionAndMlp,
}

/// Norm of queries and keys, before they are turned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum QkNorm {
    /// None.
    Never,
    /// Each head by itself, with one gain `[C]` for all.
    Head,
    /// All heads together, with gains `[H·C]` and `[K·C]`.
    Full,
}

/// Where the norms of a layer stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Norms {
    /// x + f(norm(x)), as in LLaMA.
    Before,
    /// x + norm(f(x)), as in OLMo 2.
    After,
}

/// Which layers see a window of `sliding_window` tokens only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WindowRule {
    /// None, whatever config.json says.
    Never,
    /// All; where the key is absent the window is this.
    Every(Option<usize>),
    /// All, where `use_sliding_window` is set.
    EveryIfUsed,
    /// Those that `layer_types` names, or those from `max_window_layers` on, where `use_sliding_window` is set.
    FromLayer,
    /// Those that `layer_types` names, or those without RoPE, where `use_sliding_window` is set.
    WithoutRope,
}

/// Which keys describe experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpertRule {
    /// No experts.
    Never,
    /// Mixtral: every layer has `num_local_experts` of `intermediate_size`; the weights of those chosen sum to one.
    Mixtral,
    /// Qwen: `num_experts` of `moe_intermediate_size` in every `decoder_sparse_step`-th layer that `mlp_only_layers`
    /// does not name; `norm_topk_prob` says whether the weights of those chosen sum to one.
    Qwen,
}

/// A tensor of the family's files whose rows are those of several parameters, one after the other.
#[derive(Debug, PartialEq, Eq)]
pub struct Packed {
    /// Its name within a layer, without `.weight`.
    pub stored: &'static str,
    /// Names of the parameters within a layer.
    pub parts: &'static [&'static str],
}

/// What `transformers` assumes where a key is absent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Defaults {
    /// `max_position_embeddings`
    pub max_positions: usize,
    /// `rms_norm_eps`
    pub rms_norm_eps: f64,
    /// `rope_theta`
    pub rope_theta: f64,
    /// `num_key_value_heads`; `None`: as many as query heads.
    pub key_value_heads: Option<usize>,
    /// `head_dim`; `None`: `hidden_size / num_attention_heads`.
    pub head_dim: Option<usize>,
    /// `tie_word_embeddings`
    pub tied: bool,
    /// `bos_token_id`
    pub bos: Option<u32>,
    /// `eos_token_id`
    pub eos: Option<u32>,
}

const QKV: &[&str] = &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"];
const W_PACK: &[Packed] = &[Packed { stored: "self_attn.W_pack", parts: QKV }];
const QKV_GATE_UP: &[Packed] = &[
    Packed { stored: "self_attn.qkv_proj", parts: QKV },
    Packed { stored: "mlp.gate_up_proj", parts: &["mlp.gate_proj", "mlp.up_proj"] },
];

const LLAMA: Family = Family {
    name: "llama",
    models: "Llama 1, 2, 3, 3.1, 3.2; Yi, DeepSeek-LLM, TinyLlama, SmolLM2",
    architectures: &["LlamaForCausalLM", "LLaMAForCausalLM"],
    model_type: "llama",
    applies: |_| true,
    biases: BiasRule::AttentionAndMlp,
    qk_norm: QkNorm::Never,
    norms: Norms::Before,
    window: WindowRule::Never,
    no_rope_layers: false,
    alibi: false,
    unit_head: false,
    experts: ExpertRule::Never,
    packed: &[],
    defaults: Defaults {
        max_positions: 2048,
        rms_norm_eps: 1e-6,
        rope_theta: 1e4,
        key_value_heads: None,
        head_dim: None,
        tied: false,
        bos: Some(1),
        eos: Some(2),
    },
};

const MISTRAL: Family = Family {
    name: "mistral",
    models: "Mistral",
    architectures: &["MistralForCausalLM"],
    model_type: "mistral",
    biases: BiasRule::Never,
    window: WindowRule::Every(Some(4096)),
    defaults: Defaults { max_positions: 1 << 17, key_value_heads: Some(8), ..LLAMA.defaults },
    ..LLAMA
};

const QWEN2: Family = Family {
    name: "qwen2",
    models: "Qwen 2, 2.5",
    architectures: &["Qwen2ForCausalLM"],
    model_type: "qwen2",
    biases: BiasRule::Qkv,
    window: WindowRule::FromLayer,
    defaults: Defaults { max_positions: 1 << 15, key_value_heads: Some(32), bos: None, eos: None, ..LLAMA.defaults },
    ..LLAMA
};

const QWEN3: Family = Family {
    name: "qwen3",
    models: "Qwen 3",
    architectures: &["Qwen3ForCausalLM"],
    model_type: "qwen3",
    biases: BiasRule::Attention,
    qk_norm: QkNorm::Head,
    defaults: Defaults { head_dim: Some(128), ..QWEN2.defaults },
    ..QWEN2
};

const BAICHUAN_7B: Family = Family {
    name: "baichuan-7b",
    models: "Baichuan 7B",
    architectures: &["BaiChuanForCausalLM", "BaichuanForCausalLM"],
    model_type: "baichuan",
    applies: |keys| !has_alibi(keys) && !is_baichuan2(keys),
    biases: BiasRule::Never,
    packed: W_PACK,
    defaults: Defaults { max_positions: 4096, ..LLAMA.defaults },
    ..LLAMA
};

/// All families.
pub static FAMILIES: &[Family] = &[
    LLAMA,
    MISTRAL,
    Family {
        name: "mixtral",
        models: "Mixtral",
        architectures: &["MixtralForCausalLM"],
        model_type: "mixtral",
        window: WindowRule::Every(None),
        experts: ExpertRule::Mixtral,
        defaults: Defaults { rms_norm_eps: 1e-5, rope_theta: 1e6, ..MISTRAL.defaults },
        ..MISTRAL
    },
    QWEN2,
    QWEN3,
    Family {
        name: "qwen3-moe",
        models: "Qwen 3 MoE",
        architectures: &["Qwen3MoeForCausalLM"],
        model_type: "qwen3_moe",
        window: WindowRule::EveryIfUsed,
        experts: ExpertRule::Qwen,
        defaults: Defaults { key_value_heads: Some(4), head_dim: None, ..QWEN3.defaults },
        ..QWEN3
    },
    Family {
        name: "smollm3",
        models: "SmolLM3",
        architectures: &["SmolLM3ForCausalLM"],
        model_type: "smollm3",
        window: WindowRule::WithoutRope,
        no_rope_layers: true,
        defaults: Defaults {
            max_positions: 1 << 15,
            rope_theta: 2e6,
            key_value_heads: Some(4),
            tied: true,
            bos: Some(128_000),
            eos: Some(128_001),
            ..LLAMA.defaults
        },
        ..LLAMA
    },
    Family {
        name: "phi3",
        models: "Phi-3, Phi-3.5, Phi-4",
        architectures: &["Phi3ForCausalLM"],
        model_type: "phi3",
        biases: BiasRule::Never,
        window: WindowRule::Every(None),
        packed: QKV_GATE_UP,
        defaults: Defaults { max_positions: 4096, rms_norm_eps: 1e-5, eos: Some(32_000), ..LLAMA.defaults },
        ..LLAMA
    },
    Family {
        name: "olmo2",
        models: "OLMo 2",
        architectures: &["Olmo2ForCausalLM"],
        model_type: "olmo2",
        biases: BiasRule::Attention,
        qk_norm: QkNorm::Full,
        norms: Norms::After,
        defaults: Defaults { rms_norm_eps: 1e-5, bos: None, eos: Some(50_279), ..LLAMA.defaults },
        ..LLAMA
    },
    BAICHUAN_7B,
    Family {
        name: "baichuan-13b",
        models: "Baichuan 13B",
        architectures: &["BaichuanForCausalLM"],
        applies: |keys| has_alibi(keys) && !is_baichuan2(keys),
        alibi: true,
        ..BAICHUAN_7B
    },
    Family {
        name: "baichuan2-7b",
        models: "Baichuan 2 7B",
        architectures: &["BaichuanForCausalLM"],
        applies: |keys| !has_alibi(keys) && is_baichuan2(keys),
        unit_head: true,
        ..BAICHUAN_7B
    },
    Family {
        name: "baichuan2-13b",
        models: "Baichuan 2 13B",
        architectures: &["BaichuanForCausalLM"],
        applies: |keys| has_alibi(keys) && is_baichuan2(keys),
        alibi: true,
        unit_head: true,
        ..BAICHUAN_7B
    },
];

/// The 13B models say their context as `model_max_length`, and have no `max_position_embeddings` as the 7B have: there
/// is no other key that tells the two architectures of one name apart.
fn has_alibi(keys: &Map<String, Value>) -> bool {
    keys.contains_key("model_max_length") && !keys.contains_key("max_position_embeddings")
}

/// Baichuan 2 has a weight for its z-loss, or else its vocabulary.
fn is_baichuan2(keys: &Map<String, Value>) -> bool {
    keys.contains_key("z_loss_weight") || keys.get("vocab_size").is_some_and(|v| *v == 125_696)
}

impl PartialEq for Family {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Serialize for Family {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name)
    }
}

#[cfg(test)]
#[path = "family_tests.rs"]
mod tests;
