//! Flags that every command has which writes text: how tokens are picked, and what the KV cache is.

use crate::base::DType;
use crate::infer::{Options, Overflow, Sampling};
use anyhow::{Result, bail};
use clap::builder::RangedU64ValueParser;
use clap::{Args, ValueEnum};

/// How tokens are picked.
#[derive(Debug, Clone, Args)]
pub struct SamplingArgs {
    /// Divides the logits; 0 takes the likeliest token.
    #[arg(long, default_value_t = 0.8, allow_negative_numbers = true)]
    pub temperature: f32,
    /// Draw from this many likeliest tokens; 0 for all.
    #[arg(long, default_value_t = 0)]
    pub top_k: usize,
    /// Draw from the likeliest tokens that sum up to this probability.
    #[arg(long, default_value_t = 0.95, allow_negative_numbers = true)]
    pub top_p: f32,
    /// Draw from tokens at least this share as likely as the likeliest; 0 for all.
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    pub min_p: f32,
    /// Divides the logits of tokens that occurred (multiplies negative ones); 1 for none.
    #[arg(long, default_value_t = 1.0, allow_negative_numbers = true)]
    pub repetition_penalty: f32,
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
}

impl SamplingArgs {
    /// What the flags say.
    ///
    /// # Errors
    /// If a value lies outside its range.
    pub fn sampling(&self) -> Result<Sampling> {
        let bias = |text: &String| -> Result<(u32, f32)> {
            match text.split_once('=').map(|(id, bias)| (id.trim().parse(), bias.trim().parse())) {
                Some((Ok(id), Ok(bias))) => Ok((id, bias)),
                _ => bail!("--logit-bias {text} is not ID=BIAS, a token's number and what is added, such as 42=-1.5"),
            }
        };
        let sampling = Sampling {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
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
        Options { context: self.context.unwrap_or(wanted).min(most), batch, cache, overflow }
    }
}
