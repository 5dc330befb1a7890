//! The bytes of a file, a passage at a time: read by position, and not through a map, whose reader would be ended by a signal
//! where somebody cuts the file short.

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::base::read_at;
use crate::error::{Error, Result};

/// Bytes that are read at a time, at least.
const HELD: usize = 1 << 20;

/// A file that is open for reading, and what of it was read last.
#[derive(Debug)]
pub(super) struct Passages {
    file: File,
    path: PathBuf,
    bytes: u64,
    held: Vec<u8>,
    /// Where in the file these begin.
    start: u64,
}

impl Passages {
    pub fn open(path: &Path) -> Result<Passages> {
        let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
        let bytes = file.metadata().map_err(|e| Error::io("read", path, e))?.len();
        Ok(Passages { file, path: path.into(), bytes, held: Vec::new(), start: 0 })
    }

    /// How many bytes the file had when it was opened.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// So many bytes from an offset on, or those up to the end.
    ///
    /// # Errors
    /// A sentence if the file was cut short since it was opened; the system's if it cannot be read.
    pub fn at(&mut self, offset: u64, wanted: usize) -> Result<&[u8]> {
        let left = self.bytes.saturating_sub(offset);
        let wanted = left.min(wanted as u64) as usize;
        let is_held = self.start <= offset && offset + wanted as u64 <= self.start + self.held.len() as u64;
        if !is_held {
            self.held.resize(left.min(wanted.max(HELD) as u64) as usize, 0);
            self.start = offset;
            if let Err(error) = read_at(&self.file, &mut self.held, offset) {
                self.held.clear();
                return Err(match error.kind() {
                    std::io::ErrorKind::UnexpectedEof => changed(&self.path, self.bytes),
                    _ => Error::io("read", &self.path, error),
                });
            }
        }
        let first = (offset - self.start) as usize;
        Ok(&self.held[first..first + wanted])
    }

    /// All of it, in passages.
    pub fn each(&mut self, mut take: impl FnMut(&[u8])) -> Result<()> {
        for offset in (0..self.bytes).step_by(HELD) {
            take(self.at(offset, HELD)?);
        }
        Ok(())
    }
}

/// What is said of a file that has not the bytes that it had.
pub(super) fn changed(path: &Path, bytes: u64) -> Error {
    let now = std::fs::metadata(path).map_or(0, |of| of.len());
    let message =
        format!("changed while it was read: {bytes} bytes before, {now} now; start again when nobody writes it");
    Error::file(path, message)
}
