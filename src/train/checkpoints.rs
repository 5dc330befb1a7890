//! `[checkpoint]` of a recipe, and what a checkpoint says of its run.

use super::{Prepared, Recipe};
use crate::base::AdapterId;
use crate::data::LoaderState;
use crate::data::hash::hash;
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::run::{Choice, build};
use crate::store::snapshot::Snapshot;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// When checkpoints are taken, and which of them stay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CheckpointOptions {
    /// Steps between checkpoints; as often as validation if not given; 0 for none.
    pub every: Option<u64>,
    /// How many of the last stay.
    pub keep: usize,
    /// Whether the one with the lowest validation loss stays besides.
    pub best: bool,
    /// Where ranks that write parts keep a copy of a neighbour's, each machine in a folder of its own; nowhere if not given.
    pub neighbour_copies: Option<PathBuf>,
}

impl Default for CheckpointOptions {
    fn default() -> Self {
        CheckpointOptions { every: None, keep: 2, best: true, neighbour_copies: None }
    }
}

/// What the host knows of a run besides the device's states; both together are all of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// Steps done.
    pub step: u64,
    /// Tokens computed in them, those that fill up rows among them.
    #[serde(default)]
    pub tokens: u64,
    /// Where the data stand.
    pub loader: LoaderState,
    /// What the schedule's rate is multiplied by: below 1 after divergences.
    pub rate_scale: f64,
    /// How often training went back to a checkpoint because it diverged.
    pub rollbacks: u32,
    /// Steps in a row, up to the last one, that were left out.
    pub skipped_in_row: u64,
    /// The lowest validation loss, and after which step.
    pub best: Option<(f64, u64)>,
    /// Validations since then.
    pub since_best: u64,
    /// Loss, smoothed over some fifty steps: the sum of losses, each weighing 0.98 of the one after it, and of weights.
    pub smoothed: (f64, f64),
    /// Seconds since the first step, pauses between processes left out.
    pub seconds: f64,
}

impl Default for Progress {
    fn default() -> Self {
        Progress {
            step: 0,
            tokens: 0,
            loader: LoaderState::default(),
            rate_scale: 1.0,
            rollbacks: 0,
            skipped_in_row: 0,
            best: None,
            since_best: 0,
            smoothed: (0.0, 0.0),
            seconds: 0.0,
        }
    }
}

impl Progress {
    /// Takes a step's loss into the smoothed one, and gives that (Kingma and Ba, 2015, §3, for the start's correction).
    pub fn smooth(&mut self, loss: f64) -> f64 {
        let (sum, weight) = self.smoothed;
        // That of a step that was left out, and was no number, says nothing of the others.
        if loss.is_finite() {
            self.smoothed = (0.98 * sum + loss, 0.98 * weight + 1.0);
        }
        if self.smoothed.1 > 0.0 { self.smoothed.0 / self.smoothed.1 } else { loss }
    }
}

/// What a run works on, by its content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Content {
    /// Hash of the tokenizer.
    pub tokenizer: String,
    /// Hash of all tokens.
    pub tokens: String,
    /// Hash of the model that training began with, where it was not a fresh one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Hash of the model's configuration. Earlier versions did not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<String>,
}

impl Content {
    /// Of what was prepared.
    pub fn of(prepared: &Prepared) -> Content {
        let hex = |hash: u64| format!("{hash:016x}");
        Content {
            tokenizer: hex(prepared.tokenizer.content_hash()),
            tokens: hex(prepared.loader.checksum()),
            model: prepared.base.as_ref().map(|base| hex(base.hash)),
            config: Some(hex(hash(prepared.config.to_json().as_bytes()))),
        }
    }

    /// Whether both are of the same, as far as both say it.
    pub fn is_of(&self, other: &Content) -> bool {
        let config = self.config.as_ref().zip(other.config.as_ref()).is_none_or(|(own, other)| own == other);
        config && (&self.tokenizer, &self.tokens, &self.model) == (&other.tokenizer, &other.tokens, &other.model)
    }
}

/// The part of a checkpoint's manifest that is training's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct About {
    /// This program's version, and a hash of its shaders.
    pub build: String,
    /// On what it ran.
    pub adapter: AdapterId,
    /// The recipe, with what it leaves open filled in.
    #[serde(deserialize_with = "Recipe::of_run")]
    pub recipe: Recipe,
    /// What it is trained on.
    pub content: Content,
    /// The kernels.
    pub kernels: Vec<Choice>,
    /// What the host knows.
    pub progress: Progress,
}

impl About {
    /// Of a run that begins, or goes on.
    pub fn new(gpu: &Gpu, recipe: &Recipe, prepared: &Prepared, kernels: &[Choice]) -> About {
        About {
            build: build(),
            adapter: gpu.report().id(),
            recipe: recipe.resolved(),
            content: Content::of(prepared),
            kernels: kernels.to_vec(),
            progress: Progress::default(),
        }
    }

    /// What a checkpoint says.
    ///
    /// # Errors
    /// If another version wrote it, in another form.
    pub fn read(snapshot: &Snapshot) -> Result<About> {
        serde_json::from_value(snapshot.manifest().run.clone()).map_err(|e| {
            let message = format!("was written by a version whose runs this one cannot take up ({e})");
            Error::file(snapshot.folder(), message)
        })
    }

    /// Refuses data or a tokenizer that are no longer those of the checkpoint.
    ///
    /// # Errors
    /// A sentence that says which.
    pub fn check_content(&self, prepared: &Prepared) -> Result<()> {
        let now = Content::of(prepared);
        let what = match () {
            () if now.model != self.content.model => "the model that training began with is",
            () if now.tokenizer != self.content.tokenizer => "the tokenizer is",
            () if now.tokens != self.content.tokens => "the data are",
            () if self.content.config.is_some() && now.config != self.content.config => "the model's configuration is",
            () => return Ok(()),
        };
        Err(Error::Invalid(format!(
            "{what} no longer what the run began with; a resumed run would be another one: bring back what was there, or \
             start anew with another --out"
        )))
    }

    /// Says aloud in what the machine or the program differs from those of the checkpoint, if they do: then numbers may
    /// differ in their last bits.
    pub fn differs(&self, gpu: &Gpu) -> Option<String> {
        let (now, then) = (gpu.report().id(), &self.adapter);
        let line = |id: &AdapterId| format!("{} ({}, {})", id.name, id.backend, id.driver);
        let what = match () {
            () if now != *then => format!("the run was begun on {} and goes on on {}", line(then), line(&now)),
            () if self.build != build() => "the run was begun by another version of this program".into(),
            () => return None,
        };
        Some(format!("{what}: numbers may differ in their last bits from those of an uninterrupted run"))
    }
}
