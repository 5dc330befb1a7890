//! Compiled pipelines kept on disk between runs, where the driver hands them out (Vulkan). Without them the driver's own
//! cache, if it has one, serves alone.

use super::Gpu;
use crate::error::{Error, Result};
use std::path::{Path, PathBuf};

/// Up to this many bytes are headers, wgpu's and the driver's, without a pipeline behind them: Mesa's lavapipe gives no more.
const EMPTY: usize = 256;

/// Where pipelines are kept.
pub(super) struct Kept {
    pub(super) raw: wgpu::PipelineCache,
    file: PathBuf,
    /// Bytes that were found.
    found: usize,
}

impl Gpu {
    /// From now on pipelines are taken from what [`Gpu::save_pipelines`] has left in `folder`, and new ones are collected
    /// for it. Gives the number of bytes that were found there. What another driver, or a version of it, has left is not
    /// taken, nor what is damaged. Does nothing where the device has no such cache, or at a second call.
    ///
    /// # Errors
    /// [`Error::Io`] if there is a file that cannot be read.
    pub fn keep_pipelines(&self, folder: &Path) -> Result<usize> {
        if !self.device().features().contains(wgpu::Features::PIPELINE_CACHE) || self.kept().get().is_some() {
            return Ok(0);
        }
        let id = self.report().id();
        let file = folder.join(format!("pipelines-{:016x}", hash(format!("{}|{}", id.name, id.backend).as_bytes())));
        let bytes = match std::fs::read(&file) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(Error::io("read", &file, e)),
        };
        let data = unpack(&bytes, &head(self)).filter(|data| !data.is_empty());
        let descriptor = wgpu::PipelineCacheDescriptor { label: Some("pipelines"), data, fallback: true };
        // SAFETY: the bytes are those that this driver, by its name and version, gave to `save_pipelines`: their hash says so.
        let raw = unsafe { self.device().create_pipeline_cache(&descriptor) };
        let found = data.map_or(0, <[u8]>::len);
        // Another thread may have been here first: then its cache serves.
        let _ = self.kept().set(Kept { raw, file, found });
        Ok(found)
    }

    /// Writes what was compiled since [`Gpu::keep_pipelines`] beside what was found, whole or not at all. Does nothing
    /// where the driver gives nothing, or nothing new.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be written.
    pub fn save_pipelines(&self) -> Result<()> {
        let Some(kept) = self.kept().get() else { return Ok(()) };
        let Some(data) = kept.raw.get_data().filter(|d| d.len() > EMPTY && d.len() > kept.found) else { return Ok(()) };
        let folder = kept.file.parent().unwrap_or(Path::new("."));
        let temporary = kept.file.with_extension(std::process::id().to_string());
        let written = std::fs::create_dir_all(folder)
            .and_then(|()| std::fs::write(&temporary, pack(&data, &head(self))))
            .and_then(|()| std::fs::rename(&temporary, &kept.file));
        written.map_err(|e| {
            // Worthless, and whether it can be removed changes nothing.
            let _ = std::fs::remove_file(&temporary);
            Error::io("write", &kept.file, e)
        })
    }
}

/// What a file must begin with to be of this driver.
fn head(gpu: &Gpu) -> String {
    let id = gpu.report().id();
    format!("danlu pipelines 1\n{}\n{}\n{}\n", id.name, id.driver, id.backend)
}

fn pack(data: &[u8], head: &str) -> Vec<u8> {
    [head.as_bytes(), &hash(data).to_le_bytes(), data].concat()
}

/// The data of a file with this head and unharmed.
fn unpack<'a>(file: &'a [u8], head: &str) -> Option<&'a [u8]> {
    let (sum, data) = file.strip_prefix(head.as_bytes())?.split_first_chunk()?;
    (u64::from_le_bytes(*sum) == hash(data)).then_some(data)
}

/// FNV-1a.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_driver_s_unharmed_pipelines_are_taken() {
        let file = pack(b"compiled", "driver 1\n");
        assert_eq!(unpack(&file, "driver 1\n"), Some(&b"compiled"[..]));
        assert_eq!(unpack(&file, "driver 2\n"), None);
        for at in 0..file.len() {
            let mut damaged = file.clone();
            damaged[at] ^= 1;
            assert_eq!(unpack(&damaged, "driver 1\n"), None, "byte {at}");
            assert_eq!(unpack(&file[..at], "driver 1\n"), None, "{at} bytes");
        }
    }
}
