//! Tells a story with the small model that the repository holds.

use clap::Parser;
use danlu::cli::{AdapterArgs, GenerateArgs, generate, report};

/// Tells a story with a small model that Danlu trained itself.
#[derive(Debug, Parser)]
#[command(version)]
struct Demo {
    /// How the story begins.
    #[arg(default_value = "One day")]
    prompt: String,
    /// Model folder; any that Danlu runs.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/models/tiny"))]
    model: std::path::PathBuf,
    /// Another seed, another story.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[command(flatten)]
    adapter: AdapterArgs,
}

fn main() -> std::process::ExitCode {
    let Demo { prompt, model, seed, adapter } = Demo::parse();
    // The model was trained on passages of 128 tokens, and loses the thread beyond.
    let args = GenerateArgs { model, prompt, tokens: 120, temperature: 0.7, top_k: 0, top_p: 0.95, seed, adapter };
    report(pollster::block_on(generate(args)))
}
