//! What a run leaves: the model as a Hugging Face folder, or its adapters in PEFT's form.

use super::folder::RunId;
use super::{About, Prepared, Recipe, Subject};
use crate::base::read_text;
use crate::error::{Error, Result};
use crate::store::{FolderFile, TRAINED, save_folder, write_adapter};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Longest such file that is believed.
const MOST: u64 = 64 << 20;

/// What the model in a run's folder is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trained {
    /// The step whose weights it has: the last, or where validation ended the run the best.
    pub step: u64,
    /// The run, as it stood when the model was written.
    pub about: About,
    /// Which run that is, among all that were ever begun in the folder. Earlier versions did not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RunId>,
}

impl Trained {
    /// What a folder says of the model in it; nothing if it says nothing.
    ///
    /// # Errors
    /// If another version wrote it, in another form.
    pub fn read(folder: &Path) -> Result<Option<Trained>> {
        let file = folder.join(TRAINED);
        if !file.is_file() {
            return Ok(None);
        }
        let message = |e| Error::file(&file, format!("does not say what the model beside it is ({e})"));
        serde_json::from_str(&read_text(&file, MOST)?).map(Some).map_err(message)
    }
}

/// Writes what was trained: a model with its tokenizer, or adapters; `pages` are those of the subject's layout.
///
/// # Errors
/// If the folder cannot be written.
pub fn save(folder: &Path, recipe: &Recipe, prepared: &Prepared, subject: &Subject, pages: &[Vec<f32>]) -> Result<()> {
    write(folder, recipe, prepared, (subject, pages), &[], false)
}

/// Writes what a run has trained to its folder, with what it is.
///
/// # Errors
/// As [`save`].
pub fn save_run(
    recipe: &Recipe,
    prepared: &Prepared,
    subject: &Subject,
    pages: &[Vec<f32>],
    is: &Trained,
) -> Result<()> {
    let text = serde_json::to_string(is).expect("plain data") + "\n";
    let more = [FolderFile { name: TRAINED, content: text.as_bytes() }];
    // What lies beside a model of the same data and beginnings was put there for this one.
    let before = Trained::read(&recipe.out).ok().flatten();
    let replaces = before.is_none_or(|before| !before.about.content.is_of(&is.about.content));
    write(&recipe.out, recipe, prepared, (subject, pages), &more, replaces)
}

fn write(
    folder: &Path,
    recipe: &Recipe,
    prepared: &Prepared,
    (subject, pages): (&Subject, &[Vec<f32>]),
    more: &[FolderFile],
    replaces: bool,
) -> Result<()> {
    if let (Some(lora), Some(config), Some(base)) = (subject.lora(), &recipe.lora, &prepared.base) {
        return write_adapter(folder, (lora, config), (&base.name, &prepared.config), pages, more, replaces);
    }
    let files = prepared.tokenizer_files()?;
    let files = files.iter().map(|(name, content)| FolderFile { name, content });
    let files: Vec<FolderFile> = files.chain(more.iter().copied()).collect();
    match &prepared.base {
        Some(base) => base.checkpoint.write_trained(folder, &subject.layout, pages, &files, replaces),
        None => save_folder(folder, &prepared.config, &subject.layout, pages, &files, replaces),
    }
}
