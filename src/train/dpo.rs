//! `[dpo]` of a recipe, and the reference of preference pairs: what the model that training began with says of each, computed
//! once and kept in the run's folder.

use super::Content;
use crate::data::{Batch, hash::Hasher};
use crate::error::{Error, Result};
use crate::store::atomic::write_file;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Name of the reference's file in a run's folder.
const FILE: &str = "reference.jsonl";

/// Direct preference optimisation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DpoOptions {
    /// How dearly it pays to move away from the reference: rewards are this times the log-ratio to it.
    pub beta: f64,
}

impl Default for DpoOptions {
    fn default() -> Self {
        DpoOptions { beta: 0.1 }
    }
}

impl DpoOptions {
    /// Refuses values that no run can use.
    ///
    /// # Errors
    /// A sentence that names the key, its value and what it may be.
    pub fn check(&self, batch: usize) -> Result<()> {
        if !(self.beta > 0.0 && self.beta.is_finite()) {
            return Err(Error::Invalid(format!("dpo.beta is {}; it must be a number above 0", self.beta)));
        }
        if batch % 2 == 1 {
            let message = "a pair takes two sequences, so that it must be even";
            return Err(Error::Invalid(format!("batch is {batch}; {message}")));
        }
        Ok(())
    }
}

/// Of every pair log π(better) - log π(worse) of the model that training began with, by the pair's content.
#[derive(Debug, Clone, PartialEq)]
pub struct References {
    path: PathBuf,
    of: Content,
    ratios: BTreeMap<u64, f32>,
}

/// A line of the file.
#[derive(Serialize, Deserialize)]
struct Line {
    pair: String,
    ratio: f32,
}

impl References {
    /// Those in a run's folder, if they are of this content; else none.
    pub fn open(run: &Path, of: Content) -> References {
        let path = run.join(FILE);
        let ratios = read(&path, &of).unwrap_or_default();
        References { path, of, ratios }
    }

    /// How many pairs there are.
    pub fn len(&self) -> usize {
        self.ratios.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ratios.is_empty()
    }

    /// Whether every pair of a batch is known.
    pub fn know(&self, batch: &Batch) -> bool {
        keys(batch).all(|key| self.ratios.contains_key(&key))
    }

    /// Takes what a batch's pairs were found to be.
    pub fn put(&mut self, batch: &Batch, ratios: &[f32]) {
        self.ratios.extend(keys(batch).zip(ratios.iter().copied()));
    }

    /// The ratios of a batch's pairs.
    ///
    /// # Errors
    /// If one is not known, which would be a bug.
    pub fn of(&self, batch: &Batch) -> Result<Vec<f32>> {
        let unknown = || Error::Graph("a pair has no reference".into());
        keys(batch).map(|key| self.ratios.get(&key).copied().ok_or_else(unknown)).collect()
    }

    /// Writes them to the run's folder.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(&self) -> Result<()> {
        let mut text = serde_json::to_string(&self.of).expect("plain data") + "\n";
        for (key, ratio) in &self.ratios {
            let line = Line { pair: format!("{key:016x}"), ratio: *ratio };
            text += &(serde_json::to_string(&line).expect("plain data") + "\n");
        }
        write_file(&self.path, text.as_bytes())
    }
}

fn read(path: &Path, of: &Content) -> Option<BTreeMap<u64, f32>> {
    let text = std::fs::read_to_string(path).ok()?;
    let mut lines = text.lines();
    if serde_json::from_str::<Content>(lines.next()?).ok()? != *of {
        return None;
    }
    let pair = |line: &str| {
        let Line { pair, ratio } = serde_json::from_str(line).ok()?;
        Some((u64::from_str_radix(&pair, 16).ok()?, ratio))
    };
    lines.map(pair).collect()
}

/// A hash of each pair of a batch.
fn keys(batch: &Batch) -> impl Iterator<Item = u64> + '_ {
    let two = 2 * batch.seq;
    batch.tokens.chunks_exact(two).zip(batch.targets.chunks_exact(two)).map(|(tokens, targets)| {
        let mut hasher = Hasher::new();
        hasher.update(bytemuck::cast_slice(tokens));
        hasher.update(bytemuck::cast_slice(targets));
        hasher.finish()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_kept_to_the_bit_and_are_of_one_content() {
        let folder = tempfile::tempdir().unwrap();
        let content = |model: &str| Content { tokenizer: "t".into(), tokens: "d".into(), model: Some(model.into()) };
        let mut batch = Batch::new(4, 3);
        batch.tokens = (0..12).collect();
        let mut references = References::open(folder.path(), content("a"));
        assert!(references.is_empty() && !references.know(&batch) && references.of(&batch).is_err());
        let ratios = [-17.123_457, 1.0e-30];
        references.put(&batch, &ratios);
        references.save().unwrap();
        let again = References::open(folder.path(), content("a"));
        assert!(again == references && again.len() == 2 && again.know(&batch));
        assert_eq!(again.of(&batch).unwrap(), ratios);
        assert!(References::open(folder.path(), content("b")).is_empty());
        batch.targets[11] = 1;
        assert!(!again.know(&batch));
    }
}
