//! Which files of a data set are its data, and which of those are for training: by their names.

use crate::error::{Error, Result};
use std::fs;
use std::path::Path;

/// Endings of files of data, compressed or not.
const DATA_ENDINGS: [&str; 6] = ["jsonl", "json", "parquet", "ndjson", "txt", "md"];

/// Whether a file is one of data, by its name.
pub(super) fn is_data(file: &str) -> bool {
    let lower = file.to_ascii_lowercase();
    let plain = [".gz", ".zst"].iter().find_map(|packed| lower.strip_suffix(packed)).unwrap_or(&lower);
    plain.rsplit_once('.').is_some_and(|(_, ending)| DATA_ENDINGS.contains(&ending))
}

/// Whether a file is about the data.
pub(super) fn is_about(file: &str) -> bool {
    file.ends_with(".md") || file.to_ascii_lowercase().ends_with("dataset_infos.json")
}

/// The names of all files below a folder, as a hub would list them.
pub(super) fn walk(root: &Path, folder: &Path, into: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(|e| Error::io("list", folder, e))? {
        let path = entry.map_err(|e| Error::io("list", folder, e))?.path();
        if path.is_dir() {
            walk(root, &path, into)?;
        } else if let Ok(name) = path.strip_prefix(root) {
            into.push(name.to_string_lossy().replace('\\', "/"));
        }
    }
    Ok(())
}

/// Of all files of a data set those to train on: of records those named for training, where any are; else what there is.
pub(super) fn training_files(files: &[String]) -> Vec<String> {
    let all: Vec<String> = files.iter().filter(|file| is_data(file) && !is_about(file)).cloned().collect();
    // A word of its path: `constraints` is none.
    let words = |file: &str| {
        file.to_ascii_lowercase()
            .split(|c: char| !c.is_ascii_alphabetic())
            .any(|word| ["train", "training"].contains(&word))
    };
    let train: Vec<String> = all.iter().filter(|file| words(file)).cloned().collect();
    if train.is_empty() { all } else { train }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_for_training_are_told_by_a_word() {
        let of = |files: &[&str]| training_files(&files.iter().map(|f| f.to_string()).collect::<Vec<_>>());
        let split = ["README.md", "data/train-0.parquet", "data/train-1.parquet", "data/test-0.parquet", "x.py"];
        assert_eq!(of(&split), ["data/train-0.parquet", "data/train-1.parquet"]);
        assert_eq!(of(&["README.md", "dataset_infos.json", "all.jsonl.zst"]), ["all.jsonl.zst"]);
        assert_eq!(of(&["constraints.jsonl", "strains.jsonl"]), ["constraints.jsonl", "strains.jsonl"]);
        assert_eq!(of(&["constraints.jsonl", "x/Training/a.jsonl"]), ["x/Training/a.jsonl"]);
    }
}
