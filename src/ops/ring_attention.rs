//! Attention over sequences of which each rank of an axis has a part (Liu et al., "Ring attention", 2023): keys and values
//! go around, and each rank puts together what it sees of them. No rank ever has more than its own and one other's.
//!
//! Legend as in `attention.rs`; T tokens of a rank, N ranks.

use super::attention_block::{AttentionBlock, AttentionBlockGradKeyValue, AttentionBlockGradQuery, Pieces};
use super::attention_delta::AttentionDelta;
use super::collective::{Along, Shift};
use super::mask::Mask;
use super::operands::Operands;
use crate::base::{Array, TensorType};
use crate::error::{Error, Result};
use crate::graph::{Cost, Graph, Io, Map, Op, OpNode, Value};
use std::sync::Arc;

/// [`super::Attention`] of one of N ranks, which has of every sequence of N·T tokens the pieces that [`Pieces::starts`] says.
///
/// Inputs: q `[B,T,H,C]`, k and v `[B,T,K,C]`, f32, and position as of [`AttentionBlock`]. Outputs: o `[B,T,H,C]`, lse
/// `[B,H,T]`. The reference is that of ranks that all hold the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RingAttention {
    /// What is seen.
    pub mask: Mask,
    /// As of [`super::Attention`].
    pub operands: Operands,
    /// Over whom.
    pub along: Along,
    /// Which of them this is.
    pub rank: usize,
}

/// dq `[B,T,H,C]`, dk and dv `[B,T,K,C]` from q, k, v, dy `[B,T,H,C]`, stats `[B,H,T,2]` (of [`AttentionDelta`]) and position.
/// The gradients of keys and values go around with them, and one hop further, home.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RingAttentionGrad(pub RingAttention);

impl RingAttention {
    /// This rank's step `step` of the ring, if it sees anything then of the keys of the rank so many before it.
    fn block(&self, tokens: usize, step: usize) -> Option<AttentionBlock> {
        let (ranks, tokens) = (self.along.ranks, tokens / 2);
        let from = (self.rank + ranks - step) % ranks;
        let [queries, keys] = [self.rank, from].map(|rank| Pieces::starts(rank, ranks, tokens));
        let pieces = Pieces { tokens, queries, keys };
        let op = AttentionBlock { mask: self.mask, operands: self.operands, pieces };
        pieces.meet(self.mask).then_some(op)
    }

    fn blocks(&self, tokens: usize) -> impl Iterator<Item = (usize, Option<AttentionBlock>)> {
        (0..self.along.ranks).map(move |step| (step, self.block(tokens, step)))
    }

    fn on(&self, g: &mut Graph, values: [Value; 2]) -> Result<[Value; 2]> {
        let op = Shift { along: self.along, back: false };
        Ok([g.apply1(op, &[values[0]])?, g.apply1(op, &[values[1]])?])
    }

    /// What is wrong with queries of so many tokens a row.
    fn check(&self, q: &TensorType) -> Result<AttentionBlock, String> {
        let &[_, t, ..] = q.shape.dims() else { return Err("q must be [B,T,H,C]".into()) };
        if self.rank >= self.along.ranks || t % 2 != 0 {
            return Err(format!("rank {} of {} cannot have two pieces of {t} tokens", self.rank, self.along.ranks));
        }
        self.block(t, 0).ok_or_else(|| "a window of 0 keys sees nothing".into())
    }
}

impl Op for RingAttention {
    fn name(&self) -> &'static str {
        "ring_attention"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let &[q, ..] = inputs else { return Err("takes q, k, v and position".into()) };
        if inputs.len() != 4 {
            return Err("takes q, k, v and position".into());
        }
        self.check(q)?.infer(inputs)
    }

    fn gradient(&self, g: &mut Graph, node: &OpNode, dy: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        if dy[1].is_some() {
            return Err(Error::Graph("attention's lse has no gradient of its own; use only its first output".into()));
        }
        let (Some(dy), &[q, k, v, position]) = (dy[0], &node.inputs[..]) else { return Ok(vec![None; 4]) };
        let stats = g.apply1(AttentionDelta, &[dy, node.outputs[0], node.outputs[1]])?;
        let all = g.apply(RingAttentionGrad(self.clone()), &[q, k, v, dy, stats, position])?;
        Ok(vec![Some(all[0]), Some(all[1]), Some(all[2]), None])
    }

    fn expand(&self, g: &mut Graph, node: &OpNode) -> Result<Option<Vec<Value>>> {
        let &[q, k, v, position] = &node.inputs[..] else { unreachable!("checked when the node was made") };
        let (tokens, mut here) = (g.dims(q)[1], [k, v]);
        let mut sum: Vec<Value> = Vec::new();
        for (step, block) in self.blocks(tokens) {
            // The next ones are under way while these are seen.
            let next = if step + 1 < self.along.ranks { Some(self.on(g, here)?) } else { None };
            if let Some(block) = block {
                sum = g.apply(block, &[&[q, here[0], here[1]], &sum[..], &[position]].concat())?;
            }
            here = next.unwrap_or(here);
        }
        Ok(Some(sum))
    }

    fn cost(&self, io: &Io) -> Cost {
        cost(self, io, 4)
    }

    fn narrow(&self) -> Option<Arc<dyn Op>> {
        Some(Arc::new(RingAttention { operands: Operands::F16, ..self.clone() }))
    }

    fn reduction(&self, io: &Io) -> usize {
        let dims = io.inputs[0].shape.dims();
        dims[3] + dims[1] * self.along.ranks
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let mut sum: Vec<Array> = Vec::new();
        for (_, block) in self.blocks(inputs[0].dims()[1]) {
            if let Some(block) = block {
                sum = block.reference(&[&inputs[..3], &sum[..], &inputs[3..]].concat());
            }
        }
        sum
    }
}

impl Op for RingAttentionGrad {
    fn name(&self) -> &'static str {
        "ring_attention_grad"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let &[q, k, v, ..] = inputs else { return Err("takes q, k, v, dy, stats and position".into()) };
        AttentionBlockGradQuery(self.0.check(q)?).infer(inputs)?;
        Ok(vec![q.clone(), k.clone(), v.clone()])
    }

    fn expand(&self, g: &mut Graph, node: &OpNode) -> Result<Option<Vec<Value>>> {
        let (ring, rest) = (&self.0, &node.inputs[3..]);
        let &[q, k, v, ..] = &node.inputs[..] else { unreachable!("checked when the node was made") };
        let (tokens, mut here) = (g.dims(q)[1], [k, v]);
        let (mut dq, mut own, mut others): (Option<Value>, Option<[Value; 2]>, Option<[Value; 2]>) = (None, None, None);
        for (step, block) in ring.blocks(tokens) {
            let next = if step + 1 < ring.along.ranks { Some(ring.on(g, here)?) } else { None };
            let part = block.map(|block| {
                let inputs = [&[q, here[0], here[1]], rest].concat();
                let query = g.apply1(AttentionBlockGradQuery(block.clone()), &inputs)?;
                let both = g.apply(AttentionBlockGradKeyValue(block), &inputs)?;
                dq = Some(dq.map_or(Ok(query), |sum| g.add(sum, query))?);
                Ok::<_, Error>([both[0], both[1]])
            });
            let part = part.transpose()?;
            if step == 0 {
                own = part;
            } else {
                // What all before have found of these keys, with this rank's.
                let sum = match (others, part) {
                    (Some(sum), Some(part)) => [g.add(sum[0], part[0])?, g.add(sum[1], part[1])?],
                    (Some(all), None) | (None, Some(all)) => all,
                    (None, None) => [g.apply1(Map::scale(0.0), &[k])?, g.apply1(Map::scale(0.0), &[v])?],
                };
                others = Some(ring.on(g, sum)?);
            }
            here = next.unwrap_or(here);
        }
        let own = own.expect("every query sees itself");
        let keys = match others {
            Some(others) => [g.add(own[0], others[0])?, g.add(own[1], others[1])?],
            None => own,
        };
        Ok(Some(vec![dq.expect("every query sees itself"), keys[0], keys[1]]))
    }

    fn cost(&self, io: &Io) -> Cost {
        cost(&self.0, io, 14)
    }

    fn reduction(&self, io: &Io) -> usize {
        let dims = io.inputs[0].shape.dims();
        dims[3] + dims[1] * self.0.along.ranks * dims[2] / io.inputs[1].shape.dims()[2]
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let zeros = |i: usize| Array::zeros(inputs[i].ty.shape.clone());
        let mut sums = [zeros(0), zeros(1), zeros(2)];
        for block in self.0.blocks(inputs[0].dims()[1]).filter_map(|(_, block)| block) {
            let parts = [
                AttentionBlockGradQuery(block.clone()).reference(inputs),
                AttentionBlockGradKeyValue(block).reference(inputs),
            ];
            for (sum, part) in sums.iter_mut().zip(parts.iter().flatten()) {
                sum.data.iter_mut().zip(&part.data).for_each(|(sum, x)| *sum += x);
            }
        }
        sums.to_vec()
    }
}

/// Of all steps: so many operations a pair and element of a head.
fn cost(ring: &RingAttention, io: &Io, operations: u64) -> Cost {
    let types: Vec<TensorType> = io.inputs[..3].to_vec();
    let io_of = Io { inputs: types, outputs: io.outputs.clone() };
    let tokens = io.inputs[0].shape.dims()[1];
    let flops =
        ring.blocks(tokens).filter_map(|(_, block)| block).map(|block| block.cost(&io_of).flops / 4 * operations);
    Cost { flops: flops.sum(), bytes: ring.along.ranks as u64 * io.bytes() }
}
