//! Log-probabilities of a text's tokens by the graph that scores, computed by its operators' references in f64.

use super::golden::{Golden, Sources, interpret};
use super::interpret::Noise;
use danlu::base::{Array, TensorType};
use danlu::graph::Graph;
use danlu::model::Llama;

/// Token ids as an array of these dims.
pub fn ids(tokens: &[u32], ty: TensorType) -> Array {
    Array::new(ty, tokens.iter().map(|&v| f64::from(v)).collect())
}

/// ln p of each token from the second on.
pub fn log_probs(golden: &Golden, tokens: &[u32], noise: Option<&mut Noise>) -> Vec<f64> {
    let n = tokens.len() - 1;
    let mut g = Graph::new();
    let params = golden.layout.declare(&mut g).unwrap();
    let input = g.input("tokens", TensorType::u32([1, n]));
    let rows = g.input("rows", TensorType::u32([n]));
    let targets = g.input("targets", TensorType::u32([n]));
    let stats = Llama::new(golden.config.clone()).score(&mut g, &params, input, rows, targets).unwrap();
    g.output("stats", stats);
    let mut sources: Sources = golden.states();
    sources.insert("tokens".into(), ids(&tokens[..n], TensorType::u32([1, n])));
    sources.insert("rows".into(), ids(&(0..n as u32).collect::<Vec<_>>(), TensorType::u32([n])));
    sources.insert("targets".into(), ids(&tokens[1..], TensorType::u32([n])));
    interpret(&g, &sources, noise)["stats"].chunks_exact(3).map(|s| s[2] - s[0] - s[1].ln()).collect()
}
