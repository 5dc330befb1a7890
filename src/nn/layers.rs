//! The small layers. Legend: B batch, T time, D model width, F feed-forward width.

use super::Adapter;
use crate::error::Result;
use crate::graph::{Graph, Map, Value};
use crate::ops::{MatMul, RmsNorm};

/// x · Wᵀ: x `[..,K]`, weight `[N,K]`, to `[..,N]`.
///
/// # Errors
/// If the shapes do not fit.
pub fn linear(g: &mut Graph, x: Value, weight: Value) -> Result<Value> {
    g.apply1(MatMul::linear(), &[x, weight])
}

/// A linear layer's weights.
#[derive(Debug, Clone, Copy)]
pub struct Linear {
    /// `[N,K]`
    pub weight: Value,
    /// `[N]`, where there is one.
    pub bias: Option<Value>,
    /// What is added to the weight, where something is.
    pub adapter: Option<Adapter>,
}

impl Linear {
    /// x · Wᵀ + b: x `[..,K]` to `[..,N]`.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn apply(&self, g: &mut Graph, x: Value) -> Result<Value> {
        let mut y = linear(g, x, self.weight)?;
        if let Some(adapter) = &self.adapter {
            y = adapter.apply(g, x, self.weight, y)?;
        }
        self.bias.map_or(Ok(y), |bias| g.add(y, bias))
    }
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
    /// D to F.
    pub gate: Linear,
    /// D to F.
    pub up: Linear,
    /// F to D.
    pub down: Linear,
}

/// The feed-forward block with SwiGLU (Shazeer, 2020): x `[B,T,D]` to down(silu(gate(x)) · up(x)), `[B,T,D]`.
///
/// # Errors
/// If the shapes do not fit.
pub fn mlp(g: &mut Graph, x: Value, weights: &MlpWeights) -> Result<Value> {
    let gate = g.scope("gate", |g| weights.gate.apply(g, x))?;
    let up = g.scope("up", |g| weights.up.apply(g, x))?;
    let inner = g.scope("swiglu", |g| g.apply1(Map::swiglu(), &[gate, up]))?;
    g.scope("down", |g| weights.down.apply(g, inner))
}
