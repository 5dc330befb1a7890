//! Weights in safetensors files: written in f32, read whole or in shards, every number of the header checked.

use super::atomic::Staged;
use super::header::header;
use super::tensors::{Entry, Stored, file_bytes, no_overlaps};
use crate::base::{DType, Shape};
use crate::error::{Error, Result};
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use std::io::Write;
use std::path::Path;

/// Longest header that is believed: that of a model of ten thousand tensors takes one MB.
const MOST_HEADER: u64 = 32 << 20;

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
    let header = header(tensors.iter().map(|(name, shape, data)| (*name, *shape, DType::F32, data.len() as u64 * 4)));
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

/// The tensors of a file and where they lie.
///
/// # Errors
/// With tensor and offset, for whatever is wrong.
pub(super) fn read(path: &Path, bytes: &[u8]) -> Result<Vec<Entry>> {
    let torn = |why: String| {
        let message = format!("is not a whole safetensors file ({why}); it was cut off or damaged: fetch it again");
        Error::file(path, message)
    };
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(torn(format!("it has {} bytes", bytes.len())));
    };
    let length = u64::from_le_bytes(*length);
    if length > MOST_HEADER || length > rest.len() as u64 {
        return Err(torn(format!("its header should have {length} bytes, and {} follow", rest.len())));
    }
    let (text, data) = rest.split_at(length as usize);
    let rows = parse(text).map_err(|e| torn(format!("the header at byte 8: {e}")))?;
    let start = bytes.len() - data.len();
    let mut entries = Vec::new();
    for (name, row) in rows {
        let entry = place(row, start, data.len()).map_err(|why| torn(format!("tensor {name}: {why}")))?;
        entries.push(Entry { name, ..entry });
    }
    no_overlaps(path, &mut entries)?;
    // What no tensor claims was claimed by one that is lost.
    let mut at = start;
    for entry in &entries {
        if entry.bytes.start != at {
            return Err(torn(format!("no tensor has the bytes from {at} on, before {}", entry.name)));
        }
        at = entry.bytes.end;
    }
    if at != bytes.len() {
        return Err(torn(format!("no tensor has the bytes from {at} on")));
    }
    Ok(entries)
}

/// What a header says of one tensor.
#[derive(serde::Deserialize)]
struct Row {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [usize; 2],
}

fn place(row: Row, start: usize, length: usize) -> Result<Entry, String> {
    let [from, to] = row.data_offsets;
    if from > to || to > length {
        return Err(format!("its bytes {from} to {to} are not among the {length} of the data from byte {start} on"));
    }
    let shape = Shape::from(row.shape);
    let dtype = match row.dtype.as_str() {
        "F32" => Ok(DType::F32),
        "F16" => Ok(DType::F16),
        "BF16" => Ok(DType::BF16),
        _ => Err(row.dtype),
    };
    // Of a dtype that is not ours nobody reads the bytes.
    let expected = dtype.as_ref().map_or(Some((to - from) as u64), |d| file_bytes(*d, &shape));
    if expected != Some((to - from) as u64) {
        return Err(format!("at byte {}, it has {} bytes for the shape {shape}", start + from, to - from));
    }
    Ok(Entry { name: String::new(), stored: Stored { shape, dtype }, bytes: start + from..start + to })
}

/// The rows of a header, doubled ones too, which a map would hide.
fn parse(text: &[u8]) -> serde_json::Result<Vec<(String, Row)>> {
    struct Rows;
    impl<'de> Visitor<'de> for Rows {
        type Value = Vec<(String, Row)>;

        fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
            f.write_str("an object of tensors")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut rows = Vec::new();
            while let Some(name) = map.next_key::<String>()? {
                if name == "__metadata__" {
                    map.next_value::<IgnoredAny>()?;
                } else {
                    rows.push((name, map.next_value()?));
                }
            }
            Ok(rows)
        }
    }
    impl<'de> DeserializeSeed<'de> for Rows {
        type Value = Vec<(String, Row)>;

        fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
            deserializer.deserialize_map(self)
        }
    }
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let rows = Rows.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(rows)
}

#[cfg(test)]
#[path = "safetensors_tests.rs"]
mod tests;
