//! The graph under construction: nodes in program order, each with a path for a name.

use super::{Kind, Node, NodeId, Op, OpNode, Value};
use crate::base::TensorType;
use crate::error::{Error, Result};
use std::sync::Arc;

/// A program for one device: sources, operators, and the values that the caller wants out.
#[derive(Debug, Clone, Default)]
pub struct Graph {
    nodes: Vec<Node>,
    outputs: Vec<(String, Value)>,
    scope: Vec<String>,
}

impl Graph {
    /// An empty graph.
    pub fn new() -> Self {
        Graph::default()
    }

    /// All nodes, in program order.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// One node.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0 as usize]
    }

    /// Type of a value.
    pub fn ty(&self, value: Value) -> &TensorType {
        &self.node(value.node).outputs[value.output as usize]
    }

    /// Sizes of a value's dims.
    pub fn dims(&self, value: Value) -> &[usize] {
        self.ty(value).shape.dims()
    }

    /// What the caller wants out, by name.
    pub fn outputs(&self) -> &[(String, Value)] {
        &self.outputs
    }

    /// Runs `build` with `name` put in front of the names of its nodes.
    pub fn scope<R>(&mut self, name: impl Into<String>, build: impl FnOnce(&mut Self) -> R) -> R {
        self.scope.push(name.into());
        let result = build(self);
        self.scope.pop();
        result
    }

    /// A tensor that the host writes before each run.
    pub fn input(&mut self, name: &str, ty: TensorType) -> Value {
        self.source(Kind::Input, name, ty)
    }

    /// A tensor that stays on the device between runs, shared by every graph that names it. Names are global: no
    /// scope is put in front.
    pub fn state(&mut self, name: &str, ty: TensorType) -> Value {
        let found = self.nodes.iter().position(|n| matches!(n.kind, Kind::State) && n.name == name);
        if let Some(i) = found {
            return Value { node: NodeId(i as u32), output: 0 };
        }
        self.push(Node { kind: Kind::State, inputs: vec![], outputs: vec![ty], name: name.to_string() })
    }

    /// A tensor whose bytes are known now.
    pub fn constant(&mut self, name: &str, ty: TensorType, bytes: Vec<u8>) -> Value {
        assert_eq!(ty.bytes(), bytes.len() as u64, "constant {name}: wrong number of bytes");
        self.source(Kind::Constant(bytes.into()), name, ty)
    }

    /// Applies an operator.
    ///
    /// # Errors
    /// The operator's own words about its inputs, with its name, the node's path and the inputs' types.
    pub fn apply(&mut self, op: impl Op, inputs: &[Value]) -> Result<Vec<Value>> {
        self.apply_arc(Arc::new(op), inputs)
    }

    /// Applies an operator that makes one value.
    pub fn apply1(&mut self, op: impl Op, inputs: &[Value]) -> Result<Value> {
        Ok(self.apply(op, inputs)?[0])
    }

    /// Applies an operator that others share.
    pub fn apply_arc(&mut self, op: Arc<dyn Op>, inputs: &[Value]) -> Result<Vec<Value>> {
        let name = self.path(op.name());
        self.apply_named(op, inputs, name)
    }

    /// Applies an operator at a given path, as graph rewrites do.
    pub fn apply_named(&mut self, op: Arc<dyn Op>, inputs: &[Value], name: String) -> Result<Vec<Value>> {
        let types: Vec<&TensorType> = inputs.iter().map(|&v| self.ty(v)).collect();
        let outputs = op.infer(&types).map_err(|message| Error::Operator {
            op: op.name(),
            node: name.clone(),
            inputs: types.iter().map(|t| t.to_string()).collect::<Vec<_>>().join(", "),
            message,
        })?;
        let count = outputs.len() as u32;
        let node = NodeId(self.nodes.len() as u32);
        self.nodes.push(Node { kind: Kind::Op(op), inputs: inputs.to_vec(), outputs, name });
        Ok((0..count).map(|output| Value { node, output }).collect())
    }

    /// From here on every operator so far that can rounds the operands of its products to f16 ([`Op::narrow`]); so do
    /// gradients made after that.
    pub fn narrow(&mut self) {
        self.narrow_from(0);
    }

    /// [`Graph::narrow`], but for the first `nodes` nodes.
    pub fn narrow_from(&mut self, nodes: usize) {
        for node in &mut self.nodes[nodes..] {
            if let Some(narrow) = node.op().and_then(|op| op.narrow()) {
                node.kind = Kind::Op(narrow);
            }
        }
    }

    /// Marks a value as wanted by the caller.
    pub fn output(&mut self, name: &str, value: Value) {
        self.outputs.push((name.to_string(), value));
    }

    /// A node's inputs and outputs, as operators see them.
    pub fn op_node(&self, id: NodeId) -> OpNode {
        let node = self.node(id);
        let outputs = (0..node.outputs.len() as u32).map(|output| Value { node: id, output }).collect();
        OpNode { inputs: node.inputs.clone(), outputs }
    }

    pub(crate) fn push(&mut self, node: Node) -> Value {
        self.nodes.push(node);
        Value { node: NodeId(self.nodes.len() as u32 - 1), output: 0 }
    }

    fn source(&mut self, kind: Kind, name: &str, ty: TensorType) -> Value {
        let name = self.path(name);
        self.push(Node { kind, inputs: vec![], outputs: vec![ty], name })
    }

    fn path(&self, name: &str) -> String {
        let mut path = self.scope.join(".");
        if !path.is_empty() {
            path.push('.');
        }
        path + name
    }
}
