//! Lines that begin with a stroke: what they ask for.

use crate::infer::Sampling;
use anyhow::{Result, anyhow, bail};
use std::path::PathBuf;
use std::str::FromStr;

/// What `/help` prints.
pub(super) const HELP: &str = "\
/system [TEXT]      show the system message, or set it
/retry              another answer to the last question
/undo               take back the last question and its answer
/clear              forget the conversation, but for the system message
/save FILE          write the conversation as JSON
/load FILE          go on with one that was saved
/set [NAME VALUE]   temperature, top-k, top-p, min-p, repetition-penalty,
                    presence-penalty, frequency-penalty, seed, tokens
/tokens             how full the context is
/quit               leave; so does Ctrl-D
A line that ends with \\ goes on in the next one; so does everything between two \"\"\".";

/// One of them.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Command {
    Help,
    Quit,
    Clear,
    System(Option<String>),
    Save(PathBuf),
    Load(PathBuf),
    Set(Setting),
    Settings,
    Retry,
    Undo,
    Tokens,
}

/// A value of `/set`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Setting {
    Temperature(f32),
    TopK(usize),
    TopP(f32),
    MinP(f32),
    RepetitionPenalty(f32),
    PresencePenalty(f32),
    FrequencyPenalty(f32),
    Seed(u64),
    Tokens(usize),
}

impl Command {
    /// The command that a text is; nothing for what is said to the model.
    ///
    /// # Errors
    /// A sentence for commands that are unknown or lack something.
    pub(super) fn parse(text: &str) -> Result<Option<Command>> {
        let Some(line) = text.strip_prefix('/') else { return Ok(None) };
        let (name, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let rest = rest.trim();
        let file = || match rest {
            "" => Err(anyhow!("/{name} needs the name of a file")),
            file => Ok(PathBuf::from(file)),
        };
        let command = match name {
            "help" | "?" => Command::Help,
            "quit" | "exit" | "bye" => Command::Quit,
            "clear" => Command::Clear,
            "system" => Command::System(Some(rest.to_string()).filter(|text| !text.is_empty())),
            "save" => Command::Save(file()?),
            "load" => Command::Load(file()?),
            "set" if rest.is_empty() => Command::Settings,
            "set" => Command::Set(Setting::parse(rest)?),
            "retry" => Command::Retry,
            "undo" => Command::Undo,
            "tokens" => Command::Tokens,
            _ => bail!("there is no command /{name}; /help lists them"),
        };
        Ok(Some(command))
    }
}

impl Setting {
    fn parse(text: &str) -> Result<Setting> {
        let (name, value) = text.split_once(|c: char| c.is_whitespace() || c == '=').unwrap_or((text, ""));
        fn number<T: FromStr>(name: &str, value: &str) -> Result<T> {
            value.trim().parse().map_err(|_| anyhow!("/set {name} needs a number, and {value:?} is none"))
        }
        Ok(match name.replace('_', "-").as_str() {
            "temperature" => Setting::Temperature(number(name, value)?),
            "top-k" => Setting::TopK(number(name, value)?),
            "top-p" => Setting::TopP(number(name, value)?),
            "min-p" => Setting::MinP(number(name, value)?),
            "repetition-penalty" => Setting::RepetitionPenalty(number(name, value)?),
            "presence-penalty" => Setting::PresencePenalty(number(name, value)?),
            "frequency-penalty" => Setting::FrequencyPenalty(number(name, value)?),
            "seed" => Setting::Seed(number(name, value)?),
            "tokens" => Setting::Tokens(number(name, value)?),
            _ => bail!(
                "there is no setting {name:?}; known are temperature, top-k, top-p, min-p, repetition-penalty, \
                 presence-penalty, frequency-penalty, seed, tokens"
            ),
        })
    }

    /// Puts the value in its place.
    pub(super) fn apply(self, sampling: &mut Sampling, tokens: &mut usize) {
        match self {
            Setting::Temperature(value) => sampling.temperature = value,
            Setting::TopK(value) => sampling.top_k = value,
            Setting::TopP(value) => sampling.top_p = value,
            Setting::MinP(value) => sampling.min_p = value,
            Setting::RepetitionPenalty(value) => sampling.repetition_penalty = value,
            Setting::PresencePenalty(value) => sampling.presence_penalty = value,
            Setting::FrequencyPenalty(value) => sampling.frequency_penalty = value,
            Setting::Seed(value) => sampling.seed = value,
            Setting::Tokens(value) => *tokens = value,
        }
    }
}

/// What `/set` prints.
pub(super) fn settings(s: &Sampling, tokens: usize) -> String {
    format!(
        "temperature {}, top-k {}, top-p {}, min-p {}, repetition-penalty {}, presence-penalty {}, frequency-penalty {}, \
         seed {}, tokens {tokens}",
        s.temperature, s.top_k, s.top_p, s.min_p, s.repetition_penalty, s.presence_penalty, s.frequency_penalty, s.seed
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_with_a_stroke_are_commands() {
        for (text, expected) in [
            ("hello /help", None),
            ("/help", Some(Command::Help)),
            ("/exit ", Some(Command::Quit)),
            ("/system  Be kind.\nAlways.", Some(Command::System(Some("Be kind.\nAlways.".into())))),
            ("/system", Some(Command::System(None))),
            ("/save a b.json", Some(Command::Save("a b.json".into()))),
            ("/set top_k 5", Some(Command::Set(Setting::TopK(5)))),
            ("/set temperature=0.5", Some(Command::Set(Setting::Temperature(0.5)))),
            ("/set", Some(Command::Settings)),
        ] {
            assert_eq!(Command::parse(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_command_is_said() {
        for (text, expected) in [
            ("/hepl", "there is no command /hepl; /help lists them"),
            ("/load", "/load needs the name of a file"),
            ("/set temperature", "/set temperature needs a number, and \"\" is none"),
            ("/set seed -1", "/set seed needs a number, and \"-1\" is none"),
            (
                "/set heat 3",
                "there is no setting \"heat\"; known are temperature, top-k, top-p, min-p, repetition-penalty, \
                 presence-penalty, frequency-penalty, seed, tokens",
            ),
        ] {
            assert_eq!(Command::parse(text).unwrap_err().to_string(), expected);
        }
    }
}
