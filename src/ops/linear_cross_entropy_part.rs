//! The last layer and the loss where the rows of the output's matrix are spread over ranks: each has the statistics of its own
//! words, and only those, three numbers a row, go from rank to rank (Shoeybi et al., "Megatron-LM", 2019, §3).
//!
//! Legend: R rows (tokens), D model width, V words of this rank, N ranks.

use super::linear_cross_entropy::{Parts, fitted, rows_grad, statistics};
use super::{AllGather, Along, CrossEntropyLoss, CrossEntropyMerge, LinearCrossEntropy, Operands};
use crate::base::{Array, Limits, TensorType};
use crate::error::Result;
use crate::graph::{Cost, Graph, Io, Op, OpNode, Value};
use std::ops::Range;
use std::sync::Arc;

/// Words that are one rank's of a vocabulary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Words {
    /// Over whom all are spread.
    pub along: Along,
    /// The word of the first row of its matrix.
    pub first: usize,
}

impl Words {
    /// Of x, W and targets the statistics `[R,3]` over the words of all ranks, and the targets `[R]`.
    pub(super) fn statistics(
        &self,
        g: &mut Graph,
        inputs: &[Value],
        chunk: Option<usize>,
        operands: Operands,
    ) -> Result<[Value; 2]> {
        let parts = Parts::of(g, inputs, chunk)?;
        let stats = statistics(g, &parts, operands, self.first)?;
        let all = g.apply1(AllGather { along: self.along, dim: 0 }, &[stats])?;
        let stats = g.apply1(CrossEntropyMerge { parts: self.along.ranks }, &[all])?;
        Ok([stats, parts.targets])
    }
}

/// [`LinearCrossEntropy`] of W `[V,D]`, which are this rank's of all words; all ranks have the same x and targets. Outputs are the
/// same on all ranks; of the gradient towards x each has a term.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinearCrossEntropyPart {
    /// Chunk and operands.
    pub whole: LinearCrossEntropy,
    /// Which words are the rank's.
    pub words: Words,
}

impl Op for LinearCrossEntropyPart {
    fn name(&self) -> &'static str {
        "linear_cross_entropy_part"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        self.whole.infer(inputs)
    }

    fn gradient(&self, g: &mut Graph, node: &OpNode, dy: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        self.whole.gradient_from(self.words.first, g, node, dy)
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
        dloss.map(|dloss| rows_grad(g, node, dloss, rows, self.whole.operands, self.words.first)).transpose()
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
        let both = self.words.statistics(g, &node.inputs, self.whole.chunk, self.whole.operands)?;
        Ok(Some(g.apply(CrossEntropyLoss, &both)?))
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
