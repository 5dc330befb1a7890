//! What products alone read, and round to f16 as they do, is stored in f16: half the bytes, and no number differs by it.

use super::place;
use super::rewrite::{Rewrite, ids, operator, uses};
use crate::base::{DType, Limits};
use crate::error::Result;
use crate::graph::{Concat, Graph, Halved, NodeId, Slice, Value, aligned};
use std::collections::HashSet;
use std::sync::Arc;

pub(super) fn halve(graph: &Graph, limits: &Limits) -> Result<Graph> {
    let halved = halved(graph, limits);
    let mut rewrite = Rewrite::new(graph);
    for id in ids(graph) {
        let node = graph.node(id);
        let outputs: Vec<usize> = (0..node.outputs.len()).filter(|&i| halved.contains(&output(id, i))).collect();
        // A view has the dtype of what it shows.
        match node.op().filter(|_| !outputs.is_empty() && place::view(graph, node).is_none()) {
            Some(op) => {
                let op = Arc::new(Halved { base: op.clone(), outputs });
                let outputs = rewrite.new.apply_named(op, &rewrite.inputs(node), node.name.clone())?;
                rewrite.set(id, &outputs);
            }
            None => rewrite.copy(id)?,
        }
    }
    Ok(rewrite.finish())
}

fn output(node: NodeId, i: usize) -> Value {
    Value { node, output: i as u32 }
}

/// What of a node may be in f16.
#[derive(Default)]
struct Ends {
    inputs: Vec<usize>,
    /// All of them or none.
    outputs: Vec<usize>,
    /// True where it moves nothing: inputs and output are in f16, or neither.
    is_view: bool,
}

impl Ends {
    fn of(graph: &Graph, id: NodeId, limits: &Limits) -> Ends {
        let node = graph.node(id);
        let starts = match (operator::<Slice>(graph, id), operator::<Concat>(graph, id)) {
            (Some(slice), _) => Some(std::slice::from_ref(&slice.start)),
            (_, Some(concat)) => Some(&concat.starts[..]),
            _ => None,
        };
        if let Some(starts) = starts {
            let fits = starts.iter().all(|start| start.is_multiple_of(aligned(DType::F16)));
            let all = || (0..node.inputs.len()).collect();
            return if fits { Ends { inputs: all(), outputs: vec![0], is_view: true } } else { Ends::default() };
        }
        let Some(op) = node.op() else { return Ends::default() };
        let io = place::io(graph, node);
        Ends { inputs: op.half_inputs(&io, limits), outputs: op.half_outputs(&io, limits), is_view: false }
    }
}

/// All that can be stored so: begins with what kernels could store, and takes away, until nothing changes, what somebody reads who does
/// not take it, and results that come with such.
fn halved(graph: &Graph, limits: &Limits) -> HashSet<Value> {
    let ends: Vec<Ends> = ids(graph).map(|id| Ends::of(graph, id, limits)).collect();
    let uses = uses(graph);
    let is_read_by_fours = |value: &Value| {
        let ty = graph.ty(*value);
        ty.dtype == DType::F32 && ty.shape.last().is_multiple_of(4) && uses.contains_key(value)
    };
    let stored = ids(graph).zip(&ends).flat_map(|(id, ends)| ends.outputs.iter().map(move |&i| output(id, i)));
    let mut halved: HashSet<Value> = stored.filter(is_read_by_fours).collect();
    for (_, wanted) in graph.outputs() {
        halved.remove(wanted);
    }
    loop {
        let before = halved.len();
        for (id, ends) in ids(graph).zip(&ends) {
            let inputs = &graph.node(id).inputs;
            let has = |value: &Value| halved.contains(value);
            let mut is_half = ends.outputs.iter().all(|&i| has(&output(id, i)));
            is_half &= !ends.is_view || inputs.iter().all(has);
            if !is_half {
                for &i in &ends.outputs {
                    halved.remove(&output(id, i));
                }
            }
            for (i, input) in inputs.iter().enumerate() {
                if !ends.inputs.contains(&i) || ends.is_view && !is_half {
                    halved.remove(input);
                }
            }
        }
        if halved.len() == before {
            return halved;
        }
    }
}
