//! Reads the head of a GGUF file: magic, version, counts, metadata, the table of tensors. Every number is checked before
//! it is used, and nothing is allocated by a count that the file merely claims.

use super::metadata::{Array, Kind, Metadata, Value, scalar};
use crate::base::{DType, Shape};
use crate::error::{Error, Result};
use crate::store::tensors::{Entry, Stored, file_bytes, no_overlaps};
use std::path::Path;

/// Tensors are aligned to this many bytes where the file says nothing.
pub(super) const ALIGNMENT: u64 = 32;
/// Longest metadata that is believed: the largest vocabularies take some 30 MB.
const MOST_METADATA: usize = 128 << 20;
/// Most tensors and keys that are believed; their tables are the only memory that is taken by a file's word.
const MOST_TENSORS: u64 = 1 << 18;
const MOST_KEYS: u64 = 1 << 14;
/// Arrays may hold arrays, to this depth.
const DEEPEST: usize = 4;

/// GGUF's numbers of the types that we read, and the names of the others, for messages.
const TYPES: [(u32, Option<DType>, &str); 36] = [
    (0, Some(DType::F32), "F32"),
    (1, Some(DType::F16), "F16"),
    (2, Some(DType::Q4_0), "Q4_0"),
    (3, Some(DType::Q4_1), "Q4_1"),
    (6, Some(DType::Q5_0), "Q5_0"),
    (7, Some(DType::Q5_1), "Q5_1"),
    (8, Some(DType::Q8_0), "Q8_0"),
    (9, None, "Q8_1"),
    (10, Some(DType::Q2K), "Q2_K"),
    (11, Some(DType::Q3K), "Q3_K"),
    (12, Some(DType::Q4K), "Q4_K"),
    (13, Some(DType::Q5K), "Q5_K"),
    (14, Some(DType::Q6K), "Q6_K"),
    (15, None, "Q8_K"),
    (16, None, "IQ2_XXS"),
    (17, None, "IQ2_XS"),
    (18, None, "IQ3_XXS"),
    (19, None, "IQ1_S"),
    (20, None, "IQ4_NL"),
    (21, None, "IQ3_S"),
    (22, None, "IQ2_S"),
    (23, None, "IQ4_XS"),
    (24, None, "I8"),
    (25, None, "I16"),
    (26, None, "I32"),
    (27, None, "I64"),
    (28, None, "F64"),
    (29, None, "IQ1_M"),
    (30, Some(DType::BF16), "BF16"),
    (31, None, "Q4_0_4_4"),
    (32, None, "Q4_0_4_8"),
    (33, None, "Q4_0_8_8"),
    (34, None, "TQ1_0"),
    (35, None, "TQ2_0"),
    (39, None, "MXFP4"),
    (40, None, "NVFP4"),
];

/// GGUF's number of a dtype.
pub(super) fn type_number(dtype: DType) -> u32 {
    let row = TYPES.iter().find(|(_, d, _)| *d == Some(dtype));
    row.expect("GGUF has every dtype of a weight").0
}

/// Metadata, and the tensors with their places in the file.
///
/// # Errors
/// A sentence with file, tensor or key, and offset, for whatever is wrong.
pub(in crate::store) fn read(path: &Path, bytes: &[u8]) -> Result<(Metadata, Vec<Entry>)> {
    let mut r = Reader { path, bytes, at: 0, what: "the head".into() };
    if r.take(4)? != b"GGUF" {
        return Err(Error::file(path, "is not a GGUF file: it does not begin with GGUF"));
    }
    let version = r.u32()?;
    if version.swap_bytes() <= 3 && version != 0 {
        return Err(Error::file(path, "is a big-endian GGUF file; only little-endian ones can be read"));
    }
    if !(2..=3).contains(&version) {
        return Err(Error::file(
            path,
            format!("is GGUF version {version}; versions 2 and 3 can be read: convert it anew"),
        ));
    }
    let (tensors, keys) = (r.u64()?, r.u64()?);
    for (count, what, most) in [(tensors, "tensors", MOST_TENSORS), (keys, "keys", MOST_KEYS)] {
        if count > most {
            let message = format!("claims to hold {count} {what}; no real model has more than {most}");
            return Err(Error::file(path, message + ": it is damaged"));
        }
    }
    let metadata = r.metadata(keys)?;
    let mut rows = Vec::new();
    for i in 0..tensors {
        r.what = format!("the entry of tensor {i} of {tensors}");
        rows.push(r.tensor()?);
    }
    let alignment = metadata.uint("general.alignment")?.unwrap_or(ALIGNMENT);
    if !alignment.is_power_of_two() || alignment > 1 << 30 {
        let message = format!("general.alignment is {alignment}; it must be a power of two");
        return Err(Error::file(path, message));
    }
    let entries = place(path, rows, (r.at as u64).next_multiple_of(alignment), alignment, bytes.len() as u64)?;
    Ok((metadata, entries))
}

/// A row of the table of tensors.
struct Row {
    name: String,
    shape: Shape,
    dtype: DType,
    offset: u64,
}

/// Where the tensors lie, counted from the file's start; `data` is where the first may lie.
fn place(path: &Path, rows: Vec<Row>, data: u64, alignment: u64, length: u64) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for Row { name, shape, dtype, offset } in rows {
        let fail =
            |why: String| Err(Error::file(path, format!("tensor {name}: {why}; the file is damaged: fetch it again")));
        if !offset.is_multiple_of(alignment) {
            return fail(format!("its offset {offset} is no multiple of {alignment}"));
        }
        let size = file_bytes(dtype, &shape).expect("checked as the entry was read");
        let start = data.checked_add(offset);
        let Some((start, end)) = start.and_then(|s| Some((s, s.checked_add(size)?))).filter(|(_, end)| *end <= length)
        else {
            let from = data.saturating_add(offset);
            return fail(format!(
                "its {size} bytes from byte {from} on reach beyond the file's {length}; it was cut off"
            ));
        };
        entries.push(Entry { name, stored: Stored::new(shape, dtype), bytes: start as usize..end as usize });
    }
    no_overlaps(path, &mut entries)?;
    Ok(entries)
}

/// What of the file is read yet.
struct Reader<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
    /// What is being read, for messages.
    what: String,
}

impl<'a> Reader<'a> {
    fn fail(&self, why: impl std::fmt::Display) -> Error {
        Error::file(
            self.path,
            format!("{}, at byte {}: {why}; the file is damaged: fetch it again", self.what, self.at),
        )
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let rest = &self.bytes[self.at..];
        if count > rest.len() {
            return Err(self.fail(format!("{count} bytes are wanted and {} are left", rest.len())));
        }
        self.at += count;
        Ok(&rest[..count])
    }

    fn u32(&mut self) -> Result<u32> {
        let b = self.take(4)?;
        Ok(u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    }

    fn u64(&mut self) -> Result<u64> {
        let b = self.take(8)?;
        Ok(u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]))
    }

    fn string(&mut self) -> Result<&'a str> {
        let length = usize::try_from(self.u64()?).unwrap_or(usize::MAX);
        // Before it is read: of a mapped file, checking that it is UTF-8 would load all of it.
        if length <= self.bytes.len() - self.at && length > MOST_METADATA {
            return Err(self.fail(format!("a text is {length} bytes long, and none is longer than {MOST_METADATA}")));
        }
        let bytes = self.take(length)?;
        std::str::from_utf8(bytes).map_err(|_| self.fail("a text is not UTF-8"))
    }

    fn kind(&mut self) -> Result<Kind> {
        let number = self.u32()?;
        Kind::from_number(number).ok_or_else(|| self.fail(format!("there is no type of value {number}")))
    }

    fn metadata(&mut self, keys: u64) -> Result<Metadata> {
        let mut metadata = Metadata::new(self.path);
        for i in 0..keys {
            self.what = format!("key {i} of {keys}");
            let key = self.string()?;
            self.what = format!("the key {key:.80}");
            let value = self.value()?;
            if metadata.set(key, value) {
                return Err(self.fail("it stands there twice"));
            }
        }
        Ok(metadata)
    }

    /// Refuses metadata that are too long by now, before what was read last is copied.
    fn within(&self) -> Result<()> {
        if self.at > MOST_METADATA {
            let message = format!("its metadata are longer than {MOST_METADATA} bytes; no real model's are");
            return Err(Error::file(self.path, message));
        }
        Ok(())
    }

    fn value(&mut self) -> Result<Value> {
        let kind = self.kind()?;
        match kind {
            Kind::String => {
                let text = self.string()?;
                self.within()?;
                Ok(Value::String(text.into()))
            }
            Kind::Array => {
                let (kind, count, bytes) = self.array(0)?;
                self.within()?;
                Ok(Value::Array(Array { kind, count, bytes: bytes.to_vec() }))
            }
            _ => Ok(scalar(kind, self.take(kind.size().expect("of fixed size"))?)),
        }
    }

    /// Type, number and bytes of an array's elements.
    fn array(&mut self, depth: usize) -> Result<(Kind, usize, &'a [u8])> {
        let (kind, count) = (self.kind()?, self.u64()?);
        let start = self.at;
        match kind.size() {
            Some(size) => {
                let bytes = usize::try_from(count).ok().and_then(|c| c.checked_mul(size)).unwrap_or(usize::MAX);
                self.take(bytes)?;
            }
            None if kind == Kind::String => {
                for _ in 0..count {
                    self.string()?;
                }
            }
            None if depth == DEEPEST => return Err(self.fail("arrays within arrays within arrays")),
            None => {
                for _ in 0..count {
                    self.array(depth + 1)?;
                }
            }
        }
        if self.at - start > MOST_METADATA {
            return Err(self.fail(format!("an array is longer than {MOST_METADATA} bytes")));
        }
        Ok((kind, count as usize, &self.bytes[start..self.at]))
    }

    fn tensor(&mut self) -> Result<Row> {
        let name = self.string()?.to_string();
        self.what = format!("tensor {name:.80}");
        let rank = self.u32()?;
        if !(1..=4).contains(&rank) {
            return Err(self.fail(format!("it has {rank} dims, not 1 to 4")));
        }
        let mut dims = Vec::new();
        for _ in 0..rank {
            dims.push(usize::try_from(self.u64()?).unwrap_or(usize::MAX));
        }
        // GGUF begins with the innermost.
        dims.reverse();
        let number = self.u32()?;
        let row = TYPES.iter().find(|(n, ..)| *n == number);
        let Some((_, Some(dtype), _)) = row else {
            let known: Vec<&str> = TYPES.iter().filter(|(_, d, _)| d.is_some()).map(|(.., name)| *name).collect();
            let have = row.map_or_else(|| format!("number {number}"), |(.., name)| (*name).to_string());
            let message = format!("tensor {name:.80} is of type {have}; these can be read: {}", known.join(", "));
            return Err(Error::file(self.path, message));
        };
        let shape = Shape::from(dims);
        if file_bytes(*dtype, &shape).is_none() {
            return Err(self.fail(format!("{shape} elements of {dtype} are none, too many, or no whole blocks a row")));
        }
        Ok(Row { name, shape, dtype: *dtype, offset: self.u64()? })
    }
}
