//! Weights in safetensors files: written in f32, read from f32, f16 and bf16, whole or in shards.

use super::atomic::Staged;
use super::header::header;
use crate::base::Shape;
use crate::error::{Error, Result};
use half::{bf16, f16};
use memmap2::Mmap;
use rayon::prelude::*;
use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Writes f32 tensors to one file, straight from where they lie, and gives it its name in the end.
///
/// # Errors
/// As [`Staged::write`].
pub fn write_safetensors(path: &Path, tensors: &[(&str, &Shape, &[f32])]) -> Result<()> {
    stage_safetensors(path, tensors)?.commit()
}

/// As [`write_safetensors`], up to the renaming.
///
/// # Errors
/// As [`Staged::write`].
pub fn stage_safetensors(path: &Path, tensors: &[(&str, &Shape, &[f32])]) -> Result<Staged> {
    let header = header(tensors.iter().map(|(name, shape, _)| (*name, *shape)));
    let bytes = tensors.iter().map(|(_, _, data)| data.len() as u64 * 4).sum::<u64>() + header.len() as u64;
    Staged::write(path, bytes, |writer| {
        writer.write_all(&header)?;
        for (name, shape, data) in tensors {
            assert_eq!(shape.elements(), data.len(), "{name}: wrong number of elements");
            write_f32(writer, data)?;
        }
        Ok(())
    })
}

fn write_f32(writer: &mut dyn Write, data: &[f32]) -> std::io::Result<()> {
    if cfg!(target_endian = "little") {
        return writer.write_all(bytemuck::cast_slice(data));
    }
    data.iter().try_for_each(|x| writer.write_all(&x.to_le_bytes()))
}

/// Tensors of one safetensors file, or of the shards that a `model.safetensors.index.json` lists.
#[derive(Debug)]
pub struct Weights {
    /// The file or index, for messages.
    path: PathBuf,
    shards: Vec<(PathBuf, Mmap)>,
    /// Shard of each tensor.
    tensors: BTreeMap<String, usize>,
}

impl Weights {
    /// Opens a safetensors file, an index of shards, or a folder that holds either.
    ///
    /// # Errors
    /// If there is none, it is torn or cut off, or a shard is missing.
    pub fn open(path: &Path) -> Result<Weights> {
        if path.is_dir() {
            let candidates = ["model.safetensors", "model.safetensors.index.json"].map(|name| path.join(name));
            let found = candidates.iter().find(|file| file.exists());
            let missing = || Error::file(path, "holds neither model.safetensors nor model.safetensors.index.json");
            return Weights::open(found.ok_or_else(missing)?);
        }
        let files = if path.extension().is_some_and(|e| e == "json") { shards(path)? } else { vec![path.into()] };
        let (mut shards, mut tensors) = (Vec::new(), BTreeMap::new());
        for (i, file) in files.into_iter().enumerate() {
            let map = map(&file)?;
            for name in parse(&file, &map)?.names() {
                if tensors.insert(name.to_string(), i).is_some() {
                    return Err(Error::file(path, format!("tensor {name} stands in two shards; download it again")));
                }
            }
            shards.push((file, map));
        }
        Ok(Weights { path: path.into(), shards, tensors })
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Reads tensors into f32 slices, in parallel, after checking that all are there with the right shapes.
    ///
    /// # Errors
    /// If one is missing, has another shape, or a dtype that is not F32, F16 or BF16; or if the file holds a tensor
    /// that is not wanted and that `ignored` does not name.
    pub fn read(&self, wanted: Vec<(&str, &Shape, &mut [f32])>, ignored: impl Fn(&str) -> bool) -> Result<()> {
        let names: std::collections::HashSet<&str> = wanted.iter().map(|(name, ..)| *name).collect();
        let missing: Vec<&str> = wanted.iter().map(|(n, ..)| *n).filter(|n| !self.tensors.contains_key(*n)).collect();
        self.refuse("lacks", &missing, "these are not the weights of this config.json")?;
        let extra: Vec<&str> = self.names().filter(|n| !names.contains(n) && !ignored(n)).collect();
        self.refuse("holds more than the model has:", &extra, "this config.json describes another model")?;
        let parsed = self.shards.iter().map(|(file, map)| parse(file, map)).collect::<Result<Vec<_>>>()?;
        for (name, shape, _) in &wanted {
            let shard = self.tensors[*name];
            let view = parsed[shard].tensor(name).map_err(|e| torn(&self.shards[shard].0, &e))?;
            let fail = |message| Err(Error::file(&self.shards[shard].0, message));
            if view.shape() != shape.dims() {
                let have = Shape::from(view.shape());
                return fail(format!(
                    "tensor {name} is {have} where config.json says {shape}; one of the two is wrong"
                ));
            }
            if !matches!(view.dtype(), Dtype::F32 | Dtype::F16 | Dtype::BF16) {
                return fail(format!("tensor {name} is {:?}; only F32, F16 and BF16 can be read", view.dtype()));
            }
        }
        wanted.into_par_iter().for_each(|(name, _, out)| {
            let view = parsed[self.tensors[name]].tensor(name).expect("checked above");
            widen(view.dtype(), view.data(), out);
        });
        Ok(())
    }

    fn refuse(&self, verb: &str, names: &[&str], why: &str) -> Result<()> {
        let Some(first) = names.first() else { return Ok(()) };
        let more = if names.len() > 1 { format!(" and {} more", names.len() - 1) } else { String::new() };
        Err(Error::file(&self.path, format!("{verb} tensor {first}{more}; {why}")))
    }
}

/// Files that an index lists, each once, beside it.
fn shards(index: &Path) -> Result<Vec<PathBuf>> {
    let text = std::fs::read_to_string(index).map_err(|e| Error::io("read", index, e))?;
    let fail = |why: String| Error::file(index, format!("is not an index of shards ({why}); download it again"));
    let json: serde_json::Value = serde_json::from_str(&text).map_err(|e| fail(e.to_string()))?;
    let map = json["weight_map"].as_object().ok_or_else(|| fail("\"weight_map\" is missing".into()))?;
    let mut files = std::collections::BTreeSet::new();
    for (name, file) in map {
        // A name with folders in it could reach outside the model's own folder.
        let plain = file.as_str().filter(|f| Path::new(f).file_name().is_some_and(|n| n == *f));
        files.insert(plain.ok_or_else(|| fail(format!("{name} lies in {file}")))?.to_string());
    }
    Ok(files.into_iter().map(|file| index.with_file_name(file)).collect())
}

fn map(path: &Path) -> Result<Mmap> {
    let file = File::open(path).map_err(|e| Error::io("read", path, e))?;
    // SAFETY: the mapping is read-only; a file that others cut short while it is read ends the program, as with every
    // reader that maps weights.
    unsafe { Mmap::map(&file) }.map_err(|e| Error::io("read", path, e))
}

fn parse<'a>(path: &Path, bytes: &'a [u8]) -> Result<SafeTensors<'a>> {
    SafeTensors::deserialize(bytes).map_err(|e| torn(path, &e))
}

fn torn(path: &Path, why: &dyn std::fmt::Display) -> Error {
    Error::file(path, format!("is not a whole safetensors file ({why}); it was cut off or damaged: fetch it again"))
}

fn widen(dtype: Dtype, bytes: &[u8], out: &mut [f32]) {
    let pairs = || bytes.chunks_exact(2).map(|b| [b[0], b[1]]);
    match dtype {
        Dtype::F16 => out.iter_mut().zip(pairs()).for_each(|(x, b)| *x = f16::from_le_bytes(b).to_f32()),
        Dtype::BF16 => out.iter_mut().zip(pairs()).for_each(|(x, b)| *x = bf16::from_le_bytes(b).to_f32()),
        _ => {
            let words = bytes.chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]]);
            out.iter_mut().zip(words).for_each(|(x, b)| *x = f32::from_le_bytes(b));
        }
    }
}

#[cfg(test)]
#[path = "safetensors_tests.rs"]
mod tests;
