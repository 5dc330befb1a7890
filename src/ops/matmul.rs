//! Matrix multiplication. M rows, N columns, K the dim that is summed.

use super::matmul_kernels::most_flops;
use super::{Operands, weight};
use crate::base::{Array, DType, Limits, Shape, TensorType};
use crate::error::Result;
use crate::graph::{Cost, Graph, Io, Kernel, Op, OpNode, Value};
use std::borrow::Cow;
use std::sync::Arc;

/// C = op(A) · op(B) over the last two dims; A and C are f32, A of a product that rounds to f16 perhaps in f16 already, and B has any
/// dtype of weights. A is `[.., M,K]`, or `[.., K,M]` with `transpose_a`; B is `[.., K,N]`,
/// or `[.., N,K]` with `transpose_b`; C is `[.., M,N]`. Leading dims are equal and make a batch; but where B has two
/// dims and A more, they fold into M: with `transpose_b` that is the linear layer, `[B,T,K]` by `[N,K]` to `[B,T,N]`.
/// B's rows as stored are whole blocks of its dtype; no gradient flows into a B that is not f32.
#[derive(Debug, Clone, PartialEq)]
pub struct MatMul {
    /// A is stored `[.., K,M]`.
    pub transpose_a: bool,
    /// B is stored `[.., N,K]`.
    pub transpose_b: bool,
    /// What A and B are rounded to as they are loaded; gradients are products of the same kind.
    pub operands: Operands,
}

/// The sizes of one product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sizes {
    pub(super) batch: usize,
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) k: usize,
}

impl MatMul {
    /// The product in strict f32.
    pub const fn new(transpose_a: bool, transpose_b: bool) -> Self {
        MatMul { transpose_a, transpose_b, operands: Operands::F32 }
    }

    /// The same product with its operands rounded so.
    pub const fn with(self, operands: Operands) -> Self {
        MatMul { operands, ..self }
    }

    /// op(A) as it stands, op(B) transposed: x `[.., K]` by W `[N,K]`, the linear layer.
    pub const fn linear() -> Self {
        MatMul::new(false, true)
    }

    /// A is f32, or in f16 where it would be rounded to that.
    pub(super) fn takes_a(&self, dtype: DType) -> bool {
        dtype == DType::F32 || dtype == DType::F16 && self.operands.are_half()
    }

    fn folds(a: &Shape, b: &Shape) -> bool {
        b.rank() == 2 && a.rank() > 2
    }

    /// Sizes and the shape of C, or what is wrong.
    fn sizes(&self, a: &TensorType, b: &TensorType) -> Result<(Sizes, Vec<usize>), String> {
        if !self.takes_a(a.dtype) || a.shape.rank() < 2 || b.shape.rank() < 2 {
            return Err("a must be f32, and a and b have two dims or more".into());
        }
        weight::check("b", b)?;
        let swap = |t: &TensorType, on: bool| {
            let (outer, inner) = t.shape.dims().split_at(t.shape.rank() - 2);
            let (r, c) = (inner[0], inner[1]);
            (outer.to_vec(), if on { (c, r) } else { (r, c) })
        };
        let (mut lead, (mut m, k)) = swap(a, self.transpose_a);
        let (lead_b, (k_b, n)) = swap(b, self.transpose_b);
        if k != k_b {
            return Err(format!("the summed dims differ: {k} in a, {k_b} in b"));
        }
        let mut dims = lead.clone();
        dims.extend([m, n]);
        if Self::folds(&a.shape, &b.shape) {
            if self.transpose_a {
                return Err("a transposed batch cannot fold into rows: reshape a to two dims first".into());
            }
            m *= lead.iter().product::<usize>();
            lead = Vec::new();
        }
        if lead != lead_b {
            return Err(format!("the leading dims differ: {lead:?} in a, {lead_b:?} in b"));
        }
        Ok((Sizes { batch: lead.iter().product(), m, n, k }, dims))
    }

    pub(super) fn io_sizes(&self, io: &Io) -> Sizes {
        self.sizes(&io.inputs[0], &io.inputs[1]).expect("checked when the node was made").0
    }
}

impl Op for MatMul {
    fn name(&self) -> &'static str {
        "matmul"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [a, b] = inputs else { return Err("takes two inputs: a and b".into()) };
        let (s, dims) = self.sizes(a, b)?;
        if s.batch * s.m * s.n * s.k == 0 {
            return Err("every size must be positive".into());
        }
        Ok(vec![TensorType::f32(dims)])
    }

    fn gradient(&self, g: &mut Graph, node: &OpNode, dy: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        let Some(dy) = dy[0] else { return Ok(vec![None, None]) };
        let (a, b) = (node.inputs[0], node.inputs[1]);
        let mut product = |x, ta, y, tb| g.apply1(MatMul::new(ta, tb).with(self.operands), &[x, y]);
        let (ta, tb) = (self.transpose_a, self.transpose_b);
        // op(A)' = dC · op(B)' transposed, and A's own layout decides which side it stands on; the same for B.
        let da = if ta { product(b, tb, dy, true)? } else { product(dy, false, b, !tb)? };
        if g.ty(b).dtype.is_packed() {
            return Ok(vec![Some(da), None]);
        }
        let (rows_a, rows_dy) = if Self::folds(&g.ty(a).shape, &g.ty(b).shape) {
            let flat = |g: &mut Graph, v: Value| {
                let shape = g.ty(v).shape.clone();
                g.reshape(v, [shape.rows(), shape.last()])
            };
            (flat(g, a)?, flat(g, dy)?)
        } else {
            (a, dy)
        };
        let mut product = |x, ta, y, tb| g.apply1(MatMul::new(ta, tb).with(self.operands), &[x, y]);
        let db = if tb { product(rows_dy, true, rows_a, ta)? } else { product(rows_a, !ta, rows_dy, false)? };
        Ok(vec![Some(da), Some(db)])
    }

    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        let tiers = self.tiers(io, limits);
        tiers.into_iter().filter_map(|tier| self.kernel(tier, io, limits, most_flops(limits))).collect()
    }

    fn scratch(&self, io: &Io, limits: &Limits) -> u64 {
        // A CPU's sums are never split.
        if limits.is_cpu { 0 } else { self.split_bytes(io, limits) }
    }

    fn cost(&self, io: &Io) -> Cost {
        let s = self.io_sizes(io);
        Cost { flops: 2 * (s.batch * s.m * s.n) as u64 * s.k as u64, bytes: io.bytes() }
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let (a, b) = (self.operands.rounded(&inputs[0]), self.operands.rounded(&inputs[1]));
        let (s, dims) = self.sizes(&a.ty, &b.ty).expect("checked when the node was made");
        let mut c = Array::zeros(dims);
        for z in 0..s.batch {
            // What is multiplied lies side by side.
            let a = lines(&a.data[z * s.m * s.k..][..s.m * s.k], s.k, self.transpose_a);
            let b = lines(&b.data[z * s.k * s.n..][..s.k * s.n], s.k, !self.transpose_b);
            let pairs = a.chunks(s.k).flat_map(|row| b.chunks(s.k).map(move |column| (row, column)));
            for (c, (row, column)) in c.data[z * s.m * s.n..].iter_mut().zip(pairs) {
                *c = row.iter().zip(column).map(|(a, b)| a * b).sum();
            }
        }
        vec![c]
    }

    fn narrow(&self) -> Option<Arc<dyn Op>> {
        Some(Arc::new(self.clone().with(Operands::F16)))
    }

    fn prologue(&self) -> Option<usize> {
        Some(0)
    }

    fn epilogue(&self) -> bool {
        true
    }

    /// On a GPU that computes in f16: what a CPU has stored it reads from a cache, where decoding is what takes time.
    fn half_inputs(&self, _io: &Io, limits: &Limits) -> Vec<usize> {
        let takes = self.operands.are_half() && limits.has_f16 && !limits.is_cpu;
        if takes { vec![0, 1] } else { Vec::new() }
    }

    /// Where each sum is made by one dispatch, as it is if every operand fits a binding.
    fn half_outputs(&self, io: &Io, limits: &Limits) -> Vec<usize> {
        let fits = io.inputs.iter().all(|ty| ty.bytes() <= limits.max_binding_bytes);
        if fits && !self.half_inputs(io, limits).is_empty() { vec![0] } else { Vec::new() }
    }

    /// For GPUs: what a CPU has stored it reads from a cache, and its kernels keep to one result.
    fn second(&self, io: &Io, limits: &Limits) -> bool {
        !limits.is_cpu && self.few_rows(io, limits).is_empty()
    }

    fn reduction(&self, io: &Io) -> usize {
        self.io_sizes(io).k
    }
}

/// A matrix as lines of `k` elements each; `crossed` says that it has them as columns.
fn lines(matrix: &[f64], k: usize, crossed: bool) -> Cow<'_, [f64]> {
    let n = matrix.len() / k;
    if crossed { (0..matrix.len()).map(|i| matrix[i % k * n + i / k]).collect() } else { Cow::Borrowed(matrix) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On a GPU no dispatch computes for seconds, whichever kernel makes it; together they make the whole product.
    #[test]
    fn long_products_are_cut() {
        let limits = Limits { max_binding_bytes: 2 << 30, ..Limits::default() };
        let cut = |[batch, m, n, k]: [usize; 4], limits: &Limits| {
            let op = MatMul::new(false, true);
            let inputs = vec![TensorType::f32([batch, m, k]), TensorType::f32([batch, n, k])];
            let io = Io { outputs: op.infer(&[&inputs[0], &inputs[1]]).unwrap(), inputs };
            let counts = op.kernels(&io, limits).into_iter().map(|kernel| {
                assert!(kernel.flops >= op.cost(&io).flops, "{}: {}", kernel.variant, kernel.flops);
                kernel.dispatches.len()
            });
            counts.collect::<Vec<_>>()
        };
        assert!(cut([1, 8192, 2048, 2048], &limits).iter().all(|&n| n == 1));
        // 1.1 and 0.7 million million operations.
        assert!(cut([1, 8192, 8192, 8192], &limits).iter().all(|&n| n >= 6));
        assert!(cut([40, 2048, 2048, 2048], &limits).iter().all(|&n| n >= 4));
        assert!(cut([1, 8192, 8192, 8192], &Limits { is_cpu: true, ..limits.clone() }).iter().all(|&n| n == 1));
    }

    /// Rounding has no derivative, so its gradients are by definition: those of the product, by products of its own kind.
    #[test]
    fn gradients_of_a_product_of_halves_are_products_of_halves() {
        for operands in [Operands::F32, Operands::F16] {
            for (ta, tb) in [(false, true), (true, false), (false, false), (true, true)] {
                let mut g = Graph::new();
                let (a, b) = (g.input("a", TensorType::f32([4, 4])), g.input("b", TensorType::f32([4, 4])));
                let c = g.apply(MatMul::new(ta, tb).with(operands), &[a, b]).unwrap()[0];
                let node = g.op_node(c.node);
                let op = g.node(c.node).op().unwrap().clone();
                let dy = g.input("dy", TensorType::f32([4, 4]));
                op.gradient(&mut g, &node, &[Some(dy)]).unwrap();
                let products = g.nodes().iter().filter_map(|n| n.op()).map(|op| format!("{op:?}"));
                let wanted = format!("operands: {operands:?}");
                let all: Vec<String> = products.collect();
                assert!(all.len() == 3 && all.iter().all(|op| op.contains(&wanted)), "{all:?}");
            }
        }
    }
}
