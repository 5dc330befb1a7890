//! Puts keys and values of new positions into a cache, and turns keys and queries to their positions on the way.

use super::attention_sizes::{cache_constants, check_cache, check_position, each};
use super::rope::Rope;
use super::windows::entries;
use crate::base::{Array, DType, Limits, TensorType, Tolerance};
use crate::error::Result;
use crate::graph::{Cost, Dispatch, Io, Kernel, Op, Operand, spread};

/// Writes k and v, f32 `[B,T,K,C]`, over rows position .. position + T of the states keys and values `[B,S,K,C]`, in
/// place; rows beyond S are dropped. Inputs: k, v, keys, values, position u32 `[1]`, or `[B]` with one for each sequence.
/// No outputs.
///
/// Two more inputs, a table as [`Rope`]'s and q f32 `[B,T,H,C]`, have keys written as [`Rope`] turns them, and q turned
/// alike as the output.
///
/// The states are f32, f16 (rounded to one of the two neighbours), or Q8_0: of each 32 elements of a token, numbered over
/// its K·C, the largest size is divided by 127 to give the scale, an f16, and each element is the nearest multiple of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheWrite;

const WORKGROUP: usize = 64;
const TURN: Rope = Rope { inverse: false };

impl Op for CacheWrite {
    fn name(&self) -> &'static str {
        "cache_write"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [k, v, keys, values, position, rotary @ ..] = inputs else {
            return Err("takes k, v, keys, values, a position, and maybe a table and q".into());
        };
        let (&[b, _, heads, c], &[cb, _, ch, cc]) = (k.shape.dims(), keys.shape.dims()) else {
            return Err("k must be [B,T,K,C] and keys [B,S,K,C]".into());
        };
        if k.dtype != DType::F32 || k != v || keys != values {
            return Err("k and v must be f32 and of one type, keys and values of one type".into());
        }
        if (b, heads, c) != (cb, ch, cc) {
            return Err("k must differ from keys in the second dim only".into());
        }
        check_cache(keys)?;
        check_position(position, b)?;
        match rotary {
            [] => Ok(vec![]),
            &[table, q] => Ok(TURN.infer(&[q, table, position, k])?[..1].to_vec()),
            _ => Err("a table and q come together".into()),
        }
    }

    fn writes(&self) -> Vec<usize> {
        vec![2, 3]
    }

    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        let (&[b, t, k, c], &[_, s, ..]) = (io.inputs[0].shape.dims(), io.inputs[2].shape.dims()) else {
            unreachable!("checked when the node was made")
        };
        let (dtype, position) = (io.inputs[2].dtype, &io.inputs[4]);
        let h = io.outputs.first().map_or(0, |q| q.shape.dims()[2]);
        let kernel = Kernel::new("cache_write", if h > 0 { "turned" } else { "cells" });
        let kernel = kernel.constant("WORKGROUP", WORKGROUP).constant("ROTARY", usize::from(h > 0));
        let mut kernel = cache_constants(dtype, each(kernel, Some(position)));
        let of_entries = io.inputs[..4].iter().chain(io.inputs.get(6)).chain(&io.outputs);
        let bytes: Vec<u64> = of_entries.map(|ty| ty.bytes() / b as u64).collect();
        let step = entries(b, &bytes, b, limits);
        let row = k * c / dtype.block().elements;
        for first in (0..b).step_by(step) {
            let n = step.min(b - first);
            let (cells, turned) = (n * t * row, n * t * h * c);
            let mut d = Dispatch::new(spread((2 * cells + turned).div_ceil(WORKGROUP), limits))
                .bind("position", Operand::Input(4), 0, position.bytes())
                .param("cells", cells)
                .param("count", 2 * cells + turned)
                .param("row", row)
                .param("queries", t)
                .param("keys", s)
                .param("entry", first);
            let [positions, half] = io.inputs.get(5).map_or([0; 2], |t| [t.shape.dims()[0], t.shape.dims()[1]]);
            d = d.param("width", c).param("heads", k).param("query_heads", h);
            d = d.param("positions", positions).param("half_turned", half);
            let mut names = vec![("k", 0), ("v", 1), ("keys", 2), ("values", 3)];
            if let Some(table) = io.inputs.get(5) {
                d = d.bind("table", Operand::Input(5), 0, table.bytes());
                names.push(("q", 6));
            }
            let entries = |ty: &TensorType| {
                let entry = ty.bytes() / b as u64;
                (first as u64 * entry, n as u64 * entry)
            };
            for (name, input) in names {
                let (offset, bytes) = entries(&io.inputs[input]);
                d = d.bind(name, Operand::Input(input), offset, bytes);
            }
            if let Some(q) = io.outputs.first() {
                let (offset, bytes) = entries(q);
                d = d.bind("turned", Operand::Output(0), offset, bytes);
            }
            kernel = kernel.dispatch(d);
        }
        vec![kernel]
    }

    fn cost(&self, io: &Io) -> Cost {
        let new: usize = io.inputs[0].shape.elements();
        let (turned, queries) = (!io.outputs.is_empty(), io.elements());
        let flops = if turned { 3 * (new as u64 + queries) } else { 0 };
        Cost { flops, bytes: 2 * (io.inputs[0].bytes() + io.inputs[2].dtype.size(new)) + 8 * queries }
    }

    fn reduction(&self, io: &Io) -> usize {
        if io.outputs.is_empty() { 1 } else { 2 }
    }

    fn tolerance(&self, io: &Io) -> Tolerance {
        Tolerance::f32(self.reduction(io)).stored_as(io.inputs[2].dtype)
    }

    /// What is written, before it is rounded to the cache's dtype.
    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let position = &inputs[4];
        let mut turned = match &inputs[5..] {
            [table, q] => TURN.reference(&[q, table, position, &inputs[0]].map(Array::clone)),
            _ => Vec::new(),
        };
        let keys = turned.pop().unwrap_or_else(|| inputs[0].clone());
        let written = |x: &Array, into: &Array| {
            let (&[b, t, k, c], &[_, s, ..]) = (x.dims(), into.dims()) else {
                unreachable!("checked when the node was made")
            };
            let row = k * c;
            let mut cache = Array::new(into.ty.clone(), into.data.clone());
            for (entry, time) in (0..b).flat_map(|e| (0..t).map(move |t| (e, t))) {
                let at = position.data[entry.min(position.data.len() - 1)] as usize + time;
                if at < s {
                    let (from, to) = ((entry * t + time) * row, (entry * s + at) * row);
                    cache.data[to..to + row].copy_from_slice(&x.data[from..from + row]);
                }
            }
            cache
        };
        turned.extend([written(&keys, &inputs[2]), written(&inputs[1], &inputs[3])]);
        turned
    }
}
