//! An optimizer whose state is shared out over ranks (Rajbhandari et al., "ZeRO", 2020): of every page each rank gets the sum of
//! its part of the gradients, keeps the moments of that part and updates it. At stages 1 and 2 all gather then what the others
//! have updated; at stage 3 nobody keeps more parameters than its part.

use super::Rule;
use super::optimizer::{CODES, GRADIENTS, Optimizer, SCALES};
use crate::error::{Error, Result};
use crate::graph::{Graph, Slice, Value};
use crate::nn::{PARAMETERS, ParamLayout};
use crate::ops::AdamW8;
use crate::parallel::Mesh;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

/// Elements of which no two ranks may have some: those of a block of packed moments.
const BLOCK: usize = 256;

/// What of a run's state ranks that hold the same parameters share out among them instead of each keeping it: each has what those
/// before have, too.
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

    /// The same parameters in pages of at most `page_bytes` that this rank shares out one by one with those of its mesh that hold
    /// the same of them, in equal parts.
    pub fn shared(&self, layout: ParamLayout, page_bytes: u64, shard: Shard, mesh: Mesh, rank: usize) -> ParamLayout {
        // What those share who hold the same experts, who are fewer, has parts of more blocks.
        let unit = BLOCK * mesh.replicas();
        let most = page_bytes / (4 * unit as u64) * 4 * unit as u64;
        let layout = layout.cut(most, |spec| self.group(spec)).padded(unit);
        layout.shared_by(mesh, rank, shard == Shard::Parameters)
    }

    /// Bytes of each block of 256 elements of a page in a state of the optimizer's graphs.
    pub fn block_bytes(state: &str) -> u64 {
        match state.split_once('.').map_or(state, |(name, _)| name) {
            CODES => AdamW8::codes_type(BLOCK).bytes(),
            SCALES => AdamW8::scales_type(BLOCK).bytes(),
            _ => 4 * BLOCK as u64,
        }
    }
}

/// This rank's part of a state, which may hold no more than that.
pub(super) fn own_part(g: &mut Graph, state: Value, elements: &Range<usize>) -> Result<Value> {
    if g.ty(state).shape.elements() == elements.len() {
        return Ok(state);
    }
    g.apply1(Slice { start: elements.start, shape: [elements.len()].into() }, &[state])
}
