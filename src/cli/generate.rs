//! `danlu generate`, and the demo's engine.

use super::{AdapterArgs, hub};
use crate::data::{StreamDecoder, Tokenizer};
use crate::error::Error;
use crate::gpu::Gpu;
use crate::infer::{Finish, Generator, Sampling};
use crate::store::load_config;
use anyhow::Result;
use clap::Args;
use std::io::Write;
use std::path::PathBuf;

/// Flags of `danlu generate`.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// Model folder in Hugging Face's form, or its name on the hub: org/model[@revision].
    #[arg(long, value_name = "FOLDER|NAME")]
    pub model: PathBuf,
    /// Text to continue.
    #[arg(long)]
    pub prompt: String,
    /// Most tokens to add.
    #[arg(long, default_value_t = 200, value_name = "N")]
    pub tokens: usize,
    /// Divides the logits; 0 takes the likeliest token.
    #[arg(long, default_value_t = 0.8, allow_negative_numbers = true)]
    pub temperature: f32,
    /// Draw from this many likeliest tokens; 0 for all.
    #[arg(long, default_value_t = 0)]
    pub top_k: usize,
    /// Draw from the likeliest tokens that sum up to this probability.
    #[arg(long, default_value_t = 0.95, allow_negative_numbers = true)]
    pub top_p: f32,
    /// Seed of the draws.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Which adapter to compute on.
    #[command(flatten)]
    pub adapter: AdapterArgs,
}

/// Prints prompt and continuation as the tokens come.
pub async fn generate(args: GenerateArgs) -> Result<()> {
    let sampling = Sampling { temperature: args.temperature, top_k: args.top_k, top_p: args.top_p, seed: args.seed };
    sampling.check()?;
    let model = hub::resolve(&args.model)?;
    let config = load_config(&model)?;
    let tokenizer = Tokenizer::open(model.join("tokenizer.json"))?;
    let prompt = tokenizer.encode_prompt(&args.prompt)?;
    if tokenizer.vocab_size() > config.vocab_size {
        let (tokens, rows) = (tokenizer.vocab_size(), config.vocab_size);
        let message =
            format!("has {tokens} tokens, and the model's config.json {rows}: one of the two is another model's");
        return Err(Error::file(model.join("tokenizer.json"), message).into());
    }
    let gpu = Gpu::open(&args.adapter.selector()).await?;
    let mut generator = Generator::open(&gpu, &model, prompt.len().saturating_add(args.tokens)).await?;
    let mut decoder = StreamDecoder::new(&tokenizer, &prompt);
    let mut out = std::io::stdout();
    let say = |out: &mut std::io::Stdout, text: &str| {
        // A reader that left, such as `head`, is no error of ours.
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_ok()
    };
    say(&mut out, &args.prompt);
    let finish =
        generator.generate(&prompt, args.tokens, &sampling, |token| Ok(say(&mut out, &decoder.push(token)?))).await?;
    say(&mut out, &decoder.finish()?);
    say(&mut out, "\n");
    if finish == Finish::ContextFull {
        tell!("danlu: the model's context of {} tokens is full", generator.context());
    }
    Ok(())
}
