//! Drops nodes that neither reach an output nor write a state nor send anything to another rank, nor take what another sends: what
//! is not taken would be taken for what comes after it.

use super::rewrite::{Rewrite, ids};
use crate::error::Result;
use crate::graph::{Collective, Graph, Meet, Op};
use std::sync::Arc;

pub(super) fn prune(graph: &Graph) -> Result<Graph> {
    let mut live = vec![false; graph.nodes().len()];
    for (_, value) in graph.outputs() {
        live[value.node.0 as usize] = true;
    }
    for id in ids(graph).rev() {
        let node = graph.node(id);
        // What was sent here must be taken, and what goes around handed on, also where nobody wants it.
        let passes = |meet: Meet| matches!(meet.what, Collective::Receive { .. } | Collective::Shift { .. });
        let acts = |op: &Arc<dyn Op>| !op.writes().is_empty() || node.outputs.is_empty();
        let acts = node.op().is_some_and(|op| acts(op) || op.collective().is_some_and(passes));
        if acts || live[id.0 as usize] {
            live[id.0 as usize] = true;
            for input in &node.inputs {
                live[input.node.0 as usize] = true;
            }
        }
    }
    let mut rewrite = Rewrite::new(graph);
    for id in ids(graph).filter(|id| live[id.0 as usize]) {
        rewrite.copy(id)?;
    }
    Ok(rewrite.finish())
}
