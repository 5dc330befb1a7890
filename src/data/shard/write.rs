//! Makes a shard: units of a corpus in, tokens out, on all cores and in order.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::{HEADER, Header, MASKED};
use crate::data::corpus::{Corpus, Unit};
use crate::data::encoder::{Encoded, Encoder};
use crate::data::hash::Hasher;
use crate::error::{Error, Result};
use crate::store::atomic::{folder_of, sweep, temporary};

/// Units are tokenised together up to this many bytes: enough for all cores, little beside a model.
const BATCH_BYTES: usize = 4 << 20;

/// Files that are removed however their making ends, but for those that got another name.
struct Temporary(Vec<PathBuf>);

impl Drop for Temporary {
    fn drop(&mut self) {
        self.0.iter().for_each(|path| drop(std::fs::remove_file(path)));
    }
}

/// Writes the whole shard, header last, and gives it its name.
pub(super) fn write(path: &Path, corpus: &Corpus, encoder: &Encoder, progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
    let (partial, index) = (temporary(path)?, temporary(&path.with_extension("index"))?);
    // What was killed while it tokenised left as much as a shard takes; kept tokenizers lie there, too.
    let same = |name: &str| path.file_name().is_some_and(|own| own == name);
    sweep(folder_of(path), &|name| {
        same(name) || [".tokens", ".index", ".tokenizer"].iter().any(|ending| name.ends_with(ending))
    });
    let _temporary = Temporary(vec![partial.clone(), index.clone()]);
    let mut writer = Writer::new(&partial, &index, encoder)?;
    let mut units = corpus.units();
    progress(0, corpus.bytes());
    loop {
        let batch = next_batch(&mut units)?;
        let Some(last) = batch.last() else { break };
        // Rayon keeps the order, so the file is that of one thread.
        // Of several that are refused the first is told, whichever thread is the first to refuse one.
        let encoded: Vec<Result<Encoded>> = batch.par_iter().map(|unit| encoder.encode(unit)).collect();
        let encoded: Vec<Encoded> = encoded.into_iter().collect::<Result<_>>()?;
        encoded.iter().try_for_each(|unit| writer.push(unit))?;
        progress(last.bytes_done().min(corpus.bytes()), corpus.bytes());
    }
    progress(corpus.bytes(), corpus.bytes());
    writer.finish(encoder.tokenizer().content_hash(), encoder.source_hash(corpus))?;
    std::fs::rename(&partial, path).map_err(|e| Error::io("rename", &partial, e))
}

fn next_batch(units: &mut impl Iterator<Item = Result<Unit>>) -> Result<Vec<Unit>> {
    let (mut batch, mut bytes) = (Vec::new(), 0);
    while bytes < BATCH_BYTES {
        let Some(unit) = units.next().transpose()? else { break };
        bytes += unit.bytes();
        batch.push(unit);
    }
    Ok(batch)
}

/// The tokens' file, and beside it the index, which follows the tokens once all are there.
struct Writer<'a> {
    path: &'a Path,
    index_path: &'a Path,
    file: BufWriter<File>,
    index: BufWriter<File>,
    hasher: Hasher,
    header: Header,
    buffer: Vec<u8>,
}

impl<'a> Writer<'a> {
    fn new(path: &'a Path, index_path: &'a Path, encoder: &Encoder) -> Result<Writer<'a>> {
        let open = |path| {
            let file = File::options().create(true).truncate(true).read(true).write(true).open(path);
            Ok(BufWriter::with_capacity(1 << 20, file.map_err(|e| Error::io("create", path, e))?))
        };
        let (mut file, index) = (open(path)?, open(index_path)?);
        file.write_all(&[0; HEADER]).map_err(|e| Error::io("write", path, e))?;
        let marked = encoder.marks();
        let ids = encoder.tokenizer().vocab_size();
        let token_bytes = if ids <= if marked { 1 << 15 } else { 1 << 16 } { 2 } else { 4 };
        let header = Header {
            token_bytes,
            marked,
            kind: encoder.kind(),
            tokens: 0,
            documents: 0,
            tokenizer_hash: 0,
            source_hash: 0,
            checksum: 0,
        };
        Ok(Writer { path, index_path, file, index, hasher: Hasher::new(), header, buffer: Vec::new() })
    }

    fn push(&mut self, unit: &Encoded) -> Result<()> {
        self.buffer.clear();
        if self.header.token_bytes == 2 {
            let narrow = |&id: &u32| (((id & MASKED) >> 16) | (id & !MASKED)) as u16;
            self.buffer.extend(unit.tokens.iter().flat_map(|id| narrow(id).to_le_bytes()));
        } else {
            self.buffer.extend(unit.tokens.iter().flat_map(|id| id.to_le_bytes()));
        }
        self.hasher.update(&self.buffer);
        self.file.write_all(&self.buffer).map_err(|e| Error::io("write", self.path, e))?;
        let before = self.header.tokens;
        self.header.tokens += unit.tokens.len() as u64;
        for end in &unit.ends {
            let end = before + *end as u64;
            self.index.write_all(&end.to_le_bytes()).map_err(|e| Error::io("write", self.index_path, e))?;
            self.header.documents += 1;
        }
        Ok(())
    }

    /// Appends the index, then writes the header and sees to it that all is on the disk.
    fn finish(mut self, tokenizer_hash: u64, source_hash: u64) -> Result<()> {
        let failed = |e| Error::io("write", self.path, e);
        let mut index = self.index.into_inner().map_err(|e| Error::io("write", self.index_path, e.into_error()))?;
        index.seek(SeekFrom::Start(0)).map_err(failed)?;
        let mut index = BufReader::new(index);
        self.buffer.resize(1 << 16, 0);
        loop {
            let count = index.read(&mut self.buffer).map_err(|e| Error::io("read", self.index_path, e))?;
            if count == 0 {
                break;
            }
            self.hasher.update(&self.buffer[..count]);
            self.file.write_all(&self.buffer[..count]).map_err(failed)?;
        }
        let header = Header { tokenizer_hash, source_hash, checksum: self.hasher.finish(), ..self.header };
        self.file.seek(SeekFrom::Start(0)).map_err(failed)?;
        self.file.write_all(&header.encode()).map_err(failed)?;
        let file = self.file.into_inner().map_err(|error| failed(error.into_error()))?;
        file.sync_all().map_err(failed)
    }
}
