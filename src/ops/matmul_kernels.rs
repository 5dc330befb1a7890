//! Kernels of [`MatMul`]: its candidates, and the dispatches of each.

use super::matmul::{MatMul, Sizes};
use super::matmul_split::Split;
use super::weight;
use super::windows::{Window, element, ranges, rows_per_binding};
use crate::base::{DType, Limits};
use crate::graph::{Dispatch, Io, Kernel, Operand};
use std::ops::Range;

/// A candidate's shader and the tile of C that one of its workgroups makes.
#[derive(Clone)]
pub(super) struct Tier {
    kernel: Kernel,
    tile: [usize; 2],
    split: Option<Split>,
}

impl Tier {
    /// Its variant's name.
    #[cfg(test)]
    pub(super) fn variant(&self) -> &str {
        &self.kernel.variant
    }

    /// Rows and columns of C that a workgroup makes.
    pub(super) fn tile(&self) -> [usize; 2] {
        self.tile
    }

    /// True for kernels that may sum a part of K.
    fn can_split(&self) -> bool {
        ["matmul_tile", "matmul_block", "matmul_coop"].contains(&self.kernel.shader)
    }

    /// True for the kernel that keeps a part of B in each lane: its tile may be any four rows.
    pub(super) fn is_own(&self) -> bool {
        self.kernel.shader == "matmul_own"
    }

    /// True for the kernel of a CPU's lanes.
    pub(super) fn is_rows(&self) -> bool {
        self.kernel.shader == "matmul_rows"
    }

    pub(super) fn constant(self, name: &'static str, value: usize) -> Self {
        Tier { kernel: self.kernel.constant(name, value), ..self }
    }

    /// For kernels that read B by four elements: whether in f16 they can, rows of so many.
    fn fours(self, dtype: DType, row: usize) -> Self {
        if dtype == DType::F16 && row.is_multiple_of(4) { self.constant("FOURS_F16", 1) } else { self }
    }
}

/// Operations of a dispatch at most: a slow GPU takes a second for them, and a display's watchdog ends what takes two. Fast ones would lose
/// by less: between dispatches their cores run empty.
const MOST_FLOPS: usize = 200_000_000_000;

/// How many operations a dispatch of a product may have; on a CPU nobody watches.
pub(super) fn most_flops(limits: &Limits) -> usize {
    if limits.is_cpu { usize::MAX } else { MOST_FLOPS }
}

/// Tiles of `matmul_tile.wgsl` on a GPU.
const TILES: [[usize; 2]; 2] = [[64, 64], [32, 32]];
/// Tiles of `matmul_block.wgsl`, and the steps of the sum: as long as a tile of each operand fits 16 KiB.
const BLOCKS: [([usize; 2], usize); 2] = [([64, 64], 16), ([128, 128], 16)];
/// One whose lanes have half as many sums, for those that have few registers.
const NARROW: ([usize; 2], usize) = ([64, 64], 16);

/// Workgroups of `matvec_groups.wgsl` that keep a large adapter busy.
const GROUPS: usize = 512;

/// Columns of one lane of `matmul_rows.wgsl`, measured on lavapipe; VECTOR_B relies on its being 4.
const ROWS_COLUMNS: usize = 4;

/// Columns of a workgroup of `matmul_own.wgsl`, and the most rows; operations of a product and rows from which on it pays
/// to compile it and to keep a part of B: measured on lavapipe (docs/log.md).
const OWN: [usize; 2] = [128, 64];
const OWN_FLOPS: usize = 1 << 22;
const OWN_ROWS: usize = 48;

/// The product of one node: A and C counted in elements, B in words.
struct Product {
    sizes: Sizes,
    /// B's dtype.
    dtype: DType,
    /// Bytes of an element of A and of C: f32, or f16 where nothing is lost by it.
    element_a: u64,
    element_c: u64,
    /// Stored rows of A and B, and the elements or words of one.
    a: [usize; 2],
    b: [usize; 2],
}

impl Product {
    fn of(op: &MatMul, io: &Io) -> Self {
        let (sizes, dtype) = (op.io_sizes(io), io.inputs[1].dtype);
        let a = if op.transpose_a { [sizes.k, sizes.m] } else { [sizes.m, sizes.k] };
        let (rows, row) = if op.transpose_b { (sizes.n, sizes.k) } else { (sizes.k, sizes.n) };
        let [element_a, element_c] = [&io.inputs[0], &io.outputs[0]].map(element);
        Product { sizes, dtype, element_a, element_c, a, b: [rows, weight::words(dtype, row)] }
    }
}

/// True for kernels that hand values from lane to lane of a workgroup of eight, which must lie in one subgroup.
pub(super) fn hands_on(limits: &Limits) -> bool {
    limits.is_cpu && limits.min_subgroup >= 8
}

impl MatMul {
    /// Candidates in the order in which they are expected to be fast.
    pub(super) fn tiers(&self, io: &Io, limits: &Limits) -> Vec<Tier> {
        let (s, dtype) = (self.io_sizes(io), io.inputs[1].dtype);
        let half = self.operands.are_half();
        // Tiles alone read or store f16, on adapters that compute in it.
        let is_in_f16 = [&io.inputs[0], &io.outputs[0]].iter().any(|ty| ty.dtype == DType::F16);
        if is_in_f16 && !limits.has_f16 {
            return Vec::new();
        }
        let mut tiers = self.few_rows(io, limits);
        if hands_on(limits) && !is_in_f16 {
            let own = self.own(s, dtype);
            let has_own = own.is_some();
            tiers.extend(own);
            tiers.push(self.rows(s, dtype));
            // Every kind has pipelines of its own, which take time to compile, and to measure: packed and rounded ones have
            // no more than they need. Cooperative matrices of a CPU were six to a hundred times slower.
            if has_own || dtype.is_packed() || half {
                return tiers;
            }
        }
        let sizes = if limits.is_cpu && !dtype.is_packed() { [[128, 64], TILES[1]] } else { TILES };
        let tile = |[m, n]: [usize; 2], staged: &str| {
            let tier = self.tier("matmul_tile", format!("tile_{m}x{n}{staged}"), dtype, [m, n]);
            tier.constant("TILE_M", m).constant("TILE_N", n).constant("TILE_K", 16)
        };
        tiers.extend(sizes.map(|size| tile(size, "")));
        // What wants more than every adapter has comes last, for the first candidate is right everywhere.
        if half && limits.has_f16 {
            tiers.extend(sizes.map(|size| tile(size, "_staged").constant("STAGED", 1)));
        }
        if !limits.is_cpu {
            tiers.extend(self.blocks(io, limits));
        }
        if half {
            tiers.extend(self.cooperative(s, dtype, limits));
        }
        let split = tiers.iter().filter_map(|tier| {
            let split = Split::of(s, tier.tile, limits).filter(|_| tier.can_split() && !limits.is_cpu)?;
            Some(Tier { split: Some(split), ..tier.clone() })
        });
        let split: Vec<Tier> = split.collect();
        tiers.extend(split);
        tiers
    }

    /// Larger tiles, where vectors of four lie along rows of both operands.
    fn blocks(&self, io: &Io, limits: &Limits) -> Vec<Tier> {
        let p = Product::of(self, io);
        let row_b = if self.transpose_b { p.sizes.k } else { p.sizes.n };
        if !p.a[1].is_multiple_of(4) || !row_b.is_multiple_of(4) {
            return Vec::new();
        }
        // No larger than C, but one at least.
        let fits = |&([m, n], _): &([usize; 2], usize)| m <= 64 || m <= p.sizes.m && n <= p.sizes.n;
        let block = |kind: &str, ([m, n], k): ([usize; 2], usize)| {
            let tier = self.tier("matmul_block", format!("block_{kind}{m}x{n}"), p.dtype, [m, n]);
            tier.constant("TILE_M", m).constant("TILE_N", n).constant("TILE_K", k).fours(p.dtype, row_b)
        };
        let narrow = limits.has_few_registers().then(|| block("narrow_", NARROW).constant("NARROW", 1));
        narrow.into_iter().chain(BLOCKS.into_iter().filter(fits).map(|size| block("", size))).collect()
    }

    /// Kernels that walk along rows of B, where A has so few that they are faster.
    pub(super) fn few_rows(&self, io: &Io, limits: &Limits) -> Vec<Tier> {
        let (s, dtype) = (self.io_sizes(io), io.inputs[1].dtype);
        if !self.transpose_b || self.transpose_a || !s.k.is_multiple_of(4) || self.operands.are_half() {
            return Vec::new();
        }
        let rows = s.m.next_power_of_two();
        if hands_on(limits) {
            // Measured: beyond these the rows kernel is faster.
            let few = s.m <= if dtype.is_packed() { 4 } else { 2 };
            let tier = || self.tier("matvec_lanes", format!("lanes_{rows}"), dtype, [rows, 8]);
            return few.then(|| tier().constant("ROWS", rows)).into_iter().collect();
        }
        if s.m <= 8 { self.groups(s, dtype, limits) } else { Vec::new() }
    }

    /// `matvec_groups.wgsl` in two shapes, so many lanes to a row of B and so many rows at once, of which the first is
    /// expected to be the faster; and where subgroups are known to be large enough, sums from lane to lane.
    fn groups(&self, s: Sizes, dtype: DType, limits: &Limits) -> Vec<Tier> {
        let rows = s.m.next_power_of_two();
        // Each lane has some four blocks of a row; or one, where there are few rows: then all loads are under way at once.
        let lanes = (s.k / 128).next_power_of_two().clamp(4, 32);
        let most = (s.k / 32).next_power_of_two().clamp(lanes, 64);
        let shapes = if limits.is_cpu {
            vec![(lanes, 1)]
        } else if s.batch * s.n * lanes / 64 < GROUPS {
            vec![(most, 1), (lanes, 1)]
        } else {
            // Two rows of B, and of A more than one, were more than registers hold.
            vec![(lanes, if rows == 1 { 2 } else { 1 }), (lanes, 1)]
        };
        // Elements of two bytes are read by eights where rows divide by them.
        let wide = matches!(dtype, DType::F16 | DType::BF16) && s.k.is_multiple_of(8);
        let tier = |(lanes, columns): (usize, usize), shuffle: usize| {
            let name = format!("{}_{rows}x{columns}x{lanes}", if shuffle > 0 { "shuffled" } else { "groups" });
            self.tier("matvec_groups", name, dtype, [rows, 64 / lanes * columns])
                .constant("ROWS", rows)
                .constant("COLUMNS", columns)
                .constant("LANES", lanes)
                .constant("SHUFFLE", shuffle)
                .constant("SHARED", usize::from(lanes > shuffle.max(1)))
                .constant("FOURS", if wide { 2 } else { 1 })
                .constant("WIDE", usize::from(wide))
                .constant("OVER", usize::from(!s.k.is_multiple_of(32 * lanes)))
                .constant("SHARED_TABLE", usize::from(dtype == DType::Nf4))
        };
        // Adapters without subgroups say that theirs have four lanes.
        let shuffle = |lanes: usize| if limits.min_subgroup >= 8 { lanes.min(limits.min_subgroup as usize) } else { 0 };
        let mut tiers = vec![tier(shapes[0], 0)];
        for shape in shapes {
            let tier = tier(shape, shuffle(shape.0));
            if tiers.iter().all(|known| known.kernel != tier.kernel) {
                tiers.push(tier);
            }
        }
        tiers
    }

    /// For a CPU's lanes and many rows, where vectors of four lie along rows of every matrix.
    fn own(&self, s: Sizes, dtype: DType) -> Option<Tier> {
        let vectors = s.k.is_multiple_of(4) && s.n.is_multiple_of(4) && (!self.transpose_a || s.m.is_multiple_of(4));
        if !vectors || s.m < OWN_ROWS || 2 * s.batch * s.m * s.n * s.k < OWN_FLOPS {
            return None;
        }
        // As even as may be.
        let rows = s.m.div_ceil(s.m.div_ceil(OWN[0])).next_multiple_of(4);
        let tier = self.tier("matmul_own", format!("own_64x{}", OWN[1]), dtype, [rows, OWN[1]]);
        Some(tier.constant("OWN", 1).fours(dtype, 4))
    }

    fn rows(&self, s: Sizes, dtype: DType) -> Tier {
        let groups = if s.m <= 8 { 1 } else { 2 };
        let vector_a = s.k.is_multiple_of(4) && (!self.transpose_a || s.m.is_multiple_of(4));
        let row_b = if self.transpose_b { s.k } else { s.n };
        let vector_b = dtype.is_packed() || row_b.is_multiple_of(4);
        let name = format!("rows_{}x{ROWS_COLUMNS}", 8 * groups);
        self.tier("matmul_rows", name, dtype, [8 * groups, 8 * ROWS_COLUMNS])
            .constant("GROUPS", groups)
            .constant("COLUMNS", ROWS_COLUMNS)
            .constant("VECTOR_A", usize::from(vector_a))
            .constant("VECTOR_B", usize::from(vector_b))
            .constant("TAIL", usize::from(!s.k.is_multiple_of(4)))
            .fours(dtype, row_b)
    }

    /// A candidate by this shader, with what all of them are told of the product.
    pub(super) fn tier(&self, shader: &'static str, mut variant: String, dtype: DType, tile: [usize; 2]) -> Tier {
        let flags = (usize::from(self.transpose_a), usize::from(self.transpose_b));
        if self.operands.are_half() {
            variant += "_half";
        }
        let mut kernel = Kernel::new(shader, variant).constant("TA", flags.0).constant("TB", flags.1);
        if self.operands.are_half() {
            kernel = kernel.constant("HALF", 1);
        }
        let is_packed = dtype.is_packed();
        let kernel = if is_packed { weight::header(kernel.constant("PACKED", 1), dtype) } else { kernel };
        Tier { kernel, tile, split: None }
    }

    /// One tier's kernel, of dispatches of about `most` operations.
    pub(super) fn kernel(&self, tier: Tier, io: &Io, limits: &Limits, most: usize) -> Option<Kernel> {
        let (split, own) = (tier.split, tier.is_own().then_some(tier.tile[0]));
        let mut kernel = self.dispatches(tier, io, limits, most);
        if io.inputs[0].dtype == DType::F16 {
            kernel = kernel.constant("A_F16", 1);
        }
        if let Some(rows) = own {
            for dispatch in &mut kernel.dispatches {
                dispatch.params.push(("rows", rows.into()));
            }
        }
        match split {
            None => Some(kernel.writing(&io.outputs[0])),
            Some(split) => split.apply(kernel, self.io_sizes(io), &io.outputs[0], limits),
        }
    }

    /// The most bytes of scratch that a candidate takes, found without its dispatches: planning asks it of every node many times.
    pub(super) fn split_bytes(&self, io: &Io, limits: &Limits) -> u64 {
        let p = Product::of(self, io);
        let s = p.sizes;
        // Only a product of one dispatch is split.
        let is_whole = |tier: &Tier| self.steps(&p, tier, limits, usize::MAX) == [s.batch, s.m, s.n, s.k];
        let bytes = |tier: Tier| tier.split.filter(|_| is_whole(&tier)).map(|split| split.bytes(s));
        self.tiers(io, limits).into_iter().filter_map(bytes).max().unwrap_or(0)
    }

    /// How many matrices, rows, columns and elements of the sum a dispatch has at most, to be within the limits and about so many
    /// operations.
    fn steps(&self, p: &Product, tier: &Tier, limits: &Limits, most: usize) -> [usize; 4] {
        let s = p.sizes;
        let max = limits.max_workgroups as usize;
        // Operands are bound by stored rows: those of A are M or K, those of B K or N, those of C M.
        let fit = |[rows, row]: [usize; 2]| rows_per_binding(rows, row, limits);
        let (fit_a, fit_b, fit_c) = (fit(p.a), fit(p.b), fit([s.m, s.n]));
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
        // Vector loads run along k, along m of a transposed A, and along rows of B, which may be blocks: so only the last
        // part may end within one.
        let (four, block) = (4, p.dtype.block().elements.max(4));
        let whole =
            |step: usize, all: usize, unit: usize| if step < all { (step / unit * unit).max(unit) } else { step };
        step_k = whole(step_k, s.k, if self.transpose_b { block } else { four });
        let rows = most / (2 * step_n.max(1) * step_k.max(1));
        if rows < step_m {
            step_m = (rows / tier.tile[0] * tier.tile[0]).max(tier.tile[0]);
        }
        step_m = whole(step_m, s.m, if self.transpose_a { four } else { 1 });
        // Vector stores run along rows of C.
        let along_n = if tier.is_own() { four } else { 1 };
        step_n = whole(step_n, s.n, if self.transpose_b { along_n } else { block });
        // A batch stays together where no matrix is cut; else one matrix at a time.
        let matrix = (p.a[0] * p.a[1]).max(p.b[0] * p.b[1]).max(s.m * s.n);
        let together = (step_m, step_n, step_k) == (s.m, s.n, s.k);
        let matrices = (most / (2 * s.m * s.n * s.k).max(1)).clamp(1, max);
        let step_batch = if together { rows_per_binding(s.batch, matrix, limits).min(matrices) } else { 1 };
        [step_batch, step_m, step_n, step_k]
    }

    /// The dispatches that cover the product, each within the limits and about so many operations.
    fn dispatches(&self, tier: Tier, io: &Io, limits: &Limits, most: usize) -> Kernel {
        let p = Product::of(self, io);
        let s = p.sizes;
        let [step_batch, step_m, step_n, step_k] = self.steps(&p, &tier, limits, most);
        let mut kernel = tier.kernel;
        for batch in ranges(s.batch, step_batch) {
            for m in ranges(s.m, step_m) {
                for n in ranges(s.n, step_n) {
                    for k in ranges(s.k, step_k) {
                        // Tiles are computed whole, also where they stand over an edge.
                        let [rows, columns] =
                            [m.len().next_multiple_of(tier.tile[0]), n.len().next_multiple_of(tier.tile[1])];
                        kernel.flops += 2 * (batch.len() * rows * columns * k.len()) as u64;
                        kernel = kernel.dispatch(self.part(&p, [&batch, &m, &n, &k], tier.tile, limits));
                    }
                }
            }
        }
        kernel
    }

    /// One dispatch: these matrices, rows, columns, and this range of the sum.
    fn part(&self, p: &Product, [batch, m, n, k]: [&Range<usize>; 4], tile: [usize; 2], limits: &Limits) -> Dispatch {
        let s = p.sizes;
        let (a_rows, a_cols) = if self.transpose_a { (k, m) } else { (m, k) };
        let (b_rows, b_cols) = if self.transpose_b { (n, k) } else { (k, n) };
        let window = |rows: &Range<usize>, [all, row]: [usize; 2], element: u64| {
            let last = (batch.end - 1) * all * row;
            Window::of(batch.start * all * row + rows.start * row..last + rows.end * row, element, limits)
        };
        let (a, b, c) = (window(a_rows, p.a, p.element_a), window(b_rows, p.b, 4), window(m, [s.m, s.n], p.element_c));
        let groups = [n.len().div_ceil(tile[1]), m.len().div_ceil(tile[0]), batch.len()];
        let mut d = Dispatch::new(groups.map(|x| x as u32))
            .param("m", m.len())
            .param("n", n.len())
            .param("k", k.len())
            .param("row_a", p.a[1])
            .param("row_b", p.b[1])
            .param("row_c", s.n)
            .param("batch_a", p.a[0] * p.a[1])
            .param("batch_b", p.b[0] * p.b[1])
            .param("batch_c", s.m * s.n)
            .param("skip_a", a.skip + a_cols.start)
            .param("skip_b", b.skip + weight::words(p.dtype, b_cols.start))
            .param("skip_c", c.skip + n.start)
            .param("whole_a", a.start)
            .param("whole_c", c.start)
            .param("first", usize::from(k.start == 0))
            .param("last", usize::from(k.end == s.k));
        d = a.bind_as(d, "a", Operand::Input(0), p.element_a);
        d = b.bind(d, "b", Operand::Input(1));
        c.bind_as(d, "c", Operand::Output(0), p.element_c)
    }
}
