//! The gradient of a table that is embedding and output. What the output adds to it is the first that a backward pass finishes, and
//! what the tokens add, to the rows of those that occur, the last: ranks sum the table when the first is there, while all layers go
//! back, and the few rows that changed since once more in the end.

use crate::error::Result;
use crate::graph::rewrite::{Rewrite, ids, operator, uses};
use crate::graph::{Graph, Kind, Map, NodeId, Slice, Value};
use crate::ops::{Accumulate, AllGather, AllReduce, Along, EmbeddingGrad, EmbeddingPart, PutRows};
use std::collections::HashMap;

/// Part of a table's rows that is summed twice, at most: what is hidden so is never paid with much more talk.
const MOST: usize = 4;

/// A gradient of two terms that is added to a state.
#[derive(Debug, Clone, Copy)]
struct Tied {
    /// What the output adds, `[V,D]`.
    head: Value,
    /// The tokens, u32, whose rows the embedding adds to.
    tokens: Value,
    /// The token of the first row.
    first: usize,
    /// Those rows, `[V,D]`, and zeros.
    rows: Value,
    /// The sum of both.
    sum: NodeId,
    /// Adds it to a state from its element `start` on, and to nothing where the input `keep` says so.
    added: NodeId,
    state: Value,
    start: usize,
    keep: Value,
}

/// A graph for ranks along an axis that adds to states in two turns what is a sum of these two terms: the output's as soon as it is
/// there, which is then summed over ranks as all else is ([`super::meet_gradients`]); and later, of the rows of all ranks' tokens,
/// the sum over ranks of both terms in its place. So every element is the sum over ranks of what each has of it, in their
/// order, as without. For graphs whose states hold nothing before, which are of steps of one batch.
///
/// # Errors
/// If a view does not fit, which would be a bug.
pub fn meet_tied(graph: &Graph, along: Along, summed: &dyn Fn(&str) -> bool) -> Result<Graph> {
    let uses = uses(graph);
    let found = ids(graph).filter_map(|id| tied(graph, id, summed));
    let few = |tied: &Tied| {
        let (tokens, vocab) = (graph.ty(tied.tokens).shape.elements(), graph.dims(tied.head)[0]);
        let is_read = |node| uses[&Value { node, output: 0 }] == 1 && uses[&tied.head] == 1;
        tokens * along.ranks * MOST <= vocab && is_read(tied.sum)
    };
    let all: Vec<Tied> = found.filter(few).collect();
    let mut begun: HashMap<NodeId, [Value; 2]> = HashMap::new();
    let mut rewrite = Rewrite::new(graph);
    for id in ids(graph) {
        match all.iter().find(|tied| tied.sum == id || tied.added == id) {
            Some(tied) if tied.added == id => end(&mut rewrite, tied, along, begun[&id])?,
            Some(_) => {}
            None => rewrite.copy(id)?,
        }
        for tied in all.iter().filter(|tied| tied.head.node == id) {
            begun.insert(tied.added, begin(&mut rewrite, tied, along)?);
        }
    }
    Ok(rewrite.finish())
}

/// What a node adds to a state, if that is a sum of an embedding's gradient and one other.
fn tied(graph: &Graph, added: NodeId, summed: &dyn Fn(&str) -> bool) -> Option<Tied> {
    let start = operator::<Accumulate>(graph, added)?.start;
    let &[state, both, keep] = &graph.node(added).inputs[..] else { return None };
    let (sum, into) = (both.node, graph.node(state.node));
    let &[a, b] = &graph.node(sum).inputs[..] else { return None };
    let is_sum = operator::<Map>(graph, sum) == Some(&Map::add()) && matches!(into.kind, Kind::State);
    let (rows, head) = if operator::<EmbeddingGrad>(graph, a.node).is_some() { (a, b) } else { (b, a) };
    let first = operator::<EmbeddingGrad>(graph, rows.node)?.first;
    let is_both = is_sum && summed(&into.name) && graph.ty(head) == graph.ty(rows) && head.node < rows.node;
    let tokens = graph.node(rows.node).inputs[1];
    is_both.then_some(Tied { head, tokens, first, rows, sum, added, state, start, keep })
}

/// Adds the output's term to the state; gives the tokens of all ranks, and what is there of their rows.
fn begin(rewrite: &mut Rewrite, tied: &Tied, along: Along) -> Result<[Value; 2]> {
    let &Tied { head, tokens, first, state, start, keep, .. } = tied;
    let [head, tokens, state, keep] = [head, tokens, state, keep].map(|value| rewrite.value(value));
    let name = format!("ranks.{}", rewrite.old.node(tied.added).name);
    rewrite.new.scope(name, |g| {
        let count = g.ty(tokens).shape.elements();
        let tokens = g.reshape(tokens, [count])?;
        let tokens = g.apply1(AllGather { along, dim: 0 }, &[tokens])?;
        let rows = g.apply1(EmbeddingPart { first }, &[head, tokens])?;
        g.apply(Accumulate { start }, &[state, head, keep])?;
        Ok([tokens, rows])
    })
}

/// Puts the sums over ranks of both terms in the rows of all ranks' tokens.
fn end(rewrite: &mut Rewrite, tied: &Tied, along: Along, [tokens, before]: [Value; 2]) -> Result<()> {
    let &Tied { rows, first, state, start, .. } = tied;
    let [rows, state] = [rows, state].map(|value| rewrite.value(value));
    let name = format!("ranks.{}", rewrite.old.node(tied.added).name);
    rewrite.new.scope(name, |g| {
        let shape = g.ty(rows).shape.clone();
        let rows = g.apply1(EmbeddingPart { first }, &[rows, tokens])?;
        let both = g.apply1(Map::add(), &[rows, before])?;
        let sum = g.apply1(AllReduce(along), &[both])?;
        let table = g.apply1(Slice { start, shape }, &[state])?;
        g.apply(PutRows { first }, &[table, sum, tokens]).map(|_| ())
    })
}
