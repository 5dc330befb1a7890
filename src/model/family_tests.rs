//! What each family reads from its config.json: switches, defaults, and the sentences for what is wrong.

use crate::model::{Biases, ModelConfig, RopeScaling};
use serde_json::{Value, json};
use std::path::Path;

/// A config.json of four layers with these keys; null takes one away.
fn parse(keys: Value) -> Result<ModelConfig, String> {
    let mut map = json!({
        "vocab_size": 100, "hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 8
    });
    for (key, value) in keys.as_object().unwrap() {
        map[key] = value.clone();
    }
    ModelConfig::parse(&map.to_string(), Path::new("c.json")).map_err(|e| e.to_string())
}

fn windows(keys: Value) -> Vec<usize> {
    parse(keys).unwrap().layers.iter().map(|layer| layer.window.unwrap_or(0)).collect()
}

#[test]
fn windows_of_each_family() {
    for (keys, expected) in [
        (json!({"model_type": "llama", "sliding_window": 7}), [0, 0, 0, 0]),
        (json!({"model_type": "mistral"}), [4096, 4096, 4096, 4096]),
        (json!({"model_type": "mistral", "sliding_window": null}), [0, 0, 0, 0]),
        (json!({"model_type": "mistral", "sliding_window": 7}), [7, 7, 7, 7]),
        (json!({"model_type": "phi3", "sliding_window": 7}), [7, 7, 7, 7]),
        (json!({"model_type": "phi3"}), [0, 0, 0, 0]),
        (json!({"model_type": "qwen2", "sliding_window": 7, "max_window_layers": 1}), [0, 0, 0, 0]),
        (
            json!({"model_type": "qwen2", "use_sliding_window": true, "sliding_window": 7, "max_window_layers": 1}),
            [0, 7, 7, 7],
        ),
        (
            json!({"model_type": "qwen3", "use_sliding_window": true, "max_window_layers": 0, "head_dim": 8}),
            [4096, 4096, 4096, 4096],
        ),
        (
            json!({"model_type": "qwen3", "use_sliding_window": true, "sliding_window": 7, "layer_types":
                ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]}),
            [7, 0, 0, 7],
        ),
        (
            json!({"model_type": "smollm3", "use_sliding_window": true, "sliding_window": 7,
                "no_rope_layers": [1, 0, 1, 0]}),
            [0, 7, 0, 7],
        ),
    ] {
        let heads = json!({"num_key_value_heads": 4});
        let mut all = keys.clone();
        all["num_key_value_heads"] = heads["num_key_value_heads"].clone();
        assert_eq!(windows(all), expected, "{keys}");
    }
}

#[test]
fn turned_layers_biases_and_defaults() {
    let rotary = |keys| parse(keys).unwrap().layers.iter().map(|layer| layer.rotary).collect::<Vec<_>>();
    assert_eq!(rotary(json!({"model_type": "smollm3"})), [true, true, true, false]);
    let interval = json!({"model_type": "smollm3", "no_rope_layer_interval": 2});
    assert_eq!(rotary(interval), [true, false, true, false]);

    let biases = |keys| parse(keys).unwrap().biases;
    let all = json!({"model_type": "llama", "attention_bias": true, "mlp_bias": true});
    assert_eq!(biases(all), Biases { qkv: true, output: true, mlp: true });
    let qwen2 = json!({"model_type": "qwen2", "num_key_value_heads": 2});
    assert_eq!(biases(qwen2), Biases { qkv: true, output: false, mlp: false });
    assert_eq!(biases(json!({"model_type": "olmo2"})), Biases::default());

    let mistral = parse(json!({"model_type": "mistral"})).unwrap();
    assert_eq!((mistral.num_key_value_heads, mistral.max_position_embeddings), (8, 131_072));
    assert_eq!(parse(json!({"model_type": "qwen3", "num_key_value_heads": null})).unwrap().head_dim, 128);
    assert!(parse(json!({"model_type": "smollm3"})).unwrap().tie_word_embeddings);
    assert_eq!(parse(json!({"model_type": "olmo2"})).unwrap().rms_norm_eps, 1e-5);
}

#[test]
fn the_four_baichuans_are_told_apart() {
    for (keys, name) in [
        (json!({"architectures": ["BaiChuanForCausalLM"], "max_position_embeddings": 4096}), "baichuan-7b"),
        (json!({"architectures": ["BaichuanForCausalLM"], "model_max_length": 4096}), "baichuan-13b"),
        (
            json!({"architectures": ["BaichuanForCausalLM"], "model_max_length": 4096, "max_position_embeddings": 4096,
                "z_loss_weight": 0}),
            "baichuan2-7b",
        ),
        (
            json!({"architectures": ["BaichuanForCausalLM"], "model_max_length": 4096, "vocab_size": 125_696}),
            "baichuan2-13b",
        ),
    ] {
        let config = parse(keys).unwrap();
        assert_eq!((config.family.name, config.max_position_embeddings), (name, 4096));
        assert_eq!(config.layers[0].rotary, !name.ends_with("13b"));
    }
}

#[test]
fn experts_of_both_kinds() {
    let mixtral = parse(json!({"model_type": "mixtral", "num_local_experts": 8})).unwrap();
    let experts = mixtral.experts.unwrap();
    assert_eq!((experts.count, experts.per_token, experts.intermediate_size, experts.normalise), (8, 2, 32, true));
    assert!(mixtral.layers.iter().all(|layer| layer.sparse));
    let qwen = parse(json!({"model_type": "qwen3_moe", "num_experts": 6, "num_experts_per_tok": 3,
        "moe_intermediate_size": 12, "decoder_sparse_step": 2, "mlp_only_layers": [3]}))
    .unwrap();
    let experts = qwen.experts.unwrap();
    assert_eq!((experts.count, experts.per_token, experts.intermediate_size, experts.normalise), (6, 3, 12, false));
    assert_eq!(qwen.layers.iter().map(|layer| layer.sparse).collect::<Vec<_>>(), [false, true, false, false]);
}

#[test]
fn old_folders_of_phi_and_scaling_from_outside() {
    let factors = json!({"type": "su", "short_factor": [1, 1, 1, 1], "long_factor": [2, 2, 2, 2]});
    let phi = json!({"model_type": "phi3", "max_position_embeddings": 131_072, "rope_scaling": factors,
        "original_max_position_embeddings": 4096});
    let RopeScaling::Long { original, attention, .. } = parse(phi).unwrap().rope.scaling else { panic!() };
    // sqrt(1 + ln 32 / ln 4096)
    assert_eq!((original, (attention * 1e6).round()), (4096, 1_190_238.0));
}

#[test]
fn every_mistake_has_its_sentence() {
    for (keys, message) in [
        (
            json!({"model_type": "mistral", "attention_bias": true}),
            "\"attention_bias\" is true; Mistral models have no such biases; this is another architecture",
        ),
        (
            json!({"model_type": "qwen2", "mlp_bias": true}),
            "\"mlp_bias\" is true; Qwen 2, 2.5 models have no such biases; this is another architecture",
        ),
        (
            json!({"model_type": "smollm3", "no_rope_layers": [1, 0, 2, 1]}),
            "\"no_rope_layers\" is [1,0,2,1]; it must list a 1 (turned) or 0 for each of 4 layers",
        ),
        (
            json!({"model_type": "qwen3", "use_sliding_window": true, "layer_types": ["full_attention"]}),
            "\"layer_types\" is [\"full_attention\"]; it must list \"full_attention\" or \"sliding_attention\" for each \
             of 4 layers",
        ),
        (
            json!({"model_type": "qwen3", "use_sliding_window": true, "max_window_layers": -1}),
            "\"max_window_layers\" is -1; it must be a number of layers",
        ),
        (
            json!({"model_type": "mistral", "sliding_window": 0}),
            "\"sliding_window\" is 0; it must be a whole number from 1 to 16777216",
        ),
        (json!({"model_type": "mixtral"}), "\"num_local_experts\" is missing; give it as a whole number"),
        (
            json!({"model_type": "mixtral", "num_local_experts": 2, "num_experts_per_tok": 3}),
            "\"num_experts_per_tok\" is 3; there are only \"num_local_experts\" = 2 experts",
        ),
        (
            json!({"model_type": "qwen3_moe", "num_experts": 2, "moe_intermediate_size": 4, "num_experts_per_tok": 1,
                "mlp_only_layers": 3}),
            "\"mlp_only_layers\" is 3; it must be a list of layers",
        ),
        // Every size is one that is believed; all of them together overflow 64 bits.
        (
            json!({"model_type": "mixtral", "num_local_experts": 1 << 20, "hidden_size": 1 << 20, "head_dim": 64,
                "intermediate_size": 1 << 20, "num_hidden_layers": 4096, "vocab_size": 1 << 24}),
            "its sizes make a model of 14167103993998595850240 parameters, and none of more than 17592186044416 is known; \
             one of them is wrong",
        ),
        (
            json!({"model_type": "qwen3_moe", "num_experts": 1 << 17, "moe_intermediate_size": 1 << 18,
                "num_experts_per_tok": 1 << 16}),
            "its sizes make a model of 26388312683648 parameters, and none of more than 17592186044416 is known; \
             one of them is wrong",
        ),
    ] {
        let mut all = keys;
        all["num_key_value_heads"] = json!(4);
        assert_eq!(parse(all).unwrap_err(), format!("c.json: {message}"));
    }
}

/// Where the parts of packed tensors and experts are kept.
#[test]
fn sources_of_packed_tensors_and_experts() {
    let rows = |config: &ModelConfig, name: &str| {
        let sources = config.sources(&format!("model.layers.3.{name}.weight"));
        sources.into_iter().map(|s| (s.tensor, s.rows)).collect::<Vec<_>>()
    };
    let phi = parse(json!({"model_type": "phi3", "num_key_value_heads": 2})).unwrap();
    let packed = |name: &str, rows| vec![(format!("model.layers.3.{name}.weight"), Some(rows))];
    assert_eq!(rows(&phi, "self_attn.q_proj"), packed("self_attn.qkv_proj", 0..64));
    assert_eq!(rows(&phi, "self_attn.v_proj"), packed("self_attn.qkv_proj", 80..96));
    assert_eq!(rows(&phi, "mlp.up_proj"), packed("mlp.gate_up_proj", 32..64));
    assert_eq!(rows(&phi, "mlp.down_proj"), [("model.layers.3.mlp.down_proj.weight".to_string(), None)]);
    let mixtral = parse(json!({"model_type": "mixtral", "num_local_experts": 2})).unwrap();
    let expert = |e: usize| (format!("model.layers.3.block_sparse_moe.experts.{e}.w3.weight"), None);
    assert_eq!(rows(&mixtral, "mlp.experts.up_proj"), [expert(0), expert(1)]);
    assert_eq!(rows(&mixtral, "mlp.gate"), [("model.layers.3.block_sparse_moe.gate.weight".to_string(), None)]);
    assert_eq!(mixtral.sources("lm_head.weight")[0].tensor, "lm_head.weight");
}
