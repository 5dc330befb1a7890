//! An optimizer whose state is shared out over ranks (Rajbhandari et al., "ZeRO", 2020): of every page each rank gets the sum of
//! its part of the gradients, keeps the moments of that part and updates it. At stages 1 and 2 all gather then what the others
//! have updated; at stage 3 nobody keeps more parameters than its part.

use super::optimizer::{CODES, GRADIENTS, HYPER, Optimizer, SCALES, Stretch, gap_constant, output_norm, sums};
use super::{Rule, norm};
use crate::base::TensorType;
use crate::error::{Error, Result};
use crate::graph::{Graph, Slice, Value};
use crate::nn::{PARAMETERS, ParamLayout, ParamSpec};
use crate::ops::{AdamW8, AllReduce, Along, GatherState, GlobalNorm, SumSquares, SumState};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

/// Elements of which no two ranks may have some: those of a block of packed moments.
const BLOCK: usize = 256;

/// What of a run's state ranks of the data axis share out among them instead of each keeping it: each has what those before
/// have, too.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shard {
    /// Nothing.
    #[default]
    None,
    /// The optimizer's moments, and the moving average (ZeRO's stage 1).
    Optimizer,
    /// The sums of gradients (stage 2).
    Gradients,
    /// The parameters (stage 3).
    Parameters,
}

impl Shard {
    /// Every value with its name in a recipe, by its stage.
    pub const ALL: [(&'static str, Shard); 4] = [
        ("none", Shard::None),
        ("optimizer", Shard::Optimizer),
        ("gradients", Shard::Gradients),
        ("parameters", Shard::Parameters),
    ];

    /// Whether each rank has only its part of a state of the optimizer's graphs.
    pub fn divides(self, state: &str) -> bool {
        let of_page = state.rsplit_once('.').filter(|(_, page)| page.bytes().all(|b| b.is_ascii_digit()));
        match of_page {
            Some((PARAMETERS, _)) => self >= Shard::Parameters,
            Some((GRADIENTS, _)) => self >= Shard::Gradients,
            Some(_) => self >= Shard::Optimizer,
            None => false,
        }
    }
}

impl FromStr for Shard {
    type Err = String;

    /// A name, or a stage.
    fn from_str(text: &str) -> Result<Self, String> {
        let is_it = |(stage, (name, _)): &(usize, (&str, Shard))| *name == text || stage.to_string() == text;
        let found = Shard::ALL.into_iter().enumerate().find(is_it);
        found
            .map(|(_, (_, shard))| shard)
            .ok_or_else(|| format!("`{text}` is none of {}", Shard::ALL.map(|s| s.0).join(", ")))
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Shard::ALL[*self as usize].0)
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
            () => return Ok(()),
        };
        Err(Error::Invalid(format!("shard is {shard}: {what}")))
    }

    /// Pages of at most `page_bytes` that so many ranks can share out one by one, in equal parts.
    ///
    /// # Errors
    /// As [`Optimizer::layout`].
    pub fn shared_layout(&self, specs: Vec<ParamSpec>, page_bytes: u64, ranks: usize) -> Result<ParamLayout> {
        self.check_settings(&specs)?;
        let unit = BLOCK * ranks;
        let most = page_bytes / (4 * unit as u64) * 4 * unit as u64;
        Ok(ParamLayout::cut(specs, most, |spec| self.group(spec)).padded(unit))
    }

    /// Bytes of each block of 256 elements of a page in a state of the optimizer's graphs.
    pub fn block_bytes(state: &str) -> u64 {
        match state.split_once('.').map_or(state, |(name, _)| name) {
            CODES => AdamW8::codes_type(BLOCK).bytes(),
            SCALES => AdamW8::scales_type(BLOCK).bytes(),
            _ => 4 * BLOCK as u64,
        }
    }

    /// The graph of the update as [`Optimizer::apply`] has it, for one of the ranks of an axis, which share out what `shard`
    /// says; of gradients the part that is its own holds the sum over all ranks. The layout is one of
    /// [`Optimizer::shared_layout`]; states that are shared out hold the rank's part of each page.
    ///
    /// # Errors
    /// If a page cannot be shared out so.
    pub fn apply_shared(&self, layout: &ParamLayout, shard: Shard, along: Along, rank: usize) -> Result<Graph> {
        let mut g = Graph::new();
        let totals = sums(&mut g);
        for sum in totals {
            g.scope("ranks.sum", |g| g.apply(SumState { along, last: false }, &[sum]))?;
        }
        let hyper = g.input(HYPER, TensorType::f32([1]));
        let (mut owned, mut squares) = (Vec::new(), Vec::new());
        for (i, page) in layout.pages().iter().enumerate() {
            let count = page.elements / along.ranks;
            let elements = rank * count..(rank + 1) * count;
            let own = page.part(&elements);
            let state = |g: &mut Graph, name: &str| {
                let name = format!("{name}.{i}");
                let kept = if shard.divides(&name) { count } else { page.elements };
                g.state(&name, TensorType::f32([kept]))
            };
            let (params, gradients) = (state(&mut g, PARAMETERS), state(&mut g, GRADIENTS));
            g.scope(format!("optimizer.{i}"), |g| {
                let part = own_part(g, gradients, &elements)?;
                let gaps = gap_constant(g, &own.gaps);
                squares.push(g.apply1(SumSquares, &[&[part], gaps.as_slice()].concat())?);
                owned.push((elements, own, params, part, gaps));
                Ok(())
            })?;
        }
        let judged = g.scope("optimizer", |g| {
            let own = norm::one(g, squares)?;
            let all = g.apply1(AllReduce(along), &[own])?;
            let norm = g.apply1(GlobalNorm, &[all])?;
            self.judge(g, &[&[norm, hyper], totals.as_slice()].concat())
        })?;
        g.output("grad_norm", judged[0]);
        let mut added = Vec::new();
        for (i, (page, (elements, own, params, part, gaps))) in layout.pages().iter().zip(owned).enumerate() {
            added.push(g.scope(format!("optimizer.{i}"), |g| {
                let (stretch, gaps_) = match shard {
                    Shard::Parameters => (Stretch::whole(i, &own, params), gaps.clone()),
                    _ => {
                        let (elements, kept) = (elements.clone(), own.elements);
                        (Stretch { index: i, page, state: params, elements, kept }, gap_constant(g, &page.gaps))
                    }
                };
                let added = self.plain(g, stretch, &[&[part, judged[1]], gaps_.as_slice()].concat())?;
                let updated = own_part(g, params, &elements)?;
                self.average(g, i, &own, updated, &[&[judged[1]], gaps.as_slice()].concat())?;
                Ok(added)
            })?);
            if shard < Shard::Parameters {
                g.scope(format!("ranks.{i}"), |g| g.apply(GatherState { along, part: rank }, &[params]))?;
            }
        }
        let own = g.scope("optimizer.update", |g| norm::one(g, added))?;
        let all = g.scope("ranks.update", |g| g.apply1(AllReduce(along), &[own]))?;
        output_norm(&mut g, &[all])?;
        g.output("loss", judged[2]);
        Ok(g)
    }
}

/// This rank's part of a state, which may hold no more than that.
fn own_part(g: &mut Graph, state: Value, elements: &Range<usize>) -> Result<Value> {
    if g.ty(state).shape.elements() == elements.len() {
        return Ok(state);
    }
    g.apply1(Slice { start: elements.start, shape: [elements.len()].into() }, &[state])
}
