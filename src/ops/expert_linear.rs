//! The linear layer of a mixture of experts: every slot's row by its expert's matrix. R rows, k choices of each, so R·k
//! slots; E experts with matrices `[N,K]`.

use super::experts::Sizes;
use super::windows::Window;
use super::{ExpertLinearGrad, SlotSum, weight};
use crate::base::{Array, Limits, TensorType};
use crate::error::Result;
use crate::graph::{Cost, Dispatch, Graph, Io, Kernel, Op, OpNode, Operand, Value};
use std::ops::Range;

/// y = x · Wᵀ for the matrix W of each slot's expert: x f32 `[R,K]`, which all slots of a row share, or `[R,k,K]`, one a
/// slot; to `[R,k,N]`. Inputs: x, weights `[E,N,K]` of any dtype, ids u32 `[R,k]`, and what [`super::ExpertOrder`] makes
/// of them: order u32 `[R·k]`, starts u32 `[E+1]`. A slot whose id is no expert gives zeros.
///
/// Few slots read their matrices one by one; many are taken in tiles of one expert, so that a matrix is read once a tile.
#[derive(Debug, Clone, PartialEq)]
pub struct ExpertLinear {
    /// y = x · W instead, from rows of N to rows of K: the way back of a gradient.
    pub back: bool,
}

/// Columns that a workgroup of `expert_linear_few.wgsl` makes.
const FEW_COLUMNS: usize = 8;

/// A candidate's shader, and the slots and columns of one of its workgroups.
struct Tier {
    kernel: Kernel,
    tile: [usize; 2],
}

impl ExpertLinear {
    fn sizes(&self, inputs: &[&TensorType]) -> Result<Sizes, String> {
        let &[x, w, ids, order, starts] = inputs else { return Err("takes x, weights, ids, order and starts".into()) };
        weight::check("the experts' weight", w)?;
        let sizes = Sizes::new(x, w.shape.dims(), ids, order, starts)?;
        let want = sizes.matrix[usize::from(!self.back)];
        if sizes.width != want {
            return Err(format!("rows of x have {} elements where the matrices want {want}", sizes.width));
        }
        Ok(sizes)
    }

    fn io_sizes(&self, io: &Io) -> Sizes {
        self.sizes(&io.inputs.iter().collect::<Vec<_>>()).expect("checked when the node was made")
    }

    /// Width of a slot's result.
    fn columns(&self, s: &Sizes) -> usize {
        s.matrix[usize::from(self.back)]
    }

    /// The one candidate for these sizes: a choice by measurement would need ids that say how rows fall on experts.
    /// `fours`: parts of the matrices begin with multiples of four rows.
    fn tier(&self, s: &Sizes, io: &Io, fours: bool, limits: &Limits) -> Tier {
        let w = &io.inputs[1];
        let vector = !w.dtype.is_packed() && w.shape.last().is_multiple_of(4);
        let make = |shader, variant: String| {
            let kernel = Kernel::new(shader, variant)
                .constant("BACK", usize::from(self.back))
                .constant("VECTOR_W", usize::from(vector));
            if vector { kernel } else { weight::header(kernel, w.dtype) }
        };
        if !self.back && (s.slots() <= 16 || s.per_expert() <= 1) {
            let lanes = if limits.is_cpu { 8 } else { 64 };
            let kernel = make("expert_linear_few", format!("few_{lanes}"))
                .constant("WORKGROUP", lanes)
                .constant("COLUMNS", FEW_COLUMNS);
            return Tier { kernel, tile: [1, FEW_COLUMNS] };
        }
        // The rows kernel hands values from lane to lane of a workgroup of eight, which must lie in one subgroup.
        if limits.is_cpu && limits.min_subgroup >= 8 {
            let groups = if s.per_expert() <= 8 { 1 } else { 2 };
            let kernel = make("expert_linear_rows", format!("rows_{}", 8 * groups))
                .constant("GROUPS", groups)
                .constant("VECTOR_X", usize::from(s.width.is_multiple_of(4) && (fours || !self.back)));
            return Tier { kernel, tile: [8 * groups, 32] };
        }
        let m = s.per_expert().next_multiple_of(16).min(64);
        let m = if m == 48 { 64 } else { m };
        let kernel = make("expert_linear_tile", format!("tile_{m}x64"))
            .constant("TILE_M", m)
            .constant("TILE_N", 64)
            .constant("TILE_K", 16);
        Tier { kernel, tile: [m, 64] }
    }

    /// One dispatch: the slots of these rows, these experts, and these stored rows of their matrices.
    fn part(&self, s: &Sizes, io: &Io, tile: [usize; 2], parts: [&Range<usize>; 3], limits: &Limits) -> Dispatch {
        let [rows, experts, stored] = parts;
        let [n, k] = s.matrix;
        let row_w = weight::words(io.inputs[1].dtype, k);
        // Stored rows are columns of y, or with `back` places of the sum.
        let (columns, sum, column, skip) = match self.back {
            false => (stored.len(), k, stored.start, 0),
            true => (k, stored.len(), 0, stored.start),
        };
        let w = Window::new(
            (experts.start * n + stored.start) * row_w..((experts.end - 1) * n + stored.end) * row_w,
            limits,
        );
        let y = s.slot_window(rows, self.columns(s), limits);
        let groups_x = columns.div_ceil(tile[1]) as u32;
        let few = tile[0] == 1;
        let numbers = s.with_tail(experts);
        // No more tiles than this, however the slots fall on the experts.
        let tiles = (rows.len() * s.choices + numbers.len() * (tile[0] - 1)) / tile[0];
        let spread = crate::graph::spread(tiles, limits);
        let d = Dispatch::new([groups_x, spread[0], spread[1]])
            .param("columns", columns)
            .param("sum", sum)
            .param("width", k)
            .param("row_w", row_w)
            .param("expert_w", n * row_w)
            .param("skip_w", w.skip)
            .param("row_y", self.columns(s))
            .param("skip_y", y.skip + column)
            .param("whole_y", y.start);
        let d = s.bind_x(d, rows, skip, limits);
        let d = y.bind(w.bind(d, "w", Operand::Input(1)), "y", Operand::Output(0));
        if few {
            return d
                .bind("ids", Operand::Input(2), 0, io.inputs[2].bytes())
                .param("first_slot", rows.start * s.choices)
                .param("experts", s.experts)
                .param("first_expert", numbers.start)
                .param("end_expert", numbers.end);
        }
        s.bind_order(d, rows, numbers)
            .param("first", usize::from(!self.back || stored.start == 0))
            .param("last", usize::from(!self.back || stored.end == n))
    }
}

impl Op for ExpertLinear {
    fn name(&self) -> &'static str {
        "expert_linear"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let sizes = self.sizes(inputs)?;
        Ok(vec![TensorType::f32([sizes.rows, sizes.choices, self.columns(&sizes)])])
    }

    fn gradient(&self, g: &mut Graph, node: &OpNode, dy: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        let Some(dy) = dy[0] else { return Ok(vec![None; 5]) };
        let &[x, w, ids, order, starts] = node.inputs.as_slice() else { unreachable!("checked by infer") };
        let mut dx = g.apply1(ExpertLinear { back: !self.back }, &[dy, w, ids, order, starts])?;
        if g.ty(x).shape.rank() == 2 {
            dx = g.apply1(SlotSum, &[dx])?;
        }
        let mut dw = None;
        if !g.ty(w).dtype.is_packed() {
            let (rows, columns) = if self.back { (x, dy) } else { (dy, x) };
            if g.ty(rows).shape.rank() == 3 {
                dw = Some(g.apply1(ExpertLinearGrad, &[columns, rows, ids, order, starts])?);
            }
        }
        Ok(vec![Some(dx), dw, None, None, None])
    }

    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        let s = self.io_sizes(io);
        let parts = s.expert_ranges(weight::words(io.inputs[1].dtype, s.matrix[1]), limits);
        let Tier { mut kernel, tile } = self.tier(&s, io, Sizes::come_in_fours(&parts), limits);
        let most = if tile[0] == 1 { limits.max_workgroups as usize / s.choices } else { usize::MAX };
        let row_ranges = s.row_ranges(self.columns(&s), most, limits);
        let window = usize::from(row_ranges.len() > 1);
        kernel = kernel.constant("WINDOW", window).constant("PER_ROW", s.per_row);
        for rows in &row_ranges {
            for (experts, stored) in &parts {
                kernel = kernel.dispatch(self.part(&s, io, tile, [rows, experts, stored], limits));
            }
        }
        vec![kernel]
    }

    fn cost(&self, io: &Io) -> Cost {
        let s = self.io_sizes(io);
        let (matrix, used) = (io.inputs[1].bytes() / s.experts as u64, s.experts.min(s.slots()) as u64);
        let bytes = io.bytes() - io.inputs[1].bytes() + used * matrix;
        Cost { flops: 2 * (s.slots() * s.matrix[0]) as u64 * s.matrix[1] as u64, bytes }
    }

    fn epilogue(&self) -> bool {
        true
    }

    fn reduction(&self, io: &Io) -> usize {
        self.io_sizes(io).width
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let s = self.sizes(&inputs.iter().map(|a| &a.ty).collect::<Vec<_>>()).expect("checked when the node was made");
        let (columns, [n, k]) = (self.columns(&s), s.matrix);
        let mut y = Array::zeros([s.rows, s.choices, columns]);
        for (slot, y) in y.data.chunks_mut(columns).enumerate() {
            let x = &inputs[0].data[slot / s.per_row * s.width..][..s.width];
            let Some(w) = inputs[1].data.chunks(n * k).nth(inputs[2].data[slot] as usize) else { continue };
            for (j, y) in y.iter_mut().enumerate() {
                let at = |i: usize| if self.back { w[i * k + j] } else { w[j * k + i] };
                *y = x.iter().enumerate().map(|(i, x)| x * at(i)).sum();
            }
        }
        vec![y]
    }
}
