//! How a step is computed by many ranks, beside the mesh: what is sharded, what is computed again, in which formats.

use super::Mesh;
use crate::optim::Shard;
use crate::train::Recipe;
use serde::Serialize;
use std::fmt;
use std::str::FromStr;

/// What is computed again in the backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Recompute {
    /// Nothing.
    None,
    /// Half of a layer's products and all between them, for half of its activations.
    Selective,
    /// All of a layer, of which only the input is kept.
    Full,
}

impl Recompute {
    /// All of them.
    pub const ALL: [Recompute; 3] = [Recompute::None, Recompute::Selective, Recompute::Full];

    /// The share of a layer's products that is computed again, and of all else.
    pub(super) fn shares(self) -> (f64, f64) {
        match self {
            Recompute::None => (0.0, 0.0),
            Recompute::Selective => (0.5, 1.0),
            Recompute::Full => (1.0, 1.0),
        }
    }
}

impl fmt::Display for Recompute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(["none", "selective", "full"][*self as usize])
    }
}

impl FromStr for Recompute {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Recompute::ALL.into_iter().find(|recompute| recompute.to_string() == text);
        found.ok_or_else(|| format!("`{text}` is none of {}", Recompute::ALL.map(|r| r.to_string()).join(", ")))
    }
}

/// Bytes of an element of everything that ranks keep and send.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Storage {
    /// Parameters as layers read them.
    pub weights: f64,
    /// Parameters as the optimizer changes them, where those are others.
    pub masters: f64,
    /// Both moments.
    pub moments: f64,
    /// Gradients, kept and sent.
    pub gradients: f64,
    /// Activations, kept and sent.
    pub activations: f64,
}

impl Storage {
    /// Everything in f32, as Danlu keeps it today.
    pub const F32: Storage = Storage { weights: 4.0, masters: 0.0, moments: 8.0, gradients: 4.0, activations: 4.0 };
    /// Weights and activations in bf16, the optimizer's side in f32, as large models are trained elsewhere.
    pub const BF16: Storage = Storage { weights: 2.0, masters: 4.0, moments: 8.0, gradients: 4.0, activations: 2.0 };
}

impl FromStr for Storage {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "f32" => Ok(Storage::F32),
            "bf16" => Ok(Storage::BF16),
            _ => Err(format!("`{text}` is none of f32, bf16")),
        }
    }
}

/// All of it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Setup {
    /// Sequences of a step, over all ranks.
    pub batch: usize,
    /// Tokens of a sequence.
    pub seq: usize,
    /// Sequences that a rank computes at a time.
    pub micro_batch: usize,
    /// Stages of each pipeline rank (interleaved 1F1B, Narayanan et al., 2021).
    pub interleave: usize,
    /// What is shared out.
    pub shard: Shard,
    /// What is computed again.
    pub recompute: Recompute,
    /// Formats.
    pub storage: Storage,
    /// The machine's rate for products with weights.
    pub products: Rate,
}

impl Setup {
    /// The recipe of a run that does it so on a mesh, whose other keys are those of `recipe`: a micro-batch on every data rank is a
    /// batch, and a step has as many as come to its sequences.
    pub fn over(&self, recipe: &Recipe, mesh: Mesh) -> Recipe {
        let batch = mesh.data * self.micro_batch;
        Recipe {
            mesh,
            batch,
            accumulate: (self.batch / batch.max(1)) as u32,
            seq: self.seq,
            interleave: self.interleave,
            shard: self.shard,
            ..recipe.clone()
        }
    }
}

/// The class of the products with weights; attention is f16 where they are narrower.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Rate {
    /// Operands and sums in f32.
    F32,
    /// Operands in f16 or bf16.
    F16,
    /// Operands in 8 bits, which cost a pass over them.
    F8,
}

impl Rate {
    /// Its name in a machine file.
    pub fn name(self) -> &'static str {
        ["f32", "f16", "f8"][self as usize]
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Rate::F32, Rate::F16, Rate::F8];
        all.into_iter().find(|r| r.name() == text).ok_or_else(|| format!("`{text}` is none of f32, f16, f8"))
    }
}
