//! Puts the keys or values of new positions into a cache.

use super::attention_sizes::{cache_constants, check_cache, check_position, each};
use crate::base::{Array, DType, Limits, TensorType, Tolerance};
use crate::error::Result;
use crate::graph::{Cost, Dispatch, Io, Kernel, Op, Operand, spread};

/// Writes x f32 `[B,T,K,C]` over rows position .. position + T of a state `[B,S,K,C]`, in place; rows beyond S are
/// dropped. Inputs: x, the state, position u32 `[1]`, or `[B]` with one for each sequence. No outputs.
///
/// The state is f32, f16 (rounded to one of the two neighbours), or Q8_0: of each 32 elements of a token, numbered over
/// its K·C, the largest size is divided by 127 to give the scale, an f16, and each element is the nearest multiple of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheWrite;

const WORKGROUP: usize = 64;

impl Op for CacheWrite {
    fn name(&self) -> &'static str {
        "cache_write"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [x, cache, position] = inputs else { return Err("takes x, the cache and a position".into()) };
        let (&[b, _, k, c], &[cb, _, ck, cc]) = (x.shape.dims(), cache.shape.dims()) else {
            return Err("x must be [B,T,K,C] and the cache [B,S,K,C]".into());
        };
        if (b, k, c) != (cb, ck, cc) || x.dtype != DType::F32 {
            return Err("x must be f32 and differ from the cache in the second dim only".into());
        }
        check_cache(cache)?;
        check_position(position, b)?;
        Ok(vec![])
    }

    fn writes(&self) -> Vec<usize> {
        vec![1]
    }

    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        let (&[b, t, k, c], &[_, s, ..]) = (io.inputs[0].shape.dims(), io.inputs[1].shape.dims()) else {
            unreachable!("checked when the node was made")
        };
        let (dtype, position) = (io.inputs[1].dtype, &io.inputs[2]);
        let kernel = Kernel::new("cache_write", "cells").constant("WORKGROUP", WORKGROUP);
        let mut kernel = cache_constants(dtype, each(kernel, Some(position)));
        let fit = (limits.max_binding_bytes / (4 * k * c * s.max(t)) as u64).max(1) as usize;
        let step = if fit >= b { b } else { (fit / 64 * 64).max(1) };
        let row = k * c / dtype.block().elements;
        for first in (0..b).step_by(step) {
            let count = step.min(b - first);
            let (from, to) = (io.inputs[0].bytes() / b as u64, io.inputs[1].bytes() / b as u64);
            let d = Dispatch::new(spread((count * t * row).div_ceil(WORKGROUP), limits))
                .bind("x", Operand::Input(0), first as u64 * from, count as u64 * from)
                .bind("cache", Operand::Input(1), first as u64 * to, count as u64 * to)
                .bind("position", Operand::Input(2), 0, position.bytes())
                .param("count", count * t * row)
                .param("row", row)
                .param("queries", t)
                .param("keys", s)
                .param("entry", first);
            kernel = kernel.dispatch(d);
        }
        vec![kernel]
    }

    fn cost(&self, io: &Io) -> Cost {
        let x = &io.inputs[0];
        Cost { flops: 0, bytes: x.bytes() + io.inputs[1].dtype.size(x.shape.elements()) }
    }

    fn tolerance(&self, io: &Io) -> Tolerance {
        Tolerance::f32(1).stored_as(io.inputs[1].dtype)
    }

    /// What is written, before it is rounded to the cache's dtype.
    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let (&[b, t, k, c], &[_, s, ..]) = (inputs[0].dims(), inputs[1].dims()) else {
            unreachable!("checked when the node was made")
        };
        let (row, position) = (k * c, &inputs[2].data);
        let mut cache = Array::new(inputs[1].ty.clone(), inputs[1].data.clone());
        for (entry, time) in (0..b).flat_map(|e| (0..t).map(move |t| (e, t))) {
            let at = position[entry.min(position.len() - 1)] as usize + time;
            if at < s {
                let (from, to) = ((entry * t + time) * row, (entry * s + at) * row);
                cache.data[to..to + row].copy_from_slice(&inputs[0].data[from..from + row]);
            }
        }
        vec![cache]
    }
}
