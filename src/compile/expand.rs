//! Puts the parts of composite operators in their place.

use super::rewrite::{Rewrite, ids};
use crate::base::Limits;
use crate::error::Result;
use crate::graph::{Graph, Io, OpNode, Value};

/// One round of expansion; `None` if there was nothing to expand.
pub(super) fn expand(graph: &Graph, limits: &Limits) -> Result<Option<Graph>> {
    let mut rewrite = Rewrite::new(graph);
    let mut changed = false;
    for id in ids(graph) {
        let node = graph.node(id);
        let replaced = match node.op() {
            Some(op) => {
                let types = |values: &[Value]| values.iter().map(|&v| graph.ty(v).clone()).collect();
                let io = Io { inputs: types(&node.inputs), outputs: node.outputs.clone() };
                let fitted = op.fitted(&io, limits);
                let view = OpNode { inputs: rewrite.inputs(node), outputs: vec![] };
                let expanded =
                    rewrite.new.scope(node.name.clone(), |g| fitted.as_ref().unwrap_or(op).expand(g, &view))?;
                match (expanded, fitted) {
                    // What suits the adapter has no parts.
                    (None, Some(op)) => Some(rewrite.new.apply_named(op, &view.inputs, node.name.clone())?),
                    (expanded, _) => expanded,
                }
            }
            None => None,
        };
        match replaced {
            Some(outputs) => {
                changed = true;
                rewrite.set(id, &outputs);
            }
            None => rewrite.copy(id)?,
        }
    }
    Ok(changed.then(|| rewrite.finish()))
}
