//! LoRA, rsLoRA and DoRA against PyTorch's goldens (tests/goldens/lora/make.py), by the operators' references: loss, the
//! gradient of every A, B and magnitude, and ten steps of AdamW.

mod common;

use common::golden::{Golden, Sources, TEN_STEPS};
use common::interpret::Interpreter;
use danlu::base::{Array, TensorType};
use danlu::graph::{Graph, NodeId, Value, gradients};
use danlu::model::Llama;
use danlu::nn::{Adapted, BaseDtype, Declare, Lora, LoraConfig};
use danlu::optim::{HYPER, Optimizer};
use danlu::store::PeftAdapter;
use safetensors::SafeTensors;
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
        assert_eq!(PeftAdapter::open(&folder.join(case), &specs).unwrap().modules().len(), lora.modules().len());
        let adapted = Adapted { base: BaseDtype::F32.frozen(&specs), lora: Some(lora.clone()) };
        let plain = sources(&golden, &adapted, &folder.join(case));

        let mut g = Graph::new();
        let params = adapted.declare(&mut g).unwrap();
        let ids = golden.ids("tokens");
        let (tokens, targets) = (g.input("tokens", ids.ty.clone()), g.input("targets", ids.ty.clone()));
        let loss = llama.loss(&mut g, &params, tokens, targets, None).unwrap();
        let mut step = g.clone();
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

        Optimizer::default().train_step(&mut step, lora.layout(), &params, loss).unwrap();
        let mut all = shaped(&step, &plain);
        for (i, (tokens, targets)) in golden.batches("adamw.batches").into_iter().enumerate() {
            let hyper = Optimizer::default().hyper(TEN_STEPS.rate(i as u64), i as u64).map(f64::from);
            all.insert("tokens".into(), tokens);
            all.insert("targets".into(), targets);
            all.insert(HYPER.into(), Array::new(TensorType::f32([4]), hyper.to_vec()));
            let run = Interpreter::run(&step, &all);
            assert_close(&format!("{case}, step {i}"), &run.get(loss).data, &expected("losses")[i..=i], 0.0);
            for (n, node) in step.nodes().iter().enumerate() {
                if let Some(state) = all.get_mut(&node.name) {
                    *state = run.get(Value { node: NodeId(n as u32), output: 0 });
                }
            }
        }
    }
}
