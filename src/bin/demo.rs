//! Tells a story with the small model that the repository holds, or continues a text with any other.

use clap::Parser;
use danlu::cli::{AdapterArgs, GenerateArgs, generate, report};

/// Tells a story with a small model that Danlu trained itself, or continues a text with any model.
#[derive(Debug, Parser)]
#[command(version)]
struct Demo {
    /// How the story begins.
    #[arg(default_value = "One day")]
    prompt: String,
    /// The same, as `danlu generate` wants it.
    #[arg(long = "prompt", value_name = "TEXT", allow_hyphen_values = true, conflicts_with = "prompt")]
    begin: Option<String>,
    /// Model folder, GGUF file, or name on the hub.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/models/tiny"))]
    model: std::path::PathBuf,
    /// Most tokens to add. The small model was trained on passages of 128, and loses the thread beyond.
    #[arg(long, default_value_t = 120)]
    tokens: usize,
    /// Another seed, another story.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[command(flatten)]
    adapter: AdapterArgs,
}

fn main() -> std::process::ExitCode {
    let Demo { prompt, begin, model, tokens, seed, adapter } = Demo::parse();
    let mut args = GenerateArgs::new(model, begin.unwrap_or(prompt));
    (args.tokens, args.adapter) = (tokens, adapter);
    (args.sampling.otherwise.temperature, args.sampling.seed) = (0.7, seed);
    report(pollster::block_on(generate(args)))
}
