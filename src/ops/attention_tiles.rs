//! Tiles of attention's kernels that go through shared memory: sizes that a device has room for. Legend as in
//! `attention_sizes.rs`; a row is a query of one head, or a key where keys are what a workgroup makes.

use super::operands::Operands;
use crate::base::Limits;
use crate::graph::Kernel;

/// Rows of a workgroup, and how many of the others it stages at a time, the best first. Four lanes to a row.
const SIZES: [[usize; 2]; 5] = [[64, 32], [64, 16], [32, 32], [32, 16], [16, 16]];
/// Vectors of four elements that a chunk of a head has at most.
const WIDEST: usize = 32;
/// Vectors of a chunk of a head that is wider.
const CHUNKS: [usize; 2] = [16, 8];
/// Sizes that are tried on a device; for heads of fewer than eight vectors, which no model has, one, or none.
fn tried(c4: usize) -> usize {
    match c4 {
        0..4 => 0,
        4..8 => 1,
        _ => 2,
    }
}

/// Bytes of a vector in f32.
const BYTES: usize = 16;

/// What a shader stages.
#[derive(Debug, Clone, Copy)]
pub(super) struct Staging {
    /// Tensors by rows, and tensors that stream by.
    pub of_rows: usize,
    pub streamed: usize,
    /// Scores, of each row and streamed one.
    pub scores: usize,
    /// Lanes hand on vectors of f32 of their own, unless they may shuffle.
    pub hands_on: bool,
}

/// One specialisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tile {
    pub rows: usize,
    keys: usize,
    chunk: usize,
    /// Elements lie in shared memory as f16.
    staged: bool,
    shuffle: bool,
}

impl Staging {
    /// The tiles that are worth a try, for heads of `c4` vectors and so many rows.
    pub fn tiles(&self, c4: usize, all: usize, operands: Operands, limits: &Limits) -> Vec<Tile> {
        let staged = operands.are_half() && limits.has_f16;
        let shuffle = self.hands_on && limits.min_subgroup >= 16;
        let chunks = [c4.min(WIDEST)].into_iter().chain(CHUNKS).filter(|&chunk| chunk <= c4);
        let sizes = SIZES.iter().filter(|size| size[0] < 2 * all);
        let fitting = sizes.filter_map(|&[rows, keys]| {
            let tile = |chunk| Tile { rows, keys, chunk, staged, shuffle };
            chunks.clone().map(tile).find(|tile| self.fits(tile, limits))
        });
        fitting.take(tried(c4)).collect()
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

    fn fits(&self, tile: &Tile, limits: &Limits) -> bool {
        let vector = if tile.staged { BYTES / 2 } else { BYTES };
        let rows = self.of_rows * tile.rows + self.streamed * tile.keys;
        let scores = self.scores * tile.keys * tile.rows / 4;
        let handed = if self.hands_on && !tile.shuffle { 4 * tile.rows * BYTES } else { 0 };
        let bytes = vector * (rows * (tile.chunk + 1) + scores) + handed;
        bytes <= limits.max_shared_bytes as usize && 4 * tile.rows <= limits.max_invocations as usize
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
    /// Its name among candidates.
    pub fn variant(&self) -> String {
        let staged = if self.staged { "_staged" } else { "" };
        let shuffle = if self.shuffle { "_shuffle" } else { "" };
        format!("tile_{}x{}x{}{staged}{shuffle}", self.rows, self.keys, 4 * self.chunk)
    }

    /// Adds the header constants that the shaders read.
    pub fn constants(&self, kernel: Kernel, c4: usize) -> Kernel {
        let kernel = kernel
            .constant("C4", c4)
            .constant("ROWS", self.rows)
            .constant("KEYS", self.keys)
            .constant("CHUNK", self.chunk)
            .constant("STAGED", usize::from(self.staged));
        if self.shuffle { kernel.constant("SHUFFLE", 1) } else { kernel }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_fit_and_are_wide() {
        let forward = Staging { of_rows: 1, streamed: 1, scores: 1, hands_on: true };
        let small = Limits::default();
        let tiles = |c4, operands, limits: &Limits| {
            forward.tiles(c4, 1000, operands, limits).iter().map(Tile::variant).collect::<Vec<_>>()
        };
        assert_eq!(tiles(16, Operands::F32, &small), ["tile_32x32x32", "tile_32x16x32"]);
        let large = Limits { max_shared_bytes: 48 << 10, has_f16: true, min_subgroup: 32, ..small.clone() };
        assert_eq!(tiles(16, Operands::F32, &large), ["tile_64x32x64_shuffle", "tile_64x16x64_shuffle"]);
        let narrow = tiles(32, Operands::F16, &large);
        assert_eq!(narrow, ["tile_64x32x128_staged_shuffle", "tile_64x16x128_staged_shuffle"]);
        // A head that no chunk divides, and one that is narrower than any.
        assert!(tiles(20, Operands::F32, &large)[0].starts_with("tile_64x32x80"));
        assert_eq!(tiles(4, Operands::F32, &small), ["tile_64x16x16"]);
        assert_eq!(tiles(2, Operands::F32, &small), [""; 0]);
        // No more rows than there are.
        assert_eq!(forward.tiles(16, 3, Operands::F32, &large).len(), 0);
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
