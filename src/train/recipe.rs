//! A training run as one typed value: flags and a TOML file fill the same fields.

use super::recipe_text::explain;
use super::{CheckpointOptions, RecoveryOptions};
use crate::base::{Bytes, read_given_text};
use crate::data::{DataSources, LossOn, Overlong};
use crate::error::{Error, Result};
use crate::model::DpoConfig;
use crate::nn::LoraConfig;
use crate::optim::{Rule, Shape, Shard, Update};
use crate::parallel::{Mesh, mesh_text};
use crate::run::TuneMode;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// In which precision products are computed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Strict f32.
    #[default]
    F32,
    /// Products of linear layers round their operands to f16 and sum in f32; parameters, moments and all else are f32,
    /// the loss is scaled.
    Mixed,
}

impl std::str::FromStr for Precision {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "f32" => Ok(Precision::F32),
            "mixed" => Ok(Precision::Mixed),
            _ => Err(format!("`{text}` is none of f32, mixed")),
        }
    }
}

/// What to train, on what, and how. Every key has a default: an empty recipe trains the embedded default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Recipe {
    /// A preset's name, a config.json, or a folder that holds one.
    pub config: String,
    /// A model to go on with, tokenizer and all: a Hugging Face folder or a GGUF file. `config` and `tokenizer` are then its
    /// own.
    pub model: Option<String>,
    /// Text, examples (JSONL or JSON) or folders of them, several with weights; without it, the embedded stories.
    #[serde(skip_serializing_if = "DataSources::is_empty")]
    pub data: DataSources,
    /// Whether documents are packed into full rows, of which each sees nothing of the others. Without it running text is cut
    /// into windows, and every example has a row of its own.
    pub pack: bool,
    /// Examples that are not packed have rows of at most so many lengths, as their tokens suggest; 1: all have `seq`.
    pub lengths: usize,
    /// What is done with documents longer than a row; if not given, running text is split and examples are truncated.
    pub overlong: Option<Overlong>,
    /// Which tokens of a conversation are to be predicted.
    pub loss_on: LossOn,
    /// An existing tokenizer.json, the folder that holds one, or a GGUF file; without it, a BPE is trained on the data.
    pub tokenizer: Option<PathBuf>,
    /// Number of embedded stories to write.
    pub stories: u64,
    /// Optimizer steps.
    pub steps: u64,
    /// Sequences that are computed at a time; of preference pairs, pairs.
    pub batch: usize,
    /// Batches of one step: their gradients are added up, each token weighing the same, before parameters change.
    pub accumulate: u32,
    /// Tokens of one sequence.
    pub seq: usize,
    /// Most bytes of device memory of a step and of validation, such as `6GB`: what does not fit is computed again.
    /// Without it, what the adapter has, where that is known.
    pub memory: Option<Bytes>,
    /// Precision of products.
    pub precision: Precision,
    /// With mixed precision: steps in a row without an overflow after which the scale of the loss doubles.
    pub loss_scale_interval: u32,
    /// With mixed precision: whether weights are kept in f16 as well, as products read them, two bytes a parameter.
    pub weight_copies: bool,
    /// The adapter: a number of `danlu doctor`'s list, or part of a name; without it, the best.
    pub adapter: Option<String>,
    /// Axes along which the work of a step is split over ranks, such as `data=4`. A batch is dealt to the ranks of the data axis in
    /// equal parts: what is trained on does not depend on how many there are.
    #[serde(with = "mesh_text")]
    pub mesh: Mesh,
    /// With a pipeline: how many stages of neighbouring layers each rank has; more than one interleave, so that ranks wait less and
    /// send more.
    pub interleave: usize,
    /// What ranks of the data axis share out among them, each keeping its part: `none`, the `optimizer`'s moments, the sums of
    /// `gradients` too, or the `parameters` too.
    pub shard: Shard,
    /// Where ranks hold other experts each: how many slots one has room for with another, as a multiple of their mean number, such
    /// as 1.25; what finds no room is dropped, later tokens first. Without it all find room.
    pub expert_capacity: Option<f64>,
    /// How much of the experts' balance is part of the loss; what the model's configuration says if not given.
    pub router_aux_loss: Option<f64>,
    /// How much of the square of what a router's exponentials sum to, in logarithms; as the configuration says if not given.
    pub router_z_loss: Option<f64>,
    /// Steps after which ranks compare what must be the same on all of them; 0 for never.
    pub compare_every: u64,
    /// Which kernels are taken.
    pub tune: TuneMode,
    /// `adamw`; `adamw8bit`, whose moments take a byte each; `muon`, with AdamW for embedding, output, gains and biases; or `sgd`.
    pub optimizer: Rule,
    /// When parameters change: `step`, after the backward pass; or `layer`, in it, which keeps no gradients: with `clip` 0, no
    /// outliers and `precision` f32 in the same time, else in twice that, for a pass that only finds the gradient's norm.
    pub update: Update,
    /// Highest learning rate.
    pub lr: f64,
    /// How it goes on after the warm-up: `constant`, `linear`, `cosine`, or `wsd`, which stays and falls in the end.
    pub schedule: Shape,
    /// The learning rate ends at this share of the highest.
    pub lr_floor: f64,
    /// Steps over which the learning rate rises; a twentieth of all steps if not given.
    pub warmup: Option<u64>,
    /// With `wsd`, the last steps, in which the rate falls; a fifth of all steps if not given.
    pub decay_steps: Option<u64>,
    /// With `linear` and `cosine`, how often the rate begins again at the highest.
    pub restarts: u64,
    /// Decay of matrices, as in AdamW; gains and biases have none.
    pub weight_decay: f64,
    /// Decay of AdamW's first moment.
    pub beta1: f64,
    /// Decay of AdamW's second moment.
    pub beta2: f64,
    /// Added to the root of AdamW's second moment.
    pub epsilon: f64,
    /// Momentum of SGD and Muon, which looks one step ahead, as Nesterov's does; 0 for none.
    pub momentum: f64,
    /// The gradient is scaled down to this global norm; 0 for never.
    pub clip: f64,
    /// Decay of a moving average of the parameters, such as 0.999: validation, samples and the model that is written are
    /// then the average's; 0 for none.
    pub ema: f64,
    /// Seed of the weights, the order of the data and the samples.
    pub seed: u64,
    /// Steps between validations; a tenth of all steps if not given.
    pub eval_every: Option<u64>,
    /// Share of the tokens held out for validation.
    pub val_fraction: f64,
    /// Most sequences of one validation; of preference pairs, rows.
    pub val_sequences: u64,
    /// The run ends after this many validations without a lower loss; 0 for never.
    pub patience: u64,
    /// Text that the samples go on from.
    pub prompt: String,
    /// Further texts, each with a sample of its own.
    pub prompts: Vec<String>,
    /// Files of items, as `danlu eval --items` takes them, which are scored after each validation.
    pub eval_tasks: Vec<PathBuf>,
    /// Most items of each of them.
    pub eval_limit: usize,
    /// The run's folder: for the model, checkpoints and metrics.
    pub out: PathBuf,
    /// When checkpoints are taken, and which of them stay.
    pub checkpoint: CheckpointOptions,
    /// What is done when training diverges.
    pub recovery: RecoveryOptions,
    /// Adapters that are trained while the model stays as it is; without it all of the model is.
    pub lora: Option<LoraConfig>,
    /// Where the data are preference pairs: how these are trained on.
    pub dpo: Option<DpoConfig>,
    /// Parameters with settings of their own; of several that fit the first counts.
    pub groups: Vec<GroupOptions>,
}

/// One of `[[groups]]` of a recipe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupOptions {
    /// The last parts of a parameter's name, such as `embed_tokens.weight`, or a pattern of all of it, such as
    /// `model.layers.1*`.
    pub params: String,
    /// Their highest learning rate; that of the rest if not given.
    pub lr: Option<f64>,
    /// Their weight decay; that of the rest if not given.
    pub weight_decay: Option<f64>,
}

impl Default for Recipe {
    fn default() -> Self {
        Recipe {
            config: "story-1m".into(),
            model: None,
            data: DataSources::default(),
            pack: false,
            lengths: 4,
            overlong: None,
            loss_on: LossOn::Assistant,
            tokenizer: None,
            stories: 6_000,
            steps: 700,
            batch: 2,
            accumulate: 1,
            seq: 128,
            memory: None,
            precision: Precision::F32,
            loss_scale_interval: 2_000,
            weight_copies: true,
            adapter: None,
            mesh: Mesh::ONE,
            interleave: 1,
            shard: Shard::None,
            expert_capacity: None,
            router_aux_loss: None,
            router_z_loss: None,
            compare_every: 100,
            tune: TuneMode::Full,
            optimizer: Rule::AdamW,
            update: Update::Step,
            lr: 4e-3,
            schedule: Shape::Cosine,
            lr_floor: 0.1,
            warmup: None,
            decay_steps: None,
            restarts: 0,
            weight_decay: 0.1,
            beta1: 0.9,
            beta2: 0.99,
            epsilon: 1e-8,
            momentum: 0.95,
            clip: 1.0,
            ema: 0.0,
            seed: 1,
            eval_every: None,
            val_fraction: 0.05,
            val_sequences: 32,
            patience: 0,
            prompt: "One day".into(),
            prompts: Vec::new(),
            eval_tasks: Vec::new(),
            eval_limit: 200,
            out: "runs/model".into(),
            checkpoint: CheckpointOptions::default(),
            recovery: RecoveryOptions::default(),
            lora: None,
            dpo: None,
            groups: Vec::new(),
        }
    }
}

impl Recipe {
    /// What `danlu finetune` begins with: the rates of a model that knows its language already, and with adapters a higher
    /// one than for all of it.
    pub fn finetuning(full: bool) -> Recipe {
        Recipe {
            steps: 200,
            batch: 1,
            seq: 512,
            lr: if full { 2e-5 } else { 2e-4 },
            weight_decay: 0.0,
            val_sequences: 16,
            beta2: 0.999,
            out: "runs/finetuned".into(),
            lora: (!full).then(LoraConfig::default),
            ..Recipe::default()
        }
    }

    /// What `danlu dpo` begins with: as finetuning, at a quarter of its rates.
    pub fn preferring(full: bool) -> Recipe {
        let recipe = Recipe::finetuning(full);
        Recipe { lr: recipe.lr / 4.0, out: "runs/preferred".into(), dpo: Some(DpoConfig::default()), ..recipe }
    }
}

impl Recipe {
    /// Reads a TOML recipe.
    ///
    /// # Errors
    /// A sentence with file, line and the key or value that does not fit.
    pub fn open(path: impl AsRef<Path>) -> Result<Recipe> {
        let path = path.as_ref();
        let text = read_given_text(path)?;
        toml::from_str(&text).map_err(|e| {
            let start = e.span().map_or(0, |span| span.start.min(text.len()));
            let line = text.as_bytes()[..start].iter().filter(|&&b| b == b'\n').count();
            let content = text.lines().nth(line).unwrap_or_default().trim();
            Error::file(path, format!("line {}, `{content}`: {}", line + 1, explain(e.message())))
        })
    }

    /// Reads a TOML recipe whose other keys are those of `defaults`, [`Recipe::finetuning`] or [`Recipe::preferring`]: of
    /// adapters where it has the group `[lora]`, unless all is to be trained whatever it says.
    ///
    /// # Errors
    /// As [`Recipe::open`].
    pub fn open_over(path: impl AsRef<Path>, full: bool, defaults: fn(bool) -> Recipe) -> Result<Recipe> {
        fn merge(into: &mut toml::Table, from: toml::Table) {
            for (key, value) in from {
                match (into.get_mut(&key), value) {
                    (Some(toml::Value::Table(into)), toml::Value::Table(from)) => merge(into, from),
                    (_, value) => drop(into.insert(key, value)),
                }
            }
        }
        let path = path.as_ref();
        // What is wrong with it is said with its line.
        Recipe::open(path)?;
        let text = read_given_text(path)?;
        let invalid = |e: toml::de::Error| Error::file(path, e.message().replace('\n', "; "));
        let mut own: toml::Table = text.parse().map_err(invalid)?;
        if full {
            own.remove("lora");
        }
        let defaults = defaults(!own.contains_key("lora"));
        let mut merged = toml::Table::try_from(defaults).expect("a recipe is always valid TOML");
        merge(&mut merged, own);
        merged.try_into().map_err(invalid)
    }

    /// The recipe as TOML. Of one that goes on with a model the configuration is the model's, and `config` is left out.
    pub fn to_toml(&self) -> String {
        let text = toml::to_string(self).expect("a recipe is always valid TOML");
        match text.split_once('\n') {
            Some((config, rest)) if self.model.is_some() && config.starts_with("config = ") => rest.into(),
            _ => text,
        }
    }

    /// Rows of a batch, over all ranks.
    pub fn sequences(&self) -> usize {
        self.batch * if self.dpo.is_some() { 2 } else { 1 }
    }

    /// Rows that a rank computes at a time.
    pub fn rows(&self) -> usize {
        self.sequences() / self.mesh.data
    }

    /// Steps over which the learning rate rises.
    pub fn warmup_steps(&self) -> u64 {
        self.warmup.unwrap_or(self.steps.div_ceil(20))
    }

    /// With `wsd`, the last steps, in which the learning rate falls.
    pub fn decay_steps(&self) -> u64 {
        self.decay_steps.unwrap_or(self.steps.div_ceil(5))
    }

    /// Whether the best checkpoint by validation stays: also where the run may go back to it.
    pub fn keeps_best(&self) -> bool {
        self.checkpoint.best || self.patience > 0
    }

    /// Steps between checkpoints, if any are taken.
    pub fn checkpoint_interval(&self) -> Option<u64> {
        Some(self.checkpoint.every.unwrap_or(self.eval_interval())).filter(|&every| every > 0)
    }

    /// The recipe with everything filled in that follows from other keys, so that it means the same whatever becomes of
    /// those.
    pub fn resolved(&self) -> Recipe {
        let mut resolved = self.clone();
        resolved.warmup = Some(self.warmup_steps());
        resolved.decay_steps = (self.schedule == Shape::Wsd).then(|| self.decay_steps()).or(self.decay_steps);
        resolved.eval_every = Some(self.eval_interval());
        resolved.checkpoint.every = Some(self.checkpoint_interval().unwrap_or(0));
        resolved
    }

    /// Steps between validations.
    pub fn eval_interval(&self) -> u64 {
        self.eval_every.unwrap_or(self.steps.div_ceil(10)).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn toml_round_trip() {
        let recipe = Recipe { steps: 7, ..Recipe::default() };
        assert_eq!(toml::from_str::<Recipe>(&recipe.to_toml()).unwrap(), recipe);
    }
}
