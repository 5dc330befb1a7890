//! The table of operators: one row a case. It serves the operator tests, the shader-translation test and the doctor's
//! self-test; a new operator adds rows here and is then tested forward, backward and on every adapter.

use super::{
    Embedding, EmbeddingGrad, EmbeddingPart, MatMul, NormMatMul, Operands, PanelMatMul, Panelled, RmsNorm, RmsNormGrad,
    Rope,
};
use crate::base::{Array, DType, Limits, Rng, TensorType, packed};
use crate::error::Result;
use crate::graph::{Binary, Expr, Graph, Io, Kernel, Map, MapPair, Op, OpNode, SumRows, Value};
use std::sync::Arc;

/// How the elements of an input are drawn.
#[derive(Debug, Clone, PartialEq)]
pub enum Draw {
    /// Standard normal; for packed dtypes, random blocks.
    Normal,
    /// Uniform in 0.5 .. 1.5, for what must be positive.
    Positive,
    /// Pairs of a number above all scores of normal queries and keys, uniform in 5 .. 6, and a standard normal one: as
    /// attention's sums of exponentials are, so that what they divide is at most one.
    Statistics,
    /// Integers below this number: token ids, positions.
    Below(usize),
    /// Of rows as long as the last dimension: for each token where its document begins, of this many tokens on average.
    Starts(usize),
    /// These very numbers.
    Given(Vec<f64>),
}

/// One row: an operator, and inputs to try it on.
#[derive(Debug, Clone)]
pub struct Case {
    /// The operator's name and what is special here.
    pub label: String,
    /// The operator.
    pub op: Arc<dyn Op>,
    /// Types of the inputs and how they are drawn.
    pub inputs: Vec<(TensorType, Draw)>,
    /// Inputs towards which the gradient of output 0 is checked against differences.
    pub wrt: Vec<usize>,
}

impl Case {
    /// A row without a gradient.
    pub fn new(note: &str, op: impl Op, inputs: &[(TensorType, Draw)]) -> Self {
        let label = if note.is_empty() { op.name().to_string() } else { format!("{} {note}", op.name()) };
        Case { label, op: Arc::new(op), inputs: inputs.to_vec(), wrt: Vec::new() }
    }

    /// Sets the inputs towards which the gradient is checked.
    pub fn wrt(mut self, wrt: &[usize]) -> Self {
        self.wrt = wrt.to_vec();
        self
    }

    /// Types of inputs and outputs.
    ///
    /// # Errors
    /// The operator's words if it refuses the inputs.
    pub fn io(&self) -> Result<Io, String> {
        let inputs: Vec<TensorType> = self.inputs.iter().map(|(ty, _)| ty.clone()).collect();
        let outputs = self.op.infer(&inputs.iter().collect::<Vec<_>>())?;
        Ok(Io { inputs, outputs })
    }

    /// True where nothing but an adapter that computes in f16 has kernels: activations or results are in it.
    ///
    /// # Errors
    /// As for [`Case::io`].
    pub fn wants_f16(&self) -> Result<bool, String> {
        let io = self.io()?;
        let in_f16 = |ty: Option<&TensorType>| ty.is_some_and(|ty| ty.dtype == DType::F16);
        let is_product = ["matmul", "panel_matmul"].contains(&self.op.name());
        Ok(is_product && in_f16(io.inputs.first()) || io.outputs.iter().any(|ty| in_f16(Some(ty))))
    }

    /// The kernels that compute it under these limits.
    ///
    /// # Errors
    /// As for [`Case::io`].
    pub fn kernels(&self, limits: &Limits) -> Result<Vec<Kernel>, String> {
        Ok(self.op.kernels(&self.io()?, limits))
    }

    /// The row's operator in a graph of its own, and in the same graph what it expands to, if it does: the values of the
    /// one and of the other.
    ///
    /// # Errors
    /// As [`Graph::apply`].
    pub fn expand(&self) -> Result<(Graph, Option<[Vec<Value>; 2]>)> {
        let mut g = Graph::new();
        let inputs: Vec<Value> =
            self.inputs.iter().enumerate().map(|(i, (ty, _))| g.input(&format!("x{i}"), ty.clone())).collect();
        let outputs = g.apply_arc(self.op.clone(), &inputs)?;
        let expanded = self.op.expand(&mut g, &OpNode { inputs, outputs: outputs.clone() })?;
        Ok((g, expanded.map(|values| [outputs, values])))
    }

    /// The inputs of one seed, each number exact in its dtype.
    pub fn draw(&self, seed: u64) -> Vec<Array> {
        let draw = |(k, (ty, how)): (usize, &(TensorType, Draw))| {
            let mut rng = Rng::new(seed, k as u64);
            if ty.dtype.is_packed() {
                return Array::from_bytes(ty.clone(), &packed::random(ty.dtype, ty.shape.elements(), &mut rng));
            }
            let (length, mut start) = (ty.shape.last(), 0);
            let mut one = |i: usize| match how {
                Draw::Normal => rng.normal() as f32 as f64,
                Draw::Positive => (0.5 + rng.uniform()) as f32 as f64,
                Draw::Statistics if i.is_multiple_of(2) => (5.0 + rng.uniform()) as f32 as f64,
                Draw::Statistics => rng.normal() as f32 as f64,
                Draw::Below(n) => rng.below(*n) as f64,
                Draw::Starts(tokens) => {
                    if i.is_multiple_of(length) || rng.below(*tokens) == 0 {
                        start = i % length;
                    }
                    start as f64
                }
                Draw::Given(values) => values[i],
            };
            Array::new(ty.clone(), (0..ty.shape.elements()).map(&mut one).collect())
        };
        self.inputs.iter().enumerate().map(draw).collect()
    }
}

/// An f32 input drawn from the standard normal.
pub fn normal<const N: usize>(dims: [usize; N]) -> (TensorType, Draw) {
    (TensorType::f32(dims), Draw::Normal)
}

/// An f32 input of positive numbers.
pub fn positive<const N: usize>(dims: [usize; N]) -> (TensorType, Draw) {
    (TensorType::f32(dims), Draw::Positive)
}

/// A u32 input of numbers below `n`.
pub fn below<const N: usize>(dims: [usize; N], n: usize) -> (TensorType, Draw) {
    (TensorType::u32(dims), Draw::Below(n))
}

/// Every row.
pub fn table() -> Vec<Case> {
    let own = [elementwise(), matmul(), panels(), norm(), position(), embedding()].concat();
    let others = [
        super::table_weights::rows(),
        super::table_halves::rows(),
        super::table_training::rows(),
        super::table_experts::rows(),
        super::table_attention::rows(),
    ]
    .concat();
    [own, others].concat()
}

fn elementwise() -> Vec<Case> {
    let affine = Expr::binary(Binary::Sub, Expr::binary(Binary::Mul, Expr::Input(0), Expr::Input(1)), Expr::Input(2));
    let product = Expr::binary(Binary::Mul, Expr::Input(1), Expr::Input(0));
    let pair = || MapPair { exprs: [affine.substitute(&|i| Expr::Input(i % 2)), product.clone()] };
    vec![
        Case::new("swiglu", Map::swiglu(), &[normal([3, 7, 11]), normal([3, 7, 11])]).wrt(&[0, 1]),
        Case::new("", pair(), &[normal([3, 7, 11]), normal([11])]),
        Case::new("vectors", pair(), &[normal([300, 12]), normal([12])]),
        Case::new("scale", Map::scale(0.3), &[normal([129])]).wrt(&[0]),
        Case::new("gain, scalar", Map { expr: affine.clone() }, &[normal([6, 5]), normal([5]), normal([1])])
            .wrt(&[0, 1, 2]),
        Case::new("", SumRows { shape: [9].into(), rows_per_part: 13 }, &[normal([13, 9])]).wrt(&[0]),
        Case::new("parts", SumRows { shape: [3, 70].into(), rows_per_part: 5 }, &[normal([13, 70])]),
        Case::new("many parts", SumRows { shape: [40, 64].into(), rows_per_part: 8 }, &[normal([317, 64])]),
        Case::new("shares", SumRows { shape: [2, 41].into(), rows_per_part: 75 }, &[normal([137, 41])]),
    ]
}

fn matmul() -> Vec<Case> {
    let op = MatMul::new;
    let half = |transpose_a, transpose_b| op(transpose_a, transpose_b).with(Operands::F16);
    vec![
        Case::new("nn", op(false, false), &[normal([13, 19]), normal([19, 23])]).wrt(&[0, 1]),
        Case::new("nt", op(false, true), &[normal([13, 19]), normal([23, 19])]).wrt(&[0, 1]),
        Case::new("tn", op(true, false), &[normal([19, 13]), normal([19, 23])]).wrt(&[0, 1]),
        Case::new("tt", op(true, true), &[normal([19, 13]), normal([23, 19])]).wrt(&[0, 1]),
        Case::new("linear", op(false, true), &[normal([2, 5, 12]), normal([20, 12])]).wrt(&[0, 1]),
        Case::new("batched", op(false, true), &[normal([2, 3, 5, 7]), normal([2, 3, 9, 7])]).wrt(&[0, 1]),
        Case::new("batched tn", op(true, false), &[normal([3, 4, 6]), normal([3, 4, 10])]).wrt(&[0, 1]),
        Case::new("one row", op(false, true), &[normal([1, 64]), normal([48, 64])]),
        Case::new("eight rows", op(false, true), &[normal([7, 264]), normal([38, 264])]),
        Case::new("nn even", op(false, false), &[normal([64, 96]), normal([96, 128])]),
        Case::new("nt even", op(false, true), &[normal([64, 96]), normal([128, 96])]),
        Case::new("tn even", op(true, false), &[normal([96, 64]), normal([96, 128])]),
        Case::new("nt odd", op(false, true), &[normal([67, 131]), normal([70, 131])]),
        Case::new("tn odd", op(true, false), &[normal([131, 67]), normal([131, 70])]),
        Case::new("nn odd", op(false, false), &[normal([67, 131]), normal([131, 70])]),
        // For larger tiles, and sums that are split.
        Case::new("nt large", op(false, true), &[normal([132, 136]), normal([140, 136])]),
        Case::new("tn large", op(true, false), &[normal([200, 132]), normal([200, 140])]),
        Case::new("nn long", op(false, false), &[normal([7, 333]), normal([333, 45])]),
        // For the kernel of a CPU that keeps a part of b: sums and rows of c that end within a tile.
        Case::new("nn many", op(false, false), &[normal([52, 212]), normal([212, 208])]),
        Case::new("batched many", op(false, true), &[normal([3, 52, 116]), normal([3, 132, 116])]),
        Case::new("half tt many", half(true, true), &[normal([132, 132]), normal([136, 132])]),
        // Rounding is no smooth function, so gradients are what `ops::matmul` tests say they are.
        Case::new("half nt", half(false, true), &[normal([13, 19]), normal([23, 19])]),
        Case::new("half tt", half(true, true), &[normal([19, 13]), normal([23, 19])]),
        Case::new("half linear", half(false, true), &[normal([2, 5, 12]), normal([20, 12])]),
        Case::new("half batched tn", half(true, false), &[normal([3, 4, 6]), normal([3, 4, 10])]),
        Case::new("half nn even", half(false, false), &[normal([64, 96]), normal([96, 128])]),
        Case::new("half tn even", half(true, false), &[normal([96, 64]), normal([96, 128])]),
        Case::new("half nt odd", half(false, true), &[normal([67, 131]), normal([70, 131])]),
        Case::new("half tn odd", half(true, false), &[normal([131, 67]), normal([131, 70])]),
        Case::new("half tt odd", half(true, true), &[normal([131, 67]), normal([70, 131])]),
        // More than one band of tiles, the last of few rows; sums that end within a step.
        Case::new("half nt tall", half(false, true), &[normal([650, 44]), normal([132, 44])]),
        Case::new("half tn batched", half(true, false), &[normal([2, 100, 72]), normal([2, 100, 68])]),
        Case::new("half nn odd", half(false, false), &[normal([67, 131]), normal([131, 70])]),
    ]
}

fn panels() -> Vec<Case> {
    let half = |product: MatMul| product.with(Operands::F16);
    let in_c = |product, widths: &[usize]| PanelMatMul::linear(product, widths.to_vec());
    let in_a = |transpose_a, widths: &[usize]| PanelMatMul {
        product: MatMul::new(transpose_a, false),
        panelled: Panelled::A,
        widths: widths.to_vec(),
    };
    let narrow = |op: PanelMatMul| PanelMatMul { product: half(op.product), ..op };
    let (layers, x) = (in_c(MatMul::linear(), &[128, 64, 64]), normal([2, 35, 36]));
    let (input, weights) = (in_a(false, &[64, 128]), in_a(true, &[64, 128, 64]));
    vec![
        Case::new("layers", layers.clone(), &[x.clone(), normal([256, 36])]),
        Case::new("layers, odd", in_c(MatMul::linear(), &[64, 128]), &[normal([33, 19]), normal([192, 19])]),
        Case::new("layers, few rows", layers.clone(), &[normal([2, 1, 36]), normal([256, 36])]),
        // So many columns that a GPU's lanes walk along two rows of b.
        Case::new(
            "layers, one row of many",
            in_c(MatMul::linear(), &[4096, 4160]),
            &[normal([1, 132]), normal([8256, 132])],
        ),
        Case::new("layers, half", narrow(layers), &[x, normal([256, 36])]),
        Case::new("input", input.clone(), &[normal([70 * 192]), normal([192, 40])]),
        Case::new("input, half", narrow(input), &[normal([70 * 192]), normal([192, 40])]),
        Case::new("weights", weights.clone(), &[normal([37 * 256]), normal([37, 44])]),
        Case::new("layers many", in_c(MatMul::linear(), &[256, 192, 64]), &[normal([52, 84]), normal([512, 84])]),
        Case::new("input many", in_a(false, &[320, 192]), &[normal([52 * 512]), normal([512, 84])]),
        Case::new("weights many", in_a(true, &[320, 192]), &[normal([52 * 512]), normal([52, 84])]),
        Case::new("weights, half", narrow(weights), &[normal([37 * 256]), normal([37, 44])]),
    ]
}

fn norm() -> Vec<Case> {
    let eps = 1e-5;
    let to_panels = NormMatMul { eps, widths: vec![64, 128] };
    let grad_of = |note, parts, rows_per_part, rows, d| {
        let inputs = [normal([rows, d]), normal([d]), positive([rows]), normal([rows, d])];
        Case::new(note, RmsNormGrad { rows_per_part, parts }, &inputs)
    };
    let grad = |note, rows_per_part, rows, d| grad_of(note, true, rows_per_part, rows, d);
    vec![
        Case::new("", RmsNorm { eps }, &[normal([2, 3, 17]), normal([17])]).wrt(&[0, 1]),
        Case::new("narrow", RmsNorm { eps }, &[normal([7, 48]), normal([48])]),
        Case::new("wide", RmsNorm { eps }, &[normal([5, 576]), normal([576])]),
        Case::new("wider", RmsNorm { eps }, &[normal([3, 959]), normal([959])]),
        Case::new("one row", NormMatMul::new(eps), &[normal([1, 1, 64]), normal([64]), normal([48, 64])]),
        Case::new("rows", NormMatMul::new(1.0), &[normal([2, 68]), normal([68]), normal([37, 68])]),
        Case::new("long rows", NormMatMul::new(eps), &[normal([1, 2, 600]), normal([600]), normal([9, 600])]),
        Case::new("one row of many", NormMatMul::new(eps), &[normal([1, 68]), normal([68]), normal([8193, 68])]),
        Case::new("to panels", to_panels, &[normal([2, 1, 68]), normal([68]), normal([192, 68])]),
        grad("", 4, 6, 17),
        // Of a part as many rows as a workgroup takes at a time and some, and as many lanes as there are items and fewer.
        grad("narrow", 20, 67, 48),
        grad("wide", 8, 69, 576),
        grad("wider", 4, 39, 959),
        grad("one part", 80, 9, 100),
        grad_of("frozen", false, 8, 69, 48),
        grad_of("frozen wider", false, 4, 39, 959),
    ]
}

fn position() -> Vec<Case> {
    let (turns, inverse) = (Rope { inverse: false }, Rope { inverse: true });
    // Three pairs, of frequencies as usual; `factor` is what YaRN scales cosines and sines by.
    let table = |pairs: usize, factor: f64| {
        let inverse: Vec<f64> = (0..pairs).map(|i| 0.2f64.powi(i as i32)).collect();
        let angles = super::rope_table(&inverse, factor, 9).into_iter().map(f64::from).collect();
        (TensorType::f32([9, pairs, 2]), Draw::Given(angles))
    };
    let at = |p: usize| (TensorType::u32([1]), Draw::Given(vec![p as f64]));
    let each = (TensorType::u32([2]), Draw::Given(vec![3.0, 1.0]));
    let documents = (TensorType::u32([2, 9]), Draw::Starts(4));
    let both = |[b, t, h, c]: [usize; 4], k: usize, table, at| [normal([b, t, h, c]), table, at, normal([b, t, k, c])];
    vec![
        Case::new("", turns.clone(), &[normal([2, 5, 3, 6]), table(3, 1.0), at(0)]).wrt(&[0]),
        Case::new("offset", turns.clone(), &[normal([1, 4, 2, 6]), table(3, 1.0), at(5)]).wrt(&[0]),
        Case::new("positions", turns.clone(), &[normal([2, 5, 3, 6]), table(3, 1.0), each.clone()]).wrt(&[0]),
        Case::new("wide", turns.clone(), &[normal([2, 9, 20, 6]), table(3, 1.0), at(0)]),
        Case::new("inverse", inverse.clone(), &[normal([2, 5, 3, 6]), table(3, 1.0), at(2)]).wrt(&[0]),
        Case::new("partial", turns.clone(), &[normal([2, 5, 3, 10]), table(3, 1.2), at(1)]).wrt(&[0]),
        Case::new("vectors", turns.clone(), &[normal([2, 5, 3, 16]), table(8, 1.0), at(1)]).wrt(&[0]),
        Case::new("partial vectors", turns.clone(), &[normal([2, 5, 3, 24]), table(8, 1.2), at(1)]).wrt(&[0]),
        Case::new("both", turns.clone(), &both([2, 5, 3, 10], 2, table(3, 1.2), each.clone())).wrt(&[0]),
        Case::new("both wide", turns.clone(), &both([2, 9, 20, 16], 4, table(8, 1.0), at(0))),
        Case::new("both, more of the other", inverse.clone(), &both([2, 9, 2, 16], 20, table(4, 1.0), at(0))),
        Case::new("documents", turns.clone(), &[normal([2, 9, 3, 6]), table(3, 1.0), documents.clone()]).wrt(&[0]),
        Case::new("both, documents", inverse.clone(), &both([2, 9, 20, 16], 4, table(8, 1.0), documents)).wrt(&[0]),
        Case::new("partial inverse", inverse, &[normal([1, 7, 2, 24]), table(4, 0.7), at(2)]).wrt(&[0]),
    ]
}

fn embedding() -> Vec<Case> {
    // Ids 5 and beyond are out of range: they must read and write nothing.
    vec![
        Case::new("", Embedding, &[normal([37, 10]), below([2, 9], 37)]).wrt(&[0]),
        Case::new("out of range", Embedding, &[normal([5, 7]), below([2, 9], 9)]).wrt(&[0]),
        Case::new("wide, out of range", Embedding, &[normal([37, 50]), below([33], 48)]),
        Case::new("", EmbeddingGrad { vocab: 5, first: 0 }, &[normal([2, 9, 7]), below([2, 9], 5)]),
        Case::new("wide, out of range", EmbeddingGrad { vocab: 40, first: 0 }, &[normal([33, 200]), below([33], 48)]),
        Case::new("rows", EmbeddingGrad { vocab: 20, first: 13 }, &[normal([33, 200]), below([33], 48)]),
        Case::new(
            "onto",
            EmbeddingGrad { vocab: 20, first: 13 },
            &[normal([33, 201]), below([33], 48), normal([20, 201])],
        ),
        Case::new(
            "onto, wide",
            EmbeddingGrad { vocab: 7, first: 0 },
            &[normal([33, 1100]), below([33], 7), normal([7, 1100])],
        ),
        Case::new("", EmbeddingPart { first: 7 }, &[normal([9, 10]), below([4, 11], 30)]).wrt(&[0]),
    ]
}
