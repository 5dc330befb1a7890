//! Writes config.json and generation_config.json of a model's own family, as `transformers` opens them.

use super::family::{BiasRule, ExpertRule, WindowRule};
use super::{ModelConfig, RopeScaling, rotary_share};
use serde_json::{Map, Value, json};

impl ModelConfig {
    /// This configuration as a config.json for `transformers`. `rope_theta` and what scales it stand both where version 5
    /// looks for them and where version 4 does.
    pub fn to_json(&self) -> String {
        let mut map = Map::new();
        let mut set = |key: &str, value: Value| map.insert(key.into(), value);
        set("architectures", json!([self.architecture()]));
        set("model_type", self.family.model_type.into());
        set("vocab_size", self.vocab_size.into());
        set("hidden_size", self.hidden_size.into());
        set("intermediate_size", self.intermediate_size.into());
        set("num_hidden_layers", self.num_hidden_layers.into());
        set("num_attention_heads", self.num_attention_heads.into());
        set("num_key_value_heads", self.num_key_value_heads.into());
        set("head_dim", self.head_dim.into());
        let positions = if self.family.alibi { "model_max_length" } else { "max_position_embeddings" };
        set(positions, self.max_position_embeddings.into());
        set("rms_norm_eps", self.rms_norm_eps.into());
        set("tie_word_embeddings", self.tie_word_embeddings.into());
        set("hidden_act", "silu".into());
        set("bos_token_id", self.bos_token_id.into());
        set("eos_token_id", self.eos_json());
        // Some families of `transformers` else take a token that a small vocabulary has not.
        set("pad_token_id", Value::Null);
        set("initializer_range", self.initializer_range.into());
        set("torch_dtype", "float32".into());
        self.write_rope(&mut map);
        self.write_switches(&mut map);
        serde_json::to_string_pretty(&map).expect("numbers, strings and lists always become JSON") + "\n"
    }

    /// The generation_config.json that goes with it.
    pub fn generation_json(&self) -> String {
        let json = json!({
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_token_ids,
            "max_length": self.max_position_embeddings,
            "do_sample": true,
        });
        serde_json::to_string_pretty(&json).expect("numbers and lists always become JSON") + "\n"
    }

    /// The class of the authors' code.
    fn architecture(&self) -> &'static str {
        self.family.architectures[0]
    }

    fn eos_json(&self) -> Value {
        match self.eos_token_ids.as_slice() {
            [] => Value::Null,
            [one] => (*one).into(),
            many => many.into(),
        }
    }

    fn write_rope(&self, map: &mut Map<String, Value>) {
        if self.family.alibi {
            return;
        }
        let mut scaling = scaling_json(&self.rope.scaling);
        if let RopeScaling::Llama3 { original, .. }
        | RopeScaling::Yarn { original, .. }
        | RopeScaling::Long { original, .. } = self.rope.scaling
        {
            scaling.insert("original_max_position_embeddings".into(), original.into());
            if self.family.model_type == "phi3" {
                map.insert("original_max_position_embeddings".into(), original.into());
            }
        }
        let scaled = self.rope.scaling != RopeScaling::Default;
        map.insert("rope_scaling".into(), if scaled { scaling.clone().into() } else { Value::Null });
        map.insert("rope_theta".into(), self.rope.theta.into());
        scaling.insert("rope_theta".into(), self.rope.theta.into());
        if self.rope.width != self.head_dim {
            let share = rotary_share(self.rope.width as u64, self.head_dim as u64);
            map.insert("partial_rotary_factor".into(), share.into());
            scaling.insert("partial_rotary_factor".into(), share.into());
        }
        map.insert("rope_parameters".into(), scaling.into());
    }

    /// The keys that the family's rules read.
    fn write_switches(&self, map: &mut Map<String, Value>) {
        let family = self.family;
        let layers = &self.layers[..self.num_hidden_layers];
        let mut set = |key: &str, value: Value| map.insert(key.into(), value);
        if matches!(family.biases, BiasRule::Attention | BiasRule::AttentionAndMlp) {
            set("attention_bias", self.biases.qkv.into());
        }
        if family.biases == BiasRule::AttentionAndMlp {
            set("mlp_bias", self.biases.mlp.into());
        }
        let window = layers.iter().find_map(|layer| layer.window);
        if family.window != WindowRule::Never {
            set("sliding_window", window.into());
        }
        if !matches!(family.window, WindowRule::Never | WindowRule::Every(_)) {
            set("use_sliding_window", window.is_some().into());
        }
        if matches!(family.window, WindowRule::FromLayer | WindowRule::WithoutRope) {
            let kind = |window: bool| if window { "sliding_attention" } else { "full_attention" };
            set("layer_types", layers.iter().map(|layer| kind(layer.window.is_some())).collect());
        }
        if family.no_rope_layers {
            set("no_rope_layers", layers.iter().map(|layer| u8::from(layer.rotary)).collect());
        }
        if family.unit_head {
            set("z_loss_weight", 0.into());
        }
        if let Some(experts) = self.experts {
            set("num_experts_per_tok", experts.per_token.into());
            set("output_router_logits", (experts.balance > 0.0).into());
            set("router_aux_loss_coef", experts.balance.into());
            if experts.z > 0.0 {
                set("router_z_loss_coef", experts.z.into());
            }
            match family.experts {
                ExpertRule::Never | ExpertRule::Mixtral => {
                    set("num_local_experts", experts.count.into());
                }
                ExpertRule::Qwen => {
                    let dense = layers.iter().enumerate().filter(|(_, layer)| !layer.sparse).map(|(i, _)| i);
                    set("num_experts", experts.count.into());
                    set("moe_intermediate_size", experts.intermediate_size.into());
                    set("norm_topk_prob", experts.normalise.into());
                    set("decoder_sparse_step", 1.into());
                    set("mlp_only_layers", dense.collect());
                }
            }
        }
    }
}

fn scaling_json(scaling: &RopeScaling) -> Map<String, Value> {
    let json = match scaling {
        RopeScaling::Default => json!({"rope_type": "default"}),
        RopeScaling::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
        RopeScaling::Dynamic { factor } => json!({"rope_type": "dynamic", "factor": factor}),
        RopeScaling::Llama3 { factor, low, high, .. } => {
            json!({"rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high})
        }
        RopeScaling::Yarn { factor, fast, slow, truncate, attention, .. } => json!({
            "rope_type": "yarn",
            "factor": factor,
            "beta_fast": fast,
            "beta_slow": slow,
            "truncate": truncate,
            "attention_factor": attention,
        }),
        RopeScaling::Long { short, long, attention, .. } => json!({
            "rope_type": "longrope",
            "short_factor": short,
            "long_factor": long,
            "attention_factor": attention,
        }),
    };
    match json {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}
