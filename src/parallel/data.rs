//! Data parallelism: each rank works on its own rows, and sums are made over all ranks before anybody uses them.

use crate::error::Result;
use crate::graph::rewrite::{Rewrite, ids};
use crate::graph::{Graph, Kind, Value};
use crate::ops::{Along, SumState};
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
    let sum = SumState { along, last: false };
    let mut rewrite = Rewrite::new(graph);
    let mut done: BTreeSet<Value> = BTreeSet::new();
    for id in ids(graph) {
        for &input in &graph.node(id).inputs {
            let source = graph.node(input.node);
            if matches!(source.kind, Kind::State) && summed(&source.name) && done.insert(input) {
                let state = rewrite.value(input);
                let name = format!("ranks.{}", source.name);
                rewrite.new.scope(name, |g| g.apply(sum, &[state]))?;
            }
        }
        rewrite.copy(id)?;
    }
    Ok(rewrite.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Axis, TensorType};
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
