//! Walks a corpus document by document and record by record, and cuts long documents where tokenizers would cut them too.

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;

use super::records::{Content, Reader};
use super::{Corpus, Format, Record, Source};
use crate::data::form::{Example, Form};
use crate::data::passages::{Passages, changed};
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

/// A part of a corpus that is tokenised by itself.
#[derive(Debug, Clone)]
pub enum Unit {
    /// A document of running text, or a part of one.
    Piece(Piece),
    /// A record of any other form.
    Record(Record),
}

impl Unit {
    /// How much work it is.
    pub fn bytes(&self) -> usize {
        match self {
            Unit::Piece(piece) => piece.text.len(),
            Unit::Record(record) => record.len(),
        }
    }

    /// How many bytes of the corpus lie behind the reader after it.
    pub fn bytes_done(&self) -> u64 {
        match self {
            Unit::Piece(piece) => piece.bytes_done,
            Unit::Record(record) => record.bytes_done,
        }
    }
}

/// The iterator of [`Corpus::units`]. After an error it is at its end.
#[derive(Debug)]
pub struct Units<'a> {
    corpus: &'a Corpus,
    source: usize,
    /// Bytes of the sources before this one.
    bytes_before: u64,
    story: u64,
    file: Option<OpenFile>,
}

/// A file being read.
#[derive(Debug)]
enum OpenFile {
    Text(OpenText),
    Records(OpenRecords),
}

#[derive(Debug)]
struct OpenText {
    passages: Passages,
    at: u64,
    inside_document: bool,
    /// Whether a line begins here.
    starts_line: bool,
}

#[derive(Debug)]
struct OpenRecords {
    reader: Reader,
    path: Arc<Path>,
    form: Form,
    /// What is left of a long text.
    pending: String,
}

#[derive(Deserialize)]
struct TextRecord<'a> {
    #[serde(borrow)]
    text: Option<Cow<'a, str>>,
}

impl<'a> Units<'a> {
    pub(super) fn new(corpus: &'a Corpus) -> Self {
        Units { corpus, source: 0, bytes_before: 0, story: 0, file: None }
    }

    fn next_story(&mut self, seed: u64, count: u64) -> Option<Unit> {
        if self.story == count {
            return None;
        }
        let text = StoryGrammar::new(seed).story(self.story);
        self.story += 1;
        self.bytes_before += text.len() as u64;
        let bytes_done = self.bytes_before;
        Some(Unit::Piece(Piece { text, starts_document: true, ends_document: true, bytes_done }))
    }

    fn next_in_file(&mut self, path: &Arc<Path>, format: Format, bytes: u64) -> Result<Option<Unit>> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(OpenFile::open(path, format)?),
        };
        let unit = match file {
            OpenFile::Text(file) => file.next(path)?.map(Unit::Piece),
            OpenFile::Records(file) => file.next()?,
        };
        // What is packed need not be read to its last byte.
        if unit.is_none() && format.is_plain() && file.bytes_read() != bytes {
            return Err(changed(path, bytes));
        }
        let bytes_done = self.bytes_before + file.bytes_read();
        Ok(unit.map(|mut unit| {
            match &mut unit {
                Unit::Piece(piece) => piece.bytes_done = bytes_done,
                Unit::Record(record) => record.bytes_done = bytes_done,
            }
            unit
        }))
    }
}

impl Iterator for Units<'_> {
    type Item = Result<Unit>;

    fn next(&mut self) -> Option<Result<Unit>> {
        let corpus = self.corpus;
        while let Some(source) = corpus.sources.get(self.source) {
            let unit = match source {
                Source::Stories { seed, count } => Ok(self.next_story(*seed, *count)),
                Source::File { path, format, bytes } => self.next_in_file(path, *format, *bytes),
            };
            match unit {
                Ok(Some(unit)) => return Some(Ok(unit)),
                Ok(None) => {
                    self.source += 1;
                    self.bytes_before += self.file.take().map_or(0, |file| file.bytes_read());
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
    fn open(path: &Arc<Path>, format: Format) -> Result<OpenFile> {
        let Format::Records(layout, packed, form) = format else {
            let mut passages = Passages::open(path)?;
            let at = if passages.at(0, 3)? == b"\xEF\xBB\xBF" { 3 } else { 0 };
            return Ok(OpenFile::Text(OpenText { passages, at, inside_document: false, starts_line: at == 0 }));
        };
        let reader = Reader::open(path, layout, packed)?;
        Ok(OpenFile::Records(OpenRecords { reader, path: path.clone(), form, pending: String::new() }))
    }

    fn bytes_read(&self) -> u64 {
        match self {
            OpenFile::Text(file) => file.at,
            OpenFile::Records(file) => file.reader.bytes_read(),
        }
    }
}

impl OpenRecords {
    /// The next record; of the form `text` the next document, or the next piece of a long one.
    fn next(&mut self) -> Result<Option<Unit>> {
        let mut starts_document = false;
        while self.pending.is_empty() {
            let Some((line, content)) = self.reader.next()? else { return Ok(None) };
            let record = Record { content, form: self.form, path: self.path.clone(), line, bytes_done: 0 };
            if self.form != Form::Text {
                return Ok(Some(Unit::Record(record)));
            }
            self.pending = record_text(&record)?;
            starts_document = true;
        }
        let ends_document = self.pending.len() <= PIECE_BYTES;
        let at = match ends_document {
            true => self.pending.len(),
            false => cut(&self.pending[..floor_char_boundary(&self.pending, PIECE_BYTES)]),
        };
        let rest = self.pending.split_off(at);
        let text = std::mem::replace(&mut self.pending, rest);
        Ok(Some(Unit::Piece(Piece { text, starts_document, ends_document, bytes_done: 0 })))
    }
}

impl OpenText {
    /// The next piece of a text file: up to a separator line, the end, or a good place to cut.
    fn next(&mut self, path: &Path) -> Result<Option<Piece>> {
        while self.at < self.passages.bytes() {
            let left = self.passages.bytes() - self.at;
            let passage = self.passages.at(self.at, PIECE_BYTES + END_OF_TEXT.len() + 2)?;
            let window = utf8_prefix(path, self.at, passage, left)?;
            let (end, next, ends_document) = match find_separator(window, self.starts_line) {
                Some((start, after)) => (start, after, true),
                None if window.len() as u64 == left && window.len() <= PIECE_BYTES => {
                    (window.len(), window.len(), true)
                }
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
            self.starts_line = window.as_bytes()[..next].last() == Some(&b'\n');
            self.at += next as u64;
            self.inside_document = !ends_document && (keep || self.inside_document);
            if piece.is_some() {
                return Ok(piece);
            }
        }
        Ok(None)
    }
}

/// The `text` of one record; a text of white space only counts as none and is skipped.
fn record_text(record: &Record) -> Result<String> {
    if let Content::Bytes(bytes) = &record.content
        && let Ok(TextRecord { text: Some(text) }) = serde_json::from_slice(bytes)
    {
        return Ok(if text.trim().is_empty() { String::new() } else { text.into_owned() });
    }
    // Whatever is wrong with it has its words elsewhere.
    match record.example()? {
        Example::Text(text) if text.trim().is_empty() => Ok(String::new()),
        Example::Text(text) => Ok(text),
        _ => Err(record.error("has no \"text\" field")),
    }
}

/// What of a passage, of the `left` bytes that a file has from `at` on, ends between characters.
fn utf8_prefix<'a>(path: &Path, at: u64, passage: &'a [u8], left: u64) -> Result<&'a str> {
    match std::str::from_utf8(passage) {
        Ok(text) => Ok(text),
        // A character cut off by the passage's end; whatever else is wrong was refused when the corpus was opened.
        Err(error) if error.error_len().is_none() && (passage.len() as u64) < left => {
            Ok(std::str::from_utf8(&passage[..error.valid_up_to()]).expect("valid up to here"))
        }
        Err(error) => {
            let at = at + error.valid_up_to() as u64;
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
