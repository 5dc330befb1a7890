//! What stays on the device between runs, shared by name among the plans that use it.

use crate::error::{Error, Result};
use crate::gpu::{Buffer, Gpu};
use std::collections::BTreeMap;

/// Device buffers by state name: parameters, moments, caches.
#[derive(Debug, Clone)]
pub struct States {
    gpu: Gpu,
    buffers: BTreeMap<String, Buffer>,
}

impl States {
    /// No states yet.
    pub fn new(gpu: &Gpu) -> Self {
        States { gpu: gpu.clone(), buffers: BTreeMap::new() }
    }

    /// The buffer of a state; made, and zeroed, if this is its first use.
    ///
    /// # Errors
    /// If the device has no room, or an earlier plan used the name with another size.
    pub async fn buffer(&mut self, name: &str, bytes: u64) -> Result<Buffer> {
        if let Some(buffer) = self.buffers.get(name) {
            if buffer.bytes() != bytes {
                let had = buffer.bytes();
                return Err(Error::Graph(format!("state {name} has {had} bytes, and this plan wants {bytes}")));
            }
            return Ok(buffer.clone());
        }
        let buffer = self.gpu.storage(name, bytes).await?;
        self.buffers.insert(name.to_string(), buffer.clone());
        Ok(buffer)
    }

    /// The same buffers, those of states `<from>.<page>` also as `<to>.<page>` in place of what had that name.
    pub fn renamed(&self, from: &str, to: &str) -> States {
        let mut renamed = self.clone();
        for (name, buffer) in &self.buffers {
            if let Some(page) = name.strip_prefix(from).filter(|page| page.starts_with('.')) {
                renamed.buffers.insert(format!("{to}{page}"), buffer.clone());
            }
        }
        renamed
    }

    /// Writes bytes (whole words) into a state that a plan, or [`States::buffer`], has made.
    ///
    /// # Errors
    /// If there is no such state, or the range does not fit.
    pub async fn write(&self, name: &str, offset: u64, bytes: &[u8]) -> Result<()> {
        self.gpu.write(self.get(name)?, offset, bytes).await
    }

    /// Reads a whole state.
    ///
    /// # Errors
    /// If there is no such state, or the device failed.
    pub async fn read(&self, name: &str) -> Result<Vec<u8>> {
        self.gpu.read(self.get(name)?.whole()).await
    }

    /// The device that they are on.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Bytes of all states together.
    pub fn bytes(&self) -> u64 {
        self.buffers.values().map(Buffer::bytes).sum()
    }

    /// True if a plan has made this state.
    pub fn contains(&self, name: &str) -> bool {
        self.buffers.contains_key(name)
    }

    /// The buffer of a state that a plan has made.
    ///
    /// # Errors
    /// If there is no such state.
    pub fn get(&self, name: &str) -> Result<&Buffer> {
        self.buffers.get(name).ok_or_else(|| Error::Graph(format!("there is no state {name}")))
    }
}
