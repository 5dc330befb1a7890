//! What is to be trained, and how: everything that decides what a step computes.

use crate::base::{Bytes, Limits};
use crate::compile::{Chooser, First, Plan};
use crate::data::longest_lengths;
use crate::error::Result;
use crate::model::ModelConfig;
use crate::nn::Lora;
use crate::run::device_bytes;
use crate::train::{Base, Fit, Plans, Recipe, plans_of_lengths};
use std::sync::Arc;

/// A model and the way it is trained.
#[derive(Debug, Clone)]
pub struct Job {
    /// The model.
    pub config: ModelConfig,
    /// Batch, sequence, precision, optimizer, adapters where not all weights are trained, and the memory that is allowed.
    pub recipe: Recipe,
    /// The model on disk that training goes on with, where it is there: adapters are of its weights, else of a model in bf16.
    pub base: Option<Arc<Base>>,
    /// Rows have at most so many lengths, whatever the recipe says, for the data have the last word: those with which a run takes
    /// most. 1: all have `seq` tokens.
    pub lengths: usize,
}

/// Numbers of parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Parameters {
    /// Of the model.
    pub model: u64,
    /// That are trained.
    pub trained: u64,
}

/// What a job computes.
#[derive(Debug)]
pub struct Planned {
    /// A step, or one of several batches of one.
    pub train: Plan,
    /// The update that follows several batches.
    pub apply: Option<Plan>,
    /// Validation.
    pub eval: Plan,
    /// How the step keeps to the memory that is allowed, where that is said.
    pub fit: Option<Fit>,
    /// Bytes that rows of other lengths take beside these.
    pub shorter: u64,
}

impl Planned {
    /// Bytes on the device in all: what a run allocates.
    pub fn bytes(&self) -> u64 {
        device_bytes([&self.train, &self.eval].into_iter().chain(&self.apply), &|_| false) + self.shorter
    }

    /// Bytes that validation, an update after several batches, and rows of other lengths add to a step.
    pub fn beside(&self) -> u64 {
        self.bytes() - device_bytes([&self.train], &|_| false)
    }

    /// As [`Fit::added`]; 0 where nothing is allowed for.
    pub fn added(&self) -> f64 {
        self.fit.as_ref().map_or(0.0, Fit::added)
    }

    /// Refuses what takes more than is allowed.
    ///
    /// # Errors
    /// As [`Fit::check`].
    pub fn check(&self) -> Result<()> {
        self.fit.as_ref().map_or(Ok(()), Fit::check)
    }
}

impl Job {
    /// The same with other sizes, and memory.
    pub fn sized(&self, batch: usize, seq: usize, memory: Option<Bytes>) -> Job {
        self.with(Recipe { batch, seq, memory, ..self.recipe.clone() })
    }

    /// The same model, trained in another way.
    pub fn with(&self, recipe: Recipe) -> Job {
        Job { recipe, ..self.clone() }
    }

    /// Counts parameters.
    ///
    /// # Errors
    /// If the adapters name no layer of the model.
    pub fn parameters(&self) -> Result<Parameters> {
        let model = self.config.parameters();
        let lora = |config| Lora::new(config, &self.config.param_specs(), Limits::default().max_buffer_bytes);
        let trained = self.recipe.lora.as_ref().map_or(Ok(model), |config| Ok(lora(config)?.layout().parameters()))?;
        Ok(Parameters { model, trained })
    }

    /// The plans of a step and of validation, within the memory that the recipe allows.
    ///
    /// # Errors
    /// If a tensor fits no buffer of an adapter with these limits, or has no kernel there.
    pub fn plans(&self, limits: &Limits, chooser: &mut dyn Chooser) -> Result<Planned> {
        let (lengths, base) = (longest_lengths(self.lengths, self.recipe.seq), self.base.as_deref());
        let mut others = plans_of_lengths(0, &self.config, &self.recipe, &lengths, base, limits, chooser)?;
        let plans = others.pop().expect("rows have a length");
        let shorter = others.iter().map(|other| other.beside(&plans)).sum();
        let Plans { train, apply, eval, fit } = plans;
        Ok(Planned { train, apply, eval, fit, shorter })
    }

    /// Bytes on the device of a step and of validation together; with memory that is allowed, activations are computed
    /// again as far as that is needed.
    ///
    /// # Errors
    /// As [`Job::plans`].
    pub fn bytes(&self, limits: &Limits) -> Result<u64> {
        Ok(self.plans(limits, &mut First)?.bytes())
    }
}
