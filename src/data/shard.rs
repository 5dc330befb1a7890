//! Tokenised documents as one file: made once, in parallel, and found again by what it was made from. It is read where it
//! lies, by position: the system keeps in memory what is used, as of a map, and who cuts it short gets a sentence and no signal.
//!
//! Layout, little-endian: `DANLUTOK`, version u32, bytes a token u8 (2 or 4), 1 if tokens are marked u8, what documents are u8
//! (0 running text, 1 examples, 2 pairs of them), a zero, tokens u64, tokenizer hash u64, source hash u64, XXH64 of all
//! that follows the header u64, documents u64, XXH64 of the 56 bytes before u64; then the tokens, in which the highest
//! bit marks what is not to be predicted, if they are marked; then for each document the number of tokens up to its
//! end, u64.

mod write;

use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::corpus::Corpus;
use super::encoder::{Encoder, LossOn};
use super::hash::{Hasher, hash};
use crate::base::read_at;
use crate::error::{Error, Result};

const MAGIC: &[u8; 8] = b"DANLUTOK";
const VERSION: u32 = 2;
const HEADER: usize = 64;

/// How a shard's name ends.
pub const SHARD_ENDING: &str = "tokens";

/// Set in a token that is read but not to be predicted, such as a question's: see [`Shard::read_marked`].
pub const MASKED: u32 = 1 << 31;

/// What the documents of a shard are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShardKind {
    /// Running text.
    Text,
    /// Examples.
    Examples,
    /// Two of them that belong together, the better one first.
    Pairs,
}

/// What the header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Header {
    token_bytes: u8,
    marked: bool,
    kind: ShardKind,
    tokens: u64,
    documents: u64,
    tokenizer_hash: u64,
    source_hash: u64,
    checksum: u64,
}

impl Header {
    /// Bytes of the whole file.
    fn file_bytes(&self) -> u64 {
        HEADER as u64 + self.tokens * u64::from(self.token_bytes) + self.documents * 8
    }
}

/// A read-only sequence of tokens: every document's. Those of running text end with the end-of-text token.
#[derive(Debug)]
pub struct Shard {
    header: Header,
    file: File,
    path: PathBuf,
}

impl Shard {
    /// The shard of this corpus by this encoder: the one in `folder` if it is there and whole, else made anew. `progress`
    /// hears (bytes done, bytes in all) of the corpus, and nothing if the shard was there.
    ///
    /// # Errors
    /// Those of the corpus, of the encoder, and of writing.
    pub fn cached(
        folder: impl AsRef<Path>,
        corpus: &Corpus,
        encoder: &Encoder,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Shard> {
        let folder = folder.as_ref();
        let (source, vocabulary) = (encoder.source_hash(corpus), encoder.tokenizer().content_hash());
        let path = folder.join(format!("{source:016x}-{vocabulary:016x}.{SHARD_ENDING}"));
        if let Ok(shard) = Shard::open(&path) {
            let ours = shard.header.source_hash == source && shard.header.tokenizer_hash == vocabulary;
            if ours && shard.verify().is_ok() {
                return Ok(shard);
            }
        }
        std::fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
        Shard::build(&path, corpus, encoder, progress)
    }

    /// Tokenises a corpus into a file, which appears under its name only when it is whole. The bytes do not depend on the
    /// number of threads.
    ///
    /// # Errors
    /// Those of the corpus, of the encoder, and of writing.
    pub fn build(
        path: impl AsRef<Path>,
        corpus: &Corpus,
        encoder: &Encoder,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Shard> {
        write::write(path.as_ref(), corpus, encoder, progress)?;
        Shard::open(path)
    }

    /// Opens a shard, checking its header and its length but not every byte: see [`Shard::verify`].
    ///
    /// # Errors
    /// A sentence for a file that is missing, no shard, of another version, damaged or cut short.
    pub fn open(path: impl AsRef<Path>) -> Result<Shard> {
        let path = path.as_ref();
        let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
        let bytes = file.metadata().map_err(|e| Error::io("read", path, e))?.len();
        let mut first = vec![0; bytes.min(HEADER as u64) as usize];
        read_at(&file, &mut first, 0).map_err(|e| Error::io("read", path, e))?;
        let header = Header::decode(&first).map_err(|message| Error::file(path, message))?;
        let wanted = header.file_bytes();
        if bytes != wanted {
            let message = format!("is cut short or grown: {bytes} bytes, its header says {wanted}; delete it");
            return Err(Error::file(path, message));
        }
        Ok(Shard { header, file, path: path.to_path_buf() })
    }

    /// Reads every token byte and compares the checksum.
    ///
    /// # Errors
    /// [`Error::File`] if a byte has changed since the shard was written.
    pub fn verify(&self) -> Result<()> {
        let (mut hasher, mut buffer) = (Hasher::new(), vec![0; 1 << 20]);
        let (mut at, end) = (HEADER as u64, self.header.file_bytes());
        while at < end {
            let count = (end - at).min(buffer.len() as u64);
            self.bytes(at, &mut buffer[..count as usize])?;
            hasher.update(&buffer[..count as usize]);
            at += count;
        }
        let (found, wanted) = (hasher.finish(), self.header.checksum);
        if found == wanted {
            return Ok(());
        }
        let message = format!("is damaged: checksum {found:016x}, its header says {wanted:016x}; delete it");
        Err(Error::file(&self.path, message))
    }

    fn bytes(&self, at: u64, into: &mut [u8]) -> Result<()> {
        read_at(&self.file, into, at).map_err(|e| match e.kind() {
            ErrorKind::UnexpectedEof => Error::file(
                &self.path,
                "was cut short while it was in use; delete it, and its tokens are made again by the next run",
            ),
            _ => Error::io("read", &self.path, e),
        })
    }

    /// The number of tokens.
    pub fn len(&self) -> u64 {
        self.header.tokens
    }

    /// The number of documents.
    pub fn documents(&self) -> u64 {
        self.header.documents
    }

    /// The tokens of document `index` as a range of the shard's.
    ///
    /// # Errors
    /// If the file was cut short since it was opened, or cannot be read.
    pub fn document(&self, index: u64) -> Result<std::ops::Range<u64>> {
        let index_at = HEADER as u64 + self.len() * u64::from(self.header.token_bytes);
        let end = |i: u64| {
            let mut word = [0; 8];
            self.bytes(index_at + i * 8, &mut word).map(|()| u64::from_le_bytes(word))
        };
        // An index that was damaged and not verified gives wrong documents, but none outside of the shard.
        let end_at = end(index)?.min(self.len());
        let start = if index == 0 { 0 } else { end(index - 1)? };
        Ok(start.min(end_at)..end_at)
    }

    /// What its documents are.
    pub fn kind(&self) -> ShardKind {
        self.header.kind
    }

    /// Whether it was made by the tokenizer with this [`super::Tokenizer::content_hash`].
    pub fn is_of(&self, tokenizer_hash: u64) -> bool {
        self.header.tokenizer_hash == tokenizer_hash
    }

    /// What it holds, in words: "40 examples".
    pub fn told(&self) -> String {
        let (count, unit, rest) = match self.kind() {
            ShardKind::Text => (self.len(), "token", " of running text"),
            ShardKind::Examples => (self.documents(), "example", ""),
            ShardKind::Pairs => (self.documents() / 2, "pair", ""),
        };
        format!("{count} {unit}{}{rest}", if count == 1 { "" } else { "s" })
    }

    /// Refuses losses on other tokens than it was made for: they stand in it, and no recipe changes them. Running text is
    /// predicted whole whatever is said.
    ///
    /// # Errors
    /// [`Error::File`] with both, and how to have what is wanted.
    pub fn check_losses(&self, wanted: LossOn) -> Result<()> {
        let own = if self.is_marked() { LossOn::Assistant } else { LossOn::All };
        if self.kind() == ShardKind::Text || own == wanted {
            return Ok(());
        }
        let message = format!(
            "was made with its losses on \"{own}\", and \"{wanted}\" is asked for: say --loss-on {own}, or make it anew with \
             `danlu tokenize --loss-on {wanted}`"
        );
        Err(Error::file(&self.path, message))
    }

    /// Whether some tokens are not to be predicted.
    pub fn is_marked(&self) -> bool {
        self.header.marked
    }

    /// Whether there is no token at all.
    pub fn is_empty(&self) -> bool {
        self.header.tokens == 0
    }

    /// A hash of all tokens.
    pub fn checksum(&self) -> u64 {
        self.header.checksum
    }

    /// Copies the tokens from `at` on into `into`, which must lie within the shard.
    ///
    /// # Errors
    /// If the file was cut short since it was opened, or cannot be read.
    pub fn read(&self, at: u64, into: &mut [u32]) -> Result<()> {
        self.read_marked(at, into)?;
        if self.header.marked {
            into.iter_mut().for_each(|token| *token &= !MASKED);
        }
        Ok(())
    }

    /// The same, with [`MASKED`] set in tokens that are not to be predicted.
    ///
    /// # Errors
    /// As [`Shard::read`].
    pub fn read_marked(&self, at: u64, into: &mut [u32]) -> Result<()> {
        debug_assert!(at + into.len() as u64 <= self.len(), "{} tokens at {at} of {}", into.len(), self.len());
        let (width, count) = (usize::from(self.header.token_bytes), into.len());
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(into);
        // Into the end of what is to be filled, where widening from the front catches up with it only at the last token.
        let first = (4 - width) * count;
        self.bytes(HEADER as u64 + at * width as u64, &mut bytes[first..])?;
        if width == 4 {
            into.iter_mut().for_each(|token| *token = u32::from_le(*token));
            return Ok(());
        }
        // The mark moves from the highest bit of 16 to that of 32.
        let mark = if self.header.marked { 1 << 15 } else { 0 };
        for i in 0..count {
            let word = u32::from(u16::from_le_bytes([bytes[first + 2 * i], bytes[first + 2 * i + 1]]));
            let token = (word & !mark) | ((word & mark) << 16);
            bytes[4 * i..4 * i + 4].copy_from_slice(&token.to_ne_bytes());
        }
        Ok(())
    }
}

impl Header {
    fn encode(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..15].copy_from_slice(&[self.token_bytes, u8::from(self.marked), self.kind as u8]);
        let words = [self.tokens, self.tokenizer_hash, self.source_hash, self.checksum, self.documents];
        for (at, word) in (16..).step_by(8).zip(words) {
            bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
        }
        let own = hash(&bytes[..HEADER - 8]);
        bytes[HEADER - 8..].copy_from_slice(&own.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Header, String> {
        if !bytes.starts_with(MAGIC) {
            return Err("is no token shard of Danlu; delete it, or choose another folder for the cache".into());
        }
        if bytes.len() < HEADER {
            return Err(format!("is cut short: {} bytes, a header has {HEADER}; delete it", bytes.len()));
        }
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let version = word(8) as u32;
        if version != VERSION {
            return Err(format!("is a token shard of version {version}, this is version {VERSION}; delete it"));
        }
        let [token_bytes, marked, kind, zero] = [bytes[12], bytes[13], bytes[14], bytes[15]];
        let kinds = [ShardKind::Text, ShardKind::Examples, ShardKind::Pairs];
        let possible = [word(16), word(48)].into_iter().all(|count| count < 1 << 56);
        let known = matches!(token_bytes, 2 | 4) && marked <= 1 && zero == 0;
        let whole = word(HEADER - 8) == hash(&bytes[..HEADER - 8]) && known && possible;
        let Some(kind) = kinds.into_iter().find(|known| whole && *known as u8 == kind) else {
            return Err("has a damaged header; delete it".into());
        };
        Ok(Header {
            token_bytes,
            marked: marked == 1,
            kind,
            tokens: word(16),
            tokenizer_hash: word(24),
            source_hash: word(32),
            checksum: word(40),
            documents: word(48),
        })
    }
}

#[cfg(test)]
mod tests;
