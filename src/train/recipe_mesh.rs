//! Which meshes a recipe may have, and what goes with them.

use super::Recipe;
use crate::error::{Error, Result};
use crate::optim::{Rule, Shard, Update};
use crate::parallel::Mesh;

impl Recipe {
    /// Refuses meshes that nothing is split over, and what does not go with them.
    pub(super) fn check_mesh(&self) -> Result<()> {
        let Mesh { data, tensor, sequence, .. } = self.mesh;
        if (Mesh { data, tensor, sequence, ..Mesh::ONE }) != self.mesh {
            return Err(Error::Invalid(format!(
                "mesh is {}; training is split over the data, the tensor and the sequence axis only, as in data={}",
                self.mesh,
                self.mesh.ranks()
            )));
        }
        let whole = match () {
            () if self.lora.is_some() => "adapters are trained over whole weights",
            () if self.model.is_some() => "a model that training begins with is read whole",
            () if matches!(self.optimizer, Rule::Muon | Rule::AdamW8bit) => {
                "muon takes whole matrices, and adamw8bit blocks of them; choose adamw or sgd"
            }
            () => "",
        };
        if tensor > 1 && !whole.is_empty() {
            return Err(Error::Invalid(format!("mesh is {}, and {whole}; leave the tensor axis out", self.mesh)));
        }
        if self.mesh.ranks() > 1 && self.dpo.is_some() {
            return Err(Error::Invalid(format!(
                "mesh is {}, and preference pairs are trained on by one rank",
                self.mesh
            )));
        }
        if self.mesh.ranks() > 1 && self.update == Update::Layer {
            let message =
                format!("mesh is {}, and ranks add up whole gradients; leave update = \"layer\" out", self.mesh);
            return Err(Error::Invalid(message));
        }
        super::optimizer(self).check_shard(self.shard, self.lora.is_some())?;
        if tensor > 1 && self.shard != Shard::None {
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

    /// Over how many ranks moments are shared out; 1 where each has all.
    pub fn shards(&self) -> usize {
        if self.shard == Shard::None { 1 } else { self.mesh.replicas() }
    }
}
