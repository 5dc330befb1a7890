//! What mixed precision stores in f16 between operators: what products alone read, on GPUs that compute in f16; and that no number
//! depends on it.

mod common;

use danlu::base::{DType, Limits, Rng, TensorType};
use danlu::compile::{First, compile, optimise};
use danlu::gpu::Gpu;
use danlu::graph::{Graph, Map, Node, Slice, Value, gradients};
use danlu::model::find_config;
use danlu::ops::{LinearCrossEntropy, MatMul, RmsNorm};
use danlu::run::{Executor, States};
use danlu::train::{Precision, Recipe, optimizer, train_graph};
use pollster::block_on;
use std::collections::BTreeMap;

/// Tokens, the model's width, the feed-forward's, and words.
const SIZES: [usize; 4] = [128, 64, 192, 256];

/// A GPU's limits, those of an adapter or of one of which nothing is known, with and without f16.
fn limits(of: &Limits, has_f16: bool) -> Limits {
    Limits { is_cpu: false, has_f16, cooperative: Vec::new(), ..of.clone() }
}

/// A norm, a feed-forward layer with a residual, and the loss, whose parameters lie in a page: its loss and gradients towards the
/// input and all matrices, with the operands of products rounded or not.
fn graph(is_mixed: bool) -> Graph {
    let [tokens, d, f, words] = SIZES;
    let mut g = Graph::new();
    let x = g.state("x", TensorType::f32([tokens, d]));
    let targets = g.input("targets", TensorType::u32([tokens]));
    let page = g.state("page", TensorType::f32([d + 3 * f * d + words * d]));
    let mut start = 0;
    let mut part = |g: &mut Graph, shape: &[usize]| -> Value {
        let slice = Slice { start, shape: shape.into() };
        start += shape.iter().product::<usize>();
        g.apply1(slice, &[page]).unwrap()
    };
    let gain = part(&mut g, &[d]);
    let [gate, up, down, table] = [[f, d], [f, d], [d, f], [words, d]].map(|shape| part(&mut g, &shape));
    let linear = |g: &mut Graph, x, w| g.apply1(MatMul::linear(), &[x, w]).unwrap();
    let normed = g.apply(RmsNorm { eps: 1e-5 }, &[x, gain]).unwrap()[0];
    let both = [gate, up].map(|w| linear(&mut g, normed, w));
    let gated = g.apply1(Map::swiglu(), &both).unwrap();
    let y = linear(&mut g, gated, down);
    let y = g.add(x, y).unwrap();
    let loss = g.apply(LinearCrossEntropy::new(128), &[y, table, targets]).unwrap()[0];
    if is_mixed {
        g.narrow();
    }
    let all = gradients(&mut g, loss, &[x, gate, up, down, table]).unwrap();
    g.output("loss", loss);
    for (name, gradient) in ["x", "gate", "up", "down", "table"].into_iter().zip(all) {
        g.output(name, gradient);
    }
    g
}

/// Operators that store something in f16, once for each time.
fn stored(graph: &Graph, limits: &Limits) -> Vec<&'static str> {
    let steps = optimise(graph, limits).unwrap();
    let is_half = |node: &&Node| node.outputs.iter().any(|ty| ty.dtype == DType::F16);
    let mut names: Vec<_> = steps.nodes().iter().filter(is_half).map(|node| node.op_name()).collect();
    names.retain(|name| !["state", "slice", "concat"].contains(name));
    names.sort_unstable();
    names
}

#[test]
fn what_products_alone_read_is_in_f16() {
    let all = Limits::default();
    let (mixed, strict) = (graph(true), graph(false));
    // Of both chunks of words the gradient of the logits; SwiGLU's result; what the loss is of, and SwiGLU's gradients, both by one
    // product; the normed rows.
    let wanted = ["cross_entropy_grad", "cross_entropy_grad", "map", "matmul", "matmul", "rms_norm"];
    assert_eq!(stored(&mixed, &limits(&all, true)), wanted);
    for (graph, limits) in [
        (&strict, limits(&all, true)),
        (&mixed, limits(&all, false)),
        (&mixed, Limits { is_cpu: true, min_subgroup: 8, ..limits(&all, true) }),
    ] {
        assert!(stored(graph, &limits).is_empty());
    }
}

/// Whether what is stored in f16 below 2^-14 is multiplied as what it is: WGSL lets an adapter take it for zero.
fn keeps_small(gpu: &Gpu) -> bool {
    let mut g = Graph::new();
    let x = g.state("x", TensorType::f32([64, 64]));
    let ones = g.state("ones", TensorType::f32([64, 64]));
    let small = g.apply1(Map::scale(f32::powi(2.0, -20)), &[x]).unwrap();
    // Read twice, it is no product's prologue.
    let both = [MatMul::linear(), MatMul::new(false, false)].map(|op| g.apply1(op, &[small, ones]).unwrap());
    g.narrow();
    both.into_iter().zip(["y", "z"]).for_each(|(y, name)| g.output(name, y));
    let plan = compile(&g, &limits(gpu.limits(), true), &mut First).unwrap();
    assert!(plan.steps.iter().any(|step| step.constants.contains(&("WRITES_F16", 1))));
    let mut states = States::new(gpu);
    let mut run = block_on(Executor::new(gpu, &plan, &mut states)).unwrap();
    for name in ["x", "ones"] {
        block_on(states.write(name, 0, bytemuck::cast_slice(&[1.0f32; 64 * 64]))).unwrap();
    }
    let mut products = block_on(run.run()).unwrap().into_iter();
    products.all(|(_, bytes)| bytemuck::pod_collect_to_vec(&bytes).iter().all(|&y: &f32| y == f32::powi(2.0, -14)))
}

/// With the same kernels losses and gradients are the same to the bit.
#[test]
fn halves_change_no_bit() {
    let gpu = common::gpu();
    if !gpu.limits().has_f16 || !keeps_small(&gpu) {
        println!("skipped: {} does not compute in f16, or takes small ones for zero", gpu.report().line());
        return;
    }
    let graph = graph(true);
    let run = |has_f16: bool| -> BTreeMap<String, Vec<u8>> {
        let plan = compile(&graph, &limits(gpu.limits(), has_f16), &mut First).unwrap();
        let is_told = |name: &'static str| plan.steps.iter().any(|step| step.constants.contains(&(name, 1)));
        assert_eq!(["A_F16", "WRITES_F16"].map(is_told), [has_f16; 2]);
        let mut states = States::new(&gpu);
        let mut run = block_on(Executor::new(&gpu, &plan, &mut states)).unwrap();
        let mut rng = Rng::new(7, 0);
        for name in ["x", "page"] {
            let elements = block_on(states.read(name)).unwrap().len() / 4;
            let values: Vec<f32> = (0..elements).map(|_| rng.normal() as f32).collect();
            block_on(states.write(name, 0, bytemuck::cast_slice(&values))).unwrap();
        }
        let targets: Vec<u32> = (0..SIZES[0]).map(|_| rng.below(SIZES[3]) as u32).collect();
        run.set("targets", bytemuck::cast_slice::<u32, u8>(&targets)).unwrap();
        block_on(run.run()).unwrap().into_iter().collect()
    };
    let [with, without] = [true, false].map(run);
    assert_eq!(with.len(), 6);
    for (name, bytes) in &with {
        assert!(bytes.iter().any(|&byte| byte != 0) && *bytes == without[name], "{name}");
    }
}

/// What a step of SmolLM2 moves and keeps, of 8×1024 tokens.
#[test]
fn a_mixed_step_takes_fewer_bytes() {
    let config = find_config("smollm2-135m").unwrap();
    let recipe = Recipe { precision: Precision::Mixed, ..Recipe::default() };
    let [with, without] = [true, false].map(|has_f16| {
        let large = Limits { max_buffer_bytes: Limits::COUNTABLE_BYTES, ..Limits::default() };
        let limits = limits(&large, has_f16);
        let graph = train_graph(&config, 8, 1024, &optimizer(&recipe), &limits).unwrap();
        compile(&graph, &limits, &mut First).unwrap().totals()
    });
    println!("{with:?}, with f32 {without:?}");
    assert_eq!((with.steps, with.flops), (without.steps, without.flops));
    assert!((with.traffic as f64) < 0.85 * without.traffic as f64);
    assert!((with.device_bytes() as f64) < 0.88 * without.device_bytes() as f64);
}
