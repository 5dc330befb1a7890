//! Checkpoints of a training run (a [`super::Checkpoint`] is a model): every state of the device that training writes, to
//! the byte, and what the host knows. A folder `step-N` each: safetensors files of bounded size, a manifest that names
//! their parts and SHA-256, and the manifest's own SHA-256. Written under a temporary name, synced, renamed.

mod layout;
mod manifest;
mod read;
mod series;
mod write;
mod written;

pub use layout::{Layout, Placed};
pub use manifest::{MANIFEST, Manifest, Part, Shard, StateSize, cut};
pub use read::Snapshot;
pub use series::Series;
pub use write::{SHARD_BYTES, SnapshotWriter};
pub use written::Written;

#[cfg(test)]
mod tests;
