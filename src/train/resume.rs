//! Where a run can be taken up, and what may be changed of it then.

use super::folder::{GIVEN, RunId};
use super::log::{RECIPE, are_metrics, is_event_file};
use super::{About, Prepared, Recipe, Trained, Trainer, schedule};
use crate::base::read_given_text;
use crate::error::{Error, Result};
use crate::store::ADAPTER_CONFIG;
use crate::store::snapshot::{Series, Snapshot};
use serde::{Deserialize, Deserializer, de};
use std::collections::BTreeMap;
use std::path::Path;

/// Keys that change nothing of what is computed, or only what is to come by the person's wish. A name ending in a dot is
/// that of a group.
const FREE: [&str; 17] = [
    "memory",
    "adapter",
    "mesh",
    "interleave",
    "shard",
    "expert_capacity",
    "compare_every",
    "tune",
    "prompt",
    "prompts",
    "eval_tasks",
    "eval_limit",
    "out",
    "eval_every",
    "patience",
    "checkpoint.",
    "recovery.",
];

/// A key of runs that began before there was it, which went without what it says.
const LATER: &str = "weight_copies";

impl Recipe {
    /// Reads the recipe in a run's folder. It says all keys that there were when the run began: one that came later is not what is
    /// the default now, but what the run did.
    ///
    /// # Errors
    /// As [`Recipe::open`].
    pub fn open_run(path: impl AsRef<Path>) -> Result<Recipe> {
        let path = path.as_ref();
        let recipe = Recipe::open(path)?;
        let keys: toml::Table = read_given_text(path)?.parse().unwrap_or_default();
        Ok(Recipe { weight_copies: recipe.weight_copies && keys.contains_key(LATER), ..recipe })
    }

    /// The same of a recipe that a checkpoint holds.
    pub(super) fn of_run<'de, D: Deserializer<'de>>(from: D) -> Result<Recipe, D::Error> {
        let mut keys = serde_json::Map::<String, serde_json::Value>::deserialize(from)?;
        keys.entry(LATER).or_insert(false.into());
        serde_json::from_value(keys.into()).map_err(de::Error::custom)
    }
}

/// A run that can be taken up.
#[derive(Debug)]
pub struct Resumption {
    /// Its recipe.
    pub recipe: Recipe,
    /// Its newest whole checkpoint; without one it begins at the first step.
    pub from: Option<(Snapshot, About)>,
}

impl Resumption {
    /// Looks into a run's folder; `note` hears of checkpoints that are damaged.
    ///
    /// # Errors
    /// If it holds no run, one that this version cannot take up, or checkpoints of which none can be used: they may miss no more
    /// than a disk that is not mounted, and a run that began anew would remove them. Nor is a model written over that was trained
    /// without checkpoints.
    pub fn find(folder: &Path, note: &mut dyn FnMut(String)) -> Result<Resumption> {
        let mut newest = None;
        let mut passed = |step: u64, error: Error| {
            let text = format!("the checkpoint of step {step} is not used: {error}");
            newest.get_or_insert(text.clone());
            note(text);
        };
        let out = folder.to_path_buf();
        let found = Series::below(folder).newest(&mut passed);
        if let (None, Some(text)) = (&found, newest) {
            let (out, recipe) = (folder.display(), folder.join(RECIPE));
            let message = format!(
                "holds no checkpoint that can be used; {text}. Bring back what is missing, or begin anew: danlu train --recipe {} \
                 --out {out} --force",
                recipe.display()
            );
            return Err(Error::file(folder, message));
        }
        if let Some(snapshot) = found {
            let about = About::read(&snapshot)?;
            let recipe = Recipe { out, ..about.recipe.clone() };
            return Ok(Resumption { recipe, from: Some((snapshot, about)) });
        }
        let recipe = folder.join(RECIPE);
        if !recipe.is_file() {
            let message = format!("holds no run that could be taken up: neither a checkpoint nor {RECIPE}");
            return Err(Error::file(folder, message));
        }
        if holds_model(folder) && !is_of_another_run(folder) {
            let message = format!(
                "holds the model of a run, which kept no checkpoint to go on from; begin anew by {} with another --out, or over it \
                 with --force",
                recipe.display()
            );
            return Err(Error::file(folder, message));
        }
        Ok(Resumption { recipe: Recipe { out, ..Recipe::open_run(&recipe)? }, from: None })
    }

    /// Steps done.
    pub fn step(&self) -> u64 {
        self.from.as_ref().map_or(0, |(_, about)| about.progress.step)
    }

    /// Takes a changed recipe in place of the run's, if the run stays the same with it.
    ///
    /// # Errors
    /// A sentence with the first key whose value may not change.
    pub fn change(&mut self, wanted: Recipe) -> Result<()> {
        let (had, has) = (self.recipe.resolved().values(), wanted.resolved().values());
        let free = |key: &str| FREE.iter().any(|f| key == *f || (f.ends_with('.') && key.starts_with(f)));
        let keys = had.keys().chain(has.keys());
        let Some(key) = keys.into_iter().find(|key| had.get(*key) != has.get(*key) && !free(key) && *key != "steps")
        else {
            return self.change_steps(wanted);
        };
        let show = |of: &BTreeMap<String, String>| of.get(key).cloned().unwrap_or_else(|| "not set".into());
        Err(Error::Invalid(format!(
            "{key} is {} in the run that is taken up, and would be {}: a resumed run keeps its recipe; leave that out, or \
             start anew with another --out",
            show(&had),
            show(&has)
        )))
    }

    fn change_steps(&mut self, wanted: Recipe) -> Result<()> {
        let (done, steps) = (self.step(), wanted.steps);
        if steps < done {
            return Err(Error::Invalid(format!("steps would be {steps}, and {done} are done already; ask for more")));
        }
        let (old, new) = (schedule(&self.recipe.resolved()), schedule(&wanted.resolved()));
        if steps != self.recipe.steps && (0..done).any(|step| old.rate(step).to_bits() != new.rate(step).to_bits()) {
            return Err(Error::Invalid(format!(
                "steps is {} in the run that is taken up, and would be {steps}: by this schedule the learning rate of the \
                 {done} steps that are done would have been another; keep it, or go on from the model that was written",
                self.recipe.steps
            )));
        }
        self.recipe = wanted;
        Ok(())
    }

    /// Brings a fresh trainer to where the run was.
    ///
    /// # Errors
    /// If the data have changed, the checkpoint does not fit, or the device fails.
    pub async fn restore(&self, trainer: &mut Trainer, prepared: &Prepared) -> Result<()> {
        let Some((snapshot, about)) = &self.from else { return Ok(()) };
        about.check_content(prepared)?;
        trainer.restore(snapshot, about.progress.clone()).await
    }
}

/// What of a run's folder is neither its checkpoints nor its model, beside files whose names begin with a dot.
const BESIDE: [&str; 5] = [RECIPE, GIVEN, "checkpoints", "ranks", "job.sh"];
const METRICS_FILES: [&str; 2] = ["metrics.jsonl", "metrics.csv"];

/// Why a run must not begin in a folder unless it is told to, with the ways on: what it would write over, or write among. Nothing
/// of an empty folder, or of a run that came to neither a checkpoint nor a model.
pub fn occupied(folder: &Path) -> Option<String> {
    let out = folder.display();
    let all = Series::below(folder).list();
    let read = |(_, folder): &(u64, std::path::PathBuf)| About::read(&Snapshot::open(folder).ok()?).ok();
    let begun = |what: String| {
        format!(
            "{out} holds a run {what}: go on with it with --resume {out}, choose another --out, or give it up with --force"
        )
    };
    let over = |what: &str| format!("{out} holds {what}: choose another --out, or write over it with --force");
    match all.iter().rev().find_map(read) {
        Some(About { progress, recipe, .. }) if progress.step < recipe.steps => {
            return Some(begun(format!("with {} of {} steps done", progress.step, recipe.steps)));
        }
        Some(About { recipe, .. }) => {
            return Some(over(&format!("a run that has come to its end, with all {} steps done", recipe.steps)));
        }
        None if !all.is_empty() => return Some(begun("with checkpoints that cannot be read".into())),
        None => {}
    }
    if holds_model(folder) {
        let run = if folder.join(RECIPE).exists() { "the model of a run, which kept no checkpoint" } else { "a model" };
        return Some(over(run));
    }
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    let beside = |name: &String| {
        let begins = [".", "slurm-"].iter().any(|beginning| name.starts_with(beginning));
        let is_own = begins || name.ends_with(".tmp") || is_event_file(name) || BESIDE.contains(&name.as_str());
        // Recipes are other programs' as well.
        let is_own = is_own && (name != RECIPE || Recipe::open_run(folder.join(RECIPE)).is_ok());
        is_own || METRICS_FILES.contains(&name.as_str()) && are_metrics(folder, name)
    };
    let other = names.iter().find(|name| !beside(name))?;
    Some(format!(
        "{out} holds {other}, which is no run's: choose another --out, or train there all the same with --force"
    ))
}

/// Whether a folder holds a model, or a part of one: weights come before what says of which model they are, and a run that was
/// killed between the two leaves them alone.
fn holds_model(folder: &Path) -> bool {
    let parts = ["model.safetensors", "config.json", "adapter_model.safetensors", ADAPTER_CONFIG];
    parts.iter().any(|name| folder.join(name).exists())
}

/// Whether the model in a folder says of itself that it is of another run than the last that was begun there, which wrote nothing yet.
fn is_of_another_run(folder: &Path) -> bool {
    let trained = Trained::read(folder).ok().flatten().and_then(|trained| trained.run);
    trained.zip(RunId::read(folder)).is_some_and(|(of, now)| of != now)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::AdapterId;
    use crate::train::{Content, Precision, Progress};
    use std::fs;

    /// Whether there are copies of weights chooses kernels and takes memory: a run that began without goes on without.
    #[test]
    fn a_run_of_before_copies_goes_on_without() {
        let place = tempfile::tempdir().unwrap();
        let recipe = Recipe { precision: Precision::Mixed, out: place.path().into(), ..Recipe::default() };
        let text = recipe.to_toml();
        let file = place.path().join(RECIPE);
        let found = || Resumption::find(place.path(), &mut |text| panic!("{text}")).unwrap();
        fs::write(&file, &text).unwrap();
        assert_eq!(found().recipe, recipe);
        let before = text.replace("weight_copies = true\n", "");
        assert!(before.len() < text.len());
        fs::write(&file, before).unwrap();
        let without = Recipe { weight_copies: false, ..recipe.clone() };
        let mut resumption = found();
        assert_eq!(resumption.recipe, without);
        resumption.change(without.clone()).unwrap();
        let refused = resumption.change(recipe.clone()).unwrap_err().to_string();
        assert!(
            refused.starts_with("weight_copies is false in the run that is taken up, and would be true: "),
            "{refused}"
        );
        // A recipe of a run that begins has the default.
        assert!(Recipe::open(&file).unwrap().weight_copies);

        let about = About {
            build: String::new(),
            adapter: AdapterId { name: String::new(), driver: String::new(), backend: String::new() },
            recipe,
            content: Content { tokenizer: String::new(), tokens: String::new(), model: None, config: None },
            kernels: Vec::new(),
            progress: Progress::default(),
        };
        let mut value = serde_json::to_value(&about).unwrap();
        assert_eq!(serde_json::from_value::<About>(value.clone()).unwrap(), about);
        assert!(value["recipe"].as_object_mut().unwrap().remove(LATER).is_some());
        assert_eq!(serde_json::from_value::<About>(value).unwrap().recipe, without);
    }

    #[test]
    fn what_is_of_worth_occupies_a_folder() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("m");
        let said = |part: &str| {
            let text = occupied(&folder).unwrap_or_else(|| panic!("{part}"));
            assert!(
                text.starts_with(&format!("{} holds {part}: ", folder.display())) && text.contains("--force"),
                "{text}"
            );
        };
        assert_eq!(occupied(&folder), None, "one that is not there");
        fs::create_dir_all(folder.join("checkpoints")).unwrap();
        // What a run leaves that has come to nothing.
        for name in
            [RECIPE, "metrics.jsonl", "metrics.csv", ".lock", ".run", "events.out.tfevents.1.danlu", "slurm-7.log"]
        {
            fs::write(folder.join(name), "").unwrap();
        }
        assert_eq!(occupied(&folder), None);
        fs::write(folder.join("metrics.csv"), "step,loss,smoothed_loss\n1,2.0,\n").unwrap();
        fs::write(folder.join("metrics.jsonl"), "{\"step\":1,\"wall\":1e9,\"loss\":2.0}\n").unwrap();
        assert_eq!(occupied(&folder), None);
        // Other programs' files are called so, too.
        for (name, text) in [
            (RECIPE, "recipe = \"pasta\"\n"),
            ("metrics.csv", "epoch,step,train_loss\n"),
            ("metrics.jsonl", "{\"train\": {\"loss\": 2.0}}\n"),
            ("events.out.tfevents.1.host.7.0", ""),
        ] {
            fs::write(folder.join(name), text).unwrap();
            said(&format!("{name}, which is no run's"));
            fs::remove_file(folder.join(name)).unwrap();
        }
        fs::write(folder.join(RECIPE), "").unwrap();
        fs::write(folder.join("thesis.tex"), "").unwrap();
        said("thesis.tex, which is no run's");
        for name in ["model.safetensors", "adapter_model.safetensors", ADAPTER_CONFIG] {
            fs::write(folder.join(name), "").unwrap();
            said("the model of a run, which kept no checkpoint");
            fs::write(folder.join(RECIPE), Recipe::default().to_toml()).unwrap();
            let error = Resumption::find(&folder, &mut |text| panic!("{text}")).unwrap_err().to_string();
            assert!(error.contains("the model of a run, which kept no checkpoint to go on from"), "{error}");
            fs::remove_file(folder.join(name)).unwrap();
        }
        fs::write(folder.join(ADAPTER_CONFIG), "").unwrap();
        fs::remove_file(folder.join(RECIPE)).unwrap();
        said("a model");
        fs::create_dir_all(folder.join("checkpoints/step-3")).unwrap();
        said("a run with checkpoints that cannot be read");
    }
}
