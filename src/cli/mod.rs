//! The command line: thin commands over the library. Only here, and in the binaries, is anything printed.

mod advice;
pub mod doctor;
mod generate;
mod paths;
mod plan;
mod progress;
mod train;

pub use generate::{GenerateArgs, generate};

use crate::gpu::Selector;
use clap::{Args, Parser, Subcommand};
use std::process::ExitCode;

/// Danlu trains and runs LLaMA-family language models on any vendor's GPU.
#[derive(Debug, Parser)]
#[command(name = "danlu", version, about, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train a model from scratch: without arguments a small one, on embedded stories.
    Train(Box<train::TrainArgs>),
    /// Continue a text with a model folder.
    Generate(GenerateArgs),
    /// Print what a training step will do, take and cost, without doing it.
    Plan(plan::PlanArgs),
    /// List adapters, measure the chosen one, and test every kernel on it.
    Doctor(doctor::DoctorArgs),
}

/// Which adapter to compute on.
#[derive(Debug, Clone, Default, Args)]
pub struct AdapterArgs {
    /// Adapter to use: a number of `danlu doctor`'s list, or part of a name.
    #[arg(long, value_name = "NAME|NUMBER")]
    pub adapter: Option<String>,
}

impl AdapterArgs {
    /// The selector that the flag stands for.
    pub fn selector(&self) -> Selector {
        match self.adapter.as_deref().map(|a| (a, a.parse())) {
            None => Selector::Automatic,
            Some((_, Ok(number))) => Selector::Number(number),
            Some((name, Err(_))) => Selector::Name(name.to_string()),
        }
    }
}

/// Parses the command line and does what it says.
pub fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Train(args) => pollster::block_on(train::train(*args)),
        Command::Generate(args) => pollster::block_on(generate(args)),
        Command::Plan(args) => plan::plan(args),
        Command::Doctor(args) => match pollster::block_on(doctor::doctor(args, &mut std::io::stdout().lock())) {
            Ok(true) => Ok(()),
            Ok(false) => return ExitCode::FAILURE,
            Err(error) => Err(error),
        },
    };
    report(done)
}

/// Prints an error as one sentence; gives the exit code.
pub fn report(done: anyhow::Result<()>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("danlu: {error:#}");
            ExitCode::FAILURE
        }
    }
}
