//! Axes along which the work of a step is split over ranks.

use serde::{Deserialize, Serialize};
use std::fmt;

/// What the work of a step is split by: one direction of a mesh, along which ranks meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Axis {
    /// Rows of the batch.
    Data,
    /// Matrices, by columns or rows.
    Tensor,
    /// Layers.
    Pipeline,
    /// Experts.
    Expert,
    /// Tokens of each sequence.
    Sequence,
    /// No axis of a mesh that anybody writes: the ranks of the data axis that hold the same experts, where these are in parts.
    Replica,
}

impl Axis {
    /// How many there are.
    pub const COUNT: usize = 6;

    /// All that a mesh is written with, in that order.
    pub const ALL: [Axis; 5] = [Axis::Data, Axis::Tensor, Axis::Pipeline, Axis::Expert, Axis::Sequence];

    /// Its name in `data=4,tensor=2`.
    pub fn name(self) -> &'static str {
        match self {
            Axis::Data => "data",
            Axis::Tensor => "tensor",
            Axis::Pipeline => "pipeline",
            Axis::Expert => "expert",
            Axis::Sequence => "sequence",
            Axis::Replica => "replica",
        }
    }
}

impl fmt::Display for Axis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
