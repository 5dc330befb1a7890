//! The sequence axis of a model of the family: the graph of what it says of a rank's tokens. The model itself is not asked
//! (`parallel/sequence.rs` takes its graph apart).

use super::Llama;
use crate::base::TensorType;
use crate::error::Result;
use crate::graph::{Graph, Kind, Node, NodeId, Value};
use crate::nn::Params;
use crate::parallel::{Given, Placement, SequenceAxis};
use std::collections::HashMap;

/// Whether two nodes are one source, in a graph each.
fn is_same(own: &Node, other: &Node) -> bool {
    let both = |kind: fn(&Kind) -> bool| kind(&own.kind) && kind(&other.kind);
    own.name == other.name && (both(|k| matches!(k, Kind::State)) || both(|k| matches!(k, Kind::Input)))
}

/// What a graph says of tokens and targets, given its parameters and where documents begin.
pub(super) type Says<'a> = &'a mut dyn FnMut(&mut Graph, &Params, [Value; 2], Option<Value>) -> Result<Vec<Value>>;

impl Llama {
    /// What `says` makes of rows that are whole, of the tokens u32 `[B,T/N]` that a rank has of each: `params` are what `declare`
    /// declared in `g`. Of rows of several documents `starts` are those of [`SequenceAxis::cut_starts`]. Without an axis, of rows
    /// that are whole.
    ///
    /// # Errors
    /// If a shape does not fit, or an operator cannot be split.
    pub(super) fn of_tokens(
        g: &mut Graph,
        params: &Params,
        declare: &dyn Fn(&mut Graph) -> Result<Params>,
        axis: Option<SequenceAxis>,
        [tokens, targets]: [Value; 2],
        starts: Option<Value>,
        says: Says,
    ) -> Result<Vec<Value>> {
        let Some(axis) = axis else { return says(g, params, [tokens, targets], starts) };
        let mut whole = Graph::new();
        let all = declare(&mut whole)?;
        let same = |whole, own| Given { whole, own, placement: Placement::Same };
        // Frozen weights that lie in one state are views of it, too.
        let named: HashMap<String, Value> = params.named().into_iter().collect();
        let own = |(name, whole): (String, Value)| Some(same(whole, *named.get(&name)?));
        let mut given: Vec<Given> = all.named().into_iter().filter_map(own).collect();
        let value = |n: usize| Value { node: NodeId(n as u32), output: 0 };
        for (n, node) in whole.nodes().iter().enumerate().filter(|(_, n)| matches!(n.kind, Kind::State | Kind::Input)) {
            let own = g.nodes().iter().position(|own| is_same(own, node));
            given.extend(own.map(|own| same(value(n), value(own))));
        }
        let [b, own_tokens] = [0, 1].map(|dim| g.dims(tokens)[dim]);
        let row = TensorType::u32([b, own_tokens * axis.along.ranks]);
        let mut input = |own: Value| {
            let at = whole.input(&g.node(own.node).name, row.clone());
            given.push(Given { whole: at, own, placement: Placement::of_dim(&row.shape, 1) });
            at
        };
        let (tokens, targets, starts) = (input(tokens), input(targets), starts.map(input));
        let values = says(&mut whole, &all, [tokens, targets], starts)?;
        values.iter().for_each(|value| whole.output("", *value));
        axis.apply(&whole, g, &given)
    }
}
