//! GGUF files, versions 2 and 3: metadata and tensors of a model in one file or in parts.

mod config;
mod describe;
mod metadata;
mod names;
mod read;
mod scaling;
mod split;
mod write;

pub(super) use config::{architecture, config, own_keys};
pub(super) use describe::{architecture as architecture_of, describe, lost, rope_tensors, set_file_type};
pub use metadata::{Array, Kind, Metadata, Value};
pub(super) use names::{is_extra, sources, tensor_name};
pub(super) use read::read;
pub(super) use split::{check_part, check_tensors, part_names, parts};
pub(super) use write::{Row, head, padding};
