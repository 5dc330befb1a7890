//! The sequence axis of a model of the family: the graph of the loss of a rank's tokens, or of what it says of them. The model
//! itself is not asked (`parallel/sequence.rs` takes its graph apart).

use super::{Llama, Said};
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
type Says<'a> = &'a mut dyn FnMut(&mut Graph, &Params, [Value; 2], Option<Value>) -> Result<Vec<Value>>;

impl Llama {
    /// [`Llama::said`] of the tokens u32 `[B,T/N]` that a rank has of each row, of what is counted there: `params` are what
    /// `declare` declared in `g`. Of rows of several documents `starts` are those of [`SequenceAxis::cut_starts`]. Without
    /// an axis, of rows that are whole.
    ///
    /// # Errors
    /// If a shape does not fit, or an operator cannot be split.
    pub fn said_of_tokens(
        &self,
        g: &mut Graph,
        params: &Params,
        declare: &dyn Fn(&mut Graph) -> Result<Params>,
        axis: Option<SequenceAxis>,
        [tokens, targets]: [Value; 2],
        starts: Option<Value>,
    ) -> Result<Said> {
        let Some(axis) = axis else { return self.said(g, params, tokens, targets, starts) };
        let mut said = None;
        let of = [tokens, targets];
        let values =
            Llama::of_tokens(g, params, declare, axis, of, starts, &mut |g, params, [tokens, targets], starts| {
                let of_rows = said.insert(self.said(g, params, tokens, targets, starts)?);
                Ok(of_rows.values().copied().collect())
            })?;
        let mut said: Said = said.expect("said above");
        said.put(&values);
        Ok(said)
    }

    /// [`Llama::log_probs`] of these tokens, `[B,T/N]`, as of [`Llama::said_of_tokens`].
    ///
    /// # Errors
    /// If a shape does not fit, or an operator cannot be split.
    pub fn log_probs_of_tokens(
        &self,
        g: &mut Graph,
        params: &Params,
        declare: &dyn Fn(&mut Graph) -> Result<Params>,
        axis: Option<SequenceAxis>,
        [tokens, targets]: [Value; 2],
        starts: Option<Value>,
    ) -> Result<Value> {
        let Some(axis) = axis else { return self.log_probs(g, params, tokens, targets, starts) };
        let of = [tokens, targets];
        let values =
            Llama::of_tokens(g, params, declare, axis, of, starts, &mut |g, params, [tokens, targets], starts| {
                Ok(vec![self.log_probs(g, params, tokens, targets, starts)?])
            })?;
        Ok(values[0])
    }

    /// What `says` makes of rows that are whole, of a rank's tokens of them.
    fn of_tokens(
        g: &mut Graph,
        params: &Params,
        declare: &dyn Fn(&mut Graph) -> Result<Params>,
        axis: SequenceAxis,
        [tokens, targets]: [Value; 2],
        starts: Option<Value>,
        says: Says,
    ) -> Result<Vec<Value>> {
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
