//! Tokenised text as one memory-mapped file: made once, in parallel, and found again by what it was made from.
//!
//! Layout, little-endian: `DANLUTOK`, version u32, bytes a token u32 (2 or 4), tokens u64, tokenizer hash u64, source hash
//! u64, XXH64 of the token bytes u64, 8 reserved bytes, XXH64 of the 56 bytes before u64; then the tokens.

use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::corpus::{Corpus, Piece};
use super::hash::{Hasher, hash};
use super::mapped::FileBytes;
use super::tokenizer::Tokenizer;
use crate::error::{Error, Result};

const MAGIC: &[u8; 8] = b"DANLUTOK";
const VERSION: u32 = 1;
const HEADER: usize = 64;

/// Pieces are tokenised together up to this many bytes: enough for all cores, little beside a model.
const BATCH_BYTES: usize = 4 << 20;

/// What the header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Header {
    token_bytes: u32,
    tokens: u64,
    tokenizer_hash: u64,
    source_hash: u64,
    checksum: u64,
}

/// A read-only sequence of tokens: every document's, each followed by the end-of-text token.
#[derive(Debug)]
pub struct Shard {
    header: Header,
    bytes: FileBytes,
}

impl Shard {
    /// The shard of this corpus and tokenizer: the one in `folder` if it is there and whole, else made anew. `progress` hears
    /// (bytes done, bytes in all) of the text, and nothing if the shard was there.
    ///
    /// # Errors
    /// Those of the corpus, of the tokenizer, and of writing.
    pub fn cached(
        folder: impl AsRef<Path>,
        corpus: &Corpus,
        tokenizer: &Tokenizer,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Shard> {
        let folder = folder.as_ref();
        let (source, vocabulary) = (corpus.content_hash(), tokenizer.content_hash());
        let path = folder.join(format!("{source:016x}-{vocabulary:016x}.tokens"));
        if let Ok(shard) = Shard::open(&path) {
            let ours = shard.header.source_hash == source && shard.header.tokenizer_hash == vocabulary;
            if ours && shard.verify(&path).is_ok() {
                return Ok(shard);
            }
        }
        std::fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
        Shard::build(&path, corpus, tokenizer, progress)
    }

    /// Tokenises a corpus into a file, which appears under its name only when it is whole. The bytes do not depend on the
    /// number of threads.
    ///
    /// # Errors
    /// Those of the corpus and of writing; [`Error::Invalid`] for a tokenizer without an end-of-text token.
    pub fn build(
        path: impl AsRef<Path>,
        corpus: &Corpus,
        tokenizer: &Tokenizer,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Shard> {
        let path = path.as_ref();
        let temporary = path.with_extension(format!("partial-{}", std::process::id()));
        let written = write(&temporary, corpus, tokenizer, progress)
            .and_then(|()| std::fs::rename(&temporary, path).map_err(|e| Error::io("rename", &temporary, e)));
        if let Err(error) = written {
            let _ = std::fs::remove_file(&temporary);
            return Err(error);
        }
        Shard::open(path)
    }

    /// Opens a shard, checking its header and its length but not every byte: see [`Shard::verify`].
    ///
    /// # Errors
    /// A sentence for a file that is missing, no shard, of another version, damaged or cut short.
    pub fn open(path: impl AsRef<Path>) -> Result<Shard> {
        let path = path.as_ref();
        let bytes = FileBytes::open(path)?;
        let header = Header::decode(&bytes).map_err(|message| Error::file(path, message))?;
        let wanted = HEADER as u64 + header.tokens * u64::from(header.token_bytes);
        if bytes.len() as u64 != wanted {
            let message = format!("is cut short or grown: {} bytes, its header says {wanted}; delete it", bytes.len());
            return Err(Error::file(path, message));
        }
        Ok(Shard { header, bytes })
    }

    /// Reads every token byte and compares the checksum; `path` is only named in the error.
    ///
    /// # Errors
    /// [`Error::File`] if a byte has changed since the shard was written.
    pub fn verify(&self, path: impl AsRef<Path>) -> Result<()> {
        let found = hash(&self.bytes[HEADER..]);
        if found == self.header.checksum {
            return Ok(());
        }
        let wanted = self.header.checksum;
        Err(Error::file(path, format!("is damaged: checksum {found:016x}, its header says {wanted:016x}; delete it")))
    }

    /// The number of tokens.
    pub fn len(&self) -> u64 {
        self.header.tokens
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
    pub fn read(&self, at: u64, into: &mut [u32]) {
        debug_assert!(at + into.len() as u64 <= self.len(), "{} tokens at {at} of {}", into.len(), self.len());
        let width = self.header.token_bytes as usize;
        let start = HEADER + at as usize * width;
        let bytes = &self.bytes[start..start + into.len() * width];
        if width == 2 {
            for (token, b) in into.iter_mut().zip(bytes.chunks_exact(2)) {
                *token = u32::from(u16::from_le_bytes([b[0], b[1]]));
            }
        } else {
            for (token, b) in into.iter_mut().zip(bytes.chunks_exact(4)) {
                *token = u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            }
        }
    }
}

impl Header {
    fn encode(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.token_bytes.to_le_bytes());
        let words = [self.tokens, self.tokenizer_hash, self.source_hash, self.checksum];
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
        let token_bytes = (word(8) >> 32) as u32;
        let possible = word(16).checked_mul(4).is_some_and(|bytes| bytes < u64::MAX / 2);
        if word(HEADER - 8) != hash(&bytes[..HEADER - 8]) || !matches!(token_bytes, 2 | 4) || !possible {
            return Err("has a damaged header; delete it".into());
        }
        Ok(Header {
            token_bytes,
            tokens: word(16),
            tokenizer_hash: word(24),
            source_hash: word(32),
            checksum: word(40),
        })
    }
}

/// Writes the whole shard, header last.
fn write(path: &PathBuf, corpus: &Corpus, tokenizer: &Tokenizer, progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
    let eos = tokenizer.eos().ok_or_else(|| {
        Error::Invalid("the tokenizer has no end-of-text token; name one as eos_token in tokenizer_config.json".into())
    })?;
    let failed = |error| Error::io("write", path, error);
    let token_bytes = if tokenizer.vocab_size() <= 1 << 16 { 2 } else { 4 };
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path).map_err(|e| Error::io("create", path, e))?);
    file.write_all(&[0; HEADER]).map_err(failed)?;
    let (mut hasher, mut tokens, mut pieces) = (Hasher::new(), 0, corpus.pieces());
    progress(0, corpus.bytes());
    loop {
        let batch = next_batch(&mut pieces)?;
        let Some(last) = batch.last() else { break };
        // Rayon keeps the order, so the file is that of one thread.
        let encoded: Vec<Vec<u8>> =
            batch.par_iter().map(|piece| encode(piece, tokenizer, eos, token_bytes)).collect::<Result<_>>()?;
        for bytes in &encoded {
            hasher.update(bytes);
            file.write_all(bytes).map_err(failed)?;
            tokens += bytes.len() as u64 / u64::from(token_bytes);
        }
        progress(last.bytes_done.min(corpus.bytes()), corpus.bytes());
    }
    progress(corpus.bytes(), corpus.bytes());
    let header = Header {
        token_bytes,
        tokens,
        tokenizer_hash: tokenizer.content_hash(),
        source_hash: corpus.content_hash(),
        checksum: hasher.finish(),
    };
    file.seek(SeekFrom::Start(0)).map_err(failed)?;
    file.write_all(&header.encode()).map_err(failed)?;
    let file = file.into_inner().map_err(|error| failed(error.into_error()))?;
    file.sync_all().map_err(failed)
}

fn next_batch(pieces: &mut impl Iterator<Item = Result<Piece>>) -> Result<Vec<Piece>> {
    let (mut batch, mut bytes) = (Vec::new(), 0);
    while bytes < BATCH_BYTES {
        let Some(piece) = pieces.next().transpose()? else { break };
        bytes += piece.text.len();
        batch.push(piece);
    }
    Ok(batch)
}

/// One piece's tokens as the shard's bytes.
fn encode(piece: &Piece, tokenizer: &Tokenizer, eos: u32, token_bytes: u32) -> Result<Vec<u8>> {
    let ids = tokenizer.encode(&piece.text)?;
    let prefix = tokenizer.document_prefix().filter(|_| piece.starts_document);
    let all = prefix.into_iter().chain(ids).chain(piece.ends_document.then_some(eos));
    Ok(if token_bytes == 2 {
        all.flat_map(|id| (id as u16).to_le_bytes()).collect()
    } else {
        all.flat_map(u32::to_le_bytes).collect()
    })
}

#[cfg(test)]
mod tests;
