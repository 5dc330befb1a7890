//! Whole training runs on the device: one seed gives one model to the byte, however steps are waited for; what is saved
//! tells the same story as what was trained; a run that is asked to stop saves and leaves.

mod common;

use common::shared::shared;
use danlu::base::{Bytes, Limits};
use danlu::compile::First;
use danlu::data::Tokenizer;
use danlu::gpu::Gpu;
use danlu::infer::{Generator, Sampling};
use danlu::model::Llama;
use danlu::nn::ParamLayout;
use danlu::optim::JUDGE;
use danlu::run::States;
use danlu::store::{load_config, load_folder};
use danlu::train::{Event, Observer, Precision, Prepared, Recipe, Trainer, plans, prepare, run, save};
use pollster::block_on;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const CONFIG: &str = r#"{"model_type": "llama", "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": true}"#;
const STEPS: u64 = 7;

fn recipe(folder: &Path, seed: u64) -> Recipe {
    let config = folder.join("config.json");
    std::fs::write(&config, CONFIG).unwrap();
    Recipe {
        config: config.to_str().unwrap().into(),
        stories: 80,
        steps: STEPS,
        batch: 3,
        seq: 40,
        eval_every: Some(3),
        val_sequences: 5,
        seed,
        out: folder.join("model"),
        ..Recipe::default()
    }
}

/// What a run told: steps, validations and samples in order, without what depends on the clock.
#[derive(Default)]
struct Told {
    lines: Vec<String>,
    sample: String,
    interrupted: Option<bool>,
    stop_after: Option<u64>,
    stop: Arc<AtomicBool>,
}

impl Observer for Told {
    fn event(&mut self, event: &Event) {
        match event {
            Event::Step { step, loss, lr, grad_norm, .. } => {
                let bits = (loss.to_bits(), lr.to_bits(), grad_norm.to_bits());
                self.lines.push(format!("step {step} {bits:?}"));
                self.stop.fetch_or(self.stop_after == Some(*step), Ordering::Relaxed);
            }
            Event::Validation { step, loss, .. } => self.lines.push(format!("validation {step} {:?}", loss.to_bits())),
            Event::Sample { step, text } => {
                self.lines.push(format!("sample {step} {text}"));
                self.sample.clone_from(text);
            }
            Event::Saved { interrupted, .. } => self.interrupted = Some(*interrupted),
            _ => {}
        }
    }
}

fn begin(gpu: &Gpu, recipe: &Recipe, folder: &Path) -> (Prepared, Trainer) {
    let prepared = prepare(recipe, &folder.join("cache"), &mut Told::default()).unwrap();
    let (trainer, ..) = block_on(Trainer::new(gpu, recipe, &prepared, &mut First)).unwrap();
    (prepared, trainer)
}

/// A whole run, everything made anew in a folder of its own.
fn train(gpu: &Gpu, recipe: &Recipe, folder: &Path, stop_after: Option<u64>) -> (Told, Prepared, Trainer) {
    let (prepared, mut trainer) = begin(gpu, recipe, folder);
    let mut told = Told { stop_after, ..Told::default() };
    let stop = told.stop.clone();
    block_on(run(gpu, recipe, &prepared, &mut trainer, None, &stop, &mut told)).unwrap();
    (told, prepared, trainer)
}

/// The model's files.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let read =
        |entry: std::fs::DirEntry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap());
    let of_run = |name: &str| {
        let begins = ["metrics.", "events.", "trained."].iter().any(|beginning| name.starts_with(beginning));
        begins || ["recipe.toml", ".lock", ".run"].contains(&name)
    };
    let entries = std::fs::read_dir(folder).unwrap().map(Result::unwrap).filter(|e| e.path().is_file());
    entries.filter(|e| !of_run(e.file_name().to_str().unwrap())).map(read).collect()
}

#[test]
fn one_seed_gives_one_model_to_the_byte() {
    let gpu = common::gpu();
    let folders: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let runs: Vec<_> = folders
        .iter()
        .zip([5, 5, 6])
        .map(|(folder, seed)| {
            let recipe = recipe(folder.path(), seed);
            let told = train(&gpu, &recipe, folder.path(), None).0;
            assert_eq!(told.interrupted, Some(false));
            (told.lines, files(&recipe.out))
        })
        .collect();
    assert_eq!(runs[0].0.len() as u64, STEPS + 3 + 3, "validation and a sample after 3, 6 and 7 steps");
    assert_eq!(runs[0].0, runs[1].0, "losses, norms and samples");
    let names: Vec<_> = runs[0].1.keys().map(String::as_str).collect();
    let expected =
        ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];
    assert_eq!(names, expected);
    assert!(runs[0].1 == runs[1].1, "the folders differ");
    assert_ne!(runs[0].1["model.safetensors"], runs[2].1["model.safetensors"], "another seed is another model");
}

/// What is trained in either precision from one seed says as much of held-out text, by validation in strict f32, within a hundredth.
#[test]
fn mixed_precision_learns_what_f32_learns() {
    let Some(text) = shared("text/tinystories_dev_75pct.txt") else { return };
    let gpu = common::gpu();
    let [strict, mixed] = [Precision::F32, Precision::Mixed].map(|precision| {
        let folder = tempfile::tempdir().unwrap();
        let recipe = Recipe {
            data: text.clone().into(),
            precision,
            steps: 500,
            eval_every: Some(500),
            batch: 2,
            seq: 64,
            out: folder.path().join("model"),
            ..Recipe::default()
        };
        let (prepared, mut trainer) = begin(&gpu, &recipe, folder.path());
        let mut losses = Vec::new();
        let mut told = |event: &Event| {
            if let Event::Validation { loss, .. } = event {
                losses.push(*loss);
            }
        };
        block_on(run(&gpu, &recipe, &prepared, &mut trainer, None, &AtomicBool::new(false), &mut told)).unwrap();
        *losses.last().expect("a validation after the last step")
    });
    println!("nats a token after 500 steps: {strict:.4} in f32, {mixed:.4} in mixed precision");
    // The tokens' logarithm is 6.9.
    assert!(strict < 5.5, "{strict}");
    assert!((mixed / strict - 1.0).abs() < 0.01, "{strict} in f32, {mixed} in mixed precision");
}

/// Validation and samples read the parameters between steps, and up to two steps are under way at a time: none of it may
/// show in the numbers.
#[test]
fn how_steps_are_waited_for_changes_no_bit() {
    let gpu = common::gpu();
    let folder = tempfile::tempdir().unwrap();
    let recipe = recipe(folder.path(), 5);
    let (told, ..) = train(&gpu, &recipe, folder.path(), None);
    let expected = &files(&recipe.out)["model.safetensors"];
    let steps: Vec<_> = told.lines.iter().filter(|line| line.starts_with("step")).collect();
    for in_flight in [1, 2] {
        let (prepared, mut trainer) = begin(&gpu, &recipe, folder.path());
        for (step, told) in (1..).zip(&steps) {
            while trainer.submitted() < (step + in_flight - 1).min(STEPS) {
                block_on(trainer.submit()).unwrap();
            }
            let (result, lr) = (block_on(trainer.result()).unwrap(), trainer.rate(step - 1));
            let bits = (result.loss.to_bits(), lr.to_bits(), result.grad_norm.to_bits());
            assert_eq!(**told, format!("step {step} {bits:?}"), "{in_flight} in flight");
        }
        let out = folder.path().join(format!("in-flight-{in_flight}"));
        save(&out, &recipe, &prepared, &trainer.subject, &block_on(trainer.pages()).unwrap()).unwrap();
        assert!(*expected == files(&out)["model.safetensors"], "{in_flight} in flight");
    }
}

/// Activations that are computed again are the same: losses, norms and the trained model are, to the bit.
#[test]
fn recomputing_changes_no_bit() {
    let gpu = common::gpu();
    let folder = tempfile::tempdir().unwrap();
    let mut recipe = recipe(folder.path(), 5);
    let run = |recipe: &Recipe| {
        let (_, mut trainer) = begin(&gpu, recipe, folder.path());
        let results: Vec<_> = (0..3)
            .map(|_| {
                block_on(trainer.submit()).unwrap();
                let result = block_on(trainer.result()).unwrap();
                (result.loss.to_bits(), result.grad_norm.to_bits())
            })
            .collect();
        let bits: Vec<_> = block_on(trainer.pages()).unwrap().concat().iter().map(|x| x.to_bits()).collect();
        (results, bits, trainer.fit)
    };
    let kept = run(&recipe);
    assert!(kept.2.is_none_or(|fit| fit.note().is_none()), "it fits this machine");
    recipe.memory = Some(Bytes(1));
    let prepared = prepare(&recipe, &folder.path().join("cache"), &mut Told::default()).unwrap();
    let limits = Limits { memory_bytes: None, ..gpu.limits().clone() };
    let least = plans(&prepared.config, &recipe, None, &limits, &mut First).unwrap().fit.unwrap();
    let bytes = least.trade.reached + least.beside;
    let message = least.check().unwrap_err().to_string();
    assert!(
        message.starts_with("training takes at least ") && message.contains(&format!("({bytes} bytes)")),
        "{message}"
    );
    recipe.memory = Some(Bytes(bytes));
    let least = run(&recipe);
    let fit = least.2.unwrap();
    assert!(fit.trade.reached < fit.trade.before && fit.trade.flops() > 0, "{fit:?}");
    assert!(fit.note().unwrap().contains("are allowed"), "{fit:?}");
    assert_eq!(kept.0, least.0);
    assert!(kept.1 == least.1, "the models differ");
}

#[test]
fn what_is_saved_tells_the_same_story() {
    let gpu = common::gpu();
    let folder = tempfile::tempdir().unwrap();
    let recipe = recipe(folder.path(), 5);
    let (told, prepared, trainer) = train(&gpu, &recipe, folder.path(), None);

    let config = load_config(&recipe.out).unwrap();
    assert_eq!(config, prepared.config);
    let tokenizer = Tokenizer::open(&recipe.out).unwrap();
    let model = Llama::new(config.clone());
    // Pages of another size than the trainer's.
    let layout = ParamLayout::new(model.param_specs(), 16 << 10);
    assert_ne!(layout.pages(), trainer.layout().pages());
    let mut states = States::new(&gpu);
    for (i, page) in load_folder(&recipe.out, &config, &layout).unwrap().iter().enumerate() {
        block_on(states.buffer(&format!("param.{i}"), 4 * page.len() as u64)).unwrap();
        block_on(states.write(&format!("param.{i}"), 0, bytemuck::cast_slice(page))).unwrap();
    }
    let sampling = Sampling { seed: recipe.seed, ..Sampling::default() };
    let tell = |model: &Llama, layout: &ParamLayout, states: States, tokenizer: &Tokenizer| {
        let mut generator =
            block_on(Generator::new(&gpu, model, Arc::new(layout.clone()), states, recipe.seq)).unwrap();
        let mut tokens = tokenizer.encode_prompt(&recipe.prompt).unwrap();
        let (prompt, count) = (tokens.clone(), recipe.seq - tokens.len());
        let receive = |token| {
            tokens.push(token);
            Ok(true)
        };
        block_on(generator.generate(&prompt, count, &sampling, receive)).unwrap();
        (tokenizer.decode(&tokens).unwrap(), tokens)
    };
    let loaded = tell(&model, &layout, states, &tokenizer);
    let trained = tell(&trainer.model, trainer.layout(), trainer.states.clone(), &prepared.tokenizer);
    assert_eq!(loaded, trained);
    assert_eq!(loaded.0, told.sample, "the sample of the last step");
    assert!(loaded.1.len() > 10, "{loaded:?}");
}

#[test]
fn a_run_asked_to_stop_saves_what_it_has() {
    let gpu = common::gpu();
    let folder = tempfile::tempdir().unwrap();
    let recipe = recipe(folder.path(), 5);
    let (told, _, trainer) = train(&gpu, &recipe, folder.path(), Some(4));
    assert_eq!(told.interrupted, Some(true));
    let steps = told.lines.iter().filter(|line| line.starts_with("step")).count() as u64;
    assert_eq!(steps, trainer.submitted(), "every step begun was finished and told");
    assert!((4..STEPS).contains(&steps), "{steps}");
    let saved = load_folder(&recipe.out, &load_config(&recipe.out).unwrap(), trainer.layout()).unwrap();
    assert!(saved == block_on(trainer.pages()).unwrap());
}

/// Families that store otherwise, or have parameters that LLaMA has not: every one of them is trained, and what is saved
/// is what was trained.
#[test]
fn families_are_trained_and_saved_in_their_own_form() {
    let gpu = common::gpu();
    for (row, stored) in [
        ("qwen2", "model.layers.0.self_attn.k_proj.bias"),
        ("olmo2", "model.layers.0.post_feedforward_layernorm.weight"),
        ("qwen3-moe", "model.layers.0.mlp.experts.5.down_proj.weight"),
        ("phi3", "model.layers.0.self_attn.qkv_proj.weight"),
        ("baichuan2-13b", "model.layers.0.self_attn.W_pack.weight"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let recipe = Recipe { steps: 3, ..recipe(folder.path(), 5) };
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/families").join(row);
        let text = std::fs::read_to_string(golden.join("config.json")).unwrap();
        let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
        // What a byte-level tokenizer needs.
        config["vocab_size"] = 300.into();
        std::fs::write(&recipe.config, config.to_string()).unwrap();
        let (told, prepared, trainer) = train(&gpu, &recipe, folder.path(), None);
        assert_eq!((told.interrupted, prepared.config.family.name), (Some(false), row));

        let fresh = trainer.layout().init(recipe.seed);
        let trained = block_on(trainer.pages()).unwrap();
        for ((spec, before), (_, after)) in trainer.layout().tensors(&fresh).zip(trainer.layout().tensors(&trained)) {
            assert_ne!(before, after, "{row}: {} was not trained", spec.name);
        }
        let config = load_config(&recipe.out).unwrap();
        assert_eq!(config, prepared.config);
        assert!(load_folder(&recipe.out, &config, trainer.layout()).unwrap() == trained, "{row}");
        let bytes = std::fs::read(recipe.out.join("model.safetensors")).unwrap();
        assert!(safetensors::SafeTensors::deserialize(&bytes).unwrap().tensor(stored).is_ok(), "{row} lacks {stored}");
    }
}

/// Everything that a step may change, to the bit.
fn states(trainer: &Trainer) -> Vec<Vec<u8>> {
    let names = ["param.0", "adam_m.0", "adam_v.0", "half.0"];
    let all = names.iter().map(|name| block_on(trainer.states.read(name)).unwrap());
    all.collect()
}

#[test]
fn a_step_that_overflows_changes_nothing_but_the_scale() {
    let gpu = common::gpu();
    let folder = tempfile::tempdir().unwrap();
    let recipe = Recipe { precision: Precision::Mixed, loss_scale_interval: 2, ..recipe(folder.path(), 5) };
    let (_, mut trainer) = begin(&gpu, &recipe, folder.path());
    let step = |trainer: &mut Trainer| {
        block_on(trainer.submit()).unwrap();
        block_on(trainer.result()).unwrap()
    };
    let scaler = |trainer: &Trainer| -> Vec<f32> {
        bytemuck::pod_collect_to_vec(&block_on(trainer.states.read(JUDGE)).unwrap())
    };
    assert_eq!(trainer.layout().pages().len(), 1);
    assert_eq!(step(&mut trainer).loss_scale, Some(65_536.0));
    let (before, told) = (states(&trainer), scaler(&trainer));
    assert_eq!(told[..3], [65_536.0, 1.0, 0.0]);
    let close = |x: f32, y: f64| (f64::from(x) - y).abs() < 1e-7;
    assert!(close(told[3], 1.0 - recipe.beta1) && close(told[4], 1.0 - recipe.beta2), "{told:?}");

    // Gradients so large that f16 has no number for them.
    let infinite = 2f32.powi(100);
    block_on(trainer.states.write(JUDGE, 0, &infinite.to_le_bytes())).unwrap();
    let result = step(&mut trainer);
    assert!(result.loss.is_finite() && !result.grad_norm.is_finite() && result.left_out, "{result:?}");
    assert!(states(&trainer) == before, "parameters, moments or the copy in f16 moved");
    let after = scaler(&trainer);
    assert_eq!(after[..3], [infinite / 2.0, 0.0, 1.0]);
    assert_eq!(after[3..7], told[3..7], "a step that was left out counts for no correction and no mean");

    // From a scale that fits on, two good steps double it.
    block_on(trainer.states.write(JUDGE, 0, &1024f32.to_le_bytes())).unwrap();
    let results = [step(&mut trainer), step(&mut trainer)];
    assert_eq!(results.map(|r| (r.loss_scale, r.skipped)), [(Some(1024.0), 1), (Some(2048.0), 1)]);
    assert!(results.iter().all(|r| r.grad_norm.is_finite()) && states(&trainer) != before);
}
