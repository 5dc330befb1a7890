//! The model as a graph: its parameters' names, its shapes, and its gradients' reach. What it computes is compared with
//! PyTorch in tests/.

use super::*;
use crate::base::{DType, Limits};
use crate::compile::{First, compile};
use crate::model::{PRESETS, find_config};
use crate::nn::ParamLayout;

fn small(tied: bool) -> Llama {
    let mut config = find_config("story-1m").unwrap();
    (config.num_hidden_layers, config.tie_word_embeddings) = (2, tied);
    Llama::new(config)
}

#[test]
fn counts_agree_with_the_parameters() {
    for (name, _) in PRESETS {
        let llama = Llama::new(find_config(name).unwrap());
        let sum: u64 = llama.param_specs().iter().map(|s| s.shape.elements() as u64).sum();
        assert_eq!(sum, llama.config().parameters(), "{name}");
    }
}

#[test]
fn operations_of_any_sequence_are_counted() {
    let mut config = small(true).config().clone();
    let at = |config: &ModelConfig, seq: usize| config.train_flops_per_token(seq);
    // Without a window a token sees half the sequence: four operations a pair and element of a head, thrice.
    let (h, layers) = (config.query_size() as u128, config.num_hidden_layers as u128);
    let longest = usize::MAX as u128;
    let pairs = |seq: u128| 2 * seq - (seq - 1);
    assert_eq!(at(&config, usize::MAX) - at(&config, 1), 3 * layers * 2 * h * (pairs(longest) - pairs(1)));
    config.layers.iter_mut().for_each(|layer| layer.window = Some(usize::MAX));
    assert!(at(&config, usize::MAX) > longest);
}

#[test]
fn names_are_those_of_hugging_face() {
    let names = |tied| small(tied).param_specs().into_iter().map(|s| s.name).collect::<Vec<_>>();
    let untied = names(false);
    assert_eq!(untied.len(), 2 * 9 + 3);
    assert_eq!(untied[0], "model.embed_tokens.weight");
    assert_eq!(untied[1], "model.layers.0.input_layernorm.weight");
    assert_eq!(untied[2], "model.layers.0.self_attn.q_proj.weight");
    assert_eq!(untied[18], "model.layers.1.mlp.down_proj.weight");
    assert_eq!(untied[19..], ["model.norm.weight", "lm_head.weight"]);
    assert_eq!(names(true), untied[..20]);
}

#[test]
fn shapes_of_loss_logits_and_decoding() {
    for tied in [true, false] {
        let llama = small(tied);
        let layout = ParamLayout::new(llama.param_specs(), 1 << 20);
        let mut g = Graph::new();
        let params = layout.declare(&mut g).unwrap();
        let tokens = g.input("tokens", TensorType::u32([3, 10]));
        let targets = g.input("targets", TensorType::u32([3, 10]));
        let loss = llama.loss(&mut g, &params, tokens, targets, None).unwrap();
        let logits = llama.logits(&mut g, &params, tokens).unwrap();
        assert_eq!((g.dims(loss), g.dims(logits)), (&[1][..], &[3, 10, 1024][..]));

        let mut g = Graph::new();
        let params = layout.declare(&mut g).unwrap();
        let tokens = g.input("tokens", TensorType::u32([3, 4]));
        let first = g.input("position", TensorType::u32([1]));
        let rows = g.input("rows", TensorType::u32([3]));
        let caches = llama.caches(&mut g, 3, 20, DType::F32);
        let all = llama.decode(&mut g, &params, tokens, first, None, &caches).unwrap();
        let last = llama.decode(&mut g, &params, tokens, first, Some(rows), &caches).unwrap();
        assert_eq!((g.dims(all), g.dims(last)), (&[12, 1024][..], &[3, 1024][..]));
        assert!(g.nodes().iter().any(|n| n.name == "cache.v.1" && n.outputs[0] == TensorType::f32([3, 20, 2, 32])));
    }
}

#[test]
fn a_decoding_step_compiles() {
    let llama = small(true);
    let layout = ParamLayout::new(llama.param_specs(), 1 << 20);
    let mut g = Graph::new();
    let params = layout.declare(&mut g).unwrap();
    let tokens = g.input("tokens", TensorType::u32([1, 1]));
    let first = g.input("position", TensorType::u32([1]));
    let caches = llama.caches(&mut g, 1, 256, DType::F32);
    let logits = llama.decode(&mut g, &params, tokens, first, None, &caches).unwrap();
    g.output("logits", logits);
    compile(&g, &Limits::default(), &mut First).unwrap();
}
