//! `danlu init`: a few questions, and a recipe that says what each key is for.

use super::hub::data_name;
use crate::model::find_config;
use crate::store::HubName;
use crate::store::atomic::write_file;
use crate::train::{Recipe, explain};
use anyhow::{Context, Result, bail};
use clap::Args;
use std::io::{BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};

/// Flags of `danlu init`.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// The recipe.
    #[arg(default_value = "recipe.toml")]
    file: PathBuf,
    /// Ask nothing: every key has its default.
    #[arg(long, short)]
    yes: bool,
    /// Write over a file that is there.
    #[arg(long)]
    force: bool,
}

/// What is asked: keys of a recipe.
const QUESTIONS: [(&str, &str); 9] = [
    ("data", "Text to train on: a file, a folder of them, or a name on the hub; nothing for embedded stories"),
    ("config", "Model: a preset, a config.json, a folder that holds one, or a name on the hub"),
    ("steps", "Optimizer steps"),
    ("batch", "Sequences of a step"),
    ("seq", "Tokens of a sequence"),
    ("lr", "Highest learning rate"),
    ("precision", "Precision: f32, or mixed"),
    ("prompt", "What samples go on from"),
    ("out", "Folder for the model, checkpoints and metrics"),
];

/// Writes a recipe.
pub fn init(args: InitArgs) -> Result<()> {
    if args.file.exists() && !args.force {
        bail!("{} is there already; name another file, or write over it with --force", args.file.display());
    }
    let recipe = if args.yes {
        Recipe::default()
    } else {
        if !std::io::stdin().is_terminal() {
            bail!("there is no terminal to ask on; take the defaults with --yes");
        }
        ask(&mut std::io::stdin().lock(), &mut std::io::stderr())?
    };
    write_file(&args.file, text(&recipe).as_bytes())?;
    tell!("{} is written; train by it with\n", args.file.display());
    tell!("    danlu train --recipe {}\n", args.file.display());
    Ok(())
}

fn text(recipe: &Recipe) -> String {
    let shown = QUESTIONS.map(|(key, _)| key);
    let head = "# What is trained, on what, and how: danlu train --recipe THIS, where flags override keys.\n\
                # Keys that stand as comments have the value that is shown.\n\n";
    head.to_string() + &recipe.to_commented_toml(&shown)
}

/// Asks each question until its answer is one; an empty answer is the default, as is the end of the input.
fn ask(answers: &mut dyn BufRead, questions: &mut dyn Write) -> Result<Recipe> {
    let mut recipe = Recipe::default();
    for (key, question) in QUESTIONS {
        loop {
            let default = recipe.values().get(key).cloned().unwrap_or_default();
            write!(questions, "{question} [{}]: ", default.trim_matches('"'))?;
            questions.flush()?;
            let mut answer = String::new();
            answers.read_line(&mut answer).context("cannot read from the terminal")?;
            if answer.trim().is_empty() {
                break;
            }
            match answered(&recipe, key, answer.trim()) {
                Ok(changed) => {
                    recipe = changed;
                    break;
                }
                Err(why) => writeln!(questions, "  {why}")?,
            }
        }
    }
    Ok(recipe)
}

/// The recipe with an answer in it, or why that cannot be.
fn answered(recipe: &Recipe, key: &str, answer: &str) -> Result<Recipe, String> {
    let mut table = toml::Table::try_from(recipe).expect("a recipe is always valid TOML");
    // Numbers are typed plainly, and so are words: which of the two a key wants, its type knows.
    let word = toml::Value::String(answer.into());
    let literal = format!("x = {answer}").parse::<toml::Table>().ok().and_then(|mut t| t.remove("x"));
    let is_word = table.get(key).is_none_or(toml::Value::is_str);
    table.insert(key.into(), if is_word { word } else { literal.unwrap_or(word) });
    let changed: Recipe = table.try_into().map_err(|e: toml::de::Error| explain(e.message()))?;
    changed.check().map_err(|e| e.to_string())?;
    // What a name stands for on a hub is asked when it is trained on.
    match key {
        "data" if changed.data.0.iter().any(|s| !s.path.exists() && data_name(&s.path).is_none()) => {
            return Err(format!("{answer}: no such file or folder"));
        }
        "config" if HubName::parse(answer).is_none() || Path::new(answer).exists() => {
            find_config(answer).map_err(|e| e.to_string())?;
        }
        _ => {}
    }
    Ok(changed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(answers: &str) -> (Recipe, String) {
        let mut said = Vec::new();
        let recipe = ask(&mut answers.as_bytes(), &mut said).unwrap();
        (recipe, String::from_utf8(said).unwrap())
    }

    #[test]
    fn answers_become_a_recipe_and_wrong_ones_are_asked_again() {
        assert_eq!(asked("").0, Recipe::default());
        let (recipe, said) =
            asked("gone.txt\nCargo.toml\nstory-2m\n\n0\nmany\n12\n\n\n1e-3\nhalf\nmixed\n\nruns/mine\n");
        assert_eq!((recipe.steps, recipe.lr, recipe.out.to_str()), (12, 1e-3, Some("runs/mine")));
        assert_eq!((recipe.data.0[0].path.to_str(), recipe.batch), (Some("Cargo.toml"), 2));
        for part in [
            "Optimizer steps [700]: ",
            "  gone.txt: no such file or folder\n",
            "  \"story-2m\" is neither a preset nor a config.json nor a folder with one; presets: ",
            "  steps is 0; it must be at least 1\n",
            "  invalid type: string \"many\", expected a whole number\n",
            "  unknown variant `half`, expected `f32` or `mixed`\n",
        ] {
            assert!(said.contains(part), "{part}: {said}");
        }
        assert_eq!(toml::from_str::<Recipe>(&text(&recipe)).unwrap(), recipe);
        let (recipe, _) = asked("org/data\norg/model\n");
        assert_eq!((recipe.data.0[0].path.to_str(), recipe.config.as_str()), (Some("org/data"), "org/model"));
    }
}
