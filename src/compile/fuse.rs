//! Fusion: chains of elementwise operators become one, and what stands behind or before an operator with hooks
//! becomes its epilogue or prologue; a norm goes into the products of its rows.

use super::fused::{Attached, Fused};
use super::rewrite::{Rewrite, ids, operator, uses};
use crate::base::Limits;
use crate::error::Result;
use crate::graph::{Expr, Graph, Io, Kind, Map, MapPair, Node, NodeId, Op, Value};
use crate::ops::{MatMul, NormMatMul, PanelMatMul, RmsNorm};
use std::collections::HashMap;
use std::sync::Arc;

/// A prologue is evaluated once for every time that an element is loaded: only this many operations may hide there.
const CHEAP: u64 = 1;

pub(super) fn fuse(graph: &Graph, limits: &Limits) -> Result<Graph> {
    let normed = Pass::new(graph, limits).run(Pass::norm)?;
    let normed = super::prune::prune(&normed)?;
    let chained = Pass::new(&normed, limits).run(Pass::chain)?;
    let chained = super::prune::prune(&chained)?;
    let stored = Pass::new(&chained, limits).run(Pass::epilogue)?;
    let stored = super::prune::prune(&stored)?;
    let stored = Pass::new(&stored, limits).run_ahead()?;
    let stored = super::prune::prune(&stored)?;
    Pass::new(&stored, limits).run(Pass::prologue)
}

/// The same for two elementwise operators that became one ([`super::pair`]): a product that they both read stores both results.
pub(super) fn fuse_pairs(graph: &Graph, limits: &Limits) -> Result<Graph> {
    Pass::new(graph, limits).run(Pass::pair)
}

/// One walk over the graph that may replace each node by a fused one; the producers that it swallowed die by pruning.
struct Pass<'a> {
    rewrite: Rewrite<'a>,
    uses: HashMap<Value, usize>,
    limits: &'a Limits,
    last_write: Vec<u32>,
}

/// A fused operator and its inputs.
type Fusion = (Arc<dyn Op>, Vec<Value>);
type Replacement = Option<Fusion>;

impl<'a> Pass<'a> {
    fn new(graph: &'a Graph, limits: &'a Limits) -> Self {
        // For each node, the latest node up to it that writes a state: nothing is moved across a write.
        let mut last_write = Vec::new();
        let mut last = 0;
        for (i, node) in graph.nodes().iter().enumerate() {
            if node.op().is_some_and(|op| !op.writes().is_empty()) {
                last = i as u32;
            }
            last_write.push(last);
        }
        Pass { rewrite: Rewrite::new(graph), uses: uses(graph), limits, last_write }
    }

    fn run(mut self, replace: impl Fn(&Self, NodeId) -> Replacement) -> Result<Graph> {
        for id in ids(self.rewrite.old) {
            match replace(&self, id) {
                Some((op, inputs)) => {
                    let name = self.rewrite.old.node(id).name.clone();
                    let outputs = self.rewrite.new.apply_named(op, &inputs, name)?;
                    self.rewrite.set(id, &outputs);
                }
                None => self.rewrite.copy(id)?,
            }
        }
        Ok(self.rewrite.finish())
    }

    /// [`Pass::epilogue`] for operators with further results, which others may want before the map's turn: they stay where they
    /// stand, and the map comes to them.
    fn run_ahead(mut self) -> Result<Graph> {
        let mut stored: HashMap<NodeId, Value> = HashMap::new();
        for id in ids(self.rewrite.old) {
            if let Some(&value) = stored.get(&id) {
                self.rewrite.set(id, &[value]);
                continue;
            }
            match self.ahead(id) {
                Some((map, (op, inputs))) => {
                    let name = self.rewrite.old.node(map).name.clone();
                    let outputs = self.rewrite.new.apply_named(op, &inputs, name)?;
                    self.rewrite.set(id, &outputs);
                    stored.insert(map, outputs[0]);
                }
                None => self.rewrite.copy(id)?,
            }
        }
        Ok(self.rewrite.finish())
    }

    /// True where the value's producer may be computed inside `user` instead: nobody else reads it.
    fn absorbable(&self, value: Value, user: NodeId) -> bool {
        let op = matches!(self.rewrite.old.node(value.node).kind, Kind::Op(_));
        op && self.uses[&value] == 1 && self.last_write[user.0 as usize] <= value.node.0
    }

    /// The node in the new graph that carries an old value, with its expression if it is elementwise.
    fn carried(&self, value: Value) -> (Value, &Node) {
        let new = self.rewrite.value(value);
        (new, self.rewrite.new.node(new.node))
    }

    fn full(&self, value: Value, like: &Node) -> bool {
        self.rewrite.old.ty(value).shape.elements() == like.outputs[0].shape.elements()
    }

    /// Norm, then products of few rows and nothing else → products that norm their rows themselves.
    fn norm(&self, id: NodeId) -> Replacement {
        let (op, inputs) = self.normed(id)?;
        let (old, norm) = (self.rewrite.old, self.rewrite.old.node(id).inputs[0].node);
        let wanted = old.outputs().iter().any(|(_, v)| v.node == norm);
        let mut readers = ids(old).filter(|&n| old.node(n).inputs.iter().any(|v| v.node == norm));
        let inputs = inputs.map(|v| self.rewrite.value(v)).to_vec();
        (!wanted && readers.all(|n| self.normed(n).is_some())).then(|| (Arc::new(op) as _, inputs))
    }

    /// The product of a normed row, and its inputs, if a kernel does both.
    fn normed(&self, id: NodeId) -> Option<(NormMatMul, [Value; 3])> {
        let old = self.rewrite.old;
        let &[normed, weight] = old.node(id).inputs.as_slice() else { return None };
        let norm: &RmsNorm = operator(old, normed.node)?;
        let (linear, widths) = match operator::<PanelMatMul>(old, id) {
            Some(panels) => (panels.product == MatMul::linear(), panels.widths.clone()),
            None => (operator::<MatMul>(old, id)? == &MatMul::linear(), Vec::new()),
        };
        let op = NormMatMul { eps: norm.eps, widths };
        let inputs = [old.node(normed.node).inputs[0], old.node(normed.node).inputs[1], weight];
        let io = Io { inputs: inputs.map(|v| old.ty(v).clone()).to_vec(), outputs: old.node(id).outputs.clone() };
        let moves = linear && normed.output == 0 && weight.node != normed.node;
        let in_order = self.last_write[id.0 as usize] <= normed.node.0;
        (moves && in_order && !op.kernels(&io, self.limits).is_empty()).then_some((op, inputs))
    }

    /// Map of maps → one map.
    fn chain(&self, id: NodeId) -> Replacement {
        let node = self.rewrite.old.node(id);
        let expr = node.op()?.expression()?;
        let mut inputs: Vec<Value> = Vec::new();
        let mut parts: Vec<Expr> = Vec::new();
        for &input in &node.inputs {
            let (new, producer) = self.carried(input);
            let inner = producer.op().and_then(|op| op.expression());
            let base = inputs.len();
            match inner {
                Some(inner) if self.absorbable(input, id) && self.full(input, node) => {
                    inputs.extend(&producer.inputs);
                    parts.push(inner.substitute(&|i| Expr::Input(base + i)));
                }
                _ => {
                    inputs.push(new);
                    parts.push(Expr::Input(base));
                }
            }
        }
        let merged = expr.substitute(&|i| parts[i].clone());
        let (expr, inputs) = crate::graph::compact(&merged, &inputs);
        let fits = inputs.len() < self.limits.max_storage_bindings as usize;
        let same_shape = inputs.iter().any(|&v| self.rewrite.new.ty(v).shape == node.outputs[0].shape);
        (fits && same_shape).then(|| (Arc::new(Map { expr }) as _, inputs))
    }

    /// Operator, then map → operator with epilogue.
    fn epilogue(&self, id: NodeId) -> Replacement {
        let node = self.rewrite.old.node(id);
        node.op()?.expression()?;
        let at = node.inputs.iter().position(|&v| {
            let producer = self.carried(v).1;
            let hooked = producer.op().is_some_and(|op| op.epilogue()) && producer.outputs.len() == 1;
            hooked && self.absorbable(v, id) && self.rewrite.old.ty(v).shape == node.outputs[0].shape
        })?;
        let producer = self.carried(node.inputs[at]).1;
        self.stored(producer.op()?.clone(), producer.inputs.clone(), node, at, &[node.op()?.expression()?.clone()])
    }

    /// Operator, then two maps in one → operator with both as epilogues.
    fn pair(&self, id: NodeId) -> Replacement {
        let (old, node) = (self.rewrite.old, self.rewrite.old.node(id));
        let pair: &MapPair = operator(old, id)?;
        let at = node.inputs.iter().position(|&v| {
            let producer = old.node(v.node);
            let stores = |op: &Arc<dyn Op>| op.epilogue() && op.second(&super::place::io(old, producer), self.limits);
            let hooked = producer.op().is_some_and(stores) && producer.outputs.len() == 1;
            hooked && self.absorbable(v, id) && old.ty(v).shape == node.outputs[0].shape
        })?;
        let producer = old.node(node.inputs[at].node);
        self.stored(producer.op()?.clone(), self.rewrite.inputs(producer), node, at, &pair.exprs)
    }

    /// Operator with several results, then a map of the first that needs nothing later → operator with epilogue, and that map.
    fn ahead(&self, id: NodeId) -> Option<(NodeId, Fusion)> {
        let (old, value) = (self.rewrite.old, Value { node: id, output: 0 });
        let node = old.node(id);
        let op = node.op().filter(|op| op.epilogue() && node.outputs.len() > 1)?;
        let map = ids(old).find(|&reader| old.node(reader).inputs.contains(&value))?;
        let reader = old.node(map);
        let expr = reader.op()?.expression()?.clone();
        let at = reader.inputs.iter().position(|&v| v == value)?;
        let known = reader.inputs.iter().all(|v| *v == value || v.node < id);
        let fits = known && self.absorbable(value, map) && node.outputs[0].shape == reader.outputs[0].shape;
        let fused = fits.then(|| self.stored(op.clone(), self.rewrite.inputs(node), reader, at, &[expr]))??;
        Some((map, fused))
    }

    /// An operator of these inputs, with the expressions of `map`, one or two, applied to its first result, the map's input `at`.
    fn stored(&self, op: Arc<dyn Op>, mut inputs: Vec<Value>, map: &Node, at: usize, exprs: &[Expr]) -> Replacement {
        let first = inputs.len();
        let extras = self.attach(map, at, &mut inputs);
        let mut exprs = exprs.iter().map(|expr| expr.substitute(&slots(at)));
        let attached = Attached { expr: exprs.next()?, second: exprs.next(), first, extras };
        self.admit(Fused { base: op, base_inputs: first, prologue: None, epilogue: Some(attached) }, inputs, first)
    }

    /// Cheap map, then operator → operator with prologue.
    fn prologue(&self, id: NodeId) -> Replacement {
        let node = self.rewrite.old.node(id);
        let op = node.op()?;
        let hooked = *node.inputs.get(op.prologue()?)?;
        let (_, map) = self.carried(hooked);
        let expr = map.op()?.expression()?.clone();
        if expr.flops() > CHEAP || !self.absorbable(hooked, id) {
            return None;
        }
        let ty = self.rewrite.old.ty(hooked);
        let at = map.inputs.iter().position(|&v| self.rewrite.new.ty(v) == ty)?;
        let mut inputs = self.rewrite.inputs(node);
        let first = inputs.len();
        inputs[op.prologue()?] = map.inputs[at];
        let others = map.inputs.iter().enumerate().filter(|(k, _)| *k != at).map(|(_, &v)| v);
        inputs.extend(others);
        let attached =
            Attached { expr: expr.substitute(&slots(at)), second: None, first, extras: inputs.len() - first };
        self.admit(
            Fused { base: op.clone(), base_inputs: first, prologue: Some(attached), epilogue: None },
            inputs,
            first,
        )
    }

    /// Appends a map's inputs other than `at`; gives their number.
    fn attach(&self, map: &Node, at: usize, inputs: &mut Vec<Value>) -> usize {
        let before = inputs.len();
        let others = map.inputs.iter().enumerate().filter(|(k, _)| *k != at);
        inputs.extend(others.map(|(_, &v)| self.rewrite.value(v)));
        inputs.len() - before
    }

    /// Bindings are few and bounded in size: what does not fit stays apart.
    fn admit(&self, fused: Fused, inputs: Vec<Value>, first: usize) -> Replacement {
        let bytes = |v: &Value| self.rewrite.new.ty(*v).bytes();
        let fits = inputs[first..].iter().all(|v| bytes(v) <= self.limits.max_binding_bytes);
        let types: Vec<_> = inputs[..fused.base_inputs].iter().map(|&v| self.rewrite.new.ty(v)).collect();
        let bindings = inputs.len() + fused.infer(&types).map_or(1, |outputs| outputs.len());
        (fits && bindings <= self.limits.max_storage_bindings as usize).then(|| (Arc::new(fused) as _, inputs))
    }
}

/// Renumbers a map's inputs: the hooked one becomes 0, the others 1, 2, … in order.
fn slots(at: usize) -> impl Fn(usize) -> Expr {
    move |i| {
        Expr::Input(match i.cmp(&at) {
            std::cmp::Ordering::Equal => 0,
            std::cmp::Ordering::Less => i + 1,
            std::cmp::Ordering::Greater => i,
        })
    }
}
