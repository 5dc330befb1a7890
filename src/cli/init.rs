//! `danlu init`: a few questions, and a recipe that says what each key is for.

use super::hub::data_name;
use super::paths;
use crate::model::find_config;
use crate::store::HubName;
use crate::store::atomic::write_file;
use crate::train::{Recipe, explain};
use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use std::io::{BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};

/// Flags of `danlu init`.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// The recipe.
    #[arg(default_value = "recipe.toml")]
    file: PathBuf,
    /// The command that it is for; without it that is asked first [default: train].
    #[arg(long = "for", value_name = "train|finetune|dpo")]
    purpose: Option<Purpose>,
    /// Ask nothing: every key has its default. What a model that is there and data of one's own are has none.
    #[arg(long, short)]
    yes: bool,
    /// Write over a file that is there.
    #[arg(long)]
    force: bool,
}

/// The command that a recipe is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Purpose {
    /// A new model.
    Train,
    /// A model that is there, and examples.
    Finetune,
    /// A model that is there, and preference pairs.
    Dpo,
}

impl Purpose {
    fn command(self) -> &'static str {
        match self {
            Purpose::Train => "train",
            Purpose::Finetune => "finetune",
            Purpose::Dpo => "dpo",
        }
    }

    /// What its keys are where nothing is said.
    fn recipe(self) -> Recipe {
        match self {
            Purpose::Train => Recipe::default(),
            Purpose::Finetune => Recipe::finetuning(false),
            Purpose::Dpo => Recipe::preferring(false),
        }
    }

    /// What is asked: keys of a recipe.
    fn questions(self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let own: &[_] = match self {
            Purpose::Train => &NEW,
            Purpose::Finetune => &EXAMPLES,
            Purpose::Dpo => &PAIRS,
        };
        own.iter().chain(&QUESTIONS).copied()
    }

    /// True for what has no default and must be answered.
    fn wants(self, key: &str) -> bool {
        self != Purpose::Train && ["model", "data"].contains(&key)
    }
}

/// Asked before anything else, unless a flag says it.
const PURPOSE: &str = "What for: train, a new model; finetune, adapters of a model that is there; dpo, the same on \
                       preference pairs";

const NEW: [(&str, &str); 2] = [
    ("data", "Text to train on: a file, a folder of them, or a name on the hub; nothing for embedded stories"),
    ("config", "Model: a preset, a config.json, a folder that holds one, or a name on the hub"),
];
const BASE: (&str, &str) = ("model", "Model to go on with: a folder, a GGUF file, or a name on the hub");
const DTYPE: (&str, &str) =
    ("lora.base_dtype", "Its weights' dtype: keep, as they came, or nf4 for QLoRA, q8_0, f16, bf16, f32");
const EXAMPLES: [(&str, &str); 3] =
    [BASE, ("data", "Examples: a JSONL, JSON or Parquet file, a folder of them, or a name on the hub"), DTYPE];
const PAIRS: [(&str, &str); 3] = [
    BASE,
    ("data", "Pairs of a chosen and a rejected answer: a JSONL, JSON or Parquet file, a folder, or a name on the hub"),
    DTYPE,
];
const QUESTIONS: [(&str, &str); 7] = [
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
    // What cannot be written is said before anything is asked.
    paths::try_file(&args.file)?;
    let (purpose, recipe) = if args.yes {
        let purpose = args.purpose.unwrap_or(Purpose::Train);
        if purpose != Purpose::Train {
            bail!("no default says which model and data `danlu {}` is to take: leave --yes out", purpose.command());
        }
        (purpose, purpose.recipe())
    } else {
        if !std::io::stdin().is_terminal() {
            bail!("there is no terminal to ask on; take the defaults with --yes");
        }
        ask(args.purpose, &mut std::io::stdin().lock(), &mut std::io::stderr())?
    };
    write_file(&args.file, text(purpose, &recipe).as_bytes())?;
    tell!("{} is written; train by it with\n", args.file.display());
    tell!("    danlu {} --recipe {}\n", purpose.command(), args.file.display());
    Ok(())
}

fn text(purpose: Purpose, recipe: &Recipe) -> String {
    let shown: Vec<&str> = purpose.questions().map(|(key, _)| key).collect();
    let head = format!(
        "# What is trained, on what, and how: danlu {} --recipe THIS, where flags override keys.\n\
         # Keys that stand as comments have the value that is shown.\n\n",
        purpose.command()
    );
    head + &recipe.to_commented_toml(&shown)
}

/// Asks each question until its answer is one; an empty answer is the default, as is the end of the input where there is one.
fn ask(purpose: Option<Purpose>, answers: &mut dyn BufRead, questions: &mut dyn Write) -> Result<(Purpose, Recipe)> {
    let mut answer = |question: &str, default: &str, said: &str| -> Result<Option<String>> {
        write!(questions, "{said}{question} [{default}]: ")?;
        questions.flush()?;
        let mut answer = String::new();
        let read = answers.read_line(&mut answer).context("cannot read from the terminal")?;
        Ok((read > 0).then(|| answer.trim().to_string()))
    };
    let mut said = String::new();
    let purpose = match purpose {
        Some(purpose) => purpose,
        None => loop {
            let answer = answer(PURPOSE, "train", &said)?.filter(|answer| !answer.is_empty());
            match answer.map_or(Ok(Purpose::Train), |answer| Purpose::from_str(&answer, false)) {
                Ok(purpose) => break purpose,
                Err(_) => said = "  train, finetune or dpo\n".into(),
            }
        },
    };
    let mut recipe = purpose.recipe();
    for (key, question) in purpose.questions() {
        said.clear();
        loop {
            let default = recipe.values().get(key).cloned().unwrap_or_default();
            let answer = answer(question, default.trim_matches('"'), &said)?;
            said = match answer.as_deref() {
                None if purpose.wants(key) => {
                    bail!("the answers ended before they named the {key}; nothing is written")
                }
                Some("") if purpose.wants(key) => "  this has no default\n".into(),
                None | Some("") => break,
                Some(answer) => match answered(&recipe, key, answer) {
                    Ok(changed) => {
                        recipe = changed;
                        break;
                    }
                    Err(why) => format!("  {why}\n"),
                },
            };
        }
    }
    Ok((purpose, recipe))
}

/// The recipe with an answer in it, or why that cannot be.
fn answered(recipe: &Recipe, key: &str, answer: &str) -> Result<Recipe, String> {
    let mut table = toml::Table::try_from(recipe).expect("a recipe is always valid TOML");
    // Numbers are typed plainly, and so are words: which of the two a key wants, its type knows.
    let word = toml::Value::String(answer.into());
    let literal = format!("x = {answer}").parse::<toml::Table>().ok().and_then(|mut t| t.remove("x"));
    let (group, name) = key.split_once('.').map_or((None, key), |(group, name)| (Some(group), name));
    let group = match group.and_then(|group| table.get_mut(group)).and_then(toml::Value::as_table_mut) {
        Some(group) => group,
        None => &mut table,
    };
    let is_word = group.get(name).is_none_or(toml::Value::is_str);
    group.insert(name.into(), if is_word { word } else { literal.unwrap_or(word) });
    let changed: Recipe = table.try_into().map_err(|e: toml::de::Error| explain(e.message()))?;
    changed.check().map_err(|e| e.to_string())?;
    // What a name stands for on a hub is asked when it is trained on.
    match key {
        "data" if changed.data.0.iter().any(|s| !s.path.exists() && data_name(&s.path).is_none()) => {
            return Err(format!("{answer}: no such file or folder"));
        }
        "model" if !Path::new(answer).exists() && HubName::parse(answer).is_none() => {
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
    use crate::nn::{BaseDtype, LoraConfig};

    fn asked(answers: &str) -> (Recipe, String) {
        let mut said = Vec::new();
        let (purpose, recipe) = ask(Some(Purpose::Train), &mut answers.as_bytes(), &mut said).unwrap();
        assert_eq!(purpose, Purpose::Train);
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
        assert_eq!(toml::from_str::<Recipe>(&text(Purpose::Train, &recipe)).unwrap(), recipe);
        let (recipe, _) = asked("org/data\norg/model\n");
        assert_eq!((recipe.data.0[0].path.to_str(), recipe.config.as_str()), (Some("org/data"), "org/model"));
    }

    /// What is written is what the command reads that it is for, over its own defaults.
    #[test]
    fn recipes_for_a_model_that_is_there_name_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("recipe.toml");
        for (purpose, defaults) in
            [(Purpose::Finetune, Recipe::finetuning as fn(bool) -> Recipe), (Purpose::Dpo, Recipe::preferring)]
        {
            let answers = format!("both\n{}\n\nsrc\norg/pairs\nnf5\nnf4\n\n2\n", purpose.command());
            let mut said = Vec::new();
            let (found, recipe) = ask(None, &mut answers.as_bytes(), &mut said).unwrap();
            let said = String::from_utf8(said).unwrap();
            assert_eq!(found, purpose);
            let wanted = defaults(false);
            let lora = LoraConfig { base_dtype: BaseDtype::Nf4, ..LoraConfig::default() };
            let data = recipe.data.clone();
            assert_eq!(data.0[0].path.to_str(), Some("org/pairs"));
            assert_eq!(recipe, Recipe { model: Some("src".into()), data, batch: 2, lora: Some(lora), ..wanted });
            for part in
                ["  train, finetune or dpo\n", "  this has no default\nModel to go on with", "  unknown variant `nf5`"]
            {
                assert!(said.contains(part), "{part}: {said}");
            }
            std::fs::write(&file, text(purpose, &recipe)).unwrap();
            assert_eq!(Recipe::open_over(&file, false, defaults).unwrap(), recipe);
            let ended = ask(Some(purpose), &mut "src\n".as_bytes(), &mut Vec::new()).unwrap_err();
            assert_eq!(ended.to_string(), "the answers ended before they named the data; nothing is written");
        }
    }
}
