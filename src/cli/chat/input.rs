//! What is typed: lines of a person, edited and remembered, or lines of a script; and texts of several lines in both.

use anyhow::{Context, Result};
use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Config, Editor, Helper};
use std::path::{Path, PathBuf};

/// What came.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// Something to say, or a command.
    Text(String),
    /// Ctrl-C on an empty line.
    Interrupted,
    /// Nothing more will come.
    End,
}

/// Where it comes from.
pub(super) enum Input {
    /// A person, and the file that remembers what was typed.
    Terminal(Box<Editor<Unfinished, FileHistory>>, PathBuf),
    /// Anything else: the line at which the newest text began, from 1, and lines read so far.
    Script(usize, usize),
}

impl Input {
    /// Reads standard input, with an editor where a person sits before it.
    pub(super) fn new(terminal: bool, history: &Path) -> Result<Input> {
        if !terminal {
            return Ok(Input::Script(0, 0));
        }
        let config = Config::builder().auto_add_history(true).history_ignore_space(true).build();
        let mut editor = Editor::with_config(config).context("cannot use the terminal")?;
        editor.set_helper(Some(Unfinished));
        // There is none at first.
        let _ = editor.load_history(history);
        Ok(Input::Terminal(Box::new(editor), history.to_path_buf()))
    }

    /// True before a person.
    pub(super) fn is_terminal(&self) -> bool {
        matches!(self, Input::Terminal(..))
    }

    /// The line of a script at which the newest text began.
    pub(super) fn line(&self) -> usize {
        if let Input::Script(began, _) = self { *began } else { 0 }
    }

    /// The next text that is not empty.
    pub(super) fn next(&mut self) -> Result<Entry> {
        loop {
            let text = match self {
                Input::Terminal(editor, _) => match editor.readline("> ") {
                    Ok(text) => text,
                    Err(ReadlineError::Eof) => return Ok(Entry::End),
                    Err(ReadlineError::Interrupted) => return Ok(Entry::Interrupted),
                    Err(error) => return Err(error).context("cannot read from the terminal"),
                },
                Input::Script(began, read) => {
                    *began = *read + 1;
                    match script(&mut std::io::stdin().lines().inspect(|_| *read += 1))? {
                        Some(text) => text,
                        None => return Ok(Entry::End),
                    }
                }
            };
            let text = content(&text);
            if !text.is_empty() {
                return Ok(Entry::Text(text));
            }
        }
    }

    /// Keeps what was typed for the next time.
    pub(super) fn close(self) -> Result<()> {
        if let Input::Terminal(mut editor, history) = self {
            if let Some(folder) = history.parent() {
                std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
            }
            editor.append_history(&history).with_context(|| format!("cannot write {}", history.display()))?;
        }
        Ok(())
    }
}

/// Lines up to the end of a text.
fn script(lines: &mut impl Iterator<Item = std::io::Result<String>>) -> Result<Option<String>> {
    let mut text: Option<String> = None;
    for line in lines {
        let line = line.context("cannot read standard input")?;
        let text = match &mut text {
            Some(text) => {
                text.push('\n');
                text.push_str(&line);
                text
            }
            None => text.insert(line),
        };
        if !unfinished(text) {
            break;
        }
    }
    Ok(text)
}

/// True for a text that goes on in the next line.
fn unfinished(text: &str) -> bool {
    match text.trim_start().strip_prefix(QUOTES) {
        Some(rest) => !rest.trim_end().ends_with(QUOTES),
        None => text.ends_with('\\'),
    }
}

/// A finished text without the signs that held its lines together.
fn content(text: &str) -> String {
    let trimmed = text.trim();
    match trimmed.strip_prefix(QUOTES) {
        Some(inside) => inside.strip_suffix(QUOTES).unwrap_or(inside).trim_matches('\n').to_string(),
        None => trimmed.replace("\\\n", "\n").trim_end_matches('\\').trim_end().to_string(),
    }
}

const QUOTES: &str = "\"\"\"";

/// Tells the editor whether a text is finished.
pub(super) struct Unfinished;

impl Completer for Unfinished {
    type Candidate = String;
}

impl Hinter for Unfinished {
    type Hint = String;
}

impl Highlighter for Unfinished {}

impl Helper for Unfinished {}

impl Validator for Unfinished {
    fn validate(&self, context: &mut ValidationContext) -> rustyline::Result<ValidationResult> {
        Ok(if unfinished(context.input()) { ValidationResult::Incomplete } else { ValidationResult::Valid(None) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_several_lines() {
        let all = "one\ntwo \\\nthree\n\"\"\"four\n\nfive\"\"\"\n\"\"\"\nsix\n\"\"\"\nlast\\";
        let mut lines = all.lines().map(|line| Ok(line.to_string()));
        let mut texts = Vec::new();
        while let Some(text) = script(&mut lines).unwrap() {
            texts.push(content(&text));
        }
        assert_eq!(texts, ["one", "two \nthree", "four\n\nfive", "six", "last"]);
    }
}
