//! The small layers. Legend: B batch, T time, D model width, F feed-forward width.

use crate::error::Result;
use crate::graph::{Graph, Map, Value};
use crate::ops::{MatMul, RmsNorm};

/// x · Wᵀ: x `[..,K]`, weight `[N,K]`, to `[..,N]`.
///
/// # Errors
/// If the shapes do not fit.
pub fn linear(g: &mut Graph, x: Value, weight: Value) -> Result<Value> {
    g.apply1(MatMul { transpose_a: false, transpose_b: true }, &[x, weight])
}

/// Root mean square normalisation of x `[..,D]` with gain `[D]`.
///
/// # Errors
/// If the shapes do not fit.
pub fn rms_norm(g: &mut Graph, x: Value, gain: Value, eps: f64) -> Result<Value> {
    Ok(g.apply(RmsNorm { eps: eps as f32 }, &[x, gain])?[0])
}

/// Weights of a feed-forward block.
#[derive(Debug, Clone, Copy)]
pub struct MlpWeights {
    /// `[F,D]`
    pub gate: Value,
    /// `[F,D]`
    pub up: Value,
    /// `[D,F]`
    pub down: Value,
}

/// The feed-forward block with SwiGLU (Shazeer, 2020): x `[B,T,D]` to down(silu(gate(x)) · up(x)), `[B,T,D]`.
///
/// # Errors
/// If the shapes do not fit.
pub fn mlp(g: &mut Graph, x: Value, weights: &MlpWeights) -> Result<Value> {
    let gate = g.scope("gate", |g| linear(g, x, weights.gate))?;
    let up = g.scope("up", |g| linear(g, x, weights.up))?;
    let inner = g.scope("swiglu", |g| g.apply1(Map::swiglu(), &[gate, up]))?;
    g.scope("down", |g| linear(g, inner, weights.down))
}
