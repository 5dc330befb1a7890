//! Flags that every command has which writes text: how tokens are picked, and what the KV cache is.

use crate::base::DType;
use crate::infer::{Options, Overflow, Sampling, Suggested};
use crate::store::{Checkpoint, Origin};
use anyhow::{Result, bail};
use clap::builder::RangedU64ValueParser;
use clap::{Args, ValueEnum};

/// How tokens are picked.
#[derive(Debug, Clone, Args)]
pub struct SamplingArgs {
    /// Divides the logits; 0 takes the likeliest token [default: the model's own, else 0.8].
    #[arg(long, allow_negative_numbers = true)]
    pub temperature: Option<f32>,
    /// Draw from this many likeliest tokens; 0 for all [default: the model's own, else 0].
    #[arg(long, allow_negative_numbers = true, value_parser = super::text::whole)]
    pub top_k: Option<usize>,
    /// Draw from the likeliest tokens that sum up to this probability [default: the model's own, else 0.95].
    #[arg(long, allow_negative_numbers = true)]
    pub top_p: Option<f32>,
    /// Draw from tokens at least this share as likely as the likeliest; 0 for all [default: the model's own, else 0].
    #[arg(long, allow_negative_numbers = true)]
    pub min_p: Option<f32>,
    /// Divides the logits of tokens that occurred (multiplies negative ones); 1 for none [default: the model's own, else 1].
    #[arg(long, allow_negative_numbers = true)]
    pub repetition_penalty: Option<f32>,
    /// Taken off the logits of tokens that were drawn.
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    pub presence_penalty: f32,
    /// Taken off the logits of tokens as often as they were drawn.
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    pub frequency_penalty: f32,
    /// Added to the logit of a token; may be given again.
    #[arg(long, value_name = "ID=BIAS", allow_hyphen_values = true)]
    pub logit_bias: Vec<String>,
    /// Seed of the draws.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// What holds where neither a flag nor the model says anything.
    #[arg(skip)]
    pub otherwise: Sampling,
}

impl SamplingArgs {
    /// What the flags say, checked before a model is opened.
    ///
    /// # Errors
    /// If a value lies outside its range.
    pub fn sampling(&self) -> Result<Sampling> {
        self.over(self.otherwise.clone())
    }

    /// The settings for a model: the flags', else those that it comes with, else the usual ones. Says what the model
    /// brought, unless `quiet`, and what of it cannot be used.
    ///
    /// # Errors
    /// If a value lies outside its range, or a bias is for a token that the model has not.
    pub fn sampling_for(&self, checkpoint: &Checkpoint, quiet: bool) -> Result<Sampling> {
        let mut said = checkpoint.generation()?;
        let flags = [
            ("do_sample", self.temperature.is_some()),
            ("temperature", self.temperature.is_some()),
            ("top_k", self.top_k.is_some()),
            ("top_p", self.top_p.is_some()),
            ("min_p", self.min_p.is_some()),
            ("repetition_penalty", self.repetition_penalty.is_some()),
        ];
        said.retain(|key, _| !flags.contains(&(key, true)));
        let Suggested { sampling, taken, ignored } = self.otherwise.clone().suggested(&said);
        let place =
            if matches!(checkpoint.origin(), Origin::Folder(_)) { "generation_config.json" } else { "metadata" };
        for what in checkpoint.ignored().iter().chain(&ignored) {
            tell!("danlu: of the model's {place}, this is ignored: {what}");
        }
        if !taken.is_empty() && !quiet {
            tell!("danlu: by the model's {place}: {}", taken.join(", "));
        }
        let sampling = self.over(sampling)?;
        sampling.check_for(checkpoint.config().vocab_size)?;
        Ok(sampling)
    }

    /// The flags that are given, and others in place of those that are not.
    fn over(&self, others: Sampling) -> Result<Sampling> {
        let bias = |text: &String| -> Result<(u32, f32)> {
            match text.split_once('=').map(|(id, bias)| (id.trim().parse(), bias.trim().parse())) {
                Some((Ok(id), Ok(bias))) => Ok((id, bias)),
                _ => bail!("--logit-bias {text} is not ID=BIAS, a token's number and what is added, such as 42=-1.5"),
            }
        };
        let sampling = Sampling {
            temperature: self.temperature.unwrap_or(others.temperature),
            top_k: self.top_k.unwrap_or(others.top_k),
            top_p: self.top_p.unwrap_or(others.top_p),
            min_p: self.min_p.unwrap_or(others.min_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(others.repetition_penalty),
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            logit_bias: self.logit_bias.iter().map(bias).collect::<Result<_>>()?,
            seed: self.seed,
        };
        sampling.check()?;
        Ok(sampling)
    }
}

/// The KV cache.
#[derive(Debug, Clone, Args)]
pub struct CacheArgs {
    /// Tokens that a text can have, its prompt among them [default: as many as are asked for].
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    pub context: Option<usize>,
    /// What the KV cache holds: q8 takes little more than a quarter of f32.
    #[arg(long, value_enum, default_value_t = Cache::F32, value_name = "DTYPE")]
    pub kv_cache: Cache,
    /// A text that fills its context ends there (stop), or goes on without its older half (shift).
    #[arg(long, value_enum, default_value_t = Full::Stop, value_name = "POLICY")]
    pub context_full: Full,
}

/// Dtypes of the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)]
pub enum Cache {
    F32,
    F16,
    Q8,
}

/// What happens at the end of the context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)]
pub enum Full {
    Stop,
    Shift,
}

impl CacheArgs {
    /// Options for `batch` texts at a time that want `wanted` tokens each, of a model made for `most`; says it where more
    /// were asked for.
    pub fn options(&self, batch: usize, wanted: usize, most: usize) -> Options {
        if let Some(context) = self.context.filter(|&context| context > most) {
            tell!("danlu: --context {context} is more than the model was made for: lowered to {most}");
        }
        let cache = match self.kv_cache {
            Cache::F32 => DType::F32,
            Cache::F16 => DType::F16,
            Cache::Q8 => DType::Q8_0,
        };
        let overflow = if self.context_full == Full::Shift { Overflow::Shift } else { Overflow::Stop };
        let tuning = Some(super::paths::cache());
        Options { context: self.context.unwrap_or(wanted).min(most), batch, cache, overflow, tuning }
    }
}
