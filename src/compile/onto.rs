//! The gradient of an embedding is added to the table's other gradient by the kernel that makes it: of a table that is the
//! output's, too, that is one tensor less, and fewer bytes than zeros, sums and their addition.

use super::place::root;
use super::rewrite::{Rewrite, ids, operator, uses};
use crate::base::Limits;
use crate::error::Result;
use crate::graph::{Graph, Kind, Map, NodeId, Value};
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

/// Of a sum of an embedding's gradient, which nobody else reads, and a tensor that was there before it: both. Only where no
/// number changes by it, and where nothing writes meanwhile what the gradient reads.
fn terms(graph: &Graph, sum: NodeId, uses: &HashMap<Value, usize>, limits: &Limits) -> Option<(NodeId, Value)> {
    let &[a, b] = &graph.node(sum).inputs[..] else { return None };
    let is_rows = |value: Value| {
        let inputs = &graph.node(value.node).inputs;
        let is_alone = operator::<EmbeddingGrad>(graph, value.node).is_some() && inputs.len() == 2;
        is_alone && uses[&value] == 1 && EmbeddingGrad::is_exact_onto(graph.ty(inputs[0]), limits)
    };
    let (rows, onto) = if is_rows(a) { (a, b) } else { (b, a) };
    let is_sum = operator::<Map>(graph, sum) == Some(&Map::add()) && graph.ty(onto) == graph.ty(rows);
    if !is_sum || !is_rows(rows) || onto.node > rows.node {
        return None;
    }
    let is_state = |&value: &Value| matches!(graph.node(root(graph, value).node).kind, Kind::State);
    (!graph.node(rows.node).inputs.iter().any(is_state)).then_some((rows.node, onto))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::TensorType;
    use crate::compile::optimise;

    /// Names of the steps of the sum of an embedding's gradient and another tensor, where that comes first or last, and
    /// where others read the rows, too.
    fn steps(is_first: bool, is_alone: bool) -> Vec<&'static str> {
        let mut g = Graph::new();
        let dy = g.input("dy", TensorType::f32([9, 64]));
        let tokens = g.input("tokens", TensorType::u32([9]));
        let x = g.input("x", TensorType::f32([20, 64]));
        let of_x = |g: &mut Graph| g.apply1(crate::ops::Copy, &[x]).unwrap();
        let early = is_first.then(|| of_x(&mut g));
        let rows = g.apply1(EmbeddingGrad { vocab: 20, first: 0 }, &[dy, tokens]).unwrap();
        let other = early.unwrap_or_else(|| of_x(&mut g));
        let sum = g.apply1(Map::add(), &[rows, other]).unwrap();
        g.output("sum", sum);
        if !is_alone {
            g.output("rows", rows);
        }
        let steps = optimise(&g, &Limits::default()).unwrap();
        steps.nodes().iter().filter_map(|node| node.op().map(|op| op.name())).collect()
    }

    #[test]
    fn rows_that_nobody_else_reads_go_onto_what_is_there() {
        assert_eq!(steps(true, true), ["copy", "embedding_grad"]);
        assert_eq!(steps(true, false).len(), 3);
        assert_eq!(steps(false, true).last(), Some(&"map"));
    }
}
