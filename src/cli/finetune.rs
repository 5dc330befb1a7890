//! `danlu finetune`: `danlu train` of a model that is there, with adapters unless all of it is to be trained; and the flags of
//! adapters, which both have.

use super::train::{TrainArgs, run};
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

/// Trains adapters, or a whole model; gives the exit code.
pub async fn finetune(args: FinetuneArgs) -> Result<u8> {
    run(args.train, Kind::Finetune { full: args.full }).await
}

/// What a run is for.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// A model from scratch, or from where another one is.
    Train,
    /// A model that is there, and data of one's own: with adapters, or without.
    Finetune {
        /// Whether all of it is trained whatever the recipe says.
        full: bool,
    },
}

impl Kind {
    /// The recipe where no flag says anything.
    pub fn recipe(self, file: Option<&Path>) -> Result<Recipe> {
        Ok(match (self, file) {
            (Kind::Train, None) => Recipe::default(),
            (Kind::Train, Some(file)) => Recipe::open(file)?,
            (Kind::Finetune { full }, None) => Recipe::finetuning(full),
            (Kind::Finetune { full }, Some(file)) => Recipe::open_finetuning(file, full)?,
        })
    }

    /// Refuses a recipe that lacks what this kind of run is about.
    pub fn check(self, recipe: &Recipe) -> Result<()> {
        if matches!(self, Kind::Finetune { .. }) && recipe.model.is_none() {
            bail!(
                "danlu finetune goes on with a model that is there: name it by --model; danlu train begins a new one"
            );
        }
        if matches!(self, Kind::Finetune { .. }) && recipe.data.is_empty() {
            bail!("danlu finetune wants data of yours: name them by --data");
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
