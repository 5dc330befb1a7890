//! Causal attention with grouped queries, without ever holding a T×S matrix.
//!
//! Legend: B batch, T queries, S keys, H query heads, K kv heads (H is a multiple of K), C head width.

use super::attention_delta::AttentionDelta;
use super::attention_grad::{AttentionGradKeyValue, AttentionGradQuery};
use crate::base::{Array, DType, Limits, TensorType};
use crate::error::{Error, Result};
use crate::graph::{Cost, Dispatch, Graph, Io, Kernel, Op, OpNode, Operand, Value};

/// Which keys a query sees, and what their distance costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mask {
    /// A query sees at most this many keys, itself among them: j > position + t - window (Beltagy et al., 2020, as in
    /// Mistral). `None`: all up to itself.
    pub window: Option<usize>,
    /// Adds -slope(h)·(position + t - j) to the scaled score (Press et al., 2022). The slopes of H heads are
    /// 2^(-8i/n) for i = 1 ..= n with n the largest power of two up to H, then 2^(-4i/n) for i = 1, 3, 5, ...
    pub alibi: bool,
}

/// `softmax(q·kᵀ / √C)·v` over the keys j ≤ position + t of query t, by the online softmax (Milakov and Gimelshein,
/// 2018) in tiles (Dao et al., 2022).
///
/// Inputs: q `[B,T,H,C]`, k and v `[B,S,K,C]`, position u32 `[1]`: the absolute position of the first query. When
/// training S = T and the position is 0; when decoding, k and v are the cache.
/// Outputs: o `[B,T,H,C]`, lse `[B,H,T]`: the logarithm of each softmax's denominator, natural, scale included.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Attention {
    /// What is seen.
    pub mask: Mask,
}

/// Sizes of one attention, shared with its gradients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sizes {
    pub b: usize,
    pub t: usize,
    pub s: usize,
    pub h: usize,
    pub k: usize,
    pub c: usize,
}

impl Sizes {
    /// Sizes from q `[B,T,H,C]`, k and v `[B,S,K,C]`, or what is wrong with them.
    pub fn of(q: &TensorType, k: &TensorType, v: &TensorType) -> Result<Sizes, String> {
        let (&[b, t, h, c], &[kb, s, kh, kc]) = (q.shape.dims(), k.shape.dims()) else {
            return Err("q must be [B,T,H,C], k and v [B,S,K,C]".into());
        };
        if [q, k, v].iter().any(|x| x.dtype != DType::F32) || k != v || kb != b || kc != c {
            return Err("q, k and v must be f32 of one batch and head width, k and v of one shape".into());
        }
        if kh == 0 || h % kh != 0 {
            return Err(format!("{h} query heads are not a multiple of {kh} key heads"));
        }
        if b * t * s == 0 || c % 4 != 0 || c == 0 || c > 256 {
            return Err(format!("head width {c} is not a multiple of 4 up to 256, or a size is 0"));
        }
        Ok(Sizes { b, t, s, h, k: kh, c })
    }

    /// Query heads that share one kv head.
    pub fn group(&self) -> usize {
        self.h / self.k
    }

    /// Pairs of query and key that attend, over batch and heads, if the first query is at `position`.
    fn pairs_from(&self, position: usize) -> u64 {
        (self.b * self.h) as u64 * (0..self.t).map(|t| (position + t + 1).min(self.s) as u64).sum::<u64>()
    }

    /// Pairs as far as the shapes tell: the last query sees the last key.
    pub fn pairs(&self) -> u64 {
        self.pairs_from(self.s.saturating_sub(self.t))
    }

    /// Element of q at (b, t, h, 0).
    pub fn q_at(&self, b: usize, t: usize, h: usize) -> usize {
        ((b * self.t + t) * self.h + h) * self.c
    }

    /// Element of k at (b, s, kv head of h, 0).
    pub fn k_at(&self, b: usize, s: usize, h: usize) -> usize {
        ((b * self.s + s) * self.k + h / self.group()) * self.c
    }

    /// Calls `f(b, t, h, keys)` for every query, `keys` being the number of keys it sees.
    pub fn each_query(&self, position: usize, mut f: impl FnMut(usize, usize, usize, usize)) {
        for b in 0..self.b {
            for t in 0..self.t {
                for h in 0..self.h {
                    f(b, t, h, (position + t + 1).min(self.s));
                }
            }
        }
    }

    /// Batch entries of one dispatch: as many as bindings allow, in steps that keep offsets aligned (one entry is a
    /// multiple of 16 bytes, so that 16 entries always are of 256).
    pub fn batches(&self, limits: &Limits) -> usize {
        let entry = (4 * self.c * (self.t * self.h).max(self.s * self.k)).max(8 * self.h * self.t) as u64;
        let fit = (limits.max_binding_bytes / entry).max(1) as usize;
        if fit >= self.b { self.b } else { (fit / 64 * 64).max(1) }
    }

    /// A dispatch for batch entries `first .. first + count`, with the sizes as params and each named operand bound to
    /// those entries' share of it.
    pub fn dispatch(
        &self,
        io: &Io,
        rows: usize,
        first: usize,
        count: usize,
        names: &[(&'static str, Operand)],
    ) -> Dispatch {
        let mut d = Dispatch::new([rows as u32, self.k as u32, count as u32])
            .param("queries", self.t)
            .param("keys", self.s)
            .param("heads", self.h)
            .param("scale", 1.0 / (self.c as f32).sqrt());
        for &(name, operand) in names {
            let ty = match operand {
                Operand::Input(i) => &io.inputs[i],
                Operand::Output(i) => &io.outputs[i],
            };
            let entry = ty.bytes() / self.b as u64;
            d = match ty.dtype {
                DType::U32 => d.bind(name, operand, 0, ty.bytes()),
                _ => d.bind(name, operand, first as u64 * entry, count as u64 * entry),
            };
        }
        d
    }

    /// The kernel for `rows` rows that are owned by lanes: with sums in registers, of `shader`; or, where lanes are those
    /// of a CPU, with sums in memory, of `simd`.
    pub fn kernels(
        &self,
        [shader, simd]: [&'static str; 2],
        io: &Io,
        limits: &Limits,
        rows: usize,
        names: &[(&'static str, Operand)],
    ) -> Vec<Kernel> {
        let base = |shader, variant: String, lanes| {
            Kernel::new(shader, variant).constant("WORKGROUP", lanes).constant("GROUP", self.group())
        };
        // The rows kernels hand values from lane to lane of a workgroup of eight, which must lie in one subgroup.
        if limits.is_cpu && limits.min_subgroup >= 8 {
            // Fewer rows a lane where they would stay empty.
            let r = [4, 2, 1].into_iter().find(|r| rows > 8 * (r / 2)).unwrap_or(1);
            let kernel = base(simd, format!("rows_{r}x8"), 8).constant("ROWS", r);
            return vec![self.dispatches(kernel, io, limits, rows.div_ceil(8 * r), names, Some(self.c))];
        }
        let kernel = base(shader, "lanes_64".into(), 64).constant("C4", self.c / 4);
        vec![self.dispatches(kernel, io, limits, rows.div_ceil(64), names, None)]
    }

    fn dispatches(
        &self,
        mut kernel: Kernel,
        io: &Io,
        limits: &Limits,
        groups: usize,
        names: &[(&'static str, Operand)],
        width: Option<usize>,
    ) -> Kernel {
        let step = self.batches(limits);
        for first in (0..self.b).step_by(step) {
            let mut d = self.dispatch(io, groups, first, step.min(self.b - first), names);
            if let Some(width) = width {
                d = d.param("width", width);
            }
            kernel = kernel.dispatch(d);
        }
        kernel
    }
}

/// Checks the position's type.
pub(super) fn check_position(position: &TensorType) -> Result<(), String> {
    if *position == TensorType::u32([1]) { Ok(()) } else { Err(format!("the position is {position}, not u32[1]")) }
}

/// Scaled scores of one query against the first `keys` keys.
pub(super) fn scores(z: &Sizes, q: &Array, k: &Array, at: usize, (b, h): (usize, usize), keys: usize) -> Vec<f64> {
    let scale = 1.0 / (z.c as f64).sqrt();
    (0..keys).map(|s| (0..z.c).map(|c| q.data[at + c] * k.data[z.k_at(b, s, h) + c]).sum::<f64>() * scale).collect()
}

impl Op for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [q, k, v, position] = inputs else { return Err("takes q, k, v and position".into()) };
        let z = Sizes::of(q, k, v)?;
        check_position(position)?;
        Ok(vec![(*q).clone(), TensorType::f32([z.b, z.h, z.t])])
    }

    fn gradient(&self, g: &mut Graph, node: &OpNode, dy: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        if dy[1].is_some() {
            return Err(Error::Graph("attention's lse has no gradient of its own; use only its first output".into()));
        }
        let (Some(dy), &[q, k, v, position]) = (dy[0], &node.inputs[..]) else { return Ok(vec![None; 4]) };
        let stats = g.apply1(AttentionDelta, &[dy, node.outputs[0], node.outputs[1]])?;
        let inputs = [q, k, v, dy, stats, position];
        let dq = g.apply1(AttentionGradQuery { mask: self.mask }, &inputs)?;
        let dkv = g.apply(AttentionGradKeyValue { mask: self.mask }, &inputs)?;
        Ok(vec![Some(dq), Some(dkv[0]), Some(dkv[1]), None])
    }

    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        let z = Sizes::of(&io.inputs[0], &io.inputs[1], &io.inputs[2]).expect("checked when the node was made");
        let names = [
            ("q", Operand::Input(0)),
            ("k", Operand::Input(1)),
            ("v", Operand::Input(2)),
            ("position", Operand::Input(3)),
            ("o", Operand::Output(0)),
            ("lse", Operand::Output(1)),
        ];
        z.kernels(["attention", "attention_rows"], io, limits, z.t * z.group(), &names)
    }

    fn cost(&self, io: &Io) -> Cost {
        let z = Sizes::of(&io.inputs[0], &io.inputs[1], &io.inputs[2]).expect("checked when the node was made");
        Cost { flops: 4 * z.c as u64 * z.pairs(), bytes: io.bytes() }
    }

    fn reduction(&self, io: &Io) -> usize {
        io.inputs[0].shape.last() + io.inputs[1].shape.dims()[1]
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let [q, k, v, position] = inputs else { unreachable!("checked when the node was made") };
        let z = Sizes::of(&q.ty, &k.ty, &v.ty).expect("checked when the node was made");
        let (mut o, mut lse) = (Array::zeros(q.ty.shape.clone()), Array::zeros([z.b, z.h, z.t]));
        z.each_query(position.data[0] as usize, |b, t, h, keys| {
            let at = z.q_at(b, t, h);
            let scores = scores(&z, q, k, at, (b, h), keys);
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
            lse.data[(b * z.h + h) * z.t + t] = max + sum.ln();
            for (s, score) in scores.iter().enumerate() {
                let p = (score - max).exp() / sum;
                for c in 0..z.c {
                    o.data[at + c] += p * v.data[z.k_at(b, s, h) + c];
                }
            }
        });
        vec![o, lse]
    }
}
