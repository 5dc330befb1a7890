//! Sums over ranks of what each has gathered by itself, made before anybody uses them: over those that work on other rows, and over
//! the two ends of a pipeline that have one parameter both.

use super::Peers;
use crate::base::TensorType;
use crate::error::Result;
use crate::graph::rewrite::{Rewrite, ids};
use crate::graph::{Graph, Kind, Map, Slice, Value};
use crate::ops::{Accumulate, Along, Receive, ScatterState, Send, SumState};
use std::collections::BTreeSet;

/// A graph that first replaces these states by their sums over the ranks of an axis, in the order in which the graph reads
/// them: what every rank has gathered from its rows (gradients, losses, weights), before the optimizer takes it.
///
/// Everything that a rank computes from then on it computes as all others do, so that what was the same on all ranks stays
/// so to the bit.
///
/// # Errors
/// If a state is of other than f32.
pub fn sum_states(graph: &Graph, along: Along, summed: &dyn Fn(&str) -> bool) -> Result<Graph> {
    before_use(graph, summed, &|g, state| g.apply(SumState { along, last: false }, &[state]).map(|_| ()))
}

/// The same of states that ranks share out: each gets the sum of its part of them, and the rest means nothing from then on.
///
/// # Errors
/// If a state is of other than f32, or has not as many parts as there are ranks.
pub fn scatter_states(graph: &Graph, peers: Peers, summed: &dyn Fn(&str) -> bool) -> Result<Graph> {
    let Peers { along, place: part } = peers;
    before_use(graph, summed, &|g, state| g.apply(ScatterState { along, part, last: false }, &[state]).map(|_| ()))
}

/// A graph in which something is done with these states before they are read.
fn before_use(
    graph: &Graph,
    wanted: &dyn Fn(&str) -> bool,
    meet: &dyn Fn(&mut Graph, Value) -> Result<()>,
) -> Result<Graph> {
    let mut rewrite = Rewrite::new(graph);
    let mut done: BTreeSet<Value> = BTreeSet::new();
    for id in ids(graph) {
        for &input in &graph.node(id).inputs {
            let source = graph.node(input.node);
            if matches!(source.kind, Kind::State) && wanted(&source.name) && done.insert(input) {
                let state = rewrite.value(input);
                let name = format!("ranks.{}", source.name);
                rewrite.new.scope(name, |g| meet(g, state))?;
            }
        }
        rewrite.copy(id)?;
    }
    Ok(rewrite.finish())
}

/// A part of a state of which two ranks of an axis have a term each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tie {
    /// The state, flat.
    pub state: String,
    /// The first element, a multiple of 64.
    pub start: usize,
    /// How many there are.
    pub elements: usize,
    /// The two ranks, ascending.
    pub ranks: [usize; 2],
}

/// A graph that first replaces what two ranks share by its sum, the lower rank's term first, on both: each sends the other its
/// own, which is what an all-reduce of two sends.
///
/// # Errors
/// If a state is of other than f32.
pub fn sum_ties(graph: &Graph, along: Along, rank: usize, ties: &[Tie]) -> Result<Graph> {
    let mut rewrite = Rewrite::new(graph);
    let mut done: BTreeSet<Value> = BTreeSet::new();
    for id in ids(graph) {
        for &input in &graph.node(id).inputs {
            let source = graph.node(input.node);
            if !matches!(source.kind, Kind::State) || !done.insert(input) {
                continue;
            }
            let state = rewrite.value(input);
            let of_state = |tie: &&Tie| tie.state == source.name && tie.ranks.contains(&rank);
            for Tie { start, elements, ranks, .. } in ties.iter().filter(of_state) {
                rewrite.new.scope(format!("ranks.{}", source.name), |g| -> Result<()> {
                    let ty = TensorType::f32([*elements]);
                    let own = g.apply1(Slice { start: *start, shape: ty.shape.clone() }, &[state])?;
                    let is_first = ranks[0] == rank;
                    let other = if is_first { ranks[1] } else { ranks[0] };
                    g.apply(Send { along, to: other }, &[own])?;
                    let theirs = g.apply1(Receive { along, from: other, ty }, &[])?;
                    let sum = g.apply1(Map::add(), &if is_first { [own, theirs] } else { [theirs, own] })?;
                    let keep = g.constant("keep", TensorType::f32([1]), 0.0f32.to_le_bytes().to_vec());
                    g.apply(Accumulate { start: *start }, &[state, sum, keep]).map(|_| ())
                })?;
            }
        }
        rewrite.copy(id)?;
    }
    Ok(rewrite.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Axis;
    use crate::ops::SumSquares;

    #[test]
    fn a_sum_stands_before_its_first_reader_and_nowhere_else() {
        let mut g = Graph::new();
        let ty = TensorType::f32([8]);
        let (a, b, c) = (g.state("grad.0", ty.clone()), g.state("grad.1", ty.clone()), g.state("param.0", ty));
        for (name, value) in [("c", c), ("b", b), ("a", a), ("again", b)] {
            let sum = g.apply1(SumSquares, &[value]).unwrap();
            g.output(name, sum);
        }
        let two = Along { axis: Axis::Data, ranks: 2 };
        let summed = sum_states(&g, two, &|name| name.starts_with("grad.")).unwrap();
        let ops: Vec<String> = summed.nodes().iter().filter(|n| n.op().is_some()).map(|n| n.name.clone()).collect();
        assert_eq!(
            ops,
            [
                "sum_squares",
                "ranks.grad.1.sum_state",
                "sum_squares",
                "ranks.grad.0.sum_state",
                "sum_squares",
                "sum_squares"
            ]
        );
        assert_eq!(summed.outputs().len(), 4);
        assert_eq!(sum_states(&g, two, &|_| false).unwrap().nodes().len(), g.nodes().len());
    }
}
