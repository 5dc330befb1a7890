//! Walks a corpus document by document, and cuts long documents where tokenizers would cut them too.

use std::borrow::Cow;
use std::path::Path;

use serde::Deserialize;

use super::{Corpus, Format, Source};
use crate::data::mapped::FileBytes;
use crate::data::story::StoryGrammar;
use crate::data::tokenizer::END_OF_TEXT;
use crate::error::{Error, Result};

/// Longer documents are cut: a bound on what tokenising one piece takes, and the grain of its parallelism.
pub(super) const PIECE_BYTES: usize = 64 << 10;

/// A document, or a part of a long one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The text, never empty.
    pub text: String,
    /// Whether a document begins here.
    pub starts_document: bool,
    /// Whether a document ends here.
    pub ends_document: bool,
    /// How many bytes of the corpus lie behind the reader after this piece, for progress.
    pub bytes_done: u64,
}

/// The iterator of [`Corpus::pieces`]. After an error it is at its end.
#[derive(Debug)]
pub struct Pieces<'a> {
    corpus: &'a Corpus,
    source: usize,
    bytes_done: u64,
    story: u64,
    file: Option<OpenFile>,
}

/// A file being read: `at` is the reader's offset, `line` the last line of JSONL taken.
#[derive(Debug)]
struct OpenFile {
    bytes: FileBytes,
    at: usize,
    line: usize,
    inside_document: bool,
    /// What is left of a long JSONL document.
    pending: String,
}

#[derive(Deserialize)]
struct Record<'a> {
    #[serde(borrow)]
    text: Option<Cow<'a, str>>,
}

impl<'a> Pieces<'a> {
    pub(super) fn new(corpus: &'a Corpus) -> Self {
        Pieces { corpus, source: 0, bytes_done: 0, story: 0, file: None }
    }

    fn next_story(&mut self, seed: u64, count: u64) -> Option<Piece> {
        if self.story == count {
            return None;
        }
        let text = StoryGrammar::new(seed).story(self.story);
        self.story += 1;
        self.bytes_done += text.len() as u64;
        Some(Piece { text, starts_document: true, ends_document: true, bytes_done: self.bytes_done })
    }

    fn next_in_file(&mut self, path: &Path, format: Format) -> Result<Option<Piece>> {
        if self.file.is_none() {
            let bytes = FileBytes::open(path)?;
            let at = if bytes.starts_with(b"\xEF\xBB\xBF") { 3 } else { 0 };
            self.file = Some(OpenFile { bytes, at, line: 0, inside_document: false, pending: String::new() });
        }
        let file = self.file.as_mut().expect("opened above");
        let before = file.at;
        let piece = match format {
            Format::Text => file.next_text(path)?,
            Format::Jsonl => file.next_record(path)?,
        };
        self.bytes_done += (file.at - before) as u64;
        Ok(piece.map(|mut piece| {
            piece.bytes_done = self.bytes_done;
            piece
        }))
    }
}

impl Iterator for Pieces<'_> {
    type Item = Result<Piece>;

    fn next(&mut self) -> Option<Result<Piece>> {
        let corpus = self.corpus;
        while let Some(source) = corpus.sources.get(self.source) {
            let piece = match source {
                Source::Stories { seed, count } => Ok(self.next_story(*seed, *count)),
                Source::File { path, format } => self.next_in_file(path, *format),
            };
            match piece {
                Ok(Some(piece)) => return Some(Ok(piece)),
                Ok(None) => {
                    self.source += 1;
                    self.file = None;
                }
                Err(error) => {
                    self.source = corpus.sources.len();
                    return Some(Err(error));
                }
            }
        }
        None
    }
}

impl OpenFile {
    /// The next piece of a text file: up to a separator line, the end, or a good place to cut.
    fn next_text(&mut self, path: &Path) -> Result<Option<Piece>> {
        while self.at < self.bytes.len() {
            let rest = &self.bytes[self.at..];
            let window = utf8_prefix(path, self.at, rest, PIECE_BYTES + END_OF_TEXT.len() + 2)?;
            let (end, next, ends_document) =
                match find_separator(window, self.at == 0 || self.bytes[self.at - 1] == b'\n') {
                    Some((start, after)) => (start, after, true),
                    None if window.len() == rest.len() && rest.len() <= PIECE_BYTES => (rest.len(), rest.len(), true),
                    None => {
                        let cut = cut(&window[..floor_char_boundary(window, PIECE_BYTES)]);
                        (cut, cut, false)
                    }
                };
            let mut text = &window[..end];
            if ends_document && next > end {
                text = text.strip_suffix('\n').unwrap_or(text);
                text = text.strip_suffix('\r').unwrap_or(text);
            }
            let starts_document = !self.inside_document;
            // A cut document whose rest is empty still ends: its last piece carries the flag, so it must not vanish.
            let keep = !text.trim().is_empty() || (self.inside_document && !text.is_empty());
            let piece = keep.then(|| Piece { text: text.to_string(), starts_document, ends_document, bytes_done: 0 });
            self.at += next;
            self.inside_document = !ends_document && (keep || self.inside_document);
            if piece.is_some() {
                return Ok(piece);
            }
        }
        Ok(None)
    }

    /// The next document of a JSONL file, or the next piece of a long one.
    fn next_record(&mut self, path: &Path) -> Result<Option<Piece>> {
        let mut starts_document = false;
        while self.pending.is_empty() {
            if self.at >= self.bytes.len() {
                return Ok(None);
            }
            let rest = &self.bytes[self.at..];
            let end = rest.iter().position(|&b| b == b'\n').unwrap_or(rest.len());
            self.line += 1;
            let line = &rest[..end];
            if !line.iter().all(u8::is_ascii_whitespace) {
                self.pending = record_text(path, self.line, line)?;
                starts_document = true;
            }
            self.at += (end + 1).min(rest.len());
        }
        if self.pending.len() <= PIECE_BYTES {
            let text = std::mem::take(&mut self.pending);
            return Ok(Some(Piece { text, starts_document, ends_document: true, bytes_done: 0 }));
        }
        let rest = self.pending.split_off(cut(&self.pending[..floor_char_boundary(&self.pending, PIECE_BYTES)]));
        let text = std::mem::replace(&mut self.pending, rest);
        Ok(Some(Piece { text, starts_document, ends_document: false, bytes_done: 0 }))
    }
}

/// The `text` of one line of JSONL; a text of white space only counts as none and is skipped.
fn record_text(path: &Path, line: usize, bytes: &[u8]) -> Result<String> {
    let place = format!("{}:{line}", path.display());
    let record: Record = serde_json::from_slice(bytes).map_err(|error| {
        let reason = error.to_string().replace(" at line 1 column ", " at column ");
        Error::file(&place, format!("is not a JSON object with a text: {reason}"))
    })?;
    let text = record
        .text
        .ok_or_else(|| Error::file(&place, "has no \"text\" field; every line must look like {\"text\": \"...\"}"))?;
    Ok(if text.trim().is_empty() { String::new() } else { text.into_owned() })
}

/// The longest prefix of at most `limit` bytes that ends between characters.
fn utf8_prefix<'a>(path: &Path, at: usize, bytes: &'a [u8], limit: usize) -> Result<&'a str> {
    let window = &bytes[..bytes.len().min(limit)];
    match std::str::from_utf8(window) {
        Ok(text) => Ok(text),
        // A character cut off by the limit; whatever else is wrong was refused when the corpus was opened.
        Err(error) if error.error_len().is_none() && window.len() < bytes.len() => {
            Ok(std::str::from_utf8(&window[..error.valid_up_to()]).expect("valid up to here"))
        }
        Err(error) => {
            let at = at + error.valid_up_to();
            Err(Error::file(path, format!("is not UTF-8 at offset {at}; it changed while it was read")))
        }
    }
}

/// Finds a line that holds only the separator: the offset where it starts, and the one where the next line does.
fn find_separator(window: &str, window_starts_line: bool) -> Option<(usize, usize)> {
    window.match_indices(END_OF_TEXT).find_map(|(start, separator)| {
        let starts_line = if start == 0 { window_starts_line } else { window.as_bytes()[start - 1] == b'\n' };
        let rest = &window[start + separator.len()..];
        let line_end = match rest.as_bytes() {
            [] => Some(0),
            [b'\n', ..] => Some(1),
            [b'\r', b'\n', ..] => Some(2),
            _ => None,
        };
        line_end.filter(|_| starts_line).map(|skip| (start, start + separator.len() + skip))
    })
}

/// Where to cut a text too long for one piece (0 < result ≤ length). Best is before a single line end between letters or
/// digits, where the usual pre-tokenizers begin a new word anyway, so the tokens are those of the whole text.
fn cut(text: &str) -> usize {
    let bytes = text.as_bytes();
    let found = |good: &dyn Fn(usize) -> bool| (bytes.len() / 2..bytes.len() - 1).rev().find(|&at| good(at));
    let word = |at: usize| bytes[at].is_ascii_alphanumeric();
    let at = found(&|at| bytes[at] == b'\n' && word(at - 1) && word(at + 1))
        .or_else(|| found(&|at| bytes[at] == b'\n' && bytes[at + 1] != b'\n'))
        .or_else(|| found(&|at| bytes[at] == b' ' && word(at - 1) && word(at + 1)));
    at.unwrap_or(bytes.len())
}

fn floor_char_boundary(text: &str, limit: usize) -> usize {
    (0..=limit.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0)
}
