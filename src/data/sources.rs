//! What a recipe names as data: one place, or several with weights.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::error::{Error, Result};

/// A file or folder, and how much of the rows comes from it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSource {
    /// The file or folder.
    pub path: PathBuf,
    /// Its share of the rows, as compared with the other sources' weights.
    #[serde(default = "one")]
    pub weight: f64,
}

fn one() -> f64 {
    1.0
}

impl FromStr for DataSource {
    type Err = String;

    /// `PATH`, or `PATH=WEIGHT`. A path that exists is one, whatever it holds.
    fn from_str(text: &str) -> Result<Self, String> {
        let whole = || DataSource { path: text.into(), weight: 1.0 };
        if PathBuf::from(text).exists() {
            return Ok(whole());
        }
        let Some((path, weight)) = text.rsplit_once('=').filter(|(path, _)| !path.is_empty()) else {
            return Ok(whole());
        };
        let weight: f64 = weight.parse().map_err(|_| format!("`{weight}` is no weight; write {path}=0.5"))?;
        Ok(DataSource { path: path.into(), weight })
    }
}

/// All of them, in order; none stands for the embedded stories. In TOML a path, or a list of paths and of tables
/// `{ path = "...", weight = 0.5 }`.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(into = "Written")]
pub struct DataSources(pub Vec<DataSource>);

/// As they are written.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
enum Written {
    One(PathBuf),
    Several(Vec<DataSource>),
}

/// Takes either form. What an untagged enum would say of a wrong key is that nothing matched.
struct Sources;

impl<'de> Visitor<'de> for Sources {
    type Value = Vec<DataSource>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a path, a table of path and weight, or a list of them")
    }

    fn visit_str<E>(self, path: &str) -> Result<Self::Value, E> {
        Ok(vec![DataSource { path: path.into(), weight: 1.0 }])
    }

    fn visit_map<A: MapAccess<'de>>(self, table: A) -> Result<Self::Value, A::Error> {
        Ok(vec![DataSource::deserialize(MapAccessDeserializer::new(table))?])
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut all = Vec::new();
        while let Some(DataSources(some)) = list.next_element()? {
            all.extend(some);
        }
        Ok(all)
    }
}

impl<'de> Deserialize<'de> for DataSources {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Sources).map(DataSources)
    }
}

impl From<DataSources> for Written {
    fn from(sources: DataSources) -> Self {
        match &sources.0[..] {
            [only] => Written::One(only.path.clone()),
            _ => Written::Several(sources.0),
        }
    }
}

impl From<PathBuf> for DataSources {
    fn from(path: PathBuf) -> Self {
        DataSources(vec![DataSource { path, weight: 1.0 }])
    }
}

impl DataSources {
    /// Whether none is named.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Refuses weights that are none.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the path and the weight.
    pub fn check(&self) -> Result<()> {
        match self.0.iter().find(|source| !(source.weight > 0.0 && source.weight.is_finite())) {
            None => Ok(()),
            Some(DataSource { path, weight }) => {
                let path = path.display();
                Err(Error::Invalid(format!("the weight of {path} is {weight}; it must be a number above 0")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Default, Serialize, Deserialize)]
    #[serde(default)]
    struct Recipe {
        #[serde(skip_serializing_if = "DataSources::is_empty")]
        data: DataSources,
    }

    #[test]
    fn one_place_or_several_are_read_and_written() {
        let several = |list: &[(&str, f64)]| {
            DataSources(list.iter().map(|(path, weight)| DataSource { path: path.into(), weight: *weight }).collect())
        };
        for (text, expected) in [
            ("", several(&[])),
            ("data = \"a\"", several(&[("a", 1.0)])),
            ("data = [\"a\", \"b\"]", several(&[("a", 1.0), ("b", 1.0)])),
            ("data = [{ path = \"a\", weight = 0.7 }, \"b\"]", several(&[("a", 0.7), ("b", 1.0)])),
            ("[[data]]\npath = \"a\"\nweight = 3\n[[data]]\npath = \"b\"", several(&[("a", 3.0), ("b", 1.0)])),
        ] {
            let read: Recipe = toml::from_str(text).unwrap();
            assert_eq!(read.data, expected, "{text}");
            assert_eq!(toml::from_str::<Recipe>(&toml::to_string(&read).unwrap()).unwrap(), read);
        }
        for (text, said) in [
            ("[[data]]\npath = \"a\"\nweigth = 2", "unknown field `weigth`, expected `path` or `weight`"),
            ("data = [\"a\", 3]", "expected a path, a table of path and weight, or a list of them"),
        ] {
            let error = toml::from_str::<Recipe>(text).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
        assert_eq!("a=0.7".parse(), Ok(DataSource { path: "a".into(), weight: 0.7 }));
        assert_eq!("a/b".parse(), Ok(DataSource { path: "a/b".into(), weight: 1.0 }));
        assert_eq!("a=b".parse::<DataSource>().unwrap_err(), "`b` is no weight; write a=0.5");
    }
}
