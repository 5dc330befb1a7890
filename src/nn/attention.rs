//! The attention block: projections, rotary positions, causal attention with grouped queries, output projection.
//! Legend: B batch, T time, S positions of the cache, D model width, H query heads, K kv heads, C head width.

use super::layers::linear;
use crate::base::TensorType;
use crate::error::Result;
use crate::graph::{Graph, Value};
use crate::ops::{Attention, CacheWrite, Rope, rope_table};

/// Weights of an attention block.
#[derive(Debug, Clone, Copy)]
pub struct AttentionWeights {
    /// `[H·C,D]`
    pub q: Value,
    /// `[K·C,D]`
    pub k: Value,
    /// `[K·C,D]`
    pub v: Value,
    /// `[D,H·C]`
    pub o: Value,
}

/// Heads of an attention block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// H: query heads.
    pub queries: usize,
    /// K: key and value heads; divides H.
    pub keys: usize,
    /// C: width of each.
    pub width: usize,
}

/// What all blocks share about positions.
#[derive(Debug, Clone, Copy)]
pub struct Positions {
    /// Cosines and sines `[S,C/2,2]`.
    pub table: Value,
    /// Position of the first of the T tokens: u32 `[1]`.
    pub first: Value,
}

impl Positions {
    /// Angles for positions 0 .. `count`, with base `theta`, and tokens that begin at `first`.
    pub fn new(g: &mut Graph, theta: f64, width: usize, count: usize, first: Value) -> Positions {
        let bytes = rope_table(theta, width, count).iter().flat_map(|x| x.to_le_bytes()).collect();
        let table = g.constant("rope.table", TensorType::f32([count, width / 2, 2]), bytes);
        Positions { table, first }
    }
}

/// States that keep the keys and values of earlier tokens, each `[B,S,K,C]`.
#[derive(Debug, Clone, Copy)]
pub struct KvCache {
    /// Keys, already turned to their positions.
    pub keys: Value,
    /// Values.
    pub values: Value,
}

/// x `[B,T,D]` to `[B,T,D]`. With a cache the T new keys and values are written to it at their positions, and
/// attention reads all that it holds up to each token; without one, the T tokens are all there is.
///
/// # Errors
/// If the shapes do not fit.
pub fn attention(
    g: &mut Graph,
    x: Value,
    weights: &AttentionWeights,
    heads: Heads,
    at: Positions,
    cache: Option<KvCache>,
) -> Result<Value> {
    let (b, t) = (g.dims(x)[0], g.dims(x)[1]);
    let mut project = |name, weight, count| {
        let y = g.scope(name, |g| linear(g, x, weight))?;
        g.scope(name, |g| g.reshape(y, [b, t, count, heads.width]))
    };
    let q = project("q", weights.q, heads.queries)?;
    let k = project("k", weights.k, heads.keys)?;
    let mut v = project("v", weights.v, heads.keys)?;
    let turn = |g: &mut Graph, x| g.apply1(Rope { inverse: false }, &[x, at.table, at.first]);
    let q = g.scope("q", |g| turn(g, q))?;
    let mut k = g.scope("k", |g| turn(g, k))?;
    if let Some(cache) = cache {
        g.apply(CacheWrite, &[k, cache.keys, at.first])?;
        g.apply(CacheWrite, &[v, cache.values, at.first])?;
        (k, v) = (cache.keys, cache.values);
    }
    let y = g.apply(Attention::default(), &[q, k, v, at.first])?[0];
    let y = g.reshape(y, [b, t, heads.queries * heads.width])?;
    g.scope("o", |g| linear(g, y, weights.o))
}
