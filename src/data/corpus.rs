//! Where text comes from: the embedded stories, a text file, a JSONL file, or a folder of such files.

mod pieces;

use std::path::{Path, PathBuf};

use super::hash::Hasher;
use super::mapped::FileBytes;
use super::story::StoryGrammar;
use crate::error::{Error, Result};
pub use pieces::{Piece, Pieces};

/// How a file is divided into documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    /// One document, or several parted by lines that hold only `<|endoftext|>`.
    Text,
    /// One JSON object a line, its document in the field `text`.
    Jsonl,
}

#[derive(Debug, Clone)]
enum Source {
    Stories { seed: u64, count: u64 },
    File { path: PathBuf, format: Format },
}

/// A bounded, ordered source of documents. Opening one reads every file once: to refuse what is no text before any work is
/// done, and to hash the content.
#[derive(Debug, Clone)]
pub struct Corpus {
    sources: Vec<Source>,
    bytes: u64,
    hash: u64,
}

impl Corpus {
    /// The first `count` stories of the embedded grammar with this seed.
    pub fn stories(seed: u64, count: u64) -> Corpus {
        let probe = count.min(64);
        let probed: u64 = StoryGrammar::new(seed).take(probe as usize).map(|story| story.len() as u64).sum();
        let mut hasher = Hasher::new();
        for word in [StoryGrammar::content_hash(), seed, count] {
            hasher.update(&word.to_le_bytes());
        }
        Corpus {
            sources: vec![Source::Stories { seed, count }],
            bytes: probed * count / probe.max(1),
            hash: hasher.finish(),
        }
    }

    /// Opens a text file, a `.jsonl` file, or a folder: every `.txt`, `.md` and `.jsonl` below it, in the order of paths.
    ///
    /// # Errors
    /// A sentence for a path that does not exist, a file that is empty or no UTF-8 text (with the offset), and a folder
    /// without a usable file. Broken JSONL lines are reported by [`Corpus::pieces`], as `file:line`.
    pub fn open(path: impl AsRef<Path>) -> Result<Corpus> {
        let path = path.as_ref();
        if !path.exists() {
            return Err(Error::file(path, "no such file or folder; check the path given as data"));
        }
        let mut corpus = Corpus { sources: Vec::new(), bytes: 0, hash: 0 };
        let mut hasher = Hasher::new();
        if path.is_dir() {
            let mut files = Vec::new();
            collect(path, &mut files)?;
            files.sort();
            for file in &files {
                corpus.add(file, &mut hasher)?;
            }
            if corpus.sources.is_empty() {
                return Err(Error::file(path, "holds no .txt, .md or .jsonl file with text in it"));
            }
        } else {
            corpus.add(path, &mut hasher)?;
            if corpus.sources.is_empty() {
                return Err(Error::file(path, "is empty; training needs text"));
            }
        }
        corpus.hash = hasher.finish();
        Ok(corpus)
    }

    /// Checks one file and takes it in, unless it holds nothing but white space.
    fn add(&mut self, path: &Path, hasher: &mut Hasher) -> Result<()> {
        let bytes = FileBytes::open(path)?;
        check_text(path, &bytes)?;
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Ok(());
        }
        let format = match path.extension().and_then(|e| e.to_str()) {
            Some("jsonl") => Format::Jsonl,
            _ => Format::Text,
        };
        hasher.update(&[format as u8]);
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(&bytes);
        self.bytes += bytes.len() as u64;
        self.sources.push(Source::File { path: path.to_path_buf(), format });
        Ok(())
    }

    /// The size of the text in bytes: of the files as they are, and an estimate for stories.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// A hash of the content, whatever the files are called: the half of a shard's name that tells texts apart.
    pub fn content_hash(&self) -> u64 {
        self.hash
    }

    /// The documents in order, long ones in pieces.
    pub fn pieces(&self) -> Pieces<'_> {
        Pieces::new(self)
    }

    /// At most about `max_bytes` of the text, evenly spread over the corpus: what a tokenizer is trained on.
    ///
    /// # Errors
    /// Those of [`Corpus::pieces`].
    pub fn sample(&self, max_bytes: u64) -> Result<Vec<String>> {
        let every = self.bytes.div_ceil(max_bytes.max(1)).max(1) as usize;
        self.pieces().step_by(every).map(|piece| piece.map(|piece| piece.text)).collect()
    }
}

/// Gathers the usable files below a folder. Hidden entries and links to folders are left out.
fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder).map_err(|e| Error::io("list", folder, e))? {
        let entry = entry.map_err(|e| Error::io("list", folder, e))?;
        let path = entry.path();
        let kind = entry.file_type().map_err(|e| Error::io("read", &path, e))?;
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        if kind.is_dir() {
            collect(&path, files)?;
        } else if path.is_file() && matches!(path.extension().and_then(|e| e.to_str()), Some("txt" | "md" | "jsonl")) {
            files.push(path);
        }
    }
    Ok(())
}

/// Refuses what is no text: a NUL byte, or anything that is not UTF-8.
fn check_text(path: &Path, bytes: &[u8]) -> Result<()> {
    if let Err(error) = std::str::from_utf8(bytes) {
        let at = error.valid_up_to();
        let message = format!(
            "is not UTF-8 text: byte 0x{:02X} at offset {at}; convert it first, for example with iconv -t UTF-8",
            bytes[at]
        );
        return Err(Error::file(path, message));
    }
    match bytes.iter().position(|&b| b == 0) {
        Some(at) => {
            let message = format!("is a binary file, not text: a NUL byte at offset {at}; give plain text or JSONL");
            Err(Error::file(path, message))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
