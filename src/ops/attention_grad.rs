//! Backward pass of attention, also without a T×S matrix: probabilities are computed again from the scores and lse
//! (Dao et al., 2022, algorithm 4), once for dq with queries fixed and once for dk and dv with keys fixed, so that every
//! sum has one owner and a fixed order. Legend as in `attention.rs`.

use super::attention_passes::Passes;
use super::attention_sizes::{Kind, Shaders, Sizes, check_starts, documents, scores};
use super::attention_tiles::Staging;
use super::mask::Mask;
use super::matmul_split;
use super::operands::Operands;
use crate::base::{Array, DType, Limits, TensorType, Tolerance};
use crate::error::Result;
use crate::graph::{Cost, Graph, Io, Kernel, Op, OpNode, Operand, Value};
use std::ops::Range;
use std::sync::Arc;

/// dq `[B,T,H,C]`, dk and dv `[B,S,K,C]` from the inputs of [`AttentionGradQuery`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AttentionGrad {
    /// As in the forward pass.
    pub mask: Mask,
    /// What the factors of all products are rounded to, the gradients of scores among them.
    pub operands: Operands,
    /// All of it by one kernel, where an adapter has one that makes all of it in passes; else it is [`AttentionGradQuery`] and
    /// [`AttentionGradKeyValue`], of which each has kernels to choose from.
    pub whole: bool,
}

/// dq `[B,T,H,C]` from q, k, v, dy `[B,T,H,C]`, stats `[B,H,T,2]` (of [`super::AttentionDelta`]) and
/// position u32 `[1]` or `[B]`, or the starts of documents u32 `[B,T]`, as in the forward pass; all floats are f32.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AttentionGradQuery {
    /// As in the forward pass.
    pub mask: Mask,
    /// What the factors of all products are rounded to, the gradients of scores among them.
    pub operands: Operands,
}

/// dk and dv `[B,S,K,C]` from the inputs of [`AttentionGradQuery`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AttentionGradKeyValue {
    /// As in the forward pass.
    pub mask: Mask,
    /// What the factors of all products are rounded to, the gradients of scores among them.
    pub operands: Operands,
}

/// Of the gradient of queries, whole or of two ranks.
pub(super) const QUERY: Shaders = Shaders {
    lanes: "attention_grad_query",
    cpu: "attention_grad_query_rows",
    tile: "attention_grad_query_tile",
    coop: "attention_grad_query_coop",
    staging: Staging { of_rows: 2, streamed: 2, turned: 1, spent: 2, scores: 1, hands_on: false },
    splits: false,
};

/// Of that of keys and values.
pub(super) const KEY_VALUE: Shaders = Shaders {
    lanes: "attention_grad_key_value",
    cpu: "attention_grad_key_value_rows",
    tile: "attention_grad_key_value_tile",
    coop: "attention_grad_key_value_coop",
    staging: Staging { of_rows: 2, streamed: 2, turned: 2, spent: 1, scores: 2, hands_on: false },
    splits: true,
};

pub(super) const INPUTS: [(&str, Operand); 6] = [
    ("q", Operand::Input(0)),
    ("k", Operand::Input(1)),
    ("v", Operand::Input(2)),
    ("dy", Operand::Input(3)),
    ("stats", Operand::Input(4)),
    ("position", Operand::Input(5)),
];

/// What is wrong with the inputs, but for positions.
pub(super) fn check_inputs(mask: Mask, inputs: &[&TensorType]) -> Result<Sizes, String> {
    let [q, k, v, dy, stats, _] = inputs else { return Err("takes q, k, v, dy, stats and position".into()) };
    let z = Sizes::of(q, k, v)?;
    if dy != q || **stats != TensorType::f32([z.b, z.h, z.t, 2]) {
        return Err("dy must have q's shape and stats [B,H,T,2]".into());
    }
    if k.dtype != DType::F32 {
        return Err(format!("gradients flow to f32 keys and values, not to {k}"));
    }
    mask.check()?;
    Ok(z)
}

fn check(mask: Mask, inputs: &[&TensorType]) -> Result<(), String> {
    let z = check_inputs(mask, inputs)?;
    check_starts(inputs[5], [z.b, z.t], z.s)
}

pub(super) fn names(outputs: &[&'static str]) -> Vec<(&'static str, Operand)> {
    let outputs = outputs.iter().enumerate().map(|(i, &name)| (name, Operand::Output(i)));
    INPUTS.into_iter().chain(outputs).collect()
}

/// dq, dk and dv in f64.
fn reference(mask: Mask, operands: Operands, inputs: &[Array]) -> [Array; 3] {
    let z = Sizes::of(&inputs[0].ty, &inputs[1].ty, &inputs[2].ty).expect("checked when the node was made");
    gradients(mask, operands, inputs, |f| z.each_query(mask, &inputs[5], f))
}

/// The same for the queries and the ranges of keys that are handed to what `each_query` is given.
pub(super) fn gradients(
    mask: Mask,
    operands: Operands,
    inputs: &[Array],
    each_query: impl FnOnce(&mut dyn FnMut(usize, usize, usize, Range<usize>)),
) -> [Array; 3] {
    let [q, k, v, dy, stats, _] = inputs else { unreachable!("checked when the node was made") };
    let [q, k, v, dy] = [q, k, v, dy].map(|x| operands.rounded(x));
    let z = Sizes::of(&q.ty, &k.ty, &v.ty).expect("checked when the node was made");
    let scale = 1.0 / (z.c as f64).sqrt();
    let zeros = |x: &Array| Array::zeros(x.ty.shape.clone());
    let (mut dq, mut dk, mut dv) = (zeros(&q), zeros(&k), zeros(&v));
    each_query(&mut |b, t, h, keys| {
        let at = z.q_at(b, t, h);
        let row = 2 * ((b * z.h + h) * z.t + t);
        let (lse, delta) = (stats.data[row], stats.data[row + 1]);
        for (s, score) in keys.clone().zip(scores(&z, mask, [&q, &k], at, (b, h), keys)) {
            let p = (score - lse).exp();
            let key = z.k_at(b, s, h);
            let dp: f64 = (0..z.c).map(|c| dy.data[at + c] * v.data[key + c]).sum();
            let ds = p * (dp - delta) * scale;
            for c in 0..z.c {
                dq.data[at + c] += ds * k.data[key + c];
                dk.data[key + c] += ds * q.data[at + c];
                dv.data[key + c] += p * dy.data[at + c];
            }
        }
    });
    [dq, dk, dv]
}

impl AttentionGrad {
    fn kind(&self) -> Kind {
        Kind { mask: self.mask, operands: self.operands, pieces: None }
    }
}

impl Op for AttentionGrad {
    fn name(&self) -> &'static str {
        "attention_grad"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        check(self.mask, inputs)?;
        Ok([0, 1, 2].map(|i| inputs[i].clone()).to_vec())
    }

    fn fitted(&self, io: &Io, limits: &Limits) -> Option<Arc<dyn Op>> {
        let has_passes = Passes::of(io, limits, self.kind(), 2).is_some();
        (has_passes && !self.whole).then(|| Arc::new(AttentionGrad { whole: true, ..self.clone() }) as _)
    }

    fn expand(&self, g: &mut Graph, node: &OpNode) -> Result<Option<Vec<Value>>> {
        if self.whole {
            return Ok(None);
        }
        let (mask, operands) = (self.mask, self.operands);
        let dq = g.apply1(AttentionGradQuery { mask, operands }, &node.inputs)?;
        let dkv = g.apply(AttentionGradKeyValue { mask, operands }, &node.inputs)?;
        Ok(Some(vec![dq, dkv[0], dkv[1]]))
    }

    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        if !self.whole {
            return Vec::new();
        }
        let (z, kind) = (Sizes::of_io(io), self.kind());
        // The first kernels of both parts, one after the other, are right on every adapter.
        let first = |shaders, rows, outputs: &[(&'static str, Operand)]| {
            let names: Vec<_> = INPUTS.iter().chain(outputs).copied().collect();
            z.kernels(shaders, io, limits, kind, rows, &names).swap_remove(0)
        };
        let mut parts = first(QUERY, z.t * z.group(), &[("dq", Operand::Output(0))]);
        let mut keys = first(KEY_VALUE, z.s, &[("dk", Operand::Output(1)), ("dv", Operand::Output(2))]);
        let each = z.c as u64 * z.pairs();
        (parts.flops, keys.flops) = (6 * each, 8 * each);
        // Each reads all inputs.
        let [dq, dk, dv] = [0, 1, 2].map(|i| io.outputs[i].bytes());
        (parts.bytes, keys.bytes) = (io.bytes() - dk - dv, io.bytes() - dq);
        // The tuner knows a kernel by its first stage: one of queries alone is another.
        parts.variant = format!("parts_{}_{}", parts.variant, keys.variant);
        parts.then = vec![keys];
        let passes = Passes::of(io, limits, kind, 2).map(|passes| passes.gradient());
        [parts].into_iter().chain(passes).collect()
    }

    fn scratch(&self, io: &Io, limits: &Limits) -> u64 {
        let passes = Passes::of(io, limits, self.kind(), 2).filter(|_| self.whole);
        passes.map_or(0, |passes| passes.bytes())
    }

    fn cost(&self, io: &Io) -> Cost {
        let z = Sizes::of_io(io);
        Cost { flops: 10 * z.c as u64 * z.pairs(), bytes: io.bytes() }
    }

    fn reduction(&self, io: &Io) -> usize {
        let z = Sizes::of_io(io);
        z.c + z.s.max(z.t * z.group())
    }

    fn integers(&self, _input: usize, ty: &TensorType) -> Option<Vec<u32>> {
        documents(ty)
    }

    fn tolerance(&self, io: &Io) -> Tolerance {
        self.operands.tolerance(self.reduction(io))
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        reference(self.mask, self.operands, inputs).into()
    }
}

impl Op for AttentionGradQuery {
    fn name(&self) -> &'static str {
        "attention_grad_query"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        check(self.mask, inputs)?;
        Ok(vec![inputs[0].clone()])
    }

    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        let z = Sizes::of_io(io);
        let kind = Kind { mask: self.mask, operands: self.operands, pieces: None };
        z.kernels(QUERY, io, limits, kind, z.t * z.group(), &names(&["dq"]))
    }

    fn cost(&self, io: &Io) -> Cost {
        let z = Sizes::of_io(io);
        Cost { flops: 6 * z.c as u64 * z.pairs(), bytes: io.bytes() }
    }

    fn reduction(&self, io: &Io) -> usize {
        let z = Sizes::of_io(io);
        z.c + z.s
    }

    fn integers(&self, _input: usize, ty: &TensorType) -> Option<Vec<u32>> {
        documents(ty)
    }

    fn tolerance(&self, io: &Io) -> Tolerance {
        self.operands.tolerance(self.reduction(io))
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let [dq, ..] = reference(self.mask, self.operands, inputs);
        vec![dq]
    }
}

impl Op for AttentionGradKeyValue {
    fn name(&self) -> &'static str {
        "attention_grad_key_value"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        check(self.mask, inputs)?;
        Ok(vec![inputs[1].clone(), inputs[2].clone()])
    }

    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        let z = Sizes::of_io(io);
        let kind = Kind { mask: self.mask, operands: self.operands, pieces: None };
        z.kernels(KEY_VALUE, io, limits, kind, z.s, &names(&["dk", "dv"]))
    }

    fn scratch(&self, io: &Io, limits: &Limits) -> u64 {
        matmul_split::scratch(self, io, limits)
    }

    fn cost(&self, io: &Io) -> Cost {
        let z = Sizes::of_io(io);
        Cost { flops: 8 * z.c as u64 * z.pairs(), bytes: io.bytes() }
    }

    fn reduction(&self, io: &Io) -> usize {
        let z = Sizes::of_io(io);
        z.c + z.t * z.group()
    }

    fn integers(&self, _input: usize, ty: &TensorType) -> Option<Vec<u32>> {
        documents(ty)
    }

    fn tolerance(&self, io: &Io) -> Tolerance {
        self.operands.tolerance(self.reduction(io))
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let [_, dk, dv] = reference(self.mask, self.operands, inputs);
        vec![dk, dv]
    }
}
