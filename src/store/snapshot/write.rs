//! Writes a training checkpoint: bytes come in order, files and sums go out.

use super::manifest::{MANIFEST, MANIFEST_SUM, Manifest, Part, Shard, cut};
use super::read::hex;
use crate::base::{DType, Shape};
use crate::error::{Error, Result};
use crate::store::header::header;
use crate::store::room::check_room;
use crate::store::staged_folder::StagedFolder;
use ring::digest::{Context, SHA256, digest};
use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Most bytes of states in one file: a multiple of every word, small enough for any file system and transfer.
pub const SHARD_BYTES: u64 = 512 << 20;
/// What manifest and headers take at most, and the file system for itself.
const MARGIN: u64 = 1 << 20;

/// A checkpoint on its way to disk. Dropped before [`SnapshotWriter::finish`], nothing of it stays.
pub struct SnapshotWriter {
    staged: StagedFolder,
    path: PathBuf,
    manifest: Manifest,
    ahead: VecDeque<Vec<Part>>,
    count: usize,
    file: Option<Open>,
}

/// The file that is being written.
struct Open {
    name: String,
    file: File,
    sum: Context,
    bytes: u64,
    /// Bytes of states that are still to come.
    left: u64,
    parts: Vec<Part>,
}

impl SnapshotWriter {
    /// Begins `step-N` in `folder`, after a look at the room on the disk.
    ///
    /// # Errors
    /// If there is not enough, or the folder cannot be written.
    pub fn new(folder: &Path, manifest: Manifest, shard_bytes: u64) -> Result<SnapshotWriter> {
        let path = folder.join(format!("step-{}", manifest.step));
        std::fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
        check_room(&path, manifest.bytes() + MARGIN)?;
        let ahead: VecDeque<_> = cut(&manifest.states, shard_bytes).into();
        let (staged, count) = (StagedFolder::new(&path)?, ahead.len());
        Ok(SnapshotWriter { staged, path, manifest, ahead, count, file: None })
    }

    /// The next bytes of the states, in the manifest's order.
    ///
    /// # Errors
    /// If the disk is full or fails.
    pub fn push(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let mut open = match self.file.take() {
                Some(open) => open,
                None => self.open()?,
            };
            let (now, rest) = bytes.split_at(bytes.len().min(open.left as usize));
            open.sum.update(now);
            self.staged.act(&open.name, open.bytes, |_| open.file.write_all(now))?;
            open.left -= now.len() as u64;
            if open.left == 0 {
                self.close(open)?
            } else {
                self.file = Some(open)
            }
            bytes = rest;
        }
        Ok(())
    }

    fn open(&mut self) -> Result<Open> {
        let parts = self.ahead.pop_front().ok_or_else(|| Error::Graph("more bytes than the states have".into()))?;
        let name = format!("states-{:05}-of-{:05}.safetensors", self.manifest.shards.len() + 1, self.count);
        let left: u64 = parts.iter().map(|p| p.bytes).sum();
        let whole = |p: &Part| self.manifest.states.iter().any(|s| s.name == p.state && s.bytes == p.bytes);
        let names: Vec<String> = parts
            .iter()
            .map(|p| if whole(p) { p.state.clone() } else { format!("{}@{}", p.state, p.offset) })
            .collect();
        let shapes: Vec<Shape> = parts.iter().map(|p| Shape::from([p.bytes as usize / 4])).collect();
        let rows = names.iter().zip(&shapes).zip(&parts);
        let header = header(rows.map(|((name, shape), part)| (name.as_str(), shape, DType::U32, part.bytes)));
        let bytes = header.len() as u64 + left;
        let file = self.staged.act(&name, bytes, |path| {
            let mut file = File::create(path)?;
            file.write_all(&header)?;
            Ok(file)
        })?;
        let mut sum = Context::new(&SHA256);
        sum.update(&header);
        Ok(Open { name, file, sum, bytes, left, parts })
    }

    fn close(&mut self, open: Open) -> Result<()> {
        let Open { name, file, sum, bytes, parts, .. } = open;
        self.staged.act(&name, bytes, |_| file.sync_all())?;
        self.manifest.shards.push(Shard { file: name, bytes, sha256: hex(sum.finish().as_ref()), parts });
        Ok(())
    }

    /// Writes the manifest and gives the folder its name, which is returned.
    ///
    /// # Errors
    /// If bytes are missing, or the disk is full or fails.
    pub fn finish(self) -> Result<PathBuf> {
        if self.file.is_some() || !self.ahead.is_empty() {
            return Err(Error::Graph("fewer bytes than the states have".into()));
        }
        let text = serde_json::to_string_pretty(&self.manifest).expect("plain data") + "\n";
        self.staged.write_text(MANIFEST, &text)?;
        let sum = hex(digest(&SHA256, text.as_bytes()).as_ref());
        self.staged.write_text(MANIFEST_SUM, &format!("{sum}  {MANIFEST}\n"))?;
        self.staged.commit()?;
        Ok(self.path)
    }
}
