//! How many dispatches a layer of SmolLM2-135M takes, as docs/benchmarks.md says: each costs some microseconds on any
//! adapter, so that none may come back unseen.

use danlu::base::{DType, Limits, TensorType};
use danlu::compile::{Chooser, First, Plan, compile};
use danlu::graph::{Io, Kernel, Op};
use danlu::infer::{Options, decode_graph};
use danlu::model::{Llama, ModelConfig, find_config};
use danlu::nn::Frozen;
use danlu::optim::Optimizer;
use danlu::train::train_plan;
use std::sync::Arc;

/// The preset with fewer layers.
fn config(layers: usize) -> ModelConfig {
    let mut config = find_config("smollm2-135m").expect("a preset");
    config.layers.truncate(layers);
    config.num_hidden_layers = layers;
    config
}

/// Dispatches of a layer's forward pass, or whatever the names of its steps say, by those of two plans.
fn of_a_layer(plan: impl Fn(usize) -> Plan) -> [usize; 2] {
    let count = |layers: usize| {
        let plan = plan(layers);
        let of = |backward| {
            let steps = plan.steps.iter().filter(|s| s.name.starts_with("grad.") == backward);
            steps.map(|s| s.dispatches.len()).sum::<usize>()
        };
        [of(false), of(true)]
    };
    let (two, three) = (count(2), count(3));
    [three[0] - two[0], three[1] - two[1]]
}

/// Weights as a file of Q4_1 has them.
fn frozen(model: &Llama) -> Frozen {
    let typed = |spec: danlu::nn::ParamSpec| {
        let dtype = if spec.shape.rank() == 2 { DType::Q4_1 } else { DType::F32 };
        (spec.name, TensorType { shape: spec.shape, dtype })
    };
    Frozen::new(model.param_specs().into_iter().map(typed).collect())
}

fn decode(layers: usize, context: usize, batch: usize, limits: &Limits) -> Plan {
    let model = Llama::new(config(layers));
    let options = Options { batch, ..Options::from(context) };
    let graph = decode_graph(&model, &frozen(&model), &options, 1).expect("a graph");
    compile(&graph, limits, &mut First).expect("a plan")
}

/// A GPU's limits, and those of lanes that are a CPU's.
fn adapters() -> [Limits; 2] {
    [Limits::default(), Limits { is_cpu: true, min_subgroup: 8, ..Limits::default() }]
}

#[test]
fn a_layer_of_decoding() {
    for limits in adapters() {
        // q, k and v of the normed row; cache; parts of attention, and their sum; o; up and gate of the normed row; down.
        assert_eq!(of_a_layer(|layers| decode(layers, 1024, 1, &limits)), [8, 0]);
        // A short cache is one part.
        assert_eq!(of_a_layer(|layers| decode(layers, 64, 1, &limits)), [7, 0]);
        assert_eq!(of_a_layer(|layers| decode(layers, 1024, 2, &limits)), [8, 0]);
        // Embedding; the normed row's logits; the likeliest in two.
        assert_eq!(decode(30, 1024, 1, &limits).totals().dispatches, 30 * 8 + 4);
    }
}

/// Attention in passes, which comes last, and of all else the first.
struct Passes;

impl Chooser for Passes {
    fn choose(&mut self, op: &Arc<dyn Op>, _: &Io, kernels: &[Kernel]) -> usize {
        if op.name().starts_with("attention") { kernels.len() - 1 } else { 0 }
    }
}

#[test]
fn a_layer_of_a_training_step() {
    for limits in adapters() {
        // However many tokens: gains' gradients are summed in one dispatch.
        for (batch, seq) in [(1, 128), (8, 1024)] {
            let plan = |layers| {
                let optimizer = Optimizer::default();
                train_plan(&config(layers), batch, seq, &optimizer, &limits, &mut First).expect("a plan")
            };
            // On a GPU the product that gives the gradient of SwiGLU's result stores those of gate and up.
            assert_eq!(of_a_layer(plan), [9, if limits.is_cpu { 17 } else { 16 }]);
        }
    }
    // As `danlu plan` has it: all parameters are one page.
    let limits = Limits { max_buffer_bytes: Limits::COUNTABLE_BYTES, ..Limits::default() };
    let whole = train_plan(&config(30), 1, 128, &Optimizer::default(), &limits, &mut First).expect("a plan");
    let totals = whole.totals();
    assert_eq!((totals.steps, totals.dispatches), (771, 781));
}

/// What a CPU's tuner may take: three dispatches forward for each block of queries, and backward ten.
#[test]
fn a_layer_of_a_training_step_in_passes() {
    let [_, limits] = adapters();
    for (batch, seq, blocks) in [(1, 128, 1), (8, 1024, 64)] {
        let plan = |layers| {
            let optimizer = Optimizer::default();
            train_plan(&config(layers), batch, seq, &optimizer, &limits, &mut Passes).expect("a plan")
        };
        assert_eq!(of_a_layer(plan), [9 - 1 + 3 * blocks, 17 - 2 + 10 * blocks]);
    }
}
