//! Which meshes a recipe may have, and what goes with them.

use super::Recipe;
use crate::error::{Error, Result};
use crate::model::ModelConfig;
use crate::optim::{Shard, Update};
use crate::parallel::{Mesh, Pipeline, SequenceAxis};

impl Recipe {
    /// Refuses meshes that nothing is split over, and what does not go with them.
    pub(super) fn check_mesh(&self) -> Result<()> {
        let Mesh { data, pipeline, expert, .. } = self.mesh;
        if !data.is_multiple_of(expert) {
            return Err(Error::Invalid(format!(
                "mesh is {}, and experts are spread over the data axis, whose {data} ranks {expert} does not divide; choose another \
                 size for one of the two",
                self.mesh
            )));
        }
        if let Some(factor) = self.expert_capacity.filter(|factor| !(factor.is_finite() && *factor > 0.0)) {
            return Err(Error::Invalid(format!(
                "expert_capacity is {factor}; it must be a number above 0, such as 1.25"
            )));
        }
        if self.expert_capacity.is_some() && expert == 1 {
            return Err(Error::Invalid(format!(
                "expert_capacity is given, and mesh is {}: it is for ranks that hold other experts each; leave it out, or add an expert \
                 axis, as in data=2,expert=2",
                self.mesh
            )));
        }
        match self.pipeline() {
            Some(pipeline) => pipeline.check()?,
            None if self.interleave > 1 => {
                let message = "interleave gives each rank of a pipeline several stages, and mesh is";
                return Err(Error::Invalid(format!(
                    "{message} {}; leave it out, or at 1, or add pipeline=N",
                    self.mesh
                )));
            }
            None => {}
        }
        if let Some(factor) = self.expert_capacity.filter(|_| self.dpo.is_some()) {
            return Err(Error::Invalid(format!(
                "expert_capacity is {factor}, and preference pairs are compared with what the model says where nothing is dropped; \
                 leave it out"
            )));
        }
        if self.update == Update::Layer && (pipeline > 1 || self.shards() > 1) {
            let what = match self.shards() {
                1 => "a stage adds up the gradients of all micro-batches".to_string(),
                _ => format!("shard is {}, whose ranks add up whole gradients", self.shard),
            };
            return Err(Error::Invalid(format!("mesh is {}, and {what}; leave update = \"layer\" out", self.mesh)));
        }
        super::optimizer(self).check_shard(self.shard, self.lora.is_some())?;
        if pipeline > 1 && self.shard > Shard::Optimizer {
            return Err(Error::Invalid(format!(
                "shard is {}, and mesh is {}: a stage needs its parameters for every micro-batch, and adds up the gradients of all \
                 before ranks meet, so that each micro-batch would send what a step does; choose shard = \"optimizer\" (of a run \
                 that is taken up by --shard optimizer), or leave the pipeline axis out",
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

    /// Refuses a mesh over which a model, or rows of so many tokens, cannot be split. With [`Recipe::check`] this is all that a run's
    /// ranks are asked beside their memory: before they start, and by the planner of every mesh that it tries.
    ///
    /// # Errors
    /// A sentence with the axis, and what cannot be divided.
    pub fn check_split(&self, config: &ModelConfig) -> Result<()> {
        config.check_mesh(self.mesh, self.interleave)?;
        SequenceAxis::of(self.mesh, 0).map_or(Ok(()), |axis| axis.tokens(self.seq).map(drop))
    }

    /// The pipeline that a step goes through, whose micro-batches are the step's batches; none where every rank has all layers.
    pub fn pipeline(&self) -> Option<Pipeline> {
        let (ranks, batches) = (self.mesh.pipeline, self.accumulate as usize);
        (ranks > 1).then_some(Pipeline { ranks, each: self.interleave, batches })
    }

    /// How many runs of a rank's plan make a step: its batches, which on a pipeline are one run.
    pub fn runs(&self) -> u32 {
        if self.pipeline().is_some() { 1 } else { self.accumulate }
    }

    /// What it asks for that comes to nothing on its mesh.
    pub fn unheard(&self) -> Vec<String> {
        let (mut said, mesh) = (Vec::new(), self.mesh);
        if self.shard != Shard::None && self.shards() == 1 {
            said.push(format!(
                "shard is {}, and mesh is {mesh}: nobody is there to share with, and nothing is shared out; add ranks by --mesh data=N, \
                 or leave it out",
                self.shard
            ));
        }
        let alone = self.shards() == 1 && mesh.replicas() == mesh.ranks() && mesh.expert == 1;
        if let Some(folder) = self.checkpoint.neighbour_copies.as_ref().filter(|_| alone) {
            said.push(format!(
                "neighbour_copies is {}, and the first rank writes checkpoints alone: there are no parts that a neighbour could copy; \
                 add --shard, or leave it out",
                folder.display()
            ));
        }
        said
    }

    /// Over how many ranks states are shared out; 1 where each has all.
    pub fn shards(&self) -> usize {
        if self.shard == Shard::None { 1 } else { self.mesh.replicas() }
    }
}
