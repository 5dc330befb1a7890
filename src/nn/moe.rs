//! Mixture of experts in place of a feed-forward block, and the losses that keep its router in order. Legend: B batch,
//! T time, R = B·T rows, D model width, F width inside an expert, E experts, k experts of a token.

use super::layers::linear;
use crate::base::TensorType;
use crate::error::{Error, Result};
use crate::graph::{Graph, Map, Value};
use crate::ops::{BatchMean, ExpertLinear, ExpertOrder, Route, SlotSum, Softmax};

/// Weights of a mixture of experts.
#[derive(Debug, Clone, Copy)]
pub struct MoeWeights {
    /// `[E,D]`
    pub router: Value,
    /// `[E,F,D]`
    pub gate: Value,
    /// `[E,F,D]`
    pub up: Value,
    /// `[E,D,F]`
    pub down: Value,
}

/// How rows choose their experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MoeKind {
    /// k.
    pub choices: usize,
    /// The weights of those chosen sum to one; else they are shares of all experts.
    pub normalise: bool,
}

/// What a router said: the losses are made of it.
#[derive(Debug, Clone, Copy)]
pub struct Routing {
    /// `[R,E]`
    pub logits: Value,
    /// How many slots fell on each expert, f32 `[E]`. No gradient flows through it.
    pub counts: Value,
}

/// x `[B,T,D]` to the weighted sum of what each token's k experts make of it, `[B,T,D]`; each expert is a feed-forward
/// block with SwiGLU (Jiang et al., 2024, §2.1). Every token gets its experts: none has a capacity.
///
/// # Errors
/// If the shapes do not fit.
pub fn moe(g: &mut Graph, x: Value, weights: &MoeWeights, kind: MoeKind) -> Result<(Value, Routing)> {
    let shape = g.ty(x).shape.clone();
    let experts = g.dims(weights.router)[0];
    let x = g.reshape(x, [shape.rows(), shape.last()])?;
    let logits = g.scope("router", |g| linear(g, x, weights.router))?;
    let chosen = g.apply(Route { choices: kind.choices, normalise: kind.normalise }, &[logits])?;
    let (shares, ids) = (chosen[0], chosen[1]);
    let sorted = g.apply(ExpertOrder { experts, together: 1 }, &[ids])?;
    let by_experts = |g: &mut Graph, name: &str, x: Value, weight: Value| {
        g.scope(name, |g| g.apply1(ExpertLinear { back: false }, &[x, weight, ids, sorted[0], sorted[1]]))
    };
    let gate = by_experts(g, "gate", x, weights.gate)?;
    let up = by_experts(g, "up", x, weights.up)?;
    let inner = g.scope("swiglu", |g| g.apply1(Map::swiglu(), &[gate, up]))?;
    let y = by_experts(g, "down", inner, weights.down)?;
    let y = g.apply1(SlotSum, &[y, shares])?;
    Ok((g.reshape(y, shape)?, Routing { logits, counts: sorted[2] }))
}

/// The loss that is smallest where experts share the tokens evenly (Fedus et al., 2021, equations 4 to 6), as
/// `transformers` computes it: E · Σ over experts of the share of slots that fell on it, times its mean probability, both
/// over the rows of all layers. It is k where all is even. `[1]`
///
/// # Errors
/// If there is no layer, or their routers differ in shape.
pub fn load_balancing_loss(g: &mut Graph, layers: &[Routing]) -> Result<Value> {
    let Some(first) = layers.first() else { return Err(Error::Graph("no layer has experts to balance".into())) };
    let &[rows, experts] = g.dims(first.logits) else { return Err(Error::Graph("router logits are [R,E]".into())) };
    let per_expert = TensorType::f32([experts]);
    let (mut shares, mut counts) = (None, None);
    for layer in layers {
        let probabilities = g.apply(Softmax, &[layer.logits])?[0];
        let sum = g.sum_to(probabilities, &per_expert)?;
        shares = Some(shares.map_or(Ok(sum), |all| g.add(all, sum))?);
        counts = Some(counts.map_or(Ok(layer.counts), |all| g.add(all, layer.counts))?);
    }
    let (Some(shares), Some(counts)) = (shares, counts) else { unreachable!("there is a first layer") };
    let (shares, counts) = (g.apply1(BatchMean, &[shares])?, g.apply1(BatchMean, &[counts])?);
    let product = g.mul(shares, counts)?;
    let sum = g.sum_to(product, &TensorType::f32([1]))?;
    let total = (rows * layers.len()) as f64;
    g.apply1(Map::scale((experts as f64 / (total * total)) as f32), &[sum])
}

/// The mean over the rows of all layers of the square of log Σ exp(logits), which keeps a router's logits small (Zoph et
/// al., 2022, equation 5). `[1]`
///
/// # Errors
/// If there is no layer.
pub fn router_z_loss(g: &mut Graph, layers: &[Routing]) -> Result<Value> {
    let (mut all, mut rows) = (None, 0);
    for layer in layers {
        let lse = g.apply(Softmax, &[layer.logits])?[1];
        rows += g.ty(lse).shape.elements();
        let squares = g.mul(lse, lse)?;
        let sum = g.sum_to(squares, &TensorType::f32([1]))?;
        all = Some(all.map_or(Ok(sum), |all| g.add(all, sum))?);
    }
    let sum = all.ok_or_else(|| Error::Graph("no layer has a router".into()))?;
    let sum = g.apply1(BatchMean, &[sum])?;
    g.apply1(Map::scale((1.0 / rows as f64) as f32), &[sum])
}
