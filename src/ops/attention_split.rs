//! Gradients of keys and values whose sums over the queries are split: where there are few keys, each tile's queries are cut
//! into parts that workgroups of their own sum, in scratch memory, and a second stage adds them up, in order. For GPUs,
//! whose workgroups would not be enough to fill them. Legend as in `attention_sizes.rs`.

use super::attention_sizes::Sizes;
use super::matmul_split::sums;
use crate::base::{Limits, TensorType};
use crate::graph::{Kernel, Operand};

/// Workgroups that sums are split for, if there are less than half as many.
const WORKGROUPS: usize = 256;
/// The most parts: beyond, the second stage costs what the first one saves.
const MOST: usize = 8;
/// Rows of queries that a part has at least: those of a tile.
const ROWS: usize = 64;

/// Parts of the queries of each of so many tiles of keys.
fn parts(z: &Sizes, tiles: usize) -> usize {
    (WORKGROUPS / tiles).min(z.t * z.group() / ROWS).min(MOST)
}

/// Elements of dk, and of dv.
fn elements(z: &Sizes) -> usize {
    z.b * z.s * z.k * z.c
}

/// Bytes of scratch for so many parts of dk, or of dv.
fn bytes(z: &Sizes, parts: usize, limits: &Limits) -> u64 {
    ((4 * elements(z) * parts) as u64).next_multiple_of(limits.binding_alignment.max(4))
}

/// Of tiles, the largest first, with their sums split: the first that makes half as many workgroups as are aimed at, or the last.
pub(super) fn best(tiles: impl Iterator<Item = Kernel>, z: &Sizes, limits: &Limits) -> Option<Kernel> {
    let groups = |kernel: &Kernel| kernel.dispatches[0].workgroups.iter().product::<u32>() as usize;
    let splits: Vec<Kernel> = tiles.filter_map(|tile| split(tile, z, limits)).collect();
    splits.iter().find(|split| groups(split) >= WORKGROUPS / 2).or(splits.last()).cloned()
}

/// A kernel of one dispatch, with its sums split where it may pay.
fn split(mut kernel: Kernel, z: &Sizes, limits: &Limits) -> Option<Kernel> {
    let [dispatch] = kernel.dispatches.as_mut_slice() else { return None };
    let parts = parts(z, dispatch.workgroups.iter().map(|&n| n as usize).product());
    let (each, x) = (bytes(z, parts, limits), dispatch.workgroups[0] as usize * parts);
    if limits.is_cpu || parts < 2 || each > limits.max_binding_bytes || x > limits.max_workgroups as usize {
        return None;
    }
    dispatch.workgroups[0] = x as u32;
    for binding in &mut dispatch.bindings {
        if let Operand::Output(i) = binding.operand {
            (binding.operand, binding.offset, binding.bytes) =
                (Operand::Scratch, i as u64 * each, (4 * elements(z) * parts) as u64);
        }
    }
    kernel.variant += &format!("_split_{parts}");
    kernel.scratch = 2 * each;
    kernel.then = vec![sums(parts, &TensorType::f32([elements(z)]), &[0, each], limits)];
    Some(kernel.constant("PARTS", parts))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Dispatch;

    #[test]
    fn few_keys_and_many_queries_are_split() {
        let limits = Limits::default();
        let kernel = |rows: usize, z: &Sizes| {
            let groups = [z.s.div_ceil(rows) as u32, z.k as u32, z.b as u32];
            Kernel::new("attention_grad_key_value_tile", rows.to_string()).dispatch(Dispatch::new(groups))
        };
        let split = |z: &Sizes| {
            let best = best([64, 32, 16, 8].map(|rows| kernel(rows, z)).into_iter(), z, &limits);
            best.map(|kernel| (kernel.variant, kernel.dispatches[0].workgroups))
        };
        let sizes = |b, t, k| Sizes { b, t, s: t, h: 3 * k, k, c: 64 };
        // SmolLM2's rows of 1,024 and 128 tokens, a full device, and too few queries.
        assert_eq!(split(&sizes(1, 1024, 3)), Some(("64_split_5".into(), [80, 3, 1])));
        assert_eq!(split(&sizes(1, 128, 3)), Some(("16_split_6".into(), [48, 3, 1])));
        assert_eq!(split(&sizes(4, 1024, 3)), None);
        assert_eq!(split(&sizes(1, 40, 1)), None);
    }
}
