//! Recomputation: activations that wait for their backward use are computed again shortly before it, so that the memory
//! between is free for others (Chen et al., 2016; the choice by bytes a flop is Kirisame et al.'s, 2021, made ahead).
//!
//! It works on the graph whose nodes are the plan's steps, after fusion, so a copy is the same kernel on the same bytes:
//! no number changes. It chooses greedily. Each round looks at the step where most is alive, and among what waits there
//! takes the value with most bytes a flop of its copy and of what that needs; a choice that does not lower the peak is
//! taken back. Layers are alike, so what is worth the same is taken together, as many values as leave no other peak and as the
//! budget asks for. Only what the memory plan then says, to the byte, counts as reached.

mod copies;

use super::layout::{self, Lifetimes};
use super::place;
use crate::base::Limits;
use crate::error::Result;
use crate::graph::{Graph, NodeId};
use copies::{Base, Chosen, Draft};
use serde::Serialize;
use std::collections::{BTreeSet, VecDeque};

/// What recomputation trades: memory for operations.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Trade {
    /// Bytes on the device that were allowed.
    pub budget: u64,
    /// Bytes on the device with every activation kept.
    pub before: u64,
    /// Bytes on the device with these values computed again; above the budget where that is the smallest found.
    pub reached: u64,
    /// What is computed again, in the order of choice.
    pub again: Vec<Again>,
    /// Whether no smaller budget comes to less: the budget had no say in what was tried.
    #[serde(skip)]
    pub is_least: bool,
}

/// One choice: a value that is not kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Again {
    /// Path of the node that made it.
    pub name: String,
    /// Its bytes.
    pub saved: u64,
    /// Operations of its copy, and of the copies of what that needs and nobody kept.
    pub flops: u64,
    /// Number of these copies.
    pub copies: usize,
}

impl Trade {
    /// Operations that are done twice.
    pub fn flops(&self) -> u64 {
        self.again.iter().map(|a| a.flops).sum()
    }
}

/// A graph of steps that takes at most `budget` bytes on the device, or the smallest that was found, and the trade.
/// `graph` is one of [`super::optimise`]; equal arguments give equal results.
///
/// # Errors
/// If a tensor fits no buffer of the adapter.
pub fn recompute(graph: &Graph, limits: &Limits, budget: u64) -> Result<(Graph, Trade)> {
    let bytes = |graph: &Graph| Ok(layout::layout(graph, &place::place(graph)?, limits)?.bytes());
    let before = bytes(graph)?;
    let mut trade = Trade { budget, before, reached: before, again: Vec::new(), is_least: before > budget };
    if before <= budget {
        return Ok((graph.clone(), trade));
    }
    let base = Base::new(graph, limits);
    let mut search = Search::new(&base, limits)?;
    // The smallest so far, and with how many of the choices.
    let mut best = (graph.clone(), 0);
    // Sources: what the packing adds to the bytes alive at one time is not known before.
    let beside = layout::sources(graph, limits)?.bytes();
    loop {
        let taken = search.round(budget.saturating_sub(beside))?;
        let last = taken.is_empty();
        trade.again.extend(taken.iter().map(|choice| choice.again(graph)));
        let is_near = beside + search.load.peak <= budget;
        trade.is_least &= !is_near;
        if last || is_near {
            let found = &search.draft.graph;
            let reached = bytes(found)?;
            if reached < trade.reached || reached <= budget {
                (trade.reached, best) = (reached, (found.clone(), trade.again.len()));
            }
            if last || reached <= budget {
                trade.again.truncate(best.1);
                return Ok((best.0, trade));
            }
        }
    }
}

/// What is chosen so far, and what that makes.
struct Search<'a> {
    base: &'a Base<'a>,
    limits: &'a Limits,
    chosen: Chosen,
    draft: Draft,
    load: Load,
    /// What does not lower the peak.
    useless: BTreeSet<NodeId>,
    /// What comes next, one after another.
    pending: VecDeque<Choice>,
}

impl<'a> Search<'a> {
    fn new(base: &'a Base<'a>, limits: &'a Limits) -> Result<Self> {
        let chosen = Chosen::new();
        let draft = base.draft(&chosen)?;
        let load = Load::of(base, &draft, limits)?;
        Ok(Search { base, limits, chosen, draft, load, useless: BTreeSet::new(), pending: VecDeque::new() })
    }

    /// Takes the best choices of equal worth, no more than leave the peak where it is: there each counts by itself. Of those
    /// that bring it down to `enough` the ones that are surely wanted, and in later rounds one at a time, so that what is chosen
    /// in what order does not depend on that. Gives none if nothing lowers the peak any more.
    fn round(&mut self, enough: u64) -> Result<Vec<Choice>> {
        if let Some(choice) = self.pending.pop_front() {
            let (chosen, draft, load) = self.with(std::slice::from_ref(&choice))?;
            (self.chosen, self.draft, self.load) = (chosen, draft, load);
            return Ok(vec![choice]);
        }
        let mut together = usize::MAX;
        loop {
            let mut choices = choose(self);
            let Some(first) = choices.first() else { return Ok(choices) };
            let wanted = self.load.peak.saturating_sub(enough) / first.bytes.max(1);
            choices.truncate(together);
            let (mut chosen, mut draft, mut load) = self.with(&choices)?;
            let peak = |draft: &Draft, load: &Load| draft.at[load.node.0 as usize];
            if choices.len() > 1 && peak(&draft, &load) != peak(&self.draft, &self.load) {
                together = choices.len() / 2;
            } else if (load.peak, load.steps) >= (self.load.peak, self.load.steps) {
                self.useless.extend(choices.iter().map(|choice| choice.node));
            } else {
                if load.peak <= enough && choices.len() > 1 {
                    self.pending = choices.split_off(choices.len().min((wanted as usize).max(1))).into();
                    (chosen, draft, load) = self.with(&choices)?;
                }
                (self.chosen, self.draft, self.load) = (chosen, draft, load);
                return Ok(choices);
            }
        }
    }

    /// What there would be with these choices, too.
    fn with(&self, choices: &[Choice]) -> Result<(Chosen, Draft, Load)> {
        let mut chosen = self.chosen.clone();
        chosen.extend(choices.iter().flat_map(|choice| choice.nodes.iter().copied()));
        let draft = self.base.draft(&chosen)?;
        let load = Load::of(self.base, &draft, self.limits)?;
        Ok((chosen, draft, load))
    }
}

/// How many bytes of what the steps make are alive at the worst time.
struct Load {
    peak: u64,
    /// Steps with that many.
    steps: usize,
    /// The first of them.
    node: NodeId,
}

impl Load {
    fn of(base: &Base, draft: &Draft, limits: &Limits) -> Result<Load> {
        let places = place::place(&draft.graph)?;
        let steps = layout::order(&draft.graph, &places);
        let Lifetimes { blocks, .. } = layout::lifetimes(&draft.graph, &places, &steps, &|id| draft.scratch(base, id))?;
        let mut change = vec![0i64; steps.len() + 2];
        for span in blocks.iter().flat_map(|block| &block.spans) {
            let bytes = span.aligned(limits.binding_alignment);
            let bytes = (bytes.end - bytes.start) as i64;
            change[span.first] += bytes;
            change[span.last + 1] -= bytes;
        }
        let mut alive = 0;
        let alive = change.iter().take(steps.len()).map(|c| {
            alive += c;
            alive as u64
        });
        let mut load = Load { peak: 0, steps: 0, node: NodeId(0) };
        for (bytes, &node) in alive.zip(&steps) {
            if bytes > load.peak {
                load = Load { peak: bytes, steps: 0, node };
            }
            load.steps += usize::from(bytes == load.peak);
        }
        Ok(load)
    }
}

/// A value that could be computed again, with everything that its copy needs.
struct Choice {
    node: NodeId,
    bytes: u64,
    flops: u64,
    traffic: u64,
    /// Nodes to copy, each with the last use of its original.
    nodes: Vec<(NodeId, u32)>,
}

impl Choice {
    /// More bytes a flop; of equals the one with less traffic, and then the earlier one, whose copy is wanted last.
    fn beats(&self, other: &Choice) -> bool {
        let rate = |a: &Choice, b: &Choice| u128::from(a.bytes) * u128::from(b.flops.max(1));
        let (mine, theirs) = (rate(self, other), rate(other, self));
        mine > theirs || mine == theirs && (self.traffic, self.node) < (other.traffic, other.node)
    }

    fn is_alike(&self, other: &Choice) -> bool {
        (self.bytes, self.flops, self.traffic) == (other.bytes, other.flops, other.traffic)
    }

    fn again(&self, graph: &Graph) -> Again {
        let name = graph.node(self.node).name.clone();
        Again { name, saved: self.bytes, flops: self.flops, copies: self.nodes.len() }
    }
}

/// The best of what is alive at the peak and idle around it, and others of the same worth whose copies need none of its copies:
/// the earlier one first.
fn choose(search: &Search) -> Vec<Choice> {
    let Search { base, draft, chosen, load, useless, .. } = search;
    let peak = draft.at[load.node.0 as usize];
    let uses = draft.uses(base);
    let mut choices: Vec<Choice> = Vec::new();
    for node in (0..peak).map(NodeId) {
        let used = &uses[node.0 as usize];
        if used.is_empty() || chosen.contains_key(&node) || useless.contains(&node) {
            continue;
        }
        // Used before and after the peak, but not at it.
        let (Some(&(next, _)), false) =
            (used.iter().find(|(at, _)| *at > peak), used.iter().any(|(at, _)| *at == peak))
        else {
            continue;
        };
        let before = used.iter().rev().find(|(at, _)| *at < peak).map_or(node.0, |(at, _)| *at);
        let mut nodes = vec![(node, before)];
        if !base.same_epoch(node, used[used.len() - 1].0) || !base.closure(node, next, &uses, chosen, &mut nodes) {
            continue;
        }
        let late: BTreeSet<u32> = used.iter().filter(|(at, _)| *at > peak).map(|(_, output)| *output).collect();
        let bytes = late.iter().map(|&output| base.graph.node(node).outputs[output as usize].bytes()).sum();
        let (mut flops, mut traffic) = (0, 0);
        for (node, _) in &nodes {
            let cost = base.cost(*node);
            (flops, traffic) = (flops + cost.flops, traffic + cost.bytes);
        }
        let choice = Choice { node, bytes, flops, traffic, nodes };
        // Only the best so far are kept.
        match choices.first() {
            Some(best) if choice.is_alike(best) => {
                let taken = |(node, _): &(NodeId, u32)| choices.iter().any(|c| c.nodes.iter().any(|(n, _)| n == node));
                if !choice.nodes.iter().any(taken) {
                    choices.push(choice);
                }
            }
            Some(best) if !choice.beats(best) => {}
            _ => choices = vec![choice],
        }
    }
    choices
}
