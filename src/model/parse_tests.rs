//! What is wrong in a config.json, one row a mistake, with the exact words.

use super::*;
use crate::model::{PRESETS, find_config};

fn parse_with(key: &str, value: Option<&str>) -> Result<ModelConfig> {
    let mut map: Map<String, Value> = serde_json::from_str(PRESETS[0].1).unwrap();
    match value {
        Some(value) => map.insert(key.into(), serde_json::from_str(value).unwrap()),
        None => map.remove(key),
    };
    ModelConfig::parse(&serde_json::to_string(&map).unwrap(), Path::new("config.json"))
}

#[test]
fn every_mistake_has_its_sentence() {
    let rows: &[(&str, Option<&str>, &str)] = &[
        ("hidden_size", None, "\"hidden_size\" is missing; give it as a whole number"),
        ("hidden_size", Some("0"), "\"hidden_size\" is 0; it must be a whole number from 1 to 1048576"),
        ("vocab_size", Some("-1"), "\"vocab_size\" is -1; it must be a whole number from 1 to 16777216"),
        (
            "num_hidden_layers",
            Some("\"4\""),
            "\"num_hidden_layers\" is \"4\"; it must be a whole number from 1 to 4096",
        ),
        ("intermediate_size", Some("3.5"), "\"intermediate_size\" is 3.5; it must be a whole number from 1 to 1048576"),
        (
            "num_key_value_heads",
            Some("3"),
            "\"num_key_value_heads\" is 3; it must divide \"num_attention_heads\" = 4: 1, 2, 4",
        ),
        (
            "num_key_value_heads",
            Some("8"),
            "\"num_key_value_heads\" is 8; it must divide \"num_attention_heads\" = 4: 1, 2, 4",
        ),
        ("head_dim", Some("31"), "\"head_dim\" is 31; heads must be a multiple of 4 wide, and at most 256"),
        ("head_dim", Some("260"), "\"head_dim\" is 260; heads must be a multiple of 4 wide, and at most 256"),
        ("rms_norm_eps", Some("0"), "\"rms_norm_eps\" is 0; it must be a number above 0"),
        ("rope_theta", Some("-5"), "\"rope_theta\" is -5; it must be a number above 0"),
        ("tie_word_embeddings", Some("1"), "\"tie_word_embeddings\" is 1; it must be true or false"),
        (
            "eos_token_id",
            Some("1024"),
            "\"eos_token_id\" is 1024; token ids are whole numbers below \"vocab_size\" = 1024",
        ),
        ("hidden_act", Some("\"gelu\""), "\"hidden_act\" is \"gelu\"; only \"silu\" is known"),
        ("clip_qkv", Some("8.0"), "\"clip_qkv\" is 8.0; clipped queries, keys and values are not supported"),
        (
            "architectures",
            Some("[\"GPT2LMHeadModel\"]"),
            "\"architectures\" is [\"GPT2LMHeadModel\"]; this architecture is not known; known: BaiChuanForCausalLM, \
             BaichuanForCausalLM, LLaMAForCausalLM, LlamaForCausalLM, MistralForCausalLM, MixtralForCausalLM, \
             Olmo2ForCausalLM, Phi3ForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, Qwen3MoeForCausalLM, \
             SmolLM3ForCausalLM",
        ),
        (
            "quantization_config",
            Some("{\"quant_method\": \"gptq\"}"),
            "\"quantization_config\" is \"gptq\"; quantised weights are not supported; use the model's full-precision version",
        ),
        (
            "rope_scaling",
            Some("{\"type\": \"llama4\", \"factor\": 8.0}"),
            "\"rope_scaling.rope_type\" is \"llama4\"; this scaling of positions is not known; known: default, linear, \
             dynamic, llama3, yarn, longrope",
        ),
        (
            "rope_scaling",
            Some("{\"factor\": 8.0}"),
            "\"rope_scaling.rope_type\" is missing; give it as one of default, linear, dynamic, llama3, yarn, longrope",
        ),
        ("rope_scaling", Some("4"), "\"rope_scaling\" is 4; it must be an object, or null"),
        (
            "rope_parameters",
            Some("{\"rope_type\": \"yarn\", \"rope_theta\": 1e4, \"factor\": -1}"),
            "\"rope_parameters.factor\" is -1; it must be a number above 0",
        ),
        (
            "rope_parameters",
            Some("{\"rope_type\": \"linear\"}"),
            "\"rope_parameters.factor\" is missing; give it as a number above 0",
        ),
        (
            "rope_parameters",
            Some("{\"full_attention\": {\"rope_theta\": 1e4}, \"sliding_attention\": {}}"),
            "\"rope_parameters.full_attention\" is {\"rope_theta\":10000.0}; only one rotary embedding for all layers is \
             known",
        ),
        (
            "rope_scaling",
            Some("{\"type\": \"longrope\", \"short_factor\": [1, 1], \"long_factor\": []}"),
            "\"rope_scaling.short_factor\" is \"2 numbers\"; it must be a list of 16 numbers, one for each pair that turns",
        ),
        (
            "rope_scaling",
            Some("{\"type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 4, \"high_freq_factor\": 4}"),
            "\"rope_scaling.high_freq_factor\" is 4.0; it must be above \"low_freq_factor\" = 4",
        ),
        (
            "partial_rotary_factor",
            Some("1.5"),
            "\"partial_rotary_factor\" is 1.5; it must make an even number of the 32 elements of a head turn",
        ),
        (
            "rope_parameters",
            Some("{\"rope_theta\": 0}"),
            "\"rope_parameters.rope_theta\" is 0; it must be a number above 0",
        ),
    ];
    for (key, value, message) in rows {
        let error = parse_with(key, *value).expect_err(&format!("{key} = {value:?} must be refused"));
        assert_eq!(error.to_string(), format!("config.json: {message}"));
    }
}

#[test]
fn mistakes_of_several_keys() {
    let path = Path::new("c.json");
    let text = r#"{"model_type":"gpt2"}"#;
    let message = "c.json: \"model_type\" is \"gpt2\"; this architecture is not known; known: baichuan, llama, mistral, \
                   mixtral, olmo2, phi3, qwen2, qwen3, qwen3_moe, smollm3";
    assert_eq!(ModelConfig::parse(text, path).unwrap_err().to_string(), message);
    let message = ModelConfig::parse("{}", path).unwrap_err().to_string();
    let opening = "c.json: \"architectures\" is missing; say which model this is (known: BaiChuanForCausalLM, ";
    assert!(message.starts_with(opening) && message.ends_with(", SmolLM3ForCausalLM)"), "{message}");
    let message = "c.json: is not a JSON object (EOF while parsing an object at line 1 column 1); \
                   give a Hugging Face config.json";
    assert_eq!(ModelConfig::parse("{", path).unwrap_err().to_string(), message);
    let text = r#"{"model_type":"llama","hidden_size":100,"num_attention_heads":8,"vocab_size":9}"#;
    let message = "c.json: \"intermediate_size\" is missing; give it as a whole number";
    assert_eq!(ModelConfig::parse(text, path).unwrap_err().to_string(), message);
    let text = r#"{"model_type":"llama","hidden_size":100,"num_attention_heads":8,"vocab_size":9,
        "intermediate_size":8,"num_hidden_layers":1}"#;
    let message = "c.json: \"hidden_size\" is 100; \"num_attention_heads\" = 8 does not divide it; \
                   change one, or give \"head_dim\"";
    assert_eq!(ModelConfig::parse(text, path).unwrap_err().to_string(), message);
    let error = ModelConfig::read(Path::new("no/such/config.json")).unwrap_err().to_string();
    assert!(error.starts_with("cannot read no/such/config.json: "), "{error}");
}

#[test]
fn defaults_are_those_of_transformers() {
    let text = r#"{"model_type":"llama","hidden_size":64,"num_attention_heads":8,"vocab_size":9,
        "intermediate_size":8,"num_hidden_layers":1}"#;
    let c = ModelConfig::parse(text, Path::new("c.json")).unwrap();
    assert_eq!((c.num_key_value_heads, c.head_dim, c.max_position_embeddings), (8, 8, 2048));
    assert_eq!((c.rms_norm_eps, c.rope.theta, c.initializer_range), (1e-6, 1e4, 0.02));
    assert_eq!((c.bos_token_id, c.eos_token_ids, c.tie_word_embeddings), (Some(1), vec![2], false));
}

#[test]
fn rope_of_both_forms_and_lists_of_end_tokens() {
    let new = parse_with("rope_parameters", Some("{\"rope_type\": \"default\", \"rope_theta\": 5e5}")).unwrap();
    assert_eq!(new.rope.theta, 5e5);
    assert!(parse_with("rope_scaling", Some("{\"type\": \"default\"}")).is_ok());
    assert!(parse_with("rope_scaling", Some("null")).is_ok());
    assert_eq!(parse_with("eos_token_id", Some("[3, 7]")).unwrap().eos_token_ids, [3, 7]);
    assert_eq!(parse_with("eos_token_id", Some("null")).unwrap().eos_token_ids, Vec::<u32>::new());
}

#[test]
fn what_is_written_reads_the_same() {
    for (name, _) in PRESETS {
        let mut config = find_config(name).unwrap();
        config.eos_token_ids = vec![5, 9];
        assert_eq!(ModelConfig::parse(&config.to_json(), Path::new("config.json")).unwrap(), config);
        config.eos_token_ids.clear();
        config.bos_token_id = None;
        assert_eq!(ModelConfig::parse(&config.to_json(), Path::new("config.json")).unwrap(), config);
    }
}
