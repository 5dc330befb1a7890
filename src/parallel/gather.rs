//! Parameters that ranks share out (Rajbhandari et al., "ZeRO", 2020, stage 3): a graph that reads whole pages → that of a rank
//! which has a part of each, and gathers a page shortly before it is used, in the forward and again in the backward pass; what
//! was gathered is released once another page is in use.

use crate::base::TensorType;
use crate::error::Result;
use crate::graph::rewrite::{Rewrite, ids};
use crate::graph::{Graph, Io, Kind, Node, NodeId, Value, View};
use crate::ops::{AllGather, Along};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// How long a page stays once it was gathered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stay {
    /// Until another one of these is used.
    Visit,
    /// To the end: it is small, and used everywhere.
    Run,
}

/// Uses of a page for which it is gathered once.
struct Visit {
    page: NodeId,
    /// The first node that reads it.
    first: NodeId,
}

/// By whom a state is shared out, and how long all of it stays once it was gathered; nothing of a state that is whole.
pub type Shares<'a> = dyn Fn(&str) -> Option<(Along, Stay)> + 'a;

/// A graph that has its part of the states of which `shared` says who shares them out and how long they stay, in place of all of
/// each, and gathers what it reads of them: each page while the one before is in use.
///
/// # Errors
/// If a state cannot be divided.
pub fn gather_ahead(graph: &Graph, shared: &Shares) -> Result<Graph> {
    let behind = behind(graph, shared);
    let visits = visits(graph, &behind, shared);
    let mut before: BTreeMap<NodeId, Vec<usize>> = BTreeMap::new();
    let mut begins: BTreeMap<NodeId, Vec<usize>> = BTreeMap::new();
    for (i, visit) in visits.iter().enumerate() {
        before.entry(visits[i.saturating_sub(1)].first).or_default().push(i);
        begins.entry(visit.first).or_default().push(i);
    }
    let mut pass = Pass { rewrite: Rewrite::new(graph), behind, whole: BTreeMap::new(), made: HashMap::new() };
    let mut own: BTreeMap<NodeId, (Value, Along)> = BTreeMap::new();
    for id in ids(graph) {
        let node = graph.node(id);
        if let (Kind::State, Some((along, _))) = (&node.kind, shared(&node.name)) {
            let part = node.outputs[0].shape.elements() / along.ranks;
            own.insert(id, (pass.rewrite.new.state(&node.name, TensorType::f32([part])), along));
        }
    }
    let mut gathered = vec![None; visits.len()];
    for id in ids(graph) {
        for &visit in before.get(&id).map_or(&[][..], Vec::as_slice) {
            let page = visits[visit].page;
            let name = format!("ranks.{}", graph.node(page).name);
            let (part, along) = own[&page];
            let all = AllGather { along, dim: 0 };
            gathered[visit] = Some(pass.rewrite.new.scope(name, |g| g.apply1(all, &[part]))?);
        }
        for &visit in begins.get(&id).map_or(&[][..], Vec::as_slice) {
            pass.begin(visits[visit].page, gathered[visit].expect("it was gathered before"));
        }
        if pass.behind.contains_key(&Value { node: id, output: 0 }) {
            continue;
        }
        for &input in &graph.node(id).inputs {
            if pass.behind.contains_key(&input) {
                let now = pass.now(input)?;
                pass.rewrite.put(input, now);
            }
        }
        pass.rewrite.copy(id)?;
    }
    Ok(pass.rewrite.finish())
}

/// The page behind each value that is one, or a view of one.
fn behind(graph: &Graph, shared: &Shares) -> HashMap<Value, NodeId> {
    let mut behind = HashMap::new();
    for id in ids(graph) {
        let (node, value) = (graph.node(id), Value { node: id, output: 0 });
        if matches!(node.kind, Kind::State) && shared(&node.name).is_some() {
            behind.insert(value, id);
        } else if let Some(&page) = node.inputs.first().and_then(|v| behind.get(v)).filter(|_| is_view(graph, node)) {
            behind.insert(value, page);
        }
    }
    behind
}

fn is_view(graph: &Graph, node: &Node) -> bool {
    let inputs = node.inputs.iter().map(|&v| graph.ty(v).clone()).collect();
    let io = Io { inputs, outputs: node.outputs.clone() };
    node.op().is_some_and(|op| matches!(op.view(&io), Some(View::Slice(_))))
}

/// When which page is used, in order.
fn visits(graph: &Graph, behind: &HashMap<Value, NodeId>, shared: &Shares) -> Vec<Visit> {
    let mut visits: Vec<Visit> = Vec::new();
    let (mut current, mut staying) = (None, BTreeSet::new());
    for id in ids(graph).filter(|id| !behind.contains_key(&Value { node: *id, output: 0 })) {
        let pages: BTreeSet<NodeId> = graph.node(id).inputs.iter().filter_map(|v| behind.get(v)).copied().collect();
        for page in pages {
            let is_new = match shared(&graph.node(page).name) {
                Some((_, Stay::Run)) => staying.insert(page),
                _ => current.replace(page) != Some(page),
            };
            if is_new {
                visits.push(Visit { page, first: id });
            }
        }
    }
    visits
}

struct Pass<'a> {
    rewrite: Rewrite<'a>,
    behind: HashMap<Value, NodeId>,
    /// Each page as it was gathered last.
    whole: BTreeMap<NodeId, Value>,
    /// Views of these.
    made: HashMap<Value, Value>,
}

impl Pass<'_> {
    fn begin(&mut self, page: NodeId, whole: Value) {
        self.whole.insert(page, whole);
        self.made.retain(|view, _| self.behind[view] != page);
    }

    /// What a view of a page is now.
    fn now(&mut self, value: Value) -> Result<Value> {
        if let Some(&made) = self.made.get(&value) {
            return Ok(made);
        }
        let node = self.rewrite.old.node(value.node);
        let Some(op) = node.op() else { return Ok(self.whole[&value.node]) };
        let input = self.now(node.inputs[0])?;
        let view = self.rewrite.new.apply_named(op.clone(), &[input], node.name.clone())?[0];
        self.made.insert(value, view);
        Ok(view)
    }
}
