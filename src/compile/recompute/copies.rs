//! The graph with some of its nodes computed again: where copies stand, who reads them, and what a copy would need.

use crate::base::Limits;
use crate::compile::rewrite::{Rewrite, ids};
use crate::compile::{layout, place};
use crate::error::Result;
use crate::graph::{Cost, Graph, Kind, NodeId, Value, View};
use std::collections::{BTreeMap, HashMap};

/// Nodes that are computed again, each with the last node that reads the original.
pub(super) type Chosen = BTreeMap<NodeId, u32>;

/// A use that never ends: the caller's, or a place in a concatenation.
const ALWAYS: u32 = u32::MAX;

/// For each node of the base, who reads its outputs: at which node of the base, and which output. Sorted.
pub(super) type Uses = Vec<Vec<(u32, u32)>>;

/// The graph that copies are added to.
pub(super) struct Base<'a> {
    pub(super) graph: &'a Graph,
    /// The value behind the slices of a node's output, for nodes that are slices.
    roots: Vec<Option<Value>>,
    /// The nodes that write each state.
    written: HashMap<Value, Vec<u32>>,
    /// True for operators that may be computed twice: they neither write a state nor are memory of others, and no other rank
    /// takes part.
    pure: Vec<bool>,
    /// Bytes of each node's scratch memory.
    scratch: Vec<u64>,
}

impl<'a> Base<'a> {
    pub(super) fn new(graph: &'a Graph, limits: &Limits) -> Self {
        let scratch = ids(graph).map(|id| layout::scratch_bytes(graph, id, limits)).collect();
        let mut base = Base { graph, roots: Vec::new(), written: HashMap::new(), pure: Vec::new(), scratch };
        for (i, node) in graph.nodes().iter().enumerate() {
            let view = place::view(graph, node);
            let root = matches!(view, Some(View::Slice(_))).then(|| base.root(node.inputs[0]));
            let writes = node.op().map(|op| op.writes()).unwrap_or_default();
            base.roots.push(root);
            let alone = node.op().is_some_and(|op| op.collective().is_none());
            base.pure.push(alone && view.is_none() && writes.is_empty());
            for input in writes {
                let state = base.root(node.inputs[input]);
                base.written.entry(state).or_default().push(i as u32);
            }
        }
        base
    }

    /// The value whose memory this is, or the concatenation.
    fn root(&self, value: Value) -> Value {
        self.roots[value.node.0 as usize].unwrap_or(value)
    }

    /// True if no state that the node reads is written between the two: a copy reads what the original read.
    pub(super) fn same_epoch(&self, node: NodeId, at: u32) -> bool {
        let between = |writes: &Vec<u32>| writes.iter().any(|&w| node.0 < w && w < at);
        let inputs = &self.graph.node(node).inputs;
        at != ALWAYS && !inputs.iter().filter_map(|&v| self.written.get(&self.root(v))).any(between)
    }

    pub(super) fn cost(&self, node: NodeId) -> Cost {
        let node = self.graph.node(node);
        node.op().map_or(Cost::default(), |op| op.cost(&place::io(self.graph, node)))
    }

    /// Adds to `nodes` what a copy of `node` just before `at` needs and nobody holds then; false if that cannot be had.
    pub(super) fn closure(
        &self,
        node: NodeId,
        at: u32,
        uses: &Uses,
        chosen: &Chosen,
        nodes: &mut Vec<(NodeId, u32)>,
    ) -> bool {
        if !self.pure[node.0 as usize] || !self.same_epoch(node, at) {
            return false;
        }
        self.graph.node(node).inputs.iter().all(|&input| {
            let root = self.root(input).node;
            let last = uses[root.0 as usize].last().map_or(root.0, |(at, _)| *at);
            let is_source = !matches!(self.graph.node(root).kind, Kind::Op(_));
            if is_source || last >= at || chosen.contains_key(&root) || nodes.iter().any(|(n, _)| *n == root) {
                return true;
            }
            nodes.push((root, last));
            self.closure(root, at, uses, chosen, nodes)
        })
    }

    /// The graph with these nodes computed again, each just before the first that wants it after the original's last use.
    pub(super) fn draft(&self, chosen: &Chosen) -> Result<Draft> {
        let rewrite = Rewrite::new(self.graph);
        let mut writer = Writer { base: self, chosen, rewrite, copies: HashMap::new(), at: Vec::new(), of: Vec::new() };
        for id in ids(self.graph) {
            writer.node(id)?;
        }
        let Writer { rewrite, at, of, .. } = writer;
        Ok(Draft { graph: rewrite.finish(), at, of })
    }
}

/// A graph with copies.
pub(super) struct Draft {
    pub(super) graph: Graph,
    /// For each node, the node of the base that it is, or just before which it stands.
    pub(super) at: Vec<u32>,
    /// For each node, the node of the base that it is or is a copy of.
    of: Vec<NodeId>,
}

impl Draft {
    /// Bytes of a node's scratch memory: a copy has the same operands.
    pub(super) fn scratch(&self, base: &Base, node: NodeId) -> u64 {
        base.scratch[self.of[node.0 as usize].0 as usize]
    }

    /// Who reads the originals.
    pub(super) fn uses(&self, base: &Base) -> Uses {
        let mut uses: Uses = vec![Vec::new(); base.graph.nodes().len()];
        let mut roots: Vec<Option<Value>> = Vec::new();
        for (i, node) in self.graph.nodes().iter().enumerate() {
            let behind = |v: Value| roots[v.node.0 as usize].unwrap_or(v);
            let view = place::view(&self.graph, node);
            let root = match view {
                Some(View::Slice(_)) => Some(behind(node.inputs[0])),
                _ => {
                    let at = if view.is_some() { ALWAYS } else { self.at[i] };
                    node.inputs.iter().for_each(|&v| self.note(behind(v), at, &mut uses));
                    None
                }
            };
            roots.push(root);
        }
        for &(_, value) in self.graph.outputs() {
            self.note(roots[value.node.0 as usize].unwrap_or(value), ALWAYS, &mut uses);
        }
        uses.iter_mut().for_each(|u| u.sort_unstable());
        uses
    }

    fn note(&self, value: Value, at: u32, uses: &mut Uses) {
        let (place, node) = (self.at[value.node.0 as usize], self.of[value.node.0 as usize]);
        // A copy stands before another.
        if place == node.0 {
            uses[node.0 as usize].push((at, value.output));
        }
    }
}

/// Writes a draft, node by node.
struct Writer<'a> {
    base: &'a Base<'a>,
    chosen: &'a Chosen,
    rewrite: Rewrite<'a>,
    copies: HashMap<Value, Value>,
    at: Vec<u32>,
    of: Vec<NodeId>,
}

impl Writer<'_> {
    fn node(&mut self, id: NodeId) -> Result<()> {
        let node = self.base.graph.node(id);
        match node.op() {
            // A slice of what is computed again is made where it is read.
            Some(op) if self.base.roots[id.0 as usize].is_none() => {
                let inputs: Vec<Value> = node.inputs.iter().map(|&v| self.now(v, id)).collect::<Result<_>>()?;
                let outputs = self.rewrite.new.apply_named(op.clone(), &inputs, node.name.clone())?;
                self.rewrite.set(id, &outputs);
            }
            _ => self.rewrite.copy(id)?,
        }
        self.at.push(id.0);
        self.of.push(id);
        Ok(())
    }

    /// What stands for a value at node `at` of the base: the original, or its copy, made here if it is the first.
    fn now(&mut self, value: Value, at: NodeId) -> Result<Value> {
        let root = self.base.root(value).node;
        let kept = self.chosen.get(&root).is_none_or(|&last| at.0 <= last);
        if kept || !self.base.same_epoch(root, at.0) {
            return Ok(self.rewrite.value(value));
        }
        if let Some(&copy) = self.copies.get(&value) {
            return Ok(copy);
        }
        let node = self.base.graph.node(value.node);
        let inputs: Vec<Value> = node.inputs.iter().map(|&v| self.now(v, at)).collect::<Result<_>>()?;
        let op = node.op().expect("what is chosen is an operator");
        let outputs = self.rewrite.new.apply_named(op.clone(), &inputs, format!("again.{}", node.name))?;
        for (output, &copy) in outputs.iter().enumerate() {
            self.copies.insert(Value { node: value.node, output: output as u32 }, copy);
        }
        self.at.push(at.0);
        self.of.push(value.node);
        Ok(self.copies[&value])
    }
}
