//! Attention of one rank's queries to another's keys, where ranks have parts of a sequence: a step of a ring (Liu et al.,
//! 2023), whose results are put together by the online softmax as the tiles of one rank are. Legend as in `attention.rs`; S = T.

use super::attention::FORWARD;
use super::attention_grad::{KEY_VALUE, QUERY, check_inputs, gradients, names};
use super::attention_sizes::{Kind, Sizes, check_starts, documents, is_packed, scores};
use super::mask::Mask;
use super::matmul_split;
use super::operands::Operands;
use crate::base::{Array, DType, Limits, TensorType, Tolerance};
use crate::graph::{Cost, Dispatch, Io, Kernel, Op, Operand};
use std::ops::Range;

/// Which tokens of a sequence two ranks have: two pieces each, one from either end, which makes causal work the same for all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pieces {
    /// Tokens of a piece.
    pub tokens: usize,
    /// Where those of the queries begin in the sequence, the earlier one first.
    pub queries: [usize; 2],
    /// Where those of the keys begin.
    pub keys: [usize; 2],
}

impl Pieces {
    /// Where the two pieces of one of so many ranks begin in a sequence.
    pub fn starts(rank: usize, ranks: usize, tokens: usize) -> [usize; 2] {
        [rank * tokens, (2 * ranks - 1 - rank) * tokens]
    }

    /// Where number i of a rank's tokens stands in the sequence.
    pub fn place([first, second]: [usize; 2], tokens: usize, i: usize) -> usize {
        if i < tokens { first + i } else { second + i - tokens }
    }

    /// How many of a rank's tokens stand before a place.
    fn before(starts: [usize; 2], tokens: usize, place: usize) -> usize {
        starts.iter().map(|start| place.saturating_sub(*start).min(tokens)).sum()
    }

    /// Whether any query sees any key.
    pub fn meet(&self, mask: Mask) -> bool {
        (0..2 * self.tokens).any(|t| !self.seen(mask, t, None).is_empty())
    }

    /// The keys that query t sees; `start` says how many tokens of its document come before it, where there are several.
    fn seen(&self, mask: Mask, t: usize, within: Option<usize>) -> Range<usize> {
        let place = Pieces::place(self.queries, self.tokens, t);
        let before = |place| Pieces::before(self.keys, self.tokens, place);
        let window = mask.window.map_or(0, |window| before((place + 1).saturating_sub(window)));
        let document = within.map_or(0, |within| before(place - within));
        let end = before(place + 1);
        window.max(document).min(end)..end
    }

    /// Calls `f(b, t, h, keys)` for every query that sees any, with the keys that it sees.
    fn each_query(
        &self,
        z: &Sizes,
        mask: Mask,
        position: &Array,
        f: &mut dyn FnMut(usize, usize, usize, Range<usize>),
    ) {
        let packed = is_packed(&position.ty);
        for (b, t) in (0..z.b).flat_map(|b| (0..z.t).map(move |t| (b, t))) {
            // Numbers below zero wrap.
            let within = packed.then(|| (t as i64 - i64::from(position.data[b * z.t + t] as u32 as i32)) as usize);
            let keys = self.seen(mask, t, within);
            if !keys.is_empty() {
                (0..z.h).for_each(|h| f(b, t, h, keys.clone()));
            }
        }
    }

    /// Pairs of query and key that attend, over batch and heads, as far as the shapes tell.
    fn pairs(&self, z: &Sizes) -> u64 {
        let seen = |t| self.seen(Mask::default(), t, None).len() as u64;
        (z.b * z.h) as u64 * (0..z.t).map(seen).sum::<u64>()
    }

    /// Adds the header constants that `lib/query.wgsl` and forward kernels read.
    pub(super) fn constants(kernel: Kernel, names: &[(&'static str, Operand)]) -> Kernel {
        let carries = names.iter().any(|(name, _)| *name == "o_before");
        kernel.constant("BLOCK", 1).constant("CARRY", usize::from(carries))
    }

    /// Adds the parameters that `lib/block.wgsl` reads.
    pub(super) fn params(&self, dispatch: Dispatch) -> Dispatch {
        dispatch
            .param("piece", self.tokens)
            .param("query_0", self.queries[0])
            .param("query_1", self.queries[1])
            .param("key_0", self.keys[0])
            .param("key_1", self.keys[1])
    }

    fn check(&self, z: Sizes, mask: Mask, position: &TensorType) -> Result<(), String> {
        if mask.alibi {
            return Err("heads that see distances by slopes of their own (ALiBi) are not put together".into());
        }
        if z.t != 2 * self.tokens || z.s != z.t {
            return Err(format!(
                "takes two pieces of {} queries and of as many keys, not {} and {}",
                self.tokens, z.t, z.s
            ));
        }
        check_starts(position, [z.b, z.t], z.s)
    }
}

/// `softmax(q·kᵀ / √C)·v` over those keys that the mask lets queries of other tokens see, and over what was seen before.
///
/// Inputs: q `[B,T,H,C]`, k and v `[B,T,K,C]`, f32; maybe o `[B,T,H,C]` and lse `[B,H,T]`, this operator's outputs for other
/// keys; and position: u32 `[1]`, 0, or the starts of documents u32 `[B,T]`: for each query its number here less how many
/// tokens of its document come before it, which wraps below zero. Outputs: o and lse over all keys so far. Without such inputs every
/// query must see a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttentionBlock {
    /// What is seen.
    pub mask: Mask,
    /// As of [`super::Attention`].
    pub operands: Operands,
    /// Whose tokens they are.
    pub pieces: Pieces,
}

/// dq `[B,T,H,C]` from q, k, v, dy `[B,T,H,C]`, stats `[B,H,T,2]` (of [`super::AttentionDelta`], over all keys) and position,
/// as far as it comes from these keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttentionBlockGradQuery(pub AttentionBlock);

/// dk and dv `[B,T,K,C]` from the inputs of [`AttentionBlockGradQuery`], as far as they come from these queries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttentionBlockGradKeyValue(pub AttentionBlock);

impl AttentionBlock {
    fn kind(&self) -> Kind {
        Kind { mask: self.mask, operands: self.operands, pieces: Some(self.pieces) }
    }

    fn check_gradient(&self, inputs: &[&TensorType]) -> Result<(), String> {
        let z = check_inputs(self.mask, inputs)?;
        self.pieces.check(z, self.mask, inputs[5])
    }

    fn gradients(&self, inputs: &[Array]) -> [Array; 3] {
        let z = Sizes::of(&inputs[0].ty, &inputs[1].ty, &inputs[2].ty).expect("checked when the node was made");
        gradients(self.mask, self.operands, inputs, |f| self.pieces.each_query(&z, self.mask, &inputs[5], f))
    }
}

impl Op for AttentionBlock {
    fn name(&self) -> &'static str {
        "attention_block"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let (&[q, k, v, position] | &[q, k, v, _, _, position]) = inputs else {
            return Err("takes q, k, v, maybe o and lse, and position".into());
        };
        let z = Sizes::of(q, k, v)?;
        self.mask.check()?;
        self.pieces.check(z, self.mask, position)?;
        if k.dtype != DType::F32 {
            return Err(format!("keys and values are f32, not {k}"));
        }
        let outputs = vec![q.clone(), TensorType::f32([z.b, z.h, z.t])];
        if inputs.len() == 6 && (*inputs[3] != outputs[0] || *inputs[4] != outputs[1]) {
            return Err("o must have q's shape and lse [B,H,T]".into());
        }
        Ok(outputs)
    }

    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        let z = Sizes::of_io(io);
        let last = io.inputs.len() - 1;
        let mut names = vec![
            ("q", Operand::Input(0)),
            ("k", Operand::Input(1)),
            ("v", Operand::Input(2)),
            ("position", Operand::Input(last)),
            ("o", Operand::Output(0)),
            ("lse", Operand::Output(1)),
        ];
        if last == 5 {
            names.extend([("o_before", Operand::Input(3)), ("lse_before", Operand::Input(4))]);
        }
        z.kernels(FORWARD, io, limits, self.kind(), z.t * z.group(), &names)
    }

    fn cost(&self, io: &Io) -> Cost {
        let z = Sizes::of_io(io);
        Cost { flops: 4 * z.c as u64 * self.pieces.pairs(&z), bytes: io.bytes() }
    }

    fn reduction(&self, io: &Io) -> usize {
        Sizes::of_io(io).forward_reduction()
    }

    fn integers(&self, _input: usize, ty: &TensorType) -> Option<Vec<u32>> {
        documents(ty)
    }

    fn tolerance(&self, io: &Io) -> Tolerance {
        self.operands.tolerance(self.reduction(io))
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let [q, k, v] = [0, 1, 2].map(|i| self.operands.rounded(&inputs[i]));
        let z = Sizes::of(&q.ty, &k.ty, &v.ty).expect("checked when the node was made");
        let (mut o, mut lse) = match inputs.len() {
            6 => (inputs[3].clone(), inputs[4].clone()),
            _ => (Array::zeros(q.ty.shape.clone()), Array::zeros([z.b, z.h, z.t])),
        };
        let carries = inputs.len() == 6;
        self.pieces.each_query(&z, self.mask, &inputs[inputs.len() - 1], &mut |b, t, h, keys| {
            let (at, row) = (z.q_at(b, t, h), (b * z.h + h) * z.t + t);
            let scores = scores(&z, self.mask, [&q, &k], at, (b, h), keys.clone());
            let before = if carries { lse.data[row] } else { f64::NEG_INFINITY };
            let max = scores.iter().copied().fold(before, f64::max);
            let sum = (before - max).exp() + scores.iter().map(|s| (s - max).exp()).sum::<f64>();
            lse.data[row] = max + sum.ln();
            (0..z.c).for_each(|c| o.data[at + c] *= (before - max).exp() / sum);
            for (s, score) in keys.zip(&scores) {
                let p = (score - max).exp() / sum;
                (0..z.c).for_each(|c| o.data[at + c] += p * v.data[z.k_at(b, s, h) + c]);
            }
        });
        vec![o, lse]
    }
}

impl Op for AttentionBlockGradQuery {
    fn name(&self) -> &'static str {
        "attention_block_grad_query"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        self.0.check_gradient(inputs)?;
        Ok(vec![inputs[0].clone()])
    }

    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        let z = Sizes::of_io(io);
        z.kernels(QUERY, io, limits, self.0.kind(), z.t * z.group(), &names(&["dq"]))
    }

    fn cost(&self, io: &Io) -> Cost {
        let z = Sizes::of_io(io);
        Cost { flops: 6 * z.c as u64 * self.0.pieces.pairs(&z), bytes: io.bytes() }
    }

    fn reduction(&self, io: &Io) -> usize {
        Sizes::of_io(io).forward_reduction()
    }

    fn integers(&self, _input: usize, ty: &TensorType) -> Option<Vec<u32>> {
        documents(ty)
    }

    fn tolerance(&self, io: &Io) -> Tolerance {
        self.0.operands.tolerance(self.reduction(io))
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let [dq, ..] = self.0.gradients(inputs);
        vec![dq]
    }
}

impl Op for AttentionBlockGradKeyValue {
    fn name(&self) -> &'static str {
        "attention_block_grad_key_value"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        self.0.check_gradient(inputs)?;
        Ok(vec![inputs[1].clone(), inputs[2].clone()])
    }

    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        let z = Sizes::of_io(io);
        z.kernels(KEY_VALUE, io, limits, self.0.kind(), z.s, &names(&["dk", "dv"]))
    }

    fn scratch(&self, io: &Io, limits: &Limits) -> u64 {
        matmul_split::scratch(self, io, limits)
    }

    fn cost(&self, io: &Io) -> Cost {
        let z = Sizes::of_io(io);
        Cost { flops: 8 * z.c as u64 * self.0.pieces.pairs(&z), bytes: io.bytes() }
    }

    fn reduction(&self, io: &Io) -> usize {
        let z = Sizes::of_io(io);
        z.c + z.t * z.group()
    }

    fn integers(&self, _input: usize, ty: &TensorType) -> Option<Vec<u32>> {
        documents(ty)
    }

    fn tolerance(&self, io: &Io) -> Tolerance {
        self.0.operands.tolerance(self.reduction(io))
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let [_, dk, dv] = self.0.gradients(inputs);
        vec![dk, dv]
    }
}
