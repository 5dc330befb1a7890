//! Preference pairs against PyTorch's golden (tests/goldens/dpo/make.py): log-probabilities, margins, loss and every gradient, by
//! the operators' references.

mod common;

use common::golden::{Golden, interpret};
use danlu::base::{Array, TensorType};
use danlu::graph::{Graph, gradients};
use danlu::model::{Llama, preference};
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
    let mut g = Graph::new();
    let params = Declare::declare(&golden.layout, &mut g).unwrap();
    let (tokens, targets) = (g.input("tokens", TensorType::u32([6, 11])), g.input("targets", TensorType::u32([6, 11])));
    let reference = g.input("reference", TensorType::f32([3]));
    let log_probs = Llama::new(golden.config.clone()).log_probs(&mut g, &params, tokens, targets, None).unwrap();
    let said = preference(&mut g, log_probs, reference, numbers("beta")[0]).unwrap();
    let grads = gradients(&mut g, said.loss, &params.views).unwrap();
    for (name, value) in [("log_probs", log_probs), ("margins", said.margins), ("loss", said.loss)] {
        g.output(name, value);
    }
    for (spec, grad) in golden.layout.specs().iter().zip(grads) {
        g.output(&format!("grad.{}", spec.name), grad);
    }
    let mut sources = golden.states();
    sources.insert("tokens".into(), ids("tokens"));
    sources.insert("targets".into(), ids("targets"));
    sources.insert("reference".into(), Array::new(TensorType::f32([3]), numbers("reference")));
    let mut got = interpret(&g, &sources, None);
    let rows: Vec<f64> = got["log_probs"].chunks(11).map(|row| row.iter().sum()).collect();
    got.insert("log_probs".into(), rows);
    assert_eq!(got.len(), 3 + golden.layout.specs().len());
    for (name, got) in &got {
        let expected = numbers(name);
        assert_eq!(got.len(), expected.len(), "{name}");
        // Constants of the graph, β among them, are f32, and so are the gradients in the file.
        let bar = 32.0 * f64::from(f32::EPSILON) * expected.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        for (i, (a, b)) in got.iter().zip(&expected).enumerate() {
            assert!((a - b).abs() <= bar, "{name}[{i}]: {a}, PyTorch has {b}; the bar is {bar:e}");
        }
    }
    let right = got["margins"].iter().filter(|m| **m > 0.0).count() as f64 / 3.0;
    assert!((right - numbers("accuracy")[0]).abs() < 1e-12);
}
