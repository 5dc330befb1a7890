//! Preference pairs against PyTorch's golden (tests/goldens/dpo/make.py, which TRL's DPOTrainer has checked): log-probabilities,
//! rewards, losses and gradients, by the operators' references, and on a device.

mod common;

use common::golden::{Golden, Numbers, Sources, interpret, read_numbers};
use common::spread::Spread;
use danlu::base::{Array, TensorType};
use danlu::compile::{First, compile};
use danlu::graph::{Graph, gradients};
use danlu::model::{DpoConfig, Llama, PairInputs, PreferenceLoss, preference};
use danlu::run::{Executor, States, f32s};
use pollster::block_on;
use std::path::Path;

/// Of a loss, the graph with the outputs that the golden has; its inputs and parameters; and what PyTorch says.
struct Case {
    kind: &'static str,
    graph: Graph,
    sources: Sources,
    expected: Numbers,
}

/// The losses that the golden has.
fn cases(golden: &Golden) -> Vec<Case> {
    let numbers = read_numbers(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/dpo/golden.safetensors"));
    let get = |name: &str| -> &Vec<f64> { &numbers[name].1 };
    let plain = DpoConfig { beta: get("beta")[0], ..DpoConfig::default() };
    let losses = [
        ("loss", plain.clone()),
        ("smoothed", DpoConfig { label_smoothing: 0.1, ..plain.clone() }),
        ("ipo", DpoConfig { loss: PreferenceLoss::Ipo, ..plain.clone() }),
        ("hinge", DpoConfig { loss: PreferenceLoss::Hinge, beta: get("hinge_beta")[0], ..plain.clone() }),
    ];
    let id = |x: &f64| if *x == -100.0 { f64::from(danlu::ops::IGNORE) } else { *x };
    let ids = |name: &str| Array::new(TensorType::u32([6, 11]), get(name).iter().map(id).collect());
    let per_answer = |values: Vec<f64>| Array::new(TensorType::f32([6]), values);
    let one = |config: DpoConfig, kind: &'static str| {
        let mut g = Graph::new();
        let params = golden.layout.declare(&mut g).unwrap();
        let [tokens, targets] = ["tokens", "targets"].map(|name| g.input(name, TensorType::u32([6, 11])));
        let reference = g.input("reference", TensorType::f32([6]));
        let token = (config.loss == PreferenceLoss::Ipo).then(|| g.input("token", TensorType::f32([6])));
        let model = Llama::new(golden.config.clone());
        let log_probs = model.log_probs(&mut g, &params, tokens, targets, None).unwrap();
        let said = preference(&mut g, log_probs, PairInputs { reference, token }, &config, None).unwrap();
        let grads = gradients(&mut g, said.loss, &params.views).unwrap();
        for (name, value) in [("log_probs", said.answers), ("rewards", said.rewards), (kind, said.loss)] {
            g.output(name, value);
        }
        let names = golden.layout.specs().iter().map(|spec| format!("grad.{kind}.{}", spec.name));
        for (name, grad) in names.zip(grads).filter(|(name, _)| numbers.contains_key(name)) {
            g.output(&name, grad);
        }
        let mut sources = golden.states();
        sources.insert("tokens".into(), ids("tokens"));
        sources.insert("targets".into(), ids("targets"));
        sources.insert("reference".into(), per_answer(get("reference").clone()));
        if token.is_some() {
            let counted = |row: &[f64]| row.iter().filter(|&&target| target != -100.0).count() as f64;
            let token = get("targets").chunks_exact(11).map(|row| 1.0 / counted(row)).collect();
            sources.insert("token".into(), per_answer(token));
        }
        let mut expected: Numbers = g.outputs().iter().map(|(name, _)| (name.clone(), get(name).clone())).collect();
        expected.get_mut("rewards").unwrap().iter_mut().for_each(|reward| *reward *= config.beta / plain.beta);
        assert!(expected.len() >= 9, "{kind}: {}", expected.len());
        Case { kind, graph: g, sources, expected }
    };
    losses.map(|(kind, config)| one(config, kind)).into()
}

#[test]
fn pairs_have_the_loss_and_gradients_of_pytorch() {
    for Case { graph, sources, expected, .. } in cases(&Golden::open("gqa")) {
        for (name, got) in interpret(&graph, &sources, None) {
            let expected = &expected[&name];
            assert_eq!(got.len(), expected.len(), "{name}");
            // Constants of the graph, β among them, are f32, and so are the gradients in the file.
            let bar = 32.0 * f64::from(f32::EPSILON) * expected.iter().fold(0.0f64, |m, x| m.max(x.abs()));
            for (i, (a, b)) in got.iter().zip(expected).enumerate() {
                assert!((a - b).abs() <= bar, "{name}[{i}]: {a}, PyTorch has {b}; the bar is {bar:e}");
            }
        }
    }
}

#[test]
fn a_device_gives_the_same() {
    let gpu = common::gpu();
    let golden = Golden::open("gqa");
    for Case { kind, graph, sources, expected } in cases(&golden) {
        let mut spread = Spread::new(|noise| interpret(&graph, &sources, noise));
        let mut states = States::new(&gpu);
        let plan = compile(&graph, gpu.limits(), &mut First).unwrap();
        let mut run = block_on(Executor::new(&gpu, &plan, &mut states)).unwrap();
        for (i, page) in golden.pages.iter().enumerate() {
            block_on(states.write(&format!("param.{i}"), 0, bytemuck::cast_slice(page))).unwrap();
        }
        let inputs = ["tokens", "targets", "reference", "token"];
        for input in inputs.into_iter().filter(|input| sources.contains_key(*input)) {
            run.set(input, &sources[input].to_bytes()).unwrap();
        }
        let outputs = block_on(run.run()).unwrap();
        for (name, expected) in &expected {
            let got: Vec<f64> = f32s(&outputs, name).into_iter().map(f64::from).collect();
            spread.check(name, &got, expected, 0.0);
        }
        println!("{kind}: worst {:.3} of its bar, {}", spread.worst.0, spread.worst.1);
    }
}
