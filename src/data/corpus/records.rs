//! Records of JSONL, of JSON arrays and of Parquet files, one after another, each with its line or row: no file is ever whole
//! in memory.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::table::Table;
use crate::data::form::Form;
use crate::data::template::Json;
use crate::error::{Error, Result};

/// Longest record that is believed.
const MOST_BYTES: usize = 64 << 20;

/// A record before it is understood.
#[derive(Debug, Clone)]
pub(super) enum Content {
    Bytes(Vec<u8>),
    Fields(Json, usize),
}

/// One record, as it stands in its file.
#[derive(Debug, Clone)]
pub struct Record {
    pub(super) content: Content,
    /// The form of its file.
    pub(in crate::data) form: Form,
    pub(super) path: Arc<Path>,
    /// The line that it begins on, or its row, from 1.
    pub line: u64,
    /// How many bytes of the corpus lie behind the reader after it.
    pub bytes_done: u64,
}

impl Record {
    /// Its JSON, keys in their order.
    ///
    /// # Errors
    /// With file and line.
    pub fn json(&self) -> Result<Json> {
        match &self.content {
            Content::Fields(json, _) => Ok(json.clone()),
            Content::Bytes(bytes) => {
                parse(bytes).map_err(|(below, message)| at(&self.path, self.line + below, message))
            }
        }
    }

    /// Something that is wrong with it, with file and line.
    pub fn error(&self, message: impl Into<String>) -> Error {
        at(&self.path, self.line, message)
    }

    pub(super) fn len(&self) -> usize {
        match &self.content {
            Content::Bytes(bytes) => bytes.len(),
            Content::Fields(_, bytes) => *bytes,
        }
    }
}

/// A sentence about a line of a file.
pub(super) fn at(path: &Path, line: u64, message: impl Into<String>) -> Error {
    Error::file(PathBuf::from(format!("{}:{line}", path.display())), message)
}

/// A record's JSON, or what is wrong with it and how many lines further down.
fn parse(bytes: &[u8]) -> Result<Json, (u64, String)> {
    if let Err(error) = std::str::from_utf8(bytes) {
        let (bad, before) = (bytes[error.valid_up_to()], &bytes[..error.valid_up_to()]);
        let below = before.iter().filter(|&&b| b == b'\n').count() as u64;
        let column = before.iter().rev().take_while(|&&b| b != b'\n').count() + 1;
        let advice = "convert it first, for example with iconv -t UTF-8";
        return Err((below, format!("is not UTF-8 text: byte 0x{bad:02X} at column {column}; {advice}")));
    }
    serde_json::from_slice(bytes).map_err(|error| {
        let place = format!(" at line {} column {}", error.line(), error.column());
        let reason = error.to_string().replace(&place, &format!(" at column {}", error.column()));
        (error.line().saturating_sub(1) as u64, format!("is not JSON: {reason}"))
    })
}

/// How records stand in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// One a line.
    Lines,
    /// The elements of one array; or one a line, where it begins with an object.
    Array,
}

/// How a file is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packed {
    Plainly,
    Gzip,
    Zstd,
    /// Parquet, which has its own compression.
    Columns,
}

impl Packed {
    /// Refuses a file that does not begin as its name says; an empty one is found to be so elsewhere.
    pub fn check(self, path: &Path, start: &[u8]) -> Result<()> {
        let (mark, kind): (&[u8], _) = match self {
            Packed::Gzip => (&[0x1F, 0x8B], "gzip"),
            Packed::Zstd => (&[0x28, 0xB5, 0x2F, 0xFD], "zstd"),
            Packed::Plainly | Packed::Columns => return Ok(()),
        };
        if start.is_empty() || start.starts_with(mark) {
            return Ok(());
        }
        let message =
            format!("is no {kind} file, though its name says so; give it the name of what it is, or compress it");
        Err(Error::file(path, message))
    }
}

/// How the records of a file stand, by its name: nothing for text.
pub(super) fn layout(path: &Path) -> Option<(Layout, Packed)> {
    let name = path.file_name()?.to_str()?.to_ascii_lowercase();
    let (name, packed) = match name.rsplit_once('.')? {
        (inner, "gz" | "gzip") => (inner, Packed::Gzip),
        (inner, "zst" | "zstd") => (inner, Packed::Zstd),
        (_, "parquet") => return Some((Layout::Lines, Packed::Columns)),
        _ => (&*name, Packed::Plainly),
    };
    match name.rsplit_once('.')?.1 {
        "jsonl" | "ndjson" => Some((Layout::Lines, packed)),
        "json" => Some((Layout::Array, packed)),
        _ => None,
    }
}

/// Whether a `.json` file holds records: folders of data hold others as well, about the data. An array is taken for some whatever is in it.
pub(super) fn are_records(path: &Path) -> Result<bool> {
    let mut cutter = match Reader::open(&path.into(), Layout::Array, Packed::Plainly)? {
        Reader::Text { cutter, .. } => cutter,
        Reader::Table { .. } => return Ok(true),
    };
    cutter.skip_mark()?;
    if cutter.peek()? == Some(b'[') {
        return Ok(true);
    }
    let first = cutter.next().ok().flatten().and_then(|(_, bytes)| parse(&bytes).ok());
    Ok(first.is_some_and(|json| Form::of(&json).is_ok()))
}

/// Counts what is read of a file.
struct Counting(File, Arc<AtomicU64>);

impl Read for Counting {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.0.read(buffer)?;
        self.1.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

/// A file of records being read.
#[derive(Debug)]
pub(super) enum Reader {
    Text { cutter: Cutter<Box<dyn BufRead>>, read: Arc<AtomicU64> },
    Table { table: Table, path: Arc<Path> },
}

impl Reader {
    pub fn open(path: &Arc<Path>, layout: Layout, packed: Packed) -> Result<Reader> {
        if packed == Packed::Columns {
            return Ok(Reader::Table { table: Table::open(path)?, path: path.clone() });
        }
        let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
        let read = Arc::new(AtomicU64::new(0));
        let file = BufReader::with_capacity(1 << 18, Counting(file, read.clone()));
        let reader: Box<dyn BufRead> = match packed {
            Packed::Gzip => Box::new(BufReader::with_capacity(1 << 18, flate2::bufread::MultiGzDecoder::new(file))),
            Packed::Zstd => {
                let decoder = zstd::stream::read::Decoder::with_buffer(file).map_err(|e| Error::io("read", path, e))?;
                Box::new(BufReader::with_capacity(1 << 18, decoder))
            }
            _ => Box::new(file),
        };
        Ok(Reader::Text { cutter: Cutter::new(reader, layout, path.clone()), read })
    }

    /// The next record and its line or row.
    pub fn next(&mut self) -> Result<Option<(u64, Content)>> {
        match self {
            Reader::Text { cutter, .. } => Ok(cutter.next()?.map(|(line, bytes)| (line, Content::Bytes(bytes)))),
            Reader::Table { table, path } => {
                let before = table.bytes_read();
                let next = table.next(path)?;
                let bytes = (table.bytes_read() - before).max(64) as usize;
                Ok(next.map(|(row, fields)| (row, Content::Fields(fields, bytes))))
            }
        }
    }

    /// How many bytes of the file were read.
    pub fn bytes_read(&self) -> u64 {
        match self {
            Reader::Text { read, .. } => read.load(Ordering::Relaxed),
            Reader::Table { table, .. } => table.bytes_read(),
        }
    }
}

/// Cuts a stream into records.
pub(super) struct Cutter<R> {
    reader: R,
    layout: Layout,
    path: Arc<Path>,
    line: u64,
    state: State,
}

impl<R> std::fmt::Debug for Cutter<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Cutter at {}:{}", self.path.display(), self.line)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before the array's bracket, or the first line.
    Start,
    /// Before an element, or the end of an empty array.
    First,
    /// After an element.
    Comma,
    /// After a comma.
    Element,
    /// After the array.
    End,
}

impl<R: BufRead> Cutter<R> {
    pub fn new(reader: R, layout: Layout, path: Arc<Path>) -> Self {
        Cutter { reader, layout, path, line: 1, state: State::Start }
    }

    /// The next record's bytes and the line that it begins on.
    pub fn next(&mut self) -> Result<Option<(u64, Vec<u8>)>> {
        if self.state == State::Start {
            self.skip_mark()?;
        }
        if self.state == State::Start && self.peek()? == Some(b'{') {
            (self.layout, self.state) = (Layout::Lines, State::Element);
            let first = self.next_line()?;
            if let Some((line, bytes)) = &first
                && serde_json::from_slice::<serde::de::IgnoredAny>(bytes).is_err()
            {
                return Err(at(&self.path, *line, "is no JSON array, nor objects one a line"));
            }
            return Ok(first);
        }
        match self.layout {
            Layout::Lines => self.next_line(),
            Layout::Array => self.next_element(),
        }
    }

    /// A byte order mark means nothing.
    fn skip_mark(&mut self) -> Result<()> {
        if self.fill()?.starts_with(b"\xEF\xBB\xBF") {
            self.reader.consume(3);
        }
        self.state = if self.layout == Layout::Lines { State::Element } else { State::Start };
        Ok(())
    }

    fn fill(&mut self) -> Result<&[u8]> {
        let path = &self.path;
        self.reader.fill_buf().map_err(|error| Error::io("read", path, error))
    }

    fn next_line(&mut self) -> Result<Option<(u64, Vec<u8>)>> {
        loop {
            let (line, mut bytes) = (self.line, Vec::new());
            loop {
                let buffer = self.fill()?;
                let end = buffer.iter().position(|&b| b == b'\n');
                let taken = end.unwrap_or(buffer.len());
                let last = buffer.is_empty();
                bytes.extend_from_slice(&buffer[..taken]);
                self.reader.consume(taken + usize::from(end.is_some()));
                self.check_length(line, &bytes)?;
                if end.is_some() {
                    self.line += 1;
                    break;
                }
                if last {
                    return Ok(if bytes.iter().all(u8::is_ascii_whitespace) { None } else { Some((line, bytes)) });
                }
            }
            if !bytes.iter().all(u8::is_ascii_whitespace) {
                return Ok(Some((line, bytes)));
            }
        }
    }

    fn check_length(&self, line: u64, bytes: &[u8]) -> Result<()> {
        if bytes.len() <= MOST_BYTES {
            return Ok(());
        }
        Err(at(&self.path, line, format!("is a record of more than {} MiB; no example is so long", MOST_BYTES >> 20)))
    }

    /// The next byte that is no white space, not taken.
    fn peek(&mut self) -> Result<Option<u8>> {
        loop {
            let (mut lines, buffer) = (0, self.fill()?);
            if buffer.is_empty() {
                return Ok(None);
            }
            let at = buffer.iter().position(|&b| !b.is_ascii_whitespace()).unwrap_or(buffer.len());
            lines += buffer[..at].iter().filter(|&&b| b == b'\n').count() as u64;
            let found = buffer.get(at).copied();
            self.reader.consume(at);
            self.line += lines;
            if found.is_some() {
                return Ok(found);
            }
        }
    }

    fn next_element(&mut self) -> Result<Option<(u64, Vec<u8>)>> {
        loop {
            let (next, line) = (self.peek()?, self.line);
            let complain = |what: &str| Err(at(&self.path, line, what));
            match (self.state, next) {
                (State::Start, Some(b'[')) => self.state = State::First,
                (State::Start, _) => return complain("is no JSON array, nor objects one a line"),
                (State::First, Some(b']')) | (State::Comma, Some(b']')) => self.state = State::End,
                (State::Comma, Some(b',')) => self.state = State::Element,
                (State::End, None) => return Ok(None),
                (State::End, Some(_)) => return complain("goes on after the end of its array"),
                (_, None) => return complain("ends within its array; the file is cut short"),
                (State::Comma, Some(_)) => return complain("has no comma between two elements of its array"),
                (State::First | State::Element, Some(_)) => {
                    let bytes = self.element(line)?;
                    self.state = State::Comma;
                    return Ok(Some((line, bytes)));
                }
            }
            self.reader.consume(1);
        }
    }

    /// Takes one element: up to the bracket that closes it, or what ends a bare value.
    fn element(&mut self, line: u64) -> Result<Vec<u8>> {
        // What is to close that was opened.
        let (mut bytes, mut open, mut quoted, mut escaped) = (Vec::new(), Vec::new(), false, false);
        loop {
            let buffer = self.fill()?;
            if buffer.is_empty() {
                return Err(at(&self.path, line, "ends within an element of its array; the file is cut short"));
            }
            let (mut taken, mut lines, mut done, mut odd) = (0, 0, false, None);
            for &byte in buffer {
                match byte {
                    _ if escaped => escaped = false,
                    b'\\' if quoted => escaped = true,
                    b'"' => quoted = !quoted,
                    _ if quoted => {}
                    b'{' => open.push(b'}'),
                    b'[' => open.push(b']'),
                    b',' | b']' | b'}' if open.is_empty() => {
                        done = true;
                        break;
                    }
                    b'}' | b']' => odd = open.pop().filter(|&end| end != byte).map(|end| (byte, end)),
                    _ => {}
                }
                taken += 1;
                lines += u64::from(byte == b'\n');
                done = open.is_empty() && matches!(byte, b'}' | b']') && !quoted;
                if done || odd.is_some() {
                    break;
                }
            }
            bytes.extend_from_slice(&buffer[..taken]);
            self.reader.consume(taken);
            self.line += lines;
            self.check_length(line, &bytes)?;
            // The array's own end would be missed.
            if let Some((found, end)) = odd {
                let [found, end] = [found, end].map(char::from);
                return Err(at(&self.path, self.line, format!("is not JSON: {found} where {end} is to come")));
            }
            if done {
                return Ok(bytes);
            }
        }
    }
}
