//! From one format to another: GGUF and Hugging Face folders, with other dtypes if wanted. Weights go from the mapped file
//! to the new one piece by piece.

mod folder;

use super::atomic::{Made, Staged, sweep};
use super::checkpoint::{Checkpoint, Origin};
use super::gguf::{self, Metadata};
use super::layout::{Target, targets};
use super::weights::Weight;
use crate::base::{DType, Shape, quantise::ENCODED};
use crate::error::{Error, Result};
use crate::model::{EMBEDDING, OUTPUT};
use std::path::Path;

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Converted {
    /// Bytes of the files of weights.
    pub bytes: u64,
    /// How many files of weights there are.
    pub files: usize,
    /// How many tensors have which dtype.
    pub dtypes: Vec<(DType, usize)>,
    /// What else of the model did not go along, a sentence each.
    pub lost: Vec<String>,
}

impl Checkpoint {
    /// Writes a GGUF file. Matrices get `dtype`, or keep theirs; vectors are f32; embedding and output projection are
    /// no narrower than Q8_0, and a matrix whose rows are no whole blocks becomes f16. The rows of an output projection
    /// that the family scales to unit length are written scaled, since llama.cpp takes them as they are. `vocabulary`
    /// are the keys of the tokenizer where this is a folder; a GGUF file's own are kept.
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
        let fresh = matches!(self.origin(), Origin::Folder(_)) && vocabulary.get("tokenizer.ggml.tokens").is_some();
        if fresh {
            gguf::set_no_tokens(&mut metadata, config);
        }
        let specs = self.model().param_specs();
        let weights = self.find_scaled(&specs)?;
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
        let made = path.parent().filter(|folder| *folder != Path::new("")).map(Made::folder).transpose()?;
        sweep(path.parent().unwrap_or(Path::new("")), &|name| path.file_name().is_some_and(|own| own == name));
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
        let read = Checkpoint::open(staged.temporary())?;
        if let Some(what) = gguf::lost(config, read.config()) {
            let message =
                format!("a GGUF file cannot say {what} ({}); keep the Hugging Face folder", config.family.name);
            return Err(Error::file(path, message));
        }
        let mut lost = Vec::new();
        let ends = gguf::lost_ends(config, read.config());
        if let (true, [first, ..]) = (fresh, ends.as_slice()) {
            lost.push(format!(
                "GGUF has no room for all tokens that end a text: without {first}, a text goes on behind it"
            ));
        }
        drop(read);
        staged.commit()?;
        if let Some(made) = made {
            made.keep();
        }
        Ok(Converted { bytes, files: 1, dtypes: count(&targets), lost })
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
    // What was changed as it was read must be encoded again, and not every dtype is encoded here.
    let kept = match target.stored(weights).all(|d| d == own) {
        false => DType::F32,
        true if target.is_changed(weights) && !ENCODED.contains(&own) => DType::F16,
        true => own,
    };
    let dtype = wanted.unwrap_or(kept);
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
