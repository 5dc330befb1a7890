//! Tiles of attention's kernels that go through shared memory: sizes that a device has room for. Legend as in
//! `attention_sizes.rs`; a row is a query of one head, or a key where keys are what a workgroup makes.

use super::operands::Operands;
use crate::base::Limits;
use crate::graph::Kernel;

/// Rows of a workgroup, how many of the others it streams at a time, and fours of rows that sixteen lanes share, the best
/// first, wherever there is work for many: the more sums a lane has, the fewer loads from shared memory feed each.
const SIZES: [[usize; 3]; 5] = [[64, 64, 2], [64, 64, 1], [32, 64, 1], [16, 64, 1], [8, 32, 1]];
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
        SIZES.into_iter().filter(move |size| c4 >= CHUNK && size[0] < 2 * all).filter_map(fitting)
    }

    /// Those that are worth a try for rows of so many heads and sequences.
    pub fn tiles(&self, c4: usize, all: usize, heads: usize, operands: Operands, limits: &Limits) -> Vec<Tile> {
        let tiles: Vec<Tile> = self.fitting(c4, all, operands, limits).collect();
        let few = tiles.iter().take_while(|tile| all.div_ceil(tile.rows) * heads < FEW).count();
        tiles[few.min(tiles.len().saturating_sub(TRIED))..].iter().copied().take(TRIED).collect()
    }

    /// The tile that every adapter can run, of a moderate number of registers: the first candidate.
    pub fn portable(&self, c4: usize, all: usize, heads: usize, operands: Operands) -> Option<Tile> {
        self.tiles(c4, all, heads, operands, &Limits::default()).into_iter().find(|tile| tile.high == 1)
    }

    /// Cooperative matrices of the sizes that the adapter has, where each row has a lane: as many rows as there is room for.
    /// Of subgroups that may be smaller than the largest, several make the same matrices: what is right for the largest is
    /// right for all.
    pub fn cooperative(&self, c: usize, operands: Operands, limits: &Limits) -> Vec<Coop> {
        let subgroup = limits.max_subgroup as usize;
        if !operands.are_half() {
            return Vec::new();
        }
        let fits = |coop: &Coop| {
            coop.bytes(self, c) <= limits.max_shared_bytes as usize
                && coop.subgroups * subgroup <= limits.max_invocations as usize
        };
        let sizes = limits.cooperative.iter().map(|&size| size as usize);
        // A row has a lane, and its lanes have scores.
        let sizes = sizes.filter(|&size| subgroup.is_multiple_of(size) && 16usize.is_multiple_of(subgroup / size));
        let largest = |size| {
            let coop = |&[subgroups, keys]: &[usize; 2]| Coop { size, subgroup, subgroups, keys };
            COOP_SIZES.iter().map(coop).find(fits)
        };
        sizes.filter_map(largest).collect()
    }

    fn fits(&self, tile: &Tile, c4: usize, limits: &Limits) -> bool {
        let lanes = tile.lanes();
        let held = 4 * tile.high * (4 * self.scores * c4.div_ceil(16) + self.of_rows * tile.keys / 16);
        let own = if tile.whole { self.of_rows * (c4.next_multiple_of(CHUNK) + 1) } else { CHUNK + 1 };
        let vectors = tile.rows * own + tile.keys * (CHUNK + 1) + 16 * (tile.rows / 4 + 1);
        let handed = if self.hands_on && !tile.shuffle { lanes * BYTES } else { 0 };
        let vector = if tile.staged { BYTES / 2 } else { BYTES };
        vectors * vector + handed <= limits.max_shared_bytes as usize
            && lanes <= limits.max_invocations as usize
            && (tile.high == 1 || held <= HELD)
    }
}

/// One specialisation for cooperative matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Coop {
    size: usize,
    subgroup: usize,
    /// Subgroups of a workgroup, each with `size` rows.
    subgroups: usize,
    keys: usize,
}

/// Subgroups of a workgroup and keys of a tile of cooperative matrices, the best first.
const COOP_SIZES: [[usize; 2]; 4] = [[4, 32], [2, 32], [1, 32], [1, 16]];

impl Coop {
    /// Rows of a workgroup.
    pub fn rows(&self) -> usize {
        self.subgroups * self.size
    }

    /// Its name among candidates.
    pub fn variant(&self) -> String {
        format!("coop_{}_{}x{}", self.size, self.rows(), self.keys)
    }

    /// Adds the header constants that the shaders read.
    pub fn constants(&self, kernel: Kernel, c4: usize) -> Kernel {
        kernel
            .constant("C4", c4)
            .constant("KEYS", self.keys)
            .constant("SIZE", self.size)
            .constant("SIZE_16", usize::from(self.size == 16))
            .constant("SUBGROUP", self.subgroup)
            .constant("SUBGROUPS", self.subgroups)
    }

    /// Shared memory of `lib/attention_coop.wgsl`, bytes.
    fn bytes(&self, staging: &Staging, c: usize) -> usize {
        let width = c.next_multiple_of(self.size);
        let heads = (staging.of_rows * self.rows() + staging.streamed * self.keys) * (width + 8);
        let scores = staging.scores * self.rows() * (self.keys + 8);
        let product = self.rows() * (width.max(self.keys) + 4);
        let told = if staging.hands_on { self.subgroups * self.subgroup } else { 0 };
        2 * (heads + scores) + 4 * (product + told)
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
    use super::*;

    #[test]
    fn tiles_fit_and_keep_a_device_busy() {
        let forward = Staging { of_rows: 1, streamed: 1, scores: 1, hands_on: true };
        let backward = Staging { of_rows: 2, streamed: 2, scores: 2, hands_on: false };
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
        // What is offered first.
        assert_eq!(forward.portable(16, 5000, 8, Operands::F32).unwrap().variant(), "tile_32x64");
        assert_eq!(backward.portable(16, 5000, 8, Operands::F16).unwrap().variant(), "tile_64x64");
        // A head that is narrower than a chunk.
        assert_eq!(tiles(forward, 2, 5000, Operands::F32, &large), [""; 0]);
    }

    #[test]
    fn cooperative_matrices_are_for_halves_and_fit() {
        let backward = Staging { of_rows: 2, streamed: 2, scores: 2, hands_on: false };
        let limits = Limits {
            cooperative: vec![8, 16],
            has_f16: true,
            min_subgroup: 32,
            max_subgroup: 32,
            max_shared_bytes: 48 << 10,
            ..Limits::default()
        };
        let variants = |c, operands, limits: &Limits| {
            backward.cooperative(c, operands, limits).iter().map(Coop::variant).collect::<Vec<_>>()
        };
        assert_eq!(variants(64, Operands::F32, &limits), [""; 0]);
        assert_eq!(variants(64, Operands::F16, &limits), ["coop_8_32x32", "coop_16_32x32"]);
        assert_eq!(variants(256, Operands::F16, &limits), ["coop_8_8x16"]);
        // Smaller subgroups make what the largest would, and a row must have a lane.
        let smaller = Limits { min_subgroup: 16, ..limits.clone() };
        assert_eq!(variants(64, Operands::F16, &smaller), ["coop_8_32x32", "coop_16_32x32"]);
        let eight = Limits { min_subgroup: 8, max_subgroup: 8, ..limits };
        assert_eq!(variants(64, Operands::F16, &eight), ["coop_8_32x32"]);
    }
}
