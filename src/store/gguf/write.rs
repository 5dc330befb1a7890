//! Writes a GGUF file, version 3.

use super::metadata::{Array, Kind, Metadata, Value};
use super::read::{ALIGNMENT, type_number};
use super::split::is_split_key;
use crate::base::{DType, Shape};
use std::io::{self, Write};

/// Name, shape, dtype and bytes of a tensor to be written.
pub(in crate::store) type Row<'a> = (&'a str, &'a Shape, DType, u64);

/// Everything before the tensors' bytes, padding included. Each tensor follows at the next multiple of 32 bytes.
pub(in crate::store) fn head(metadata: &Metadata, rows: &[Row]) -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend((rows.len() as u64).to_le_bytes());
    // Ours is the alignment that holds where none is said, and the file is whole.
    let keys = || metadata.iter().filter(|(key, _)| *key != "general.alignment" && !is_split_key(key));
    out.extend((keys().count() as u64).to_le_bytes());
    for (key, value) in keys() {
        text(&mut out, key);
        out.extend((value.kind() as u32).to_le_bytes());
        put(&mut out, value);
    }
    let mut offset = 0u64;
    for (name, shape, dtype, bytes) in rows {
        text(&mut out, name);
        out.extend((shape.rank() as u32).to_le_bytes());
        shape.dims().iter().rev().for_each(|&d| out.extend((d as u64).to_le_bytes()));
        out.extend(type_number(*dtype).to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset += bytes.next_multiple_of(ALIGNMENT);
    }
    out.resize(out.len().next_multiple_of(ALIGNMENT as usize), 0);
    out
}

/// What follows a tensor of so many bytes.
pub(in crate::store) fn padding(writer: &mut dyn Write, bytes: u64) -> io::Result<()> {
    let count = bytes.next_multiple_of(ALIGNMENT) - bytes;
    writer.write_all(&[0; ALIGNMENT as usize][..count as usize])
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Int(x, kind) => out.extend(&x.to_le_bytes()[..kind.size().expect("a number")]),
        Value::Float(x, Kind::F32) => out.extend((*x as f32).to_le_bytes()),
        Value::Float(x, _) => out.extend(x.to_le_bytes()),
        Value::Bool(x) => out.push(u8::from(*x)),
        Value::String(x) => text(out, x),
        Value::Array(Array { kind, count, bytes }) => {
            out.extend((*kind as u32).to_le_bytes());
            out.extend((*count as u64).to_le_bytes());
            out.extend(bytes);
        }
    }
}
