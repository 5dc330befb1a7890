//! The log-probabilities of targets where the rows of the output's matrix are spread over ranks: as `linear_cross_entropy_part.rs`,
//! token by token.
//!
//! Legend: R rows (tokens), D model width, V words of this rank.

use super::linear_cross_entropy::fitted;
use super::linear_cross_entropy_part::Words;
use super::log_probs::of_statistics;
use super::{LinearLogProbs, Operands};
use crate::base::{Array, Limits, TensorType};
use crate::error::Result;
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
        self.whole.gradient_from(self.words.first, g, node, dy)
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
        let both = self.words.statistics(g, &node.inputs, self.whole.chunk, self.whole.operands)?;
        of_statistics(g, node, both).map(Some)
    }

    fn cost(&self, io: &Io) -> Cost {
        self.whole.cost(io)
    }

    fn reduction(&self, io: &Io) -> usize {
        self.whole.reduction(io) * self.words.along.ranks
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        self.whole.reference_from(self.words.first, self.words.along.ranks, inputs)
    }
}
