//! Reverse-mode differentiation: the backward pass as further nodes of the same graph.

use super::{Graph, Kind, Map, NodeId, Value};
use crate::base::TensorType;
use crate::error::{Error, Result};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Gradients of the scalar `loss` towards each of `wrt`, whose own producers are not walked.
///
/// # Errors
/// If `loss` is not one f32 element, or does not depend on one of `wrt`.
pub fn gradients(g: &mut Graph, loss: Value, wrt: &[Value]) -> Result<Vec<Value>> {
    let one = g.constant("grad.loss", TensorType::f32([1]), 1.0f32.to_le_bytes().to_vec());
    scaled_gradients(g, loss, one, wrt)
}

/// [`gradients`], all multiplied by `scale`, which is one f32 element: that of the loss towards itself.
///
/// # Errors
/// As [`gradients`].
pub fn scaled_gradients(g: &mut Graph, loss: Value, scale: Value, wrt: &[Value]) -> Result<Vec<Value>> {
    if g.ty(loss).shape.elements() != 1 || g.ty(scale).shape.elements() != 1 {
        return Err(Error::Graph(format!("the loss must be one element, not {}", g.ty(loss))));
    }
    let shape = g.ty(loss).shape.clone();
    let scale = if g.ty(scale).shape == shape { scale } else { g.reshape(scale, shape)? };
    let targets: HashSet<Value> = wrt.iter().copied().collect();
    let depends = depends_on(g, &targets);
    let mut grads: HashMap<Value, Value> = HashMap::from([(loss, scale)]);
    for index in (0..=loss.node.0).rev().map(NodeId) {
        let node = g.op_node(index);
        let Kind::Op(op) = g.node(index).kind.clone() else { continue };
        let dy: Vec<Option<Value>> = node.outputs.iter().map(|v| grads.get(v).copied()).collect();
        let is_target = node.outputs.iter().any(|v| targets.contains(v));
        if is_target || !depends.contains(&index) || dy.iter().all(Option::is_none) {
            continue;
        }
        let name = format!("grad.{}", g.node(index).name);
        let dx = g.scope(name, |g| op.gradient(g, &node, &dy))?;
        for (&input, dx) in node.inputs.iter().zip(dx) {
            let (Some(dx), true) = (dx, targets.contains(&input) || depends.contains(&input.node)) else { continue };
            let total = match grads.get(&input) {
                None => dx,
                Some(&sum) => {
                    let name = format!("grad.{}.sum", g.node(input.node).name);
                    g.apply_named(Arc::new(Map::add()), &[dx, sum], name)?[0]
                }
            };
            grads.insert(input, total);
        }
    }
    wrt.iter()
        .map(|v| {
            let name = &g.node(v.node).name;
            grads.get(v).copied().ok_or_else(|| Error::Graph(format!("the loss does not depend on {name}")))
        })
        .collect()
}

/// Nodes from whose outputs a target can be reached backwards.
fn depends_on(g: &Graph, targets: &HashSet<Value>) -> HashSet<NodeId> {
    let mut depends = HashSet::new();
    for (i, node) in g.nodes().iter().enumerate() {
        if node.inputs.iter().any(|v| targets.contains(v) || depends.contains(&v.node)) {
            depends.insert(NodeId(i as u32));
        }
    }
    depends
}
