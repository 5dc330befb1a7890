//! Numbers with what they count.

/// `1 text`, `2 texts`.
pub fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}
