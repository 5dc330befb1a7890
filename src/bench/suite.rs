//! What `danlu bench` measures. Kernels are the steps of plans of SmolLM2-135M with one layer, so that the list is right by
//! itself whatever operators a model is made of; whole steps are those of docs/benchmarks.md.
//!
//! B sequences, H heads, T tokens, C head width.

use super::{Case, Scope};
use crate::base::{DType, Limits, TensorType};
use crate::error::Result;
use crate::graph::{Graph, gradients};
use crate::infer::{Options, decode_graph};
use crate::model::{Llama, ModelConfig, find_config};
use crate::nn::Frozen;
use crate::ops::{Attention, Mask, MatMul};
use crate::optim::Optimizer;
use crate::train::train_graph;
use std::path::Path;

/// The model whose shapes kernels have.
const SHAPES: &str = "smollm2-135m";
/// Tokens that the KV cache holds while one is decoded, which stands at the end.
const CONTEXT: usize = 1024;

/// The cases for an adapter; `quick` is for a look in passing and for tests, a minute on two cores.
///
/// # Errors
/// If a preset is damaged.
pub fn suite(limits: &Limits, quick: bool) -> Result<Vec<Case>> {
    let mut one_layer = find_config(SHAPES)?;
    one_layer.num_hidden_layers = 1;
    let whole = find_config(SHAPES)?;
    let story = find_config("story-1m")?;
    let seq = if quick { 32 } else { 128 };
    let mut cases: Vec<Case> = Vec::new();
    let cubes: &[usize] = match (quick, limits.is_cpu) {
        (true, _) => &[256],
        (false, true) => &[512, 1024, 2048],
        (false, false) => &[512, 1024, 2048, 4096, 8192],
    };
    cases.extend(cubes.iter().map(|&n| cube(n)));
    cases.push(train("train", Scope::Kernels, &one_layer, 1, seq));
    cases.push(attention(if quick { 128 } else { 1024 }));
    cases.push(decode("prefill", Scope::Kernels, &one_layer, seq, DType::F32));
    let dtypes = if quick { &[DType::F32, DType::Q4_0][..] } else { &DType::WEIGHTS };
    for &dtype in dtypes {
        let case = decode(&format!("decode {dtype}"), Scope::Kernels, &one_layer, 1, dtype);
        // In other dtypes only what reads weights differs.
        cases.push(if dtype == DType::F32 { case } else { case.packed() });
    }
    cases.push(train("train step story-1m", Scope::Whole, &story, 2, seq));
    cases.push(decode("decode story-1m f32", Scope::Whole, &story, 1, DType::F32));
    if quick {
        return Ok(cases);
    }
    for kind in ["dense", "experts"] {
        cases.push(train(&format!("train step {kind}"), Scope::Whole, &experts(kind == "experts")?, 2, 128));
    }
    cases.push(train("train step smollm2-135m", Scope::Whole, &whole, 1, 128));
    for dtype in [DType::F32, DType::BF16, DType::Q4_0] {
        cases.push(decode(&format!("decode smollm2-135m {dtype}"), Scope::Whole, &whole, 1, dtype));
        cases.push(decode(&format!("prefill smollm2-135m {dtype}"), Scope::Whole, &whole, 128, dtype));
    }
    if !limits.is_cpu {
        cases.push(train("train step smollm2-135m", Scope::Whole, &whole, 8, 1024));
        let large = find_config("llama-3.2-1b")?;
        cases.push(decode("decode llama-3.2-1b bf16", Scope::Whole, &large, 1, DType::BF16));
    }
    Ok(cases)
}

/// A model with eight experts, of which a token visits two, or the one without that computes as much.
fn experts(sparse: bool) -> Result<ModelConfig> {
    let config = serde_json::json!({
        "model_type": if sparse { "mixtral" } else { "mistral" },
        "vocab_size": 1024,
        "hidden_size": 256,
        "intermediate_size": if sparse { 512 } else { 1024 },
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "sliding_window": null,
    });
    ModelConfig::parse(&config.to_string(), Path::new("config.json"))
}

/// A square product.
fn cube(n: usize) -> Case {
    Case::new("cube", Scope::Kernels, move |_| {
        let mut g = Graph::new();
        let (a, b) = (g.state("a", TensorType::f32([n, n])), g.state("b", TensorType::f32([n, n])));
        let c = g.apply1(MatMul::new(false, false), &[a, b])?;
        g.output("c", c);
        Ok(g)
    })
}

/// Causal attention of nine heads of 64, forward and backward.
fn attention(seq: usize) -> Case {
    Case::new("attention", Scope::Kernels, move |_| {
        let mut g = Graph::new();
        let head = |g: &mut Graph, name: &str| g.state(name, TensorType::f32([1, seq, 9, 64]));
        let (q, k, v) = (head(&mut g, "q"), head(&mut g, "k"), head(&mut g, "v"));
        let first = g.input("position", TensorType::u32([1]));
        let y = g.apply(Attention { mask: Mask::default() }, &[q, k, v, first])?[0];
        let loss = g.sum_to(y, &TensorType::f32([1]))?;
        for (name, dx) in ["dq", "dk", "dv"].into_iter().zip(gradients(&mut g, loss, &[q, k, v])?) {
            let sum = g.sum_to(dx, &TensorType::f32([1]))?;
            g.output(name, sum);
        }
        Ok(g)
    })
}

fn train(name: &str, scope: Scope, config: &ModelConfig, batch: usize, seq: usize) -> Case {
    let (vocab, config) = (config.vocab_size, config.clone());
    Case::new(format!("{name} {batch}×{seq}"), scope, move |limits| {
        train_graph(&config, batch, seq, &Optimizer::default(), limits)
    })
    .tokens(batch * seq, vocab, 0)
}

/// A run over `time` tokens at the end of a full cache.
fn decode(name: &str, scope: Scope, config: &ModelConfig, time: usize, dtype: DType) -> Case {
    let (vocab, config) = (config.vocab_size, config.clone());
    let context = CONTEXT.min(config.max_context());
    Case::new(format!("{name} {time} at {context}"), scope, move |_| {
        let model = Llama::new(config.clone());
        decode_graph(&model, &frozen(&model, dtype), &Options::from(context), time)
    })
    .tokens(time, vocab, context - time.min(context))
}

/// Matrices whose rows are whole blocks in this dtype, all else in f32, as files have them.
fn frozen(model: &Llama, dtype: DType) -> Frozen {
    let typed = |spec: crate::nn::ParamSpec| {
        let matrix = spec.shape.rank() == 2 && spec.shape.last().is_multiple_of(dtype.block().elements);
        let dtype = if matrix { dtype } else { DType::F32 };
        (spec.name, TensorType { shape: spec.shape, dtype })
    };
    Frozen::new(model.param_specs().into_iter().map(typed).collect())
}

/// The names of all cases, for messages.
pub(super) fn names(cases: &[Case]) -> String {
    let mut names: Vec<&str> = cases.iter().map(|c| c.name.as_str()).collect();
    names.dedup();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::measure::distinct;
    use crate::compile::{First, compile};
    use std::collections::BTreeSet;

    #[test]
    fn every_case_can_be_planned_and_every_name_means_one_thing() {
        for (quick, is_cpu) in [(true, true), (false, true), (false, false)] {
            let limits = Limits { is_cpu, max_buffer_bytes: Limits::COUNTABLE_BYTES, ..Limits::default() };
            let mut names = BTreeSet::new();
            for case in suite(&limits, quick).unwrap() {
                let plan = compile(&case.graph(&limits).unwrap(), &limits, &mut First).unwrap();
                let kernels = distinct(&case.name, &plan).into_iter().map(|(name, _)| name);
                let found: Vec<String> =
                    if case.scope == Scope::Whole { vec![case.name.clone()] } else { kernels.collect() };
                for name in found {
                    assert!(names.insert(name.clone()), "{name} is there twice");
                }
            }
            // What must be there: a product each way, both sides of attention, and all else that a step is made of.
            for part in
                ["nt", "nn", "tn", "attention_grad_query", "attention_grad_key_value", "rms_norm_grad", "rope", "adamw"]
            {
                assert!(names.iter().any(|n| n.starts_with("train 1×") && n.contains(part)), "{part}: {names:?}");
            }
            for part in ["attention_part", "cache_write", "q4_0", "top_k"] {
                assert!(names.iter().any(|n| n.starts_with("decode ") && n.contains(part)), "{part}: {names:?}");
            }
        }
    }
}
