//! An adapter on disk in PEFT's form: adapter_config.json and adapter_model.safetensors.
//! Legend: N rows and K columns of a layer's weight W, R rank; ΔW = s·B·A.

use super::adapter_packed::{Held, Layer, Part, layers, unpack};
use super::atomic::{Made, Staged, sweep};
use super::folder::{FolderFile, commit};
use super::narrow::length;
use super::safetensors::stage_safetensors;
use super::snapshot::MANIFEST;
use super::tensors::{Tensors, widen};
use crate::base::Shape;
use crate::error::{Error, Result};
use crate::model::{MOST_CONFIG, ModelConfig};
use crate::nn::{Lora, LoraConfig, LoraModule};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The file by which the folder of an adapter is known.
pub const CONFIG: &str = "adapter_config.json";
/// The file of its numbers.
pub const WEIGHTS: &str = "adapter_model.safetensors";
/// What stands before the layers' names.
const PREFIX: &str = "base_model.model.";

/// Keys of the configuration that stand for something else than LoRA, rsLoRA or DoRA of linear layers, where they are set.
const OTHERS: [&str; 12] = [
    "fan_in_fan_out",
    "modules_to_save",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "lora_bias",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
];

/// An adapter on disk, of a model whose parameters are known.
#[derive(Debug)]
pub struct PeftAdapter {
    modules: Vec<LoraModule>,
    dora: bool,
    tensors: Tensors,
    /// Where the file holds A and B, and magnitudes, by parameter.
    names: BTreeMap<String, Held>,
}

/// What a configuration says.
struct Said {
    alpha: f64,
    alphas: Map<String, Value>,
    rslora: bool,
    dora: bool,
}

impl PeftAdapter {
    /// Opens the folder of an adapter of a model; the numbers stay on disk.
    ///
    /// # Errors
    /// If it is no adapter, one of another kind, or of another model.
    pub fn open(folder: &Path, model: &ModelConfig) -> Result<PeftAdapter> {
        let (specs, packed) = (model.param_specs(), model.packed_layers());
        let said = read_config(&folder.join(CONFIG))?;
        let file = folder.join(WEIGHTS);
        if !file.is_file() {
            let pickled = folder.join("adapter_model.bin").is_file();
            let advice =
                if pickled { "; its adapter_model.bin is PyTorch's own form: save it as safetensors" } else { "" };
            return Err(Error::file(folder, format!("holds no {WEIGHTS}{advice}")));
        }
        let tensors = Tensors::open_safetensors(&file)?;
        let shapes: BTreeMap<&str, &Shape> = specs.iter().map(|s| (s.name.as_str(), &s.shape)).collect();
        let mut names: BTreeMap<String, Held> = BTreeMap::new();
        for tensor in tensors.iter() {
            tensor.dtype()?;
            let plain = tensor.name.strip_prefix(PREFIX).unwrap_or(tensor.name);
            // As newer and older files name magnitudes.
            let plain =
                if plain.ends_with(".lora_magnitude_vector.weight") { &plain[..plain.len() - 7] } else { plain };
            let parts = ["lora_A.weight", "lora_B.weight", "lora_magnitude_vector"];
            let found = parts.iter().find_map(|part| Some((plain.strip_suffix(part)?.strip_suffix('.')?, part)));
            let Some((layer, part)) = found else {
                return Err(tensor.fail("is no part of an adapter of linear layers"));
            };
            names.extend(unpack(&packed, layer, part, tensor.name));
        }
        let mut modules: Vec<LoraModule> = Vec::new();
        for (name, held) in &names {
            let tensor = tensors.get(&held.tensor).expect("it was listed");
            let layer = name.rfind(".lora_").map_or(name.as_str(), |end| &name[..end]);
            let Some(&[n, k]) = shapes.get(format!("{layer}.weight").as_str()).map(|s| s.dims()) else {
                return Err(tensor.fail(format!("adds to {layer}, which is no linear layer of this model")));
            };
            let a = names.get(&format!("{layer}.lora_A.weight")).and_then(|held| tensors.get(&held.tensor));
            let rank = a.map_or(0, |a| a.shape.rows());
            let scale = said.scale(&held.layer, rank) as f32;
            let module = LoraModule { name: layer.into(), shape: [n, k], rank, scale };
            let expected = module.names().into_iter().zip([Shape::from([rank, k]), [n, rank].into(), [n].into()]);
            let expected = expected.into_iter().find(|(own, _)| own == name).map(|(_, shape)| shape);
            // Of a packed layer it has the rows of all parts.
            let rows = held.rows.as_ref().map_or(n, |(_, all)| *all);
            let all = |shape: Shape| {
                if held.rows.is_some() { Shape::from([&[rows], &shape.dims()[1..]].concat()) } else { shape }
            };
            if rank == 0 || expected.map(all).as_ref().is_some_and(|shape| shape != tensor.shape) {
                let (shape, layer) = (tensor.shape, &held.layer);
                return Err(tensor.fail(format!("is {shape}, which fits no adapter of {layer}, which is [{rows},{k}]")));
            }
            if modules.last().is_none_or(|last| last.name != module.name) {
                let wanted = if said.dora { 3 } else { 2 };
                if let Some(missing) = module.names().iter().take(wanted).find(|own| !names.contains_key(*own)) {
                    return Err(Error::file(&file, format!("lacks {PREFIX}{missing}; it is damaged: fetch it again")));
                }
                modules.push(module);
            }
        }
        if modules.is_empty() {
            return Err(Error::file(&file, "holds no adapter"));
        }
        Ok(PeftAdapter { modules, dora: said.dora, tensors, names })
    }

    /// The layers that it adds to.
    pub fn modules(&self) -> &[LoraModule] {
        &self.modules
    }

    /// What PEFT finds of a layer's adapter: the name that the file has for the layer.
    pub fn stored(&self, module: &LoraModule) -> &str {
        &self.names[&module.names()[0]].layer
    }

    /// The adapters as they serve.
    pub fn lora(&self, page_bytes: u64) -> Lora {
        Lora::served(self.modules.clone(), self.dora, page_bytes)
    }

    /// A and B of all layers, in the pages of [`PeftAdapter::lora`].
    pub(super) fn pages(&self, lora: &Lora) -> Vec<Vec<f32>> {
        let mut pages = lora.layout().zeros();
        for (spec, data) in lora.layout().tensors_mut(&mut pages) {
            data.copy_from_slice(&self.values(&spec.name));
        }
        pages
    }

    fn values(&self, name: &str) -> Vec<f32> {
        let held = &self.names[name];
        let tensor = self.tensors.get(&held.tensor).expect("checked as it was opened");
        let mut values = vec![0.0; tensor.shape.elements()];
        widen(tensor.dtype().expect("checked as it was opened"), tensor.bytes, &mut values);
        match &held.rows {
            None => values,
            Some((rows, all)) => {
                let row = values.len() / all;
                values[rows.start * row..rows.end * row].to_vec()
            }
        }
    }

    /// Magnitudes of a layer, where there are some.
    pub(super) fn magnitudes(&self, module: &LoraModule) -> Option<Vec<f32>> {
        self.dora.then(|| self.values(&module.names()[2]))
    }

    /// What it makes of a parameter, if anything.
    pub(super) fn delta(&self, name: &str) -> Option<Delta> {
        let module = self.modules.iter().find(|m| name.strip_suffix(".weight") == Some(m.name.as_str()))?;
        Some(Delta { magnitudes: self.magnitudes(module), ..self.update(module) })
    }

    /// ΔW alone.
    pub(super) fn update(&self, module: &LoraModule) -> Delta {
        let [a, b, _] = module.names();
        Delta { a: self.values(&a), b: self.values(&b), rank: module.rank, scale: module.scale, magnitudes: None }
    }
}

impl Said {
    fn scale(&self, layer: &str, rank: usize) -> f64 {
        let own = self
            .alphas
            .iter()
            .find(|(key, _)| layer == *key || layer.strip_suffix(key.as_str()).is_some_and(|rest| rest.ends_with('.')));
        let alpha = own.and_then(|(_, alpha)| alpha.as_f64()).unwrap_or(self.alpha);
        let rank = rank as f64;
        alpha / if self.rslora { rank.sqrt() } else { rank }
    }
}

fn read_config(file: &Path) -> Result<Said> {
    let refuse = |why: String| Error::file(file, why);
    if !file.is_file() {
        let folder = file.parent().unwrap_or(file);
        if folder.join(MANIFEST).is_file() {
            let message =
                "is a checkpoint of a run and no adapter in PEFT's form: write one from it with `danlu export`";
            return Err(Error::file(folder, message));
        }
        return Err(refuse("is not there; an adapter is a folder with it, as PEFT writes one".into()));
    }
    let text = crate::base::read_text(file, MOST_CONFIG)?;
    let map: Map<String, Value> =
        serde_json::from_str(&text).map_err(|e| refuse(format!("is not a JSON object ({e})")))?;
    let kind = map.get("peft_type").and_then(Value::as_str).unwrap_or_default();
    if kind != "LORA" {
        return Err(refuse(format!("says peft_type {kind:?}; only \"LORA\" is known, with rsLoRA and DoRA")));
    }
    let set = |key: &str| match map.get(key) {
        None | Some(Value::Null | Value::Bool(false)) => false,
        Some(Value::Array(list)) => !list.is_empty(),
        Some(Value::Object(map)) => !map.is_empty(),
        Some(_) => true,
    };
    if let Some(key) = OTHERS.iter().find(|key| set(key)) {
        return Err(refuse(format!("sets {key}, which is not known here; merge the adapter with PEFT")));
    }
    // With these PEFT changes the model itself before it adds the adapter.
    let init = map.get("init_lora_weights").and_then(Value::as_str).unwrap_or("gaussian");
    if !["gaussian", "eva", "orthogonal"].contains(&init) {
        return Err(refuse(format!(
            "says init_lora_weights {init:?}, by which the model itself is another than the one that is named; save the adapter with \
             PEFT's path_initial_model_for_weight_conversion, or merge it there"
        )));
    }
    let bias = map.get("bias").and_then(Value::as_str).unwrap_or("none");
    if bias != "none" {
        return Err(refuse(format!(
            "says bias {bias:?}: trained biases are not known here; merge the adapter with PEFT"
        )));
    }
    let alpha = map.get("lora_alpha").and_then(Value::as_f64).filter(|a| a.is_finite());
    let alpha = alpha.ok_or_else(|| refuse("names no lora_alpha".into()))?;
    let alphas = map.get("alpha_pattern").and_then(Value::as_object).cloned().unwrap_or_default();
    if let Some(key) = alphas.keys().find(|key| key.contains(['*', '^', '$', '|', '[', '(', '\\', '+'])) {
        return Err(refuse(format!("has an alpha_pattern {key:?}: only names of layers are known here")));
    }
    Ok(Said { alpha, alphas, rslora: set("use_rslora"), dora: set("use_dora") })
}

/// What an adapter adds to the rows of one weight.
#[derive(Debug, Clone)]
pub(super) struct Delta {
    /// `[R,K]`
    a: Vec<f32>,
    /// `[N,R]`
    b: Vec<f32>,
    rank: usize,
    scale: f32,
    /// `[N]`: the lengths that rows get then.
    magnitudes: Option<Vec<f32>>,
}

impl Delta {
    /// Makes row n of W that of the adapted weight.
    pub fn add(&self, n: usize, row: &mut [f32]) {
        let b = &self.b[n * self.rank..(n + 1) * self.rank];
        let mut sums = vec![0.0f64; row.len()];
        for (b, a) in b.iter().zip(self.a.chunks_exact(row.len())) {
            sums.iter_mut().zip(a).for_each(|(sum, a)| *sum += f64::from(*b) * f64::from(*a));
        }
        let scale = f64::from(self.scale);
        row.iter_mut().zip(&sums).for_each(|(w, sum)| *w = (f64::from(*w) + scale * sum) as f32);
        if let Some(magnitudes) = &self.magnitudes {
            let factor = f64::from(magnitudes[n]) / length(row);
            row.iter_mut().for_each(|w| *w = (f64::from(*w) * factor) as f32);
        }
    }
}

/// Writes trained adapters as PEFT would: `base` is the name or path of the model that they are of, `pages` are those of
/// `lora`'s layout, `files` go beside them. Layers that the model's family packs into one are one there. Where it `replaces` a model, or
/// adapters of another one, what of that would be read along with them goes.
///
/// # Errors
/// If the folder cannot be written or the disk is full.
pub fn write_adapter(
    folder: &Path,
    (lora, config): (&Lora, &LoraConfig),
    (base, model): (&str, &ModelConfig),
    pages: &[Vec<f32>],
    files: &[FolderFile],
    replaces: bool,
) -> Result<()> {
    let made = Made::folder(folder)?;
    sweep(folder, &|name| [WEIGHTS, CONFIG].contains(&name) || files.iter().any(|file| file.name == name));
    let layers = layers(lora, config, &model.packed_layers());
    let values: BTreeMap<&str, &[f32]> = lora.layout().tensors(pages).map(|(spec, data)| (&*spec.name, data)).collect();
    let mut tensors: Vec<Part> = layers.iter().flat_map(|layer| layer.tensors(&values)).collect();
    tensors.iter_mut().for_each(|(name, ..)| name.insert_str(0, PREFIX));
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    let tensors: Vec<(&str, &Shape, &[f32])> = tensors.iter().map(|(n, s, d)| (n.as_str(), s, &**d)).collect();
    let mut staged = vec![stage_safetensors(&folder.join(WEIGHTS), &tensors)?];
    let text = serde_json::to_string_pretty(&described(&layers, config, base)).expect("JSON values serialise") + "\n";
    for file in files.iter().chain([&FolderFile { name: CONFIG, content: text.as_bytes() }]) {
        let path: PathBuf = folder.join(file.name);
        staged.push(Staged::write(&path, file.content.len() as u64, |w| w.write_all(file.content))?);
    }
    commit(folder, staged, replaces)?;
    made.keep();
    Ok(())
}

fn described(layers: &[Layer], config: &LoraConfig, base: &str) -> Value {
    // PEFT takes whole names as well; where patterns chose, only these say what was chosen.
    let patterns = config.targets.iter().any(|t| t.contains('*') || t.contains('.'));
    let short =
        |name: &str| if patterns { name.to_string() } else { name.rsplit('.').next().unwrap_or(name).to_string() };
    let mut targets: Vec<String> = layers.iter().map(|layer| short(&layer.name)).collect();
    if !patterns {
        targets.sort_unstable();
        targets.dedup();
    }
    let number = |value: f64| if value.fract() == 0.0 { json!(value as i64) } else { json!(value) };
    let alpha = number(config.alpha);
    // The rank of several parts, and what leaves their scale as it is.
    let wide = layers.iter().filter(|layer| layer.times() > 1);
    let (mut ranks, mut alphas) = (Map::new(), Map::new());
    for layer in wide {
        let (name, times) = (&layer.name, layer.times() as f64);
        ranks.insert(short(name), number(config.rank as f64 * times));
        alphas.insert(short(name), number(config.alpha * if config.rslora { times.sqrt() } else { times }));
    }
    json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": true,
        "r": config.rank,
        "lora_alpha": alpha,
        "lora_dropout": config.dropout,
        "target_modules": targets,
        "use_rslora": config.rslora,
        "use_dora": config.dora,
        "bias": "none",
        "fan_in_fan_out": false,
        "init_lora_weights": true,
        "modules_to_save": null,
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
    })
}
