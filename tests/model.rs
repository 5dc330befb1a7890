//! The model against PyTorch's goldens (tests/goldens/README.md), with no device: the graph is computed by its
//! operators' references in f64. What is wrong here is wrong in the model, its gradients or the optimizer; kernels are
//! held to the references elsewhere.

mod common;

use common::interpret::Interpreter;
use danlu::base::{Array, DType, TensorType};
use danlu::graph::{Graph, Value};
use danlu::model::{Llama, ModelConfig};
use danlu::nn::{ParamLayout, Params};
use danlu::ops::IGNORE;
use danlu::optim::{HYPER, Optimizer, Schedule};
use danlu::store::{load_config, load_folder, save_folder};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

type Sources = HashMap<String, Array>;

/// One golden folder: the model, its weights, and PyTorch's numbers.
struct Golden {
    config: ModelConfig,
    layout: ParamLayout,
    pages: Vec<Vec<f32>>,
    numbers: HashMap<String, (Vec<usize>, Vec<f64>)>,
}

impl Golden {
    fn open(name: &str) -> Golden {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(name);
        let config = load_config(&folder).unwrap();
        // Small pages, so that parameters lie in several.
        let layout = ParamLayout::new(Llama::new(config.clone()).param_specs(), 16 << 10);
        assert!(layout.pages().len() > 2);
        let pages = load_folder(&folder, &config, &layout).unwrap();
        let numbers = read_numbers(&folder.join("golden.safetensors"));
        Golden { config, layout, pages, numbers }
    }

    fn get(&self, name: &str) -> &[f64] {
        &self.numbers.get(name).unwrap_or_else(|| panic!("no golden {name}")).1
    }

    /// Tokens or targets, with PyTorch's -100 as ours.
    fn ids(&self, name: &str) -> Array {
        let (shape, data) = &self.numbers[name];
        let id = |&x: &f64| if x == -100.0 { f64::from(IGNORE) } else { x };
        Array::new(TensorType::u32(shape.clone()), data.iter().map(id).collect())
    }

    fn states(&self) -> Sources {
        let mut sources = Sources::new();
        for (i, page) in self.pages.iter().enumerate() {
            let values = page.iter().map(|&x| f64::from(x)).collect();
            sources.insert(format!("param.{i}"), Array::new(TensorType::f32([page.len()]), values));
            sources.insert(format!("adam_m.{i}"), Array::zeros([page.len()]));
            sources.insert(format!("adam_v.{i}"), Array::zeros([page.len()]));
        }
        sources
    }
}

fn read_numbers(path: &Path) -> HashMap<String, (Vec<usize>, Vec<f64>)> {
    let bytes = std::fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let numbers = |view: &safetensors::tensor::TensorView| -> Vec<f64> {
        let words = || view.data().chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]]);
        match view.dtype() {
            safetensors::Dtype::F64 => {
                view.data().chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect()
            }
            safetensors::Dtype::F32 => words().map(|b| f64::from(f32::from_le_bytes(b))).collect(),
            safetensors::Dtype::I32 => words().map(|b| f64::from(i32::from_le_bytes(b))).collect(),
            other => panic!("{other:?}"),
        }
    };
    file.iter().map(|(name, view)| (name.to_string(), (view.shape().to_vec(), numbers(&view)))).collect()
}

/// Constants of the graph (the rotary table, epsilon, the betas) are f32 though the references compute in f64, so results
/// carry a few dozen of f32's roundings, relative to the tensor's largest value.
fn assert_close(what: &str, got: &[f64], expected: &[f64]) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    let bar = 32.0 * f64::from(f32::EPSILON) * largest;
    for (i, (a, b)) in got.iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= bar, "{what}[{i}]: {a}, PyTorch has {b}; the bar is {bar:e}");
    }
}

/// A graph of one training step, with what the tests look at.
struct Step {
    graph: Graph,
    params: Params,
    loss: Value,
    norm: Value,
}

impl Step {
    fn new(golden: &Golden, tokens: &TensorType) -> Step {
        let llama = Llama::new(golden.config.clone());
        let mut graph = Graph::new();
        let params = golden.layout.declare(&mut graph).unwrap();
        let (tokens, targets) = (graph.input("tokens", tokens.clone()), graph.input("targets", tokens.clone()));
        let loss = llama.loss(&mut graph, &params, tokens, targets).unwrap();
        Optimizer::default().train_step(&mut graph, &golden.layout, &params, loss).unwrap();
        let norm = graph.outputs().iter().find(|(name, _)| name == "grad_norm").unwrap().1;
        Step { graph, params, loss, norm }
    }

    fn run(&self, sources: &Sources, tokens: Array, targets: Array, hyper: [f32; 4]) -> Interpreter<'_> {
        let mut sources = sources.clone();
        sources.insert("tokens".into(), tokens);
        sources.insert("targets".into(), targets);
        let hyper = hyper.iter().map(|&x| f64::from(x)).collect();
        sources.insert(HYPER.into(), Array::new(TensorType::f32([4]), hyper));
        Interpreter::run(&self.graph, &sources)
    }
}

#[test]
fn logits_loss_and_every_gradient() {
    for name in ["gqa", "tied"] {
        let golden = Golden::open(name);
        let (tokens, targets) = (golden.ids("tokens"), golden.ids("targets"));
        let llama = Llama::new(golden.config.clone());
        let mut g = Graph::new();
        let params = golden.layout.declare(&mut g).unwrap();
        let input = g.input("tokens", tokens.ty.clone());
        let target = g.input("targets", tokens.ty.clone());
        let logits = llama.logits(&mut g, &params, input).unwrap();
        let loss = llama.loss(&mut g, &params, input, target).unwrap();
        let gradients = danlu::graph::gradients(&mut g, loss, &params.views).unwrap();
        let mut sources = golden.states();
        sources.insert("tokens".into(), tokens);
        for (case, targets) in [("", targets), ("ignored.", golden.ids("ignored.targets"))] {
            sources.insert("targets".into(), targets);
            let run = Interpreter::run(&g, &sources);
            assert_close("logits", &run.get(logits).data, golden.get("golden64.logits"));
            assert_close("loss", &run.get(loss).data, golden.get(&format!("golden64.{case}loss")));
            for (spec, &gradient) in golden.layout.specs().iter().zip(&gradients) {
                let expected = format!("golden64.{case}grad.{}", spec.name);
                if golden.numbers.contains_key(&expected) {
                    assert_close(&expected, &run.get(gradient).data, golden.get(&expected));
                } else {
                    assert!(!case.is_empty(), "no golden {expected}");
                }
            }
        }
    }
}

#[test]
fn ten_steps_of_adamw() {
    let schedule = Schedule { lr: 1e-2, min_lr: 1e-3, warmup: 3, total: 10 };
    for name in ["gqa", "tied"] {
        let golden = Golden::open(name);
        let (shape, batches) = &golden.numbers["adamw.batches"];
        let (b, t) = (shape[1], shape[2] - 1);
        let ty = TensorType { shape: [b, t].into(), dtype: DType::U32 };
        let step = Step::new(&golden, &ty);
        let mut sources = golden.states();
        let (mut losses, mut norms) = (Vec::new(), Vec::new());
        for (i, batch) in batches.chunks(b * (t + 1)).enumerate() {
            let cut = |from: usize| batch.chunks(t + 1).flat_map(|row| row[from..from + t].to_vec()).collect();
            let (tokens, targets) = (Array::new(ty.clone(), cut(0)), Array::new(ty.clone(), cut(1)));
            let hyper = Optimizer::default().hyper(schedule.rate(i as u64), i as u64);
            let run = step.run(&sources, tokens, targets, hyper);
            losses.push(run.get(step.loss).data[0]);
            norms.push(run.get(step.norm).data[0]);
            for (n, node) in step.graph.nodes().iter().enumerate() {
                if let Some(state) = sources.get_mut(&node.name) {
                    *state = run.get(Value { node: danlu::graph::NodeId(n as u32), output: 0 });
                }
            }
        }
        assert_close("losses", &losses, golden.get("golden64.adamw.losses"));
        assert_close("grad_norms", &norms, golden.get("golden64.adamw.grad_norms"));
        for (spec, view) in golden.layout.specs().iter().zip(&step.params.views) {
            let (page, start) = golden.layout.place(&spec.name).unwrap();
            assert_eq!(step.graph.dims(*view), spec.shape.dims());
            let got = &sources[&format!("param.{page}")].data[start..start + spec.shape.elements()];
            // The file holds PyTorch's f32 result, which is this far from f64; ours has f32's hyper-parameters.
            let far = 4.0 * golden.get(&format!("golden64.adamw.distance.{}", spec.name))[0];
            for (a, b) in got.iter().zip(golden.get(&format!("adamw.final.{}", spec.name))) {
                assert!((a - b).abs() <= far, "{}: {a}, PyTorch has {b}; the bar is {far:e}", spec.name);
            }
        }
    }
}

/// Runs a decoding graph for `tokens` at `position`; gives the logits and keeps the caches in `sources`.
fn decode(golden: &Golden, sources: &mut Sources, tokens: Array, position: usize, rows: Option<Vec<f64>>) -> Vec<f64> {
    const CACHE: usize = 20;
    let llama = Llama::new(golden.config.clone());
    let mut g = Graph::new();
    let params = golden.layout.declare(&mut g).unwrap();
    let input = g.input("tokens", tokens.ty.clone());
    let first = g.input("position", TensorType::u32([1]));
    let selected = rows.as_ref().map(|rows| g.input("rows", TensorType::u32([rows.len()])));
    let caches = llama.caches(&mut g, tokens.dims()[0], CACHE);
    let logits = llama.decode(&mut g, &params, input, first, selected, &caches).unwrap();
    for (i, cache) in caches.iter().enumerate() {
        for (name, value) in [("k", cache.keys), ("v", cache.values)] {
            let ty = g.ty(value).clone();
            sources.entry(format!("cache.{name}.{i}")).or_insert_with(|| Array::zeros(ty.shape.clone()));
        }
    }
    sources.insert("tokens".into(), tokens);
    sources.insert("position".into(), Array::new(TensorType::u32([1]), vec![position as f64]));
    if let Some(rows) = rows {
        sources.insert("rows".into(), Array::new(TensorType::u32([rows.len()]), rows));
    }
    let run = Interpreter::run(&g, sources);
    for (i, cache) in caches.iter().enumerate() {
        sources.insert(format!("cache.k.{i}"), run.get(cache.keys));
        sources.insert(format!("cache.v.{i}"), run.get(cache.values));
    }
    run.get(logits).data
}

#[test]
fn decoding_gives_the_logits_of_the_whole() {
    for name in ["gqa", "tied"] {
        let golden = Golden::open(name);
        let (all, v) = (golden.ids("tokens"), golden.config.vocab_size);
        let &[b, t] = all.dims() else { panic!() };
        let expected = |at: usize| -> Vec<f64> {
            let logits = golden.get("golden64.logits");
            (0..b).flat_map(|row| logits[(row * t + at) * v..(row * t + at + 1) * v].to_vec()).collect()
        };
        let mut sources = golden.states();
        // A prompt of five tokens, filled up to eight with the last of the vocabulary.
        let cut = |row: usize| {
            let own = &all.data[row * t..row * t + 5];
            own.iter().copied().chain([v as f64 - 1.0; 3]).collect::<Vec<_>>()
        };
        let tokens = Array::new(TensorType::u32([b, 8]), (0..b).flat_map(cut).collect());
        let rows = (0..b).map(|row| (row * 8 + 4) as f64).collect();
        let logits = decode(&golden, &mut sources, tokens, 0, Some(rows));
        assert_close("prompt", &logits, &expected(4));
        for at in 5..t {
            let column = (0..b).map(|row| all.data[row * t + at]).collect();
            let tokens = Array::new(TensorType::u32([b, 1]), column);
            let logits = decode(&golden, &mut sources, tokens, at, None);
            assert_close(&format!("token {at}"), &logits, &expected(at));
        }
    }
}

#[test]
fn a_folder_from_elsewhere_is_read_and_written_to_the_bit() {
    let folder: PathBuf =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/models/stories260K/derived/hf-f32");
    if !folder.is_dir() {
        eprintln!("SKIPPED: {} is not here", folder.display());
        return;
    }
    let config = load_config(&folder).unwrap();
    assert_eq!((config.parameters(), config.num_key_value_heads, config.head_dim), (260_032, 4, 8));
    let layout = ParamLayout::new(Llama::new(config.clone()).param_specs(), 128 << 20);
    let pages = load_folder(&folder, &config, &layout).unwrap();
    let copy = tempfile::tempdir().unwrap();
    let out = copy.path().join("a/model");
    let extra = danlu::store::FolderFile { name: "tokenizer.json", content: b"{}" };
    save_folder(&out, &config, &layout, &pages, &[extra]).unwrap();
    assert_eq!(load_config(&out).unwrap(), config);
    assert_eq!(load_folder(&out, &config, &layout).unwrap(), pages);
    let mut names: Vec<_> = std::fs::read_dir(&out).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"]);
    let mut wrong = config.clone();
    wrong.intermediate_size = 176;
    let layout = ParamLayout::new(Llama::new(wrong.clone()).param_specs(), 128 << 20);
    let message = load_folder(&out, &wrong, &layout).unwrap_err().to_string();
    assert!(message.contains("where config.json says [176,64]; one of the two is wrong"), "{message}");
}
