//! Puts the keys or values of new positions into a cache.

use crate::base::{Array, DType, Limits, TensorType};
use crate::error::Result;
use crate::graph::{Cost, Dispatch, Io, Kernel, Op, Operand, spread};

/// Writes x `[B,T,K,C]` over rows position .. position + T of a state `[B,S,K,C]`, in place; rows beyond S are dropped.
/// Inputs: x, the state, position u32 `[1]`. No outputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheWrite;

const WORKGROUP: usize = 64;

impl Op for CacheWrite {
    fn name(&self) -> &'static str {
        "cache_write"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [x, cache, position] = inputs else { return Err("takes x, the cache and a position".into()) };
        super::attention::check_position(position)?;
        let (&[b, _, k, c], &[cb, _, ck, cc]) = (x.shape.dims(), cache.shape.dims()) else {
            return Err("x must be [B,T,K,C] and the cache [B,S,K,C]".into());
        };
        if (b, k, c) != (cb, ck, cc) || x.dtype != DType::F32 || cache.dtype != DType::F32 {
            return Err("x and the cache must be f32 and differ in their second dim only".into());
        }
        Ok(vec![])
    }

    fn writes(&self) -> Vec<usize> {
        vec![1]
    }

    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        let (&[b, t, k, c], &[_, s, ..]) = (io.inputs[0].shape.dims(), io.inputs[1].shape.dims()) else {
            unreachable!("checked when the node was made")
        };
        let row = k * c;
        let mut kernel = Kernel::new("cache_write", "scalar").constant("WORKGROUP", WORKGROUP);
        let fit = (limits.max_binding_bytes / (4 * row * s.max(t)) as u64).max(1) as usize;
        let step = if fit >= b { b } else { (fit / 64 * 64).max(1) };
        for first in (0..b).step_by(step) {
            let count = step.min(b - first);
            let (from, to) = ((t * row * 4) as u64, (s * row * 4) as u64);
            let d = Dispatch::new(spread((count * t * row).div_ceil(WORKGROUP), limits))
                .bind("x", Operand::Input(0), first as u64 * from, count as u64 * from)
                .bind("cache", Operand::Input(1), first as u64 * to, count as u64 * to)
                .bind("position", Operand::Input(2), 0, 4)
                .param("count", count * t * row)
                .param("row", row)
                .param("queries", t)
                .param("keys", s);
            kernel = kernel.dispatch(d);
        }
        vec![kernel]
    }

    fn cost(&self, io: &Io) -> Cost {
        Cost { flops: 0, bytes: 2 * io.inputs[0].bytes() }
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let (&[b, t, k, c], &[_, s, ..]) = (inputs[0].dims(), inputs[1].dims()) else {
            unreachable!("checked when the node was made")
        };
        let (row, position) = (k * c, inputs[2].data[0] as usize);
        let mut cache = inputs[1].clone();
        for (entry, time) in (0..b).flat_map(|e| (0..t).map(move |t| (e, t))).filter(|(_, time)| position + time < s) {
            let (from, to) = ((entry * t + time) * row, (entry * s + position + time) * row);
            cache.data[to..to + row].copy_from_slice(&inputs[0].data[from..from + row]);
        }
        vec![cache]
    }
}
