//! The attention block: projections, norms of queries and keys, rotary positions, causal attention with grouped queries,
//! output projection.
//! Legend: B batch, T time, S positions of the cache, D model width, H query heads, K kv heads, C head width.

use super::layers::{Linear, rms_norm};
use crate::base::TensorType;
use crate::error::Result;
use crate::graph::{Graph, Value};
use crate::ops::{Attention, CacheWrite, Mask, Rope, cached_attention, rope_table};

/// Weights of an attention block.
#[derive(Debug, Clone, Copy)]
pub struct AttentionWeights {
    /// D to H·C.
    pub q: Linear,
    /// D to K·C.
    pub k: Linear,
    /// D to K·C.
    pub v: Linear,
    /// H·C to D.
    pub o: Linear,
    /// Gain of the queries' norm: `[C]` norms each head by itself, `[H·C]` all together.
    pub q_norm: Option<Value>,
    /// Gain of the keys' norm: `[C]` or `[K·C]`.
    pub k_norm: Option<Value>,
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

/// What an attention block computes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionKind {
    /// Its heads.
    pub heads: Heads,
    /// What a query sees.
    pub mask: Mask,
    /// True where queries and keys are turned to their positions.
    pub rotary: bool,
    /// Epsilon of the norms of queries and keys.
    pub eps: f64,
}

/// What all blocks share about positions.
#[derive(Debug, Clone, Copy)]
pub struct Positions {
    /// Cosines and sines `[S,R/2,2]`, R being the elements of a head that turn.
    pub table: Value,
    /// Position of the first of the T tokens: u32 `[1]`, or `[B]` with one for each sequence. Without a cache also u32
    /// `[B,T]`: for each token the index in its row at which its document begins (packed rows).
    pub first: Value,
}

impl Positions {
    /// Angles for positions 0 .. `count` of pairs that turn by `inverse` a position, cosines and sines scaled by
    /// `factor`, for tokens that begin at `first`, or whose documents do.
    pub fn new(g: &mut Graph, inverse: &[f64], factor: f64, count: usize, first: Value) -> Positions {
        let bytes = rope_table(inverse, factor, count).iter().flat_map(|x| x.to_le_bytes()).collect();
        let table = g.constant("rope.table", TensorType::f32([count, inverse.len(), 2]), bytes);
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
    kind: AttentionKind,
    at: Positions,
    cache: Option<KvCache>,
) -> Result<Value> {
    let (heads, [b, t]) = (kind.heads, [g.dims(x)[0], g.dims(x)[1]]);
    let project = |g: &mut Graph, linear: &Linear, gain: Option<Value>, count: usize| {
        let y = linear.apply(g, x)?;
        let y = gain.map_or(Ok(y), |gain| norm(g, y, gain, kind.eps))?;
        g.reshape(y, [b, t, count, heads.width])
    };
    let mut q = g.scope("q", |g| project(g, &weights.q, weights.q_norm, heads.queries))?;
    let mut k = g.scope("k", |g| project(g, &weights.k, weights.k_norm, heads.keys))?;
    let v = g.scope("v", |g| project(g, &weights.v, None, heads.keys))?;
    let y = match cache {
        // Whoever writes to the cache turns what it is given.
        Some(cache) => {
            let written = [k, v, cache.keys, cache.values, at.first];
            if kind.rotary {
                q = g.apply1(CacheWrite, &[written.as_slice(), &[at.table, q]].concat())?;
            } else {
                g.apply(CacheWrite, &written)?;
            }
            cached_attention(g, kind.mask, &[q, cache.keys, cache.values, at.first])?
        }
        None => {
            if kind.rotary {
                let turned = g.apply(Rope { inverse: false }, &[q, at.table, at.first, k])?;
                (q, k) = (turned[0], turned[1]);
            }
            g.apply(Attention::new(kind.mask), &[q, k, v, at.first])?[0]
        }
    };
    let y = g.reshape(y, [b, t, heads.queries * heads.width])?;
    g.scope("o", |g| weights.o.apply(g, y))
}

/// Norms every part of y's rows that is as wide as the gain.
fn norm(g: &mut Graph, y: Value, gain: Value, eps: f64) -> Result<Value> {
    let (elements, width) = (g.ty(y).shape.elements(), g.dims(gain)[0]);
    let y = g.reshape(y, [elements / width, width])?;
    rms_norm(g, y, gain, eps)
}
