//! Products of one row with weights that adjoin become one product, of which each has its part: queries, keys and values
//! of a token in one dispatch. Only where the row is one do the parts of the result lie one after the other as well.

use super::rewrite::{Rewrite, ids};
use crate::base::Limits;
use crate::error::Result;
use crate::graph::{Graph, NodeId, Op, Slice, Value};
use crate::ops::MatMul;
use std::any::Any;
use std::collections::HashMap;
use std::sync::Arc;

/// A view of a weight `[N,K]` in a larger tensor.
struct Part<'a> {
    whole: Value,
    slice: &'a Slice,
}

impl Part<'_> {
    fn end(&self) -> usize {
        self.slice.start + self.slice.shape.elements()
    }
}

pub(super) fn operator<T: Op>(graph: &Graph, id: NodeId) -> Option<&T> {
    let op: &dyn Any = graph.node(id).op()?.as_ref();
    op.downcast_ref()
}

/// The weight of a product of one row, if the product is one that could be a part of another.
fn part(graph: &Graph, id: NodeId) -> Option<Part<'_>> {
    let node = graph.node(id);
    if operator::<MatMul>(graph, id)? != &MatMul::linear() {
        return None;
    }
    let (weight, y) = (node.inputs[1], &node.outputs[0].shape);
    let slice: &Slice = operator(graph, weight.node)?;
    // Parts begin where views may.
    if y.elements() != y.last() || !y.last().is_multiple_of(64) || slice.shape.rank() != 2 {
        return None;
    }
    // What goes into nothing but a map is left to become that product's epilogue.
    let y = Value { node: id, output: 0 };
    let mut readers = graph.nodes().iter().filter(|n| n.inputs.contains(&y));
    let mapped = readers.next().is_some_and(|n| n.op().is_some_and(|op| op.expression().is_some()));
    let apart = mapped && readers.next().is_none();
    (!apart).then(|| Part { whole: graph.node(weight.node).inputs[0], slice })
}

/// Runs of products, each of the same row and of weights that adjoin, with no state written in between.
fn runs(graph: &Graph, limits: &Limits) -> Vec<Vec<NodeId>> {
    let mut runs: Vec<Vec<NodeId>> = Vec::new();
    let mut open: HashMap<(Value, Value), usize> = HashMap::new();
    for id in ids(graph) {
        let node = graph.node(id);
        if node.op().is_some_and(|op| !op.writes().is_empty()) {
            open.clear();
        }
        let Some(part) = part(graph, id) else { continue };
        let key = (node.inputs[0], part.whole);
        let adjoins = |run: &Vec<NodeId>| {
            let before = self::part(graph, run[run.len() - 1]).expect("a member of a run is a part");
            let first = self::part(graph, run[0]).expect("a member of a run is a part");
            let bytes = graph.ty(part.whole).dtype.size(part.end() - first.slice.start);
            before.end() == part.slice.start && bytes <= limits.max_binding_bytes
        };
        match open.get(&key).copied().filter(|&run| adjoins(&runs[run])) {
            Some(run) => runs[run].push(id),
            None => {
                open.insert(key, runs.len());
                runs.push(vec![id]);
            }
        }
    }
    runs.retain(|run| run.len() > 1);
    runs
}

pub(super) fn join(graph: &Graph, limits: &Limits) -> Result<Graph> {
    let runs = runs(graph, limits);
    let run_of: HashMap<NodeId, usize> = (0..runs.len()).flat_map(|r| runs[r].iter().map(move |&id| (id, r))).collect();
    let mut joined: Vec<(Option<Value>, usize)> = vec![(None, 0); runs.len()];
    let mut rewrite = Rewrite::new(graph);
    for id in ids(graph) {
        let Some(&run) = run_of.get(&id) else {
            rewrite.copy(id)?;
            continue;
        };
        let (node, name) = (graph.node(id), graph.node(id).name.clone());
        let y = match joined[run] {
            (Some(y), _) => y,
            (None, _) => {
                let first = part(graph, id).expect("a member of a run is a part");
                let last = part(graph, runs[run][runs[run].len() - 1]).expect("a member of a run is a part");
                let k = first.slice.shape.last();
                let shape = [(last.end() - first.slice.start) / k, k].into();
                let weight = Arc::new(Slice { start: first.slice.start, shape });
                let whole = rewrite.value(first.whole);
                let weight = rewrite.new.apply_named(weight, &[whole], format!("{name}.weights"))?[0];
                let row = rewrite.value(node.inputs[0]);
                rewrite.new.apply_named(Arc::new(MatMul::linear()), &[row, weight], name.clone())?[0]
            }
        };
        let slice = Slice { start: joined[run].1, shape: node.outputs[0].shape.clone() };
        joined[run] = (Some(y), slice.start + slice.shape.elements());
        let own = rewrite.new.apply_named(Arc::new(slice), &[y], format!("{name}.part"))?;
        rewrite.set(id, &own);
    }
    Ok(rewrite.finish())
}
