//! The graphs of training for one device → those of a rank of the data axis.

use super::Recipe;
use super::load::{LOAD, Load};
use super::stages::sum_stages;
use crate::base::Axis;
use crate::error::Result;
use crate::graph::Graph;
use crate::nn::{Page, ParamLayout};
use crate::ops::Along;
use crate::optim::{Optimizer, Shard};
use crate::parallel::{Stay, Sums, gather_ahead, meet_gradients, sum_states};

/// One rank of the axis.
pub(super) struct DataAxis<'a> {
    layout: &'a ParamLayout,
    along: Along,
    part: usize,
    shard: Shard,
    /// Whether a step's micro-batches are one plan: then gradients are whole at its end, and meet before the update.
    is_staged: bool,
    /// Who holds the same experts, where not all do.
    replicas: Option<Along>,
    /// Whether a moving average stands in the parameters' place in validation.
    averages: bool,
}

impl<'a> DataAxis<'a> {
    /// Of a rank of the recipe's mesh that trains these pages.
    pub(super) fn of(recipe: &Recipe, rank: usize, layout: &'a ParamLayout) -> DataAxis<'a> {
        let (data, ranks) = (Axis::Data, recipe.mesh.replicas());
        let shard = if ranks > 1 { recipe.shard } else { Shard::None };
        let part = recipe.mesh.replica(rank);
        let axis = Axis::Replica;
        let replicas = (recipe.mesh.expert > 1).then(|| Along { axis, ranks: recipe.mesh.size(axis) });
        let is_staged = recipe.mesh.pipeline > 1;
        DataAxis {
            layout,
            along: Along { axis: data, ranks },
            part,
            shard,
            is_staged,
            replicas,
            averages: recipe.ema > 0.0,
        }
    }

    /// Whether there are others.
    pub(super) fn is_split(&self) -> bool {
        self.along.ranks > 1
    }

    /// Whether a state is of experts of which not all ranks have a term.
    fn is_of_others(&self, state: &str) -> bool {
        self.replicas.is_some() && self.layout.page_of(state).is_some_and(Page::is_of_experts)
    }

    /// A batch, whose gradients meet those of other ranks.
    pub(super) fn batch(&self, graph: &Graph) -> Result<Graph> {
        let sums = match self.shard {
            _ if !self.is_split() || self.is_staged => return Ok(graph.clone()),
            Shard::None => Sums::Whole,
            Shard::Optimizer => Sums::Part(self.part),
            Shard::Gradients | Shard::Parameters => Sums::Kept,
        };
        let is_ours = |s: &str| Optimizer::is_gradient(s) && !self.is_of_others(s);
        let graph = meet_gradients(graph, self.along, sums, &is_ours)?;
        match self.replicas {
            Some(along) if along.ranks > 1 => {
                meet_gradients(&graph, along, sums, &|s| Optimizer::is_gradient(s) && self.is_of_others(s))
            }
            _ => Ok(graph),
        }
    }

    /// The update that follows batches, which tells how experts were loaded, where there are some.
    pub(super) fn apply(&self, optimizer: &Optimizer, load: Option<Load>) -> Result<Graph> {
        let tell = |graph: &mut Graph| load.map_or(Ok(()), |load| load.tell(graph));
        if self.shard != Shard::None {
            let mut graph = optimizer.apply_shared(self.layout, self.shard, self.along, self.part)?;
            tell(&mut graph)?;
            return sum_states(&graph, self.along, &|state| state == LOAD);
        }
        let mut graph = optimizer.apply(self.layout)?;
        tell(&mut graph)?;
        let graph = sum_stages(&graph, self.layout)?;
        if !self.is_split() {
            return Ok(graph);
        }
        // Gradients that met in the batch are sums already.
        let left = |state: &str| Optimizer::is_sum(state) && (self.is_staged || !Optimizer::is_gradient(state));
        let graph = sum_states(&graph, self.along, &|s| left(s) && !self.is_of_others(s))?;
        match self.replicas {
            Some(along) if along.ranks > 1 => sum_states(&graph, along, &|s| left(s) && self.is_of_others(s)),
            _ => Ok(graph),
        }
    }

    /// A batch's steps, which gather the parameters that ranks share out.
    pub(super) fn gathered(&self, steps: &Graph) -> Result<Graph> {
        if self.shard == Shard::Parameters { self.gather(steps) } else { Ok(steps.clone()) }
    }

    /// The same of validation, which may see parameters and averages.
    pub(super) fn validation(&self, steps: &Graph) -> Result<Graph> {
        let averages = self.averages && self.shard != Shard::None;
        if averages { self.gather(steps) } else { self.gathered(steps) }
    }

    fn gather(&self, steps: &Graph) -> Result<Graph> {
        let has_matrices = |page: &Page| page.groups.iter().any(|(group, _)| group.decays());
        gather_ahead(steps, self.along, &|state| {
            let page: usize = state.strip_prefix(crate::nn::PARAMETERS)?.strip_prefix('.')?.parse().ok()?;
            Some(if has_matrices(self.layout.pages().get(page)?) { Stay::Visit } else { Stay::Run })
        })
    }

    /// Bytes of parameters that are on no rank when a batch needs most: all but its parts, the two largest neighbours, and what
    /// stays.
    pub(super) fn absent(&self) -> u64 {
        if self.shard != Shard::Parameters {
            return 0;
        }
        let pages = self.layout.pages();
        let others = |page: &Page| 4 * (page.elements - page.elements / self.along.ranks) as u64;
        let there = pages.windows(2).map(|two| two.iter().map(|p| 4 * p.elements as u64).sum::<u64>()).max();
        pages.iter().map(others).sum::<u64>().saturating_sub(there.unwrap_or(0))
    }
}
