//! `danlu completions` and `danlu man`: what shells and `man` know of the command line, from its own definition.

use super::out::Out;
use crate::error::Error;
use crate::store::atomic::{create_folder, write_file};
use anyhow::Result;
use clap::{Args, Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Flags of `danlu completions`.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell; for bash, for example: danlu completions bash >~/.local/share/bash-completion/completions/danlu.
    shell: Shell,
}

/// Flags of `danlu man`.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// Write danlu.1 and a page for each command into this folder, instead of printing the first.
    #[arg(value_name = "FOLDER")]
    folder: Option<PathBuf>,
}

/// Prints a shell's completions.
pub fn completions(args: CompletionsArgs) -> Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut super::Cli::command(), "danlu", &mut text);
    Ok(Out.write_all(&text)?)
}

/// Prints the manual page, or writes them all.
pub fn man(args: ManArgs) -> Result<()> {
    // Names of commands then hold those of the commands above them.
    let mut command = super::Cli::command().disable_help_subcommand(true);
    command.build();
    let Some(folder) = &args.folder else { return Ok(Out.write_all(&page(&command)?)?) };
    create_folder(folder)?;
    pages(&command, folder)
}

fn pages(command: &Command, folder: &Path) -> Result<()> {
    let path = folder.join(Man::new(command.clone()).get_filename());
    write_file(&path, &page(command)?)?;
    say!("{}", path.display());
    command.get_subcommands().filter(|c| !c.is_hide_set()).try_for_each(|c| pages(c, folder))
}

fn page(command: &Command) -> Result<Vec<u8>, Error> {
    let mut text = Vec::new();
    Man::new(command.clone()).render(&mut text).map_err(|e| Error::io("render", "a manual page", e))?;
    Ok(text)
}
