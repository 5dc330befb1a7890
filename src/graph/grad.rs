//! Reverse-mode differentiation: the backward pass as further nodes of the same graph.

use super::{Graph, Kind, Map, NodeId, Op, OpNode, Slice, Value};
use crate::base::TensorType;
use crate::error::{Error, Result};
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

/// Gradients of the scalar `loss` towards each of `wrt`, whose own producers are not walked.
///
/// # Errors
/// If `loss` is not one f32 element, or does not depend on one of `wrt`.
pub fn gradients(g: &mut Graph, loss: Value, wrt: &[Value]) -> Result<Vec<Value>> {
    let one = unit(g);
    scaled_gradients(g, loss, one, wrt)
}

/// The gradient of a loss towards itself, where it is not scaled.
pub fn unit(g: &mut Graph) -> Value {
    g.constant("grad.loss", TensorType::f32([1]), 1.0f32.to_le_bytes().to_vec())
}

/// [`gradients`], all multiplied by `scale`, which is one f32 element: that of the loss towards itself.
///
/// # Errors
/// As [`gradients`].
pub fn scaled_gradients(g: &mut Graph, loss: Value, scale: Value, wrt: &[Value]) -> Result<Vec<Value>> {
    let mut found = HashMap::new();
    gradients_in_turn(g, loss, scale, wrt, &mut |_, i, gradient| {
        found.insert(i, gradient.whole());
        Ok(())
    })?;
    Ok((0..wrt.len()).map(|i| found[&i]).collect())
}

/// Nodes of a backward pass, each with the one of the forward pass whose gradient it computes.
pub type Trace = Vec<(NodeId, NodeId)>;

/// [`scaled_gradients`], and of each node that was appended for which node of the forward pass.
///
/// # Errors
/// As [`gradients`].
pub fn traced_gradients(g: &mut Graph, loss: Value, scale: Value, wrt: &[Value]) -> Result<(Vec<Value>, Trace)> {
    let (mut found, mut trace, mut next) = (HashMap::new(), Vec::new(), g.nodes().len() as u32);
    let mut done = |_: &mut Graph, i: usize, gradient: Gradient| {
        found.insert(i, gradient.whole());
        Ok(())
    };
    walk(g, loss, scale, wrt, &mut done, &mut |g, at| {
        let end = g.nodes().len() as u32;
        trace.extend((next..end).map(|made| (NodeId(made), at)));
        next = end;
    })?;
    Ok(((0..wrt.len()).map(|i| found[&i]).collect(), trace))
}

/// A gradient with everything that adds to it.
pub struct Gradient {
    whole: Value,
    terms: Vec<Term>,
}

/// What one node adds to a gradient.
struct Term {
    op: Arc<dyn Op>,
    name: String,
    node: OpNode,
    dy: Vec<Option<Value>>,
    input: usize,
    whole: Value,
}

impl Gradient {
    /// All of it.
    pub fn whole(&self) -> Value {
        self.whole
    }

    /// Some rows of it, as a gradient towards a matrix; operators that can compute them without the others do, so that the
    /// whole need not exist.
    ///
    /// # Errors
    /// If there are no such rows.
    pub fn rows(&self, g: &mut Graph, rows: Range<usize>) -> Result<Value> {
        let mut total: Option<Value> = None;
        for term in &self.terms {
            let part = g.scope(&term.name, |g| {
                match term.op.gradient_rows(g, &term.node, &term.dy, term.input, rows.clone())? {
                    Some(part) => Ok(part),
                    None => {
                        let width = g.ty(term.whole).shape.last();
                        g.apply1(Slice { start: rows.start * width, shape: [rows.len(), width].into() }, &[term.whole])
                    }
                }
            })?;
            total = Some(match total {
                None => part,
                Some(sum) => g.scope(&term.name, |g| g.apply1(Map::add(), &[part, sum]))?,
            });
        }
        Ok(total.expect("a gradient is of something"))
    }
}

/// Tells `done` of each gradient of [`scaled_gradients`], by its number among `wrt`, as soon as nothing more adds to it nor
/// will read what it is the gradient of: what `done` appends to the graph may change that. Those of the last layers come first.
///
/// # Errors
/// As [`gradients`], and those of `done`.
pub fn gradients_in_turn(
    g: &mut Graph,
    loss: Value,
    scale: Value,
    wrt: &[Value],
    done: &mut dyn FnMut(&mut Graph, usize, Gradient) -> Result<()>,
) -> Result<()> {
    walk(g, loss, scale, wrt, done, &mut |_, _| ())
}

/// [`gradients_in_turn`], which tells `passed` of each node of the forward pass once its gradient is made.
fn walk(
    g: &mut Graph,
    loss: Value,
    scale: Value,
    wrt: &[Value],
    done: &mut dyn FnMut(&mut Graph, usize, Gradient) -> Result<()>,
    passed: &mut dyn FnMut(&Graph, NodeId),
) -> Result<()> {
    if g.ty(loss).shape.elements() != 1 || g.ty(scale).shape.elements() != 1 {
        return Err(Error::Graph(format!("the loss must be one element, not {}", g.ty(loss))));
    }
    let shape = g.ty(loss).shape.clone();
    let scale = if g.ty(scale).shape == shape { scale } else { g.reshape(scale, shape)? };
    let targets: HashMap<Value, usize> = wrt.iter().enumerate().map(|(i, v)| (*v, i)).collect();
    let depends = depends_on(g, loss, &targets);
    // The first reader of each, after which the walk meets no other.
    let mut first: HashMap<NodeId, Vec<usize>> = HashMap::new();
    for (i, target) in wrt.iter().enumerate() {
        let reader = depends.iter().copied().filter(|&id| g.node(id).inputs.contains(target)).min();
        first.entry(reader.ok_or_else(|| independent(g, *target))?).or_default().push(i);
    }
    let mut grads: HashMap<Value, Value> = HashMap::from([(loss, scale)]);
    let mut terms: HashMap<Value, Vec<Term>> = HashMap::new();
    for index in (0..=loss.node.0).rev().map(NodeId).filter(|id| depends.contains(id)) {
        let node = g.op_node(index);
        let Kind::Op(op) = g.node(index).kind.clone() else { continue };
        let dy: Vec<Option<Value>> = node.outputs.iter().map(|v| grads.get(v).copied()).collect();
        let is_target = node.outputs.iter().any(|v| targets.contains_key(v));
        if !is_target && dy.iter().any(Option::is_some) {
            let name = format!("grad.{}", g.node(index).name);
            let dx = g.scope(&name, |g| op.gradient(g, &node, &dy))?;
            for (i, (&input, dx)) in node.inputs.iter().zip(dx).enumerate() {
                let is_wanted = targets.contains_key(&input);
                let (Some(dx), true) = (dx, is_wanted || depends.contains(&input.node)) else { continue };
                let total = match grads.get(&input) {
                    None => dx,
                    Some(&sum) => {
                        let name = format!("grad.{}.sum", g.node(input.node).name);
                        g.apply_named(Arc::new(Map::add()), &[dx, sum], name)?[0]
                    }
                };
                grads.insert(input, total);
                if is_wanted {
                    let (op, name, node, dy) = (op.clone(), name.clone(), node.clone(), dy.clone());
                    terms.entry(input).or_default().push(Term { op, name, node, dy, input: i, whole: dx });
                }
            }
        }
        for &i in first.get(&index).map_or(&[][..], Vec::as_slice) {
            let whole = *grads.get(&wrt[i]).ok_or_else(|| independent(g, wrt[i]))?;
            let terms = terms.remove(&wrt[i]).unwrap_or_default();
            done(g, i, Gradient { whole, terms })?;
        }
        passed(g, index);
    }
    Ok(())
}

fn independent(g: &Graph, target: Value) -> Error {
    Error::Graph(format!("the loss does not depend on {}", g.node(target.node).name))
}

/// Nodes on which the loss depends, and from whose outputs a target can be reached backwards.
fn depends_on(g: &Graph, loss: Value, targets: &HashMap<Value, usize>) -> HashSet<NodeId> {
    let mut behind = HashSet::from([loss.node]);
    for id in (0..=loss.node.0).rev().map(NodeId) {
        if behind.contains(&id) {
            behind.extend(g.node(id).inputs.iter().map(|v| v.node));
        }
    }
    let mut depends = HashSet::new();
    for id in (0..=loss.node.0).map(NodeId).filter(|id| behind.contains(id)) {
        if g.node(id).inputs.iter().any(|v| targets.contains_key(v) || depends.contains(&v.node)) {
            depends.insert(id);
        }
    }
    depends
}
