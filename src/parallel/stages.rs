//! The pipeline axis: the graph of a loss for one device → stages, and of those one rank's graph of a whole step, in which
//! micro-batches take turns (parallel/schedule.rs). What a node reads says to which stage it belongs; a node of the backward
//! pass belongs where the node is whose gradient it computes. Whatever one stage makes and another rank's reads is sent; nothing
//! else is (docs/decisions/0012-stages.md).

use super::schedule::{Pass, Pipeline, Turn};
use crate::base::Axis;
use crate::error::{Error, Result};
use crate::graph::rewrite::ids;
use crate::graph::{Graph, Kind, NodeId, Value, traced_gradients};
use crate::ops::{Along, Receive, Send};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

/// A parameter of the graph for one device.
#[derive(Debug, Clone)]
pub struct Weight {
    /// It.
    pub value: Value,
    /// The stages that have it, ascending: where a value is made of it and of the tokens, that is not before the first of them.
    pub stages: Vec<usize>,
    /// Whether it is trained: what stays as it is has no gradient.
    pub is_trained: bool,
}

/// A parameter as the ranks of its stages read it: each of these has a gradient of its own, if it is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reader {
    /// Which of the parameters.
    pub weight: usize,
    /// Which rank of the axis.
    pub rank: usize,
    /// It, in the graph of all stages.
    pub value: Value,
    /// Whether it is trained.
    pub is_trained: bool,
}

/// Hears of a turn when it is over, with a way to find values that were made in it.
pub type After<'a> = dyn FnMut(&mut Graph, Turn, &dyn Fn(Value) -> Option<Value>) -> Result<()> + 'a;

/// What a rank does: a pass over one of its stages.
type Part = (usize, Pass);

/// All stages of one micro-batch, in one graph.
#[derive(Debug, Clone)]
pub struct Staged {
    /// The graph; what reads nothing of a stage may be added to it, and then is the last stage's.
    pub graph: Graph,
    /// Its outputs, in the order of those of the graph that was cut.
    pub outputs: Vec<Value>,
    pipeline: Pipeline,
    /// By node; those that came later are not there.
    parts: Vec<Option<Part>>,
    readers: Vec<Reader>,
}

/// What a value depends on.
#[derive(Debug, Clone, Copy, Default)]
struct Nature {
    /// Where it is made; none where any stage can make it for itself.
    stage: Option<usize>,
    /// The latest stage of parameters that it is made of.
    weights: Option<usize>,
    inputs: bool,
}

impl Staged {
    /// Cuts the forward pass of a graph, from its outputs back to these parameters.
    ///
    /// # Errors
    /// If a stage reads a parameter that it does not have.
    pub fn cut(whole: &Graph, weights: &[Weight], pipeline: Pipeline) -> Result<Staged> {
        let by_value: HashMap<Value, usize> = weights.iter().enumerate().map(|(i, w)| (w.value, i)).collect();
        let wanted = reach(whole, whole.outputs().iter().map(|(_, v)| *v), |v| by_value.contains_key(&v));
        let mut natures: HashMap<NodeId, Nature> = HashMap::new();
        let mut cut = Cut { whole, weights, by_value, natures: HashMap::new(), made: HashMap::new(), pipeline };
        for id in ids(whole).filter(|id| wanted.contains(id)) {
            let node = whole.node(id);
            let inputs = || node.inputs.iter().map(|v| cut.nature(&natures, *v));
            let mut nature = Nature {
                stage: inputs().filter_map(|n| n.stage).max(),
                weights: inputs().filter_map(|n| n.weights).max(),
                inputs: matches!(node.kind, Kind::Input) || inputs().any(|n| n.inputs),
            };
            if nature.stage.is_some() || (nature.inputs && nature.weights.is_some()) {
                nature.stage = nature.stage.max(nature.weights);
            }
            natures.insert(id, nature);
        }
        cut.natures = natures;
        let mut staged =
            Staged { graph: Graph::new(), outputs: Vec::new(), pipeline, parts: Vec::new(), readers: Vec::new() };
        for id in ids(whole).filter(|id| wanted.contains(id)) {
            if let Some(stage) = cut.natures[&id].stage {
                cut.node(&mut staged, id, stage)?;
            }
        }
        for (_, value) in whole.outputs() {
            // What is of no stage is told by the last.
            let stage = cut.natures.get(&value.node).and_then(|n| n.stage).unwrap_or(pipeline.stages() - 1);
            let output = cut.value(&mut staged, *value, stage)?;
            staged.outputs.push(output);
        }
        Ok(staged)
    }

    /// The parameters as they are read.
    pub fn readers(&self) -> &[Reader] {
        &self.readers
    }

    /// Appends the backward pass: the gradient towards each reader of what is trained, of a loss whose own gradient is `scale`.
    ///
    /// # Errors
    /// If the loss does not depend on one of them.
    pub fn gradients(&mut self, loss: Value, scale: Value) -> Result<Vec<(Reader, Value)>> {
        let trained: Vec<Reader> = self.readers.iter().filter(|r| r.is_trained).copied().collect();
        let wrt: Vec<Value> = trained.iter().map(|r| r.value).collect();
        self.settle();
        let (gradients, trace) = traced_gradients(&mut self.graph, loss, scale, &wrt)?;
        self.parts.resize(self.graph.nodes().len(), None);
        for (made, of) in trace {
            let stage = self.parts[of.0 as usize].map(|(stage, _)| stage);
            let is_source = self.graph.node(made).op().is_none();
            self.parts[made.0 as usize] = stage.filter(|_| !is_source).map(|stage| (stage, Pass::Backward));
        }
        Ok(trained.into_iter().zip(gradients).collect())
    }

    /// Says of nodes that others have added where they belong: after all that they read, or on the last stage.
    fn settle(&mut self) {
        for i in self.parts.len()..self.graph.nodes().len() {
            let node = &self.graph.nodes()[i];
            let part =
                node.inputs.iter().filter_map(|v| self.parts[v.node.0 as usize]).map(|(stage, pass)| (pass, stage));
            let (pass, stage) = part.max().unwrap_or((Pass::Forward, self.pipeline.stages() - 1));
            self.parts.push(node.op().map(|_| (stage, pass)));
        }
    }

    /// Appends to `g` all that one rank computes of a step so that these values are made, for every micro-batch. Inputs are those
    /// of the graph, `<name>.<micro-batch>` each. `own` gives this rank's parameters; `after` hears of every turn, where values are
    /// to be found that were made in it.
    ///
    /// # Errors
    /// If something cannot be sent; those of `after`.
    pub fn unroll(
        &mut self,
        g: &mut Graph,
        rank: usize,
        wanted: &[Value],
        own: &dyn Fn(usize) -> Result<Value>,
        after: &mut After<'_>,
    ) -> Result<()> {
        self.settle();
        let plan = Traffic::of(self, wanted);
        let mut unroll = Unroll { staged: self, rank, made: HashMap::new(), shared: HashMap::new() };
        for reader in self.readers.iter().filter(|r| r.rank == rank) {
            unroll.shared.insert(reader.value, own(reader.weight)?);
        }
        let mut mail: Vec<VecDeque<(Value, usize)>> =
            (0..self.pipeline.ranks).map(|from| plan.mail(self, from, rank)).collect();
        for turn in plan.turns(self, rank) {
            let nodes = plan.nodes.get(&(turn.stage, turn.pass)).map_or(&[][..], Vec::as_slice);
            for &id in nodes {
                for &input in &self.graph.node(id).inputs {
                    unroll.fetch(g, input, turn.batch, &mut mail)?;
                }
            }
            nodes.iter().try_for_each(|&id| unroll.node(g, id, turn.batch))?;
            for (value, to) in plan.sends(turn) {
                to.iter().try_for_each(|&to| unroll.send(g, *value, turn.batch, to))?;
            }
            let here = |value: Value| self.parts[value.node.0 as usize] == Some((turn.stage, turn.pass));
            after(g, turn, &|value| here(value).then(|| unroll.value(value, turn.batch)))?;
        }
        Ok(())
    }
}

/// The nodes behind these values, up to those that `stop` names.
fn reach(graph: &Graph, from: impl Iterator<Item = Value>, stop: impl Fn(Value) -> bool) -> HashSet<NodeId> {
    let mut wanted: HashSet<NodeId> = from.filter(|v| !stop(*v)).map(|v| v.node).collect();
    for id in ids(graph).rev() {
        if wanted.contains(&id) {
            wanted.extend(graph.node(id).inputs.iter().filter(|v| !stop(**v)).map(|v| v.node));
        }
    }
    wanted
}

/// The graph for one device on its way to stages.
struct Cut<'a> {
    whole: &'a Graph,
    weights: &'a [Weight],
    by_value: HashMap<Value, usize>,
    natures: HashMap<NodeId, Nature>,
    /// By value and stage; sources but parameters have none, and parameters have their rank.
    made: HashMap<(Value, Option<usize>), Value>,
    pipeline: Pipeline,
}

impl Cut<'_> {
    fn nature(&self, natures: &HashMap<NodeId, Nature>, value: Value) -> Nature {
        match self.by_value.get(&value) {
            Some(&weight) => Nature { weights: self.weights[weight].stages.first().copied(), ..Nature::default() },
            None => natures[&value.node],
        }
    }

    /// A value as a node of this stage reads it: what is of no stage is made there.
    fn value(&mut self, staged: &mut Staged, value: Value, stage: usize) -> Result<Value> {
        if let Some(&weight) = self.by_value.get(&value) {
            return self.reader(staged, weight, stage);
        }
        let node = self.whole.node(value.node);
        let at = match self.natures[&value.node].stage {
            Some(own) => Some(own),
            None => node.op().map(|_| stage),
        };
        if let Some(&made) = self.made.get(&(value, at)) {
            return Ok(made);
        }
        self.node(staged, value.node, stage)?;
        Ok(self.made[&(value, at)])
    }

    fn reader(&mut self, staged: &mut Staged, weight: usize, stage: usize) -> Result<Value> {
        let (Weight { value, stages, is_trained }, rank) = (&self.weights[weight], self.pipeline.rank_of(stage));
        let name = &self.whole.node(value.node).name;
        if !stages.iter().any(|&has| self.pipeline.rank_of(has) == rank) {
            return Err(Error::Graph(format!("stage {stage} reads {name}, which it does not have")));
        }
        if let Some(&made) = self.made.get(&(*value, Some(rank))) {
            return Ok(made);
        }
        let made = staged.graph.input(&format!("{name} of rank {rank}"), self.whole.ty(*value).clone());
        staged.parts.push(None);
        staged.readers.push(Reader { weight, rank, value: made, is_trained: *is_trained });
        self.made.insert((*value, Some(rank)), made);
        Ok(made)
    }

    /// Carries a node over to a stage, or a source to all.
    fn node(&mut self, staged: &mut Staged, id: NodeId, stage: usize) -> Result<()> {
        let node = self.whole.node(id);
        let (at, outputs) = match node.op() {
            Some(op) => {
                let inputs = node.inputs.iter().map(|v| self.value(staged, *v, stage)).collect::<Result<Vec<_>>>()?;
                (Some(stage), staged.graph.apply_named(op.clone(), &inputs, node.name.clone())?)
            }
            None => (None, vec![staged.graph.push(node.clone())]),
        };
        staged.parts.push(at.map(|stage| (stage, Pass::Forward)));
        for (output, made) in outputs.into_iter().enumerate() {
            self.made.insert((Value { node: id, output: output as u32 }, at), made);
        }
        Ok(())
    }
}

/// Who does what, and who sends what to whom.
struct Traffic {
    nodes: BTreeMap<Part, Vec<NodeId>>,
    sends: BTreeMap<Part, Vec<(Value, BTreeSet<usize>)>>,
}

impl Traffic {
    fn of(staged: &Staged, wanted: &[Value]) -> Traffic {
        let graph = &staged.graph;
        let reached = reach(graph, wanted.iter().copied(), |_| false);
        let mut nodes: BTreeMap<Part, Vec<NodeId>> = BTreeMap::new();
        let mut readers: BTreeMap<Value, BTreeSet<usize>> = BTreeMap::new();
        for id in ids(graph).filter(|id| reached.contains(id)) {
            let Some(part) = staged.parts[id.0 as usize] else { continue };
            nodes.entry(part).or_default().push(id);
            let rank = staged.pipeline.rank_of(part.0);
            for &input in &graph.node(id).inputs {
                let maker = staged.parts[input.node.0 as usize].map(|(stage, _)| staged.pipeline.rank_of(stage));
                if maker.is_some_and(|maker| maker != rank) {
                    readers.entry(input).or_default().insert(rank);
                }
            }
        }
        let mut sends: BTreeMap<Part, Vec<(Value, BTreeSet<usize>)>> = BTreeMap::new();
        for (value, to) in readers {
            let part = staged.parts[value.node.0 as usize].expect("a stage made it");
            sends.entry(part).or_default().push((value, to));
        }
        Traffic { nodes, sends }
    }

    fn turns(&self, staged: &Staged, rank: usize) -> Vec<Turn> {
        let back = self.nodes.keys().any(|(_, pass)| *pass == Pass::Backward);
        if back { staged.pipeline.order(rank) } else { staged.pipeline.forward(rank) }
    }

    /// What a turn sends when it is over, and to whom.
    fn sends(&self, turn: Turn) -> &[(Value, BTreeSet<usize>)] {
        self.sends.get(&(turn.stage, turn.pass)).map_or(&[], Vec::as_slice)
    }

    /// All that a rank sends another, in order.
    fn mail(&self, staged: &Staged, from: usize, to: usize) -> VecDeque<(Value, usize)> {
        let mut mail = VecDeque::new();
        for turn in self.turns(staged, from) {
            let theirs = self.sends(turn).iter().filter(|(_, ranks)| ranks.contains(&to));
            mail.extend(theirs.map(|(value, _)| (*value, turn.batch)));
        }
        mail
    }
}

/// A rank's graph of a step on its way.
struct Unroll<'a> {
    staged: &'a Staged,
    rank: usize,
    /// By micro-batch.
    made: HashMap<(Value, usize), Value>,
    /// What is the same for all of them.
    shared: HashMap<Value, Value>,
}

impl Unroll<'_> {
    fn along(&self) -> Along {
        Along { axis: Axis::Pipeline, ranks: self.staged.pipeline.ranks }
    }

    /// Sees to it that a value is here: a source is declared; what another rank makes is taken from it, and before that all that
    /// it sent earlier, for what is sent arrives in order.
    fn fetch(
        &mut self,
        g: &mut Graph,
        value: Value,
        batch: usize,
        mail: &mut [VecDeque<(Value, usize)>],
    ) -> Result<()> {
        let node = self.staged.graph.node(value.node);
        match (self.staged.parts[value.node.0 as usize], &node.kind) {
            (Some((stage, _)), _) => {
                let from = self.staged.pipeline.rank_of(stage);
                while from != self.rank && !self.made.contains_key(&(value, batch)) {
                    let lost = || Error::Graph(format!("{} of micro-batch {batch} is not sent", node.name));
                    let (sent, of) = mail[from].pop_front().ok_or_else(lost)?;
                    let op = Receive { along: self.along(), from, ty: self.staged.graph.ty(sent).clone() };
                    let name = format!("batch.{of}.{}.receive", self.staged.graph.node(sent.node).name);
                    let received = g.apply_named(Arc::new(op), &[], name)?[0];
                    self.made.insert((sent, of), received);
                }
            }
            (None, Kind::Input) if !self.shared.contains_key(&value) => {
                let declare = || g.input(&format!("{}.{batch}", node.name), node.outputs[0].clone());
                self.made.entry((value, batch)).or_insert_with(declare);
            }
            (None, Kind::State) => {
                let state = g.state(&node.name, node.outputs[0].clone());
                self.shared.insert(value, state);
            }
            (None, Kind::Constant(bytes)) if !self.shared.contains_key(&value) => {
                let made = g.constant(&node.name, node.outputs[0].clone(), bytes.to_vec());
                self.shared.insert(value, made);
            }
            (None, _) => {}
        }
        Ok(())
    }

    fn value(&self, value: Value, batch: usize) -> Value {
        self.shared.get(&value).copied().unwrap_or_else(|| self.made[&(value, batch)])
    }

    fn node(&mut self, g: &mut Graph, id: NodeId, batch: usize) -> Result<()> {
        let node = self.staged.graph.node(id);
        let inputs: Vec<Value> = node.inputs.iter().map(|v| self.value(*v, batch)).collect();
        let op = node.op().expect("a source is of no stage").clone();
        let outputs = g.apply_named(op, &inputs, format!("batch.{batch}.{}", node.name))?;
        for (output, made) in outputs.into_iter().enumerate() {
            self.made.insert((Value { node: id, output: output as u32 }, batch), made);
        }
        Ok(())
    }

    fn send(&self, g: &mut Graph, value: Value, batch: usize, to: usize) -> Result<()> {
        let name = format!("batch.{batch}.{}.send", self.staged.graph.node(value.node).name);
        g.apply_named(Arc::new(Send { along: self.along(), to }), &[self.value(value, batch)], name).map(|_| ())
    }
}
