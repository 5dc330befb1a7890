//! Products whose sums are split: where C has few tiles and a long sum, each tile's sum is cut into slices that workgroups
//! of their own make, in scratch memory, and a second stage adds them up, in order. For GPUs, whose workgroups would not be
//! enough to fill them.

use super::matmul::Sizes;
use crate::base::{DType, Limits, TensorType};
use crate::graph::{Dispatch, Io, Kernel, Op, Operand, spread};

/// Workgroups that a product is split for, if it has less than half as many.
const WORKGROUPS: usize = 256;
/// The most slices: beyond, the second stage costs what the first one saves.
const MOST: usize = 16;
/// What a slice's length is a multiple of: every kernel's steps along the sum are.
const STEP: usize = 32;
/// A slice has at least so many steps.
const STEPS: usize = 2;
/// Elements of one workgroup of `matmul_sum.wgsl`.
const WORKGROUP: usize = 64;

/// How a sum is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Split {
    /// Number of slices, two or more; the last may be shorter.
    pub(super) slices: usize,
    /// Length of one.
    pub(super) length: usize,
}

impl Split {
    /// For tiles of this size, where it may pay.
    pub(super) fn of(s: Sizes, tile: [usize; 2], limits: &Limits) -> Option<Split> {
        let tiles = s.m.div_ceil(tile[0]) * s.n.div_ceil(tile[1]);
        let wanted = (WORKGROUPS / tiles).min(MOST).min(s.k / (STEP * STEPS));
        if s.batch != 1 || wanted < 2 {
            return None;
        }
        let length = s.k.div_ceil(wanted).next_multiple_of(STEP);
        let split = Split { slices: s.k.div_ceil(length), length };
        (split.slices >= 2 && split.bytes(s) <= limits.max_binding_bytes).then_some(split)
    }

    /// Bytes of scratch.
    pub(super) fn bytes(&self, s: Sizes) -> u64 {
        (self.slices * s.m * s.n) as u64 * 4
    }

    /// A kernel of one dispatch that makes all of C, with its sum cut; the type of C.
    pub(super) fn apply(&self, mut kernel: Kernel, s: Sizes, c: &TensorType, limits: &Limits) -> Option<Kernel> {
        let [dispatch] = kernel.dispatches.as_mut_slice() else { return None };
        dispatch.workgroups[2] = u32::try_from(self.slices).ok()?;
        for (name, value) in &mut dispatch.params {
            match *name {
                // Slices take the place of a batch's matrices, of which there is one.
                "batch_a" | "batch_b" => *value = 0u32.into(),
                "batch_c" => *value = (s.m * s.n).into(),
                _ => {}
            }
        }
        dispatch.params.push(("slice", self.length.into()));
        let output = dispatch.bindings.iter_mut().find(|b| b.operand == Operand::Output(0))?;
        (output.operand, output.bytes) = (Operand::Scratch, self.bytes(s));
        // The tuner knows a kernel by its first stage.
        kernel.variant += if c.dtype == DType::F16 { "_split_to_f16" } else { "_split" };
        kernel.scratch = self.bytes(s);
        kernel.then = vec![sums(self.slices, c, &[0], limits).writing(c)];
        Some(kernel.constant("SPLIT", 1))
    }
}

/// The most scratch memory that a kernel of an operator wants whose sums may be split: those of a CPU never are.
pub(super) fn scratch(op: &dyn Op, io: &Io, limits: &Limits) -> u64 {
    let kernels = if limits.is_cpu { Vec::new() } else { op.kernels(io, limits) };
    kernels.iter().map(|kernel| kernel.scratch).max().unwrap_or(0)
}

/// The second stage: adds up so many slices of each output, all of one type; they begin in scratch memory at these places.
pub(super) fn sums(slices: usize, ty: &TensorType, places: &[u64], limits: &Limits) -> Kernel {
    let count = ty.shape.elements();
    let groups = spread(count.div_ceil(WORKGROUP), limits);
    let kernel = Kernel::new("matmul_sum", "sum").constant("WORKGROUP", WORKGROUP);
    places.iter().enumerate().fold(kernel, |kernel, (output, &place)| {
        let d = Dispatch::new(groups)
            .param("count", count)
            .param("slices", slices)
            .param("row", groups[0])
            .bind("parts", Operand::Scratch, place, 4 * (slices * count) as u64)
            .bind("c", Operand::Output(output), 0, ty.bytes());
        kernel.dispatch(d)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_tiles_and_long_sums_are_split() {
        let limits = Limits::default();
        let split = |m, n, k| Split::of(Sizes { batch: 1, m, n, k }, [64, 64], &limits).map(|s| (s.slices, s.length));
        // 18 tiles by SmolLM2's sums; 128 tiles; one tile; a sum that is too short.
        assert_eq!(split(128, 576, 576), Some((9, 64)));
        assert_eq!(split(128, 576, 1536), Some((12, 128)));
        assert_eq!(split(1024, 1024, 4096), None);
        assert_eq!(split(64, 64, 100), None);
        assert_eq!(split(64, 64, 1 << 20), Some((16, 1 << 16)));
        // Slices of which none is empty.
        for k in (128..5000).step_by(36) {
            if let Some((slices, length)) = split(64, 100, k) {
                assert!((slices - 1) * length < k && slices * length >= k && length % 32 == 0, "{k}");
            }
        }
    }
}
