//! Which meshes a recipe may have, and what goes with them.

use super::Recipe;
use crate::error::{Error, Result};
use crate::optim::{Rule, Shard, Update};
use crate::parallel::Mesh;

impl Recipe {
    /// Refuses meshes that nothing is split over, and what does not go with them.
    pub(super) fn check_mesh(&self) -> Result<()> {
        let Mesh { data, tensor, expert, .. } = self.mesh;
        if (Mesh { data, tensor, expert, ..Mesh::ONE }) != self.mesh {
            return Err(Error::Invalid(format!(
                "mesh is {}; training is split over the data, the tensor and the expert axis only, as in data={}",
                self.mesh,
                self.mesh.ranks()
            )));
        }
        if let Some(factor) = self.expert_capacity.filter(|factor| !(factor.is_finite() && *factor > 0.0)) {
            return Err(Error::Invalid(format!(
                "expert_capacity is {factor}; it must be a number above 0, such as 1.25"
            )));
        }
        let whole = match () {
            () if self.lora.is_some() => "adapters are trained over whole weights",
            () if self.model.is_some() => "a model that training begins with is read with all experts",
            () if matches!(self.optimizer, Rule::Muon | Rule::AdamW8bit) => {
                "muon and adamw8bit know nothing of experts in parts; choose adamw or sgd"
            }
            () => "",
        };
        if expert > 1 && !whole.is_empty() {
            return Err(Error::Invalid(format!("mesh is {}, and {whole}; leave the expert axis out", self.mesh)));
        }
        if self.mesh.ranks() > data && self.dpo.is_some() {
            return Err(Error::Invalid(format!(
                "mesh is {}, and preference pairs are compared by whole models; choose data={}",
                self.mesh,
                self.mesh.ranks()
            )));
        }
        if self.mesh.ranks() > 1 && self.update == Update::Layer {
            let message =
                format!("mesh is {}, and ranks add up whole gradients; leave update = \"layer\" out", self.mesh);
            return Err(Error::Invalid(message));
        }
        super::optimizer(self).check_shard(self.shard, self.lora.is_some())?;
        if tensor * expert > 1 && self.shard != Shard::None {
            return Err(Error::Invalid(format!(
                "shard is {}, and mesh is {}: ranks with parts of the parameters keep their moments whole",
                self.shard, self.mesh
            )));
        }
        if !self.batch.is_multiple_of(data) {
            return Err(Error::Invalid(format!(
                "batch is {}, which {data} ranks cannot share in equal parts; choose a multiple of {data}, or another mesh",
                self.batch
            )));
        }
        Ok(())
    }

    /// Over how many ranks states are shared out; 1 where each has all.
    pub fn shards(&self) -> usize {
        if self.shard == Shard::None { 1 } else { self.mesh.data }
    }
}
