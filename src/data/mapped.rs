//! The bytes of a file: small ones read, large ones memory-mapped.

use std::fs::File;
use std::io::Read;
use std::ops::Deref;
use std::path::Path;

use crate::error::{Error, Result};

/// Above this many bytes a map is cheaper than a copy.
const MAP_FROM: u64 = 1 << 20;

/// A file's bytes.
#[derive(Debug)]
pub(super) enum FileBytes {
    Read(Vec<u8>),
    Mapped(memmap2::Mmap),
}

impl FileBytes {
    /// Opens a file for reading.
    pub fn open(path: &Path) -> Result<FileBytes> {
        let mut file = File::open(path).map_err(|e| Error::io("open", path, e))?;
        let len = file.metadata().map_err(|e| Error::io("read", path, e))?.len();
        if len >= MAP_FROM {
            // SAFETY: the map is only read, as bytes, and every use checks what it reads. A file that somebody else
            // cuts short while it is mapped ends the process, as with every program that maps files.
            let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|e| Error::io("map", path, e))?;
            return Ok(FileBytes::Mapped(map));
        }
        let mut bytes = Vec::with_capacity(len as usize);
        file.read_to_end(&mut bytes).map_err(|e| Error::io("read", path, e))?;
        Ok(FileBytes::Read(bytes))
    }
}

impl Deref for FileBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            FileBytes::Read(bytes) => bytes,
            FileBytes::Mapped(map) => map,
        }
    }
}
