//! The gradient of an embedding is added to the table's other gradient by the kernel that makes it: of a table that is the
//! output's, too, that is one tensor less, and fewer bytes than zeros, sums and their addition.

use super::join::operator;
use super::rewrite::{Rewrite, ids, uses};
use crate::base::Limits;
use crate::error::Result;
use crate::graph::{Graph, Map, NodeId, Value};
use crate::ops::EmbeddingGrad;
use std::collections::HashMap;

pub(super) fn add_onto(graph: &Graph, limits: &Limits) -> Result<Graph> {
    let uses = uses(graph);
    let mut rewrite = Rewrite::new(graph);
    for id in ids(graph) {
        let node = graph.node(id);
        let Some((rows, onto)) = terms(graph, id, &uses, limits) else {
            rewrite.copy(id)?;
            continue;
        };
        let rows = graph.node(rows);
        let op = rows.op().expect("an embedding's gradient").clone();
        let inputs: Vec<Value> = rows.inputs.iter().chain([&onto]).map(|&value| rewrite.value(value)).collect();
        let outputs = rewrite.new.apply_named(op, &inputs, node.name.clone())?;
        rewrite.set(id, &outputs);
    }
    Ok(rewrite.finish())
}

/// Of a sum of an embedding's gradient, which nobody else reads, and another tensor: both. Only where no number changes by it.
fn terms(graph: &Graph, sum: NodeId, uses: &HashMap<Value, usize>, limits: &Limits) -> Option<(NodeId, Value)> {
    let &[a, b] = &graph.node(sum).inputs[..] else { return None };
    let is_rows = |value: Value| {
        let inputs = &graph.node(value.node).inputs;
        let is_alone = operator::<EmbeddingGrad>(graph, value.node).is_some() && inputs.len() == 2;
        is_alone && uses[&value] == 1 && EmbeddingGrad::is_exact_onto(graph.ty(inputs[0]), limits)
    };
    let (rows, onto) = if is_rows(a) { (a, b) } else { (b, a) };
    let is_sum = operator::<Map>(graph, sum) == Some(&Map::add()) && graph.ty(onto) == graph.ty(rows);
    (is_sum && is_rows(rows)).then_some((rows.node, onto))
}
