//! Nodes and the values between them.

use super::Op;
use crate::base::TensorType;
use std::sync::Arc;

/// Index of a node in its graph. Nodes stand in program order: inputs come before users.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u32);

/// One output of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Value {
    /// The node that makes it.
    pub node: NodeId,
    /// Which of its outputs.
    pub output: u32,
}

/// Where a node's numbers come from.
#[derive(Debug, Clone)]
pub enum Kind {
    /// Written by the host before each run.
    Input,
    /// Kept on the device between runs under the node's name: parameters, moments, caches. Operators may write it in
    /// place; whoever reads it later in program order sees what was written.
    State,
    /// Bytes known when the graph is built, uploaded once.
    Constant(Arc<[u8]>),
    /// Computed by an operator.
    Op(Arc<dyn Op>),
}

/// A source or an operator applied to values.
#[derive(Debug, Clone)]
pub struct Node {
    /// Where its numbers come from.
    pub kind: Kind,
    /// What it reads.
    pub inputs: Vec<Value>,
    /// Types of what it makes.
    pub outputs: Vec<TensorType>,
    /// Path, such as `layers.0.mlp.down`.
    pub name: String,
}

impl Node {
    /// The operator's name, or the kind of source.
    pub fn op_name(&self) -> &'static str {
        match &self.kind {
            Kind::Input => "input",
            Kind::State => "state",
            Kind::Constant(_) => "constant",
            Kind::Op(op) => op.name(),
        }
    }

    /// The operator, if this is not a source.
    pub fn op(&self) -> Option<&Arc<dyn Op>> {
        match &self.kind {
            Kind::Op(op) => Some(op),
            _ => None,
        }
    }
}
