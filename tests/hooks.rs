//! Elementwise operators that the compiler fuses to others, in every candidate of these: a product's bias, residual, activation
//! with its gate and loss scale, what scales its operand, and the residual of a norm's gradient; of every operator that says so.

mod common;

use common::candidates::{both, each, gpu, is_barred};
use danlu::base::{Array, DType, Limits, TensorType, to_half};
use danlu::compile::optimise;
use danlu::error::Result;
use danlu::gpu::Gpu;
use danlu::graph::{Graph, Halved, Io, Kernel, Kind, Map, Node, Op, OpNode, Value};
use danlu::ops::table::{Case, Draw, table};
use danlu::ops::{MatMul, Operands, RmsNormGrad};
use danlu::run::run_kernel;
use pollster::block_on;
use std::sync::Arc;

/// What follows a result: another value, from it and inputs of a graph that are made here.
type Then = fn(&mut Graph, Value) -> Result<Value>;

fn like(g: &mut Graph, y: Value) -> Value {
    g.input("like", g.ty(y).clone())
}

fn bias(g: &mut Graph, y: Value) -> Result<Value> {
    let bias = g.input("bias", TensorType::f32([g.ty(y).shape.last()]));
    g.add(y, bias)
}

fn residual(g: &mut Graph, y: Value) -> Result<Value> {
    let x = like(g, y);
    g.add(x, y)
}

fn gated(g: &mut Graph, y: Value) -> Result<Value> {
    let up = like(g, y);
    g.apply1(Map::swiglu(), &[y, up])
}

fn scaled(g: &mut Graph, y: Value) -> Result<Value> {
    g.apply1(Map::scale(1024.0), &[y])
}

/// The product of two inputs, the second of this dtype, the first halved where `is_halved` says so.
fn product(g: &mut Graph, op: MatMul, [m, n, k]: [usize; 3], dtype: DType, is_halved: bool) -> Result<Value> {
    let matrix = |on: bool, r, c| TensorType::f32(if on { [c, r] } else { [r, c] });
    let (a, b) = (g.input("a", matrix(op.transpose_a, m, k)), TensorType { dtype, ..matrix(op.transpose_b, k, n) });
    let b = g.input("b", b);
    // Halves of what a kernel has in f32 and the reference in f64 round to f16 alike; of other factors some would not.
    let a = if is_halved { g.apply1(Map::scale(0.5), &[a])? } else { a };
    g.apply1(op, &[a, b])
}

/// What a row's label says of its product's second operand.
fn of_b(label: &str) -> DType {
    let named = [("f16", DType::F16), ("bf16", DType::BF16), ("nf4", DType::Nf4)];
    named.into_iter().find(|(name, _)| label.starts_with(name)).map_or(DType::F32, |(_, dtype)| dtype)
}

fn all(limits: &Limits) -> Vec<Limits> {
    both(limits).into()
}

/// The larger of two tiles, which differ by constants and take a CPU's driver seconds to compile.
fn is_large(kernel: &Kernel) -> bool {
    ["tile_64x64", "block_128x128", "coop_8_64x64"].iter().any(|large| kernel.variant.starts_with(large))
}

/// The one step that a graph becomes.
fn step(graph: &Graph, limits: &Limits) -> (Node, Io) {
    let steps = optimise(graph, limits).expect("a graph of steps");
    let [step] = steps
        .nodes()
        .iter()
        .filter(|n| matches!(n.kind, Kind::Op(_)))
        .cloned()
        .collect::<Vec<_>>()
        .try_into()
        .unwrap_or_else(|steps| panic!("not fused: {steps:?}"));
    let inputs = step.inputs.iter().map(|&v| steps.ty(v).clone()).collect();
    let io = Io { inputs, outputs: step.outputs.clone() };
    (step, io)
}

/// Every candidate of the step against its reference, whose kernel must have these hooks filled.
fn check(label: &str, limits: fn(&Limits) -> Vec<Limits>, make: impl Fn(&mut Graph) -> Result<()>, hooks: &[&str]) {
    check_of(label, &[], limits, make, hooks);
}

/// The same, where the step's first inputs are drawn so, others at random.
fn check_of(
    label: &str,
    first: &[(TensorType, Draw)],
    limits: fn(&Limits) -> Vec<Limits>,
    make: impl Fn(&mut Graph) -> Result<()>,
    hooks: &[&str],
) {
    let Some(gpu) = &gpu() else { return };
    let mut graph = Graph::new();
    make(&mut graph).expect("a graph");
    let mut done: Vec<Kernel> = Vec::new();
    for limits in limits(gpu.limits()) {
        let (step, io) = step(&graph, &limits);
        let op = step.op().expect("a step has an operator");
        assert!(first.iter().zip(&io.inputs).all(|((drawn, _), ty)| drawn == ty), "{label}: {:?}", io.inputs);
        let others = io.inputs.iter().skip(first.len()).map(|ty| (ty.clone(), Draw::Normal));
        let drawn: Vec<_> = first.iter().cloned().chain(others).collect();
        let inputs = Case::new(label, Map::scale(1.0), &drawn).draw(5);
        let expected = op.reference(&inputs);
        let halved = in_f16(op, &io, &limits);
        for (i, kernel) in op.kernels(&io, &limits).into_iter().enumerate() {
            if done.contains(&kernel) || is_barred(gpu, &kernel) || is_large(&kernel) && gpu.limits().is_cpu {
                continue;
            }
            let label = format!("{label}, {} {}", kernel.shader, kernel.variant);
            let mut filled: Vec<&str> = kernel.stages().flat_map(|stage| &stage.hooks).map(|hook| hook.name).collect();
            filled.sort_unstable();
            assert_eq!(filled, hooks, "{label}");
            println!("{label}");
            let got = block_on(run_kernel(gpu, &kernel, &io, &inputs, &[])).unwrap_or_else(|e| panic!("{label}: {e}"));
            for (i, (y, r)) in got.iter().zip(&expected).enumerate() {
                op.tolerance(&io).check(y, r).unwrap_or_else(|e| panic!("{label}, result {i}: {e}"));
            }
            if let Some((io, kernels)) = &halved {
                check_rounded(gpu, &label, &kernels[i], io, &inputs, &got);
            }
            done.push(kernel);
        }
    }
}

/// The same step with results stored in f16, where an adapter with these limits can: its types and candidates, in the same order.
fn in_f16(op: &Arc<dyn Op>, io: &Io, limits: &Limits) -> Option<(Io, Vec<Kernel>)> {
    let outputs = op.half_outputs(io, limits);
    let halved = Halved { base: op.clone(), outputs: outputs.clone() };
    let types = halved.infer(&io.inputs.iter().collect::<Vec<_>>()).ok()?;
    let io = Io { inputs: io.inputs.clone(), outputs: types };
    (!outputs.is_empty()).then(|| (io.clone(), halved.kernels(&io, limits)))
}

/// What such a candidate stores is what the other one stores in f32, rounded, to the bit; but that an adapter may take small f16 for
/// zero.
fn check_rounded(gpu: &Gpu, label: &str, kernel: &Kernel, io: &Io, inputs: &[Array], exact: &[Array]) {
    let got = block_on(run_kernel(gpu, kernel, io, inputs, &[])).unwrap_or_else(|e| panic!("{label}, in f16: {e}"));
    for (y, exact) in got.iter().zip(exact).filter(|(y, _)| y.ty.dtype == DType::F16) {
        for (i, (&y, &x)) in y.data.iter().zip(&exact.data).enumerate() {
            let flushed = y == 0.0 && x.abs() < f64::powi(2.0, -14);
            assert!(y == to_half(x) || flushed, "{label}, in f16, element {i}: {y} of {x}");
        }
    }
}

#[test]
fn every_candidate_of_a_product_has_its_hooks() {
    let half = |ta, tb| MatMul::new(ta, tb).with(Operands::F16);
    let strict = MatMul::new;
    // Odd sizes, and more than one of the larger tiles with sums that are split; weights as they are and as mixed precision copies them.
    let rows: [(&str, MatMul, [usize; 3], bool, Then); 17] = [
        ("bias", half(false, true), [67, 70, 131], false, bias),
        ("gate", half(false, true), [132, 140, 136], false, gated),
        ("scale", half(true, false), [68, 72, 68], false, scaled),
        ("halved across, residual", half(true, true), [67, 70, 131], true, residual),
        ("f16, bias", half(false, true), [132, 140, 136], false, bias),
        ("f16, bias, odd", half(false, true), [67, 70, 134], false, bias),
        ("f16, gate", half(false, true), [132, 140, 136], false, gated),
        ("f16, gate, odd", half(false, true), [67, 70, 134], false, gated),
        // Of other dtypes B is decoded on its way: rows of whole blocks, which tiles cut off.
        ("bf16, bias, odd", half(false, true), [67, 70, 134], false, bias),
        ("bf16, back, gate", half(false, false), [132, 140, 136], false, gated),
        ("nf4, bias, odd", half(false, true), [67, 70, 192], false, bias),
        ("nf4, gate", half(false, true), [132, 140, 128], false, gated),
        ("nf4, back, residual", half(false, false), [67, 192, 131], false, residual),
        ("strict, halved, residual", strict(true, false), [68, 140, 136], true, residual),
        ("strict, bias, few rows", strict(false, true), [3, 70, 132], false, bias),
        ("strict, gate, two rows", strict(false, true), [2, 70, 132], false, gated),
        ("strict, residual, one row", strict(false, true), [1, 70, 132], false, residual),
    ];
    each(&rows, |(label, op, sizes, is_halved, then)| {
        let hooks: &[&str] = if *is_halved { &["epilogue", "prologue"] } else { &["epilogue"] };
        let make = |g: &mut Graph| {
            let y = product(g, op.clone(), *sizes, of_b(label), *is_halved)?;
            let made = then(g, y)?;
            g.output("made", made);
            Ok(())
        };
        check(label, all, make, hooks);
    });
}

/// Operators that have a product's kernels, or one of their own, by rows of the table of tests/ops.rs.
#[test]
fn every_candidate_of_other_products_has_its_hooks() {
    let rows: [(&str, Then); 8] = [
        ("norm_matmul one row", gated),
        ("norm_matmul rows", residual),
        ("panel_matmul input", residual),
        ("panel_matmul input, half", residual),
        ("expert_linear few", gated),
        ("expert_linear many", gated),
        ("expert_linear wide", residual),
        ("expert_linear back", residual),
    ];
    let table = table();
    each(&rows, |(label, then)| {
        let case = table.iter().find(|case| case.label == *label).unwrap_or_else(|| panic!("no row {label}"));
        let make = |g: &mut Graph| {
            let input = |(i, (ty, _)): (usize, &(TensorType, Draw))| g.input(&format!("input {i}"), ty.clone());
            let inputs: Vec<Value> = case.inputs.iter().enumerate().map(input).collect();
            let y = g.apply_arc(case.op.clone(), &inputs)?[0];
            let made = then(g, y)?;
            g.output("made", made);
            Ok(())
        };
        check_of(label, &case.inputs, all, make, &["epilogue"]);
    });
}

/// Both gradients of SwiGLU behind the product that gives that of its result, where lanes are not a CPU's.
#[test]
fn every_candidate_of_a_product_stores_two_results() {
    let half = |ta, tb| MatMul::new(ta, tb).with(Operands::F16);
    let rows = [
        ("halves", half(false, false), [132, 140, 136]),
        ("halves, odd", half(false, false), [67, 70, 131]),
        ("f16", half(false, false), [132, 140, 136]),
        ("f16, odd", half(false, false), [67, 70, 131]),
        ("bf16", half(false, false), [132, 140, 136]),
        ("nf4, odd", half(false, false), [67, 192, 131]),
        ("strict", MatMul::new(false, false), [132, 140, 136]),
        ("strict, odd", MatMul::new(false, true), [67, 70, 131]),
    ];
    each(&rows, |(label, op, sizes)| {
        let make = |g: &mut Graph| {
            let dy = product(g, op.clone(), *sizes, of_b(label), false)?;
            let [gate, up] = ["gate", "up"].map(|name| g.input(name, g.ty(dy).clone()));
            let y = g.apply(Map::swiglu(), &[gate, up])?;
            let node = OpNode { inputs: vec![gate, up], outputs: y };
            let grads = Map::swiglu().gradient(g, &node, &[Some(dy)])?;
            for (name, grad) in ["dgate", "dup"].into_iter().zip(grads) {
                g.output(name, grad.expect("both are wanted"));
            }
            Ok(())
        };
        let gpus = |limits: &Limits| vec![Limits { is_cpu: false, ..limits.clone() }];
        check(label, gpus, make, &["epilogue", "second"]);
    });
}

/// It stands where the norm's gradient does, though the gain's parts, the other result, may be wanted before the sum; or not at all,
/// where the gain is frozen.
#[test]
fn every_candidate_of_a_norm_s_gradient_adds_the_residual() {
    if std::env::var_os(common::candidates::COOPERATIVE).is_some() {
        return;
    }
    each(&[(19, 68, false), (5, 33, false), (19, 68, true), (5, 33, true)], |&(rows, d, is_frozen)| {
        let make = |g: &mut Graph| {
            let x = TensorType::f32([rows, d]);
            let residual = g.input("residual", x.clone());
            let [x, dy] = ["x", "dy"].map(|name| g.input(name, x.clone()));
            let (gain, r) = (g.input("gain", TensorType::f32([d])), g.input("r", TensorType::f32([rows])));
            let grads = g.apply(RmsNormGrad { rows_per_part: 8, parts: true }, &[x, gain, r, dy])?;
            if !is_frozen {
                g.output("parts", grads[1]);
            }
            let dx = g.add(grads[0], residual)?;
            g.output("dx", dx);
            Ok(())
        };
        check(&format!("{rows} x {d}, frozen: {is_frozen}"), all, make, &["epilogue"]);
    });
}
