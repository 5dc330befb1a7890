//! Random graphs of real operators, forward and backward, run on the device through their plans: whatever fusion, views,
//! in-place writes, splits and shared memory make of a graph, the numbers are those of its operators' references, within
//! the bars of tests/common/spread.rs. A failure names its seed; `graph(seed)` draws the same graph again.

mod common;

use common::golden::{Numbers, Sources};
use common::interpret::{Interpreter, Noise};
use common::spread::Spread;
use danlu::base::{Array, DType, Limits, Rng, TensorType};
use danlu::compile::{Chooser, compile};
use danlu::error::Result;
use danlu::graph::{Binary, Concat, Expr, Graph, Io, Kernel, Kind, Map, NodeId, Op, Slice, Unary, Value, gradients};
use danlu::ops::{CacheWrite, Embedding, MatMul, RmsNorm};
use danlu::run::{Executor, States, f32s};
use pollster::block_on;
use std::panic::{AssertUnwindSafe, catch_unwind};

const GRAPHS: u64 = 24;
const D: usize = 36;
const MOST_ROWS: usize = 70;
/// States whose values stay small, for they are multiplied with again and again.
const SMALL: [&str; 3] = ["weight", "trio", "back"];

/// Any candidate of a step, but mostly the first: a driver may take a second for one of the larger kernels.
struct Any(Rng);

impl Chooser for Any {
    fn choose(&mut self, _op: &std::sync::Arc<dyn Op>, _io: &Io, kernels: &[Kernel]) -> usize {
        if self.0.below(8) == 0 { self.0.below(kernels.len()) } else { 0 }
    }
}

/// Matrices `[rows, D]` and vectors `[D]` so far, and what draws from them.
struct Draft {
    g: Graph,
    rng: Rng,
    pool: Vec<Value>,
    weight: Value,
    /// Three weights `[64,D]` that adjoin, and one of them back: `[D,64]`.
    trio: [Value; 2],
    gain: Value,
    caches: [Value; 2],
    position: Value,
    /// A graph writes its cache, or has gradients; not both, for a write has none.
    writes: bool,
}

impl Draft {
    fn new(seed: u64) -> Draft {
        let mut g = Graph::new();
        let rng = Rng::new(seed, 0);
        let weight = g.state("weight", TensorType::f32([D, D]));
        let trio = [[192, D], [D, 64]].map(TensorType::f32);
        let trio = [g.state("trio", trio[0].clone()), g.state("back", trio[1].clone())];
        let gain = g.input("gain", TensorType::f32([D]));
        let caches = ["keys", "values"].map(|name| g.state(name, TensorType::f32([1, MOST_ROWS, 1, D])));
        let position = g.input("position", TensorType::u32([1]));
        let ones = g.constant("ones", TensorType::f32([3, D]), 1.0f32.to_le_bytes().repeat(3 * D));
        let x = g.input("x", TensorType::f32([17, D]));
        let pool = vec![x, ones, gain, weight];
        Draft { g, rng, pool, weight, trio, gain, caches, position, writes: seed.is_multiple_of(2) }
    }

    fn pick(&mut self) -> Value {
        // Late values more often, so that chains grow long.
        let (a, b) = (self.rng.below(self.pool.len()), self.rng.below(self.pool.len()));
        self.pool[a.max(b)]
    }

    /// A value that adds to `a` element by element, of the same type or broadcast over its rows.
    fn like(&mut self, a: Value) -> Value {
        let fits: Vec<Value> =
            self.pool.iter().copied().filter(|&v| self.g.dims(a).ends_with(self.g.dims(v))).collect();
        fits[self.rng.below(fits.len())]
    }

    /// `a` as a matrix.
    fn matrix(&mut self, a: Value) -> Result<Value> {
        let rows = self.g.ty(a).shape.elements() / D;
        self.g.reshape(a, [rows, D])
    }

    fn linear(&mut self, a: Value, transpose_b: bool) -> Result<Value> {
        let a = self.matrix(a)?;
        self.g.apply1(MatMul::new(false, transpose_b), &[a, self.weight])
    }

    /// Adds an operator or two.
    fn grow(&mut self) -> Result<()> {
        let a = self.pick();
        let b = self.like(a);
        let rows = self.g.ty(a).shape.elements() / D;
        let sigmoid = Expr::unary(Unary::Sigmoid, Expr::Input(1));
        let made = match self.rng.below(18) {
            0 => self.g.apply1(Map::scale(-0.7), &[a])?,
            1 => self.g.add(a, b)?,
            2 => self.g.apply1(Map { expr: Expr::binary(Binary::Mul, Expr::Input(0), sigmoid) }, &[a, b])?,
            3 => self.g.apply1(Map::swiglu(), &[a, b])?,
            4 => self.g.sum_to(a, &TensorType::f32([D]))?,
            5 => self.linear(a, true)?,
            6 => self.linear(a, false)?,
            // A residual sum, a bias, and a scaled operand: what products take as epilogue and prologue.
            7 => {
                let y = self.linear(a, true)?;
                let b = self.like(y);
                self.g.add(y, b)?
            }
            8 => {
                let scaled = self.g.apply1(Map::scale(0.5), &[a])?;
                self.linear(scaled, false)?
            }
            9 => {
                let a = self.matrix(a)?;
                let square = self.g.apply1(MatMul::new(true, false), &[a, a])?;
                self.g.apply1(Map::scale(1.0 / rows as f32), &[square])?
            }
            10 => {
                let a = self.matrix(a)?;
                self.g.apply(RmsNorm { eps: 1e-2 }, &[a, self.gain])?[0]
            }
            11 if rows > 1 => {
                // Parts begin at multiples of 64 elements: sixteen rows.
                let start = if rows > 17 { 16 * self.rng.below(2) } else { 0 };
                let count = 1 + self.rng.below(rows - start - 1);
                self.g.apply1(Slice { start: start * D, shape: [count, D].into() }, &[a])?
            }
            12 if rows + self.g.ty(b).shape.elements() / D <= MOST_ROWS => {
                // With a gap between, which nobody may read.
                let (n, m) = (rows * D, self.g.ty(b).shape.elements());
                let second = (n + 1).next_multiple_of(64);
                let all = self.g.apply1(Concat { starts: vec![0, second], elements: second + m }, &[a, b])?;
                let part = self.g.apply1(Slice { start: second, shape: [m / D, D].into() }, &[all])?;
                self.pool.push(part);
                self.g.apply1(Slice { start: 0, shape: [rows, D].into() }, &[all])?
            }
            13..=15 if self.writes && rows <= MOST_ROWS - 20 => {
                // What is written must not lie in what is written to, so a value of its own.
                let own = self.g.apply1(Map::scale(0.25), &[a])?;
                let own = self.g.reshape(own, [1, rows, 1, D])?;
                let [keys, values] = self.caches;
                let flat = self.g.reshape(self.caches[self.rng.below(2)], [MOST_ROWS * D])?;
                let start = 16 * self.rng.below(3) * D;
                let part = self.g.apply1(Slice { start, shape: [9, D].into() }, &[flat])?;
                // A part of the cache as it was, wanted later; and the part itself, which is what it will be then.
                let before = self.g.apply1(Map::scale(0.3), &[part])?;
                self.g.apply(CacheWrite, &[own, own, keys, values, self.position])?;
                self.pool.push(part);
                before
            }
            // Products of one row, normed or not, with weights that adjoin or not: what becomes one product.
            16 | 17 => {
                let mut row = self.g.apply1(Slice { start: 0, shape: [1, D].into() }, &[a])?;
                if self.rng.below(2) == 0 {
                    row = self.g.apply(RmsNorm { eps: 1e-2 }, &[row, self.gain])?[0];
                }
                let mut parts = Vec::new();
                for _ in 0..3 {
                    let slice = Slice { start: 64 * D * self.rng.below(3).max(parts.len()), shape: [64, D].into() };
                    let weight = self.g.apply1(slice, &[self.trio[0]])?;
                    parts.push(self.g.apply1(MatMul::linear(), &[row, weight])?);
                }
                let product = self.g.mul(parts[0], parts[1])?;
                let gated = self.g.apply1(Map::swiglu(), &[product, parts[2]])?;
                self.g.apply1(MatMul::linear(), &[gated, self.trio[1]])?
            }
            _ => {
                let ids: Vec<u8> = (0..5).flat_map(|_| (self.rng.below(rows) as u32).to_le_bytes()).collect();
                let ids = self.g.constant("ids", TensorType::u32([5]), ids);
                let a = self.matrix(a)?;
                self.g.apply1(Embedding, &[a, ids])?
            }
        };
        self.pool.push(made);
        Ok(())
    }

    fn finish(mut self) -> Result<Graph> {
        let last = self.pool[self.pool.len() - 1];
        if !self.writes {
            let y = self.matrix(last)?;
            let y = self.linear(y, true)?;
            let gated = self.g.apply1(Map::swiglu(), &[y, y])?;
            let loss = self.g.sum_to(gated, &TensorType::f32([1]))?;
            let weight = gradients(&mut self.g, loss, &[self.weight])?[0];
            self.g.output("loss", loss);
            self.g.output("grad.weight", weight);
        }
        for k in 0..2 {
            let drawn = self.pick();
            self.g.output(&format!("drawn{k}"), drawn);
        }
        self.g.output("last", last);
        Ok(self.g)
    }
}

fn graph(seed: u64) -> Result<Graph> {
    let mut draft = Draft::new(seed);
    for _ in 0..4 + draft.rng.below(14) {
        draft.grow()?;
    }
    draft.finish()
}

/// Narrower than any device: more buffers, more dispatches, fewer operands that may be fused.
fn limits(of: &Limits, rng: &mut Rng) -> Limits {
    Limits {
        max_storage_bindings: 5 + rng.below(4) as u32,
        max_binding_bytes: [4096, 8192, of.max_binding_bytes][rng.below(3)].min(of.max_binding_bytes),
        max_buffer_bytes: [32 << 10, 64 << 10, of.max_buffer_bytes][rng.below(3)].min(of.max_buffer_bytes),
        ..of.clone()
    }
}

fn sources(g: &Graph, seed: u64) -> Sources {
    let fill = |name: &str, ty: &TensorType| {
        let mut rng = Rng::named(seed, name);
        let draw = |_| match ty.dtype {
            DType::F32 => f64::from(((rng.uniform() - 0.5) * if SMALL.contains(&name) { 0.6 } else { 2.0 }) as f32),
            _ => rng.below(20) as f64,
        };
        Array::new(ty.clone(), (0..ty.shape.elements()).map(draw).collect())
    };
    let given = g.nodes().iter().filter(|n| matches!(n.kind, Kind::Input | Kind::State));
    given.map(|n| (n.name.clone(), fill(&n.name, &n.outputs[0]))).collect()
}

fn is_state(g: &Graph, name: &str) -> Option<Value> {
    let at = g.nodes().iter().position(|n| n.name == name && matches!(n.kind, Kind::State))?;
    Some(Value { node: NodeId(at as u32), output: 0 })
}

/// Outputs, and states after the run.
fn interpret(g: &Graph, sources: &Sources, noise: Option<&mut Noise>) -> Numbers {
    let run = Interpreter::run_with(g, sources, noise);
    let outputs = g.outputs().iter().map(|(name, value)| (name.clone(), *value));
    let states = sources.keys().filter_map(|name| Some((name.clone(), is_state(g, name)?)));
    outputs.chain(states).map(|(name, value)| (name, run.get(value).data)).collect()
}

fn check(gpu: &danlu::gpu::Gpu, seed: u64) -> f64 {
    let g = graph(seed).expect("a legal graph");
    let mut rng = Rng::new(seed, 1);
    let limits = limits(gpu.limits(), &mut rng);
    let plan = compile(&g, &limits, &mut Any(rng)).unwrap_or_else(|e| panic!("{e}\n{g}"));
    let mut states = States::new(gpu);
    let mut run = block_on(Executor::new(gpu, &plan, &mut states)).unwrap();
    let mut sources = sources(&g, seed);
    // The second run goes over what the first left behind.
    let mut worst = 0.0f64;
    for round in 0..2 {
        let mut spread = Spread::new(|noise| interpret(&g, &sources, noise));
        for (name, array) in &sources {
            if is_state(&g, name).is_none() {
                run.set(name, &array.to_bytes()).unwrap();
            } else if round == 0 && states.contains(name) {
                block_on(states.write(name, 0, &array.to_bytes())).unwrap();
            }
        }
        let outputs = block_on(run.run()).unwrap();
        let mut got: Numbers = Numbers::new();
        for (name, _) in g.outputs() {
            got.insert(name.clone(), f32s(&outputs, name).into_iter().map(f64::from).collect());
        }
        for (name, array) in &mut sources {
            if is_state(&g, name).is_some() && states.contains(name) {
                *array = Array::from_bytes(array.ty.clone(), &block_on(states.read(name)).unwrap());
                got.insert(name.clone(), array.data.clone());
            }
        }
        for (name, got) in &got {
            let exact = spread.exact[name].clone();
            spread.check(name, got, &exact, 0.0);
        }
        worst = worst.max(spread.worst.0);
    }
    worst
}

#[test]
fn random_graphs_give_their_references_numbers() {
    let gpu = common::gpu();
    let mut worst = 0.0f64;
    for seed in 0..GRAPHS {
        match catch_unwind(AssertUnwindSafe(|| check(&gpu, seed))) {
            Ok(share) => worst = worst.max(share),
            Err(_) => panic!("seed {seed}:\n{}", graph(seed).expect("a legal graph")),
        }
    }
    println!("{GRAPHS} graphs: worst {worst:.3} of its bar");
}
