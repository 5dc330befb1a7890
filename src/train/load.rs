//! How slots fall on the experts of each layer: counted on the device with every batch, summed over batches and ranks, and told
//! with the step. Legend: E experts, L layers with experts.

use super::Recipe;
use crate::base::{DType, TensorType};
use crate::error::Result;
use crate::graph::{Graph, Kind, Map, NodeId, Value, aligned};
use crate::model::{ModelConfig, Said};
use crate::ops::Accumulate;
use crate::optim::{KEEP, Tally};
use crate::run::Results;
use serde::{Deserialize, Serialize};

/// The state that counts of a step's batches are added up in. Its name is one of sums, which ranks add up.
pub(super) const LOAD: &str = "sum.experts";
/// The output of a step: the same.
const OUTPUT: &str = "experts";
/// Elements at whose multiples the state is written.
const ALIGN: usize = aligned(DType::F32);

/// Of a model with experts: how its counts lie in [`LOAD`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Load {
    layers: usize,
    experts: usize,
}

/// How evenly a step's slots fell on the experts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct ExpertLoad {
    /// Of the layer in which it is largest: slots of the busiest expert over the mean. 1 where all have equally many.
    pub busiest: f32,
    /// Experts of all layers that no slot fell on.
    pub idle: u32,
    /// Slots of all layers that found no room on the rank that holds their expert.
    pub dropped: u64,
}

impl Load {
    /// Of a model that is trained on text, if it has experts.
    pub fn of(config: &ModelConfig, recipe: &Recipe) -> Option<Load> {
        Load::of_model(config).filter(|_| recipe.dpo.is_none())
    }

    /// The same, whatever it is trained on.
    pub fn of_model(config: &ModelConfig) -> Option<Load> {
        let layers = config.layers.iter().filter(|layer| layer.sparse).count();
        config.experts.filter(|_| layers > 0).map(|experts| Load { layers, experts: experts.count })
    }

    /// Where a layer's number of dropped slots lies behind its counts, and where the next layer begins.
    fn places(&self) -> [usize; 2] {
        let dropped = self.experts.next_multiple_of(ALIGN);
        [dropped, dropped + ALIGN]
    }

    fn ty(&self) -> TensorType {
        TensorType::f32([self.layers * self.places()[1]])
    }

    /// The numbers of a batch, and where in the state each of them begins.
    fn numbers(&self, said: &Said) -> Vec<(usize, Value)> {
        let [dropped, stride] = self.places();
        let at = |values: &[Value], first: usize| {
            let places = (0..).map(move |layer| layer * stride + first);
            places.zip(values.iter().copied()).collect::<Vec<_>>()
        };
        [at(&said.counts, 0), at(&said.dropped, dropped)].concat()
    }

    /// The same of a micro-batch, whose stages are cut yet.
    pub fn tallies(&self, said: &Said) -> Vec<Tally> {
        let tally = |(start, number)| Tally { number, state: LOAD.into(), ty: self.ty(), start };
        self.numbers(said).into_iter().map(tally).collect()
    }

    /// Appends the counts of a batch: to those of the batches before it, where there are several to a step.
    pub fn gather(&self, g: &mut Graph, said: &Said) -> Result<()> {
        let of_batch = |(n, node): (usize, &crate::graph::Node)| {
            let is_keep = matches!(node.kind, Kind::Input) && node.name == KEEP;
            is_keep.then_some(Value { node: NodeId(n as u32), output: 0 })
        };
        let keep = g.nodes().iter().enumerate().find_map(of_batch);
        let state = g.state(LOAD, self.ty());
        g.scope(OUTPUT, |g| {
            let keep = keep.unwrap_or_else(|| g.constant("first", TensorType::f32([1]), vec![0; 4]));
            let mut numbers = self.numbers(said).into_iter();
            numbers.try_for_each(|(start, value)| g.apply(Accumulate { start }, &[state, value, keep]).map(|_| ()))
        })
    }

    /// Appends to the graph with which a step ends that it tells the counts, of which its ranks may first make sums.
    pub fn tell(&self, g: &mut Graph) -> Result<()> {
        let state = g.state(LOAD, self.ty());
        let told = g.scope(OUTPUT, |g| g.apply1(Map::scale(1.0), &[state]))?;
        g.output(OUTPUT, told);
        Ok(())
    }

    /// What a step told.
    pub fn read(&self, results: &Results<'_>) -> Option<ExpertLoad> {
        let mut load = ExpertLoad::default();
        let [dropped, stride] = self.places();
        for first in (0..self.layers).map(|layer| layer * stride) {
            let (mut sum, mut most) = (0.0f32, 0.0f32);
            for expert in 0..self.experts {
                let count = results.element(OUTPUT, first + expert)?;
                (sum, most) = (sum + count, most.max(count));
                load.idle += u32::from(count == 0.0);
            }
            load.busiest = load.busiest.max(most * self.experts as f32 / sum.max(1.0));
            load.dropped += results.element(OUTPUT, first + dropped)? as u64;
        }
        Some(load)
    }

    /// Of each layer the share of slots that fell on each expert, from the bytes of [`LOAD`].
    pub fn shares(&self, bytes: &[u8]) -> Vec<Vec<f32>> {
        let all: Vec<f32> = bytemuck::pod_collect_to_vec(bytes);
        let share = |layer: &[f32]| {
            let counts = &layer[..self.experts];
            let sum = counts.iter().sum::<f32>().max(1.0);
            counts.iter().map(|count| count / sum).collect()
        };
        all.chunks(self.places()[1]).map(share).collect()
    }
}
