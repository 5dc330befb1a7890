//! The graphs of a rank that has some of the layers: cut out of those for one device.

use crate::base::{Axis, TensorType};
use crate::error::Result;
use crate::graph::{Graph, Value};
use crate::model::Llama;
use crate::nn::{Declare, ParamLayout, Params, Parts};
use crate::ops::{AllReduce, Along};
use crate::optim::{MicroBatch, Optimizer};
use crate::parallel::{Pipeline, Staged, Tie, Weight, sum_states, sum_ties};

/// A model on its way to stages.
pub(super) struct Stages {
    /// The parameters of all layers, in parts along the other axes; nothing is computed in them.
    pub(super) layers: ParamLayout,
    names: Vec<String>,
    /// Of each parameter.
    stages: Vec<Vec<usize>>,
    pipeline: Pipeline,
    /// This one on the pipeline axis.
    rank: usize,
}

impl Stages {
    /// Of a rank that has these parameters; nothing where it has those of all layers.
    pub(super) fn of(model: &Llama, own: &dyn Declare, pipeline: Pipeline) -> Result<Option<Stages>> {
        let Some(parts) = own.parts() else { return Ok(None) };
        let stages = model.config().stages(pipeline.stages())?;
        let layers = layers(parts);
        let names: Vec<String> = layers.specs().iter().map(|spec| spec.name.clone()).collect();
        let stages = names.iter().map(|name| stages.of(name)).collect();
        Ok(Some(Stages { layers, names, stages, pipeline, rank: parts.mesh.place(parts.rank, Axis::Pipeline) }))
    }

    fn cut(&self, mut whole: Graph, params: &Params, outputs: &[Value], pipeline: Pipeline) -> Result<Staged> {
        outputs.iter().for_each(|value| whole.output("loss", *value));
        let weight = |(value, stages): (&Value, &Vec<usize>)| Weight { value: *value, stages: stages.clone() };
        let weights: Vec<Weight> = params.views.iter().zip(&self.stages).map(weight).collect();
        Staged::cut(&whole, &weights, pipeline)
    }

    /// All micro-batches of a step.
    pub(super) fn step(
        &self,
        whole: Graph,
        params: &Params,
        both: [Value; 2],
        optimizer: &Optimizer,
        own: &ParamLayout,
        micro: &MicroBatch,
    ) -> Result<Graph> {
        let outputs: Vec<Value> = both.into_iter().chain(micro.tallies.iter().map(|tally| tally.number)).collect();
        let staged = self.cut(whole, params, &outputs, self.pipeline)?;
        optimizer.pipelined_step(staged, own, &self.names, self.rank, micro)
    }

    /// The loss of one batch, which the last rank tells all others.
    pub(super) fn validation(&self, whole: Graph, params: &Params, loss: Value, own: &dyn Declare) -> Result<Graph> {
        let mut staged = self.cut(whole, params, &[loss], Pipeline { batches: 1, ..self.pipeline })?;
        let (mut g, mut told, loss) = (Graph::new(), None, staged.outputs[0]);
        let own = own.declare(&mut g)?;
        staged.unroll(&mut g, self.rank, &[loss], &|n| own.get(&self.names[n]), &mut |_, _, find| {
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

/// The parameters of all layers as a rank would have them that had them all.
fn layers(parts: &Parts) -> ParamLayout {
    let others: Vec<Axis> = Axis::ALL.into_iter().filter(|axis| *axis != Axis::Pipeline).collect();
    let parts = parts.only(&others);
    ParamLayout::new(parts.specs(), u64::from(u32::MAX)).of_parts(parts)
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
