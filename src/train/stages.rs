//! The graphs of a rank that has some of the layers: cut out of those for one device.

use crate::base::{Axis, TensorType};
use crate::error::{Error, Result};
use crate::graph::{Graph, Value};
use crate::model::{self, Llama};
use crate::nn::{DROPOUT, Declare, ParamLayout, Params};
use crate::ops::{AllReduce, Along};
use crate::optim::{MicroBatch, Optimizer};
use crate::parallel::{Pipeline, Staged, Tie, Weight, sum_states, sum_ties};
use std::collections::{BTreeMap, HashMap};

/// A model on its way to stages.
pub(super) struct Stages<'a> {
    /// What is declared of all layers, in parts along the other axes; nothing is computed in it.
    pub(super) layers: Box<dyn Declare>,
    own: &'a dyn Declare,
    of: model::Stages,
    pipeline: Pipeline,
    /// This one on the pipeline axis.
    rank: usize,
}

impl<'a> Stages<'a> {
    /// Of a rank that has these parameters; nothing where it has those of all layers.
    pub(super) fn of(model: &Llama, own: &'a dyn Declare, pipeline: Pipeline) -> Result<Option<Stages<'a>>> {
        let others: Vec<Axis> = Axis::ALL.into_iter().filter(|axis| *axis != Axis::Pipeline).collect();
        let Some((parts, layers)) = own.parts().zip(own.only(&others)) else { return Ok(None) };
        let (of, rank) = (model.config().stages(pipeline.stages())?, parts.mesh.place(parts.rank, Axis::Pipeline));
        Ok(Some(Stages { layers, own, of, pipeline, rank }))
    }

    /// The stages, and the names of what they have.
    fn cut(
        &self,
        mut whole: Graph,
        params: &Params,
        outputs: &[Value],
        pipeline: Pipeline,
    ) -> Result<(Staged, Vec<String>)> {
        outputs.iter().for_each(|value| whole.output("loss", *value));
        let named: BTreeMap<String, Value> = params.named().into_iter().filter(|(name, _)| name != DROPOUT).collect();
        let weight = |(name, value): (&String, &Value)| Weight {
            value: *value,
            stages: self.of.of(name),
            is_trained: params.views.contains(value),
        };
        let weights: Vec<Weight> = named.iter().map(weight).collect();
        Ok((Staged::cut(&whole, &weights, pipeline)?, named.into_keys().collect()))
    }

    /// All micro-batches of a step, which trains the parameters of `layout`.
    pub(super) fn step(
        &self,
        whole: Graph,
        params: &Params,
        both: [Value; 2],
        optimizer: &Optimizer,
        layout: &ParamLayout,
        micro: &MicroBatch,
    ) -> Result<Graph> {
        let outputs: Vec<Value> = both.into_iter().chain(micro.tallies.iter().map(|tally| tally.number)).collect();
        let (staged, names) = self.cut(whole, params, &outputs, self.pipeline)?;
        optimizer.pipelined_step(staged, self.own, layout, &names, self.rank, micro)
    }

    /// The loss of one batch, which the last rank tells all others.
    pub(super) fn validation(&self, whole: Graph, params: &Params, loss: Value) -> Result<Graph> {
        let (mut staged, names) = self.cut(whole, params, &[loss], Pipeline { batches: 1, ..self.pipeline })?;
        let (mut g, mut told, loss) = (Graph::new(), None, staged.outputs[0]);
        let own: HashMap<String, Value> = self.own.declare(&mut g)?.named().into_iter().collect();
        let find_own = |n: usize| {
            let lost = || Error::Graph(format!("this rank has no {}", names[n]));
            own.get(&names[n]).copied().ok_or_else(lost)
        };
        staged.unroll(&mut g, self.rank, &[loss], &find_own, &mut |_, _, find| {
            told = told.or(find(loss));
            Ok(())
        })?;
        let zero = TensorType::f32([1]);
        let own = told.unwrap_or_else(|| g.constant("loss", zero, 0.0f32.to_le_bytes().to_vec()));
        let loss = g.apply1(AllReduce(Along { axis: Axis::Pipeline, ranks: self.pipeline.ranks }), &[own])?;
        g.output("loss", loss);
        Ok(g)
    }
}

/// The graph of an update, which first sums what ranks of the pipeline have a term each of: losses, and the gradients of
/// parameters that two stages have.
pub(super) fn sum_stages(graph: &Graph, layout: &ParamLayout) -> Result<Graph> {
    let Some(parts) = layout.parts().filter(|parts| parts.mesh.pipeline > 1) else { return Ok(graph.clone()) };
    let along = Along { axis: Axis::Pipeline, ranks: parts.mesh.pipeline };
    let tie = |spec: &crate::nn::ParamSpec| {
        let (page, start) = layout.place(&spec.name)?;
        let ranks = parts.held(&spec.name).stages.clone().try_into().ok()?;
        Some(Tie { state: Optimizer::gradient_state(page), start, elements: spec.shape.elements(), ranks })
    };
    let ties: Vec<Tie> = layout.specs().iter().filter_map(tie).collect();
    let graph = sum_ties(graph, along, parts.mesh.place(parts.rank, Axis::Pipeline), &ties)?;
    sum_states(&graph, along, &Optimizer::is_total)
}
