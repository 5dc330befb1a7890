//! The metadata of a GGUF file: keys in order, each with a typed value.

use crate::error::{Error, Result};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Type of a value, with GGUF's own number for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Kind {
    U8 = 0,
    I8 = 1,
    U16 = 2,
    I16 = 3,
    U32 = 4,
    I32 = 5,
    F32 = 6,
    Bool = 7,
    String = 8,
    Array = 9,
    U64 = 10,
    I64 = 11,
    F64 = 12,
}

impl Kind {
    const ALL: [Kind; 13] = [
        Kind::U8,
        Kind::I8,
        Kind::U16,
        Kind::I16,
        Kind::U32,
        Kind::I32,
        Kind::F32,
        Kind::Bool,
        Kind::String,
        Kind::Array,
        Kind::U64,
        Kind::I64,
        Kind::F64,
    ];

    /// The type of this number.
    pub(super) fn from_number(number: u32) -> Option<Kind> {
        Kind::ALL.get(number as usize).copied()
    }

    /// Bytes of a value, where all have the same.
    pub(super) fn size(self) -> Option<usize> {
        match self {
            Kind::U8 | Kind::I8 | Kind::Bool => Some(1),
            Kind::U16 | Kind::I16 => Some(2),
            Kind::U32 | Kind::I32 | Kind::F32 => Some(4),
            Kind::U64 | Kind::I64 | Kind::F64 => Some(8),
            Kind::String | Kind::Array => None,
        }
    }
}

/// The id of a token that there is none of: −1 in 32 bits. `tokenizer.ggml.eos_token_id` and its kin hold it where a model
/// has no such token.
pub const NO_TOKEN: u32 = u32::MAX;

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A whole number, of the type beside it.
    Int(i128, Kind),
    /// A number, F32 or F64.
    Float(f64, Kind),
    /// True or false.
    Bool(bool),
    /// A text.
    String(String),
    /// Several values of one type.
    Array(Array),
}

/// Values of one type, kept as they lie in the file: a vocabulary has some hundred thousand.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    /// Type of its elements.
    pub kind: Kind,
    /// How many.
    pub count: usize,
    /// Their bytes, one after the other, checked when they were read.
    pub(super) bytes: Vec<u8>,
}

impl Value {
    /// Its type.
    pub fn kind(&self) -> Kind {
        match self {
            Value::Int(_, kind) | Value::Float(_, kind) => *kind,
            Value::Bool(_) => Kind::Bool,
            Value::String(_) => Kind::String,
            Value::Array(_) => Kind::Array,
        }
    }

    /// An unsigned number of 32 bits.
    pub fn u32(value: u32) -> Value {
        Value::Int(value.into(), Kind::U32)
    }

    /// A single-precision number.
    pub fn f32(value: f32) -> Value {
        Value::Float(value.into(), Kind::F32)
    }
}

impl Array {
    /// An array of texts.
    pub fn strings<'a>(texts: impl Iterator<Item = &'a str>) -> Array {
        let (mut bytes, mut count) = (Vec::new(), 0);
        for text in texts {
            bytes.extend((text.len() as u64).to_le_bytes());
            bytes.extend(text.as_bytes());
            count += 1;
        }
        Array { kind: Kind::String, count, bytes }
    }

    /// An array of single-precision numbers.
    pub fn f32s(values: &[f32]) -> Array {
        let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        Array { kind: Kind::F32, count: values.len(), bytes }
    }

    /// An array of signed numbers of 32 bits.
    pub fn i32s(values: &[i32]) -> Array {
        let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        Array { kind: Kind::I32, count: values.len(), bytes }
    }

    /// Its texts; nothing if it holds something else.
    pub fn texts(&self) -> Option<impl Iterator<Item = &str>> {
        let mut rest = self.bytes.as_slice();
        let next = move || {
            let (length, after) = rest.split_first_chunk::<8>()?;
            let (text, after) = after.split_at_checked(u64::from_le_bytes(*length) as usize)?;
            rest = after;
            std::str::from_utf8(text).ok()
        };
        (self.kind == Kind::String).then(|| std::iter::from_fn(next))
    }

    /// Its numbers; nothing if it holds something else.
    pub fn numbers(&self) -> Option<impl Iterator<Item = f64>> {
        let size = self.kind.size()?;
        Some(self.bytes.chunks_exact(size).map(|b| match scalar(self.kind, b) {
            Value::Int(x, _) => x as f64,
            Value::Float(x, _) => x,
            Value::Bool(x) => f64::from(u8::from(x)),
            Value::String(_) | Value::Array(_) => f64::NAN,
        }))
    }
}

/// A value of fixed size from its bytes.
pub(super) fn scalar(kind: Kind, bytes: &[u8]) -> Value {
    let mut wide = [0; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    let word = u64::from_le_bytes(wide);
    match kind {
        Kind::U8 | Kind::U16 | Kind::U32 | Kind::U64 => Value::Int(word.into(), kind),
        Kind::I8 => Value::Int((word as i8).into(), kind),
        Kind::I16 => Value::Int((word as i16).into(), kind),
        Kind::I32 => Value::Int((word as i32).into(), kind),
        Kind::I64 => Value::Int((word as i64).into(), kind),
        Kind::F32 => Value::Float(f32::from_bits(word as u32).into(), kind),
        Kind::F64 => Value::Float(f64::from_bits(word), kind),
        Kind::Bool => Value::Bool(word != 0),
        Kind::String | Kind::Array => unreachable!("not of fixed size"),
    }
}

/// All keys of a file with their values, in the file's order.
#[derive(Debug, Clone, Default)]
pub struct Metadata {
    path: PathBuf,
    entries: Vec<(String, Value)>,
    places: HashMap<String, usize>,
}

impl Metadata {
    /// No keys yet; `path` is for the messages.
    pub fn new(path: &Path) -> Metadata {
        Metadata { path: path.into(), ..Metadata::default() }
    }

    /// The file, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds a key at the end, or gives another value to one that is there; says whether it was there.
    pub fn set(&mut self, key: &str, value: Value) -> bool {
        if let Some(&at) = self.places.get(key) {
            self.entries[at].1 = value;
            return true;
        }
        self.places.insert(key.into(), self.entries.len());
        self.entries.push((key.into(), value));
        false
    }

    /// The keys and values, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.places.get(key).map(|&at| &self.entries[at].1)
    }

    fn typed<'a, T>(&'a self, key: &str, what: &str, take: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let kind = value.kind();
        let refuse =
            || Error::file(&self.path, format!("the key {key} must hold {what}, and holds a value of {kind:?}"));
        take(value).map(Some).ok_or_else(refuse)
    }

    /// A text.
    ///
    /// # Errors
    /// If the key holds something else; the same for those that follow.
    pub fn string(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a text", |v| if let Value::String(s) = v { Some(s.as_str()) } else { None })
    }

    /// A whole number from 0 up.
    ///
    /// # Errors
    /// As [`Metadata::string`].
    pub fn uint(&self, key: &str) -> Result<Option<u64>> {
        self.typed(key, "a whole number from 0 up", |v| {
            if let Value::Int(x, _) = v { u64::try_from(*x).ok() } else { None }
        })
    }

    /// A number that is one: neither infinite nor NaN.
    ///
    /// # Errors
    /// As [`Metadata::string`].
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        let number = self.typed(key, "a number", |v| match v {
            Value::Float(x, _) => Some(*x),
            Value::Int(x, _) => Some(*x as f64),
            _ => None,
        })?;
        match number.filter(|x| !x.is_finite()) {
            None => Ok(number),
            Some(x) => Err(Error::file(&self.path, format!("the key {key} is {x}; it must be a finite number"))),
        }
    }

    /// True or false.
    ///
    /// # Errors
    /// As [`Metadata::string`].
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", |v| if let Value::Bool(x) = v { Some(*x) } else { None })
    }

    /// Texts.
    ///
    /// # Errors
    /// As [`Metadata::string`].
    pub fn strings(&self, key: &str) -> Result<Option<Vec<&str>>> {
        self.typed(key, "texts", |v| if let Value::Array(a) = v { Some(a.texts()?.collect()) } else { None })
    }

    /// Numbers.
    ///
    /// # Errors
    /// As [`Metadata::string`].
    pub fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>> {
        self.typed(key, "numbers", |v| if let Value::Array(a) = v { Some(a.numbers()?.collect()) } else { None })
    }
}
