//! Gradients of the data axis: the graph of a batch that adds its gradients to states → that of a rank, in which each stretch
//! of them that is finished meets those of the other ranks at once, while the backward pass goes on.

use crate::base::{DType, TensorType};
use crate::error::Result;
use crate::graph::rewrite::{Rewrite, ids};
use crate::graph::{Concat, Graph, Kind, NodeId, Slice, Value, aligned};
use crate::ops::{Accumulate, Along, ReduceScatter, ScatterState, SumState};
use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What every rank has of the gradients' sums over all ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sums {
    /// All of them; of several batches that make a step, after the last.
    Whole,
    /// The same, but of each state only this part is a sum.
    Part(usize),
    /// Its part of each state, which is all that is kept: after every batch its part of that is added. The states must have
    /// as many equal parts as there are ranks.
    Kept,
}

/// Elements that ranks sum at once: 16 MiB.
const AT_ONCE: usize = 4 << 20;

/// One of several tensors that are added to a state.
struct Term {
    node: NodeId,
    start: usize,
    elements: usize,
}

/// A graph in which ranks sum what is added to these states, as soon as all is there that stands together: [`Accumulate`]s
/// that follow each other.
///
/// # Errors
/// If a state cannot be divided.
pub fn meet_gradients(graph: &Graph, along: Along, sums: Sums, summed: &dyn Fn(&str) -> bool) -> Result<Graph> {
    let mut pass = Pass { along, sums, rewrite: Rewrite::new(graph), left: BTreeMap::new(), waiting: BTreeMap::new() };
    let term = |id: NodeId| -> Option<(Value, Term)> {
        let node = graph.node(id);
        let op: &dyn Any = node.op()?.as_ref();
        let start = op.downcast_ref::<Accumulate>()?.start;
        let state = graph.node(node.inputs[0].node);
        let is_gradient = matches!(state.kind, Kind::State) && summed(&state.name);
        let elements = graph.ty(node.inputs[1]).shape.elements();
        is_gradient.then_some((node.inputs[0], Term { node: id, start, elements }))
    };
    for (state, _) in ids(graph).filter_map(term) {
        *pass.left.entry(state).or_default() += 1;
    }
    let mut together: BTreeMap<Value, Vec<Term>> = BTreeMap::new();
    for id in ids(graph) {
        if let Some((state, term)) = term(id) {
            together.entry(state).or_default().push(term);
            continue;
        }
        pass.meet(&mut together)?;
        pass.copy(id, summed)?;
    }
    pass.meet(&mut together)?;
    Ok(pass.rewrite.finish())
}

struct Pass<'a> {
    along: Along,
    sums: Sums,
    rewrite: Rewrite<'a>,
    /// Terms of each state that have not come yet.
    left: BTreeMap<Value, usize>,
    /// Terms of states that are divided once all are there.
    waiting: BTreeMap<Value, Vec<Term>>,
}

impl Pass<'_> {
    /// Carries over what is no term.
    fn copy(&mut self, id: NodeId, summed: &dyn Fn(&str) -> bool) -> Result<()> {
        let node = self.rewrite.old.node(id);
        if self.sums == Sums::Kept && matches!(node.kind, Kind::State) && summed(&node.name) {
            let part = node.outputs[0].shape.elements() / self.along.ranks;
            let own = self.rewrite.new.state(&node.name, TensorType::f32([part]));
            self.rewrite.set(id, &[own]);
            return Ok(());
        }
        self.rewrite.copy(id)
    }

    /// What came together, state by state.
    fn meet(&mut self, together: &mut BTreeMap<Value, Vec<Term>>) -> Result<()> {
        for (state, mut terms) in std::mem::take(together) {
            let left = self.left.get_mut(&state).expect("all were counted");
            *left -= terms.len();
            let is_all = *left == 0;
            terms.sort_by_key(|term| term.start);
            match self.sums {
                Sums::Whole => stretches(terms).into_iter().try_for_each(|terms| self.whole(state, &terms))?,
                Sums::Part(part) => {
                    terms.iter().try_for_each(|term| self.rewrite.copy(term.node))?;
                    if is_all {
                        let op = ScatterState { along: self.along, part, last: true };
                        self.apply(state, |g, state| g.apply(op, &[state]).map(|_| ()))?;
                    }
                }
                Sums::Kept => {
                    let waiting = self.waiting.entry(state).or_default();
                    waiting.extend(terms);
                    if is_all {
                        let terms = self.waiting.remove(&state).unwrap_or_default();
                        self.kept(state, terms)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn apply(&mut self, state: Value, make: impl FnOnce(&mut Graph, Value) -> Result<()>) -> Result<()> {
        let name = format!("ranks.{}", self.rewrite.old.node(state.node).name);
        let own = self.rewrite.value(state);
        self.rewrite.new.scope(name, |g| make(g, own))
    }

    /// Adds terms that adjoin to a view of their stretch, and sums that.
    fn whole(&mut self, state: Value, terms: &[Term]) -> Result<()> {
        let (first, last) = (&terms[0], &terms[terms.len() - 1]);
        let slice = Slice { start: first.start, shape: [last.start + last.elements - first.start].into() };
        let state = self.rewrite.value(state);
        let name = format!("ranks.{}", self.rewrite.old.node(first.node).name);
        let view = self.rewrite.new.apply_named(Arc::new(slice), &[state], format!("{name}.stretch"))?[0];
        for term in terms {
            let node = self.rewrite.old.node(term.node);
            let [x, keep] = [1, 2].map(|i| self.rewrite.value(node.inputs[i]));
            let op = Arc::new(Accumulate { start: term.start - first.start });
            self.rewrite.new.apply_named(op, &[view, x, keep], node.name.clone())?;
        }
        let sum = Arc::new(SumState { along: self.along, last: true });
        for start in (first.start..last.start + last.elements).step_by(AT_ONCE) {
            let shape = [AT_ONCE.min(last.start + last.elements - start)].into();
            let slice = Arc::new(Slice { start, shape });
            let some = self.rewrite.new.apply_named(slice, &[state], format!("{name}.some"))?;
            self.rewrite.new.apply_named(sum.clone(), &some, name.clone())?;
        }
        Ok(())
    }

    /// Divides all terms of a state, and adds this rank's part.
    fn kept(&mut self, state: Value, mut terms: Vec<Term>) -> Result<()> {
        terms.sort_by_key(|term| term.start);
        let old = self.rewrite.old;
        let concat =
            Concat { starts: terms.iter().map(|t| t.start).collect(), elements: old.ty(state).shape.elements() };
        let input = |term: &Term, i: usize| self.rewrite.value(old.node(term.node).inputs[i]);
        let values: Vec<Value> = terms.iter().map(|term| input(term, 1)).collect();
        let keep = input(&terms[0], 2);
        let along = self.along;
        self.apply(state, |g, state| {
            let all = g.apply1(concat, &values)?;
            let part = g.apply1(ReduceScatter { along, dim: 0 }, &[all])?;
            g.apply(Accumulate { start: 0 }, &[state, part, keep]).map(|_| ())
        })
    }
}

/// Terms, ascending, that adjoin but for what fills them up to where a view may begin.
fn stretches(terms: Vec<Term>) -> Vec<Vec<Term>> {
    let mut all: Vec<Vec<Term>> = Vec::new();
    for term in terms {
        let adjoins =
            |before: &Term| (before.start + before.elements).next_multiple_of(aligned(DType::F32)) == term.start;
        match all.last_mut().filter(|terms| terms.last().is_some_and(adjoins)) {
            Some(stretch) => stretch.push(term),
            None => all.push(vec![term]),
        }
    }
    all
}
