//! The model families, one row each, against the library of their own (tests/goldens/families.py): logits,
//! log-probabilities, loss and every gradient on the device, decoding over the cache, and folders that are written as
//! they were read. The bars are those of tests/common/spread.rs, and what float32 costs the library itself.

mod common;

use common::golden::{Golden, Numbers, forward_backward, interpret};
use common::interpret::Noise;
use common::spread::Spread;
use danlu::compile::{First, compile};
use danlu::gpu::Gpu;
use danlu::infer::Generator;
use danlu::model::FAMILIES;
use danlu::run::{Executor, States, f32s};
use danlu::store::gguf::Metadata;
use danlu::store::{Checkpoint, load_config, load_folder, save_folder};
use pollster::block_on;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// A golden folder, the row of `model::FAMILIES` that it is, and what it is there for.
const ROWS: &[(&str, &str, &str)] = &[
    ("llama", "llama", "biases everywhere"),
    ("llama3", "llama", "scaling of Llama 3.1"),
    ("linear", "llama", "linear scaling"),
    ("dynamic", "llama", "dynamic NTK scaling, beyond the trained length"),
    ("yarn", "llama", "YaRN scaling"),
    ("mistral", "mistral", "a window in every layer; heads wider than D/H"),
    ("mixtral", "mixtral", "experts in every layer"),
    ("qwen2", "qwen2", "biases of queries, keys and values; a window from layer 1 on"),
    ("qwen3", "qwen3", "norms of each head; tied"),
    ("qwen3-moe", "qwen3-moe", "experts in the first layer only"),
    ("qwen3-moe-all", "qwen3-moe", "experts in every layer; their weights sum to one"),
    ("smollm3", "smollm3", "the second layer is not turned"),
    ("phi3", "phi3", "packed projections; half of a head turns; the short factors"),
    ("phi3-long", "phi3", "the long factors; a window"),
    ("olmo2", "olmo2", "norms behind blocks; norms of all heads together"),
    ("baichuan-7b", "baichuan-7b", "packed projections"),
    ("baichuan-13b", "baichuan-13b", "ALiBi with heads that are no power of two"),
    ("baichuan2-7b", "baichuan2-7b", "an output projection of unit rows"),
    ("baichuan2-13b", "baichuan2-13b", "both"),
];

fn folder(row: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/families").join(row)
}

/// Runs `check` for every row, and says in the end which failed.
fn each_row(check: impl Fn(&str, &str)) {
    let failed: Vec<&str> = ROWS
        .iter()
        .filter(|(row, family, _)| {
            println!("{row}");
            catch_unwind(AssertUnwindSafe(|| check(row, family))).is_err()
        })
        .map(|(row, ..)| *row)
        .collect();
    assert!(failed.is_empty(), "failed: {}", failed.join(", "));
}

fn open(row: &str) -> Golden {
    Golden::open(&format!("families/{row}"))
}

/// Log-probabilities of the targets from logits `[R,V]`, in f64.
fn logprobs(logits: &[f64], targets: &[f64]) -> Vec<f64> {
    let vocab = logits.len() / targets.len();
    let one = |(row, &target): (&[f64], &f64)| {
        let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        row[target as usize] - max - row.iter().map(|x| (x - max).exp()).sum::<f64>().ln()
    };
    logits.chunks(vocab).zip(targets).map(one).collect()
}

/// The results of [`forward_backward`] by references, with log-probabilities.
fn exact(golden: &Golden) -> impl Fn(Option<&mut Noise>) -> Numbers + Sync {
    let (tokens, targets) = (golden.ids("tokens"), golden.ids("targets"));
    let graph = forward_backward(golden, &tokens.ty);
    let mut sources = golden.states();
    let ids = targets.data.clone();
    sources.insert("tokens".into(), tokens);
    sources.insert("targets".into(), targets);
    move |noise| {
        let mut numbers = interpret(&graph, &sources, noise);
        numbers.insert("logprobs".into(), logprobs(&numbers["logits"], &ids));
        numbers
    }
}

fn wide(x: Vec<f32>) -> Vec<f64> {
    x.into_iter().map(f64::from).collect()
}

/// What the device gives for the graph of [`forward_backward`].
fn on_the_device(gpu: &Gpu, golden: &Golden) -> Numbers {
    let (tokens, targets) = (golden.ids("tokens"), golden.ids("targets"));
    let plan = compile(&forward_backward(golden, &tokens.ty), gpu.limits(), &mut First).unwrap();
    let mut states = States::new(gpu);
    let mut run = block_on(Executor::new(gpu, &plan, &mut states)).unwrap();
    for (i, page) in golden.pages.iter().enumerate() {
        block_on(states.write(&format!("param.{i}"), 0, bytemuck::cast_slice(page))).unwrap();
    }
    run.set("tokens", &tokens.to_bytes()).unwrap();
    run.set("targets", &targets.to_bytes()).unwrap();
    let outputs = block_on(run.run()).unwrap();
    let mut numbers: Numbers = outputs.keys().map(|name| (name.clone(), wide(f32s(&outputs, name)))).collect();
    numbers.insert("logprobs".into(), logprobs(&numbers["logits"], &targets.data));
    numbers
}

#[test]
fn every_family_has_a_golden_and_a_line() {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/families.md")).unwrap();
    for family in FAMILIES {
        let row = ROWS.iter().find(|(_, name, _)| *name == family.name);
        assert!(row.is_some(), "no golden for {}; add one to tests/goldens/families.py", family.name);
        let line = format!("| {} | `{}` |", family.models, family.architectures[0]);
        assert!(page.contains(&line), "docs/families.md has no line {line}");
    }
}

#[test]
fn logits_log_probabilities_and_every_gradient() {
    let gpu = common::gpu();
    each_row(|row, family| {
        let golden = open(row);
        assert_eq!(golden.config.family.name, family);
        let mut spread = Spread::new(exact(&golden));
        for (name, got) in on_the_device(&gpu, &golden) {
            let known = golden.get(&format!("distance.{name}"))[0];
            spread.check(&name, &got, golden.get(&name), known);
        }
        println!("{row}: worst {:.3} of its bar, {}", spread.worst.0, spread.worst.1);
    });
}

/// The first prompt of each golden by pieces, from the folder: packed weights are cut as they are read.
#[test]
fn decoding_gives_the_logits_of_the_whole() {
    let gpu = common::gpu();
    each_row(|row, _| {
        decodes(&gpu, row, &folder(row));
    });
}

/// Feeds the first prompt of a golden to the model of this path, which must give its logits.
fn decodes(gpu: &Gpu, row: &str, path: &Path) {
    let golden = open(row);
    let (tokens, v) = (golden.ids("tokens"), golden.config.vocab_size);
    let length = tokens.dims()[1];
    let ids: Vec<u32> = tokens.data[..length].iter().map(|&id| id as u32).collect();
    let mut spread = Spread::new(exact(&golden));
    let mut generator = block_on(Generator::open(gpu, path, length)).unwrap();
    assert_eq!(generator.context(), length, "the planned context decides on scaled positions");
    let mut at = 0;
    for piece in [5].into_iter().chain(vec![1; length - 5]) {
        let logits = block_on(generator.feed(&ids[at..at + piece])).unwrap();
        at += piece;
        let first = (at - 1) * v;
        let known = golden.get("distance.logits")[0];
        spread.check_from("logits", first, &wide(logits), &golden.get("logits")[first..first + v], known);
    }
    println!("{}: worst {:.3} of its bar, {}", path.display(), spread.worst.0, spread.worst.1);
}

/// Files of the gguf package (tests/goldens/gguf_moe.py): experts stacked, and one of the two in parts.
#[test]
fn experts_of_gguf_files_give_the_same_logits() {
    let gpu = common::gpu();
    for (row, file) in [("mixtral", "stacked-00001-of-00003.gguf"), ("qwen3-moe-all", "stacked.gguf")] {
        let (golden, path) = (open(row), folder(row).join(file));
        let checkpoint = Checkpoint::open(&path).unwrap();
        assert_eq!(checkpoint.config().experts.map(|e| (e.count, e.per_token, e.normalise)), {
            golden.config.experts.map(|e| (e.count, e.per_token, e.normalise))
        });
        assert!(checkpoint.read_pages(&golden.layout).unwrap() == golden.pages, "{row}: other weights");
        decodes(&gpu, row, &path);
    }
}

/// llama.cpp takes Baichuan 2's output projection as it is, so that its rows must have unit length in the file. We read
/// such a file alike whether it says that they want scaling or not.
#[test]
fn heads_of_unit_rows_are_written_scaled_and_read_either_way() {
    let gpu = common::gpu();
    for row in ["baichuan2-7b", "baichuan2-13b"] {
        let out = tempfile::tempdir().unwrap();
        let file = out.path().join("m.gguf");
        Checkpoint::open(&folder(row)).unwrap().write_gguf(&file, None, &Metadata::default()).unwrap();
        let checkpoint = Checkpoint::open(&file).unwrap();
        let head = checkpoint.tensors().get("output.weight").unwrap();
        let rows: Vec<f32> = bytemuck::pod_collect_to_vec(head.bytes);
        for unit in rows.chunks(head.shape.last()) {
            let length: f64 = unit.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
            // Each element is rounded once, by 2⁻²⁴ of itself at most.
            assert!((length - 1.0).abs() <= 2f64.powi(-24), "{row}: a row of length {length}");
        }
        decodes(&gpu, row, &file);
        let mut bytes = std::fs::read(&file).unwrap();
        let key = b"baichuan.unit_head";
        let at = bytes.windows(key.len()).position(|w| w == key).unwrap();
        bytes[at..at + key.len()].copy_from_slice(b"baichuan.was_a_key");
        let other = out.path().join("other.gguf");
        std::fs::write(&other, bytes).unwrap();
        assert!(!Checkpoint::open(&other).unwrap().config().family.unit_head);
        decodes(&gpu, row, &other);
    }
}

/// What is written has the names, shapes and bytes of what the family's own library wrote.
#[test]
fn a_folder_is_written_as_it_was_read() {
    each_row(|row, _| {
        let golden = open(row);
        let copy = tempfile::tempdir().unwrap();
        save_folder(copy.path(), &golden.config, &golden.layout, &golden.pages, &[], false).unwrap();
        assert_eq!(load_config(copy.path()).unwrap(), golden.config, "{row}");
        assert_eq!(load_folder(copy.path(), &golden.config, &golden.layout).unwrap(), golden.pages, "{row}");
        let [theirs, ours] =
            [folder(row), copy.path().to_path_buf()].map(|f| std::fs::read(f.join("model.safetensors")).unwrap());
        let [theirs, ours] = [&theirs, &ours].map(|bytes| safetensors::SafeTensors::deserialize(bytes).unwrap());
        let names = |file: &safetensors::SafeTensors| {
            let mut names: Vec<String> = file.names().into_iter().map(str::to_string).collect();
            names.sort();
            names
        };
        assert_eq!(names(&ours), names(&theirs), "{row}");
        for (name, view) in theirs.iter() {
            let own = ours.tensor(name).unwrap();
            assert_eq!(own.shape(), view.shape(), "{row}: {name}");
            assert!(own.data() == view.data(), "{row}: {name} has other bytes");
        }
    });
}

/// `transformers` 5 can also write its own form of experts: stacked, gate and up of each in one.
#[test]
fn stacked_experts_are_read_too() {
    let golden = open("mixtral");
    let config = &golden.config;
    let (experts, d) = (config.experts.unwrap(), config.hidden_size);
    let bytes = std::fs::read(folder("mixtral").join("model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    for (name, view) in file.iter().filter(|(name, _)| !name.contains("block_sparse_moe")) {
        tensors.push((name.into(), view.shape().to_vec(), view.data().to_vec()));
    }
    for layer in 0..config.num_hidden_layers {
        let own = |part: String| {
            let name = format!("model.layers.{layer}.block_sparse_moe.{part}.weight");
            file.tensor(&name).unwrap().data().to_vec()
        };
        let all = |matrices: &[&str]| -> Vec<u8> {
            let names = (0..experts.count).flat_map(|e| matrices.iter().map(move |w| format!("experts.{e}.{w}")));
            names.flat_map(own).collect()
        };
        let (e, f) = (experts.count, experts.intermediate_size);
        let prefix = format!("model.layers.{layer}.mlp");
        tensors.push((format!("{prefix}.gate.weight"), vec![e, d], own("gate".into())));
        tensors.push((format!("{prefix}.experts.gate_up_proj"), vec![e, 2 * f, d], all(&["w1", "w3"])));
        tensors.push((format!("{prefix}.experts.down_proj"), vec![e, d, f], all(&["w2"])));
    }
    let copy = tempfile::tempdir().unwrap();
    let views = tensors.iter().map(|(name, shape, data)| {
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), data);
        (name, view.unwrap())
    });
    std::fs::write(copy.path().join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    assert_eq!(load_folder(copy.path(), config, &golden.layout).unwrap(), golden.pages);
}
