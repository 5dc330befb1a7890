//! A number of bytes as a person writes it.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A number of bytes, at least one: read from `6GB`, `500 MB`, `2GiB` or `70000`, written as plain digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Bytes(pub u64);

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let unit = text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
        let units = ["", "B", "KB", "MB", "GB", "TB", "KiB", "MiB", "GiB", "TiB"];
        let scales: [u64; 10] =
            [1, 1, 1_000, 1_000_000, 1_000_000_000, 1_000_000_000_000, 1 << 10, 1 << 20, 1 << 30, 1 << 40];
        let scale = units.iter().zip(scales).find(|(name, _)| name.eq_ignore_ascii_case(unit.trim()));
        let number: Option<f64> = text[..text.len() - unit.len()].parse().ok();
        // Who writes 5 does not mean five bytes.
        if unit.is_empty() && number.is_some_and(|number| number < 1000.0) {
            return Err(format!("{text} has no unit; give a size such as 5GB, 500MB or 2GiB"));
        }
        let bytes = scale.zip(number).map(|((_, scale), number)| number * scale as f64);
        bytes
            .filter(|b| *b >= 1.0)
            .map(|b| Bytes(b as u64))
            .ok_or_else(|| "give a size such as 5GB, 500MB or 2GiB".into())
    }
}

impl TryFrom<String> for Bytes {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Bytes> for String {
    fn from(bytes: Bytes) -> String {
        bytes.to_string()
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.0, if self.0 < 1000 { "B" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in [("5GB", 5_000_000_000), ("1.5kb", 1500), ("2 GiB", 2 << 30), ("70000", 70_000), ("9B", 9)]
        {
            assert_eq!(text.parse(), Ok(Bytes(bytes)), "{text}");
            assert_eq!(Bytes(bytes).to_string().parse(), Ok(Bytes(bytes)));
        }
        for text in ["", "GB", "5XB", "-5GB", "5.5.5MB", "0.1B"] {
            assert_eq!(text.parse::<Bytes>(), Err("give a size such as 5GB, 500MB or 2GiB".into()), "{text}");
        }
        for text in ["0", "0.1", "5", "999"] {
            let said = format!("{text} has no unit; give a size such as 5GB, 500MB or 2GiB");
            assert_eq!(text.parse::<Bytes>(), Err(said), "{text}");
        }
    }
}
