//! A model on disk, whatever its format: a Hugging Face folder or a GGUF file, opened in one way.

use super::adapter::{CONFIG as ADAPTER_CONFIG, PeftAdapter};
use super::gguf::{self, Metadata};
use super::snapshot::MANIFEST;
use super::stream::{Loaded, Place, stream};
use super::tensors::Tensors;
use super::weights::{Wanted, Weight};
use super::{generation, shards};
use crate::base::{DType, TensorType};
use crate::error::{Error, Result};
use crate::graph::Op;
use crate::model::{EMBEDDING, Llama, ModelConfig, OUTPUT, Source, config_text};
use crate::nn::{BaseDtype, Declare, Frozen, ParamLayout, ParamSpec, Parts};
use crate::ops::{Embedding, ExpertLinear, MatMul};
use crate::run::States;
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// A model on disk: its configuration, its tensors, and where its tokenizer is.
#[derive(Debug)]
pub struct Checkpoint {
    model: Llama,
    tensors: Tensors,
    origin: Origin,
    ignored: Vec<String>,
    pub(super) adapter: Option<PeftAdapter>,
    /// True if the adapter is part of the weights as they are read.
    pub(super) merges: bool,
}

/// Where a model comes from.
#[derive(Debug)]
pub enum Origin {
    /// A Hugging Face folder: its tokenizer and templates are files in it.
    Folder(PathBuf),
    /// A GGUF file: they are in its metadata.
    Gguf(Metadata),
}

impl Checkpoint {
    /// Opens a GGUF file (of a model in parts, any of them), a Hugging Face folder, or a folder that holds one GGUF model
    /// and no config.json. Reads the configuration and the table of tensors; the weights stay on disk.
    ///
    /// # Errors
    /// If it is none of these, or what it holds is damaged, no model, or one that we do not run.
    pub fn open(path: &Path) -> Result<Checkpoint> {
        match resolve(path)? {
            Kind::Folder(folder) => {
                let (config, ignored) = read_config(&folder)?;
                Ok(Checkpoint { ignored, ..Checkpoint::folder(&folder, config)? })
            }
            Kind::Gguf(file) => {
                let (tensors, metadata) = Tensors::open_gguf(&file)?;
                let config = Value::Object(gguf::config(&metadata, &tensors)?).to_string();
                let parsed = ModelConfig::parse(&config, &file).map_err(|e| gguf::own_keys(e, &metadata))?;
                let model = Llama::new(parsed);
                let origin = Origin::Gguf(metadata);
                Ok(Checkpoint { model, tensors, origin, ignored: Vec::new(), adapter: None, merges: false })
            }
        }
    }

    /// A Hugging Face folder whose configuration is known.
    pub(super) fn folder(folder: &Path, config: ModelConfig) -> Result<Checkpoint> {
        let tensors = Tensors::open_safetensors(folder)?;
        Ok(Checkpoint {
            model: Llama::new(config),
            tensors,
            origin: Origin::Folder(folder.into()),
            ignored: Vec::new(),
            adapter: None,
            merges: false,
        })
    }

    /// The model that the configuration describes.
    pub fn model(&self) -> &Llama {
        &self.model
    }

    /// Its configuration.
    pub fn config(&self) -> &ModelConfig {
        self.model.config()
    }

    /// Its tensors, under the file's names.
    pub fn tensors(&self) -> &Tensors {
        &self.tensors
    }

    /// How its makers would have its texts made: what its generation_config.json says, or a GGUF file in its place. Empty
    /// where they said nothing. `infer` makes settings of it.
    ///
    /// # Errors
    /// If the file cannot be read, or is no JSON object.
    pub fn generation(&self) -> Result<Map<String, Value>> {
        match &self.origin {
            Origin::Folder(folder) => generation::of_folder(folder),
            Origin::Gguf(metadata) => Ok(generation::of_gguf(metadata)),
        }
    }

    /// What of the tokens that its generation_config.json names cannot be, a sentence each; config.json's hold instead.
    pub fn ignored(&self) -> &[String] {
        &self.ignored
    }

    /// Where its tokenizer is.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Where the file keeps a parameter.
    pub(super) fn sources(&self, name: &str) -> Vec<Source> {
        match &self.origin {
            Origin::Folder(_) => {
                let there = |sources: &Vec<Source>| sources.iter().all(|s| self.tensors.get(&s.tensor).is_some());
                self.config().stacked_sources(name).filter(there).unwrap_or_else(|| self.model.sources(name))
            }
            Origin::Gguf(metadata) => {
                let architecture = gguf::architecture(metadata).expect("checked as it was opened");
                gguf::sources(architecture, self.config(), name)
            }
        }
    }

    pub(super) fn find<'a>(&'a self, specs: &'a [ParamSpec]) -> Result<Vec<Weight<'a>>> {
        let tied = self.config().tie_word_embeddings;
        let folder = matches!(self.origin, Origin::Folder(_));
        let ignored = |name: &str| match folder {
            true => shards::is_left_out(name) || (tied && name == "lm_head.weight"),
            false => gguf::is_extra(name),
        };
        let config = if folder { "config.json" } else { "metadata" };
        let wanted = Wanted { sources: &|name| self.sources(name), ignored: &ignored, config };
        let mut weights = self.tensors.find(specs, &wanted)?;
        if let Some(adapter) = self.adapter.as_ref().filter(|_| self.merges) {
            weights.iter_mut().for_each(|w| w.delta = adapter.delta(w.name));
        }
        Ok(weights)
    }

    /// The same for whoever cannot scale the rows of an output projection that wants them of unit length, as graphs of
    /// frozen weights and other readers of GGUF files: they are scaled as they are read.
    pub(super) fn find_scaled<'a>(&'a self, specs: &'a [ParamSpec]) -> Result<Vec<Weight<'a>>> {
        let mut weights = self.find(specs)?;
        weights.iter_mut().for_each(|w| w.unit = w.name == OUTPUT && self.config().family.unit_head);
        Ok(weights)
    }

    /// Reads the weights into pages of f32, as training wants them.
    ///
    /// # Errors
    /// If weights are missing, too many, of another shape or a dtype that cannot be read.
    pub fn read_pages(&self, layout: &ParamLayout) -> Result<Vec<Vec<f32>>> {
        let weights = self.find(layout.specs())?;
        let mut pages = layout.zeros();
        for (weight, (_, data)) in weights.iter().zip(layout.tensors_mut(&mut pages)) {
            weight.write(0..weight.rows(), DType::F32, bytemuck::cast_slice_mut(data));
        }
        Ok(pages)
    }

    /// Streams the weights into pages of f32 on the device, as training wants them.
    ///
    /// # Errors
    /// As [`Checkpoint::stream`].
    pub async fn stream_pages(
        &self,
        states: &mut States,
        layout: &ParamLayout,
        progress: &mut dyn FnMut(Loaded),
    ) -> Result<()> {
        let gpu = states.gpu().clone();
        let Some(parts) = layout.parts() else {
            let weights = self.find(layout.specs())?;
            return stream(&gpu, states, &weights, &Place::pages(layout), progress).await;
        };
        let weights = self.find_parts(parts, layout.specs().iter().map(|spec| spec.name.as_str()), false)?;
        stream(&gpu, states, &weights, &Place::pages(layout), progress).await
    }

    /// Of these parameters a rank's parts, in this order; rows of an output projection scaled where `scaled` and the family
    /// want it.
    fn find_parts<'a>(
        &'a self,
        parts: &'a Parts,
        names: impl Iterator<Item = &'a str>,
        scaled: bool,
    ) -> Result<Vec<Weight<'a>>> {
        let all = if scaled { self.find_scaled(parts.whole())? } else { self.find(parts.whole())? };
        let mut all: HashMap<&str, Weight> = all.into_iter().map(|weight| (weight.name, weight)).collect();
        let own = |name: &'a str| {
            let spec = parts.spec(name).expect("a part is of a parameter of the model");
            all.remove(name).expect("every parameter was found").cut(parts, spec)
        };
        Ok(names.map(own).collect())
    }

    /// Names and types of the weights as the device will hold them: each in the dtype that it has on disk where the
    /// operators that read it take that, else in f32. Norms and biases are f32.
    ///
    /// # Errors
    /// As [`Checkpoint::read_pages`].
    pub fn frozen(&self) -> Result<Frozen> {
        self.frozen_as(BaseDtype::Keep)
    }

    /// The same, with matrices in another dtype where that is wanted.
    ///
    /// # Errors
    /// As [`Checkpoint::read_pages`].
    pub fn frozen_as(&self, base: BaseDtype) -> Result<Frozen> {
        let specs = self.model.param_specs();
        let weights = self.find_scaled(&specs)?;
        let held = |w: &Weight| (w.name.to_string(), base.of(w.name, &self.device_type(w)));
        Ok(Frozen::new(weights.iter().map(held).collect()))
    }

    /// Streams the weights to the device, where `frozen` has them and in its types; where these are a rank's parts, those.
    ///
    /// # Errors
    /// As [`Checkpoint::read_pages`]; also if a weight is larger than the largest buffer or holds a number that its dtype on the
    /// device does not, or the device has no room.
    pub async fn stream(&self, states: &mut States, frozen: &Frozen, progress: &mut dyn FnMut(Loaded)) -> Result<()> {
        let (specs, gpu) = (self.model.param_specs(), states.gpu().clone());
        let weights = match frozen.parts() {
            Some(parts) => self.find_parts(parts, frozen.params().iter().map(|(name, _)| name.as_str()), true)?,
            None => self.find_scaled(&specs)?,
        };
        stream(&gpu, states, &weights, &Place::frozen(frozen), progress).await
    }

    /// The type of a weight on the device: its own dtype where every operator that reads such a weight takes it.
    fn device_type(&self, weight: &Weight) -> TensorType {
        let (own, wide) = (weight.ty(), TensorType::f32(weight.shape.dims()));
        if own.shape.rank() < 2 || !own.has_whole_blocks() || weight.unit {
            return wide;
        }
        let row = TensorType::f32([1, own.shape.last()]);
        let linear = match own.shape.dims() {
            // The matrices of all experts.
            &[experts, _, _] => {
                let (ids, order) = (TensorType::u32([1, 1]), TensorType::u32([1]));
                let starts = TensorType::u32([experts + 1]);
                ExpertLinear { back: false }.infer(&[&row, &own, &ids, &order, &starts]).is_ok()
            }
            _ => MatMul::linear().infer(&[&row, &own]).is_ok(),
        };
        let table = weight.name != EMBEDDING || Embedding.infer(&[&own, &TensorType::u32([1])]).is_ok();
        if linear && table { own } else { wide }
    }
}

/// Of so many models in one folder the names are said.
const NAMED: usize = 8;

/// What a path leads to.
enum Kind {
    Folder(PathBuf),
    Gguf(PathBuf),
}

fn resolve(path: &Path) -> Result<Kind> {
    // A device or a pipe is refused where it is opened.
    if path.exists() && !path.is_dir() {
        let folder = path.parent().filter(|_| path.file_name().is_some_and(|n| n == "config.json"));
        if path.extension().is_some_and(|e| e == "safetensors") && path.is_file() {
            let folder = path.parent().filter(|f| *f != Path::new("")).unwrap_or(Path::new("."));
            let message =
                format!("holds weights alone; give its folder, {}, which says what they are", folder.display());
            return Err(Error::file(path, message));
        }
        return Ok(folder.map_or_else(|| Kind::Gguf(path.into()), |f| Kind::Folder(f.into())));
    }
    if !path.is_dir() {
        return Err(Error::file(path, "is neither a model folder nor a GGUF file: there is nothing of that name"));
    }
    if path.join("config.json").is_file() {
        return Ok(Kind::Folder(path.into()));
    }
    let entries = std::fs::read_dir(path).map_err(|e| Error::io("read", path, e))?;
    let mut files: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
    files.retain(|f| f.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")));
    files.sort();
    let name = |file: &PathBuf| file.file_name().map(|n| n.to_string_lossy().into_owned());
    // Of each model in parts the first part that is there: where others are not, it leads to the one that is missing.
    let mut models: Vec<PathBuf> = Vec::new();
    let set = |file: &PathBuf| name(file).and_then(|name| gguf::part_names(&name));
    for file in files {
        if set(&file).is_none_or(|own| models.last().and_then(set) != Some(own)) {
            models.push(file);
        }
    }
    match models.as_slice() {
        [one] => Ok(Kind::Gguf(one.clone())),
        [] => Err(Error::file(path, format!("is {}", other_than_model(path)))),
        many => {
            let names: Vec<String> = many.iter().take(NAMED).filter_map(name).collect();
            let more = if many.len() > NAMED { ", ..." } else { "" };
            let message = format!(
                "holds {} GGUF models and no config.json; name the one that you want: {}{more}",
                many.len(),
                names.join(", ")
            );
            Err(Error::file(path, message))
        }
    }
}

/// What a folder is that is no model's, and what to do with it.
fn other_than_model(folder: &Path) -> &'static str {
    match () {
        () if folder.join(ADAPTER_CONFIG).is_file() => {
            "an adapter and no model: name its model as the model, and this with --lora where a command has that; or make one \
             model of both, of a run with `danlu export --merge`"
        }
        () if folder.join(MANIFEST).is_file() => {
            "a checkpoint of a run and no model folder: write the model of it with `danlu export`"
        }
        () => "not a model folder: it holds neither config.json nor a GGUF file",
    }
}

/// The configuration of a folder; what generation_config.json says of the tokens that end a text counts before it, as it
/// does for `transformers`.
fn read_config(folder: &Path) -> Result<(ModelConfig, Vec<String>)> {
    let file = folder.join("config.json");
    let text = config_text(&file)?;
    let generation = generation::of_folder(folder)?;
    if generation.is_empty() {
        return Ok((ModelConfig::parse(&text, &file)?, Vec::new()));
    }
    let mut map: Map<String, Value> = serde_json::from_str(&text)
        .map_err(|e| Error::file(&file, format!("is not a JSON object ({e}); give a Hugging Face config.json")))?;
    let mut ignored = Vec::new();
    let vocabulary = map.get("vocab_size").and_then(Value::as_u64).unwrap_or(u32::MAX.into());
    for key in ["bos_token_id", "eos_token_id"] {
        let Some(value) = generation.get(key).filter(|v| !v.is_null()) else { continue };
        let ids = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
        if ids.iter().all(|id| id.as_u64().is_some_and(|id| id < vocabulary)) {
            map.insert(key.into(), value.clone());
        } else {
            ignored.push(format!("{key} is {value}, and token ids are whole numbers below {vocabulary}"));
        }
    }
    Ok((ModelConfig::parse(&Value::Object(map).to_string(), &file)?, ignored))
}
