//! `danlu finetune` and `danlu dpo`: `danlu train` of a model that is there, with adapters unless all of it is to be trained; and
//! the flags of adapters, which all have.

use super::train::{TrainArgs, run};
use crate::model::{DpoConfig, PreferenceLoss};
use crate::nn::{BaseDtype, LoraConfig};
use crate::train::Recipe;
use anyhow::{Result, bail};
use clap::Args;
use std::path::Path;

/// Flags of `danlu finetune`: those of `danlu train` with other defaults: 200 steps of one sequence of 512 tokens, at a rate
/// of 2e-4 for adapters and 2e-5 for the whole model, no weight decay, into runs/finetuned.
#[derive(Debug, Args)]
pub struct FinetuneArgs {
    /// Train the whole model, and no adapters.
    #[arg(long, conflicts_with = "adapters")]
    full: bool,
    #[command(flatten)]
    train: TrainArgs,
}

impl FinetuneArgs {
    /// The flags of the run, and its kind.
    pub fn into_run(self) -> (TrainArgs, Kind) {
        (self.train, Kind::Finetune { full: self.full })
    }
}

/// Trains adapters, or a whole model; gives the exit code.
pub async fn finetune(args: FinetuneArgs) -> Result<u8> {
    let (args, kind) = args.into_run();
    run(args, kind).await
}

/// Flags of `danlu dpo`: those of `danlu finetune`, on pairs of which one answer is `chosen` and one `rejected`: 200 steps of one
/// pair in rows of 512 tokens, at a rate of 5e-5 for adapters and 5e-6 for the whole model, into runs/preferred.
#[derive(Debug, Args)]
pub struct DpoArgs {
    /// Train the whole model, and no adapters.
    #[arg(long, conflicts_with = "adapters")]
    full: bool,
    #[command(flatten)]
    pairs: PairArgs,
    #[command(flatten)]
    train: TrainArgs,
}

/// Flags of the recipe's group `[dpo]`.
#[derive(Debug, Clone, Default, Args)]
pub struct PairArgs {
    /// How dearly it pays to move away from the model that training begins with [default: 0.1].
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    beta: Option<f64>,
    /// The loss of a pair: of its margin by DPO, by IPO, or a hinge [default: sigmoid].
    #[arg(long, value_name = "sigmoid|ipo|hinge")]
    loss: Option<PreferenceLoss>,
    /// The share of pairs that are taken to be the wrong way round [default: 0].
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    label_smoothing: Option<f64>,
}

impl PairArgs {
    /// The group with the flags in place of its keys.
    pub fn over(&self, dpo: Option<DpoConfig>) -> Option<DpoConfig> {
        let DpoConfig { beta, loss, label_smoothing } = dpo?;
        Some(DpoConfig {
            beta: self.beta.unwrap_or(beta),
            loss: self.loss.unwrap_or(loss),
            label_smoothing: self.label_smoothing.unwrap_or(label_smoothing),
        })
    }
}

impl DpoArgs {
    /// The flags of the run, and its kind.
    pub fn into_run(self) -> (TrainArgs, Kind) {
        (self.train, Kind::Dpo { full: self.full, pairs: self.pairs })
    }
}

/// Trains on preference pairs; gives the exit code.
pub async fn dpo(args: DpoArgs) -> Result<u8> {
    let (args, kind) = args.into_run();
    run(args, kind).await
}

/// What a run is for.
#[derive(Debug, Clone)]
pub enum Kind {
    /// A model from scratch, or from where another one is.
    Train,
    /// A model that is there, and data of one's own: with adapters, or without.
    Finetune {
        /// Whether all of it is trained whatever the recipe says.
        full: bool,
    },
    /// The same on preference pairs.
    Dpo {
        /// Whether all of it is trained whatever the recipe says.
        full: bool,
        /// In the place of the recipe's keys.
        pairs: PairArgs,
    },
}

impl Kind {
    /// The recipe where no flag says anything.
    pub fn recipe(&self, file: Option<&Path>) -> Result<Recipe> {
        let (full, defaults): (bool, fn(bool) -> Recipe) = match self {
            Kind::Train => return Ok(file.map(Recipe::open).transpose()?.unwrap_or_default()),
            Kind::Finetune { full } => (*full, Recipe::finetuning),
            Kind::Dpo { full, .. } => (*full, Recipe::preferring),
        };
        Ok(file.map_or_else(|| Ok(defaults(full)), |file| Recipe::open_over(file, full, defaults))?)
    }

    /// The recipe with the flags that only this kind has.
    pub fn over(&self, recipe: Recipe) -> Recipe {
        match self {
            Kind::Dpo { pairs, .. } => Recipe { dpo: pairs.over(recipe.dpo), ..recipe },
            _ => recipe,
        }
    }

    /// Refuses to go on with a run of another kind: what its flags say would be unheard.
    pub fn check_resumed(&self, recipe: &Recipe) -> Result<()> {
        let (command, full) = match self {
            Kind::Train => return Ok(()),
            Kind::Finetune { full } => ("finetune", *full),
            Kind::Dpo { full, .. } => ("dpo", *full),
        };
        let (owner, what) = match recipe.dpo {
            Some(_) => ("dpo", "preference pairs"),
            None => ("train", "examples, not pairs"),
        };
        if (command == "dpo") != recipe.dpo.is_some() {
            bail!("the run that is taken up is one of {what}: go on with it by danlu {owner} --resume");
        }
        if full && recipe.lora.is_some() {
            bail!("the run that is taken up trains adapters: leave --full out, or start anew with another --out");
        }
        Ok(())
    }

    /// Refuses a recipe that lacks what this kind of run is about.
    pub fn check(&self, recipe: &Recipe) -> Result<()> {
        let command = match self {
            Kind::Train => return Ok(()),
            Kind::Finetune { .. } => "finetune",
            Kind::Dpo { .. } => "dpo",
        };
        if recipe.model.is_none() {
            bail!(
                "danlu {command} goes on with a model that is there: name it by --model; danlu train begins a new one"
            );
        }
        if recipe.data.is_empty() {
            bail!("danlu {command} wants data of yours: name them by --data");
        }
        Ok(())
    }
}

/// Flags of the recipe's group `[lora]`. Any of them makes a run one of adapters.
#[derive(Debug, Clone, Args)]
#[group(id = "adapters", multiple = true)]
pub struct LoraArgs {
    /// Rank of the adapters [default: 16].
    #[arg(long, value_name = "R", allow_negative_numbers = true)]
    lora_rank: Option<usize>,
    /// What the adapters add is scaled by this over the rank [default: 32].
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    lora_alpha: Option<f64>,
    /// Share of the adapters' inputs that is left out in training [default: 0].
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    lora_dropout: Option<f64>,
    /// Layers that get adapters: names such as q_proj,v_proj, or patterns such as model.layers.1*.self_attn.* [default: every
    /// linear layer of the blocks].
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    lora_targets: Option<Vec<String>>,
    /// Scale by the root of the rank (rsLoRA).
    #[arg(long)]
    rslora: bool,
    /// Train magnitudes apart from directions (DoRA).
    #[arg(long)]
    dora: bool,
    /// In which dtype the model's own weights are held: `nf4` for QLoRA, q8_0, f16, bf16, f32, or as they came [default:
    /// keep].
    #[arg(long, value_name = "DTYPE")]
    base_dtype: Option<BaseDtype>,
}

impl LoraArgs {
    /// The group with the flags in place of its keys.
    pub fn over(&self, lora: Option<LoraConfig>) -> Option<LoraConfig> {
        let LoraArgs { lora_rank, lora_alpha, lora_dropout, lora_targets, rslora, dora, base_dtype } = self.clone();
        let numbers = lora_alpha.is_some() || lora_dropout.is_some();
        let given = lora_rank.is_some() || numbers || lora_targets.is_some() || base_dtype.is_some() || rslora || dora;
        let LoraConfig { rank, alpha, dropout, targets, rslora: r, dora: d, base_dtype: dtype } = match lora {
            None if !given => return None,
            lora => lora.unwrap_or_default(),
        };
        Some(LoraConfig {
            rank: lora_rank.unwrap_or(rank),
            alpha: lora_alpha.unwrap_or(alpha),
            dropout: lora_dropout.unwrap_or(dropout),
            targets: lora_targets.unwrap_or(targets),
            rslora: rslora || r,
            dora: dora || d,
            base_dtype: base_dtype.unwrap_or(dtype),
        })
    }
}
