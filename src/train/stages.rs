//! The graphs of a rank that has some of the layers: cut out of those for one device.

use crate::base::Axis;
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
        outputs: impl Iterator<Item = Value>,
        pipeline: Pipeline,
    ) -> Result<(Staged, Vec<String>)> {
        outputs.for_each(|value| whole.output("loss", value));
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
        let told = micro.told.iter().map(|(_, value)| *value);
        let outputs = both.into_iter().chain(micro.tallies.iter().map(|tally| tally.number)).chain(told);
        let (staged, names) = self.cut(whole, params, outputs, self.pipeline)?;
        optimizer.pipelined_step(staged, self.own, layout, &names, self.rank, micro)
    }

    /// What is told of one batch, f32, by the last rank to all others.
    pub(super) fn validation(&self, whole: Graph, params: &Params, told: &[(&str, Value)]) -> Result<Graph> {
        let outputs = told.iter().map(|(_, value)| *value);
        let (mut staged, names) = self.cut(whole, params, outputs, Pipeline { batches: 1, ..self.pipeline })?;
        let (mut g, wanted) = (Graph::new(), staged.outputs.clone());
        let mut made = vec![None; wanted.len()];
        let own: HashMap<String, Value> = self.own.declare(&mut g)?.named().into_iter().collect();
        let find_own = |n: usize| {
            let lost = || Error::Graph(format!("this rank has no {}", names[n]));
            own.get(&names[n]).copied().ok_or_else(lost)
        };
        staged.unroll(&mut g, self.rank, &wanted, &find_own, &mut |_, _, find| {
            made.iter_mut().zip(&wanted).for_each(|(made, value)| *made = made.or(find(*value)));
            Ok(())
        })?;
        let along = Along { axis: Axis::Pipeline, ranks: self.pipeline.ranks };
        for ((&(name, _), value), made) in told.iter().zip(wanted).zip(made) {
            let ty = staged.graph.ty(value).clone();
            let own = made.unwrap_or_else(|| g.constant(name, ty.clone(), vec![0; ty.bytes() as usize]));
            let all = g.apply1(AllReduce(along), &[own])?;
            g.output(name, all);
        }
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
