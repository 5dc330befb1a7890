//! The sequence axis: the graph of a loss for one device → that of one rank, which has of every row two pieces of tokens, one
//! from either end (Liu et al., "Ring attention", 2023; Brandon et al., "Striped attention", 2023, on why not neighbours).
//! What is done for each token by itself is done where the token is, by which experts among that; attention becomes a ring;
//! positions stay those of the row. The loss is that of the rank's own tokens, which is added up with gradients and counts as
//! those of other batches are. What is summed over tokens on the way, as for the balance of experts, is a term of a sum.

use super::tensor::{begin, placed};
use super::{Given, Mesh, Placement};
use crate::base::{Axis, TensorType};
use crate::error::{Error, Result};
use crate::graph::rewrite::Rewrite;
use crate::graph::{Detach, Graph, Kind, Map, NodeId, Op, Slice, SumTo, Value};
use crate::ops::{
    Along, Attention, BatchMean, Embedding, ExpertLinear, ExpertOrder, LinearCrossEntropy, LinearLogProbs, MatMul,
    Pieces, RingAttention, RmsNorm, Rope, Route, SlotSum, Softmax, is_packed,
};
use std::any::Any;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// One rank of the sequence axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SequenceAxis {
    /// The axis, and how many ranks it has.
    pub along: Along,
    /// This one.
    pub rank: usize,
}

impl SequenceAxis {
    /// Of a rank of a mesh, where that splits sequences.
    pub fn of(mesh: Mesh, rank: usize) -> Option<SequenceAxis> {
        let along = Along { axis: Axis::Sequence, ranks: mesh.sequence };
        (along.ranks > 1).then(|| SequenceAxis { along, rank: mesh.place(rank, Axis::Sequence) })
    }

    /// Tokens of this rank's part of rows of so many.
    ///
    /// # Errors
    /// If they cannot be divided into two pieces a rank.
    pub fn tokens(&self, row: usize) -> Result<usize> {
        let ranks = self.along.ranks;
        if row > 0 && row.is_multiple_of(2 * ranks) {
            return Ok(row / ranks);
        }
        Err(Error::Invalid(format!(
            "rows of {row} tokens cannot be dealt to {ranks} ranks in two pieces each; choose a multiple of {} (--seq), or \
             another mesh",
            2 * ranks
        )))
    }

    /// Which of a row's numbers are this rank's, in order: in rows of so many.
    fn places(&self, row: usize) -> impl Iterator<Item = usize> + use<> {
        let piece = row / self.along.ranks / 2;
        let starts = Pieces::starts(self.rank, self.along.ranks, piece);
        (0..2 * piece).map(move |i| Pieces::place(starts, piece, i))
    }

    /// This rank's part of `[B,T]` in rows of T, into `part`.
    pub fn cut(&self, row: usize, all: &[u32], part: &mut Vec<u32>) {
        part.clear();
        all.chunks_exact(row).for_each(|all| part.extend(self.places(row).map(|place| all[place])));
    }

    /// Of the starts of documents in rows, for each token of this rank its number here less how many tokens of its document come
    /// before it, below zero as a number that wraps: what [`RingAttention`] and [`Rope`] take.
    pub fn cut_starts(&self, row: usize, all: &[u32], part: &mut Vec<u32>) {
        part.clear();
        let own = |all: &[u32], (i, place): (usize, usize)| (i as u32).wrapping_sub(place as u32 - all[place]);
        all.chunks_exact(row).for_each(|all| part.extend(self.places(row).enumerate().map(|at| own(all, at))));
    }

    /// Appends to `g` what this rank computes of the outputs of `whole`, given its parameters, all of them, and its part of the
    /// inputs; gives them in order. What else `whole` reads all ranks have alike.
    ///
    /// # Errors
    /// If something is not done for each token by itself; what, and where.
    pub fn apply(&self, whole: &Graph, g: &mut Graph, given: &[Given]) -> Result<Vec<Value>> {
        let (rewrite, wanted) = begin(whole, g, given);
        let mut pass = Pass { axis: *self, rewrite, placed: placed(given), terms: HashSet::new(), places: None };
        let done = wanted.into_iter().try_for_each(|id| pass.node(id));
        let outputs = whole.outputs().iter();
        let outputs = done.map(|()| outputs.map(|(_, value)| pass.rewrite.value(*value)).collect());
        *g = pass.rewrite.new;
        outputs
    }
}

struct Pass<'a> {
    axis: SequenceAxis,
    rewrite: Rewrite<'a>,
    /// By values of the whole graph.
    placed: HashMap<Value, Placement>,
    /// Those of which each rank has a term, of its own tokens; the sum of all is the value. They are placed as what is the same.
    terms: HashSet<Value>,
    /// Where a rank's tokens stand, for what turns them.
    places: Option<Value>,
}

use Placement::{Same, Split};

impl Pass<'_> {
    fn refuse(&self, id: NodeId, why: &str) -> Error {
        let (node, ranks) = (self.rewrite.old.node(id), self.axis.along.ranks);
        Error::Invalid(format!(
            "{} at {} cannot be split over {ranks} ranks along sequence: {why}; leave that axis out",
            node.op_name(),
            node.name
        ))
    }

    fn node(&mut self, id: NodeId) -> Result<()> {
        let node = self.rewrite.old.node(id);
        let split = node.inputs.iter().map(|value| self.placed[value]).find(|placement| *placement != Same);
        let Kind::Op(op) = &node.kind else { return self.alike(id) };
        let op = op.clone();
        let any: &dyn Any = op.as_ref();
        if node.inputs.iter().any(|value| self.terms.contains(value)) && !any.is::<ExpertLinear>() {
            return self.term(id, any);
        }
        let Some(placement) = split else { return self.alike(id) };
        if any.is::<ExpertOrder>() {
            return self.order(id, op, placement);
        }
        if let Some(sum) = any.downcast_ref::<SumTo>() {
            return self.sum(id, sum, placement);
        }
        let first = self.placed[&node.inputs[0]];
        let inputs = self.rewrite.inputs(node);
        if any.is::<LinearCrossEntropy>() {
            // Loss and count of this rank's tokens.
            let outputs = self.rewrite.new.apply_named(op, &inputs, node.name.clone())?;
            self.rewrite.set(id, &outputs);
            return self.set(id, Same);
        }
        if let Some(attention) = any.downcast_ref::<Attention>() {
            return self.attention(id, attention, inputs, placement);
        }
        if any.is::<Rope>() {
            return self.rope(id, op, inputs, placement);
        }
        let alone = match any.downcast_ref::<MatMul>() {
            Some(product) => first == placement && self.placed[&node.inputs[1]] == Same && !product.transpose_a,
            None => is_by_token(any) || self.elementwise(id, any),
        };
        if let Some(slice) = any.downcast_ref::<Slice>() {
            let input = self.rewrite.old.ty(node.inputs[0]).shape.elements();
            let ranks = self.axis.along.ranks;
            let shape = placement.local(&slice.shape, ranks).filter(|_| input == slice.shape.elements());
            let Some(shape) = shape else { return Err(self.refuse(id, "it takes tokens apart")) };
            return self.put(id, Arc::new(Slice { start: 0, shape }), &inputs, placement);
        }
        if !alone {
            return Err(self.refuse(id, "it is not done for each token by itself"));
        }
        self.put(id, op, &inputs, placement)
    }

    /// A rank's slots by expert. Where each expert's begin, and how many each has, follows from its own: terms, by which only the
    /// same rank's slots are read, or that are added up.
    fn order(&mut self, id: NodeId, op: Arc<dyn Op>, placement: Placement) -> Result<()> {
        let node = self.rewrite.old.node(id);
        let outputs = self.rewrite.new.apply_named(op, &self.rewrite.inputs(node), node.name.clone())?;
        self.rewrite.set(id, &outputs);
        for (output, placement) in [placement, Same, Same].into_iter().enumerate() {
            let value = Value { node: id, output: output as u32 };
            self.placed.insert(value, placement);
            if placement == Same {
                self.terms.insert(value);
            }
        }
        Ok(())
    }

    /// Sums over tokens, and within them, but no tokens of a row apart.
    fn sum(&mut self, id: NodeId, sum: &SumTo, placement: Placement) -> Result<()> {
        let node = self.rewrite.old.node(id);
        let shape = &self.rewrite.old.ty(node.inputs[0]).shape;
        let dim = placement.dim(shape, self.axis.along.ranks);
        let token = dim.map_or(0, |dim| shape.dims()[dim + 1..].iter().product());
        if token == 0 || !token.is_multiple_of(sum.shape.elements()) {
            return Err(self.refuse(id, "it keeps sums of several tokens apart"));
        }
        let own = self.rewrite.new.apply_named(Arc::new(sum.clone()), &self.rewrite.inputs(node), node.name.clone())?;
        self.rewrite.set(id, &own);
        self.terms.insert(Value { node: id, output: 0 });
        self.set(id, Same)
    }

    /// Terms are added, and become the sum where the model says that this is wanted: of ranks that each have some of the tokens the
    /// mean of N times what these come to.
    fn term(&mut self, id: NodeId, op: &dyn Any) -> Result<()> {
        let node = self.rewrite.old.node(id);
        let all = node.inputs.iter().all(|value| self.terms.contains(value));
        if all && op.is::<BatchMean>() {
            let (own, times) = (self.rewrite.value(node.inputs[0]), Map::scale(self.axis.along.ranks as f32));
            let name = node.name.clone();
            let sum = self.rewrite.new.scope(name, |g| {
                let own = g.apply1(times, &[own])?;
                g.apply1(BatchMean, &[own])
            })?;
            self.rewrite.set(id, &[sum]);
            return self.set(id, Same);
        }
        if !all || op.downcast_ref::<Map>() != Some(&Map::add()) {
            return Err(self.refuse(id, "each rank has the sum of its own tokens, and this is of all of them"));
        }
        self.terms.insert(Value { node: id, output: 0 });
        self.alike(id)
    }

    /// Elements of which one rank has whole tokens; what is repeated is repeated within these.
    fn elementwise(&self, id: NodeId, op: &dyn Any) -> bool {
        let node = self.rewrite.old.node(id);
        let out = &node.outputs[0].shape;
        let fits = |value: &Value| {
            let elements = self.rewrite.old.ty(*value).shape.elements();
            match self.placed[value] {
                Same => {
                    let own = out.elements() / self.axis.along.ranks;
                    elements > 0 && own.is_multiple_of(elements) && elements <= out.last()
                }
                Split { .. } => elements == out.elements(),
            }
        };
        (op.is::<Map>() || op.is::<Detach>()) && node.inputs.iter().all(fits)
    }

    /// What all ranks have alike.
    fn alike(&mut self, id: NodeId) -> Result<()> {
        self.rewrite.copy(id)?;
        self.set(id, Same)
    }

    fn set(&mut self, id: NodeId, placement: Placement) -> Result<()> {
        for output in 0..self.rewrite.old.node(id).outputs.len().max(1) {
            self.placed.insert(Value { node: id, output: output as u32 }, placement);
        }
        Ok(())
    }

    fn put(&mut self, id: NodeId, op: Arc<dyn Op>, inputs: &[Value], placement: Placement) -> Result<()> {
        let node = self.rewrite.old.node(id);
        let outputs = self.rewrite.new.apply_named(op, inputs, node.name.clone())?;
        for (old, &output) in node.outputs.iter().zip(&outputs) {
            let is = self.rewrite.new.ty(output);
            if placement.local(&old.shape, self.axis.along.ranks).as_ref() != Some(&is.shape) {
                return Err(self.refuse(id, &format!("of {old} a rank would have {is}")));
            }
        }
        self.rewrite.set(id, &outputs);
        self.set(id, placement)
    }

    /// Where the first query stands is the same for all: what a rank's queries see follows from its rank.
    fn attention(&mut self, id: NodeId, op: &Attention, inputs: Vec<Value>, placement: Placement) -> Result<()> {
        if op.mask.alibi {
            return Err(self.refuse(id, "its heads see distances by slopes of their own (ALiBi)"));
        }
        let SequenceAxis { along, rank } = self.axis;
        let ring = RingAttention { mask: op.mask, operands: op.operands, along, rank };
        let node = self.rewrite.old.node(id);
        let outputs = self.rewrite.new.apply_named(Arc::new(ring), &inputs, node.name.clone())?;
        self.rewrite.set(id, &outputs);
        self.set(id, placement)
    }

    /// Each token is turned to its place in its row, or in its document.
    fn rope(&mut self, id: NodeId, op: Arc<dyn Op>, mut inputs: Vec<Value>, placement: Placement) -> Result<()> {
        let node = self.rewrite.old.node(id);
        if self.placed[&node.inputs[2]] == Same {
            let at = self.rewrite.old.ty(node.inputs[2]);
            if is_packed(at) {
                return Err(self.refuse(id, "all ranks have the starts of all documents"));
            }
            let [b, row] = [0, 1].map(|dim| self.rewrite.old.ty(node.inputs[0]).shape.dims()[dim]);
            let (axis, new) = (self.axis, &mut self.rewrite.new);
            inputs[2] = *self.places.get_or_insert_with(|| {
                // Every row is one document.
                let mut own = Vec::new();
                axis.cut_starts(row, &vec![0; b * row], &mut own);
                let bytes = own.iter().flat_map(|at| at.to_le_bytes()).collect();
                new.constant("places", TensorType::u32([b, own.len() / b]), bytes)
            });
        }
        self.put(id, op, &inputs, placement)
    }
}

/// Whether an operator makes of each token, or of its slots, something by itself.
fn is_by_token(op: &dyn Any) -> bool {
    op.is::<Embedding>()
        || op.is::<RmsNorm>()
        || op.is::<Softmax>()
        || op.is::<Route>()
        || op.is::<ExpertLinear>()
        || op.is::<SlotSum>()
        || op.is::<LinearLogProbs>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_dealt_in_two_pieces() {
        let axis = |rank| SequenceAxis { along: Along { axis: Axis::Sequence, ranks: 2 }, rank };
        let (rows, mut part) = ((0..16).collect::<Vec<u32>>(), Vec::new());
        axis(0).cut(8, &rows, &mut part);
        assert_eq!(part, [0, 1, 6, 7, 8, 9, 14, 15]);
        axis(1).cut(8, &rows, &mut part);
        assert_eq!(part, [2, 3, 4, 5, 10, 11, 12, 13]);
        // Documents of three and five tokens: each token's number here less those of its document before it.
        axis(1).cut_starts(8, &[0, 0, 0, 3, 3, 3, 3, 3], &mut part);
        assert_eq!(part, [0u32.wrapping_sub(2), 1, 1, 1]);
        assert_eq!(axis(0).tokens(8).unwrap(), 4);
        let said = axis(0).tokens(6).unwrap_err().to_string();
        assert!(said.contains("rows of 6 tokens cannot be dealt to 2 ranks in two pieces each"), "{said}");
    }
}
