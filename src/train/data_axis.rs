//! The graphs of training for one device → those of a rank of the data axis.

use super::Recipe;
use super::load::Load;
use super::stages::sum_stages;
use crate::error::Result;
use crate::graph::Graph;
use crate::nn::{PARAMETERS, Page, ParamLayout};
use crate::ops::Along;
use crate::optim::{Optimizer, Shard};
use crate::parallel::{Peers, Stay, Sums, gather_ahead, meet_gradients, meet_tied, scatter_states, sum_states};

/// What is done with those of a graph's states of which so many have a term.
type Meet<'a> = dyn Fn(&Graph, Peers, &dyn Fn(&str) -> bool) -> Result<Graph> + 'a;

/// One rank of the axis.
pub(super) struct DataAxis<'a> {
    layout: &'a ParamLayout,
    /// Who has other rows, or other tokens of them.
    all: Peers,
    /// Who of them holds the same experts, where not all do.
    experts: Option<Peers>,
    shard: Shard,
    /// Whether a step's micro-batches are one plan: then gradients are whole at its end, and meet before the update.
    is_staged: bool,
    /// Whether a step has one batch: what it adds to sums of gradients it adds to nothing.
    is_one_batch: bool,
    /// Whether a moving average stands in the parameters' place in validation.
    averages: bool,
}

impl<'a> DataAxis<'a> {
    /// Of a rank of the recipe's mesh that trains these pages.
    pub(super) fn of(recipe: &Recipe, rank: usize, layout: &'a ParamLayout) -> DataAxis<'a> {
        let mesh = recipe.mesh;
        let [all, experts] = [false, true].map(|experts| mesh.peers(rank, experts));
        DataAxis {
            layout,
            all,
            experts: (mesh.expert > 1).then_some(experts),
            shard: if recipe.shards() > 1 { recipe.shard } else { Shard::None },
            is_staged: mesh.pipeline > 1,
            is_one_batch: recipe.accumulate == 1,
            averages: recipe.ema > 0.0,
        }
    }

    /// Whether there are others.
    pub(super) fn is_split(&self) -> bool {
        self.all.along.ranks > 1
    }

    /// A graph in which something is done with all gradients, or sums of these, along the axis on which who has a term lies.
    fn meet(&self, graph: &Graph, meet: &Meet) -> Result<Graph> {
        let is_of_others =
            |state: &str| self.experts.is_some() && self.layout.page_of(state).is_some_and(Page::is_of_experts);
        let graph = meet(graph, self.all, &|state| !is_of_others(state))?;
        match self.experts {
            Some(experts) if experts.along.ranks > 1 => meet(&graph, experts, &is_of_others),
            _ => Ok(graph),
        }
    }

    /// A batch, whose gradients meet those of other ranks.
    pub(super) fn batch(&self, graph: &Graph) -> Result<Graph> {
        if !self.is_split() || self.is_staged {
            return Ok(graph.clone());
        }
        // A table that is embedding and output is no expert's.
        let is_tied = self.shard == Shard::None && self.is_one_batch;
        let tied = if is_tied { Some(meet_tied(graph, self.all.along, &Optimizer::is_gradient)?) } else { None };
        self.meet(tied.as_ref().unwrap_or(graph), &|graph, peers, is_theirs| {
            let sums = match self.shard {
                Shard::None => Sums::Whole,
                Shard::Optimizer => Sums::Part(peers.place),
                Shard::Gradients | Shard::Parameters => Sums::Kept,
            };
            meet_gradients(graph, peers.along, sums, &|s| Optimizer::is_gradient(s) && is_theirs(s))
        })
    }

    /// The update that follows batches, which tells how experts were loaded, where there are some.
    pub(super) fn apply(&self, optimizer: &Optimizer, load: Option<Load>) -> Result<Graph> {
        let mut graph = optimizer.apply_shared(self.layout, self.shard)?;
        let is_shared = self.shard != Shard::None;
        if self.is_staged && is_shared {
            // After what two stages have a term each of, whose parts are other ones on each, is the sum on both.
            graph = self.meet(&graph, &|graph, peers, is_theirs| {
                scatter_states(graph, peers, &|s| Optimizer::is_gradient(s) && is_theirs(s))
            })?;
        }
        // Before stages are summed: what is told are the sums of all of them.
        load.map_or(Ok(()), |load| load.tell(&mut graph))?;
        graph = sum_stages(&graph, self.layout)?;
        if !self.is_split() {
            return Ok(graph);
        }
        // Gradients that met in the batch, or were scattered, are sums already.
        let left = |s: &str| Optimizer::is_sum(s) && (self.is_staged && !is_shared || !Optimizer::is_gradient(s));
        self.meet(&graph, &|graph, peers, is_theirs| sum_states(graph, peers.along, &|s| left(s) && is_theirs(s)))
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
        gather_ahead(steps, &|state| {
            let page: usize = state.strip_prefix(PARAMETERS)?.strip_prefix('.')?.parse().ok()?;
            self.stay(page)
        })
    }

    /// Who shares a page out, and how long it stays once it is gathered; nothing of one that nobody shares.
    fn stay(&self, page: usize) -> Option<(Along, Stay)> {
        let groups = &self.layout.pages().get(page)?.groups;
        let stay = if groups.iter().any(|(group, _)| group.decays()) { Stay::Visit } else { Stay::Run };
        Some((self.layout.sharers_of(page).along, stay)).filter(|(along, _)| along.ranks > 1)
    }

    /// Bytes of parameters that are not on this rank whenever a batch needs most: there are its parts of all pages, all of those
    /// that stay, and two of those that come and go, which are no larger than the two largest.
    pub(super) fn absent(&self) -> u64 {
        if self.shard != Shard::Parameters {
            return 0;
        }
        let (mut all, mut there, mut visits) = (0, 0, Vec::new());
        for (i, page) in self.layout.pages().iter().enumerate() {
            let bytes = 4 * page.elements as u64;
            let Some((along, stay)) = self.stay(i) else { continue };
            (all, there) = (all + bytes, there + bytes / along.ranks as u64);
            match stay {
                Stay::Visit => visits.push(bytes),
                Stay::Run => there += bytes,
            }
        }
        visits.sort_unstable();
        there += visits.iter().rev().take(2).sum::<u64>();
        all.saturating_sub(there)
    }
}
