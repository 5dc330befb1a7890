//! Where text and examples come from: the embedded stories, a text file, JSONL, JSON or Parquet in any of the forms of
//! `form.rs`, compressed or not, or a folder of such files.

mod check;
mod pieces;
mod records;
mod table;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::form::Form;
use super::hash::Hasher;
use super::passages::Passages;
use super::story::StoryGrammar;
use crate::error::{Error, Result};
use check::check;
pub use pieces::{Piece, Unit, Units};
pub use records::Record;
use records::{Layout, Packed, Reader, are_records, layout};

/// How a file is divided into documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    /// One document, or several parted by lines that hold only `<|endoftext|>`.
    Text,
    /// Objects of one form.
    Records(Layout, Packed, Form),
}

impl Format {
    /// Whether every byte of a file is read by who reads all of its documents.
    fn is_plain(self) -> bool {
        matches!(self, Format::Text | Format::Records(_, Packed::Plainly, _))
    }
}

#[derive(Debug, Clone)]
enum Source {
    Stories { seed: u64, count: u64 },
    File { path: Arc<Path>, format: Format, bytes: u64 },
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

    /// Opens a text file, a `.jsonl` file, a `.json` file that holds an array or objects one a line, any of them compressed (`.gz`, `.zst`), a
    /// `.parquet` file, or a folder: every `.txt`, `.md` and such file below it, in the order of paths. The form of a file's
    /// records is that of its first.
    ///
    /// # Errors
    /// A sentence for a path that does not exist, a file that is empty or no UTF-8 text (with offset or line), a first record
    /// of no known form, and a folder without a usable file. What is wrong with later records is reported by
    /// [`Corpus::units`] and where they are encoded, as `file:line`.
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
                return Err(Error::file(path, "holds no .txt, .md, .jsonl, .json or .parquet file with text in it"));
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
        let mut passages = Passages::open(path)?;
        let layout = layout(path);
        if let Some((_, packed)) = layout {
            packed.check(path, passages.at(0, 4)?)?;
        }
        let is_text = layout.is_none_or(|(_, packed)| packed == Packed::Plainly);
        if !check(path, &mut passages, is_text)? {
            return Ok(());
        }
        let path: Arc<Path> = path.into();
        let format = match layout {
            None => Format::Text,
            Some((layout, packed)) => match self.form_of(&path, layout, packed)? {
                Some(form) => Format::Records(layout, packed, form),
                None => return Ok(()),
            },
        };
        let kind = match format {
            // As it was before there were other forms, so that shards are found again.
            Format::Text => 0,
            Format::Records(Layout::Lines, Packed::Plainly, Form::Text) => 1,
            Format::Records(layout, packed, form) => 2 + 64 * layout as u8 + 8 * packed as u8 + form as u8,
        };
        hasher.update(&[kind]);
        let bytes = passages.bytes();
        hasher.update(&bytes.to_le_bytes());
        passages.each(|passage| hasher.update(passage))?;
        self.bytes += bytes;
        self.sources.push(Source::File { path, format, bytes });
        Ok(())
    }

    /// The form of a file's first record, if it has one.
    fn form_of(&self, path: &Arc<Path>, layout: Layout, packed: Packed) -> Result<Option<Form>> {
        let Some((line, content)) = Reader::open(path, layout, packed)?.next()? else { return Ok(None) };
        let record = Record { content, form: Form::Text, path: path.clone(), line, bytes_done: 0 };
        Form::of(&record.json()?).map(Some).map_err(|message| record.error(message))
    }

    /// The forms of its files, each once. Text files and stories count as [`Form::Text`].
    pub fn forms(&self) -> Vec<Form> {
        let form = |source: &Source| match source {
            Source::File { format: Format::Records(.., form), .. } => *form,
            _ => Form::Text,
        };
        let mut forms: Vec<Form> = self.sources.iter().map(form).collect();
        forms.sort_unstable();
        forms.dedup();
        forms
    }

    /// Whether it is nothing but running text.
    pub fn is_text(&self) -> bool {
        self.forms().iter().all(|form| *form == Form::Text)
    }

    /// The size of the text in bytes: of the files as they are, and an estimate for stories.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// A hash of the content, whatever the files are called: the half of a shard's name that tells texts apart.
    pub fn content_hash(&self) -> u64 {
        self.hash
    }

    /// Documents and records in order, long texts in pieces.
    pub fn units(&self) -> Units<'_> {
        Units::new(self)
    }

    /// At most about `max_bytes` of the text, evenly spread over the corpus: what a tokenizer is trained on.
    ///
    /// # Errors
    /// Those of [`Corpus::units`], and of records.
    pub fn sample(&self, max_bytes: u64) -> Result<Vec<String>> {
        let every = self.bytes.div_ceil(max_bytes.max(1)).max(1) as usize;
        let texts = self.units().step_by(every).map(|unit| match unit? {
            Unit::Piece(piece) => Ok(vec![piece.text]),
            Unit::Record(record) => Ok(record.example()?.texts()),
        });
        Ok(texts.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
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
        } else if path.is_file() {
            let usable = match layout(&path) {
                Some((Layout::Array, Packed::Plainly)) => are_records(&path)?,
                Some(_) => true,
                None => {
                    let ending = path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
                    ending.is_some_and(|e| matches!(&*e, "txt" | "md")) && !is_card(&path)?
                }
            };
            if usable {
                files.push(path);
            }
        }
    }
    Ok(())
}

/// Whether a file is the card of a data set, which hubs and their tools put beside the data: README.md with a head of YAML.
fn is_card(path: &Path) -> Result<bool> {
    let is_readme = path.file_name().is_some_and(|name| name.eq_ignore_ascii_case("README.md"));
    Ok(is_readme && Passages::open(path)?.at(0, 4)? == b"---\n")
}

#[cfg(test)]
mod tests;
