//! The log-probabilities of targets where the rows of the output's matrix are spread over ranks: as `linear_cross_entropy_part.rs`,
//! token by token.
//!
//! Legend: R rows (tokens), D model width, V words of this rank.

use super::linear_cross_entropy::{fitted, log_sum_exp, logits};
use super::linear_cross_entropy_part::{Words, own_logit};
use super::{IGNORE, LinearLogProbs, LinearLogProbsGrad, LogProbs, Operands};
use crate::base::{Array, Limits, TensorType};
use crate::error::{Error, Result};
use crate::graph::{Cost, Graph, Io, Op, OpNode, Value};
use std::sync::Arc;

/// [`LinearLogProbs`] of W `[V,D]`, which are this rank's of all words; all ranks have the same x and targets. Outputs are the same
/// on all ranks; of the gradient towards x each has a term.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinearLogProbsPart {
    /// Chunk and operands.
    pub whole: LinearLogProbs,
    /// Which words are the rank's.
    pub words: Words,
}

impl Op for LinearLogProbsPart {
    fn name(&self) -> &'static str {
        "linear_log_probs_part"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        self.whole.infer(inputs)
    }

    fn gradient(&self, g: &mut Graph, node: &OpNode, dy: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        if dy[1].is_some() {
            return Err(Error::Graph("of linear_log_probs_part's outputs only the first has a gradient".into()));
        }
        let (Some(dy), &[x, w, targets]) = (dy[0], &node.inputs[..]) else { return Ok(vec![None; 3]) };
        let LinearLogProbs { chunk, operands } = self.whole;
        let inputs = [x, w, targets, node.outputs[1], dy];
        let d = g.apply(LinearLogProbsGrad { chunk, operands, first: self.words.first }, &inputs)?;
        Ok(vec![Some(d[0]), d.get(1).copied(), None])
    }

    fn fitted(&self, io: &Io, limits: &Limits) -> Option<Arc<dyn Op>> {
        let fit = || LinearLogProbs { chunk: fitted(io, limits), ..self.whole };
        self.whole.chunk.is_none().then(|| Arc::new(LinearLogProbsPart { whole: fit(), ..self.clone() }) as _)
    }

    fn narrow(&self) -> Option<Arc<dyn Op>> {
        let whole = LinearLogProbs { operands: Operands::F16, ..self.whole };
        Some(Arc::new(LinearLogProbsPart { whole, ..self.clone() }))
    }

    fn expand(&self, g: &mut Graph, node: &OpNode) -> Result<Option<Vec<Value>>> {
        let [stats, targets] = self.words.statistics(g, &node.inputs, self.whole.chunk, self.whole.operands)?;
        let both = g.apply(LogProbs, &[stats, targets])?;
        let shape = g.ty(node.inputs[2]).shape.clone();
        Ok(Some(vec![g.reshape(both[0], shape)?, both[1]]))
    }

    fn cost(&self, io: &Io) -> Cost {
        self.whole.cost(io)
    }

    fn reduction(&self, io: &Io) -> usize {
        self.whole.reduction(io) * self.words.along.ranks
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let rounded = |x| self.whole.operands.rounded(x);
        let logits = logits(&rounded(&inputs[0]), &rounded(&inputs[1]));
        // As if all ranks had the same words.
        let others = (self.words.along.ranks as f64).ln();
        let lse: Vec<f64> = logits.iter().map(|row| log_sum_exp(row) + others).collect();
        let log_prob = |(r, &target): (usize, &f64)| {
            if target == f64::from(IGNORE) { 0.0 } else { own_logit(&logits[r], target, self.words.first) - lse[r] }
        };
        let log_probs = inputs[2].data.iter().enumerate().map(log_prob).collect();
        let rows = TensorType::f32([lse.len()]);
        vec![Array::new(TensorType::f32(inputs[2].dims()), log_probs), Array::new(rows, lse)]
    }
}
