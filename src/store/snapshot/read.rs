//! Reads a training checkpoint, and does not believe a byte of it before its sum was compared.

use super::manifest::{FORMAT, MANIFEST, MANIFEST_SUM, Manifest, Shard};
use crate::base::read_text;
use crate::error::{Error, Result};
use ring::digest::{Context, SHA256, digest};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Longest manifest that is believed.
const MOST_MANIFEST: u64 = 64 << 20;
/// Bytes read at a time.
const PIECE: usize = 16 << 20;

/// A checkpoint on disk whose manifest is whole.
#[derive(Debug, Clone)]
pub struct Snapshot {
    folder: PathBuf,
    manifest: Manifest,
}

impl Snapshot {
    /// Reads and checks the manifest of a checkpoint's folder.
    ///
    /// # Errors
    /// If it is missing, damaged or of another version.
    pub fn open(folder: &Path) -> Result<Snapshot> {
        let (file, sum) = (folder.join(MANIFEST), folder.join(MANIFEST_SUM));
        let text = read_text(&file, MOST_MANIFEST)?;
        let expected = read_text(&sum, MOST_MANIFEST)?;
        let found = hex(digest(&SHA256, text.as_bytes()).as_ref());
        if expected != format!("{found}  {MANIFEST}\n") {
            let said = expected.split_whitespace().next().unwrap_or("nothing");
            let message = format!("is damaged: its SHA-256 is {found}, and {MANIFEST_SUM} says {said}");
            return Err(Error::file(&file, message));
        }
        let manifest: Manifest = serde_json::from_str(&text)
            .map_err(|e| Error::file(&file, format!("is not a checkpoint's manifest of this version ({e})")))?;
        if manifest.format != FORMAT {
            let message = format!("has format {}, and this version reads {FORMAT}", manifest.format);
            return Err(Error::file(&file, message));
        }
        manifest.layout.as_ref().map_or(Ok(()), |layout| layout.check(&file, manifest.parts))?;
        Ok(Snapshot { folder: folder.to_path_buf(), manifest })
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What it says of itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Reads every byte and compares all sizes and sums.
    ///
    /// # Errors
    /// With the first file that is missing, cut short or altered.
    pub fn verify(&self) -> Result<()> {
        let mut buffer = vec![0; PIECE];
        let whole = |shard: &Shard| shard.parts.iter().map(|p| p.bytes).sum::<u64>() < shard.bytes;
        for shard in &self.manifest.shards {
            let path = self.path(shard)?;
            let failed = |e| Error::io("read", &path, e);
            let mut file = File::open(&path).map_err(failed)?;
            let bytes = file.metadata().map_err(failed)?.len();
            if bytes != shard.bytes || !whole(shard) {
                let message =
                    format!("is cut short or grown: it has {bytes} bytes, and its manifest says {}", shard.bytes);
                return Err(Error::file(&path, message));
            }
            let mut sum = Context::new(&SHA256);
            loop {
                let n = file.read(&mut buffer).map_err(failed)?;
                if n == 0 {
                    break;
                }
                sum.update(&buffer[..n]);
            }
            let found = hex(sum.finish().as_ref());
            if found != shard.sha256 {
                let message = format!("is damaged: its SHA-256 is {found}, and its manifest says {}", shard.sha256);
                return Err(Error::file(&path, message));
            }
        }
        Ok(())
    }

    /// Fills `bytes` with those of a state, from one of its bytes on.
    ///
    /// # Errors
    /// If the state has not as many, or they cannot be read.
    pub fn read(&self, state: &str, offset: u64, bytes: &mut [u8]) -> Result<()> {
        let (wanted, mut left) = (offset..offset + bytes.len() as u64, bytes.len());
        for shard in &self.manifest.shards {
            let mut at = shard.bytes - shard.parts.iter().map(|p| p.bytes).sum::<u64>();
            for part in &shard.parts {
                let (start, end) = (wanted.start.max(part.offset), wanted.end.min(part.offset + part.bytes));
                if part.state == state && start < end {
                    let path = self.path(shard)?;
                    let own = &mut bytes[(start - offset) as usize..(end - offset) as usize];
                    left = left.saturating_sub(own.len());
                    File::open(&path)
                        .and_then(|mut file| {
                            file.seek(SeekFrom::Start(at + start - part.offset))?;
                            file.read_exact(own)
                        })
                        .map_err(|e| Error::io("read", &path, e))?;
                }
                at += part.bytes;
            }
        }
        if left > 0 {
            let message = format!("holds no {} bytes of the state {state} from byte {offset} on", bytes.len());
            return Err(Error::file(&self.folder, message));
        }
        Ok(())
    }

    /// Where a file lies; a name that leads elsewhere is none.
    fn path(&self, shard: &Shard) -> Result<PathBuf> {
        if shard.file.is_empty() || shard.file.starts_with('.') || shard.file.contains(['/', '\\', ':']) {
            return Err(Error::file(&self.folder, format!("its manifest names a file {:?}", shard.file)));
        }
        Ok(self.folder.join(&shard.file))
    }
}

/// Bytes in hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
