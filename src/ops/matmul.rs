//! Matrix multiplication. M rows, N columns, K the dim that is summed.

use super::windows::{Window, ranges, rows_per_binding};
use crate::base::{Array, DType, Limits, Shape, TensorType};
use crate::error::Result;
use crate::graph::{Cost, Dispatch, Graph, Io, Kernel, Op, OpNode, Operand, Value};
use std::ops::Range;

/// C = op(A) · op(B) over the last two dims, f32. A is `[.., M,K]`, or `[.., K,M]` with `transpose_a`; B is `[.., K,N]`,
/// or `[.., N,K]` with `transpose_b`; C is `[.., M,N]`. Leading dims are equal and make a batch; but where B has two
/// dims and A more, they fold into M: with `transpose_b` that is the linear layer, `[B,T,K]` by `[N,K]` to `[B,T,N]`.
#[derive(Debug, Clone, PartialEq)]
pub struct MatMul {
    /// A is stored `[.., K,M]`.
    pub transpose_a: bool,
    /// B is stored `[.., N,K]`.
    pub transpose_b: bool,
}

/// The sizes of one product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sizes {
    batch: usize,
    m: usize,
    n: usize,
    k: usize,
}

/// A candidate's shader and the tile of C that one of its workgroups makes.
struct Tier {
    kernel: Kernel,
    tile: [usize; 2],
}

/// Columns of one lane of `matmul_rows.wgsl`, measured on lavapipe; VECTOR_B relies on its being 4.
const ROWS_COLUMNS: usize = 4;

impl MatMul {
    /// op(A) as it stands, op(B) transposed: x `[.., K]` by W `[N,K]`, the linear layer.
    pub fn linear() -> Self {
        MatMul { transpose_a: false, transpose_b: true }
    }

    fn folds(a: &Shape, b: &Shape) -> bool {
        b.rank() == 2 && a.rank() > 2
    }

    /// Sizes and the shape of C, or what is wrong.
    fn sizes(&self, a: &TensorType, b: &TensorType) -> Result<(Sizes, Vec<usize>), String> {
        if a.dtype != DType::F32 || b.dtype != DType::F32 || a.shape.rank() < 2 || b.shape.rank() < 2 {
            return Err("a and b must be f32 with two dims or more".into());
        }
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

    fn io_sizes(&self, io: &Io) -> Sizes {
        self.sizes(&io.inputs[0], &io.inputs[1]).expect("checked when the node was made").0
    }

    /// Candidates in the order in which they are expected to be fast.
    fn tiers(&self, s: Sizes, limits: &Limits) -> Vec<Tier> {
        let tile = |m: usize, n: usize| Tier {
            kernel: self
                .layout("matmul_tile", format!("tile_{m}x{n}"))
                .constant("TILE_M", m)
                .constant("TILE_N", n)
                .constant("TILE_K", 16),
            tile: [m, n],
        };
        let mut tiers = Vec::new();
        // The rows kernel hands values from lane to lane of a workgroup of eight, which must lie in one subgroup.
        if limits.is_cpu && limits.min_subgroup >= 8 {
            let groups = if s.m <= 8 { 1 } else { 2 };
            let vector_a = s.k.is_multiple_of(4) && (!self.transpose_a || s.m.is_multiple_of(4));
            let vector_b = if self.transpose_b { s.k.is_multiple_of(4) } else { s.n.is_multiple_of(4) };
            let kernel = self
                .layout("matmul_rows", format!("rows_{}x{ROWS_COLUMNS}", 8 * groups))
                .constant("GROUPS", groups)
                .constant("COLUMNS", ROWS_COLUMNS)
                .constant("VECTOR_A", usize::from(vector_a))
                .constant("VECTOR_B", usize::from(vector_b))
                .constant("TAIL", usize::from(!s.k.is_multiple_of(4)));
            tiers.push(Tier { kernel, tile: [8 * groups, 8 * ROWS_COLUMNS] });
        }
        tiers.extend(if limits.is_cpu { [tile(128, 64), tile(32, 32)] } else { [tile(64, 64), tile(32, 32)] });
        tiers
    }

    fn layout(&self, shader: &'static str, variant: String) -> Kernel {
        let flags = (usize::from(self.transpose_a), usize::from(self.transpose_b));
        Kernel::new(shader, variant).constant("TA", flags.0).constant("TB", flags.1)
    }

    /// The dispatches that cover the product, each within the limits.
    fn dispatches(&self, tier: Tier, io: &Io, limits: &Limits) -> Kernel {
        let s = self.io_sizes(io);
        let max = limits.max_workgroups as usize;
        // Operands are bound by stored rows: those of A are M or K, those of B K or N, those of C M.
        let fit = |rows, row| rows_per_binding(rows, row, limits);
        let (a_rows, a_row) = if self.transpose_a { (s.k, s.m) } else { (s.m, s.k) };
        let (b_rows, b_row) = if self.transpose_b { (s.n, s.k) } else { (s.k, s.n) };
        let (fit_a, fit_b, fit_c) = (fit(a_rows, a_row), fit(b_rows, b_row), fit(s.m, s.n));
        let mut step_m = fit_c.min(max * tier.tile[0]);
        let (mut step_n, mut step_k) = (s.n.min(max * tier.tile[1]), s.k);
        if self.transpose_a {
            step_k = step_k.min(fit_a);
        } else {
            step_m = step_m.min(fit_a);
        }
        if self.transpose_b {
            step_n = step_n.min(fit_b);
        } else {
            step_k = step_k.min(fit_b);
        }
        // Vector loads run along k, and along m of a transposed A, so only the last part may end within one.
        if step_k < s.k {
            step_k = (step_k / 4 * 4).max(4);
        }
        if step_m < s.m && self.transpose_a {
            step_m = (step_m / 4 * 4).max(4);
        }
        // A batch stays together where no matrix is cut; else one matrix at a time.
        let matrix = (a_rows * a_row).max(b_rows * b_row).max(s.m * s.n);
        let whole = (step_m, step_n, step_k) == (s.m, s.n, s.k);
        let step_batch = if whole { rows_per_binding(s.batch, matrix, limits).min(max) } else { 1 };
        let mut kernel = tier.kernel;
        for batch in ranges(s.batch, step_batch) {
            for m in ranges(s.m, step_m) {
                for n in ranges(s.n, step_n) {
                    for k in ranges(s.k, step_k) {
                        kernel = kernel.dispatch(self.part(s, [&batch, &m, &n, &k], tier.tile, limits));
                    }
                }
            }
        }
        kernel
    }

    /// One dispatch: these matrices, rows, columns, and this range of the sum.
    fn part(&self, s: Sizes, [batch, m, n, k]: [&Range<usize>; 4], tile: [usize; 2], limits: &Limits) -> Dispatch {
        let (a_rows, a_cols, a_row) = if self.transpose_a { (k, m, s.m) } else { (m, k, s.k) };
        let (b_rows, b_cols, b_row) = if self.transpose_b { (n, k, s.k) } else { (k, n, s.n) };
        let window = |rows: &Range<usize>, row: usize, matrix: usize| {
            let last = (batch.end - 1) * matrix;
            Window::new(batch.start * matrix + rows.start * row..last + rows.end * row, limits)
        };
        let a = window(a_rows, a_row, s.m * s.k);
        let b = window(b_rows, b_row, s.n * s.k);
        let c = window(m, s.n, s.m * s.n);
        let groups = [n.len().div_ceil(tile[1]), m.len().div_ceil(tile[0]), batch.len()];
        let mut d = Dispatch::new(groups.map(|x| x as u32))
            .param("m", m.len())
            .param("n", n.len())
            .param("k", k.len())
            .param("row_a", a_row)
            .param("row_b", b_row)
            .param("row_c", s.n)
            .param("batch_a", s.m * s.k)
            .param("batch_b", s.n * s.k)
            .param("batch_c", s.m * s.n)
            .param("skip_a", a.skip + a_cols.start)
            .param("skip_b", b.skip + b_cols.start)
            .param("skip_c", c.skip + n.start)
            .param("whole_a", a.start)
            .param("whole_c", c.start)
            .param("first", usize::from(k.start == 0))
            .param("last", usize::from(k.end == s.k));
        d = a.bind(d, "a", Operand::Input(0));
        d = b.bind(d, "b", Operand::Input(1));
        c.bind(d, "c", Operand::Output(0))
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
        let mut product = |x, transpose_a, y, transpose_b| g.apply1(MatMul { transpose_a, transpose_b }, &[x, y]);
        let (ta, tb) = (self.transpose_a, self.transpose_b);
        // op(A)' = dC · op(B)' transposed, and A's own layout decides which side it stands on; the same for B.
        let da = if ta { product(b, tb, dy, true)? } else { product(dy, false, b, !tb)? };
        let (rows_a, rows_dy) = if Self::folds(&g.ty(a).shape, &g.ty(b).shape) {
            let flat = |g: &mut Graph, v: Value| {
                let shape = g.ty(v).shape.clone();
                g.reshape(v, [shape.rows(), shape.last()])
            };
            (flat(g, a)?, flat(g, dy)?)
        } else {
            (a, dy)
        };
        let mut product = |x, transpose_a, y, transpose_b| g.apply1(MatMul { transpose_a, transpose_b }, &[x, y]);
        let db = if tb { product(rows_dy, true, rows_a, ta)? } else { product(rows_a, !ta, rows_dy, false)? };
        Ok(vec![Some(da), Some(db)])
    }

    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        let tiers = self.tiers(self.io_sizes(io), limits);
        tiers.into_iter().map(|tier| self.dispatches(tier, io, limits)).collect()
    }

    fn cost(&self, io: &Io) -> Cost {
        let s = self.io_sizes(io);
        Cost { flops: 2 * (s.batch * s.m * s.n) as u64 * s.k as u64, bytes: io.bytes() }
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let (a, b) = (&inputs[0], &inputs[1]);
        let (s, dims) = self.sizes(&a.ty, &b.ty).expect("checked when the node was made");
        let mut c = Array::zeros(dims);
        for z in 0..s.batch {
            let (a, b) = (&a.data[z * s.m * s.k..], &b.data[z * s.k * s.n..]);
            for i in 0..s.m {
                for j in 0..s.n {
                    let at = |k| if self.transpose_a { a[k * s.m + i] } else { a[i * s.k + k] };
                    let bt = |k| if self.transpose_b { b[j * s.k + k] } else { b[k * s.n + j] };
                    c.data[(z * s.m + i) * s.n + j] = (0..s.k).map(|k| at(k) * bt(k)).sum();
                }
            }
        }
        vec![c]
    }

    fn prologue(&self) -> Option<usize> {
        Some(0)
    }

    fn epilogue(&self) -> bool {
        true
    }

    fn reduction(&self, io: &Io) -> usize {
        self.io_sizes(io).k
    }
}
