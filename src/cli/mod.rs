//! The command line: thin commands over the library. Only here, and in the binaries, is anything printed.

/// Prints a line on standard output; [`report`] says at the end if it could not be written.
macro_rules! say {
    ($($text:tt)*) => { $crate::cli::out::line(format_args!($($text)*)) };
}

/// Prints a line on standard error.
macro_rules! tell {
    ($($text:tt)*) => {{
        let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("{}\n", format_args!($($text)*)));
    }};
}

mod advice;
mod alive;
mod batch;
mod bench;
mod chat;
mod convert;
mod data;
pub mod doctor;
mod eval;
mod export;
mod finetune;
mod generate;
mod hub;
mod init;
mod inspect;
mod launch;
mod mpi;
mod out;
mod paths;
mod pipelines;
mod plan;
mod plot;
mod profile;
mod progress;
mod ranks;
mod runs;
mod sampling;
mod scale;
mod shell;
mod signals;
mod text;
mod train;
mod tuning;

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
    /// Train a model, from scratch or from where another one is: without arguments a small one, on embedded stories.
    Train(Box<train::TrainArgs>),
    /// Go on with a model that is there: by adapters beside it (LoRA, QLoRA, DoRA), or all of it.
    Finetune(Box<finetune::FinetuneArgs>),
    /// Teach a model which of two answers is the better: direct preference optimisation, by adapters or of all of it.
    Dpo(Box<finetune::DpoArgs>),
    /// Start one of these three on many ranks: threads, or processes by mpirun or Slurm; and again where it failed.
    Launch(Box<launch::LaunchArgs>),
    /// Write a commented recipe, by a few questions.
    Init(init::InitArgs),
    /// List and compare training runs.
    Runs(runs::RunsArgs),
    /// Draw the curves of training runs.
    Plot(plot::PlotArgs),
    /// Continue a text with a model: a folder, a GGUF file or a hub name.
    Generate(Box<GenerateArgs>),
    /// Measure a model: perplexity of a text, multiple choice, cloze.
    Eval(eval::EvalArgs),
    /// Talk with a model: at the terminal, or by a script of lines.
    Chat(Box<chat::ChatArgs>),
    /// Show what a model on disk is: configuration, metadata, tensors.
    Inspect(inspect::InspectArgs),
    /// Write a model in another format or dtype.
    Convert(convert::ConvertArgs),
    /// Write the model that an adapter makes of another.
    Merge(convert::MergeArgs),
    /// Hand on what was trained: as a Hugging Face folder with a model card, a GGUF file, or an adapter.
    Export(export::ExportArgs),
    /// Show examples as a model will see them: what is to be predicted, how long they are, how they fill rows.
    Data(data::DataArgs),
    /// Write the tokens of text or examples as a shard, for `danlu train --data`.
    Tokenize(data::TokenizeArgs),
    /// Print what a training step will do, take and cost, without doing it.
    Plan(Box<plan::PlanArgs>),
    /// Measure the device's limits, and every kernel and whole steps against them.
    Bench(bench::BenchArgs),
    /// Record where the time of training steps or of generation goes, on the device and on the host.
    Profile(profile::ProfileArgs),
    /// List adapters, measure the chosen one, and test its kernels.
    Doctor(doctor::DoctorArgs),
    /// Print what a shell needs to complete this command's words.
    Completions(shell::CompletionsArgs),
    /// Print the manual page, or write one for each command into a folder.
    Man(shell::ManArgs),
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
        selector(self.adapter.as_deref())
    }
}

/// The adapter that a number or a name stands for; without either the best.
fn selector(adapter: Option<&str>) -> Selector {
    match adapter.map(|a| (a, a.parse())) {
        None => Selector::Automatic,
        Some((_, Ok(number))) => Selector::Number(number),
        Some((name, Err(_))) => Selector::Name(name.to_string()),
    }
}

/// Parses the command line and does what it says.
pub fn main() -> ExitCode {
    // What a command has to tell by its exit code beside success and failure.
    let mut ended = 0;
    let done = match Cli::parse().command {
        Command::Train(args) => pollster::block_on(train::train(*args)).map(|code| ended = code),
        Command::Finetune(args) => pollster::block_on(finetune::finetune(*args)).map(|code| ended = code),
        Command::Dpo(args) => pollster::block_on(finetune::dpo(*args)).map(|code| ended = code),
        Command::Launch(args) => launch::launch(*args).map(|code| ended = code),
        Command::Init(args) => init::init(args),
        Command::Runs(args) => runs::runs(args),
        Command::Plot(args) => plot::plot(args),
        Command::Completions(args) => shell::completions(args),
        Command::Man(args) => shell::man(args),
        Command::Generate(args) => pollster::block_on(generate(*args)),
        Command::Eval(args) => pollster::block_on(eval::eval(args)),
        Command::Chat(args) => pollster::block_on(chat::chat(*args)),
        Command::Inspect(args) => inspect::inspect(args),
        Command::Convert(args) => convert::convert(args),
        Command::Merge(args) => convert::merge(args),
        Command::Export(args) => export::export(args),
        Command::Data(args) => data::data(args),
        Command::Tokenize(args) => data::tokenize(args),
        Command::Plan(args) => plan::plan(*args),
        Command::Bench(args) => pollster::block_on(bench::bench(args)),
        Command::Profile(args) => pollster::block_on(profile::profile(args)),
        Command::Doctor(args) => match pollster::block_on(doctor::doctor(args, &mut out::Out)) {
            Ok(true) => Ok(()),
            Ok(false) => return ExitCode::FAILURE,
            Err(error) => Err(error),
        },
    };
    match report(done) {
        code if code == ExitCode::SUCCESS => ExitCode::from(ended),
        code => code,
    }
}

/// The flags of a command that trains, given as words, and its kind. Other words end the program with what is wrong of them.
fn training(words: &[String]) -> anyhow::Result<(train::TrainArgs, finetune::Kind)> {
    let parsed = Cli::try_parse_from(std::iter::once("danlu").chain(words.iter().map(String::as_str)));
    match parsed.unwrap_or_else(|error| error.exit()).command {
        Command::Train(args) => Ok((*args, finetune::Kind::Train)),
        Command::Finetune(args) => Ok(args.into_run()),
        Command::Dpo(args) => Ok(args.into_run()),
        _ => anyhow::bail!("danlu launch starts train, finetune and dpo, and not {}", words[0]),
    }
}

/// Prints an error as one sentence; gives the exit code.
pub fn report(done: anyhow::Result<()>) -> ExitCode {
    let done = done.or_else(|error| if reader_left(&error) { Ok(()) } else { Err(error) });
    match done.and_then(|()| out::failure().map_or(Ok(()), |text| Err(anyhow::anyhow!(text)))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell!("danlu: {}", sentence(&error));
            ExitCode::FAILURE
        }
    }
}

/// True if whoever read our output, such as `head`, had enough.
fn reader_left(error: &anyhow::Error) -> bool {
    let broken = |e: &std::io::Error| e.kind() == std::io::ErrorKind::BrokenPipe;
    error.chain().any(|e| e.downcast_ref().is_some_and(broken))
}

/// An error and its causes, but for those that it names itself.
fn sentence(error: &anyhow::Error) -> String {
    error.chain().fold(String::new(), |text, cause| match cause.to_string() {
        cause if text.is_empty() => cause,
        cause if text.contains(&cause) => text,
        cause => format!("{text}: {cause}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        let all = <Cli as clap::CommandFactory>::command();
        // Without debug assertions clap takes one name for two flags, and the first counts.
        for command in all.get_subcommands() {
            let mut names: Vec<&str> = command.get_arguments().filter_map(|flag| flag.get_long()).collect();
            let count = names.len();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), count, "{} has a flag twice", command.get_name());
        }
        all.debug_assert();
    }

    #[test]
    fn an_error_is_said_once() {
        let missing = || std::io::Error::from(std::io::ErrorKind::NotFound);
        let error = anyhow::Error::from(crate::error::Error::io("read", "x", missing()));
        assert_eq!(sentence(&error), "cannot read x: entity not found");
        assert_eq!(sentence(&anyhow::Error::from(missing()).context("no x")), "no x: entity not found");
    }
}
