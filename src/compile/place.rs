//! Views: which storage each value lies in, and where.

use super::rewrite::{Rewrite, ids, uses};
use crate::error::{Error, Result};
use crate::graph::{Graph, Io, Kind, Node, NodeId, Value, View};
use std::collections::HashMap;
use std::sync::Arc;

/// A storage: the value whose memory it is.
pub(super) type Storage = Value;

/// Where a value lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) storage: Storage,
    pub(super) offset: u64,
}

/// The places of all values.
pub(super) type Places = HashMap<Value, Place>;

pub(super) fn io(graph: &Graph, node: &Node) -> Io {
    Io { inputs: node.inputs.iter().map(|&v| graph.ty(v).clone()).collect(), outputs: node.outputs.clone() }
}

pub(super) fn view(graph: &Graph, node: &Node) -> Option<View> {
    node.op().and_then(|op| op.view(&io(graph, node)))
}

/// The value behind a chain of whole-tensor views.
pub(super) fn root(graph: &Graph, value: Value) -> Value {
    behind(graph, value).last().expect("the value itself, at least")
}

/// A value, what it is a whole-tensor view of, and so on.
fn behind(graph: &Graph, value: Value) -> impl Iterator<Item = Value> {
    std::iter::successors(Some(value), |&value| {
        let node = graph.node(value.node);
        let is_whole = |&before: &Value| graph.ty(before).bytes() == graph.ty(value).bytes();
        matches!(view(graph, node), Some(View::Slice(0))).then(|| node.inputs[0]).filter(is_whole)
    })
}

/// Inserts copies where a member of a concatenation cannot be written in place: a source, a part of something else, or
/// a value that others read as well.
pub(super) fn own_members(graph: &Graph) -> Result<Graph> {
    let uses = uses(graph);
    let mut rewrite = Rewrite::new(graph);
    for id in ids(graph) {
        let node = graph.node(id);
        let (Some(View::Concat(_)), Some(op)) = (view(graph, node), node.op()) else {
            rewrite.copy(id)?;
            continue;
        };
        let mut inputs = Vec::new();
        for &input in &node.inputs {
            let root = root(graph, input);
            let source = graph.node(root.node);
            let alone = behind(graph, input).all(|value| uses[&value] == 1);
            let movable = matches!(source.kind, Kind::Op(_)) && !matches!(view(graph, source), Some(View::Slice(_)));
            let mut value = rewrite.value(input);
            if !(alone && movable) {
                value =
                    rewrite.new.apply_named(Arc::new(crate::ops::Copy), &[value], format!("{}.copy", node.name))?[0];
            }
            inputs.push(value);
        }
        let outputs = rewrite.new.apply_named(op.clone(), &inputs, node.name.clone())?;
        rewrite.set(id, &outputs);
    }
    Ok(rewrite.finish())
}

/// Resolves all views. Walked backwards, so that a concatenation tells its members where to lie before they are met;
/// slices of what lies elsewhere follow forwards.
pub(super) fn place(graph: &Graph) -> Result<Places> {
    let mut places: Places = HashMap::new();
    for id in ids(graph).rev() {
        let node = graph.node(id);
        if let Some(View::Concat(offsets)) = view(graph, node) {
            let value = Value { node: id, output: 0 };
            let own = *places.entry(value).or_insert(Place { storage: value, offset: 0 });
            for (&input, offset) in node.inputs.iter().zip(offsets) {
                let member = root(graph, input);
                let place = Place { storage: own.storage, offset: own.offset + offset };
                if places.insert(member, place).is_some() {
                    return Err(Error::Graph(format!("{} lies in two concatenations", graph.node(member.node).name)));
                }
            }
        }
    }
    for id in ids(graph) {
        let node = graph.node(id);
        for output in 0..node.outputs.len() as u32 {
            let value = Value { node: id, output };
            let place = match view(graph, node) {
                Some(View::Slice(offset)) => {
                    let behind = places[&node.inputs[0]];
                    Place { storage: behind.storage, offset: behind.offset + offset }
                }
                _ => *places.get(&value).unwrap_or(&Place { storage: value, offset: 0 }),
            };
            places.insert(value, place);
        }
    }
    Ok(places)
}

/// Bytes of a storage.
pub(super) fn storage_bytes(graph: &Graph, storage: Storage) -> u64 {
    graph.ty(storage).bytes()
}

/// True where the storage is scratch memory of the plan, not an input, state or constant.
pub(super) fn is_transient(graph: &Graph, id: NodeId) -> bool {
    matches!(graph.node(id).kind, Kind::Op(_))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Limits, TensorType};
    use crate::compile::{First, compile};
    use crate::graph::{Concat, Map, Slice};

    /// What a value that lies in a concatenation is seen through has another user, whose result lies in it too.
    #[test]
    fn what_is_read_through_a_view_between_is_no_part_of_the_concatenation() {
        let mut g = Graph::new();
        let x = g.input("x", TensorType::f32([8, 64]));
        let a = g.apply1(Map::scale(2.0), &[x]).unwrap();
        let between = g.reshape(a, [512]).unwrap();
        let whole = g.reshape(between, [8, 64]).unwrap();
        let part = g.apply1(Slice { start: 64, shape: [1, 64].into() }, &[between]).unwrap();
        let all = g.apply1(Concat { starts: vec![0, 512], elements: 576 }, &[whole, part]).unwrap();
        g.output("all", all);
        let plan = compile(&g, &Limits::default(), &mut First).unwrap();
        assert_eq!(plan.steps.len(), 3, "a scale and two copies\n{plan}");
    }
}
