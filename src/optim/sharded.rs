//! An optimizer whose state is shared out over ranks (Rajbhandari et al., "ZeRO", 2020, stage 1): of every page each rank gets the
//! sum of its part of the gradients, keeps the moments of that part and updates it, and all gather what the others have updated.

use super::optimizer::{GRADIENTS, HYPER, Optimizer, Stretch, gap_constant, output_norm, sums};
use super::{JUDGE, Rule, norm};
use crate::base::TensorType;
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::nn::{PARAMETERS, ParamLayout};
use crate::ops::{AllReduce, Along, GatherState, GlobalNorm, ReduceScatter, SumSquares, SumState, gap_table};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Elements of which no two ranks may have some: those of a block of packed moments.
const BLOCK: usize = 256;

/// What of a run's state ranks of the data axis share out among them instead of each keeping it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shard {
    /// Nothing.
    #[default]
    None,
    /// The optimizer's moments.
    Optimizer,
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Shard::None),
            "optimizer" => Ok(Shard::Optimizer),
            _ => Err(format!("`{text}` is none of none, optimizer")),
        }
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Shard::None { "none" } else { "optimizer" })
    }
}

impl Optimizer {
    /// Refuses what cannot be shared out.
    ///
    /// # Errors
    /// A sentence that says what, and what to do.
    pub fn check_shard(&self, shard: Shard, adapters: bool) -> Result<()> {
        let what = match () {
            () if shard == Shard::None => return Ok(()),
            () if adapters => "lora is given, and adapters' moments take next to nothing; leave shard out",
            () if self.rule == Rule::Muon => "muon takes whole matrices for its steps; choose adamw, adamw8bit or sgd",
            () if self.ema > 0.0 => "ema is given, and every rank keeps the average; leave one of the two out",
            () => return Ok(()),
        };
        Err(Error::Invalid(format!("shard is {shard}: {what}")))
    }

    /// Bytes of a page of which so many ranks can share out whole multiples.
    pub fn unit(ranks: usize) -> u64 {
        4 * (BLOCK * ranks) as u64
    }

    /// Pages that so many ranks can share out.
    pub fn shared(layout: ParamLayout, ranks: usize) -> ParamLayout {
        layout.padded(BLOCK * ranks)
    }

    /// Whether a state of these graphs belongs to the optimizer, element by element or block by block, as parts of it can be kept.
    pub fn is_moment(state: &str) -> bool {
        let of_page = state.split_once('.').is_some_and(|(name, _)| name != PARAMETERS && name != super::EMA);
        of_page && state != JUDGE && !Optimizer::is_sum(state)
    }

    /// The graph of the update as [`Optimizer::apply`] has it, for one of the ranks of an axis, whose gradients are still to be
    /// summed. The states of moments hold its part of each page, which must be one of [`Optimizer::shared`].
    ///
    /// # Errors
    /// If a page cannot be shared out so.
    pub fn apply_shared(&self, layout: &ParamLayout, along: Along, rank: usize) -> Result<Graph> {
        let mut g = Graph::new();
        let pages = layout.states(&mut g, PARAMETERS);
        let totals = sums(&mut g);
        for sum in totals {
            g.scope("ranks.sum", |g| g.apply(SumState(along), &[sum]))?;
        }
        let gradients = layout.states(&mut g, GRADIENTS);
        let hyper = g.input(HYPER, TensorType::f32([1]));
        let (mut parts, mut squares) = (Vec::new(), Vec::new());
        for (i, (page, &flat)) in layout.pages().iter().zip(&gradients).enumerate() {
            let count = page.elements / along.ranks;
            let elements = rank * count..(rank + 1) * count;
            let part = g.scope(format!("ranks.{i}"), |g| g.apply1(ReduceScatter { along, dim: 0 }, &[flat]))?;
            let sum = g.scope(format!("optimizer.{i}"), |g| {
                let table = gap_table(&page.gaps_in(&elements)).map(|(ty, bytes)| g.constant("own_gaps", ty, bytes));
                let own = g.apply1(SumSquares, &[&[part], table.as_slice()].concat())?;
                g.apply1(AllReduce(along), &[own])
            })?;
            squares.push(sum);
            parts.push((elements, part));
        }
        let judged = g.scope("optimizer", |g| {
            let norm = g.apply1(GlobalNorm, &squares)?;
            self.judge(g, &[&[norm, hyper], totals.as_slice()].concat())
        })?;
        g.output("grad_norm", judged[0]);
        let mut added = Vec::new();
        for (i, ((page, &state), (elements, part))) in layout.pages().iter().zip(&pages).zip(parts).enumerate() {
            let kept = elements.len();
            added.push(g.scope(format!("optimizer.{i}"), |g| {
                let rest = [&[part, judged[1]], gap_constant(g, page).as_slice()].concat();
                self.plain(g, Stretch { index: i, page, state, elements, kept }, &rest)
            })?);
        }
        let own = g.scope("optimizer.update", |g| norm::one(g, added))?;
        let all = g.scope("ranks.update", |g| g.apply1(AllReduce(along), &[own]))?;
        output_norm(&mut g, &[all])?;
        for (i, &state) in pages.iter().enumerate() {
            g.scope(format!("ranks.{i}"), |g| g.apply(GatherState { along, part: rank }, &[state]))?;
        }
        g.output("loss", judged[2]);
        Ok(g)
    }
}
