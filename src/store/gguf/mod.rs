//! GGUF files, versions 2 and 3: metadata and tensors of a model in one file.

mod config;
mod metadata;
mod names;
mod read;
mod scaling;

pub(super) use config::{architecture, config};
pub use metadata::{Array, Kind, Metadata, Value};
pub(super) use names::{is_extra, sources};
pub(super) use read::read;
