//! The keys of a config.json, with the words for what is wrong with them.

use crate::error::{Error, Result};
use serde_json::{Map, Value};
use std::path::Path;

/// Largest width that is believed; it keeps every product of sizes within 64 bits.
pub(super) const MAX_SIZE: usize = 1 << 20;

/// The keys of one file, with the words for what is wrong with them.
pub(super) struct Keys<'a> {
    /// The file, for messages.
    pub path: &'a Path,
    /// What it holds.
    pub map: &'a Map<String, Value>,
    /// Put before keys in messages.
    pub prefix: String,
}

impl<'a> Keys<'a> {
    /// The value under a key; null counts as absent, as it does for `transformers` where nothing else is said.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    /// An error that shows a key with its value.
    pub fn refuse(&self, key: &str, value: &Value, what: impl AsRef<str>) -> Error {
        Error::file(self.path, format!("\"{}{key}\" is {value}; {}", self.prefix, what.as_ref()))
    }

    /// An error for a key that must be there.
    pub fn missing(&self, key: &str, what: &str) -> Error {
        Error::file(self.path, format!("\"{}{key}\" is missing; give it as {what}", self.prefix))
    }

    /// A whole number from 1 to [`MAX_SIZE`]; without a default it must be there.
    pub fn size(&self, key: &str, default: Option<usize>) -> Result<usize> {
        self.size_up_to(key, default, MAX_SIZE)
    }

    /// A whole number from 1 to `max`.
    pub fn size_up_to(&self, key: &str, default: Option<usize>, max: usize) -> Result<usize> {
        let Some(value) = self.get(key) else {
            let missing = || self.missing(key, "a whole number");
            return default.ok_or_else(missing);
        };
        match value.as_u64() {
            Some(n) if n >= 1 && n <= max as u64 => Ok(n as usize),
            _ => Err(self.refuse(key, value, format!("it must be a whole number from 1 to {max}"))),
        }
    }

    /// A number above 0.
    pub fn positive(&self, key: &str, default: f64) -> Result<f64> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => self.positive_value(key, value),
        }
    }

    /// A value as a number above 0; `key` is for the message.
    pub fn positive_value(&self, key: &str, value: &Value) -> Result<f64> {
        let number = value.as_f64().filter(|x| x.is_finite() && *x > 0.0);
        number.ok_or_else(|| self.refuse(key, value, "it must be a number above 0"))
    }

    /// A number above 0 that must be there.
    pub fn number(&self, key: &str) -> Result<f64> {
        match self.get(key) {
            None => Err(self.missing(key, "a number above 0")),
            Some(value) => self.positive_value(key, value),
        }
    }

    /// `count` numbers above 0, which must be there.
    pub fn numbers(&self, key: &str, count: usize) -> Result<Vec<f64>> {
        let Some(value) = self.get(key) else { return Err(self.missing(key, &format!("a list of {count} numbers"))) };
        let list = value.as_array().filter(|list| list.len() == count);
        let what = format!("it must be a list of {count} numbers, one for each pair that turns");
        let list = list.ok_or_else(|| {
            let given = value.as_array().map_or_else(|| value.clone(), |list| format!("{} numbers", list.len()).into());
            self.refuse(key, &given, what)
        })?;
        list.iter().map(|number| self.positive_value(key, number)).collect()
    }

    /// True or false.
    pub fn flag(&self, key: &str, default: bool) -> Result<bool> {
        let Some(value) = self.get(key) else { return Ok(default) };
        value.as_bool().ok_or_else(|| self.refuse(key, value, "it must be true or false"))
    }

    /// Token ids: one, several, or none. Absent means `default`, as in `transformers`, where the vocabulary has it.
    pub fn tokens(&self, key: &str, default: Option<u32>, vocab: usize) -> Result<Vec<u32>> {
        let Some(value) = self.map.get(key) else {
            return Ok(default.into_iter().filter(|id| (*id as usize) < vocab).collect());
        };
        let list = match value {
            Value::Null => return Ok(vec![]),
            Value::Array(list) => list.clone(),
            one => vec![one.clone()],
        };
        let id = |v: &Value| v.as_u64().filter(|&id| id < vocab as u64).map(|id| id as u32);
        let ids: Option<Vec<u32>> = list.iter().map(id).collect();
        ids.ok_or_else(|| {
            self.refuse(key, value, format!("token ids are whole numbers below \"vocab_size\" = {vocab}"))
        })
    }

    /// The same words for the keys of an object within the file.
    pub fn within(&self, key: &str) -> Result<Option<Keys<'a>>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Keys { path: self.path, map, prefix: format!("{key}.") })),
            Some(other) => Err(self.refuse(key, other, "it must be an object, or null")),
        }
    }
}
