//! Perplexity, choices and cloze on the device against transformers' figures (expected.json, by scripts/reference_eval.py).

#[path = "../common/mod.rs"]
mod common;

use common::golden::Golden;
use common::scores::log_probs;
use common::shared::shared;
use common::spread::Spread;
use danlu::data::Tokenizer;
use danlu::eval::{Form, Perplexity, Task, Windows, evaluate, perplexity, read_items};
use danlu::gpu::Gpu;
use danlu::infer::Scorer;
use danlu::model::Llama;
use danlu::nn::ParamLayout;
use danlu::store::{Checkpoint, load_config, load_folder};
use pollster::block_on;
use serde_json::Value;
use std::path::Path;

const WINDOWS: Windows = Windows { context: 64, stride: 24 };
const STORIES: &str = "../shared/data/models/stories260K/derived/hf-f32";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A model that is here, its tokenizer, and how far a log-probability may be off.
struct Model {
    name: &'static str,
    scorer: Scorer,
    tokenizer: Tokenizer,
    bar: f64,
}

impl Model {
    fn open(gpu: &Gpu, name: &'static str) -> Option<Model> {
        let folder = name.strip_prefix("../shared/data/").map_or_else(|| Some(root().join(name)), shared)?;
        let tokenizer = Tokenizer::open(&folder).unwrap();
        let checkpoint = Checkpoint::open(&folder).unwrap();
        let scorer = block_on(Scorer::load(gpu, &checkpoint, 200, &mut |_| {})).unwrap();
        Some(Model { name, scorer, bar: bar(&folder, &tokenizer), tokenizer })
    }

    fn expected(&self, file: &str) -> Value {
        let all: Vec<Value> = serde_json::from_str(include_str!("expected.json")).unwrap();
        all.into_iter().find(|e| e["model"] == self.name && e["file"] == file).unwrap()
    }
}

/// Four of the deviations that errors in every operator cause in a log-probability: the largest of the first window's.
fn bar(folder: &Path, tokenizer: &Tokenizer) -> f64 {
    let config = load_config(folder).unwrap();
    let layout = ParamLayout::new(Llama::new(config.clone()).param_specs(), 128 << 20);
    let pages = load_folder(folder, &config, &layout).unwrap();
    let golden = Golden { config, layout, pages, numbers: Default::default() };
    let tokens = &tokenizer.encode_prompt(&text()).unwrap()[..WINDOWS.context];
    let spread = Spread::new(|noise| [("".to_string(), log_probs(&golden, tokens, noise))].into());
    4.0 * spread.deviations("").iter().copied().fold(0.0, f64::max)
}

fn text() -> String {
    std::fs::read_to_string(root().join("tests/eval/story.txt")).unwrap()
}

#[test]
fn figures_are_those_of_transformers() {
    let gpu = common::gpu();
    for name in ["models/tiny", STORIES] {
        let Some(mut model) = Model::open(&gpu, name) else { continue };
        let p =
            block_on(perplexity(&mut model.scorer, &model.tokenizer, &text(), WINDOWS, None, &mut |_, _| {})).unwrap();
        let expected = model.expected("tests/eval/story.txt");
        let number = |key: &str| expected[key].as_f64().unwrap();
        assert_eq!((p.tokens, p.bytes, p.words).0 as f64, number("tokens"), "{name}");
        assert_eq!((p.bytes as f64, p.words as f64), (number("bytes"), number("words")), "{name}");
        let off = (p.nats - number("nats")).abs() / p.tokens as f64;
        assert!(off <= model.bar, "{name}: {off:e} nats a token off, the bar is {:e}", model.bar);
        println!("{name}: {off:.2e} nats a token off where the bar is {:.2e}", model.bar);
        for (got, key) in [
            (p.perplexity.ln(), "perplexity"),
            (p.word_perplexity.ln() * p.words as f64 / p.tokens as f64, "word_perplexity"),
            (p.bits_per_byte * p.bytes as f64 / p.tokens as f64 * std::f64::consts::LN_2, "bits_per_byte"),
        ] {
            let mean = number("nats") / number("tokens");
            assert!((got - mean).abs() <= model.bar, "{name} {key}: {got} nats a token instead of {mean}");
        }
        for file in ["tests/eval/hellaswag.jsonl", "tests/eval/arc.jsonl", "tests/eval/lambada.jsonl"] {
            check(&mut model, file);
        }
    }
}

fn check(model: &mut Model, file: &str) {
    let path = root().join(file);
    let (form, items) = read_items(&path, None).unwrap();
    let task = Task { file: &path, form, items: &items, limit: None, shots: 0, seed: 0 };
    let report = block_on(evaluate(&mut model.scorer, &model.tokenizer, &task, &mut |_, _| {})).unwrap();
    let expected = model.expected(file);
    assert_eq!((report.items as u64, report.truncated), (expected["items"].as_u64().unwrap(), 0));
    let metrics = expected["metrics"].as_array().unwrap();
    assert_eq!(report.metrics.len(), metrics.len());
    for (got, expected) in report.metrics.iter().zip(metrics) {
        let (value, stderr) = (expected["value"].as_f64().unwrap(), expected["stderr"].as_f64().unwrap());
        let what = format!("{} {file} {}", model.name, got.name);
        assert_eq!(expected["name"], got.name);
        if form == Form::Lambada && got.name == "perplexity" {
            // Of a word no token is further off than the bar.
            let pieces =
                |item: &danlu::eval::Item| model.tokenizer.encode(&format!(" {}", item.choices[0])).unwrap().len();
            let bar = model.bar * (1 + items.iter().map(pieces).max().unwrap()) as f64;
            assert!((got.value.ln() - value.ln()).abs() <= bar, "{what}: {} instead of {value}", got.value);
            let relative = got.stderr.unwrap() / got.value - stderr / value;
            assert!(relative.abs() <= bar, "{what}: the error is {:?} instead of {stderr}", got.stderr);
        } else {
            assert!((got.value - value).abs() < 1e-12, "{what}: {} instead of {value}", got.value);
            assert!((got.stderr.unwrap() - stderr).abs() < 1e-12, "{what}: error {:?} instead of {stderr}", got.stderr);
        }
    }
}

#[test]
fn limits_shots_and_what_does_not_fit() {
    let gpu = common::gpu();
    let mut model = Model::open(&gpu, "models/tiny").unwrap();
    let Model { scorer, tokenizer, .. } = &mut model;
    let mut measure = |windows: Windows, limit: Option<usize>| -> Result<Perplexity, String> {
        block_on(perplexity(scorer, tokenizer, &text(), windows, limit, &mut |_, _| {})).map_err(|e| e.to_string())
    };
    let two = measure(WINDOWS, Some(2)).unwrap();
    assert_eq!(two.tokens, 63 + 24);
    assert!(two.bytes < 702 && two.words < 145);
    assert!((two.perplexity.ln() * two.tokens as f64 - two.nats).abs() < 1e-9);
    let whole = measure(Windows { context: 64, stride: 64 }, None).unwrap();
    assert_eq!(whole.tokens, 221 - 3, "the first of each later window is not scored");
    assert!(whole.bytes < 702 && whole.bytes >= 702 - 3 * 16 && whole.words <= 145, "{whole:?}");
    for (context, stride) in [(1, 1), (257, 1), (64, 0), (64, 65)] {
        let message = measure(Windows { context, stride }, None).unwrap_err();
        let said = match stride {
            1 => "cannot be used: with this model --context is 2 to 256",
            0 => "cannot move by 0: --stride is 1 to 64",
            _ => "cannot move by 65: --stride is 1 to 64",
        };
        assert_eq!(message, format!("a window of {context} tokens {said}"));
    }
    let path = root().join("tests/eval/lambada.jsonl");
    let (form, mut items) = read_items(&path, Some(3)).unwrap();
    let mut limited = |items: &[danlu::eval::Item], limit, shots| {
        let task = Task { file: &path, form, items, limit, shots, seed: 1 };
        block_on(evaluate(scorer, tokenizer, &task, &mut |_, _| {})).map_err(|e| e.to_string())
    };
    assert_eq!(limited(&items, Some(1), 2).unwrap().items, 1, "shots come from all items");
    let mut score = |items: &[danlu::eval::Item], shots| limited(items, None, shots);
    let (none, one) = (score(&items, 0).unwrap(), score(&items, 1).unwrap());
    assert_eq!((none.items, one.items, one.shots), (3, 3, 1));
    assert_ne!(none.metrics[1], one.metrics[1], "what stands before matters");
    let message = score(&items, 3).unwrap_err();
    assert!(message.ends_with("lambada.jsonl: has 3 items, too few to put 3 others before each"), "{message}");
    // A context beyond the model's is cut at its front: what is far away changes nothing.
    let far = |start: &str| format!("{start}{}", " and the fox ran".repeat(120));
    items[0].context = far("One day");
    let cut = score(&items, 0).unwrap();
    assert_eq!(cut.truncated, 1);
    items[0].context = far("The king");
    assert_eq!(score(&items, 0).unwrap().metrics, cut.metrics);
    items[0].choices[0] = " and the fox ran".repeat(120);
    let message = score(&items, 0).unwrap_err();
    assert!(message.contains("alone fills the model's context of 256 tokens"), "{message}");
}
