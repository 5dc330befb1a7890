//! Log-probabilities of targets, token by token: where a loss is made of those of whole texts, as of preferences, and no mean
//! over tokens will do. The parts are those of `cross_entropy.rs`, the whole that of `linear_cross_entropy.rs`.
//!
//! Legend: R rows (tokens), N words of a chunk, D model width, V vocabulary.

use super::cross_entropy::{check_rows, chunk_grad};
use super::linear_cross_entropy::{Parts, backward, cost, fitted, reference_grad, reference_rows, sizes, statistics};
use super::{IGNORE, Operands};
use crate::base::{Array, Limits, TensorType};
use crate::error::{Error, Result};
use crate::graph::{Cost, Dispatch, Graph, Io, Kernel, Op, OpNode, Operand, Value, spread};
use std::sync::Arc;

/// From statistics `[R,3]` and targets u32 `[R]`: the targets' log-probabilities `[R]`, 0 where a row does not count, and lse
/// `[R]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogProbs;

/// Gradient towards the logits `[R,N]` of one chunk: (1 at the target - softmax) · dy, 0 in rows that do not count. Inputs:
/// logits, targets u32 `[R]`, lse `[R]`, dy `[R]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogProbsGrad {
    /// First word of the chunk.
    pub start: usize,
}

/// Log-probabilities of targets under softmax(x·Wᵀ), of the targets' shape; 0 where the target is [`IGNORE`].
///
/// Inputs: x `[..,D]`, W `[V,D]` of any dtype of weights, targets u32 of x's leading dims. Outputs: the log-probabilities, and
/// lse `[R]`. No gradient flows into a W that is not f32.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinearLogProbs {
    /// Words of one chunk, a multiple of 64, or as suits the adapter, as of [`super::LinearCrossEntropy`].
    pub chunk: Option<usize>,
    /// What x and W are rounded to before they are multiplied.
    pub operands: Operands,
}

/// Gradient of [`LinearLogProbs`]: dx, and dW where W is f32, from x, W, targets, lse `[R]` and dy of the targets' shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinearLogProbsGrad {
    /// Words of one chunk, as in the forward pass.
    pub chunk: Option<usize>,
    /// What x, W and the logits' gradients are rounded to before they are multiplied.
    pub operands: Operands,
    /// The word of W's first row; other than 0 where the vocabulary's rows are spread over ranks.
    pub first: usize,
}

impl LinearLogProbs {
    /// The gradient of its node, where W's first row is of the word `first`.
    pub(super) fn gradient_from(
        &self,
        first: usize,
        g: &mut Graph,
        node: &OpNode,
        dy: &[Option<Value>],
    ) -> Result<Vec<Option<Value>>> {
        if dy[1].is_some() {
            return Err(Error::Graph("of linear_log_probs' outputs only the first has a gradient".into()));
        }
        let (Some(dy), &[x, w, targets]) = (dy[0], &node.inputs[..]) else { return Ok(vec![None; 3]) };
        let inputs = [x, w, targets, node.outputs[1], dy];
        let d = g.apply(LinearLogProbsGrad { chunk: self.chunk, operands: self.operands, first }, &inputs)?;
        Ok(vec![Some(d[0]), d.get(1).copied(), None])
    }

    /// Its reference, where W's first row is of the word `first`, and each of so many ranks has the same words.
    pub(super) fn reference_from(&self, first: usize, ranks: usize, inputs: &[Array]) -> Vec<Array> {
        let [own, lse] = reference_rows(inputs, first, ranks, self.operands);
        let log_prob = |(r, &target): (usize, &f64)| if target == f64::from(IGNORE) { 0.0 } else { own[r] - lse[r] };
        let log_probs = inputs[2].data.iter().enumerate().map(log_prob).collect();
        let rows = TensorType::f32([lse.len()]);
        vec![Array::new(TensorType::f32(inputs[2].dims()), log_probs), Array::new(rows, lse)]
    }
}

/// The outputs of [`LinearLogProbs`] from its rows' statistics and targets.
pub(super) fn of_statistics(g: &mut Graph, node: &OpNode, both: [Value; 2]) -> Result<Vec<Value>> {
    let outputs = g.apply(LogProbs, &both)?;
    let shape = g.ty(node.inputs[2]).shape.clone();
    Ok(vec![g.reshape(outputs[0], shape)?, outputs[1]])
}

impl Op for LogProbs {
    fn name(&self) -> &'static str {
        "log_probs"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [stats, targets] = inputs else { return Err("takes statistics and targets".into()) };
        let r = check_rows(stats, targets)?;
        if r == 0 || stats.shape.last() != 3 {
            return Err("statistics must be f32 [R,3] and targets u32 [R], R > 0".into());
        }
        Ok(vec![TensorType::f32([r]), TensorType::f32([r])])
    }

    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        let workgroup = if limits.is_cpu { 8 } else { 64 };
        let rows = io.outputs[0].shape.elements();
        let mut d = Dispatch::new(spread(rows.div_ceil(workgroup), limits)).param("rows", rows);
        for (i, name) in ["stats", "targets"].into_iter().enumerate() {
            d = d.bind(name, Operand::Input(i), 0, io.inputs[i].bytes());
        }
        for (i, name) in ["log_probs", "lse"].into_iter().enumerate() {
            d = d.bind(name, Operand::Output(i), 0, io.outputs[i].bytes());
        }
        let kernel = Kernel::new("log_probs", format!("lanes_{workgroup}"));
        vec![kernel.constant("WORKGROUP", workgroup).dispatch(d)]
    }

    fn cost(&self, io: &Io) -> Cost {
        Cost { flops: 12 * io.outputs[0].shape.elements() as u64, bytes: io.bytes() }
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let stats = inputs[0].data.chunks_exact(3);
        let lse: Vec<f64> = stats.clone().map(|s| s[0] + s[1].ln()).collect();
        let log_prob = |((s, lse), &target): ((&[f64], &f64), &f64)| {
            if target == f64::from(IGNORE) { 0.0 } else { s[2] - lse }
        };
        let log_probs = stats.zip(&lse).zip(&inputs[1].data).map(log_prob).collect();
        let ty = TensorType::f32([lse.len()]);
        vec![Array::new(ty.clone(), log_probs), Array::new(ty, lse)]
    }
}

impl Op for LogProbsGrad {
    fn name(&self) -> &'static str {
        "log_probs_grad"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [logits, targets, lse, dy] = inputs else { return Err("takes logits, targets, lse and dy".into()) };
        let rows = TensorType::f32([check_rows(logits, targets)?]);
        if **lse != rows || **dy != rows {
            return Err("lse and dy must be f32 [R]".into());
        }
        Ok(vec![(*logits).clone()])
    }

    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        chunk_grad(io, limits, self.start)
    }

    fn half_outputs(&self, _io: &Io, _limits: &Limits) -> Vec<usize> {
        vec![0]
    }

    fn cost(&self, io: &Io) -> Cost {
        Cost { flops: 10 * io.elements(), bytes: io.bytes() }
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let n = inputs[0].ty.shape.last();
        let gradient = |(i, x): (usize, &f64)| {
            let (row, target) = (i / n, inputs[1].data[i / n]);
            let hit = f64::from(u8::from(target == (self.start + i % n) as f64));
            let counts = target != f64::from(IGNORE);
            if counts { (hit - (x - inputs[2].data[row]).exp()) * inputs[3].data[row] } else { 0.0 }
        };
        let data = inputs[0].data.iter().enumerate().map(gradient).collect();
        vec![Array::new(inputs[0].ty.clone(), data)]
    }
}

impl Op for LinearLogProbs {
    fn name(&self) -> &'static str {
        "linear_log_probs"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [x, w, targets] = inputs else { return Err("takes x, W and targets".into()) };
        let [r, ..] = sizes(x, w, targets, self.chunk)?;
        Ok(vec![TensorType::f32(targets.shape.dims()), TensorType::f32([r])])
    }

    fn gradient(&self, g: &mut Graph, node: &OpNode, dy: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        self.gradient_from(0, g, node, dy)
    }

    fn fitted(&self, io: &Io, limits: &Limits) -> Option<Arc<dyn Op>> {
        self.chunk.is_none().then(|| Arc::new(LinearLogProbs { chunk: fitted(io, limits), ..self.clone() }) as _)
    }

    fn narrow(&self) -> Option<Arc<dyn Op>> {
        Some(Arc::new(LinearLogProbs { operands: Operands::F16, ..self.clone() }))
    }

    fn expand(&self, g: &mut Graph, node: &OpNode) -> Result<Option<Vec<Value>>> {
        let parts = Parts::of(g, &node.inputs, self.chunk)?;
        let stats = statistics(g, &parts, self.operands, 0)?;
        of_statistics(g, node, [stats, parts.targets]).map(Some)
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

impl Op for LinearLogProbsGrad {
    fn name(&self) -> &'static str {
        "linear_log_probs_grad"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [x, w, targets, lse, dy] = inputs else { return Err("takes x, W, targets, lse and dy".into()) };
        let [r, ..] = sizes(x, w, targets, self.chunk)?;
        if **lse != TensorType::f32([r]) || **dy != TensorType::f32(targets.shape.dims()) {
            return Err("lse must be f32 [R], and dy f32 of the targets' shape".into());
        }
        Ok([x, w].into_iter().filter(|ty| !ty.dtype.is_packed()).map(|ty| (*ty).clone()).collect())
    }

    fn fitted(&self, io: &Io, limits: &Limits) -> Option<Arc<dyn Op>> {
        self.chunk.is_none().then(|| Arc::new(LinearLogProbsGrad { chunk: fitted(io, limits), ..self.clone() }) as _)
    }

    fn expand(&self, g: &mut Graph, node: &OpNode) -> Result<Option<Vec<Value>>> {
        let (lse, dy) = (node.inputs[3], node.inputs[4]);
        let rows = g.ty(lse).shape.clone();
        let dy = g.reshape(dy, rows)?;
        let parts = Parts::of(g, &node.inputs, self.chunk)?;
        backward(g, &node.inputs, &parts, self.operands, &|g, start, logits| {
            g.apply1(LogProbsGrad { start: self.first + start }, &[logits, parts.targets, lse, dy])
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
        let [x, w, targets, lse, dy] = inputs else { unreachable!("checked when the node was made") };
        let towards = |r: usize, hit, logit: f64| (hit - (logit - lse.data[r]).exp()) * dy.data[r];
        reference_grad([x, w, targets], self.first, self.operands, &towards)
    }
}
