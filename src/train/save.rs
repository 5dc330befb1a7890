//! What a run leaves: the model as a Hugging Face folder, or its adapters in PEFT's form.

use super::{Prepared, Recipe, Subject};
use crate::error::Result;
use crate::store::{FolderFile, save_folder, write_adapter};
use std::path::Path;

/// Writes what was trained: a model with its tokenizer, or adapters; `pages` are those of the subject's layout.
///
/// # Errors
/// If the folder cannot be written.
pub fn save(folder: &Path, recipe: &Recipe, prepared: &Prepared, subject: &Subject, pages: &[Vec<f32>]) -> Result<()> {
    if let (Some(lora), Some(config), Some(base)) = (subject.lora(), &recipe.lora, &prepared.base) {
        return write_adapter(folder, lora, config, &base.name, pages, &[]);
    }
    let files = prepared.tokenizer_files()?;
    let files: Vec<FolderFile> = files.iter().map(|(name, content)| FolderFile { name, content }).collect();
    match &prepared.base {
        Some(base) => base.checkpoint.write_trained(folder, &subject.layout, pages, &files),
        None => save_folder(folder, &prepared.config, &subject.layout, pages, &files),
    }
}
