//! Preference pairs against PyTorch's golden (tests/goldens/dpo/make.py): log-probabilities, rewards, losses and gradients, by
//! the operators' references.

mod common;

use common::golden::{Golden, interpret};
use danlu::base::{Array, TensorType};
use danlu::graph::{Graph, gradients};
use danlu::model::{DpoConfig, Llama, PreferenceLoss, preference};
use danlu::nn::Declare;
use safetensors::SafeTensors;
use std::path::Path;

#[test]
fn pairs_have_the_loss_and_gradients_of_pytorch() {
    let golden = Golden::open("gqa");
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/dpo/golden.safetensors");
    let bytes = std::fs::read(file).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let numbers = |name: &str| -> Vec<f64> {
        let tensor = file.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        let word = |b: &[u8]| [b[0], b[1], b[2], b[3]];
        match tensor.dtype() {
            safetensors::Dtype::F64 => {
                tensor.data().chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect()
            }
            safetensors::Dtype::I32 => {
                tensor.data().chunks_exact(4).map(|b| f64::from(i32::from_le_bytes(word(b)))).collect()
            }
            _ => tensor.data().chunks_exact(4).map(|b| f64::from(f32::from_le_bytes(word(b)))).collect(),
        }
    };
    let ids = |name: &str| {
        let id = |x: f64| if x == -100.0 { f64::from(danlu::ops::IGNORE) } else { x };
        Array::new(TensorType::u32([6, 11]), numbers(name).into_iter().map(id).collect())
    };
    for (kind, config) in losses(numbers("beta")[0]) {
        let mut g = Graph::new();
        let params = Declare::declare(&golden.layout, &mut g).unwrap();
        let inputs = ["tokens", "targets"].map(|name| g.input(name, TensorType::u32([6, 11])));
        let reference = g.input("reference", TensorType::f32([6]));
        let model = Llama::new(golden.config.clone());
        let log_probs = model.log_probs(&mut g, &params, inputs[0], inputs[1], None).unwrap();
        let said = preference(&mut g, log_probs, reference, &config).unwrap();
        let grads = gradients(&mut g, said.loss, &params.views).unwrap();
        for (name, value) in [("log_probs", said.answers), ("rewards", said.rewards), (kind, said.loss)] {
            g.output(name, value);
        }
        let names = golden.layout.specs().iter().map(|spec| format!("grad.{kind}.{}", spec.name));
        for (name, grad) in names.zip(grads).filter(|(name, _)| file.tensor(name).is_ok()) {
            g.output(&name, grad);
        }
        let mut sources = golden.states();
        sources.insert("tokens".into(), ids("tokens"));
        sources.insert("targets".into(), ids("targets"));
        sources.insert("reference".into(), Array::new(TensorType::f32([6]), numbers("reference")));
        let got = interpret(&g, &sources, None);
        assert!(got.len() >= 9, "{kind}: {}", got.len());
        for (name, got) in &got {
            let expected = numbers(name);
            assert_eq!(got.len(), expected.len(), "{name}");
            // Constants of the graph, β among them, are f32, and so are the gradients in the file.
            let bar = 32.0 * f64::from(f32::EPSILON) * expected.iter().fold(0.0f64, |m, x| m.max(x.abs()));
            for (i, (a, b)) in got.iter().zip(&expected).enumerate() {
                assert!((a - b).abs() <= bar, "{name}[{i}]: {a}, PyTorch has {b}; the bar is {bar:e}");
            }
        }
    }
}

/// The losses that the golden has, by its names.
fn losses(beta: f64) -> [(&'static str, DpoConfig); 3] {
    let plain = DpoConfig { beta, ..DpoConfig::default() };
    [
        ("loss", plain.clone()),
        ("smoothed", DpoConfig { label_smoothing: 0.1, ..plain.clone() }),
        ("ipo", DpoConfig { loss: PreferenceLoss::Ipo, ..plain }),
    ]
}
