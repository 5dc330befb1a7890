//! From one format to another: GGUF and Hugging Face folders, with other dtypes if wanted. Weights go from the mapped file
//! to the new one piece by piece.

use super::atomic::{Staged, create_folder};
use super::checkpoint::{Checkpoint, Origin};
use super::folder::FolderFile;
use super::gguf::{self, Metadata};
use super::header::header;
use super::layout::{Target, targets};
use super::weights::Weight;
use crate::base::{DType, Shape, quantise::ENCODED};
use crate::error::{Error, Result};
use crate::model::{EMBEDDING, OUTPUT};
use serde_json::Value;
use std::path::Path;

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Converted {
    /// Bytes of the file of weights.
    pub bytes: u64,
    /// How many tensors have which dtype.
    pub dtypes: Vec<(DType, usize)>,
}

impl Checkpoint {
    /// Writes a GGUF file. Matrices get `dtype`, or keep theirs; vectors are f32; embedding and output projection are no
    /// narrower than Q8_0, and a matrix whose rows are no whole blocks becomes f16. `vocabulary` are the keys of the
    /// tokenizer where this is a folder; a GGUF file's own are kept.
    ///
    /// # Errors
    /// If weights do not fit the configuration, nothing turns into `dtype`, or the file cannot be written.
    pub fn write_gguf(&self, path: &Path, dtype: Option<DType>, vocabulary: &Metadata) -> Result<Converted> {
        check(dtype)?;
        let config = self.config();
        let architecture = gguf::architecture_of(config)?;
        let mut metadata = match self.origin() {
            Origin::Gguf(metadata) => metadata.clone(),
            Origin::Folder(folder) => {
                let name = folder.canonicalize().ok().and_then(|f| Some(f.file_name()?.to_string_lossy().into_owned()));
                gguf::describe(config, &name.unwrap_or_else(|| "model".into()), path)?
            }
        };
        vocabulary.iter().for_each(|(key, value)| {
            metadata.set(key, value.clone());
        });
        let specs = self.model().param_specs();
        let weights = self.find(&specs)?;
        let mut targets = targets(&weights, &|name| gguf::sources(architecture, config, name));
        for target in &mut targets {
            target.dtype = gguf_dtype(target, &weights, dtype);
        }
        gguf::set_file_type(&mut metadata, most(&targets));
        let extra: Vec<(&str, Shape, Vec<f32>)> = gguf::rope_tensors(config)
            .into_iter()
            .map(|(name, values)| (name, Shape::from([values.len()]), values))
            .collect();
        let vectors = extra.iter().map(|(name, shape, v)| (*name, shape, DType::F32, v.len() as u64 * 4));
        let rows: Vec<gguf::Row> =
            vectors.chain(targets.iter().map(|t| (t.name.as_str(), &t.shape, t.dtype, t.bytes()))).collect();
        let head = gguf::head(&metadata, &rows);
        let bytes = head.len() as u64 + rows.iter().map(|(.., bytes)| bytes.next_multiple_of(32)).sum::<u64>();
        let staged = Staged::write(path, bytes, |writer| {
            writer.write_all(&head)?;
            for (_, _, values) in &extra {
                values.iter().try_for_each(|x| writer.write_all(&x.to_le_bytes()))?;
                gguf::padding(writer, values.len() as u64 * 4)?;
            }
            for target in &targets {
                target.write(&weights, writer)?;
                gguf::padding(writer, target.bytes())?;
            }
            Ok(())
        })?;
        // Read back, so that no file bears its name that says another model than this.
        if let Some(what) = gguf::lost(config, Checkpoint::open(staged.temporary())?.config()) {
            let message =
                format!("a GGUF file cannot say {what} ({}); keep the Hugging Face folder", config.family.name);
            return Err(Error::file(path, message));
        }
        staged.commit()?;
        Ok(Converted { bytes, dtypes: count(&targets) })
    }

    /// Writes a Hugging Face folder. Tensors get `dtype`: f32, f16 or bf16. Without one, matrices that have one of these
    /// keep it, quantised ones become f32, and vectors that lose nothing by it are as narrow as the matrices. `files` are
    /// those of the tokenizer.
    ///
    /// # Errors
    /// As [`Checkpoint::write_gguf`].
    pub fn write_folder(&self, folder: &Path, dtype: Option<DType>, files: &[FolderFile]) -> Result<Converted> {
        check(dtype)?;
        if let Some(dtype) = dtype.filter(|d| d.block().elements > 2) {
            let what = "a Hugging Face folder holds f32, f16 or bf16; write a .gguf file for quantised weights";
            return Err(Error::Invalid(format!("{dtype}: {what}")));
        }
        let config = self.config();
        let specs = self.model().param_specs();
        let weights = self.find(&specs)?;
        let mut targets = targets(&weights, &|name| self.model().sources(name));
        for target in &mut targets {
            let own = target.stored(&weights).next().unwrap_or(DType::F32);
            let narrow = own.block().elements <= 2 && target.stored(&weights).all(|d| d == own);
            target.dtype = dtype.unwrap_or(if narrow { own } else { DType::F32 });
        }
        let matrices = most(&targets);
        for target in targets.iter_mut().filter(|t| t.shape.rank() == 1 && dtype.is_none()) {
            if matrices.block().elements == 2 && target.dtype == DType::F32 && target.survives(&weights, matrices) {
                target.dtype = matrices;
            }
        }
        targets.sort_by(|a, b| a.name.cmp(&b.name));
        let head = header(targets.iter().map(|t| (t.name.as_str(), &t.shape, t.dtype, t.bytes())));
        let bytes = head.len() as u64 + targets.iter().map(Target::bytes).sum::<u64>();
        create_folder(folder)?;
        let staged = Staged::write(&folder.join("model.safetensors"), bytes, |writer| {
            writer.write_all(&head)?;
            targets.iter().try_for_each(|target| target.write(&weights, writer))
        })?;
        let mut staged = vec![staged];
        let (config, generation) = (self.config_json(most(&targets))?, config.generation_json());
        let own = [("config.json", config.as_bytes()), ("generation_config.json", generation.as_bytes())];
        for (name, content) in own.into_iter().chain(files.iter().map(|f| (f.name, f.content))) {
            staged.push(Staged::write(&folder.join(name), content.len() as u64, |w| w.write_all(content))?);
        }
        staged.into_iter().try_for_each(Staged::commit)?;
        Ok(Converted { bytes, dtypes: count(&targets) })
    }

    /// The config.json of a folder whose matrices have a dtype: a folder's own, with what it says of the dtype.
    fn config_json(&self, dtype: DType) -> Result<String> {
        let text = match self.origin() {
            Origin::Folder(folder) => super::read_text(&folder.join("config.json"), super::checkpoint::MOST_CONFIG)?,
            Origin::Gguf(_) => self.config().to_json(),
        };
        let mut json: Value = serde_json::from_str(&text).unwrap_or_default();
        let name = match dtype {
            DType::F16 => "float16",
            DType::BF16 => "bfloat16",
            _ => "float32",
        };
        json["torch_dtype"] = name.into();
        if json.get("dtype").is_some() {
            json["dtype"] = name.into();
        }
        Ok(serde_json::to_string_pretty(&json).unwrap_or(text) + "\n")
    }
}

fn check(dtype: Option<DType>) -> Result<()> {
    match dtype {
        Some(dtype) if !ENCODED.contains(&dtype) => {
            let known = ENCODED.map(DType::name).join(", ");
            Err(Error::Invalid(format!("nothing can be turned into {dtype}; choose one of {known}")))
        }
        _ => Ok(()),
    }
}

/// The dtype of a tensor of a GGUF file.
fn gguf_dtype(target: &Target, weights: &[Weight], wanted: Option<DType>) -> DType {
    if target.shape.rank() == 1 {
        return DType::F32;
    }
    let own = target.stored(weights).next().unwrap_or(DType::F32);
    let dtype = wanted.unwrap_or(if target.stored(weights).all(|d| d == own) { own } else { DType::F32 });
    let table = [EMBEDDING, OUTPUT].iter().any(|name| gguf::tensor_name("", name) == target.name);
    // What llama.cpp's own converter does for these: every token passes through them.
    let dtype = if table && wanted.is_some() && dtype.block().elements > 2 { DType::Q8_0 } else { dtype };
    let block = dtype.block().elements;
    let whole = block <= 2 || target.shape.last().is_multiple_of(block);
    if whole { dtype } else { DType::F16 }
}

/// The dtype of most elements in matrices.
fn most(targets: &[Target]) -> DType {
    let mut elements: Vec<(DType, usize)> = Vec::new();
    for target in targets.iter().filter(|t| t.shape.rank() > 1) {
        match elements.iter_mut().find(|(d, _)| *d == target.dtype) {
            Some((_, n)) => *n += target.shape.elements(),
            None => elements.push((target.dtype, target.shape.elements())),
        }
    }
    elements.into_iter().max_by_key(|(_, n)| *n).map_or(DType::F32, |(dtype, _)| dtype)
}

fn count(targets: &[Target]) -> Vec<(DType, usize)> {
    let count = |d: DType| (d, targets.iter().filter(|t| t.dtype == d).count());
    DType::WEIGHTS.map(count).into_iter().filter(|(_, n)| *n > 0).collect()
}
