//! Two elementwise operators that follow each other and do not need each other become one: both gradients of a gated
//! product, say, which read the same.

use super::place;
use super::rewrite::{Rewrite, ids};
use crate::base::Limits;
use crate::error::Result;
use crate::graph::{Expr, Graph, Kind, MapPair, NodeId, Value};
use std::collections::HashMap;
use std::sync::Arc;

pub(super) fn pair(graph: &Graph, limits: &Limits) -> Result<Graph> {
    let pairs = pairs(graph, limits);
    let mut rewrite = Rewrite::new(graph);
    let mut second_of: HashMap<NodeId, Value> = HashMap::new();
    for id in ids(graph) {
        if let Some(&value) = second_of.get(&id) {
            rewrite.set(id, &[value]);
            continue;
        }
        let Some(&(second, ref op, ref inputs)) = pairs.get(&id) else {
            rewrite.copy(id)?;
            continue;
        };
        let inputs: Vec<Value> = inputs.iter().map(|&v| rewrite.value(v)).collect();
        let both = rewrite.new.apply_named(Arc::new(op.clone()), &inputs, graph.node(id).name.clone())?;
        rewrite.set(id, &both[..1]);
        second_of.insert(second, both[1]);
    }
    Ok(rewrite.finish())
}

type Pairs = HashMap<NodeId, (NodeId, MapPair, Vec<Value>)>;

/// Of each first of a pair: the second, what computes both, and its inputs.
fn pairs(graph: &Graph, limits: &Limits) -> Pairs {
    let mut pairs = Pairs::new();
    let mut last: Option<NodeId> = None;
    for id in ids(graph) {
        let node = graph.node(id);
        let is_step = matches!(node.kind, Kind::Op(_)) && place::view(graph, node).is_none();
        if !is_step {
            continue;
        }
        match last.and_then(|first| Some((first, joined(graph, first, id, limits)?))) {
            Some((first, (op, inputs))) => {
                pairs.insert(first, (id, op, inputs));
                last = None;
            }
            None => last = Some(id),
        }
    }
    pairs
}

fn joined(graph: &Graph, first: NodeId, second: NodeId, limits: &Limits) -> Option<(MapPair, Vec<Value>)> {
    let (a, b) = (graph.node(first), graph.node(second));
    let (x, y) = (a.op()?.expression()?, b.op()?.expression()?);
    let known = b.inputs.iter().all(|v| v.node < first);
    if a.outputs != b.outputs || !known {
        return None;
    }
    let mut inputs = a.inputs.clone();
    let places: Vec<usize> = b
        .inputs
        .iter()
        .map(|&v| {
            inputs.iter().position(|&w| w == v).unwrap_or_else(|| {
                inputs.push(v);
                inputs.len() - 1
            })
        })
        .collect();
    let exprs = [x.clone(), y.substitute(&|i| Expr::Input(places[i]))];
    let fits = inputs.len() + 2 <= limits.max_storage_bindings as usize;
    fits.then_some((MapPair { exprs }, inputs))
}
