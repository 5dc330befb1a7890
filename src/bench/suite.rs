//! What `danlu bench` measures. Kernels are the steps of plans of SmolLM2-135M with one layer, so that the list is right by
//! itself whatever operators a model is made of; whole steps are those of docs/benchmarks.md.

use super::attention::{fused_attention, mixed_attention, unfused_attention};
use super::{Case, Scope};
use crate::base::{DType, Limits, TensorType};
use crate::error::Result;
use crate::graph::{Graph, gradients};
use crate::infer::{Options, decode_graph};
use crate::model::{Llama, ModelConfig, find_config};
use crate::nn::Frozen;
use crate::ops::{LinearCrossEntropy, MatMul, Operands};
use crate::train::{Precision, Recipe, optimizer, train_graph};
use std::path::Path;

/// The model whose shapes kernels have.
const SHAPES: &str = "smollm2-135m";
/// What a training step computes in, and what its name says of that.
const PRECISIONS: [(Precision, &str); 2] = [(Precision::F32, ""), (Precision::Mixed, " mixed")];
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
    cases.extend(cubes.iter().map(|&n| cube(n, Operands::F32)));
    cases.extend(cubes.iter().map(|&n| cube(n, Operands::F16)));
    cases.push(train("train", Scope::Kernels, &one_layer, 1, seq, Precision::F32));
    // What small steps reach, for forecasts of small models.
    let mut small = find_config("story-4m")?;
    small.num_hidden_layers = 1;
    cases.push(train("train small", Scope::Kernels, &small, 1, seq, Precision::F32));
    // Elsewhere mixed precision has the kernels of f32.
    cases.push(train("train mixed", Scope::Kernels, &one_layer, 1, seq, Precision::Mixed).half());
    let long = if quick { 128 } else { 1024 };
    cases.push(Case::new("attention", Scope::Kernels, move |_| fused_attention(long)));
    cases.push(Case::new("attention mixed", Scope::Kernels, move |_| mixed_attention(long)));
    cases.push(decode("prefill", Scope::Kernels, &one_layer, seq, DType::F32));
    let dtypes = if quick { &[DType::F32, DType::Q4_0][..] } else { &DType::WEIGHTS };
    for &dtype in dtypes {
        let case = decode(&format!("decode {dtype}"), Scope::Kernels, &one_layer, 1, dtype);
        // In other dtypes only what reads weights differs.
        cases.push(if dtype == DType::F32 { case } else { case.packed() });
    }
    // The same work, so that one can be divided by the other.
    let step = |name: &str, build: fn(usize) -> Result<Graph>| {
        Case::new(format!("attention step {name}{long}"), Scope::Whole, move |_| build(long)).tokens(long, 1, 0)
    };
    cases.extend([step("", fused_attention), step("unfused ", unfused_attention)]);
    for (precision, name) in PRECISIONS {
        cases.push(train(&format!("train step story-1m{name}"), Scope::Whole, &story, 2, seq, precision));
    }
    cases.push(decode("decode story-1m f32", Scope::Whole, &story, 1, DType::F32));
    if quick {
        return Ok(cases);
    }
    for mib in [1, 4, 16, 64] {
        cases.push(loss(mib));
    }
    for kind in ["dense", "experts"] {
        let config = experts(kind == "experts")?;
        cases.push(train(&format!("train step {kind}"), Scope::Whole, &config, 2, 128, Precision::F32));
    }
    let sizes = if limits.is_cpu { &[(1, 128)][..] } else { &[(1, 128), (8, 1024)] };
    for &(batch, seq) in sizes {
        for (precision, name) in PRECISIONS {
            cases.push(train(&format!("train step smollm2-135m{name}"), Scope::Whole, &whole, batch, seq, precision));
        }
    }
    for dtype in [DType::F32, DType::BF16, DType::Q4_0] {
        cases.push(decode(&format!("decode smollm2-135m {dtype}"), Scope::Whole, &whole, 1, dtype));
        cases.push(decode(&format!("prefill smollm2-135m {dtype}"), Scope::Whole, &whole, 128, dtype));
    }
    if !limits.is_cpu {
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

/// A square product of such operands.
fn cube(n: usize, operands: Operands) -> Case {
    Case::new("cube", Scope::Kernels, move |_| {
        let mut g = Graph::new();
        let (a, b) = (g.state("a", TensorType::f32([n, n])), g.state("b", TensorType::f32([n, n])));
        let c = g.apply1(MatMul::new(false, false).with(operands), &[a, b])?;
        g.output("c", c);
        Ok(g)
    })
}

/// The output projection and the loss of 128 rows of SmolLM2-135M, forward and backward, by so many MiB of logits at a time.
fn loss(mib: usize) -> Case {
    let (rows, width, vocab) = (128, 576, 49_152);
    let chunk = (mib << 20) / (4 * rows);
    Case::new(format!("loss {rows}×{width}×{vocab} by {mib} MiB"), Scope::Whole, move |_| {
        let mut g = Graph::new();
        let (x, w) = (g.state("x", TensorType::f32([rows, width])), g.state("w", TensorType::f32([vocab, width])));
        let targets = g.input("targets", TensorType::u32([rows]));
        let loss = g.apply(LinearCrossEntropy::new(chunk), &[x, w, targets])?[0];
        for (name, dx) in ["dx", "dw"].into_iter().zip(gradients(&mut g, loss, &[x, w])?) {
            let sum = g.sum_to(dx, &TensorType::f32([1]))?;
            g.output(name, sum);
        }
        g.output("loss", loss);
        Ok(g)
    })
    .tokens(rows, vocab, 0)
}

/// A training step.
fn train(name: &str, scope: Scope, config: &ModelConfig, batch: usize, seq: usize, precision: Precision) -> Case {
    let (vocab, config) = (config.vocab_size, config.clone());
    let optimizer = optimizer(&Recipe { precision, ..Recipe::default() });
    Case::new(format!("{name} {batch}×{seq}"), scope, move |limits| {
        train_graph(&config, batch, seq, &optimizer, limits)
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
            for part in ["cube: matmul", "train mixed 1×"] {
                assert!(names.iter().any(|n| n.starts_with(part) && n.ends_with(" f16")), "{part}: {names:?}");
            }
            assert!(names.iter().any(|n| n.starts_with("train step story-1m mixed ")), "{names:?}");
            for part in ["attention_part", "cache_write", "q4_0", "top_k"] {
                assert!(names.iter().any(|n| n.starts_with("decode ") && n.contains(part)), "{part}: {names:?}");
            }
        }
    }
}
