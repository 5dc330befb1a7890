//! A checkpoint of any format as a Hugging Face folder: weights in one file or in several, with what a folder says beside
//! them kept whole.

use super::super::shards::{INDEX, cut, index, shard_name};
use super::{Converted, check, count, most};
use crate::base::DType;
use crate::error::{Error, Result};
use crate::model::{MOST_CONFIG, config_text};
use crate::store::atomic::{Made, Staged, create_folder, sweep};
use crate::store::folder::{FolderFile, GENERATION, commit};
use crate::store::header::header;
use crate::store::layout::{Target, targets};
use crate::store::weights::Weight;
use crate::store::{Checkpoint, Origin};
use serde_json::Value;
use std::path::Path;

impl Checkpoint {
    /// Writes a Hugging Face folder. Tensors get `dtype`: f32, f16 or bf16. Without one, matrices that have one of these
    /// keep it, quantised ones become f32, and vectors that lose nothing by it are as narrow as the matrices. Where they
    /// are more than `shard_bytes`, they lie in several files of at most that many (but a larger tensor in one of its
    /// own). A folder's generation_config.json is kept as it is; `files` are those of the tokenizer. What a model that lies there
    /// already has beside them goes.
    ///
    /// # Errors
    /// As [`Checkpoint::write_gguf`].
    pub fn write_folder(
        &self,
        folder: &Path,
        dtype: Option<DType>,
        shard_bytes: u64,
        files: &[FolderFile],
    ) -> Result<Converted> {
        check(dtype)?;
        if let Some(dtype) = dtype.filter(|d| d.block().elements > 2) {
            let what = "a Hugging Face folder holds f32, f16 or bf16; write a .gguf file for quantised weights";
            return Err(Error::Invalid(format!("{dtype}: {what}")));
        }
        let specs = self.model().param_specs();
        let weights = self.find(&specs)?;
        let targets = self.folder_targets(&weights, dtype);
        let made = Made::folder(folder)?;
        sweep(folder, &|name| [".safetensors", ".json", ".jinja"].iter().any(|ending| name.ends_with(ending)));
        let (mut staged, names, bytes) = stage_weights(folder, &targets, &weights, shard_bytes)?;
        let mut stage = |name: &str, content: &[u8]| -> Result<()> {
            let path = folder.join(name);
            path.parent().map_or(Ok(()), create_folder)?;
            staged.push(Staged::write(&path, content.len() as u64, |w| w.write_all(content))?);
            Ok(())
        };
        for file in files {
            stage(file.name, file.content)?;
        }
        if let Some(generation) = self.generation_json()? {
            stage(GENERATION, generation.as_bytes())?;
        }
        stage("config.json", self.config_json(most(&targets))?.as_bytes())?;
        commit(folder, staged, true)?;
        made.keep();
        let files = names.iter().filter(|name| *name != INDEX).count();
        Ok(Converted { bytes, files, dtypes: count(&targets), lost: Vec::new() })
    }

    /// The tensors of the family's own files, by name, each with its dtype.
    fn folder_targets(&self, weights: &[Weight], dtype: Option<DType>) -> Vec<Target> {
        let mut targets = targets(weights, &|name| self.model().sources(name));
        for target in &mut targets {
            let own = target.stored(weights).next().unwrap_or(DType::F32);
            let narrow = own.block().elements <= 2 && target.stored(weights).all(|d| d == own);
            target.dtype = dtype.unwrap_or(if narrow { own } else { DType::F32 });
        }
        let matrices = most(&targets);
        for target in targets.iter_mut().filter(|t| t.shape.rank() == 1 && dtype.is_none()) {
            if matrices.block().elements == 2 && target.dtype == DType::F32 && target.survives(weights, matrices) {
                target.dtype = matrices;
            }
        }
        targets.sort_by(|a, b| a.name.cmp(&b.name));
        targets
    }

    /// The generation_config.json of a folder: its own, to the byte, or none; of a GGUF file, what its metadata say.
    pub(in crate::store) fn generation_json(&self) -> Result<Option<String>> {
        let Origin::Folder(folder) = self.origin() else { return Ok(Some(self.config().generation_json())) };
        let file = folder.join(GENERATION);
        file.is_file().then(|| crate::base::read_text(&file, MOST_CONFIG)).transpose()
    }

    /// The config.json of a folder whose matrices have a dtype: a folder's own, with what it says of the dtype.
    pub(in crate::store) fn config_json(&self, dtype: DType) -> Result<String> {
        let text = match self.origin() {
            Origin::Folder(folder) => config_text(&folder.join("config.json"))?,
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

/// Writes all weights, and their index where they lie in several files: what is staged, its names, and the files' bytes.
fn stage_weights(
    folder: &Path,
    targets: &[Target],
    weights: &[Weight],
    shard_bytes: u64,
) -> Result<(Vec<Staged>, Vec<String>, u64)> {
    let counts = cut(targets.iter().map(Target::bytes), shard_bytes);
    let (mut staged, mut names, mut places, mut bytes) = (Vec::new(), Vec::new(), Vec::new(), 0);
    let mut rest = targets;
    for (i, count) in counts.iter().enumerate() {
        let (own, after) = rest.split_at(*count);
        rest = after;
        let name = shard_name(i, counts.len());
        let head = header(own.iter().map(|t| (t.name.as_str(), &t.shape, t.dtype, t.bytes())));
        let size = head.len() as u64 + own.iter().map(Target::bytes).sum::<u64>();
        staged.push(Staged::write(&folder.join(&name), size, |writer| {
            writer.write_all(&head)?;
            own.iter().try_for_each(|target| target.write(weights, writer))
        })?);
        places.extend(own.iter().map(|t| (t.name.as_str(), i)));
        names.push(name);
        bytes += size;
    }
    if counts.len() > 1 {
        let total = targets.iter().map(Target::bytes).sum();
        let text = index(total, places.iter().map(|(tensor, i)| (*tensor, names[*i].as_str())));
        staged.push(Staged::write(&folder.join(INDEX), text.len() as u64, |w| w.write_all(text.as_bytes()))?);
        names.push(INDEX.into());
    }
    Ok((staged, names, bytes))
}
