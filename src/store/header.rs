//! The header of a safetensors file, written: u64 length, JSON padded with spaces to eight bytes, then the data.

use crate::base::{DType, Shape};
use serde_json::{Map, Value, json};

/// Header bytes, length included, for tensors (name, shape, dtype, bytes) that follow each other in this order.
pub(super) fn header<'a>(tensors: impl Iterator<Item = (&'a str, &'a Shape, DType, u64)>) -> Vec<u8> {
    let mut map = Map::new();
    map.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut at = 0u64;
    for (name, shape, dtype, bytes) in tensors {
        let end = at + bytes;
        let dtype = dtype.name().to_uppercase();
        map.insert(name.into(), json!({"dtype": dtype, "shape": shape.dims(), "data_offsets": [at, end]}));
        at = end;
    }
    let mut text = Value::Object(map).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text);
    bytes
}
