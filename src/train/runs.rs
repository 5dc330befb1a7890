//! What runs on disk came to, from what they wrote down: for a list of them, and to compare them.

use super::log::{JSONL as METRICS_FILE, RECIPE, read_whole_metrics};
use super::{ExpertLoad, Metrics, Recipe};
use crate::base::read_given_text;
use crate::error::{Error, Result};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// How deep below a folder runs are looked for.
const DEPTH: usize = 3;

/// What a run came to so far.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunSummary {
    /// The run's folder.
    pub folder: PathBuf,
    /// Steps done.
    pub step: u64,
    /// Steps of its recipe.
    pub steps: Option<u64>,
    /// Whether the model lies there.
    pub model: bool,
    /// Cross entropy of the last step, smoothed; nats a token.
    pub loss: Option<f64>,
    /// The lowest validation loss, nats a token, and after which step.
    pub best: Option<(f64, u64)>,
    /// Of preference pairs, the share of held-out ones that are right, after the last validation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
    /// Where the model has experts: how evenly the last step's slots fell on them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub experts: Option<ExpertLoad>,
    /// Slots of all steps that found no room on the rank that holds their expert.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dropped: Option<u64>,
    /// Tokens computed, those that fill up rows among them.
    pub tokens: Option<f64>,
    /// Tokens a second: the median over the steps.
    pub tokens_per_second: Option<f64>,
    /// Bytes of tensors on the device.
    pub device_bytes: Option<f64>,
    /// Steps left out.
    pub skipped: Option<f64>,
    /// Seconds since 1970 of the last line.
    pub wall: f64,
    /// The recipe's keys and values, those of groups with the group's name before them; also of versions whose recipes
    /// this one could not take.
    pub recipe: BTreeMap<String, String>,
    /// What of its files is damaged, a sentence each: of that nothing is in the rest.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub damaged: Vec<String>,
}

impl RunSummary {
    /// Of a run's folder; nothing if there is none.
    ///
    /// # Errors
    /// If its metrics cannot be read.
    pub fn of(folder: &Path) -> Result<Option<RunSummary>> {
        let (lines, bad) = read_whole_metrics(folder)?;
        let file = folder.join(RECIPE);
        if lines.is_empty() && bad.is_empty() && !file.is_file() {
            return Ok(None);
        }
        let mut damaged = Vec::new();
        if let Some(first) = bad.first() {
            let (path, count) = (folder.join(METRICS_FILE), bad.len());
            let what = if count == 1 { "1 line that is".into() } else { format!("{count} lines that are") };
            damaged.push(format!("{}: is damaged: {what} no measurement, the first at {first}", path.display()));
        }
        let mut recipe = BTreeMap::new();
        if file.is_file() {
            let parsed = read_given_text(&file).and_then(|text| {
                text.parse::<toml::Table>().map_err(|e| Error::file(&file, e.message().replace('\n', "; ")))
            });
            match parsed {
                Ok(table) => recipe = Recipe::flat(toml::Value::Table(table)),
                Err(error) => damaged.push(format!("{error}; it is damaged")),
            }
        }
        let last = |get: fn(&Metrics) -> Option<f64>| lines.iter().rev().find_map(get);
        let validations = lines.iter().filter_map(|m| m.validation_loss.map(|loss| (loss, m.step)));
        let mut speeds: Vec<f64> = lines.iter().filter_map(|m| m.tokens_per_second).collect();
        speeds.sort_by(f64::total_cmp);
        Ok(Some(RunSummary {
            folder: folder.to_path_buf(),
            step: lines.iter().map(|m| m.step).max().unwrap_or(0),
            steps: recipe.get("steps").and_then(|steps| steps.parse().ok()),
            model: folder.join("config.json").is_file(),
            loss: last(|m| m.smoothed_loss.or(m.loss)),
            best: validations.min_by(|a, b| a.0.total_cmp(&b.0)),
            accuracy: last(|m| Some(m.validation_rewards?.accuracy)),
            experts: lines.iter().rev().find_map(|m| m.experts),
            dropped: lines.iter().filter_map(|m| Some(m.experts?.dropped)).reduce(|a, b| a + b),
            tokens: last(|m| m.tokens),
            tokens_per_second: speeds.get(speeds.len() / 2).copied(),
            device_bytes: last(|m| m.device_bytes),
            skipped: last(|m| m.skipped),
            wall: lines.last().map_or(0.0, |m| m.wall),
            recipe,
            damaged,
        }))
    }

    /// Keys of the recipes that are not the same in all runs, without those that every run has its own of. Of a recipe that is damaged
    /// it is not known in what it differs.
    pub fn differing(runs: &[RunSummary]) -> Vec<String> {
        let runs: Vec<&RunSummary> = runs.iter().filter(|run| !run.recipe.is_empty()).collect();
        let mut keys: Vec<&String> = runs.iter().flat_map(|run| run.recipe.keys()).collect();
        keys.sort();
        keys.dedup();
        let own = |key: &str| ["out", "steps"].contains(&key);
        let same = |key: &str| runs.windows(2).all(|pair| pair[0].recipe.get(key) == pair[1].recipe.get(key));
        keys.into_iter().filter(|key| !own(key) && !same(key)).cloned().collect()
    }
}

/// The runs in a folder and up to three folders below it, by name. Of a run's folder it is the run.
///
/// # Errors
/// If metrics cannot be read.
pub fn find_runs(folder: &Path) -> Result<Vec<RunSummary>> {
    fn walk(folder: &Path, depth: usize, into: &mut Vec<RunSummary>) -> Result<()> {
        if let Some(run) = RunSummary::of(folder)? {
            into.push(run);
            return Ok(());
        }
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let is_folder = |e: &std::fs::DirEntry| e.file_type().is_ok_and(|t| t.is_dir());
        let mut folders: Vec<PathBuf> = entries.filter(is_folder).map(|e| e.path()).collect();
        folders.sort();
        if depth > 0 {
            folders.iter().try_for_each(|folder| walk(folder, depth - 1, into))?;
        }
        Ok(())
    }
    let mut runs = Vec::new();
    walk(folder, DEPTH, &mut runs)?;
    Ok(runs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_damaged_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &[u8]| std::fs::write(dir.path().join(file), text).unwrap();
        write(RECIPE, b"steps = 9\n");
        write("metrics.jsonl", b"{\"step\":1,\"wall\":1.5,\"loss\":3.0}\n{\"step\":2,\"lo");
        let of = || RunSummary::of(dir.path()).unwrap().unwrap();
        assert_eq!((of().step, of().damaged), (1, vec![]), "a run that was ended while it wrote");
        write("metrics.jsonl", b"\xff\n{\"step\":1,\"wall\":1.5,\"loss\":3.0}\nx\n");
        write(RECIPE, b"steps = \n");
        let run = of();
        assert_eq!((run.step, run.steps, run.damaged.len()), (1, None, 2));
        assert!(run.damaged[0].ends_with("is damaged: 2 lines that are no measurement, the first at 1"), "{run:?}");
        assert!(run.damaged[1].contains("recipe.toml: ") && run.damaged[1].ends_with("; it is damaged"), "{run:?}");
    }

    #[test]
    fn runs_are_found_and_their_differences() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, file: &str, text: &str| {
            std::fs::create_dir_all(dir.path().join(name)).unwrap();
            std::fs::write(dir.path().join(name).join(file), text).unwrap();
        };
        let line = |step: u64, rest: &str| format!("{{\"step\":{step},\"wall\":{step}.5,{rest}}}\n");
        write("a", RECIPE, "steps = 9\nlr = 0.5\nnew_key = 1\n[checkpoint]\nkeep = 1\n");
        let lines = [
            line(1, "\"loss\":3.0,\"smoothed_loss\":3.5,\"tokens_per_second\":10.0"),
            line(1, "\"validation_loss\":2.5"),
            line(2, "\"loss\":2.0,\"smoothed_loss\":2.25,\"tokens_per_second\":30.0"),
            line(2, "\"validation_loss\":2.75"),
            line(3, "\"loss\":1.0,\"smoothed_loss\":2.0,\"tokens_per_second\":20.0"),
            "{\"step\":4,\"lo".into(),
        ];
        write("a", "metrics.jsonl", &lines.concat());
        write("deep/er/b", RECIPE, "steps = 5\nlr = 0.25\n[checkpoint]\nkeep = 1\n");
        write("empty", "notes.txt", "");
        let runs = find_runs(dir.path()).unwrap();
        assert_eq!(runs.len(), 2);
        let a = &runs[0];
        assert_eq!((a.step, a.steps, a.model, a.loss, a.best), (3, Some(9), false, Some(2.0), Some((2.5, 1))));
        assert_eq!((a.tokens_per_second, a.wall), (Some(20.0), 3.5));
        assert_eq!((runs[1].step, runs[1].steps, runs[1].loss), (0, Some(5), None));
        assert_eq!(RunSummary::differing(&runs), ["lr", "new_key"]);
        assert_eq!(find_runs(&dir.path().join("a")).unwrap(), runs[..1]);
        assert!(find_runs(&dir.path().join("empty")).unwrap().is_empty());
    }
}
