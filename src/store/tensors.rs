//! Named tensors on disk, memory-mapped: what safetensors and GGUF files have in common.

use super::gguf;
use super::{safetensors, shards};
use crate::base::{DType, Shape, packed};
use crate::error::{Error, Result};
use memmap2::Mmap;
use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// What a file says of a tensor.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Stored {
    pub shape: Shape,
    /// Its dtype, or the file's name for one that no weight has.
    pub dtype: Result<DType, String>,
}

impl Stored {
    pub fn new(shape: Shape, dtype: DType) -> Stored {
        Stored { shape, dtype: Ok(dtype) }
    }
}

/// A tensor of one file and where its bytes lie, within that file and its neighbours' bounds.
#[derive(Debug)]
pub(super) struct Entry {
    pub name: String,
    pub stored: Stored,
    pub bytes: Range<usize>,
}

/// Bytes in a file of a tensor; nothing where that overflows, is none, or a row is not whole blocks. Narrow rows may be
/// odd, since in files a half is no block.
pub(super) fn file_bytes(dtype: DType, shape: &Shape) -> Option<u64> {
    let elements = shape.dims().iter().try_fold(1usize, |n, &d| n.checked_mul(d)).filter(|n| *n > 0)?;
    let bytes = match dtype {
        DType::F16 | DType::BF16 => elements.checked_mul(2)?,
        _ => {
            let block = dtype.block();
            let whole = shape.last().is_multiple_of(block.elements);
            (elements / block.elements).checked_mul(block.file_bytes).filter(|_| whole)?
        }
    };
    // No buffer, file or sum of such sizes comes near this; so sums of a few of them never overflow.
    (bytes < 1 << 48).then_some(bytes as u64)
}

/// Sorts tensors by place and refuses two that share a byte, or a name.
pub(super) fn no_overlaps(path: &Path, entries: &mut [Entry]) -> Result<()> {
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    if let Some(pair) = entries.windows(2).find(|pair| pair[0].name == pair[1].name) {
        let name = &pair[0].name;
        return Err(Error::file(
            path,
            format!("tensor {name} stands there twice; the file is damaged: fetch it again"),
        ));
    }
    entries.sort_by_key(|e| (e.bytes.start, e.bytes.end));
    for pair in entries.windows(2) {
        if pair[1].bytes.start < pair[0].bytes.end {
            let (a, b, at) = (&pair[0].name, &pair[1].name, pair[1].bytes.start);
            let message = format!("tensors {a} and {b} overlap at byte {at}; the file is damaged: fetch it again");
            return Err(Error::file(path, message));
        }
    }
    Ok(())
}

/// A tensor as it lies in a mapped file.
#[derive(Debug, Clone, Copy)]
pub struct Tensor<'a> {
    /// The file's name for it.
    pub name: &'a str,
    /// Its shape, outermost dim first.
    pub shape: &'a Shape,
    /// Its bytes, as the file has them.
    pub bytes: &'a [u8],
    /// The file.
    pub file: &'a Path,
    /// First of its bytes in the file.
    pub offset: usize,
    stored: &'a Stored,
    mapped: &'a Mapped,
}

/// A file that is mapped.
#[derive(Debug)]
struct Mapped {
    path: PathBuf,
    file: File,
    map: Mmap,
}

impl Mapped {
    fn open(path: &Path) -> Result<Mapped> {
        let file = File::open(path).map_err(|e| Error::io("read", path, e))?;
        let about = file.metadata().map_err(|e| Error::io("read", path, e))?;
        if !about.is_file() {
            return Err(Error::file(
                path,
                "is no regular file but a device, a pipe or a folder; give a file of weights",
            ));
        }
        if about.len() == 0 {
            return Err(Error::file(path, "is empty, it has 0 bytes: nothing of it has arrived; fetch it again"));
        }
        // SAFETY: the mapping is read-only; a file that others cut short while it is read ends the program, as with every
        // reader that maps weights. Who loads them asks before each piece: see `check_whole`.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io("read", path, e))?;
        Ok(Mapped { path: path.into(), file, map })
    }

    /// Refuses a file that is shorter than it was when it was mapped: to read beyond its end is a signal, and up to the end of
    /// its last page zeros.
    fn check_whole(&self) -> Result<()> {
        let now = self.file.metadata().map_err(|e| Error::io("read", &self.path, e))?.len();
        if now >= self.map.len() as u64 {
            return Ok(());
        }
        let before = self.map.len();
        let message = format!("was cut short while it was read: it had {before} bytes, and has {now}; fetch it again");
        Err(Error::file(&self.path, message))
    }
}

impl Tensor<'_> {
    /// Refuses a file that was cut short since it was opened.
    pub(super) fn check_whole(&self) -> Result<()> {
        self.mapped.check_whole()
    }

    /// Its dtype, as the file names it.
    pub fn dtype_name(&self) -> &str {
        match &self.stored.dtype {
            Ok(dtype) => dtype.name(),
            Err(name) => name,
        }
    }

    /// Its dtype.
    ///
    /// # Errors
    /// If no weight has it.
    pub fn dtype(&self) -> Result<DType> {
        self.stored.dtype.clone().map_err(|name| {
            let known: Vec<&str> = DType::WEIGHTS.iter().filter(|d| **d != DType::Nf4).map(|d| d.name()).collect();
            let known = known.join(", ");
            self.fail(format!("is {name}; only these can be read: {known}"))
        })
    }

    /// The bytes of some rows, counted over all dims but the innermost.
    pub fn rows(&self, rows: Range<usize>) -> &[u8] {
        let row = self.bytes.len() / self.row_count();
        &self.bytes[rows.start * row..rows.end * row]
    }

    /// Number of rows. A vector has one element a row, so that its elements can be picked.
    pub fn row_count(&self) -> usize {
        if self.shape.rank() == 1 { self.shape.last() } else { self.shape.rows() }
    }

    /// An error about it, with file, name and offset.
    pub(super) fn fail(&self, what: impl std::fmt::Display) -> Error {
        Error::file(self.file, format!("tensor {} at byte {} {what}", self.name, self.offset))
    }
}

/// The values of elements as a file holds them.
pub(super) fn widen(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    use half::{bf16, f16};
    // Narrow rows may be odd in files, which blocks are not.
    let pairs = || bytes.chunks_exact(2).map(|b| [b[0], b[1]]);
    match dtype {
        DType::F16 => out.iter_mut().zip(pairs()).for_each(|(x, b)| *x = f16::from_le_bytes(b).to_f32()),
        DType::BF16 => out.iter_mut().zip(pairs()).for_each(|(x, b)| *x = bf16::from_le_bytes(b).to_f32()),
        _ => packed::decode(dtype, bytes, out),
    }
}

/// All tensors of a model, in one file or in shards.
#[derive(Debug)]
pub struct Tensors {
    /// The file or index, for messages.
    path: PathBuf,
    files: Vec<Mapped>,
    entries: BTreeMap<String, (usize, Stored, Range<usize>)>,
}

impl Tensors {
    /// Opens a GGUF file, or all parts of the model of which it is one, for its tensors and its metadata.
    ///
    /// # Errors
    /// With file, tensor or key, and offset, for whatever is wrong in it; if a part is missing or another model's.
    pub fn open_gguf(path: &Path) -> Result<(Tensors, gguf::Metadata)> {
        let file = Mapped::open(path)?;
        let (metadata, entries) = gguf::read(path, &file.map)?;
        if let Some(parts) = gguf::parts(path, &metadata)? {
            return Tensors::open_parts(&parts);
        }
        let mut tensors = Tensors { path: path.into(), files: Vec::new(), entries: BTreeMap::new() };
        tensors.add(file, entries)?;
        Ok((tensors, metadata))
    }

    fn open_parts(parts: &[PathBuf]) -> Result<(Tensors, gguf::Metadata)> {
        let mut tensors = Tensors { path: parts[0].clone(), files: Vec::new(), entries: BTreeMap::new() };
        let mut first = None;
        for (i, part) in parts.iter().enumerate() {
            if !part.is_file() {
                let message = format!("is not there: it is part {} of {} of a model; fetch it too", i + 1, parts.len());
                return Err(Error::file(part, message));
            }
            let file = Mapped::open(part)?;
            let (metadata, entries) = gguf::read(part, &file.map)?;
            gguf::check_part(part, &metadata, i, parts.len())?;
            tensors.add(file, entries)?;
            first.get_or_insert(metadata);
        }
        let metadata = first.expect("a model has parts");
        gguf::check_tensors(&parts[0], &metadata, tensors.entries.len())?;
        Ok((tensors, metadata))
    }

    /// Opens a safetensors file, an index of shards, or a folder that holds either.
    ///
    /// # Errors
    /// If there is none, it is torn or cut off, or a shard is missing.
    pub fn open_safetensors(path: &Path) -> Result<Tensors> {
        if path.is_dir() {
            let candidates = [shards::WEIGHTS, shards::INDEX].map(|name| path.join(name));
            let found = candidates.iter().find(|file| file.exists());
            let missing = || Error::file(path, missing_weights(path));
            return Tensors::open_safetensors(found.ok_or_else(missing)?);
        }
        let index = path.extension().is_some_and(|e| e == "json");
        let places = if index { shards::places(path)? } else { BTreeMap::new() };
        let mut files: Vec<PathBuf> = places.values().map(|name| path.with_file_name(name)).collect();
        files.sort();
        files.dedup();
        if !index {
            files.push(path.into());
        }
        let mut tensors = Tensors { path: path.into(), files: Vec::new(), entries: BTreeMap::new() };
        for file in files {
            if index && !file.exists() {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                return Err(Error::file(file, format!("is not there: {name} names it; fetch it too")));
            }
            let file = Mapped::open(&file)?;
            let entries = safetensors::read(&file.path, &file.map)?;
            tensors.add(file, entries)?;
        }
        tensors.check_places(&places)?;
        Ok(tensors)
    }

    /// Refuses an index that says of a tensor that it lies elsewhere than it does.
    fn check_places(&self, places: &BTreeMap<String, String>) -> Result<()> {
        for (name, file) in places.iter().filter(|(name, _)| !shards::is_left_out(name)) {
            let lies = self.get(name).map(|t| t.file.file_name().unwrap_or_default().to_string_lossy().into_owned());
            if lies.as_ref() != Some(file) {
                let lies = lies.map_or("in none of the files".into(), |lies| format!("in {lies}"));
                let message =
                    format!("says that tensor {name} lies in {file}, and it lies {lies}; fetch index and files again");
                return Err(Error::file(&self.path, message));
            }
        }
        Ok(())
    }

    fn add(&mut self, file: Mapped, entries: Vec<Entry>) -> Result<()> {
        for Entry { name, stored, bytes } in entries {
            if self.entries.insert(name.clone(), (self.files.len(), stored, bytes)).is_some() {
                let message = format!("tensor {name} stands in two shards; download it again");
                return Err(Error::file(&self.path, message));
            }
        }
        self.files.push(file);
        Ok(())
    }

    /// The file, or the index of the files.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|file| file.path.as_path())
    }

    /// All tensors, by name.
    pub fn iter(&self) -> impl Iterator<Item = Tensor<'_>> {
        self.entries.iter().map(|(name, entry)| self.tensor(name, entry))
    }

    /// The tensor of this name.
    pub fn get(&self, name: &str) -> Option<Tensor<'_>> {
        self.entries.get_key_value(name).map(|(name, entry)| self.tensor(name, entry))
    }

    fn tensor<'a>(&'a self, name: &'a str, entry: &'a (usize, Stored, Range<usize>)) -> Tensor<'a> {
        let (file, stored, range) = entry;
        let mapped = &self.files[*file];
        let (bytes, offset) = (&mapped.map[range.clone()], range.start);
        Tensor { name, shape: &stored.shape, bytes, file: &mapped.path, offset, stored, mapped }
    }
}

/// What a folder without safetensors is told.
fn missing_weights(folder: &Path) -> String {
    let pickled = ["pytorch_model.bin", "pytorch_model.bin.index.json"].into_iter().find(|f| folder.join(f).exists());
    let advice = pickled.map_or(String::new(), |file| {
        format!("; its {file} is PyTorch's own form, which is not read: save the model as safetensors, or fetch it so")
    });
    format!("holds neither model.safetensors nor model.safetensors.index.json{advice}")
}
