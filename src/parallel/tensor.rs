//! The tensor axis: the graph of a loss for one device → that of one rank, which has a part of every matrix. Placements
//! begin at the parameters, go through the graph by a rule of each operator, and where one must change stands a collective
//! (Shoeybi et al., "Megatron-LM", 2019; with the residual stream in parts of tokens: Korthikanti et al., 2022). The backward
//! pass is made after that, and so has the transposes of these (docs/decisions/0009-placements.md).

use super::Placement;
use crate::base::Shape;
use crate::error::{Error, Result};
use crate::graph::rewrite::{Rewrite, ids};
use crate::graph::{Detach, Graph, Kind, Map, NodeId, Op, Slice, Value};
use crate::ops::{
    AllGather, AllReduce, Along, Attention, Embedding, EmbeddingPart, LinearCrossEntropy, LinearCrossEntropyPart,
    LinearLogProbs, LinearLogProbsPart, MatMul, ReduceScatter, RingAttention, RmsNorm, Rope, Spread, Words,
};
use std::any::Any;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// A value of the whole graph that a rank has in its own.
#[derive(Debug, Clone, Copy)]
pub struct Given {
    /// In the graph for one device.
    pub whole: Value,
    /// In the rank's.
    pub own: Value,
    /// What it has of it.
    pub placement: Placement,
}

/// One rank of the tensor axis.
#[derive(Debug, Clone, Copy)]
pub struct TensorAxis {
    /// The axis, and how many ranks it has.
    pub along: Along,
    /// This one.
    pub rank: usize,
    /// Whether between blocks each rank has a part of every sequence's tokens, so that norms and additions are not done on all
    /// ranks alike: as many bytes are sent, and N times fewer kept.
    pub split_tokens: bool,
}

impl TensorAxis {
    /// Appends to `g` what a rank computes of the outputs of `whole`, given its parameters and inputs; gives them in order. All
    /// ranks get the same. What else `whole` reads all ranks have alike.
    ///
    /// # Errors
    /// If something cannot be computed in parts; of what, and where.
    pub fn apply(&self, whole: &Graph, g: &mut Graph, given: &[Given]) -> Result<Vec<Value>> {
        let (rewrite, wanted) = begin(whole, g, given);
        let mut pass = Pass { axis: *self, rewrite, placed: placed(given), made: HashMap::new() };
        let done = wanted.into_iter().try_for_each(|id| pass.node(id));
        let outputs = done.and_then(|()| {
            whole
                .outputs()
                .iter()
                .map(|(name, value)| match pass.placed[value] {
                    Placement::Same => Ok(pass.rewrite.value(*value)),
                    Placement::Split { .. } => Err(Error::Graph(format!("{name} is in parts on the ranks"))),
                })
                .collect()
        });
        *g = pass.rewrite.new;
        outputs
    }
}

/// Begins to rewrite `whole` behind what `g` has, which it takes, with what is given in its place; and the nodes that remain to be
/// rewritten, in order.
pub(super) fn begin<'a>(whole: &'a Graph, g: &mut Graph, given: &[Given]) -> (Rewrite<'a>, Vec<NodeId>) {
    let mut rewrite = Rewrite::new(whole);
    rewrite.new = std::mem::take(g);
    given.iter().for_each(|given| rewrite.put(given.whole, given.own));
    let wanted = wanted(whole, given);
    (rewrite, ids(whole).filter(|id| wanted.contains(id)).collect())
}

/// What a rank has of what is given, by values of the whole graph.
pub(super) fn placed(given: &[Given]) -> HashMap<Value, Placement> {
    given.iter().map(|given| (given.whole, given.placement)).collect()
}

/// The nodes that outputs need and that are not given.
fn wanted(graph: &Graph, given: &[Given]) -> HashSet<NodeId> {
    let given: HashSet<Value> = given.iter().map(|g| g.whole).collect();
    let mut wanted: HashSet<NodeId> = HashSet::new();
    let want = |value: &Value, wanted: &mut HashSet<NodeId>| {
        if !given.contains(value) {
            wanted.insert(value.node);
        }
    };
    graph.outputs().iter().for_each(|(_, value)| want(value, &mut wanted));
    for id in ids(graph).rev() {
        if wanted.contains(&id) {
            graph.node(id).inputs.iter().for_each(|value| want(value, &mut wanted));
        }
    }
    wanted
}

/// A collective behind a value, made once for all that read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Change {
    Spread,
    Gather(usize),
}

struct Pass<'a> {
    axis: TensorAxis,
    rewrite: Rewrite<'a>,
    /// By values of the whole graph.
    placed: HashMap<Value, Placement>,
    made: HashMap<(Value, Change), Value>,
}

use Placement::{Same, Split};

impl Pass<'_> {
    fn ranks(&self) -> usize {
        self.axis.along.ranks
    }

    fn shape(&self, value: Value) -> &Shape {
        &self.rewrite.old.ty(value).shape
    }

    fn placement(&self, value: Value) -> Placement {
        self.placed[&value]
    }

    fn refuse(&self, id: NodeId, why: &str) -> Error {
        let node = self.rewrite.old.node(id);
        let (name, axis) = (&node.name, self.axis.along.axis);
        Error::Graph(format!(
            "{} at {name} cannot be split over {} ranks along {axis}: {why}",
            node.op_name(),
            self.ranks()
        ))
    }

    fn node(&mut self, id: NodeId) -> Result<()> {
        let node = self.rewrite.old.node(id);
        let Kind::Op(op) = &node.kind else {
            self.rewrite.copy(id)?;
            self.set(id, &[Same]);
            return Ok(());
        };
        let op = op.clone();
        let any: &dyn Any = op.as_ref();
        if let Some(op) = any.downcast_ref::<MatMul>() {
            return self.product(id, op);
        }
        if any.is::<Embedding>() {
            return self.embedding(id);
        }
        if let Some(whole) = any.downcast_ref::<LinearCrossEntropy>().cloned() {
            return self.over_words(id, |words| Arc::new(LinearCrossEntropyPart { whole, words }));
        }
        if let Some(whole) = any.downcast_ref::<LinearLogProbs>().cloned() {
            return self.over_words(id, |words| Arc::new(LinearLogProbsPart { whole, words }));
        }
        if node.inputs.iter().all(|&v| self.placement(v) == Same) {
            self.rewrite.copy(id)?;
            self.set(id, &vec![Same; node.outputs.len()]);
            return Ok(());
        }
        if any.is::<Map>() || any.is::<Detach>() {
            return self.elementwise(id, op.clone());
        }
        if any.is::<RmsNorm>() {
            return self.norm(id, op.clone());
        }
        if let Some(slice) = any.downcast_ref::<Slice>() {
            return self.reshape(id, slice);
        }
        if any.is::<Rope>() {
            return self.heads(id, op.clone(), &[0, 3]);
        }
        if let Some(attention) = any.downcast_ref::<Attention>() {
            if attention.mask.alibi {
                return Err(self.refuse(id, "its heads have slopes by their number among all"));
            }
            return self.heads(id, op.clone(), &[0, 1, 2]);
        }
        if any.is::<RingAttention>() {
            return self.heads(id, op.clone(), &[0, 1, 2]);
        }
        Err(self.refuse(id, "it has no rule for parts"))
    }

    /// Says what the outputs of a node are; their values are known already.
    fn set(&mut self, id: NodeId, placements: &[Placement]) {
        for (output, &placement) in placements.iter().enumerate() {
            self.placed.insert(Value { node: id, output: output as u32 }, placement);
        }
    }

    fn put(&mut self, id: NodeId, op: Arc<dyn Op>, inputs: &[Value], placements: &[Placement]) -> Result<()> {
        let node = self.rewrite.old.node(id);
        let outputs = self.rewrite.new.apply_named(op, inputs, node.name.clone())?;
        for (i, (&output, placement)) in outputs.iter().zip(placements).enumerate() {
            let old = &node.outputs[i].shape;
            let wanted = placement.local(old, self.ranks());
            if wanted.as_ref() != Some(&self.rewrite.new.ty(output).shape) {
                let is = self.rewrite.new.ty(output).clone();
                return Err(self.refuse(id, &format!("of {old} a rank would have {is}")));
            }
        }
        self.rewrite.set(id, &outputs);
        self.set(id, placements);
        Ok(())
    }

    /// A collective behind a value of the rank's graph, named after it.
    fn behind(&mut self, value: Value, change: Change) -> Result<Value> {
        if let Some(&made) = self.made.get(&(value, change)) {
            return Ok(made);
        }
        let along = self.axis.along;
        let name = self.rewrite.new.node(value.node).name.clone();
        let made = match change {
            Change::Spread => {
                let op = Arc::new(Spread(along));
                self.rewrite.new.apply_named(op, &[value], format!("{name}.spread"))?[0]
            }
            Change::Gather(dim) => {
                let op = Arc::new(AllGather { along, dim });
                self.rewrite.new.apply_named(op, &[value], format!("{name}.all_gather"))?[0]
            }
        };
        self.made.insert((value, change), made);
        Ok(made)
    }

    /// A value that all ranks have whole, for what each does its own part with: of its gradient each has a term.
    fn whole(&mut self, id: NodeId, value: Value) -> Result<Value> {
        let (own, placement) = (self.rewrite.value(value), self.placement(value));
        match placement {
            Same => self.behind(own, Change::Spread),
            Split { .. } => match placement.dim(self.shape(value), self.ranks()) {
                Some(dim) => self.behind(own, Change::Gather(dim)),
                None => Err(self.refuse(id, "an input is in parts that are no parts of a dim")),
            },
        }
    }

    /// Of a value of which each rank has a term: the sum, or of each rank its part of the tokens.
    fn sum(&mut self, id: NodeId, term: Value) -> Result<()> {
        let (along, name) = (self.axis.along, self.rewrite.old.node(id).name.clone());
        let shape = self.rewrite.new.ty(term).shape.clone();
        let tokens = shape.rank() == 3 && shape.dims()[1].is_multiple_of(along.ranks);
        let (op, placement): (Arc<dyn Op>, _) = if self.axis.split_tokens && tokens {
            (Arc::new(ReduceScatter { along, dim: 1 }), Placement::of_dim(&shape, 1))
        } else {
            (Arc::new(AllReduce(along)), Same)
        };
        let name = format!("{name}.{}", op.name());
        let sum = self.rewrite.new.apply_named(op, &[term], name)?;
        self.rewrite.set(id, &sum);
        self.set(id, &[placement]);
        Ok(())
    }

    /// x by W, columns of W, or rows: Megatron's f and g.
    fn product(&mut self, id: NodeId, op: &MatMul) -> Result<()> {
        let node = self.rewrite.old.node(id);
        let (x, w) = (node.inputs[0], node.inputs[1]);
        let (px, pw, ranks) = (self.placement(x), self.placement(w), self.ranks());
        if (px, pw) == (Same, Same) {
            self.rewrite.copy(id)?;
            self.set(id, &[Same]);
            return Ok(());
        }
        if op.transpose_a || !op.transpose_b || self.shape(w).rank() != 2 {
            return Err(self.refuse(id, "it is no linear layer"));
        }
        let (rows, columns) = (self.shape(w).dims()[0], self.shape(w).dims()[1]);
        let x_rows = self.shape(x).elements() / columns;
        let op = Arc::new(op.clone());
        match (pw, px) {
            // Each rank makes its own columns.
            (Split { outer: 1 }, _) => {
                let inputs = [self.whole(id, x)?, self.rewrite.value(w)];
                self.put(id, op, &inputs, &[Split { outer: x_rows }])
            }
            // Each rank makes a term of all columns.
            (Split { outer }, Split { outer: blocks }) if outer == rows && blocks == x_rows => {
                let inputs = [self.rewrite.value(x), self.rewrite.value(w)];
                let name = node.name.clone();
                let term = self.rewrite.new.apply_named(op, &inputs, name)?[0];
                self.sum(id, term)
            }
            // Each rank makes its own rows.
            (Same, Split { outer }) if px.run(self.shape(x), ranks).is_multiple_of(columns) => {
                let inputs = [self.rewrite.value(x), self.whole(id, w)?];
                self.put(id, op, &inputs, &[Split { outer }])
            }
            _ => Err(self.refuse(id, "its inputs are in parts that do not match")),
        }
    }

    /// Each rank looks up the tokens of its part of the vocabulary.
    fn embedding(&mut self, id: NodeId) -> Result<()> {
        let node = self.rewrite.old.node(id);
        let (table, tokens) = (node.inputs[0], node.inputs[1]);
        match (self.placement(table), self.placement(tokens)) {
            (Same, Same) => {
                self.rewrite.copy(id)?;
                self.set(id, &[Same]);
                Ok(())
            }
            (Split { outer: 1 }, Same) => {
                let first = self.axis.rank * (self.shape(table).dims()[0] / self.ranks());
                let inputs = [self.rewrite.value(table), self.rewrite.value(tokens)];
                let op = Arc::new(EmbeddingPart { first });
                let term = self.rewrite.new.apply_named(op, &inputs, node.name.clone())?[0];
                self.sum(id, term)
            }
            _ => Err(self.refuse(id, "only its vocabulary can be")),
        }
    }

    /// What is said of targets, by the part of the vocabulary that each rank has; `part` is that of the operator.
    fn over_words(&mut self, id: NodeId, part: impl FnOnce(Words) -> Arc<dyn Op>) -> Result<()> {
        let node = self.rewrite.old.node(id);
        let [x, w, targets] = node.inputs[..] else { unreachable!("checked when the node was made") };
        let places = vec![Same; node.outputs.len()];
        match (self.placement(x), self.placement(w), self.placement(targets)) {
            (Same, Same, Same) => {
                self.rewrite.copy(id)?;
                self.set(id, &places);
                Ok(())
            }
            (_, Split { outer: 1 }, Same) => {
                let first = self.axis.rank * (self.shape(w).dims()[0] / self.ranks());
                let inputs = [self.whole(id, x)?, self.rewrite.value(w), self.rewrite.value(targets)];
                self.put(id, part(Words { along: self.axis.along, first }), &inputs, &places)
            }
            _ => Err(self.refuse(id, "only its vocabulary can be")),
        }
    }

    /// Elements in the same parts; what is repeated is whole on all ranks, or as long as the part.
    fn elementwise(&mut self, id: NodeId, op: Arc<dyn Op>) -> Result<()> {
        let node = self.rewrite.old.node(id);
        let (out, ranks) = (node.outputs[0].shape.clone(), self.ranks());
        let full = node.inputs.iter().filter(|v| self.shape(**v).elements() == out.elements());
        let places: HashSet<Placement> = full.map(|v| self.placement(*v)).collect();
        let placement = *places
            .iter()
            .next()
            .filter(|_| places.len() == 1)
            .ok_or_else(|| self.refuse(id, "its inputs are in different parts"))?;
        let Split { outer } = placement else { return Err(self.refuse(id, "what it repeats is in parts")) };
        let mut inputs = Vec::new();
        for &input in &node.inputs {
            let elements = self.shape(input).elements();
            inputs.push(match self.placement(input) {
                place if place == placement && elements == out.elements() => self.rewrite.value(input),
                Same if placement.run(&out, ranks).is_multiple_of(elements) => self.whole(id, input)?,
                Split { outer: 1 } if elements * outer == out.elements() => self.rewrite.value(input),
                _ => return Err(self.refuse(id, "its inputs are in parts that do not match")),
            });
        }
        self.put(id, op, &inputs, &[placement])
    }

    /// Rows that are whole on a rank.
    fn norm(&mut self, id: NodeId, op: Arc<dyn Op>) -> Result<()> {
        let node = self.rewrite.old.node(id);
        let (x, gain) = (node.inputs[0], node.inputs[1]);
        let placement = self.placement(x);
        let whole_rows = placement.run(self.shape(x), self.ranks()).is_multiple_of(self.shape(x).last());
        if !whole_rows || self.placement(gain) != Same {
            return Err(self.refuse(id, "its rows lie on several ranks"));
        }
        let inputs = [self.rewrite.value(x), self.whole(id, gain)?];
        self.put(id, op, &inputs, &[placement; 2])
    }

    fn reshape(&mut self, id: NodeId, slice: &Slice) -> Result<()> {
        let input = self.rewrite.old.node(id).inputs[0];
        let placement = self.placement(input);
        let whole = self.shape(input).elements() == slice.shape.elements();
        let Some(shape) = placement.local(&slice.shape, self.ranks()).filter(|_| whole) else {
            return Err(self.refuse(id, "a rank's part of its input is no part of its result"));
        };
        let own = self.rewrite.value(input);
        self.put(id, Arc::new(Slice { start: 0, shape }), &[own], &[placement])
    }

    /// What is done for each head by itself: `[B,T,H,C]` in parts of H.
    fn heads(&mut self, id: NodeId, op: Arc<dyn Op>, of_heads: &[usize]) -> Result<()> {
        let node = self.rewrite.old.node(id);
        let mut inputs = Vec::new();
        for (i, &input) in node.inputs.iter().enumerate() {
            let dim = self.placement(input).dim(self.shape(input), self.ranks());
            let wanted = of_heads.contains(&i).then_some(2);
            if dim != wanted {
                return Err(self.refuse(id, "its inputs are not in parts of heads"));
            }
            inputs.push(self.rewrite.value(input));
        }
        // Of attention the second output is [B,H,T].
        let is_attention = of_heads.len() == 3;
        let dim = |i: usize| if is_attention && i == 1 { 1 } else { 2 };
        let outputs = node.outputs.iter().enumerate();
        let placements: Vec<Placement> = outputs.map(|(i, ty)| Placement::of_dim(&ty.shape, dim(i))).collect();
        self.put(id, op, &inputs, &placements)
    }
}
