//! A model as a Hugging Face folder: config.json, generation_config.json, model.safetensors, and whatever files the
//! tokenizer wants beside them. `transformers` opens what is written here.

use super::Checkpoint;
use super::atomic::{Staged, create_folder};
use super::safetensors::stage_safetensors;
use crate::error::{Error, Result};
use crate::model::ModelConfig;
use crate::nn::ParamLayout;
use std::path::Path;

/// A further file of the folder, such as tokenizer.json.
#[derive(Debug, Clone, Copy)]
pub struct FolderFile<'a> {
    /// Its name, without folders.
    pub name: &'a str,
    /// Its content.
    pub content: &'a [u8],
}

/// Writes a model. No file bears its name before all are complete on disk, so that whatever fails while writing leaves
/// the folder as it was.
///
/// # Errors
/// If the folder cannot be written or the disk is full.
pub fn save_folder(
    folder: &Path,
    config: &ModelConfig,
    layout: &ParamLayout,
    pages: &[Vec<f32>],
    files: &[FolderFile],
) -> Result<()> {
    create_folder(folder)?;
    let mut tensors: Vec<_> = layout.tensors(pages).map(|(s, data)| (s.name.as_str(), &s.shape, data)).collect();
    tensors.sort_by_key(|(name, ..)| *name);
    let mut staged = vec![stage_safetensors(&folder.join("model.safetensors"), &tensors)?];
    let (config, generation) = (config.to_json(), config.generation_json());
    let own = [("config.json", config.as_bytes()), ("generation_config.json", generation.as_bytes())];
    for (name, content) in files.iter().map(|f| (f.name, f.content)).chain(own) {
        staged.push(Staged::write(&folder.join(name), content.len() as u64, |w| w.write_all(content))?);
    }
    staged.into_iter().try_for_each(Staged::commit)
}

/// Reads the configuration of a model folder.
///
/// # Errors
/// If it is not a folder with a config.json that we run.
pub fn load_config(folder: &Path) -> Result<ModelConfig> {
    let file = folder.join("config.json");
    if !file.is_file() {
        return Err(Error::file(folder, "is not a model folder: it holds no config.json"));
    }
    ModelConfig::read(&file)
}

/// Reads the weights of a model folder, of this configuration, into pages of `layout`.
///
/// # Errors
/// As [`Checkpoint::read_pages`].
pub fn load_folder(folder: &Path, config: &ModelConfig, layout: &ParamLayout) -> Result<Vec<Vec<f32>>> {
    Checkpoint::folder(folder, config.clone())?.read_pages(layout)
}
