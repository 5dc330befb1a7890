//! Carries a graph over into a new one, node by node, so that each pass says only what it changes.

use super::{Graph, Kind, Node, NodeId, Op, Value};
use crate::error::Result;
use std::any::Any;
use std::collections::HashMap;

/// A graph being rebuilt: where each old value stands in the new graph.
pub(crate) struct Rewrite<'a> {
    pub(crate) old: &'a Graph,
    pub(crate) new: Graph,
    map: HashMap<Value, Value>,
}

impl<'a> Rewrite<'a> {
    pub(crate) fn new(old: &'a Graph) -> Self {
        Rewrite { old, new: Graph::new(), map: HashMap::new() }
    }

    /// The new value for an old one that was carried over before.
    pub(crate) fn value(&self, old: Value) -> Value {
        self.map[&old]
    }

    /// The new values for a node's inputs.
    pub(crate) fn inputs(&self, node: &Node) -> Vec<Value> {
        node.inputs.iter().map(|&v| self.value(v)).collect()
    }

    /// Says that the outputs of `id` are these in the new graph.
    pub(crate) fn set(&mut self, id: NodeId, outputs: &[Value]) {
        for (output, &value) in outputs.iter().enumerate() {
            self.map.insert(Value { node: id, output: output as u32 }, value);
        }
    }

    /// Says what one old value is in the new graph.
    pub(crate) fn put(&mut self, old: Value, new: Value) {
        self.map.insert(old, new);
    }

    /// Carries a node over as it is.
    pub(crate) fn copy(&mut self, id: NodeId) -> Result<()> {
        let node = self.old.node(id);
        let outputs = match &node.kind {
            Kind::Op(op) => self.new.apply_named(op.clone(), &self.inputs(node), node.name.clone())?,
            _ => vec![self.new.push(node.clone())],
        };
        self.set(id, &outputs);
        Ok(())
    }

    /// Carries the outputs over and gives the new graph.
    pub(crate) fn finish(mut self) -> Graph {
        for (name, value) in self.old.outputs() {
            let value = self.value(*value);
            self.new.output(name, value);
        }
        self.new
    }
}

/// The operator of a node, if it is one of this kind.
pub(crate) fn operator<T: Op>(graph: &Graph, id: NodeId) -> Option<&T> {
    let op: &dyn Any = graph.node(id).op()?.as_ref();
    op.downcast_ref()
}

/// Ids of all nodes, in program order.
pub(crate) fn ids(graph: &Graph) -> impl DoubleEndedIterator<Item = NodeId> + use<> {
    (0..graph.nodes().len() as u32).map(NodeId)
}

/// How often each value is read, the caller's outputs included.
pub(crate) fn uses(graph: &Graph) -> HashMap<Value, usize> {
    let mut uses = HashMap::new();
    let reads = graph.nodes().iter().flat_map(|n| n.inputs.iter());
    for value in reads.chain(graph.outputs().iter().map(|(_, v)| v)) {
        *uses.entry(*value).or_insert(0) += 1;
    }
    uses
}
