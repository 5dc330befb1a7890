//! Candidates of [`MatMul`] by cooperative matrices: the tiles that an adapter has room for.

use super::matmul::{MatMul, Sizes};
use super::matmul_kernels::Tier;
use crate::base::{DType, Limits};

/// A specialisation of `matmul_coop.wgsl`, but for its operands.
#[derive(Clone, Copy)]
pub(super) struct Coop {
    /// Rows and columns of a matrix, and matrices along either side of a tile.
    size: usize,
    side: usize,
    subgroup: usize,
}

impl Coop {
    const SIDES: [usize; 2] = [4, 8];
    /// The shader's TILE_K, and elements from a row of a tile in shared memory to the next.
    const TILE_K: usize = 32;
    const STEP: usize = Coop::TILE_K + 8;

    /// Those that an adapter has room for. Of subgroups that may be smaller than the largest, several make the same matrices:
    /// what is right for the largest is right for all.
    pub(super) fn all(limits: &Limits) -> Vec<Coop> {
        let subgroup = limits.max_subgroup as usize;
        let sizes = limits.cooperative.iter().map(|&size| size as usize);
        let all = sizes.flat_map(|size| Coop::SIDES.map(|side| Coop { size, side, subgroup }));
        all.filter(|coop| coop.fits(limits)).collect()
    }

    /// Rows and columns of a tile.
    pub(super) fn tile(&self) -> usize {
        self.side * self.size
    }

    /// A subgroup makes half of the matrices of as many columns as its lanes have of a matrix's elements.
    fn fits(&self, limits: &Limits) -> bool {
        let along = self.subgroup / self.size;
        if along == 0 || !self.subgroup.is_multiple_of(self.size) || !self.side.is_multiple_of(along) {
            return false;
        }
        let lanes = self.tile() * Coop::TILE_K / 16;
        let (staged, out) = (4 * self.tile() * Coop::STEP, 2 * self.side / along * self.size * self.size);
        lanes <= limits.max_invocations as usize && 2 * staged + 4 * out <= limits.max_shared_bytes as usize
    }
}

impl MatMul {
    /// Cooperative matrices of the sizes that the adapter has; B of other dtypes than f32 and f16 is decoded on its way into shared
    /// memory. Their tiles are no larger than C, but for the smaller ones.
    pub(super) fn cooperative(&self, s: Sizes, dtype: DType, limits: &Limits) -> impl Iterator<Item = Tier> {
        let is_decoded = !matches!(dtype, DType::F32 | DType::F16);
        let by_four = |row: usize| usize::from(row.is_multiple_of(4));
        let vector_a = by_four(if self.transpose_a { s.m } else { s.k });
        let vector_b = if is_decoded { 0 } else { by_four(if self.transpose_b { s.k } else { s.n }) };
        let fits = move |coop: &Coop| coop.side == Coop::SIDES[0] || coop.tile() <= s.m.min(s.n);
        let kinds = Coop::all(limits).into_iter().filter(fits).flat_map(|coop| [(coop, ""), (coop, "_native")]);
        kinds.map(move |(coop, native)| {
            let (tile, size) = (coop.tile(), coop.size);
            let tier = self.tier("matmul_coop", format!("coop_{size}_{tile}x{tile}{native}"), dtype, [tile, tile]);
            tier.constant("SIZE", size)
                .constant("SIZE_16", usize::from(size == 16))
                .constant("SIDE", coop.side)
                .constant("SUBGROUP", coop.subgroup)
                .constant("VECTOR_A", vector_a)
                .constant("VECTOR_B", vector_b)
                .constant("DECODED", usize::from(is_decoded))
                .constant("TABLE_IN_OUT", usize::from(dtype == DType::Nf4))
                .constant("NATIVE", usize::from(!native.is_empty()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Operands;

    #[test]
    fn cooperative_tiles_are_those_that_there_is_room_for() {
        let limits = |cooperative: &[u32], subgroups: [u32; 2], kib: u32| Limits {
            cooperative: cooperative.to_vec(),
            has_f16: true,
            min_subgroup: subgroups[0],
            max_subgroup: subgroups[1],
            max_shared_bytes: kib << 10,
            ..Limits::default()
        };
        let tiles =
            |limits: &Limits| Coop::all(limits).iter().map(|c| (c.size, c.tile(), c.subgroup)).collect::<Vec<_>>();
        assert_eq!(tiles(&limits(&[16], [32, 32], 48)), [(16, 64, 32), (16, 128, 32)]);
        // For the largest subgroup that a driver may make.
        assert_eq!(tiles(&limits(&[16], [32, 64], 64)), [(16, 64, 64), (16, 128, 64)]);
        assert_eq!(tiles(&limits(&[8], [32, 32], 32)), [(8, 32, 32), (8, 64, 32)]);
        assert_eq!(tiles(&limits(&[8, 16], [32, 32], 16)), [(8, 32, 32)]);
        // A subgroup has a column of a matrix at least, and no more than a row of its tile.
        assert!(tiles(&limits(&[16], [8, 8], 48)).is_empty());
        assert_eq!(tiles(&limits(&[16], [128, 128], 64)), [(16, 128, 128)]);
    }

    #[test]
    fn larger_tiles_are_for_products_as_large() {
        let limits = Limits {
            cooperative: vec![16],
            has_f16: true,
            min_subgroup: 32,
            max_subgroup: 32,
            max_shared_bytes: 48 << 10,
            ..Limits::default()
        };
        let op = MatMul::linear().with(Operands::F16);
        let names = |m| {
            let tiers = op.cooperative(Sizes { batch: 1, m, n: 200, k: 64 }, DType::F32, &limits);
            tiers.map(|tier| tier.variant().to_string()).collect::<Vec<_>>()
        };
        let small = ["coop_16_64x64_half", "coop_16_64x64_native_half"];
        assert_eq!(names(127), small);
        assert_eq!(names(128)[..2], small);
        assert_eq!(names(128)[2..], ["coop_16_128x128_half", "coop_16_128x128_native_half"]);
    }
}
