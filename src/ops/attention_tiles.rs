//! Tiles of attention's kernels that go through shared memory: sizes that a device has room for. Legend as in
//! `attention_sizes.rs`; a row is a query of one head, or a key where keys are what a workgroup makes.

use super::operands::Operands;
use crate::base::Limits;
use crate::graph::Kernel;

/// Rows of a workgroup, how many of the others it streams at a time, and fours of rows that sixteen lanes share, the best
/// first, wherever there is work for many: the more sums a lane has, the fewer loads from shared memory feed each.
const SIZES: [[usize; 3]; 5] = [[64, 64, 2], [64, 64, 1], [32, 64, 1], [16, 64, 1], [8, 32, 1]];
/// The same where a lane has half the registers: with more than sixteen of the others, gradients' scores and what is loaded ahead do
/// not fit.
const SPARE_SIZES: [[usize; 3]; 8] =
    [[64, 64, 1], [64, 16, 1], [32, 64, 1], [32, 16, 1], [16, 64, 1], [16, 16, 1], [8, 32, 1], [8, 16, 1]];
/// Sizes that are tried on a device.
const TRIED: usize = 2;
/// Sizes that make fewer workgroups than this leave most of a large GPU idle, and are not tried while there are smaller ones.
const FEW: usize = 128;
/// Vectors of a chunk of a head, and the fewest of a head: narrower ones no model has.
const CHUNK: usize = 4;
/// Floats of sums and scores that a lane has registers for, beside what it works with.
const HELD: usize = 128;

/// Bytes of a vector in f32.
const BYTES: usize = 16;

/// What a shader stages.
#[derive(Debug, Clone, Copy)]
pub(super) struct Staging {
    /// Tensors by rows, and tensors that stream by: so many products are made of them.
    pub of_rows: usize,
    pub streamed: usize,
    /// For cooperative matrices: tensors that stream by and are staged by columns, and of those staged by rows how many are no
    /// longer needed where weights are staged.
    pub turned: usize,
    pub spent: usize,
    /// What is made of those, by row and streamed one: weights of so many sums.
    pub scores: usize,
    /// Lanes hand on vectors of f32 of their own, unless they may shuffle.
    pub hands_on: bool,
}

/// One specialisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tile {
    pub rows: usize,
    keys: usize,
    /// Fours of rows that sixteen lanes share.
    high: usize,
    /// Rows are staged once, with their whole heads: worth the memory where elements are rounded as they are staged.
    whole: bool,
    /// Elements lie in shared memory as f16.
    staged: bool,
    shuffle: bool,
}

impl Staging {
    /// The tiles that a device has room for, the largest first, for heads of `c4` vectors and so many rows.
    pub fn fitting(&self, c4: usize, all: usize, operands: Operands, limits: &Limits) -> impl Iterator<Item = Tile> {
        let staged = operands.are_half() && limits.has_f16;
        let shuffle = self.hands_on && limits.min_subgroup >= 16;
        let fitting = move |[rows, keys, high]: [usize; 3]| {
            let tile = |whole| Tile { rows, keys, high, whole, staged, shuffle };
            let wholes = [true, false].into_iter().filter(|&whole| !whole || operands.are_half());
            wholes.map(tile).find(|tile| self.fits(tile, c4, limits))
        };
        let sizes = if limits.has_few_registers() { &SPARE_SIZES[..] } else { &SIZES };
        sizes.iter().copied().filter(move |size| c4 >= CHUNK && size[0] < 2 * all).filter_map(fitting)
    }

    /// Those that are worth a try for rows of so many heads and sequences.
    pub fn tiles(&self, c4: usize, all: usize, heads: usize, operands: Operands, limits: &Limits) -> Vec<Tile> {
        tried(self.fitting(c4, all, operands, limits).collect(), |tile| all.div_ceil(tile.rows) * heads)
    }

    /// The tile that every adapter can run, of a moderate number of registers: the first candidate.
    pub fn portable(&self, c4: usize, all: usize, heads: usize, operands: Operands) -> Option<Tile> {
        self.tiles(c4, all, heads, operands, &Limits::default()).into_iter().find(|tile| tile.high == 1)
    }

    /// Specialisations for cooperative matrices of the sizes that the adapter has, of each size those of the most rows first, where
    /// each row has a lane. Of subgroups that may be smaller than the largest, several make the same matrices: what is right for
    /// the largest is right for all.
    pub fn cooperative(&self, c: usize, operands: Operands, limits: &Limits) -> Vec<Coop> {
        if !operands.are_half() {
            return Vec::new();
        }
        let subgroup = limits.max_subgroup as usize;
        let sizes = limits.cooperative.iter().map(|&size| size as usize);
        let all = sizes.flat_map(|size| {
            COOP_SIZES.map(|[subgroups, high, keys, spread]| {
                let of = |held| Coop { size, subgroup, subgroups, high, keys, spread, held, native: false };
                (0..=self.of_rows).rev().map(of).find(|coop| coop.keeps(self, c)).unwrap_or(of(0))
            })
        });
        let mut fitting: Vec<Coop> = all.filter(|coop| coop.fits(self, c, limits)).collect();
        fitting.dedup_by_key(|coop| (coop.size, coop.rows()));
        fitting
    }

    /// Those that are worth a try for rows of so many heads and sequences, of each size of matrices.
    pub fn cooperative_tiles(
        &self,
        c: usize,
        [all, heads]: [usize; 2],
        operands: Operands,
        limits: &Limits,
    ) -> Vec<Coop> {
        let fitting = self.cooperative(c, operands, limits);
        let of_size = |size: &u32| {
            let of_size: Vec<Coop> = fitting.iter().filter(|coop| coop.size == *size as usize).copied().collect();
            tried(of_size, |coop| all.div_ceil(coop.rows()) * heads)
        };
        limits.cooperative.iter().flat_map(of_size).flat_map(Coop::both).collect()
    }

    fn fits(&self, tile: &Tile, c4: usize, limits: &Limits) -> bool {
        let lanes = tile.lanes();
        let held = 4 * tile.high * (4 * self.scores * c4.div_ceil(16) + self.of_rows * tile.keys / 16);
        let own = if tile.whole { self.of_rows * (c4.next_multiple_of(CHUNK) + 1) } else { CHUNK + 1 };
        let streamed = (tile.keys * (CHUNK + 1)).max(tile.slab(c4) * c4);
        let vectors = tile.rows * own + streamed + 16 * (tile.rows / 4 + 1);
        let handed = if self.hands_on && !tile.shuffle { lanes * BYTES } else { 0 };
        let vector = if tile.staged { BYTES / 2 } else { BYTES };
        vectors * vector + handed <= limits.max_shared_bytes as usize
            && lanes <= limits.max_invocations as usize
            && (tile.high == 1 || held <= HELD)
    }
}

/// Of tiles, the largest first, those that are tried: none that makes few workgroups where there are smaller ones.
fn tried<T: Copy>(tiles: Vec<T>, groups: impl Fn(&T) -> usize) -> Vec<T> {
    let few = tiles.iter().take_while(|tile| groups(tile) < FEW).count();
    tiles[few.min(tiles.len().saturating_sub(TRIED))..].iter().copied().take(TRIED).collect()
}

/// One specialisation for cooperative matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Coop {
    size: usize,
    subgroup: usize,
    /// Subgroups of a workgroup, each with `high` times `size` rows.
    subgroups: usize,
    high: usize,
    keys: usize,
    /// Subgroups that share their rows, and the columns of a head out among themselves.
    spread: usize,
    /// Tensors of own rows whose matrices a subgroup keeps; the others lie in shared memory.
    held: usize,
    /// Operands are rounded by the adapter's own conversion.
    native: bool,
}

/// Subgroups of a workgroup, rows of matrices of each, keys of a tile, and subgroups that share rows: the more rows, the fewer loads
/// feed each product. Of those of as many rows the first that fits is the best: subgroups that share few rows have fewer sums each, and
/// more of them are under way.
const COOP_SIZES: [[usize; 4]; 13] = [
    [4, 2, 32, 1],
    [4, 1, 32, 1],
    [2, 2, 32, 1],
    [4, 1, 16, 1],
    [4, 1, 32, 2],
    [4, 1, 16, 2],
    [2, 1, 32, 1],
    [2, 1, 16, 1],
    [4, 1, 32, 4],
    [4, 1, 16, 4],
    [4, 1, 8, 4],
    [1, 1, 32, 1],
    [1, 1, 16, 1],
];
/// Registers of a lane for sums and for own rows that are kept: with more, AMD's compiler spills some of what it works with.
const KEPT: usize = 128;
/// The same for sums and for what is loaded ahead.
const USED: usize = 192;

impl Coop {
    /// Rows and columns of a matrix.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Rows of a workgroup.
    pub fn rows(&self) -> usize {
        self.subgroups / self.spread * self.high * self.size
    }

    /// With operands rounded here, and by the adapter.
    pub fn both(self) -> [Coop; 2] {
        [false, true].map(|native| Coop { native, ..self })
    }

    /// Its name among candidates.
    pub fn variant(&self) -> String {
        let high = if self.high > 1 { "_high" } else { "" };
        let spread = if self.spread > 1 { "_spread" } else { "" };
        let native = if self.native { "_native" } else { "" };
        format!("coop_{}_{}x{}{high}{spread}{native}", self.size, self.rows(), self.keys)
    }

    /// Lanes that share a row. Of subgroups that share rows there may be more than a row has vectors of scores: then several do the same.
    fn across(&self) -> usize {
        let lanes = self.spread * self.subgroup / (self.high * self.size);
        if self.spread > 1 { lanes.min(self.keys / 4) } else { lanes }
    }

    /// A head's width as it is staged.
    fn width(&self, c: usize) -> usize {
        c.next_multiple_of(self.size)
    }

    /// Streamed rows next to each other of which a lane loads a vector each.
    fn height(&self, c: usize) -> usize {
        let each = self.keys * self.width(c) / 4 / (self.subgroups * self.subgroup);
        [4, 2].into_iter().find(|&height| height <= each).unwrap_or(1)
    }

    /// Adds the header constants that the shaders read, for heads of `c4` vectors.
    pub fn constants(&self, kernel: Kernel, c4: usize) -> Kernel {
        kernel
            .constant("C4", c4)
            .constant("KEYS", self.keys)
            .constant("SIZE", self.size)
            .constant("SIZE_16", usize::from(self.size == 16))
            .constant("SUBGROUP", self.subgroup)
            .constant("SUBGROUPS", self.subgroups)
            .constant("HIGH", self.high)
            .constant("SPREAD", self.spread)
            .constant("HEIGHT", self.height(4 * c4))
            .constant("HELD", self.held)
            .constant("NATIVE", usize::from(self.native))
    }

    /// Registers of a lane for sums, and for what is held beside: as many as there are elements, but AMD, whose subgroups alone are
    /// larger than 32 lanes, has each row of a matrix of operands in every sixteen.
    fn kept(&self, staging: &Staging, c: usize) -> [usize; 2] {
        let matrices = self.high * (self.width(c) / self.size).div_ceil(self.spread);
        let elements = self.size * self.size;
        let operand = if self.subgroup > 32 { self.size / 2 } else { (elements / 2).div_ceil(self.subgroup) };
        let sums = matrices * staging.scores * elements.div_ceil(self.subgroup);
        [sums, sums + matrices * self.held * operand]
    }

    /// Whether there are registers for what is held. Subgroups of eight are those of a CPU, whose registers are memory.
    fn keeps(&self, staging: &Staging, c: usize) -> bool {
        self.kept(staging, c)[1] <= KEPT || self.spread > 1 && self.subgroup <= 8
    }

    /// Elements that a lane has loaded and not yet staged.
    fn ahead(&self, staging: &Staging, c: usize) -> usize {
        staging.streamed * self.keys * self.width(c) / (self.subgroups * self.subgroup)
    }

    fn fits(&self, staging: &Staging, c: usize, limits: &Limits) -> bool {
        // A row has a lane, and each of its lanes whole vectors of scores and columns of a matrix. Two rows of matrices pay where
        // one operand of both need not be loaded again. Subgroups that share rows have as many columns each; forward there are none,
        // for sums are scaled on the way, each by one lane.
        self.subgroup.is_multiple_of(self.high * self.size)
            && self.keys.is_multiple_of(self.size)
            && self.keys.is_multiple_of(4 * self.across())
            && (self.spread * self.size).is_multiple_of(self.across())
            && (self.high == 1 || self.held > 0)
            && (self.spread == 1 || staging.of_rows > 1 && self.width(c).is_multiple_of(self.spread * self.size))
            && (self.subgroup <= 8 || self.kept(staging, c)[0] + self.ahead(staging, c) <= USED)
            && self.bytes(staging, c) <= limits.max_shared_bytes as usize
            && self.subgroups * self.subgroup <= limits.max_invocations as usize
    }

    /// Shared memory of `lib/attention_coop.wgsl` and of the kernels, bytes.
    fn bytes(&self, staging: &Staging, c: usize) -> usize {
        let (rows, width) = (self.rows(), self.width(c));
        let (own, streamed, turned) = (rows * (width + 8), self.keys * (width + 8), width * (self.keys + 8));
        let weights = rows * (self.keys + 8);
        let kept = staging.turned * turned + (staging.streamed - staging.spent) * streamed;
        let tiles = kept + weights.max(staging.spent * streamed);
        let staged = if self.held > 0 { tiles.max(own) } else { tiles };
        let product = rows * (self.spread * self.keys + 4 * self.across());
        // What lanes of a row tell each other and one word for all, or what is known of each streamed row.
        let told = if staging.hands_on { self.subgroups * self.subgroup + 4 } else { 4 * self.keys };
        2 * (staged + (staging.of_rows - self.held) * own) + 4 * (product + told)
    }
}

impl Tile {
    fn lanes(&self) -> usize {
        4 * self.rows / self.high
    }

    /// Streamed rows of a slab: the most whose whole heads fit where chunks of the streamed rows lie, of sixteen.
    fn slab(&self, c4: usize) -> usize {
        (0..=4).map(|i| 16 >> i).find(|rows| rows * c4 <= self.keys * (CHUNK + 1)).unwrap_or(1)
    }

    /// Its name among candidates.
    pub fn variant(&self) -> String {
        let high = if self.high > 1 { "_high" } else { "" };
        let whole = if self.whole { "_whole" } else { "" };
        let staged = if self.staged { "_staged" } else { "" };
        let shuffle = if self.shuffle { "_shuffle" } else { "" };
        format!("tile_{}x{}{high}{whole}{staged}{shuffle}", self.rows, self.keys)
    }

    /// Adds the header constants that the shaders read.
    pub fn constants(&self, kernel: Kernel, c4: usize) -> Kernel {
        let kernel = kernel
            .constant("C4", c4)
            .constant("ROWS", self.rows)
            .constant("KEYS", self.keys)
            .constant("HIGH", self.high)
            .constant("CHUNK", CHUNK)
            .constant("SLAB", self.slab(c4))
            .constant("WHOLE", usize::from(self.whole))
            .constant("STAGED", usize::from(self.staged));
        if self.shuffle { kernel.constant("SHUFFLE", 1) } else { kernel }
    }
}

#[cfg(test)]
mod tests {
    use super::super::attention::FORWARD;
    use super::super::attention_grad::KEY_VALUE;
    use super::*;

    #[test]
    fn tiles_fit_and_keep_a_device_busy() {
        let forward = FORWARD.staging;
        let backward = KEY_VALUE.staging;
        let small = Limits::default();
        let tiles = |staging: Staging, c4, rows, operands, limits: &Limits| {
            staging.tiles(c4, rows, 8, operands, limits).iter().map(Tile::variant).collect::<Vec<_>>()
        };
        let large = Limits { max_shared_bytes: 48 << 10, has_f16: true, min_subgroup: 32, ..small.clone() };
        assert_eq!(tiles(forward, 16, 5000, Operands::F32, &small), ["tile_32x64", "tile_16x64"]);
        assert_eq!(tiles(backward, 16, 5000, Operands::F32, &small), ["tile_64x64_high", "tile_64x64"]);
        let shuffled = ["tile_64x64_high_shuffle", "tile_64x64_shuffle"];
        assert_eq!(tiles(forward, 16, 5000, Operands::F32, &large), shuffled);
        let halves = ["tile_64x64_high_whole_staged", "tile_64x64_whole_staged"];
        assert_eq!(tiles(backward, 16, 5000, Operands::F16, &large), halves);
        // Rows that are too wide to be staged whole, and for a lane to have eight of.
        let wide = ["tile_64x64_staged", "tile_32x64_whole_staged"];
        assert_eq!(tiles(backward, 64, 5000, Operands::F16, &large), wide);
        // Fewer rows than keep the device busy, or than there are in a tile.
        assert_eq!(tiles(backward, 16, 400, Operands::F32, &large), ["tile_16x64", "tile_8x32"]);
        assert_eq!(tiles(backward, 16, 800, Operands::F32, &large), ["tile_32x64", "tile_16x64"]);
        assert_eq!(tiles(backward, 16, 7, Operands::F32, &large), ["tile_8x32"]);
        assert_eq!(tiles(backward, 16, 3, Operands::F32, &large), [""; 0]);
        // Fewer registers.
        let spare = Limits { min_subgroup: 8, max_subgroup: 32, ..large.clone() };
        assert_eq!(tiles(backward, 16, 5000, Operands::F32, &spare), ["tile_64x64", "tile_64x16"]);
        assert_eq!(tiles(backward, 16, 400, Operands::F32, &spare), ["tile_16x64", "tile_16x16"]);
        // What is offered first.
        assert_eq!(forward.portable(16, 5000, 8, Operands::F32).unwrap().variant(), "tile_32x64");
        assert_eq!(backward.portable(16, 5000, 8, Operands::F16).unwrap().variant(), "tile_64x64");
        // A head that is narrower than a chunk.
        assert_eq!(tiles(forward, 2, 5000, Operands::F32, &large), [""; 0]);
    }

    #[test]
    fn cooperative_matrices_are_for_halves_and_fit() {
        let limits = Limits {
            cooperative: vec![8, 16],
            has_f16: true,
            min_subgroup: 32,
            max_subgroup: 32,
            max_shared_bytes: 48 << 10,
            ..Limits::default()
        };
        let variants = |staging: Staging, c, rows, operands, limits: &Limits| {
            let tiles = staging.cooperative_tiles(c, [rows, 8], operands, limits);
            // Each as it is and native.
            assert!(tiles.chunks(2).all(|both| !both[0].native && both[1] == Coop { native: true, ..both[0] }));
            tiles.iter().step_by(2).map(Coop::variant).collect::<Vec<_>>()
        };
        let forward = |c, rows, limits: &Limits| variants(FORWARD.staging, c, rows, Operands::F16, limits);
        let backward = |c, rows, limits: &Limits| variants(KEY_VALUE.staging, c, rows, Operands::F16, limits);
        assert_eq!(variants(FORWARD.staging, 64, 5000, Operands::F32, &limits), [""; 0]);
        let of_8 = ["coop_8_64x32_high", "coop_8_32x32"];
        assert_eq!(forward(64, 5000, &limits), [&of_8[..], &["coop_16_128x32_high", "coop_16_64x32"]].concat());
        // More of both fits neither registers nor shared memory.
        assert_eq!(backward(64, 5000, &limits), [&of_8[..], &["coop_16_64x32", "coop_16_32x32_spread"]].concat());
        // Wide heads are shared out among subgroups.
        let wide = ["coop_8_16x16_spread", "coop_8_8x16_spread", "coop_16_16x16_spread"];
        assert_eq!(backward(256, 5000, &limits), wide);
        assert_eq!(backward(192, 5000, &limits)[2..], ["coop_16_16x16_spread"]);
        // Unless columns of matrices are no multiple of subgroups.
        assert_eq!(backward(80, 5000, &limits)[2..], ["coop_16_64x32", "coop_16_32x32"]);
        // Fewer rows than keep the device busy.
        let few = ["coop_8_16x32", "coop_8_8x32", "coop_16_32x32", "coop_16_16x32"];
        assert_eq!(forward(64, 400, &limits), few);
        // What every adapter has.
        let least = Limits { max_shared_bytes: 16 << 10, ..limits.clone() };
        let small = ["coop_8_32x16", "coop_8_16x32", "coop_16_64x16", "coop_16_32x16"];
        assert_eq!(forward(64, 5000, &least), small);
        let small = ["coop_8_32x16", "coop_8_16x16_spread", "coop_16_32x16", "coop_16_16x16_spread"];
        assert_eq!(backward(64, 5000, &least), small);
        // Larger subgroups have more lanes a row, smaller ones fewer rows of matrices.
        let large = Limits { max_subgroup: 64, max_shared_bytes: 64 << 10, ..limits.clone() };
        assert_eq!(backward(64, 5000, &large)[2..], ["coop_16_128x32_high", "coop_16_64x32"]);
        let eight = Limits { min_subgroup: 8, max_subgroup: 8, ..limits };
        assert_eq!(backward(64, 5000, &eight), ["coop_8_32x32", "coop_8_16x32_spread"]);
    }
}
