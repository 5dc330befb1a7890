//! The memory plan, on random input: no dispatch binds one buffer both ways, and a random graph gives the same numbers
//! through its plan as by its operators' references.

mod common;
mod interpreter;

use common::golden::{Golden, Step, TEN_STEPS};
use danlu::base::{Array, Limits, Rng, TensorType};
use danlu::compile::{First, Plan, Trade, compile, compile_steps, optimise, recompute};
use danlu::error::Result;
use danlu::graph::{Binary, Concat, Dispatch, Expr, Graph, Io, Kernel, Map, Op, OpNode, Operand, Slice, Unary, Value};
use danlu::ops::MatMul;
use danlu::optim::{HYPER, Optimizer};
use interpreter::{Feed, run_graph, run_plan, run_steps, same};
use proptest::prelude::*;
use std::collections::HashSet;

proptest! {
    #[test]
    fn a_random_plan_computes_its_graph(draws in prop::collection::vec(draw(), 1..40), limits in limits(), seed: u64) {
        let graph = build(&draws).expect("the drawn graph is legal");
        let plan = compile(&graph, &limits, &mut First).map_err(|e| TestCaseError::fail(format!("{e}\n{graph}")))?;
        let feed = feed(&graph, seed);
        let got = run_plan(&graph, &plan, &limits, &feed);
        let verdict = got.and_then(|got| same(&got, &run_graph(&graph, &feed)));
        prop_assert!(verdict.is_ok(), "{}\n{graph}\n{plan}", verdict.unwrap_err());
        prop_assert_eq!(plan.totals().device_bytes(), plan.buffers.iter().map(|b| b.bytes).sum::<u64>());
    }

    #[test]
    fn recomputing_changes_no_number(
        draws in prop::collection::vec(draw(), 10..60),
        limits in limits(),
        share in 0.0f64..1.0,
        seed: u64,
    ) {
        let graph = build(&draws).expect("the drawn graph is legal");
        let kept = optimise(&graph, &limits).expect("a graph of steps");
        let (least, before) = (recomputed(&kept, &limits, 0).1.reached, plan_of(&kept, &limits).totals());
        let budget = least + ((before.device_bytes() - least) as f64 * share) as u64;
        let (steps, trade) = recomputed(&kept, &limits, budget);
        let plan = plan_of(&steps, &limits);
        prop_assert_eq!(plan.totals().device_bytes(), trade.reached);
        prop_assert_eq!(before.device_bytes(), trade.before);
        prop_assert!(trade.reached <= budget, "{} of {}", trade.reached, budget);
        prop_assert_eq!(plan.totals().flops, before.flops + trade.flops());
        let copies: usize = trade.again.iter().map(|a| a.copies).sum();
        prop_assert_eq!(plan.steps.len(), before.steps + copies);
        let feed = feed(&graph, seed);
        let verdict = run_steps(&steps, &plan, &limits, &feed).and_then(|got| same(&got, &run_graph(&graph, &feed)));
        prop_assert!(verdict.is_ok(), "{}\n{graph}\n{plan}", verdict.unwrap_err());
    }
}

fn recomputed(steps: &Graph, limits: &Limits, budget: u64) -> (Graph, Trade) {
    recompute(steps, limits, budget).expect("a smaller graph")
}

fn plan_of(steps: &Graph, limits: &Limits) -> Plan {
    compile_steps(steps, limits, &mut First).expect("a plan")
}

/// One operator to add: which, and where its operands are found among the values so far.
type Draw = (u8, prop::sample::Index, prop::sample::Index);

fn draw() -> impl Strategy<Value = Draw> {
    (0u8..13, any::<prop::sample::Index>(), any::<prop::sample::Index>())
}

fn limits() -> impl Strategy<Value = Limits> {
    (4u32..=8, 64u64..512).prop_map(|(max_storage_bindings, kib)| Limits {
        max_storage_bindings,
        max_buffer_bytes: kib << 10,
        ..Limits::default()
    })
}

const COLUMNS: usize = 64;

fn build(draws: &[Draw]) -> Result<Graph> {
    let mut g = Graph::new();
    let x = g.input("x", TensorType::f32([8, COLUMNS]));
    let bias = g.input("bias", TensorType::f32([COLUMNS]));
    let ones = g.constant("ones", TensorType::f32([4, COLUMNS]), 1.0f32.to_le_bytes().repeat(4 * COLUMNS));
    let flat = g.state("flat", TensorType::f32([16 * COLUMNS]));
    let weight = g.state("weight", TensorType::f32([COLUMNS, COLUMNS]));
    let row = g.apply1(Slice { start: 2 * COLUMNS, shape: [8, COLUMNS].into() }, &[flat])?;
    let mut pool = vec![x, bias, ones, flat, row];
    for (what, a, b) in draws {
        let a = pool[a.index(pool.len())];
        let fits = |v: &&Value| g.dims(a).ends_with(g.dims(**v));
        let likes: Vec<Value> = pool.iter().filter(fits).copied().collect();
        let like = likes[b.index(likes.len())];
        let b_any = pool[b.index(pool.len())];
        let made = add(&mut g, *what, a, like, b_any, (flat, weight))?;
        pool.extend(made);
    }
    // The last value, and two drawn ones: also sources, parts and members of concatenations are wanted at times.
    for (k, (_, a, b)) in draws.iter().take(2).enumerate() {
        let v = if k == 0 { pool[a.index(pool.len())] } else { pool[b.index(pool.len())] };
        g.output(&format!("drawn{k}"), v);
    }
    g.output("last", pool[pool.len() - 1]);
    Ok(g)
}

/// Adds the operator number `what`, where it fits; gives the values that later ones may read.
fn add(g: &mut Graph, what: u8, a: Value, like: Value, other: Value, states: (Value, Value)) -> Result<Vec<Value>> {
    let n = g.ty(a).shape.elements();
    let sigmoid = |i| Expr::unary(Unary::Sigmoid, Expr::Input(i));
    let map = |expr| Map { expr };
    Ok(match what {
        0 => vec![g.apply1(Map::scale(0.5), &[a])?],
        1 => vec![g.apply1(map(sigmoid(0)), &[a])?],
        2 => vec![g.add(a, like)?],
        3 => vec![g.apply1(map(Expr::binary(Binary::Mul, Expr::Input(0), sigmoid(1))), &[a, like])?],
        4 => vec![g.sum_to(a, &TensorType::f32([COLUMNS]))?],
        5 => vec![g.reshape(a, [n / COLUMNS, COLUMNS])?],
        6 => vec![g.reshape(a, [n])?],
        7 if n > COLUMNS => vec![g.apply1(Slice { start: n - COLUMNS, shape: [1, COLUMNS].into() }, &[a])?],
        8 if n + g.ty(other).shape.elements() <= 2048 => {
            // A gap in front and between, which nobody reads.
            let m = g.ty(other).shape.elements();
            let (first, second) = (COLUMNS, n + 2 * COLUMNS);
            let all = g.apply1(Concat { starts: vec![first, second], elements: second + m }, &[a, other])?;
            let left = g.apply1(Slice { start: first, shape: g.ty(a).shape.clone() }, &[all])?;
            vec![left, g.apply1(Slice { start: second, shape: g.ty(other).shape.clone() }, &[all])?]
        }
        9 if n <= 14 * COLUMNS => {
            let part = g.apply1(Slice { start: COLUMNS, shape: [n].into() }, &[states.0])?;
            // What it reads must not lie in the state that it writes, so a value of its own.
            let x = g.apply1(map(sigmoid(0)), &[a])?;
            let x = g.reshape(x, [n])?;
            g.apply(Accumulate, &[part, x])?
        }
        10 if g.dims(a) == [8, COLUMNS] => vec![g.apply1(Linear, &[a, states.1])?],
        11 => g.apply(TwoFaces, &[a])?,
        12 => vec![g.apply1(Doubled, &[a])?],
        _ => vec![],
    })
}

fn feed(graph: &Graph, seed: u64) -> Feed {
    let sources = graph.nodes().iter().filter(|n| n.op().is_none());
    let draw = |name: &str, ty: &TensorType| {
        let mut rng = Rng::named(seed, name);
        Array::new(ty.clone(), (0..ty.shape.elements()).map(|_| rng.uniform() - 0.5).collect())
    };
    sources.map(|n| (n.name.clone(), draw(&n.name, &n.outputs[0]))).collect()
}

/// A kernel that binds every operand once; its shader is never assembled here.
fn whole(io: &Io, shader: &'static str) -> Vec<Kernel> {
    let mut d = Dispatch::new([1, 1, 1]);
    for (k, ty) in io.inputs.iter().enumerate() {
        d = d.bind(format!("x{k}"), Operand::Input(k), 0, ty.bytes());
    }
    for (k, ty) in io.outputs.iter().enumerate() {
        d = d.bind(format!("y{k}"), Operand::Output(k), 0, ty.bytes());
    }
    vec![Kernel::new(shader, "whole").dispatch(d)]
}

/// state += x, in place.
#[derive(Debug)]
struct Accumulate;

impl Op for Accumulate {
    fn name(&self) -> &'static str {
        "accumulate"
    }
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        if inputs[0] == inputs[1] { Ok(vec![]) } else { Err("different types".into()) }
    }
    fn kernels(&self, io: &Io, _limits: &Limits) -> Vec<Kernel> {
        whole(io, "accumulate")
    }
    fn writes(&self) -> Vec<usize> {
        vec![0]
    }
    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let sum = inputs[0].data.iter().zip(&inputs[1].data).map(|(s, x)| s + x).collect();
        vec![Array::new(inputs[0].ty.clone(), sum)]
    }
}

/// y = x · w: has the hooks of a matrix product.
#[derive(Debug)]
struct Linear;

impl Op for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        Ok(vec![inputs[0].clone()])
    }
    fn kernels(&self, io: &Io, _limits: &Limits) -> Vec<Kernel> {
        whole(io, "linear")
    }
    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let mut y = Array::zeros(inputs[0].ty.shape.clone());
        for (i, out) in y.data.iter_mut().enumerate() {
            let (r, c) = (i / COLUMNS, i % COLUMNS);
            *out = (0..COLUMNS).map(|k| inputs[0].data[r * COLUMNS + k] * inputs[1].data[k * COLUMNS + c] / 64.0).sum();
        }
        vec![y]
    }
    fn prologue(&self) -> Option<usize> {
        Some(0)
    }
    fn epilogue(&self) -> bool {
        true
    }
}

/// Two outputs: x + 1 and 1 - x.
#[derive(Debug)]
struct TwoFaces;

impl Op for TwoFaces {
    fn name(&self) -> &'static str {
        "two_faces"
    }
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        Ok(vec![inputs[0].clone(), inputs[0].clone()])
    }
    fn kernels(&self, io: &Io, _limits: &Limits) -> Vec<Kernel> {
        whole(io, "two_faces")
    }
    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let x = &inputs[0];
        let with = |f: &dyn Fn(f64) -> f64| Array::new(x.ty.clone(), x.data.iter().map(|&x| f(x)).collect());
        vec![with(&|x| x + 1.0), with(&|x| 1.0 - x)]
    }
}

/// Stands for x + x.
#[derive(Debug)]
struct Doubled;

impl Op for Doubled {
    fn name(&self) -> &'static str {
        "doubled"
    }
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        Ok(vec![inputs[0].clone()])
    }
    fn expand(&self, g: &mut Graph, node: &OpNode) -> Result<Option<Vec<Value>>> {
        Ok(Some(vec![g.add(node.inputs[0], node.inputs[0])?]))
    }
    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        vec![Array::new(inputs[0].ty.clone(), inputs[0].data.iter().map(|x| 2.0 * x).collect())]
    }
}

fn planned(build: impl FnOnce(&mut Graph) -> Result<Value>) -> (Graph, Plan) {
    let mut g = Graph::new();
    let y = build(&mut g).expect("a legal graph");
    g.output("y", y);
    let limits = Limits::default();
    let plan = compile(&g, &limits, &mut First).expect("a plan");
    let feed = feed(&g, 1);
    same(&run_plan(&g, &plan, &limits, &feed).expect("legal bindings"), &run_graph(&g, &feed))
        .expect("the same numbers");
    (g, plan)
}

fn ops(plan: &Plan) -> Vec<&str> {
    plan.steps.iter().map(|s| s.op).collect()
}

#[test]
fn a_chain_of_maps_is_one_step() {
    let (_, plan) = planned(|g| {
        let x = g.input("x", TensorType::f32([8, COLUMNS]));
        let bias = g.input("bias", TensorType::f32([COLUMNS]));
        let y = g.apply1(Map::scale(0.3), &[x])?;
        let y = g.add(y, bias)?;
        g.apply1(Map::swiglu(), &[y, x])
    });
    assert_eq!(ops(&plan), ["map"]);
    assert_eq!(plan.totals().arena_bytes, 8 * COLUMNS as u64 * 4, "nothing but the result needs memory");
}

#[test]
fn a_sum_over_many_rows_has_a_gradient() {
    let (graph, _) = planned(|g| {
        let x = g.input("x", TensorType::f32([200, 3]));
        let squares = g.mul(x, x)?;
        let columns = g.sum_to(squares, &TensorType::f32([3]))?;
        let loss = g.sum_to(columns, &TensorType::f32([1]))?;
        Ok(danlu::graph::gradients(g, loss, &[x])?[0])
    });
    let feed = feed(&graph, 1);
    let doubled = feed["x"].data.iter().map(|x| 2.0 * x).collect();
    let expected = Array::new(feed["x"].ty.clone(), doubled);
    same(&run_graph(&graph, &feed), &Feed::from([("output y".to_string(), expected)])).expect("2 x");
}

#[test]
fn a_shared_map_is_computed_once() {
    let (_, plan) = planned(|g| {
        let x = g.input("x", TensorType::f32([8, COLUMNS]));
        let shared = g.apply1(Map { expr: Expr::unary(Unary::Exp, Expr::Input(0)) }, &[x])?;
        let sum = g.sum_to(shared, &TensorType::f32([COLUMNS]))?;
        g.apply1(Map::mul(), &[shared, sum])
    });
    assert_eq!(plan.steps.iter().filter(|s| s.op == "map").count(), 2, "\n{plan}");
}

#[test]
fn a_residual_sum_becomes_the_product_s_epilogue_and_a_scale_its_prologue() {
    let (_, plan) = planned(|g| {
        let x = g.input("x", TensorType::f32([8, COLUMNS]));
        let w = g.state("weight", TensorType::f32([COLUMNS, COLUMNS]));
        let scaled = g.apply1(Map::scale(0.5), &[x])?;
        let y = g.apply1(Linear, &[scaled, w])?;
        g.add(y, x)
    });
    assert_eq!(ops(&plan), ["linear"]);
    let hooks: HashSet<&str> = plan.steps[0].hooks.iter().map(|h| h.name).collect();
    assert_eq!(hooks, HashSet::from(["prologue", "epilogue"]));
}

#[test]
fn nothing_moves_across_a_write_of_what_it_reads() {
    let (_, plan) = planned(|g| {
        let s = g.state("s", TensorType::f32([4 * COLUMNS]));
        let x = g.input("x", TensorType::f32([4 * COLUMNS]));
        let before = g.apply1(Map::scale(2.0), &[s])?;
        g.apply(Accumulate, &[s, x])?;
        g.add(before, s)
    });
    assert_eq!(ops(&plan), ["map", "accumulate", "map"]);
}

#[test]
fn reading_a_state_while_writing_it_is_refused() {
    let mut g = Graph::new();
    let s = g.state("s", TensorType::f32([2 * COLUMNS]));
    let low = g.apply1(Slice { start: 0, shape: [COLUMNS].into() }, &[s]).expect("a part");
    let high = g.apply1(Slice { start: COLUMNS, shape: [COLUMNS].into() }, &[s]).expect("a part");
    g.apply(Accumulate, &[low, high]).expect("a node");
    let error = compile(&g, &Limits::default(), &mut First).expect_err("one buffer, both ways").to_string();
    assert_eq!(error, "graph: accumulate reads the state s while it writes it: copy what it reads first");
}

#[test]
fn members_of_a_concatenation_are_written_in_place() {
    let (_, plan) = planned(|g| {
        let x = g.input("x", TensorType::f32([COLUMNS]));
        let a = g.apply1(Map::scale(2.0), &[x])?;
        let b = g.apply1(Map::scale(3.0), &[x])?;
        g.apply1(Concat { starts: vec![0, COLUMNS], elements: 2 * COLUMNS }, &[a, b])
    });
    assert_eq!(ops(&plan), ["map_pair"], "no copies\n{plan}");
    assert_eq!(plan.totals().arena_bytes, 2 * COLUMNS as u64 * 4);
}

/// Three layers over one input, whose weights adjoin in a page, and all gradients, those of the weights in a page again.
#[test]
fn layers_over_one_input_are_one_product_forward_and_backward() {
    let (_, plan) = planned(|g| {
        let x = g.input("x", TensorType::f32([2, 6, 12]));
        let page = g.state("page", TensorType::f32([192 * 12]));
        let (mut weights, mut layers) = (Vec::new(), Vec::new());
        for start in [0, 64, 128] {
            let weight = g.apply1(Slice { start: start * 12, shape: [64, 12].into() }, &[page])?;
            layers.push(g.apply1(MatMul::linear(), &[x, weight])?);
            weights.push(weight);
        }
        let product = g.mul(layers[0], layers[1])?;
        let product = g.mul(product, layers[2])?;
        let loss = g.sum_to(product, &TensorType::f32([1]))?;
        let wrt = [&[x], weights.as_slice()].concat();
        let gradients = danlu::graph::gradients(g, loss, &wrt)?;
        g.output("towards x", gradients[0]);
        g.apply1(Concat { starts: vec![0, 64 * 12, 128 * 12], elements: 192 * 12 }, &gradients[1..])
    });
    let products: Vec<&str> = ops(&plan).into_iter().filter(|op| op.contains("mat") || *op == "copy").collect();
    assert_eq!(products, ["panel_matmul"; 3], "\n{plan}");
}

/// Of two tensors in one storage, the one that nobody reads any more makes room.
#[test]
fn a_part_that_is_read_no_more_makes_room() {
    let rows = |kept: &[usize]| {
        let (_, plan) = planned(|g| {
            let x = g.input("x", TensorType::f32([8, COLUMNS]));
            let faces = g.apply(TwoFaces, &[x])?;
            let all = g.apply1(Concat { starts: vec![0, 8 * COLUMNS], elements: 16 * COLUMNS }, &faces)?;
            let part = |i: usize| Slice { start: i * 8 * COLUMNS, shape: [8, COLUMNS].into() };
            let parts = [g.apply1(part(0), &[all])?, g.apply1(part(1), &[all])?];
            let w = g.state("weight", TensorType::f32([COLUMNS, COLUMNS]));
            let mut y = parts[0];
            for _ in 0..3 {
                y = g.apply1(Linear, &[y, w])?;
            }
            kept.iter().try_fold(y, |y, &i| g.add(y, parts[i]))
        });
        plan.totals().arena_bytes / (8 * COLUMNS as u64 * 4)
    };
    assert_eq!([rows(&[0]), rows(&[1]), rows(&[0, 1])], [3, 3, 4]);
}

#[test]
fn what_fits_no_buffer_is_refused_with_its_size() {
    let mut g = Graph::new();
    let x = g.input("x", TensorType::f32([1 << 10]));
    let y = g.apply1(Map::add(), &[x, x]).expect("a map");
    g.output("y", y);
    let limits = Limits { max_buffer_bytes: 2048, ..Limits::default() };
    let error = compile(&g, &limits, &mut First).expect_err("4,096 bytes do not fit 2,048").to_string();
    assert!(error.contains("4096") && error.contains("2048"), "{error}");
}

/// x·w waits while larger ones need room. Between its uses the weight is written, or not.
fn waiting(write: bool) -> Graph {
    let mut g = Graph::new();
    let x = g.input("x", TensorType::f32([8, COLUMNS]));
    let w = g.state("weight", TensorType::f32([COLUMNS, COLUMNS]));
    let dw = g.input("dw", TensorType::f32([COLUMNS, COLUMNS]));
    let build = |g: &mut Graph| -> Result<Value> {
        let y = g.apply1(Linear, &[x, w])?;
        let early = g.sum_to(y, &TensorType::f32([COLUMNS]))?;
        g.output("early", early);
        if write {
            g.apply(Accumulate, &[w, dw])?;
        }
        let large = g.apply1(Linear, &[dw, w])?;
        let large = g.apply1(Linear, &[large, w])?;
        let sum = g.sum_to(large, &TensorType::f32([COLUMNS]))?;
        g.add(y, sum)
    };
    let last = build(&mut g).expect("a legal graph");
    g.output("last", last);
    optimise(&g, &Limits::default()).expect("a graph of steps")
}

#[test]
fn nothing_is_computed_again_across_a_write() {
    let limits = Limits::default();
    let (_, trade) = recomputed(&waiting(false), &limits, 0);
    let row = 8 * COLUMNS as u64 * 4;
    assert_eq!((trade.again.len(), trade.again[0].name.as_str(), trade.again[0].saved), (1, "linear", row));
    assert_eq!(trade.before - trade.reached, row);
    let (_, trade) = recomputed(&waiting(true), &limits, 0);
    assert_eq!((trade.again, trade.reached), (vec![], trade.before));
}

/// A step of training under ever smaller budgets: each is kept to the byte, costs the operations that were said, and gives
/// every number of the step that keeps all, to the last bit.
#[test]
fn a_training_step_keeps_to_its_budget() {
    let golden = Golden::open("gqa");
    let (tokens, targets) = golden.batches("adamw.batches").remove(0);
    let limits = Limits::default();
    let kept = optimise(&Step::new(&golden, &tokens.ty).graph, &limits).expect("a graph of steps");
    let mut feed: Feed = golden.states().into_iter().collect();
    feed.extend([("tokens".to_string(), tokens), ("targets".to_string(), targets)]);
    let hyper = Optimizer::default().hyper(TEN_STEPS.rate(0)).map(f64::from);
    feed.insert(HYPER.into(), Array::new(TensorType::f32([1]), hyper.to_vec()));
    let plan = plan_of(&kept, &limits);
    let (before, expected) = (plan.totals(), run_steps(&kept, &plan, &limits, &feed).expect("legal bindings"));
    let least = recomputed(&kept, &limits, 0).1.reached;
    assert!(least < before.device_bytes(), "something can be computed again");
    let mut costs = Vec::new();
    for quarters in 0..=4 {
        let budget = least + (before.device_bytes() - least) * quarters / 4;
        let (steps, trade) = recomputed(&kept, &limits, budget);
        let plan = plan_of(&steps, &limits);
        assert!(plan.totals().device_bytes() == trade.reached && trade.reached <= budget);
        assert_eq!(plan.totals().flops, before.flops + trade.flops());
        assert!(run_steps(&steps, &plan, &limits, &feed).expect("legal bindings") == expected, "{quarters} quarters");
        costs.push(trade.flops());
    }
    assert!(costs.is_sorted_by(|a, b| a >= b) && costs[0] > 0 && costs[4] == 0, "{costs:?}");
}

/// A step of training, the largest graph that there is, through plans for adapters of several sizes: parameters, moments,
/// loss and norm are those of the graph, and every dispatch keeps WebGPU's rules.
#[test]
fn a_training_step_survives_its_plan() {
    let golden = Golden::open("gqa");
    let (tokens, targets) = golden.batches("adamw.batches").remove(0);
    let graph = Step::new(&golden, &tokens.ty).graph;
    let mut feed: Feed = golden.states().into_iter().collect();
    feed.extend([("tokens".to_string(), tokens), ("targets".to_string(), targets)]);
    let hyper = Optimizer::default().hyper(TEN_STEPS.rate(0)).map(f64::from);
    feed.insert(HYPER.into(), Array::new(TensorType::f32([1]), hyper.to_vec()));
    let expected = run_graph(&graph, &feed);
    let sizes = [(8, 256 << 20, 128 << 20), (8, 64 << 10, 16 << 10), (16, 1 << 20, 4 << 10)];
    for (max_storage_bindings, max_buffer_bytes, max_binding_bytes) in sizes {
        let limits = Limits { max_storage_bindings, max_buffer_bytes, max_binding_bytes, ..Limits::default() };
        let plan = compile(&graph, &limits, &mut First).expect("a plan");
        let got = run_plan(&graph, &plan, &limits, &feed).unwrap_or_else(|e| panic!("{e}\n{plan}"));
        same(&got, &expected).unwrap_or_else(|e| panic!("{limits:?}: {e}"));
    }
}
