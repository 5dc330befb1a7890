//! Attention of few queries to many keys: the keys are cut into parts that are summed at the same time, and their sums
//! put together in one order (Dao et al., 2023, "flash-decoding"). Without it, decoding one token would keep no more of
//! the device busy than there are kv heads. Legend as in `attention_sizes.rs`; P parts.

use super::attention::Attention;
use super::attention_sizes::{Sizes, cache_constants, check_position, each, scores};
use super::mask::Mask;
use super::windows::entries;
use crate::base::{Array, DType, Limits, TensorType};
use crate::error::Result;
use crate::graph::{Cost, Dispatch, Graph, Io, Kernel, Op, Operand, Value, spread};

/// Keys of a part, when the cache is full; fewer parts than two are none.
const KEYS: usize = 64;
/// More parts than this no longer fill a device better.
const MOST_PARTS: usize = 32;
/// Rows of queries from which on [`Attention`]'s own kernels fill their lanes.
const ROWS: usize = 16;

/// Attention over a cache: by parts where that is the better way, else by [`Attention`], whose inputs these are. Gives o.
///
/// # Errors
/// If the shapes do not fit.
pub fn cached_attention(g: &mut Graph, mask: Mask, inputs: &[Value; 4]) -> Result<Value> {
    let (q, k) = (g.dims(inputs[0]), g.dims(inputs[1]));
    if let (&[_, t, h, _], &[_, s, kv, _]) = (q, k) {
        let parts = (s / KEYS).min(MOST_PARTS);
        if parts > 1 && h % kv.max(1) == 0 && t * h / kv <= ROWS {
            let sums = g.apply(AttentionPart { mask, parts }, inputs)?;
            return g.apply1(AttentionCombine, &sums);
        }
    }
    Ok(g.apply(Attention::new(mask), inputs)?[0])
}

/// The softmax's sums over each of P parts of the keys that a query sees: the n keys are cut into parts of n/P, rounded
/// up to whole eights; the last ones may be empty.
///
/// Inputs as [`Attention`]'s. Outputs: o `[B,T,H,P,C]`, Σ exp(s - m)·v over the part's keys, and stats `[B,T,H,P,2]`: m,
/// the part's largest score, and Σ exp(s - m); zeros for empty parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttentionPart {
    /// What is seen.
    pub mask: Mask,
    /// P.
    pub parts: usize,
}

/// o `[B,T,H,C]` from the outputs of [`AttentionPart`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttentionCombine;

impl Op for AttentionPart {
    fn name(&self) -> &'static str {
        "attention_part"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [q, k, v, position] = inputs else { return Err("takes q, k, v and position".into()) };
        let z = Sizes::of(q, k, v)?;
        self.mask.check()?;
        check_position(position, z.b)?;
        if self.parts == 0 || z.group() > ROWS {
            return Err(format!("takes one part or more and {ROWS} query heads a kv head at most"));
        }
        let part = |c| TensorType::f32([z.b, z.t, z.h, self.parts, c]);
        Ok(vec![part(z.c), part(2)])
    }

    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        let z = Sizes::of_io(io);
        let names = [
            ("q", Operand::Input(0)),
            ("k", Operand::Input(1)),
            ("v", Operand::Input(2)),
            ("position", Operand::Input(3)),
            ("o", Operand::Output(0)),
            ("stats", Operand::Output(1)),
        ];
        let (shader, lanes) = match limits.is_cpu && limits.min_subgroup >= 8 {
            true => ("attention_part_eight", 8),
            false => ("attention_part", 64),
        };
        let mut kernel = Kernel::new(shader, format!("lanes_{lanes}"))
            .constant("WORKGROUP", lanes)
            .constant("GROUP", z.group())
            .constant("PARTS", self.parts)
            .constant("C4", z.c / 4);
        kernel = cache_constants(io.inputs[1].dtype, each(self.mask.constants(kernel, z.h), io.inputs.last()));
        let step = z.batches(io, z.t, limits);
        for first in (0..z.b).step_by(step) {
            let count = step.min(z.b - first);
            let mut dispatch = z.dispatch(io, self.parts, first, count, &names);
            dispatch.workgroups[2] = (count * z.t) as u32;
            kernel = kernel.dispatch(dispatch);
        }
        vec![kernel]
    }

    fn cost(&self, io: &Io) -> Cost {
        Sizes::of_io(io).forward_cost(io)
    }

    fn reduction(&self, io: &Io) -> usize {
        Sizes::of_io(io).forward_reduction()
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let [q, k, v, position] = inputs else { unreachable!("checked when the node was made") };
        let z = Sizes::of(&q.ty, &k.ty, &v.ty).expect("checked when the node was made");
        let (mut o, mut stats) =
            (Array::zeros([z.b, z.t, z.h, self.parts, z.c]), Array::zeros([z.b, z.t, z.h, self.parts, 2]));
        z.each_query(self.mask, position, |b, t, h, keys| {
            let at = z.q_at(b, t, h);
            let scores = scores(&z, self.mask, [q, k], at, (b, h), keys.clone());
            let size = keys.len().div_ceil(self.parts).next_multiple_of(8);
            for (part, scores) in scores.chunks(size).enumerate() {
                let row = at / z.c * self.parts + part;
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                stats.data[2 * row] = max;
                for (i, score) in scores.iter().enumerate() {
                    let p = (score - max).exp();
                    stats.data[2 * row + 1] += p;
                    let key = z.k_at(b, keys.start + part * size + i, h);
                    for c in 0..z.c {
                        o.data[row * z.c + c] += p * v.data[key + c];
                    }
                }
            }
        });
        vec![o, stats]
    }
}

const WORKGROUP: usize = 64;

impl Op for AttentionCombine {
    fn name(&self) -> &'static str {
        "attention_combine"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [parts, stats] = inputs else { return Err("takes parts and stats".into()) };
        match parts.shape.dims() {
            &[b, t, h, p, c] if p > 0 && c % 4 == 0 && **stats == TensorType::f32([b, t, h, p, 2]) => {
                if parts.dtype == DType::F32 {
                    Ok(vec![TensorType::f32([b, t, h, c])])
                } else {
                    Err("is of f32".into())
                }
            }
            _ => Err("parts must be [B,T,H,P,C] and stats [B,T,H,P,2]".into()),
        }
    }

    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        let &[b, t, h, p, c] = io.inputs[0].shape.dims() else { unreachable!("checked when the node was made") };
        let workgroup = if limits.is_cpu { 8 } else { WORKGROUP };
        let mut kernel =
            Kernel::new("attention_combine", "vectors").constant("WORKGROUP", workgroup).constant("PARTS", p);
        let bytes = [&io.inputs[0], &io.inputs[1], &io.outputs[0]].map(|ty| ty.bytes() / b as u64);
        let step = entries(b, &bytes, b, limits);
        for first in (0..b).step_by(step) {
            let n = step.min(b - first);
            let count = n * t * h * c / 4;
            let mut d =
                Dispatch::new(spread(count.div_ceil(workgroup), limits)).param("count", count).param("width", c / 4);
            for (name, operand, ty) in [
                ("parts", Operand::Input(0), &io.inputs[0]),
                ("stats", Operand::Input(1), &io.inputs[1]),
                ("o", Operand::Output(0), &io.outputs[0]),
            ] {
                let entry = ty.bytes() / b as u64;
                d = d.bind(name, operand, first as u64 * entry, n as u64 * entry);
            }
            kernel = kernel.dispatch(d);
        }
        vec![kernel]
    }

    fn cost(&self, io: &Io) -> Cost {
        Cost { flops: 2 * io.inputs[0].shape.elements() as u64, bytes: io.bytes() }
    }

    fn reduction(&self, io: &Io) -> usize {
        io.inputs[0].shape.dims()[3]
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let [parts, stats] = inputs else { unreachable!("checked when the node was made") };
        let &[b, t, h, p, c] = parts.dims() else { unreachable!("checked when the node was made") };
        let mut o = Array::zeros([b, t, h, c]);
        for (row, o) in o.data.chunks_mut(c).enumerate() {
            let full = (row * p..(row + 1) * p).filter(|&i| stats.data[2 * i + 1] > 0.0);
            let max = full.clone().map(|i| stats.data[2 * i]).fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = full.clone().map(|i| (stats.data[2 * i] - max).exp() * stats.data[2 * i + 1]).sum();
            for i in full {
                let weight = (stats.data[2 * i] - max).exp() / sum;
                (0..c).for_each(|n| o[n] += weight * parts.data[i * c + n]);
            }
        }
        vec![o]
    }
}
