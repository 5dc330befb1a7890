//! The last layer and the loss where the rows of the output's matrix are spread over ranks: each has the statistics of its own
//! words, and only those, three numbers a row, go from rank to rank (Shoeybi et al., "Megatron-LM", 2019, §3).
//!
//! Legend: R rows (tokens), D model width, V words of this rank, N ranks.

use super::linear_cross_entropy::{Parts, fitted, log_sum_exp, logits, statistics};
use super::{
    AllGather, Along, CrossEntropyLoss, CrossEntropyMerge, IGNORE, LinearCrossEntropy, LinearCrossEntropyGrad,
};
use super::{Operands, cross_entropy::UNSEEN};
use crate::base::{Array, Limits, TensorType};
use crate::error::{Error, Result};
use crate::graph::{Cost, Graph, Io, Op, OpNode, Value};
use std::sync::Arc;

/// [`LinearCrossEntropy`] of W `[V,D]`, which are the rows of the words from `first` on, and those of other ranks; all have the
/// same x and targets. Outputs are the same on all ranks; of the gradient towards x each has a term.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinearCrossEntropyPart {
    /// Chunk and operands.
    pub whole: LinearCrossEntropy,
    /// Over whom the words are spread.
    pub along: Along,
    /// The word of W's first row.
    pub first: usize,
}

impl Op for LinearCrossEntropyPart {
    fn name(&self) -> &'static str {
        "linear_cross_entropy_part"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        self.whole.infer(inputs)
    }

    fn gradient(&self, g: &mut Graph, node: &OpNode, dy: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        if dy[1].is_some() || dy[2].is_some() {
            return Err(Error::Graph("of linear_cross_entropy_part's outputs only the loss has a gradient".into()));
        }
        let (Some(dloss), &[x, w, targets]) = (dy[0], &node.inputs[..]) else { return Ok(vec![None; 3]) };
        let inputs = [x, w, targets, node.outputs[1], node.outputs[2], dloss];
        let LinearCrossEntropy { chunk, operands } = self.whole;
        let d = g.apply(LinearCrossEntropyGrad { chunk, operands, first: self.first }, &inputs)?;
        Ok(vec![Some(d[0]), d.get(1).copied(), None])
    }

    fn fitted(&self, io: &Io, limits: &Limits) -> Option<Arc<dyn Op>> {
        let fit = || LinearCrossEntropy { chunk: fitted(io, limits), ..self.whole };
        self.whole.chunk.is_none().then(|| Arc::new(LinearCrossEntropyPart { whole: fit(), ..self.clone() }) as _)
    }

    fn narrow(&self) -> Option<Arc<dyn Op>> {
        let whole = LinearCrossEntropy { operands: Operands::F16, ..self.whole };
        Some(Arc::new(LinearCrossEntropyPart { whole, ..self.clone() }))
    }

    fn expand(&self, g: &mut Graph, node: &OpNode) -> Result<Option<Vec<Value>>> {
        let parts = Parts::of(g, &node.inputs, self.whole.chunk)?;
        let stats = statistics(g, &parts, self.whole.operands, self.first)?;
        let all = g.apply1(AllGather { along: self.along, dim: 0 }, &[stats])?;
        let stats = g.apply1(CrossEntropyMerge { parts: self.along.ranks }, &[all])?;
        Ok(Some(g.apply(CrossEntropyLoss, &[stats, parts.targets])?))
    }

    fn cost(&self, io: &Io) -> Cost {
        self.whole.cost(io)
    }

    fn reduction(&self, io: &Io) -> usize {
        self.whole.reduction(io) * self.along.ranks
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let rounded = |x| self.whole.operands.rounded(x);
        let logits = logits(&rounded(&inputs[0]), &rounded(&inputs[1]));
        let others = (self.along.ranks as f64).ln();
        let lse: Vec<f64> = logits.iter().map(|row| log_sum_exp(row) + others).collect();
        let counted = || inputs[2].data.iter().enumerate().filter(|(_, t)| **t != f64::from(IGNORE));
        let count = counted().count() as f64;
        let logit = |r: usize, t: f64| (t as usize).checked_sub(self.first).and_then(|t| logits[r].get(t).copied());
        let loss = counted().map(|(r, &t)| lse[r] - logit(r, t).unwrap_or(UNSEEN)).sum::<f64>() / count.max(1.0);
        let one = |x| Array::new(TensorType::f32([1]), vec![x]);
        vec![one(loss), Array::new(TensorType::f32([lse.len()]), lse), one(count)]
    }
}
