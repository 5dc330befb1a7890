//! Products of one input with weights that adjoin become one product, of which each has its part: queries, keys and values
//! in one dispatch, or gate and up. Of one row the parts of the result lie one after the other; of several they are its
//! panels ([`PanelMatMul`]).

use super::place;
use super::rewrite::{Rewrite, ids, operator};
use crate::base::Limits;
use crate::error::Result;
use crate::graph::{Graph, NodeId, Op, Slice, Value};
use crate::ops::{MOST, MatMul, PANEL, PanelMatMul};
use std::collections::HashMap;
use std::sync::Arc;

/// A view of a weight `[N,K]` in a larger tensor.
#[derive(Clone, Copy)]
pub(super) struct Part<'a> {
    pub(super) whole: Value,
    pub(super) slice: &'a Slice,
}

impl<'a> Part<'a> {
    pub(super) fn of(graph: &'a Graph, weight: Value) -> Option<Self> {
        let slice: &Slice = operator(graph, weight.node)?;
        // Parts of results begin where views may.
        let fits = slice.shape.rank() == 2 && slice.shape.dims()[0].is_multiple_of(PANEL);
        fits.then(|| Part { whole: graph.node(weight.node).inputs[0], slice })
    }

    pub(super) fn end(&self) -> usize {
        self.slice.start + self.slice.shape.elements()
    }

    pub(super) fn rows(&self) -> usize {
        self.slice.shape.dims()[0]
    }
}

/// The weight from the first row of one part to the last of another, as a view in the new graph.
pub(super) fn weights(rewrite: &mut Rewrite, [first, last]: [&Part; 2], name: &str) -> Result<Value> {
    let k = first.slice.shape.last();
    let shape = [(last.end() - first.slice.start) / k, k].into();
    let view = Arc::new(Slice { start: first.slice.start, shape });
    let whole = rewrite.value(first.whole);
    Ok(rewrite.new.apply_named(view, &[whole], format!("{name}.weights"))?[0])
}

/// A product that could be a part of another, and its weight.
fn part(graph: &Graph, id: NodeId) -> Option<(&MatMul, Part<'_>)> {
    let node = graph.node(id);
    let product: &MatMul = operator(graph, id)?;
    if *product != MatMul::linear().with(product.operands) {
        return None;
    }
    let part = Part::of(graph, node.inputs[1])?;
    // What goes into nothing but a map is left to become that product's epilogue.
    let y = Value { node: id, output: 0 };
    let mut readers = graph.nodes().iter().filter(|n| n.inputs.contains(&y));
    let mapped = readers.next().is_some_and(|n| n.op().is_some_and(|op| op.expression().is_some()));
    let apart = mapped && readers.next().is_none();
    (!apart).then_some((product, part))
}

/// What makes all of a run: one product, or one with panels where there are several rows.
fn joined(graph: &Graph, run: &[NodeId], limits: &Limits) -> Option<Arc<dyn Op>> {
    let (product, _) = part(graph, run[0])?;
    let parts: Vec<Part> = run.iter().map(|&id| Some(part(graph, id)?.1)).collect::<Option<_>>()?;
    let x = graph.ty(graph.node(run[0]).inputs[0]);
    let (k, rows) = (parts[0].slice.shape.last(), x.shape.rows());
    let adjoin = parts.windows(2).all(|pair| pair[0].end() == pair[1].slice.start);
    let whole = graph.ty(parts[0].whole);
    let weight =
        crate::base::TensorType { shape: [parts.iter().map(Part::rows).sum::<usize>(), k].into(), dtype: whole.dtype };
    if !adjoin || weight.bytes() > limits.max_binding_bytes {
        return None;
    }
    if rows == 1 {
        return Some(Arc::new(product.clone()));
    }
    if run.len() > MOST {
        return None;
    }
    let op = PanelMatMul::linear(product.clone(), parts.iter().map(Part::rows).collect());
    let outputs = op.infer(&[x, &weight]).ok()?;
    let io = crate::graph::Io { inputs: vec![x.clone(), weight], outputs };
    (io.fits(limits) && !op.kernels(&io, limits).is_empty()).then(|| Arc::new(op) as _)
}

/// Runs of products, each of the same input and of weights that adjoin, with no state written in between.
fn runs(graph: &Graph, limits: &Limits) -> Vec<Vec<NodeId>> {
    let mut runs: Vec<Vec<NodeId>> = Vec::new();
    let mut open: HashMap<(Value, Value, bool), usize> = HashMap::new();
    for id in ids(graph) {
        let node = graph.node(id);
        if node.op().is_some_and(|op| !op.writes().is_empty()) {
            open.clear();
        }
        let Some((product, part)) = part(graph, id) else { continue };
        let key = (place::root(graph, node.inputs[0]), part.whole, product.operands.are_half());
        let longer = |run: &Vec<NodeId>| joined(graph, &[run.as_slice(), &[id]].concat(), limits).is_some();
        match open.get(&key).copied().filter(|&run| longer(&runs[run])) {
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
    let mut made: Vec<(Option<Value>, usize)> = vec![(None, 0); runs.len()];
    let mut rewrite = Rewrite::new(graph);
    for id in ids(graph) {
        let Some(&run) = run_of.get(&id) else {
            rewrite.copy(id)?;
            continue;
        };
        let (node, name) = (graph.node(id), graph.node(id).name.clone());
        let y = match made[run] {
            (Some(y), _) => y,
            (None, _) => {
                let member = |id| part(graph, id).expect("a member of a run is a part").1;
                let (first, last) = (member(runs[run][0]), member(runs[run][runs[run].len() - 1]));
                let op = joined(graph, &runs[run], limits).expect("a run can be joined");
                let weight = weights(&mut rewrite, [&first, &last], &name)?;
                let x = rewrite.value(node.inputs[0]);
                rewrite.new.apply_named(op, &[x, weight], name.clone())?[0]
            }
        };
        let slice = Slice { start: made[run].1, shape: node.outputs[0].shape.clone() };
        made[run] = (Some(y), slice.start + slice.shape.elements());
        let own = rewrite.new.apply_named(Arc::new(slice), &[y], format!("{name}.part"))?;
        rewrite.set(id, &own);
    }
    Ok(rewrite.finish())
}
