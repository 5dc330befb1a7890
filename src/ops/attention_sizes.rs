//! What attention's operators share: sizes, dispatches, and the scores of their references.
//!
//! Legend: B batch, T queries, S keys, H query heads, K kv heads (H is a multiple of K), C head width.

use super::attention_block::Pieces;
use super::attention_split;
use super::attention_tiles::{Coop, Staging, Tile};
use super::mask::Mask;
use super::operands::Operands;
use super::windows::entries;
use crate::base::{Array, DType, Limits, TensorType};
use crate::error::Result;
use crate::graph::{Cost, Dispatch, Io, Kernel, Operand};
use std::ops::Range;

/// Rows of a lane of a CPU, and times eight keys that it takes at a time: measured on lavapipe (docs/log.md).
const ROWS: usize = 2;
const EIGHTS: usize = 2;

/// The shaders of one of attention's operators.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shaders {
    /// A lane a row, sums in registers, for few rows or narrow ones.
    pub lanes: &'static str,
    /// Several rows a lane of a CPU, sums in memory.
    pub cpu: &'static str,
    /// Tiles in shared memory, by lanes or by cooperative matrices, and what they stage.
    pub tile: &'static str,
    pub coop: &'static str,
    pub staging: Staging,
    /// Whether sums of tiles may be split (`attention_split.rs`).
    pub splits: bool,
}

/// What is computed of the operands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kind {
    pub mask: Mask,
    pub operands: Operands,
    /// Where queries and keys are those of two ranks: which pieces of the sequence these have.
    pub pieces: Option<Pieces>,
}

/// Sizes of one attention, shared with its gradients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sizes {
    pub b: usize,
    pub t: usize,
    pub s: usize,
    pub h: usize,
    pub k: usize,
    pub c: usize,
}

impl Sizes {
    /// Sizes from q `[B,T,H,C]`, k and v `[B,S,K,C]`, or what is wrong with them.
    pub fn of(q: &TensorType, k: &TensorType, v: &TensorType) -> Result<Sizes, String> {
        let (&[b, t, h, c], &[kb, s, kh, kc]) = (q.shape.dims(), k.shape.dims()) else {
            return Err("q must be [B,T,H,C], k and v [B,S,K,C]".into());
        };
        if q.dtype != DType::F32 || k != v || kb != b || kc != c {
            return Err("q must be f32, k and v of one type, all of one batch and head width".into());
        }
        check_cache(k)?;
        if kh == 0 || h % kh != 0 {
            return Err(format!("{h} query heads are not a multiple of {kh} key heads"));
        }
        if b * t * s == 0 || c % 4 != 0 || c == 0 || c > 256 {
            return Err(format!("head width {c} is not a multiple of 4 up to 256, or a size is 0"));
        }
        Ok(Sizes { b, t, s, h, k: kh, c })
    }

    /// Query heads that share one kv head.
    pub fn group(&self) -> usize {
        self.h / self.k
    }

    /// Sizes of a node whose first inputs are q, k and v.
    pub fn of_io(io: &Io) -> Sizes {
        Sizes::of(&io.inputs[0], &io.inputs[1], &io.inputs[2]).expect("checked when the node was made")
    }

    /// Pairs of query and key that attend, over batch and heads, as far as the shapes tell: the last query sees the last
    /// key.
    pub fn pairs(&self) -> u64 {
        let position = self.s.saturating_sub(self.t);
        (self.b * self.h) as u64 * (0..self.t).map(|t| (position + t + 1).min(self.s) as u64).sum::<u64>()
    }

    /// What the forward pass costs, whole or by parts of the keys.
    pub fn forward_cost(&self, io: &Io) -> Cost {
        Cost { flops: 4 * self.c as u64 * self.pairs(), bytes: io.bytes() }
    }

    /// Length of the sums behind an output of the forward pass: along a head, then along the keys.
    pub fn forward_reduction(&self) -> usize {
        self.c + self.s
    }

    /// Element of q at (b, t, h, 0).
    pub fn q_at(&self, b: usize, t: usize, h: usize) -> usize {
        ((b * self.t + t) * self.h + h) * self.c
    }

    /// Element of k at (b, s, kv head of h, 0).
    pub fn k_at(&self, b: usize, s: usize, h: usize) -> usize {
        ((b * self.s + s) * self.k + h / self.group()) * self.c
    }

    /// Calls `f(b, t, h, keys)` for every query, with the keys that it sees.
    pub fn each_query(&self, mask: Mask, position: &Array, mut f: impl FnMut(usize, usize, usize, Range<usize>)) {
        let packed = is_packed(&position.ty);
        for b in 0..self.b {
            let first = if packed { 0 } else { position.data[b.min(position.data.len() - 1)] as usize };
            for t in 0..self.t {
                let start = if packed { position.data[b * self.t + t] as usize } else { 0 };
                let keys = mask.keys(first + t, self.s);
                for h in 0..self.h {
                    f(b, t, h, keys.start.max(start)..keys.end);
                }
            }
        }
    }

    /// Batch entries of one dispatch, each of which is so many workgroups along its axis.
    pub fn batches(&self, io: &Io, workgroups: usize, limits: &Limits) -> usize {
        let of_entries = io.inputs.iter().chain(&io.outputs).filter(|ty| ty.dtype != DType::U32);
        let bytes: Vec<u64> = of_entries.map(|ty| ty.bytes() / self.b as u64).collect();
        entries(self.b, &bytes, limits.max_workgroups as usize / workgroups, limits)
    }

    /// A dispatch for batch entries `first .. first + count`, with the sizes as params and each named operand bound to
    /// those entries' share of it.
    pub fn dispatch(
        &self,
        io: &Io,
        rows: usize,
        first: usize,
        count: usize,
        names: &[(&'static str, Operand)],
    ) -> Dispatch {
        let mut d = Dispatch::new([rows as u32, self.k as u32, count as u32])
            .param("queries", self.t)
            .param("keys", self.s)
            .param("heads", self.h)
            .param("entry", first)
            .param("scale", 1.0 / (self.c as f32).sqrt());
        for &(name, operand) in names {
            let ty = match operand {
                Operand::Input(i) => &io.inputs[i],
                Operand::Output(i) => &io.outputs[i],
                Operand::Scratch => unreachable!("scratch memory is bound by attention_split"),
            };
            let entry = ty.bytes() / self.b as u64;
            d = match ty.dtype {
                DType::U32 => d.bind(name, operand, 0, ty.bytes()),
                _ => d.bind(name, operand, first as u64 * entry, count as u64 * entry),
            };
        }
        d
    }

    /// Candidates for `rows` rows: in tiles, the first of which every adapter can run; where rows are too few or too narrow
    /// for that, a lane a row, with sums in registers; or, where lanes are those of a CPU, with sums in memory.
    pub fn kernels(
        &self,
        shaders: Shaders,
        io: &Io,
        limits: &Limits,
        kind: Kind,
        rows: usize,
        names: &[(&'static str, Operand)],
    ) -> Vec<Kernel> {
        let base = |shader, variant: String| {
            let half = kind.operands.are_half();
            let kernel = Kernel::new(shader, variant + if half { "_half" } else { "" }).constant("GROUP", self.group());
            let kernel = if half { kernel.constant("HALF", 1) } else { kernel };
            let kernel = if kind.pieces.is_some() { Pieces::constants(kernel, names) } else { kernel };
            cache_constants(io.inputs[1].dtype, each(kind.mask.constants(kernel, self.h), io.inputs.last()))
        };
        // The rows kernels hand values from lane to lane of a workgroup of eight, which must lie in one subgroup.
        if limits.is_cpu && limits.min_subgroup >= 8 {
            let r = if rows > 8 { ROWS } else { 1 };
            let kernel = base(shaders.cpu, format!("rows_{r}x{}", 8 * EIGHTS)).constant("WORKGROUP", 8);
            let kernel = kernel.constant("ROWS", r).constant("EIGHTS", EIGHTS);
            return vec![self.dispatches(kernel, io, limits, rows.div_ceil(8 * r), names, (kind, Some(self.c)))];
        }
        let (c4, heads) = (self.c / 4, self.k * self.b);
        let of = |tile: Tile| {
            let kernel = tile.constants(base(shaders.tile, tile.variant()), c4);
            self.dispatches(kernel, io, limits, rows.div_ceil(tile.rows), names, (kind, None))
        };
        let portable = shaders.staging.portable(c4, rows, heads, kind.operands).filter(|_| !limits.is_cpu);
        let mut kernels = vec![portable.map_or_else(
            || {
                let kernel = base(shaders.lanes, "lanes_64".into()).constant("WORKGROUP", 64).constant("C4", c4);
                self.dispatches(kernel, io, limits, rows.div_ceil(64), names, (kind, None))
            },
            of,
        )];
        let tiles = shaders.staging.tiles(c4, rows, heads, kind.operands, limits);
        kernels.extend(tiles.into_iter().filter(|&tile| Some(tile) != portable).map(of));
        if shaders.splits {
            let all = shaders.staging.fitting(c4, rows, kind.operands, limits).map(of);
            kernels.extend(attention_split::best(all, self, limits));
        }
        let coop = |coop: Coop| {
            let kernel = coop.constants(base(shaders.coop, coop.variant()), c4);
            self.dispatches(kernel, io, limits, rows.div_ceil(coop.rows()), names, (kind, None))
        };
        let tiles = shaders.staging.cooperative_tiles(self.c, [rows, heads], kind.operands, limits);
        kernels.extend(tiles.into_iter().map(coop));
        if shaders.splits {
            let all = shaders.staging.cooperative(self.c, kind.operands, limits);
            for (&size, i) in limits.cooperative.iter().flat_map(|size| [(size, 0), (size, 1)]) {
                let of_size = all.iter().filter(|coop| coop.size() == size as usize);
                kernels.extend(attention_split::best(of_size.map(|tile| coop(tile.both()[i])), self, limits));
            }
        }
        kernels
    }

    fn dispatches(
        &self,
        mut kernel: Kernel,
        io: &Io,
        limits: &Limits,
        groups: usize,
        names: &[(&'static str, Operand)],
        (kind, width): (Kind, Option<usize>),
    ) -> Kernel {
        let step = self.batches(io, 1, limits);
        for first in (0..self.b).step_by(step) {
            let mut d = self.dispatch(io, groups, first, step.min(self.b - first), names);
            if let Some(width) = width {
                d = d.param("width", width);
            }
            if let Some(pieces) = kind.pieces {
                d = pieces.params(d);
            }
            kernel = kernel.dispatch(d);
        }
        kernel
    }
}

/// Checks the type of positions: one for all of `b` sequences, or one for each.
pub(super) fn check_position(position: &TensorType, b: usize) -> Result<(), String> {
    if *position == TensorType::u32([1]) || *position == TensorType::u32([b]) {
        return Ok(());
    }
    Err(format!(
        "the position is {position}, not u32[1]{}",
        if b > 1 { format!(" or u32[{b}]") } else { String::new() }
    ))
}

/// True where a position input tells of packed rows: rank 2, and not one number or one for each sequence.
pub(crate) fn is_packed(position: &TensorType) -> bool {
    position.shape.dims().len() == 2
}

/// Starts of documents that a proof may take for such an input: rows of documents of so many tokens. Random ones, which may begin
/// behind their tokens, no two kernels need agree on.
pub(super) fn documents(ty: &TensorType) -> Option<Vec<u32>> {
    const TOKENS: usize = 24;
    let &[b, t] = ty.shape.dims() else { return None };
    let starts = (0..b * t).map(|i| (i % t / TOKENS * TOKENS) as u32);
    Some(starts.collect())
}

/// Checks the type of positions of what may be packed rows: as [`check_position`], or the starts of documents `[b,t]`,
/// where `t` tokens are all there is.
pub(super) fn check_starts(position: &TensorType, [b, t]: [usize; 2], all: usize) -> Result<(), String> {
    if *position == TensorType::u32([b, t]) && t == all {
        return Ok(());
    }
    if is_packed(position) {
        return Err(format!("the starts of documents are {position}, not u32[{b},{t}] beside as many keys"));
    }
    check_position(position, b)
}

/// Checks the type of keys or values `[B,S,K,C]`: f32, f16, or Q8_0, whose blocks run along a token's K·C elements.
pub(super) fn check_cache(ty: &TensorType) -> Result<(), String> {
    let dims = ty.shape.dims();
    let (row, block) = (dims[2..].iter().product::<usize>(), ty.dtype.block().elements);
    match ty.dtype {
        DType::F32 | DType::F16 | DType::Q8_0 if row.is_multiple_of(block) => Ok(()),
        DType::F16 | DType::Q8_0 => Err(format!(
            "a {} cache needs key heads whose widths sum up to a multiple of {block}, not {row}; take a wider cache",
            ty.dtype
        )),
        dtype => Err(format!("keys and values may be f32, f16 or q8_0, not {dtype}")),
    }
}

/// Adds the header constant that tells `lib/query.wgsl` of a position for each sequence, or of packed rows.
pub(super) fn each(kernel: Kernel, position: Option<&TensorType>) -> Kernel {
    match position {
        Some(ty) if is_packed(ty) => kernel.constant("STARTS", 1),
        Some(ty) if ty.shape.elements() > 1 => kernel.constant("EACH", 1),
        _ => kernel,
    }
}

/// Adds the header constant that tells `lib/cache.wgsl` of a narrow dtype.
pub(super) fn cache_constants(dtype: DType, kernel: Kernel) -> Kernel {
    match dtype {
        DType::F16 => kernel.constant("F16", 1),
        DType::Q8_0 => kernel.constant("BYTES", 1),
        _ => kernel,
    }
}

/// Scaled and biased scores of the query at element `at` of q against the keys that it sees.
pub(super) fn scores(
    z: &Sizes,
    mask: Mask,
    [q, k]: [&Array; 2],
    at: usize,
    (b, h): (usize, usize),
    keys: Range<usize>,
) -> Vec<f64> {
    let (scale, slope, last) = (1.0 / (z.c as f64).sqrt(), mask.slope(h, z.h), keys.end - 1);
    let dot = |s: usize| (0..z.c).map(|c| q.data[at + c] * k.data[z.k_at(b, s, h) + c]).sum::<f64>();
    keys.map(|s| dot(s) * scale - slope * (last - s) as f64).collect()
}
