//! The expert axis: the graph of a loss for one device → that of one rank, which has some of every layer's experts and rows of
//! its own. Slots go to the ranks that hold their experts and their results come home, by an exchange each way
//! (Lepikhin et al., "GShard", 2020, §3; with the axis within that of the data: Ma et al., "BaGuaLu", 2022, §4). What rows of
//! the whole batch must say together is summed (docs/decisions/0013-experts-over-ranks.md).

use super::tensor::begin;
use super::{Given, Placement};
use crate::base::Axis;
use crate::error::{Error, Result};
use crate::graph::rewrite::Rewrite;
use crate::graph::{Graph, Kind, Map, NodeId, Op, Value};
use crate::ops::{AllToAll, Along, BatchMean, ExpertLinear, ExpertOrder, SlotPlaces, TakeRows};
use std::any::Any;
use std::collections::HashMap;
use std::sync::Arc;

/// One rank among those that share a batch, and every E of them the experts.
#[derive(Debug, Clone, Copy)]
pub struct ExpertAxis {
    /// How many ranks share the batch, rows and tokens of these.
    pub data: usize,
    /// How many of those that have other rows, one after another, share the experts: E.
    pub experts: usize,
    /// How many slots a rank has room for with another, as a multiple of their mean number, R·k/E; without it as many as there
    /// can be, so that none is dropped.
    pub capacity: Option<f64>,
}

/// What a rank computes of a loss.
#[derive(Debug)]
pub struct OfRank {
    /// The outputs, in order.
    pub outputs: Vec<Value>,
    /// Of each layer with experts in parts, in order, how many slots of this rank's rows were dropped: f32 `[1]`.
    pub dropped: Vec<Value>,
}

impl ExpertAxis {
    /// How many slots of R rows with k choices each a rank has room for with another, of which each has so many experts.
    pub fn room(&self, rows: usize, choices: usize, experts: usize) -> usize {
        let most = rows * choices.min(experts);
        let mean = (rows * choices) as f64 / self.experts as f64;
        self.capacity.map_or(most, |factor| ((factor * mean).ceil() as usize).clamp(1, most))
    }

    /// Appends to `g` what a rank computes of the outputs of `whole`, given its parameters and inputs: experts, in parts of the
    /// first dim of each of their parameters, and all else as it is.
    ///
    /// # Errors
    /// If something reads experts that has no rule for parts of them.
    pub fn apply(&self, whole: &Graph, g: &mut Graph, given: &[Given]) -> Result<OfRank> {
        let (rewrite, wanted) = begin(whole, g, given);
        let mut pass = Pass {
            axis: *self,
            rewrite,
            parts: given.iter().filter(|g| g.placement != Placement::Same).map(|g| (g.whole, g.placement)).collect(),
            away: HashMap::new(),
            exchanges: HashMap::new(),
            sent: HashMap::new(),
            dropped: Vec::new(),
        };
        let done = wanted.into_iter().try_for_each(|id| pass.node(id));
        let outputs = done.and_then(|()| whole.outputs().iter().map(|(_, value)| pass.home(*value)).collect());
        let dropped = std::mem::take(&mut pass.dropped);
        *g = pass.rewrite.new;
        Ok(OfRank { outputs: outputs?, dropped })
    }
}

/// What ranks exchange of the slots of one router's choices.
#[derive(Debug, Clone, Copy)]
struct Exchange {
    /// `[R,k]`
    places: Value,
    /// `[E·C]`, of slots and of rows.
    slots: Value,
    rows: Value,
    /// Of the slots that came here: the number of its expert, `[E·C,1]`, and what sorts them by that.
    ids: Value,
    order: Value,
    starts: Value,
}

struct Pass<'a> {
    axis: ExpertAxis,
    rewrite: Rewrite<'a>,
    /// Parameters of which a rank has a part.
    parts: HashMap<Value, Placement>,
    /// Values of slots, `[E·C,1,W]`, that lie where their experts are; by which ids.
    away: HashMap<Value, Value>,
    /// By ids of the whole graph.
    exchanges: HashMap<Value, Exchange>,
    /// What was sent, by the value and the ids.
    sent: HashMap<(Value, Value), Value>,
    dropped: Vec<Value>,
}

impl Pass<'_> {
    fn along(&self) -> Along {
        Along { axis: Axis::Expert, ranks: self.axis.experts }
    }

    fn refuse(&self, id: NodeId, why: &str) -> Error {
        let node = self.rewrite.old.node(id);
        let (name, op, ranks) = (&node.name, node.op_name(), self.axis.experts);
        Error::Graph(format!("{op} at {name} cannot be split over {ranks} ranks along expert: {why}"))
    }

    fn node(&mut self, id: NodeId) -> Result<()> {
        let node = self.rewrite.old.node(id);
        let Kind::Op(op) = &node.kind else { return self.rewrite.copy(id) };
        let op = op.clone();
        let any: &dyn Any = op.as_ref();
        if any.is::<BatchMean>() {
            return self.mean(id);
        }
        if node.inputs.iter().any(|value| self.parts.contains_key(value)) {
            return match any.downcast_ref::<ExpertLinear>() {
                Some(ExpertLinear { back: false }) => self.product(id, op),
                _ => Err(self.refuse(id, "it has no rule for experts in parts")),
            };
        }
        if any.is::<Map>() && node.inputs.iter().any(|value| self.away.contains_key(value)) {
            return self.elementwise(id, op);
        }
        for &input in &node.inputs {
            self.home(input)?;
        }
        self.rewrite.copy(id)
    }

    /// Sums of this rank's rows become those of all.
    fn mean(&mut self, id: NodeId) -> Result<()> {
        let along = Along { axis: Axis::Data, ranks: self.axis.data };
        let node = self.rewrite.old.node(id);
        let value = self.home(node.inputs[0])?;
        let mean = match along.ranks {
            1 => value,
            _ => self.rewrite.new.scope(node.name.clone(), |g| BatchMean::over(g, along, value))?,
        };
        self.rewrite.set(id, &[mean]);
        Ok(())
    }

    /// Every slot's row by its expert's matrix, where that lies.
    fn product(&mut self, id: NodeId, op: Arc<dyn Op>) -> Result<()> {
        let node = self.rewrite.old.node(id);
        let [x, weight, ids, ..] = node.inputs[..] else { unreachable!("checked when the node was made") };
        if self.parts[&weight] != (Placement::Split { outer: 1 }) {
            return Err(self.refuse(id, "experts are whole on their ranks"));
        }
        let exchange = self.exchange(id, ids)?;
        let x = match self.away.get(&x) {
            Some(by) if *by == ids => self.rewrite.value(x),
            _ => self.send(id, x, ids)?,
        };
        let inputs = [x, self.rewrite.value(weight), exchange.ids, exchange.order, exchange.starts];
        let y = self.rewrite.new.apply_named(op, &inputs, node.name.clone())?;
        self.stay(id, y[0], ids);
        Ok(())
    }

    /// Says that this is a value of slots that lie where their experts are.
    fn stay(&mut self, id: NodeId, value: Value, ids: Value) {
        self.rewrite.set(id, &[value]);
        self.away.insert(Value { node: id, output: 0 }, ids);
    }

    fn elementwise(&mut self, id: NodeId, op: Arc<dyn Op>) -> Result<()> {
        let node = self.rewrite.old.node(id);
        let of: Vec<Option<Value>> = node.inputs.iter().map(|value| self.away.get(value).copied()).collect();
        let Some(ids) = of[0].filter(|_| of.iter().all(|other| *other == of[0])) else {
            return Err(self.refuse(id, "its inputs lie on different ranks"));
        };
        let y = self.rewrite.new.apply_named(op, &self.rewrite.inputs(node), node.name.clone())?;
        self.stay(id, y[0], ids);
        Ok(())
    }

    /// Which slots go where, made once for all that read the same ids.
    fn exchange(&mut self, id: NodeId, ids: Value) -> Result<Exchange> {
        if let Some(exchange) = self.exchanges.get(&ids) {
            return Ok(*exchange);
        }
        let weight = self.rewrite.value(self.rewrite.old.node(id).inputs[1]);
        let old = &self.rewrite.old.ty(ids).shape;
        let (rows, choices, own) = (old.rows(), old.last(), self.home(ids)?);
        let along = self.along();
        let g = &mut self.rewrite.new;
        let experts = g.dims(weight)[0];
        let capacity = self.axis.room(rows, choices, experts);
        let scope = scope(&self.rewrite.old.node(id).name);
        let exchange = g.scope(format!("{scope}.exchange"), |g| {
            let sorted = g.apply(ExpertOrder { experts: along.ranks, together: experts }, &[own])?;
            let op = SlotPlaces { ranks: along.ranks, experts, capacity };
            let places = g.apply(op, &[own, sorted[0], sorted[1]])?;
            let theirs = g.apply1(AllToAll(along), &[places[3]])?;
            let ids = g.reshape(theirs, [along.ranks * capacity, 1])?;
            let by_expert = g.apply(ExpertOrder { experts, together: 1 }, &[ids])?;
            let dropped = g.sum_to(places[4], &crate::base::TensorType::f32([1]))?;
            let exchange = Exchange {
                places: places[0],
                slots: places[1],
                rows: places[2],
                ids,
                order: by_expert[0],
                starts: by_expert[1],
            };
            Result::Ok((exchange, dropped))
        });
        let (exchange, dropped) = exchange?;
        self.exchanges.insert(ids, exchange);
        self.dropped.push(dropped);
        Ok(exchange)
    }

    /// x `[R,W]` or `[R,k,W]` to the slots that came here, `[E·C,W]`.
    fn send(&mut self, id: NodeId, x: Value, ids: Value) -> Result<Value> {
        if let Some(&sent) = self.sent.get(&(x, ids)) {
            return Ok(sent);
        }
        let Exchange { places, slots, rows, .. } = self.exchanges[&ids];
        let (own, along) = (self.home(x)?, self.along());
        let scope = scope(&self.rewrite.old.node(id).name);
        let sent = self.rewrite.new.scope(format!("{scope}.exchange"), |g| {
            let shape = g.ty(own).shape.clone();
            // A row is taken for each of its slots, or each slot has its own.
            let mine = match shape.rank() {
                2 => g.apply1(TakeRows, &[own, rows, places])?,
                _ => {
                    let own = g.reshape(own, [shape.rows(), shape.last()])?;
                    let give = g.reshape(places, [shape.rows()])?;
                    g.apply1(TakeRows, &[own, slots, give])?
                }
            };
            g.apply1(AllToAll(along), &[mine])
        })?;
        self.sent.insert((x, ids), sent);
        Ok(sent)
    }

    /// A value as this rank's rows have it: what lies elsewhere comes home, `[R,k,W]`, zeros for slots that were dropped.
    fn home(&mut self, value: Value) -> Result<Value> {
        let own = self.rewrite.value(value);
        let Some(ids) = self.away.remove(&value) else { return Ok(own) };
        let Exchange { places, slots, .. } = self.exchanges[&ids];
        let along = self.along();
        let scope = scope(&self.rewrite.old.node(value.node).name);
        let home = self.rewrite.new.scope(format!("{scope}.home"), |g| {
            let shape = g.ty(own).shape.clone();
            let theirs = g.reshape(own, [shape.rows(), shape.last()])?;
            let mine = g.apply1(AllToAll(along), &[theirs])?;
            g.apply1(TakeRows, &[mine, places, slots])
        })?;
        self.rewrite.put(value, home);
        Ok(home)
    }
}

/// The path of a node's layer: `layers.0.mlp` of `layers.0.mlp.gate.expert_linear`.
fn scope(name: &str) -> String {
    name.rsplitn(3, '.').nth(2).unwrap_or(name).to_string()
}
