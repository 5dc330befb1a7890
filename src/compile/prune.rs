//! Drops nodes that neither reach an output nor write a state nor send anything to another rank.

use super::rewrite::{Rewrite, ids};
use crate::error::Result;
use crate::graph::{Collective, Graph, Op};

pub(super) fn prune(graph: &Graph) -> Result<Graph> {
    let mut live = vec![false; graph.nodes().len()];
    for (_, value) in graph.outputs() {
        live[value.node.0 as usize] = true;
    }
    for id in ids(graph).rev() {
        let node = graph.node(id);
        // A rank that wants nothing of what goes around hands it on all the same.
        let hands_on = |op: &dyn Op| op.collective().is_some_and(|meet| matches!(meet.what, Collective::Shift { .. }));
        let acts =
            node.op().is_some_and(|op| !op.writes().is_empty() || node.outputs.is_empty() || hands_on(op.as_ref()));
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
