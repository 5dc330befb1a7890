//! The last layer and the loss in one, without ever holding all logits: the vocabulary comes in chunks, and the backward
//! pass computes each chunk's logits again (Wijmans et al., "Cut your losses in large-vocabulary language models", 2024).
//!
//! Legend: R rows (tokens), D model width, V vocabulary.

use super::cross_entropy::UNSEEN;
use super::{CrossEntropyGrad, CrossEntropyLoss, CrossEntropyUpdate, IGNORE, MatMul, Operands, weight};
use crate::base::{Array, DType, Limits, TensorType};
use crate::error::{Error, Result};
use crate::graph::{Concat, Cost, Graph, Io, Map, Op, OpNode, Slice, Value};
use std::ops::Range;
use std::sync::Arc;

/// Mean cross entropy of softmax(x·Wᵀ) against targets, over rows whose target is not [`IGNORE`].
///
/// Inputs: x `[..,D]`, W `[V,D]` of any dtype of weights, targets u32 of x's leading dims. Outputs: loss `[1]`, lse `[R]`,
/// count `[1]` of rows that count. No gradient flows into a W that is not f32.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinearCrossEntropy {
    /// Words of one chunk, a multiple of 64; `None` as suits the adapter, see [`LinearCrossEntropy::chunk_for`].
    pub chunk: Option<usize>,
    /// What x and W are rounded to before they are multiplied.
    pub operands: Operands,
}

/// Gradient of [`LinearCrossEntropy`]: dx, and dW where W is f32, from x, W, targets, lse, count and dloss `[1]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinearCrossEntropyGrad {
    /// Words of one chunk, as in the forward pass.
    pub chunk: Option<usize>,
    /// What x, W and the logits' gradients are rounded to before they are multiplied.
    pub operands: Operands,
    /// The word of W's first row; other than 0 where the vocabulary's rows are spread over ranks.
    pub first: usize,
}

impl LinearCrossEntropy {
    /// In strict f32, by so many words at a time.
    pub fn new(chunk: usize) -> Self {
        LinearCrossEntropy { chunk: Some(chunk), operands: Operands::F32 }
    }

    /// In strict f32, by as many words at a time as suits the adapter.
    pub fn fitting() -> Self {
        LinearCrossEntropy { chunk: None, operands: Operands::F32 }
    }

    /// The gradient of its node, where W's first row is of the word `first`.
    pub(super) fn gradient_from(
        &self,
        first: usize,
        g: &mut Graph,
        node: &OpNode,
        dy: &[Option<Value>],
    ) -> Result<Vec<Option<Value>>> {
        if dy[1].is_some() || dy[2].is_some() {
            return Err(Error::Graph("of linear_cross_entropy's outputs only the loss has a gradient".into()));
        }
        let (Some(dloss), &[x, w, targets]) = (dy[0], &node.inputs[..]) else { return Ok(vec![None; 3]) };
        let inputs = [x, w, targets, node.outputs[1], node.outputs[2], dloss];
        let d = g.apply(LinearCrossEntropyGrad { chunk: self.chunk, operands: self.operands, first }, &inputs)?;
        Ok(vec![Some(d[0]), d.get(1).copied(), None])
    }

    /// Its reference, where W's first row is of the word `first`, and each of so many ranks has the same words.
    pub(super) fn reference_from(&self, first: usize, ranks: usize, inputs: &[Array]) -> Vec<Array> {
        let [own, lse] = reference_rows(inputs, first, ranks, self.operands);
        let counted = || inputs[2].data.iter().enumerate().filter(|(_, t)| **t != f64::from(IGNORE));
        let count = counted().count() as f64;
        let loss = counted().map(|(r, _)| lse[r] - own[r]).sum::<f64>() / count.max(1.0);
        let one = |x| Array::new(TensorType::f32([1]), vec![x]);
        vec![one(loss), Array::new(TensorType::f32([lse.len()]), lse), one(count)]
    }

    /// Words of one chunk for `rows` rows of `width` on an adapter with these limits: in steps of 64, at least 256.
    ///
    /// A chunk's logits are written once and read several times, which costs nothing where they stay in a cache; but every
    /// chunk also reads x and adds to its gradient. On a CPU its logits take a MiB, which a core's cache holds
    /// (docs/log.md).
    /// Elsewhere they are 6·D words, with which x and its gradient are an eighth of the traffic, but 16 to 64 MiB of logits.
    pub fn chunk_for(rows: usize, width: usize, limits: &Limits) -> usize {
        let words = |bytes: usize| bytes / (4 * rows.max(1));
        let words = match limits.is_cpu {
            true => words(CPU_LOGITS),
            false => (6 * width).clamp(words(GPU_LOGITS[0]), words(GPU_LOGITS[1])),
        };
        (words / 64 * 64).max(256)
    }
}

/// Bytes of a chunk's logits on a CPU.
const CPU_LOGITS: usize = 1 << 20;
/// Bytes of a chunk's logits on other adapters, at least and at most.
const GPU_LOGITS: [usize; 2] = [16 << 20, 64 << 20];

/// The chunk for operands x and W on an adapter.
pub(super) fn fitted(io: &Io, limits: &Limits) -> Option<usize> {
    let x = &io.inputs[0].shape;
    Some(LinearCrossEntropy::chunk_for(x.rows(), x.last(), limits))
}

/// R, D and V, or what is wrong.
pub(super) fn sizes(
    x: &TensorType,
    w: &TensorType,
    targets: &TensorType,
    chunk: Option<usize>,
) -> Result<[usize; 3], String> {
    let &[v, d] = w.shape.dims() else { return Err("W must be [V,D]".into()) };
    if x.dtype != DType::F32 || x.shape.rank() < 2 || x.shape.last() != d {
        return Err(format!("x must be f32 [..,{d}]"));
    }
    weight::check("W", w)?;
    if targets.dtype != DType::U32
        || !x.shape.dims().starts_with(targets.shape.dims())
        || targets.shape.rank() + 1 != x.shape.rank()
    {
        return Err("targets must be u32 of x's leading dims".into());
    }
    let chunk = chunk.unwrap_or(64);
    if chunk == 0 || !chunk.is_multiple_of(64) || v == 0 || v >= IGNORE as usize || x.shape.rows() == 0 {
        return Err(format!("a chunk of {chunk} words is not a multiple of 64, or there is nothing to do"));
    }
    Ok([x.shape.rows(), d, v])
}

/// The chunks of the vocabulary, as rows of W, and the flat operands.
pub(super) struct Parts {
    pub x: Value,
    pub targets: Value,
    pub chunks: Vec<(usize, Value)>,
}

impl Parts {
    pub fn of(g: &mut Graph, inputs: &[Value], chunk: Option<usize>) -> Result<Parts> {
        let [r, d, v] = sizes(g.ty(inputs[0]), g.ty(inputs[1]), g.ty(inputs[2]), chunk).map_err(Error::Graph)?;
        let (x, targets) = (g.reshape(inputs[0], [r, d])?, g.reshape(inputs[2], [r])?);
        let chunk = chunk.unwrap_or_else(|| LinearCrossEntropy::chunk_for(r, d, &Limits::default()));
        let mut chunks = Vec::new();
        for start in (0..v).step_by(chunk) {
            let rows = chunk.min(v - start);
            let whole = rows == v;
            let part = Slice { start: start * d, shape: [rows, d].into() };
            chunks.push((start, if whole { inputs[1] } else { g.apply1(part, &[inputs[1]])? }));
        }
        Ok(Parts { x, targets, chunks })
    }
}

/// The statistics `[R,3]` of all chunks; W's first row is of the word `first`.
pub(super) fn statistics(g: &mut Graph, parts: &Parts, operands: Operands, first: usize) -> Result<Value> {
    let mut stats: Option<Value> = None;
    for &(start, w) in &parts.chunks {
        let logits = g.apply1(MatMul::linear().with(operands), &[parts.x, w])?;
        let inputs: Vec<Value> = [logits, parts.targets].into_iter().chain(stats).collect();
        stats = Some(g.apply1(CrossEntropyUpdate { start: first + start }, &inputs)?);
    }
    Ok(stats.expect("there is at least one chunk"))
}

/// The gradients towards x and, where it is f32, W, which `inputs` begin with: each chunk's logits are computed again, and
/// `towards` gives the gradient towards them from its first word and them.
pub(super) fn backward(
    g: &mut Graph,
    inputs: &[Value],
    parts: &Parts,
    operands: Operands,
    towards: &dyn Fn(&mut Graph, usize, Value) -> Result<Value>,
) -> Result<Vec<Value>> {
    let (x_shape, w_shape) = (g.ty(inputs[0]).shape.clone(), g.ty(inputs[1]).shape.clone());
    let is_trained = !g.ty(inputs[1]).dtype.is_packed();
    let (mut dx, mut dw): (Option<Value>, Vec<Value>) = (None, Vec::new());
    let mut starts = Vec::new();
    for &(start, w) in &parts.chunks {
        let logits = g.apply1(MatMul::linear().with(operands), &[parts.x, w])?;
        let dlogits = towards(g, start, logits)?;
        let part = g.apply1(MatMul::new(false, false).with(operands), &[dlogits, w])?;
        dx = Some(match dx {
            None => part,
            Some(sum) => g.apply1(Map::add(), &[part, sum])?,
        });
        if is_trained {
            dw.push(g.apply1(MatMul::new(true, false).with(operands), &[dlogits, parts.x])?);
            starts.push(start * w_shape.last());
        }
    }
    let dx = dx.expect("there is at least one chunk");
    let mut both = vec![g.reshape(dx, x_shape)?];
    if is_trained {
        let dw = match dw[..] {
            [dw] => dw,
            _ => g.apply1(Concat { starts, elements: w_shape.elements() }, &dw)?,
        };
        both.push(g.reshape(dw, w_shape)?);
    }
    Ok(both)
}

/// The gradient of the loss of this node towards some rows of its W, whose first row is of the word `first`.
pub(super) fn rows_grad(
    g: &mut Graph,
    node: &OpNode,
    dloss: Value,
    rows: Range<usize>,
    operands: Operands,
    first: usize,
) -> Result<Value> {
    let [x, w, targets] = node.inputs[..] else { unreachable!("checked when the node was made") };
    let (count, d) = (g.ty(x).shape.rows(), g.ty(x).shape.last());
    let (x, targets) = (g.reshape(x, [count, d])?, g.reshape(targets, [count])?);
    let w = g.apply1(Slice { start: rows.start * d, shape: [rows.len(), d].into() }, &[w])?;
    let logits = g.apply1(MatMul::linear().with(operands), &[x, w])?;
    let inputs = [logits, targets, node.outputs[1], node.outputs[2], dloss];
    let dlogits = g.apply1(CrossEntropyGrad { start: first + rows.start }, &inputs)?;
    g.apply1(MatMul::new(true, false).with(operands), &[dlogits, x])
}

/// So many products of x and W, and what is done for each logit.
pub(super) fn cost(io: &Io, products: u64) -> Cost {
    let (x, v) = (&io.inputs[0].shape, io.inputs[1].shape.dims()[0] as u64);
    Cost { flops: v * (2 * products * x.elements() as u64 + 10 * x.rows() as u64), bytes: io.bytes() }
}

/// Logits of every row against all of W, in f64.
fn logits(x: &Array, w: &Array) -> Vec<Vec<f64>> {
    let d = w.ty.shape.last();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    x.data.chunks_exact(d).map(|x| w.data.chunks_exact(d).map(|w| dot(x, w)).collect()).collect()
}

/// Of each row of x the logit of its target, [`UNSEEN`] where that is no word of W, and the log-sum-exp of all logits, as if each of
/// so many ranks had W's words.
pub(super) fn reference_rows(inputs: &[Array], first: usize, ranks: usize, operands: Operands) -> [Vec<f64>; 2] {
    let logits = logits(&operands.rounded(&inputs[0]), &operands.rounded(&inputs[1]));
    let word = |row: &[f64], target: f64| (target as usize).checked_sub(first).and_then(|own| row.get(own).copied());
    let own = logits.iter().zip(&inputs[2].data).map(|(row, &target)| word(row, target).unwrap_or(UNSEEN));
    let log_sum_exp = |row: &Vec<f64>| {
        let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        max + row.iter().map(|x| (x - max).exp()).sum::<f64>().ln() + (ranks as f64).ln()
    };
    [own.collect(), logits.iter().map(log_sum_exp).collect()]
}

/// The gradients towards x and, where it is trained, W, in f64, in rows that count: `towards` gives the one towards a logit, of its
/// row, of 1 where it is the target's and else 0, and of itself.
pub(super) fn reference_grad(
    [x, w, targets]: [&Array; 3],
    first: usize,
    operands: Operands,
    towards: &dyn Fn(usize, f64, f64) -> f64,
) -> Vec<Array> {
    let (x, w) = (&*operands.rounded(x), &*operands.rounded(w));
    let d = w.ty.shape.last();
    let zeros = |a: &Array| Array::zeros(a.ty.shape.clone());
    let (mut dx, mut dw) = (zeros(x), zeros(w));
    for (r, row) in logits(x, w).into_iter().enumerate() {
        let target = targets.data[r];
        if target == f64::from(IGNORE) {
            continue;
        }
        for (v, logit) in row.into_iter().enumerate() {
            let hit = f64::from(u8::from(target == (first + v) as f64));
            let dlogit = operands.round(towards(r, hit, logit));
            for c in 0..d {
                dx.data[r * d + c] += dlogit * w.data[v * d + c];
                dw.data[v * d + c] += dlogit * x.data[r * d + c];
            }
        }
    }
    if w.ty.dtype.is_packed() { vec![dx] } else { vec![dx, dw] }
}

impl Op for LinearCrossEntropy {
    fn name(&self) -> &'static str {
        "linear_cross_entropy"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [x, w, targets] = inputs else { return Err("takes x, W and targets".into()) };
        let [r, ..] = sizes(x, w, targets, self.chunk)?;
        Ok(vec![TensorType::f32([1]), TensorType::f32([r]), TensorType::f32([1])])
    }

    fn gradient(&self, g: &mut Graph, node: &OpNode, dy: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        self.gradient_from(0, g, node, dy)
    }

    fn gradient_rows(
        &self,
        g: &mut Graph,
        node: &OpNode,
        dy: &[Option<Value>],
        input: usize,
        rows: Range<usize>,
    ) -> Result<Option<Value>> {
        let dloss = dy[0].filter(|_| input == 1);
        dloss.map(|dloss| rows_grad(g, node, dloss, rows, self.operands, 0)).transpose()
    }

    fn fitted(&self, io: &Io, limits: &Limits) -> Option<Arc<dyn Op>> {
        self.chunk.is_none().then(|| Arc::new(LinearCrossEntropy { chunk: fitted(io, limits), ..self.clone() }) as _)
    }

    fn narrow(&self) -> Option<Arc<dyn Op>> {
        Some(Arc::new(LinearCrossEntropy { operands: Operands::F16, ..self.clone() }))
    }

    fn expand(&self, g: &mut Graph, node: &OpNode) -> Result<Option<Vec<Value>>> {
        let parts = Parts::of(g, &node.inputs, self.chunk)?;
        let stats = statistics(g, &parts, self.operands, 0)?;
        Ok(Some(g.apply(CrossEntropyLoss, &[stats, parts.targets])?))
    }

    fn cost(&self, io: &Io) -> Cost {
        cost(io, 1)
    }

    fn reduction(&self, io: &Io) -> usize {
        io.inputs[1].shape.dims().iter().sum()
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        self.reference_from(0, 1, inputs)
    }
}

impl Op for LinearCrossEntropyGrad {
    fn name(&self) -> &'static str {
        "linear_cross_entropy_grad"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [x, w, targets, lse, count, dloss] = inputs else {
            return Err("takes x, W, targets, lse, count and dloss".into());
        };
        let [r, ..] = sizes(x, w, targets, self.chunk)?;
        let one = TensorType::f32([1]);
        if **lse != TensorType::f32([r]) || **count != one || **dloss != one {
            return Err("lse must be f32 [R], count and dloss f32 [1]".into());
        }
        Ok([x, w].into_iter().filter(|ty| !ty.dtype.is_packed()).map(|ty| (*ty).clone()).collect())
    }

    fn fitted(&self, io: &Io, limits: &Limits) -> Option<Arc<dyn Op>> {
        self.chunk
            .is_none()
            .then(|| Arc::new(LinearCrossEntropyGrad { chunk: fitted(io, limits), ..self.clone() }) as _)
    }

    fn expand(&self, g: &mut Graph, node: &OpNode) -> Result<Option<Vec<Value>>> {
        let &[_, _, _, lse, count, dloss] = &node.inputs[..] else { unreachable!("checked when the node was made") };
        let parts = Parts::of(g, &node.inputs, self.chunk)?;
        backward(g, &node.inputs, &parts, self.operands, &|g, start, logits| {
            g.apply1(CrossEntropyGrad { start: self.first + start }, &[logits, parts.targets, lse, count, dloss])
        })
        .map(Some)
    }

    fn cost(&self, io: &Io) -> Cost {
        // The logits again, dx, and perhaps dW.
        cost(io, 1 + io.outputs.len() as u64)
    }

    fn reduction(&self, io: &Io) -> usize {
        let rows = io.inputs[0].shape.rows();
        io.inputs[1].shape.dims()[0].max(rows)
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let [x, w, targets, lse, count, dloss] = inputs else { unreachable!("checked when the node was made") };
        let scale = dloss.data[0] / count.data[0].max(1.0);
        let towards = |r: usize, hit, logit: f64| ((logit - lse.data[r]).exp() - hit) * scale;
        reference_grad([x, w, targets], self.first, self.operands, &towards)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_suit_the_adapter_and_nothing_else() {
        let cpu = Limits { is_cpu: true, ..Limits::default() };
        // A MiB of logits on a CPU; never less than 256 words.
        assert_eq!(LinearCrossEntropy::chunk_for(128, 576, &cpu), 2048);
        assert_eq!(LinearCrossEntropy::chunk_for(8192, 576, &cpu), 256);
        // Elsewhere from 16 MiB on, and with many rows so many words that x and its gradient count for little.
        let gpu = Limits::default();
        assert_eq!(LinearCrossEntropy::chunk_for(128, 576, &gpu), 32_768);
        assert_eq!(LinearCrossEntropy::chunk_for(2048, 576, &gpu), 3456);
        assert_eq!(LinearCrossEntropy::chunk_for(8192, 576, &gpu), 2048);
        let (x, w) = (TensorType::f32([2, 64, 576]), TensorType::f32([49_152, 576]));
        let io = Io { inputs: vec![x, w, TensorType::u32([2, 64])], outputs: Vec::new() };
        let fitted = LinearCrossEntropy::fitting().fitted(&io, &cpu).expect("left open");
        assert!(format!("{fitted:?}").contains("chunk: Some(2048)"), "{fitted:?}");
        assert!(LinearCrossEntropy::new(64).fitted(&io, &cpu).is_none(), "what is given stays");
    }
}
