//! Adapters in PEFT's form beside a model, and as part of one.

use super::runs::trained;
use super::{Place, chosen, has_adapter, stderr, stdout};
use danlu::base::Rng;
use danlu::gpu::{Gpu, Selector};
use danlu::infer::Generator;
use danlu::nn::{Lora, LoraConfig};
use danlu::store::{Checkpoint, write_adapter};
use serde_json::Value;
use std::fs;
use std::process::Command as Process;

/// Writes an adapter of the model `m` whose every number is random.
fn adapter(place: &Place, name: &str, config: &LoraConfig) {
    let model = Checkpoint::open(&place.path("m")).unwrap().config().clone();
    let lora = Lora::new(config, &model.param_specs(), 1 << 20).unwrap();
    let mut pages = lora.layout().init(3);
    let mut rng = Rng::new(4, 0);
    for (spec, data) in lora.layout().tensors_mut(&mut pages) {
        let large = if spec.name.ends_with("lora_magnitude_vector") { 0.3 } else { 0.0 };
        data.iter_mut().for_each(|x| *x = (*x * large) + 0.3 * rng.normal() as f32);
    }
    write_adapter(&place.path(name), (&lora, config), ("m", &model), &pages, &[], false).unwrap();
}

/// Of a token of the text.
fn nats(place: &Place, model: &str) -> f64 {
    let said = stdout(&place.danlu(&format!("eval --model {model} --text text.txt --json")).assert().success());
    let report: Value = serde_json::from_str(&said).unwrap();
    report["nats"].as_f64().unwrap() / report["tokens"].as_f64().unwrap()
}

/// The model with an adapter beside it and the model that was made with it are the same, and another than without.
#[test]
fn an_adapter_beside_a_model_says_what_the_merged_one_says() {
    let Some(place) = trained("m") else { return };
    let plain = nats(&place, "m");
    for (name, rslora, dora) in [("lora", false, false), ("rslora", true, false), ("dora", false, true)] {
        adapter(&place, name, &LoraConfig { rank: 4, alpha: 8.0, rslora, dora, ..LoraConfig::default() });
        let beside = nats(&place, &format!("m --lora {name}"));
        assert!((beside - plain).abs() > 0.01, "{name} changes nothing: {plain} and {beside}");
        for out in [format!("{name}-merged"), format!("{name}.gguf")] {
            place.danlu(&format!("merge --model m --adapter {name} --out {out}")).assert().success();
            let merged = nats(&place, &out);
            // Both compute in f32: W·x + s·B·(A·x), and (W + s·B·A)·x, in sums of some dozens.
            assert!((merged - beside).abs() <= 1e-5 * beside, "{out}: {merged}, and {beside} beside it");
        }
        let text = |model: &str| {
            let line = format!("generate --model {model} --prompt The --tokens 12 --temperature 0");
            stdout(&place.danlu(&line).assert().success())
        };
        assert_eq!(text(&format!("m --lora {name}")), text(&format!("{name}-merged")));
    }
}

/// PEFT opens what Danlu wrote, holds the same numbers, would write the same again, and computes the same of them: its own f32 is
/// about as far from f64 as Danlu's.
#[test]
fn an_adapter_is_the_same_to_peft() {
    let Some(place) = trained("m") else { return };
    let gpu = pollster::block_on(Gpu::open(&Selector::Number(chosen()))).unwrap();
    let kinds = [("lora", false, false), ("rslora", true, false), ("dora", false, true)];
    for (name, rslora, dora) in kinds {
        adapter(&place, name, &LoraConfig { rank: 4, alpha: 8.0, rslora, dora, ..LoraConfig::default() });
    }
    let tokens = [5, 60, 9, 120, 33, 71, 2, 40];
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/check_peft.py");
    let ids = tokens.map(|id| id.to_string()).join(",");
    let mut asked = Process::new("python3");
    asked.args([script, "m", &ids]).args(kinds.map(|kind| kind.0)).current_dir(place.folder.path());
    let run = match asked.output() {
        Ok(run) if run.status.code() != Some(3) => run,
        _ => {
            // Past the test's own capture of what it prints.
            let said =
                "SKIPPED: python3 cannot import torch, transformers and peft here: no adapter is opened by PEFT\n";
            return drop(std::io::Write::write_all(&mut std::io::stderr(), said.as_bytes()));
        }
    };
    assert!(run.status.success(), "{run:?}");
    let found: Value = serde_json::from_slice(&run.stdout).unwrap();
    for (name, ..) in kinds {
        let theirs = |key: &str| -> Vec<f64> {
            found[name][key].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
        };
        let (exact, single) = (theirs("exact"), theirs("logits"));
        let checkpoint = Checkpoint::open(&place.path("m")).unwrap().adapt(&place.path(name)).unwrap();
        let mut generator = pollster::block_on(Generator::load(&gpu, &checkpoint, tokens.len(), &mut |_| {})).unwrap();
        let ours: Vec<f64> = pollster::block_on(generator.feed(&tokens)).unwrap().into_iter().map(f64::from).collect();
        let distance = |a: &[f64]| a.iter().zip(&exact).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        let largest = exact.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        // As far as theirs, in sums of another order, and a few dozen roundings of the largest (tests/lora.rs).
        let bar = distance(&single) + 32.0 * f64::from(f32::EPSILON) * largest;
        assert_eq!(ours.len(), exact.len(), "{name}");
        assert!(distance(&ours) <= bar, "{name}: {} away, and PEFT in f32 {}", distance(&ours), distance(&single));
    }
}

/// The same where a model is talked with, and where items are scored.
#[test]
fn an_adapter_beside_a_model_answers_what_the_merged_one_answers() {
    if !has_adapter() {
        return;
    }
    // Long enough for a conversation.
    let place = Place::new();
    place
        .write("long.json", super::TINY.replace("\"max_position_embeddings\": 32", "\"max_position_embeddings\": 128"));
    place.train("--config long.json --out m --quiet").assert().success();
    adapter(&place, "a", &LoraConfig { rank: 4, alpha: 8.0, ..LoraConfig::default() });
    place.danlu("merge --model m --adapter a --out merged").assert().success();
    let item = r#"{"activity_label": "A", "ctx_a": "The cat", "ctx_b": "sat", "endings": ["on the mat.", "in a dog."], "label": 0}"#;
    place.write("items.jsonl", format!("{item}\n").repeat(3));
    let chat = |model: &str| {
        let mut talk = place.danlu(&format!("chat --model {model} --temperature 0 --tokens 8"));
        stdout(&talk.write_stdin("The cat?\nAnd the dog?\n").assert().success())
    };
    let items =
        |model: &str| stdout(&place.danlu(&format!("eval --model {model} --items items.jsonl")).assert().success());
    let said = chat("m --lora a");
    assert_eq!(said, chat("merged"));
    assert_ne!(said, chat("m"));
    assert_eq!(items("m --lora a"), items("merged"));
}

#[test]
fn adapters_that_do_not_fit_are_refused() {
    let Some(place) = trained("m") else { return };
    adapter(&place, "a", &LoraConfig { rank: 4, ..LoraConfig::default() });
    let refused = |line: &str, part: &str| {
        let said = stderr(&place.danlu(line).assert().code(1));
        assert!(said.contains(part) && said.trim_end().lines().count() == 1, "{line}: {said}");
    };
    refused(
        "generate --model m --lora gone --prompt a",
        "gone/adapter_config.json: is not there; an adapter is a folder",
    );
    refused("merge --model m --adapter a --out m", "is there already");
    let config = place.path("a/adapter_config.json");
    let text = fs::read_to_string(&config).unwrap();
    for (from, to, part) in [
        ("\"LORA\"", "\"IA3\"", "says peft_type \"IA3\"; only \"LORA\" is known"),
        ("\"none\"", "\"all\"", "says bias \"all\": trained biases are not known here"),
        (
            "weights\": true",
            "weights\": \"pissa\"",
            "says init_lora_weights \"pissa\", by which the model itself is another",
        ),
        ("\"use_dora\": false", "\"use_dora\": true", "lacks base_model.model."),
        ("\"modules_to_save\": null", "\"modules_to_save\": [\"lm_head\"]", "sets modules_to_save"),
    ] {
        assert!(text.contains(from), "{text}");
        fs::write(&config, text.replace(from, to)).unwrap();
        refused("merge --model m --adapter a --out x", part);
    }
    fs::write(&config, &text).unwrap();
    place.write("wide.json", super::TINY.replace("\"hidden_size\": 16", "\"hidden_size\": 32"));
    place.train("--config wide.json --out wide --quiet").assert().success();
    refused("merge --model wide --adapter a --out x", "which fits no adapter of model.layers.0.");
    assert!(!place.path("x").exists());
}
