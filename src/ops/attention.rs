//! Causal attention with grouped queries, without ever holding a T×S matrix.
//!
//! Legend: B batch, T queries, S keys, H query heads, K kv heads (H is a multiple of K), C head width.

use super::attention_delta::AttentionDelta;
use super::attention_grad::AttentionGrad;
use super::attention_passes::Passes;
use super::attention_sizes::{Kind, Shaders, Sizes, check_starts, documents, scores};
use super::attention_tiles::Staging;
use super::mask::Mask;
use super::operands::Operands;
use crate::base::{Array, Limits, TensorType, Tolerance};
use crate::error::{Error, Result};
use crate::graph::{Cost, Graph, Io, Kernel, Op, OpNode, Operand, Value};
use std::sync::Arc;

/// `softmax(q·kᵀ / √C)·v` over the keys that the mask lets query t see from position + t, by the online softmax (Milakov
/// and Gimelshein, 2018) in tiles (Dao et al., 2022).
///
/// Inputs: q `[B,T,H,C]`, k and v `[B,S,K,C]`, position u32 `[1]` or `[B]`: the absolute position of the first query, of
/// all sequences or of each. When training S = T and the position is 0; when decoding, k and v are the cache, which may
/// be f32, f16 or Q8_0 (blocks of 32 along a token's K·C elements, each with a scale: any C that is a multiple of 4).
/// Where rows hold several documents, the starts u32 `[B,T]` of these take the position's place (S = T, the first query
/// stands at 0): for each token, the index in its row at which its document begins, which never decreases and is not
/// beyond the token. Query t then sees none before `starts[t]`: the scores of a row are blocks along the diagonal.
/// Outputs: o `[B,T,H,C]`, lse `[B,H,T]`: the logarithm of each softmax's denominator, natural, scale included.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Attention {
    /// What is seen.
    pub mask: Mask,
    /// What the factors of both products are rounded to: q and k, probabilities and v; and so in the gradient.
    pub operands: Operands,
}

/// Of the forward pass, whole or of two ranks.
pub(super) const FORWARD: Shaders = Shaders {
    lanes: "attention",
    cpu: "attention_rows",
    tile: "attention_tile",
    coop: "attention_coop",
    staging: Staging { of_rows: 1, streamed: 1, turned: 1, spent: 0, scores: 1, hands_on: true },
    splits: false,
};

impl Attention {
    /// In strict f32.
    pub const fn new(mask: Mask) -> Self {
        Attention { mask, operands: Operands::F32 }
    }

    fn kind(&self) -> Kind {
        Kind { mask: self.mask, operands: self.operands, pieces: None }
    }
}

impl Op for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [q, k, v, position] = inputs else { return Err("takes q, k, v and position".into()) };
        let z = Sizes::of(q, k, v)?;
        self.mask.check()?;
        check_starts(position, [z.b, z.t], z.s)?;
        Ok(vec![(*q).clone(), TensorType::f32([z.b, z.h, z.t])])
    }

    fn gradient(&self, g: &mut Graph, node: &OpNode, dy: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        if dy[1].is_some() {
            return Err(Error::Graph("attention's lse has no gradient of its own; use only its first output".into()));
        }
        let (Some(dy), &[q, k, v, position]) = (dy[0], &node.inputs[..]) else { return Ok(vec![None; 4]) };
        let stats = g.apply1(AttentionDelta, &[dy, node.outputs[0], node.outputs[1]])?;
        let gradient = AttentionGrad { mask: self.mask, operands: self.operands, whole: false };
        let [dq, dk, dv] = g.apply(gradient, &[q, k, v, dy, stats, position])?[..] else {
            unreachable!("it has three outputs")
        };
        Ok(vec![Some(dq), Some(dk), Some(dv), None])
    }

    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        let z = Sizes::of_io(io);
        let names = [
            ("q", Operand::Input(0)),
            ("k", Operand::Input(1)),
            ("v", Operand::Input(2)),
            ("position", Operand::Input(3)),
            ("o", Operand::Output(0)),
            ("lse", Operand::Output(1)),
        ];
        let mut kernels = z.kernels(FORWARD, io, limits, self.kind(), z.t * z.group(), &names);
        kernels.extend(Passes::of(io, limits, self.kind(), 1).map(|passes| passes.forward()));
        kernels
    }

    fn scratch(&self, io: &Io, limits: &Limits) -> u64 {
        Passes::of(io, limits, self.kind(), 1).map_or(0, |passes| passes.bytes())
    }

    fn cost(&self, io: &Io) -> Cost {
        Sizes::of_io(io).forward_cost(io)
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

    fn narrow(&self) -> Option<Arc<dyn Op>> {
        Some(Arc::new(Attention { operands: Operands::F16, ..self.clone() }))
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let [q, k, v, position] = inputs else { unreachable!("checked when the node was made") };
        let [q, k, v] = [q, k, v].map(|x| self.operands.rounded(x));
        let z = Sizes::of(&q.ty, &k.ty, &v.ty).expect("checked when the node was made");
        let (mut o, mut lse) = (Array::zeros(q.ty.shape.clone()), Array::zeros([z.b, z.h, z.t]));
        z.each_query(self.mask, position, |b, t, h, keys| {
            let at = z.q_at(b, t, h);
            let scores = scores(&z, self.mask, [&q, &k], at, (b, h), keys.clone());
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
            lse.data[(b * z.h + h) * z.t + t] = max + sum.ln();
            for (s, score) in keys.zip(&scores) {
                let p = (score - max).exp() / sum;
                for c in 0..z.c {
                    o.data[at + c] += p * v.data[z.k_at(b, s, h) + c];
                }
            }
        });
        vec![o, lse]
    }
}
