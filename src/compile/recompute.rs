//! Recomputation: activations that wait for their backward use are computed again shortly before it, so that the memory
//! between is free for others (Chen et al., 2016; the choice by bytes a flop is Kirisame et al.'s, 2021, made ahead).
//!
//! It works on the graph whose nodes are the plan's steps, after fusion, so a copy is the same kernel on the same bytes:
//! no number changes. It chooses greedily. Each round looks at the step where most is alive, and among what waits there
//! takes the value with most bytes a flop of its copy and of what that needs; a choice that does not lower the peak is
//! taken back. Only what the memory plan then says, to the byte, counts as reached.

mod copies;

use super::layout::{self, Lifetimes};
use super::place;
use crate::base::Limits;
use crate::error::Result;
use crate::graph::{Graph, NodeId};
use copies::{Base, Chosen, Draft};
use serde::Serialize;
use std::collections::BTreeSet;

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
    let base = Base::new(graph);
    let bytes = |graph: &Graph| Ok(layout::layout(graph, &place::place(graph)?, limits)?.bytes());
    let before = bytes(graph)?;
    let mut trade = Trade { budget, before, reached: before, again: Vec::new() };
    let mut chosen = Chosen::new();
    let mut draft = base.draft(&chosen)?;
    if before <= budget {
        return Ok((graph.clone(), trade));
    }
    // The smallest so far, and with how many of the choices.
    let mut best = (graph.clone(), 0);
    let mut load = Load::of(&draft, limits)?;
    // Sources, and what the packing adds to the bytes alive at one time, as a first guess.
    let beside = layout::sources(graph, limits)?.bytes();
    let mut useless = BTreeSet::new();
    loop {
        let choice = choose(&base, &draft, &chosen, &load, &useless);
        let last = choice.is_none();
        if let Some(choice) = choice {
            let mut next = chosen.clone();
            next.extend(choice.nodes.iter().copied());
            let tried = base.draft(&next)?;
            let tried_load = Load::of(&tried, limits)?;
            if (tried_load.peak, tried_load.steps) >= (load.peak, load.steps) {
                useless.insert(choice.node);
                continue;
            }
            let name = graph.node(choice.node).name.clone();
            let (saved, flops, copies) = (choice.bytes, choice.flops, choice.nodes.len());
            trade.again.push(Again { name, saved, flops, copies });
            (chosen, draft, load) = (next, tried, tried_load);
        }
        if last || beside + load.peak <= budget {
            let reached = bytes(&draft.graph)?;
            if reached < trade.reached || reached <= budget {
                (trade.reached, best) = (reached, (draft.graph.clone(), trade.again.len()));
            }
            if last || reached <= budget {
                trade.again.truncate(best.1);
                return Ok((best.0, trade));
            }
        }
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
    fn of(draft: &Draft, limits: &Limits) -> Result<Load> {
        let places = place::place(&draft.graph)?;
        let steps = layout::order(&draft.graph, &places);
        let Lifetimes { blocks, .. } = layout::lifetimes(&draft.graph, &places, &steps, limits)?;
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
}

/// The best of what is alive at the peak and idle around it.
fn choose(base: &Base, draft: &Draft, chosen: &Chosen, load: &Load, useless: &BTreeSet<NodeId>) -> Option<Choice> {
    let peak = draft.at[load.node.0 as usize];
    let uses = draft.uses(base);
    let mut best: Option<Choice> = None;
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
        if best.as_ref().is_none_or(|b| choice.beats(b)) {
            best = Some(choice);
        }
    }
    best
}
