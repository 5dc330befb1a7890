//! A model as a Hugging Face folder: config.json, generation_config.json, model.safetensors, and whatever files the
//! tokenizer wants beside them. `transformers` opens what is written here.

use super::atomic::{Made, Staged, commit_all, commit_in_place_of, create_folder, sweep};
use super::safetensors::stage_safetensors;
use super::shards::{INDEX, WEIGHTS, listed};
use super::{ADAPTER_CONFIG, ADAPTER_WEIGHTS, Checkpoint};
use crate::base::{DType, Shape};
use crate::error::{Error, Result};
use crate::model::ModelConfig;
use crate::nn::ParamLayout;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Files of a folder by which its tokenizer and templates are known, to us or to `transformers`.
pub const TOKENIZER_FILES: [&str; 9] = [
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
];

/// Folder of the chat templates besides the default one, each a file `NAME.jinja`.
pub const TEMPLATES_FOLDER: &str = "additional_chat_templates";

/// A further file of the folder, such as tokenizer.json.
#[derive(Debug, Clone, Copy)]
pub struct FolderFile<'a> {
    /// Its path below the folder: mostly just a name.
    pub name: &'a str,
    /// Its content.
    pub content: &'a [u8],
}

/// What says which step of a run the model in its folder is of.
pub const TRAINED: &str = "trained.json";
/// What a folder says of generation.
pub(super) const GENERATION: &str = "generation_config.json";

/// Writes a model. No file bears its name before all are complete on disk, so that whatever fails while writing leaves
/// the folder as it was. Where it `replaces` another model, what of that would be read along with this one goes.
///
/// # Errors
/// If the folder cannot be written or the disk is full.
pub fn save_folder(
    folder: &Path,
    config: &ModelConfig,
    layout: &ParamLayout,
    pages: &[Vec<f32>],
    files: &[FolderFile],
    replaces: bool,
) -> Result<()> {
    let texts = [("config.json", config.to_json()), (GENERATION, config.generation_json())];
    write(folder, stored(config, layout, pages), &texts, files, replaces)
}

impl Checkpoint {
    /// Writes a model that was made of this one: its configuration with other weights, in f32. What a folder says of itself
    /// is kept. `replaces`: as of [`save_folder`].
    ///
    /// # Errors
    /// If the folder cannot be written or the disk is full.
    pub fn write_trained(
        &self,
        folder: &Path,
        layout: &ParamLayout,
        pages: &[Vec<f32>],
        files: &[FolderFile],
        replaces: bool,
    ) -> Result<()> {
        let mut texts = vec![("config.json", self.config_json(DType::F32)?)];
        texts.extend(self.generation_json()?.map(|text| (GENERATION, text)));
        write(folder, stored(self.config(), layout, pages), &texts, files, replaces)
    }
}

/// Files of the model in a folder that are read along with its configuration: weights, adapters, tokenizer, templates, what it says of
/// generation.
fn beside_config(folder: &Path) -> Vec<PathBuf> {
    let listed = listed(&folder.join(INDEX)).unwrap_or_default();
    let names = listed.into_iter().chain(
        [WEIGHTS, INDEX, ADAPTER_WEIGHTS, ADAPTER_CONFIG, GENERATION, TRAINED]
            .into_iter()
            .chain(TOKENIZER_FILES)
            .map(String::from),
    );
    let templates = std::fs::read_dir(folder.join(TEMPLATES_FOLDER)).into_iter().flatten().flatten();
    let templates = templates.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "jinja"));
    names.map(|name| folder.join(name)).chain(templates).filter(|file| file.is_file()).collect()
}

/// Gives the files of a model or of adapters their names. Where they `replace` a model that lies there, what of that would be taken for the
/// new one's goes.
pub(super) fn commit(folder: &Path, staged: Vec<Staged>, replace: bool) -> Result<()> {
    if !replace {
        return commit_all(staged);
    }
    let mut stale = beside_config(folder);
    // That of an adapter's folder, which has none.
    stale.extend(Some(folder.join("config.json")).filter(|file| file.is_file()));
    stale.retain(|file| staged.iter().all(|staged| staged.path() != file));
    commit_in_place_of(staged, &stale)
}

fn write(
    folder: &Path,
    stored: BTreeMap<String, (Shape, Cow<'_, [f32]>)>,
    texts: &[(&str, String)],
    files: &[FolderFile],
    replaces: bool,
) -> Result<()> {
    let made = Made::folder(folder)?;
    sweep(folder, &|name| [".safetensors", ".json", ".jinja"].iter().any(|ending| name.ends_with(ending)));
    let tensors: Vec<_> = stored.iter().map(|(name, (shape, data))| (name.as_str(), shape, data.as_ref())).collect();
    let mut staged = vec![stage_safetensors(&folder.join(WEIGHTS), &tensors)?];
    // By config.json the folder is known: it comes last.
    let own = texts.iter().rev().map(|(name, text)| (*name, text.as_bytes()));
    for (name, content) in files.iter().map(|f| (f.name, f.content)).chain(own) {
        let path = folder.join(name);
        path.parent().map_or(Ok(()), create_folder)?;
        staged.push(Staged::write(&path, content.len() as u64, |w| w.write_all(content))?);
    }
    commit(folder, staged, replaces)?;
    made.keep();
    Ok(())
}

/// The tensors of the family's own files, by name: what [`ModelConfig::sources`] says, the other way round.
fn stored<'a>(
    config: &ModelConfig,
    layout: &'a ParamLayout,
    pages: &'a [Vec<f32>],
) -> BTreeMap<String, (Shape, Cow<'a, [f32]>)> {
    let mut whole = BTreeMap::new();
    let mut packed: BTreeMap<String, BTreeMap<usize, (&Shape, &[f32])>> = BTreeMap::new();
    for (spec, data) in layout.tensors(pages) {
        let (dims, sources) = (spec.shape.dims(), config.sources(&spec.name));
        // Several tensors for one parameter are its outermost dim.
        let piece = if sources.len() > 1 { Shape::from(&dims[1..]) } else { spec.shape.clone() };
        for (source, data) in sources.iter().zip(data.chunks(piece.elements())) {
            match &source.rows {
                None => drop(whole.insert(source.tensor.clone(), (piece.clone(), Cow::Borrowed(data)))),
                Some(rows) => {
                    packed.entry(source.tensor.clone()).or_default().insert(rows.start, (&spec.shape, data));
                }
            }
        }
    }
    for (name, parts) in packed {
        let mut dims = parts.values().next().map_or(vec![], |(shape, _)| shape.dims().to_vec());
        dims[0] = parts.values().map(|(shape, _)| shape.dims()[0]).sum();
        let data = parts.into_values().flat_map(|(_, data)| data.iter().copied()).collect();
        whole.insert(name, (dims.as_slice().into(), Cow::Owned(data)));
    }
    whole
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
