//! Drops nodes that neither reach an output nor write a state nor send anything to another rank, nor take what another sends: what
//! is not taken would be taken for what comes after it. What makes further results that nobody reads makes the first alone where it
//! can.

use super::rewrite::{Rewrite, ids};
use crate::error::Result;
use crate::graph::{Collective, Graph, Meet, Op, Value};
use std::sync::Arc;

pub(super) fn prune(graph: &Graph) -> Result<Graph> {
    let mut live = vec![false; graph.nodes().len()];
    let mut further = vec![false; graph.nodes().len()];
    let mut read = |value: &Value, live: &mut [bool]| {
        live[value.node.0 as usize] = true;
        further[value.node.0 as usize] |= value.output > 0;
    };
    graph.outputs().iter().for_each(|(_, value)| read(value, &mut live));
    for id in ids(graph).rev() {
        let node = graph.node(id);
        // What was sent here must be taken, and what goes around handed on, also where nobody wants it.
        let passes = |meet: Meet| matches!(meet.what, Collective::Receive { .. } | Collective::Shift { .. });
        let acts = |op: &Arc<dyn Op>| !op.writes().is_empty() || node.outputs.is_empty();
        let acts = node.op().is_some_and(|op| acts(op) || op.collective().is_some_and(passes));
        if acts || live[id.0 as usize] {
            live[id.0 as usize] = true;
            node.inputs.iter().for_each(|value| read(value, &mut live));
        }
    }
    let mut rewrite = Rewrite::new(graph);
    for id in ids(graph).filter(|id| live[id.0 as usize]) {
        let node = graph.node(id);
        match node.op().filter(|_| !further[id.0 as usize]).and_then(|op| op.alone()) {
            Some(op) => {
                let first = rewrite.new.apply_named(op, &rewrite.inputs(node), node.name.clone())?;
                rewrite.set(id, &first);
            }
            None => rewrite.copy(id)?,
        }
    }
    Ok(rewrite.finish())
}
