//! Strings that end a text, also where they lie across the borders of tokens.

/// Watches a text for strings that end it. What might be the beginning of one is held back until it is known.
#[derive(Debug, Clone, Default)]
pub struct Stops {
    strings: Vec<String>,
    held: String,
}

impl Stops {
    /// Watches for these; empty ones are none.
    pub fn new(strings: impl IntoIterator<Item = String>) -> Self {
        Stops { strings: strings.into_iter().filter(|s| !s.is_empty()).collect(), held: String::new() }
    }

    /// Takes more of the text. Gives what of it may be shown, and whether the text has ended: with what stood before
    /// the first of the strings.
    pub fn push(&mut self, text: &str) -> (String, bool) {
        self.held += text;
        if let Some(at) = self.strings.iter().filter_map(|s| self.held.find(s.as_str())).min() {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let rest = self.held.split_off(self.safe());
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// What was still held back when the text ended by itself.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Bytes of what is held that belong to no string, whatever comes.
    fn safe(&self) -> usize {
        let begins = |at: &usize| self.strings.iter().any(|s| s.starts_with(&self.held[*at..]));
        let at = self.held.char_indices().map(|(at, _)| at).find(begins);
        at.unwrap_or(self.held.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a text in these pieces shows, piece by piece, and whether it was ended.
    fn shown(stops: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let mut stops = Stops::new(stops.iter().map(|s| s.to_string()));
        let mut all = Vec::new();
        for piece in pieces {
            let (text, ended) = stops.push(piece);
            all.push(text);
            if ended {
                return (all, true);
            }
        }
        all.push(stops.finish());
        (all, false)
    }

    #[test]
    fn a_stop_across_pieces_is_found_and_not_shown() {
        let (text, ended) = shown(&["\nUser:"], &["Hi", ".\n", "Us", "er", ":", " me"]);
        assert!(ended);
        assert_eq!(text, ["Hi", ".", "", "", ""]);
    }

    #[test]
    fn what_only_began_like_a_stop_is_shown() {
        assert_eq!(shown(&["abc"], &["xa", "b", "d"]), (vec!["x".into(), "".into(), "abd".into(), "".into()], false));
        assert_eq!(shown(&["abc"], &["xab"]), (vec!["x".into(), "ab".into()], false));
        assert_eq!(shown(&["aab"], &["aa", "ab"]), (vec!["".into(), "a".into()], true));
    }

    #[test]
    fn the_first_of_several_ends_the_text() {
        assert_eq!(shown(&["longer", "l", ""], &["a longer l"]), (vec!["a ".into()], true));
        assert_eq!(shown(&["é!"], &["caf", "é", "?"]), (vec!["caf".into(), "".into(), "é?".into(), "".into()], false));
        assert_eq!(shown(&[], &["any"]), (vec!["any".into(), "".into()], false));
    }
}
