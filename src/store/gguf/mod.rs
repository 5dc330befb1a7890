//! GGUF files, versions 2 and 3: metadata and tensors of a model in one file or in parts.

mod architectures;
mod config;
mod describe;
mod metadata;
mod names;
mod read;
mod scaling;
mod split;
mod tokens;
mod write;

pub(super) use architectures::{architecture, architecture_of};
pub(super) use config::{config, own_keys};
pub(super) use describe::{describe, lost, lost_ends, rope_tensors, set_file_type, set_no_tokens};
pub use metadata::{Array, Kind, Metadata, NO_TOKEN, Value};
pub(super) use names::{is_extra, sources, tensor_name};
pub(super) use read::read;
pub(super) use split::{check_part, check_tensors, part_names, parts};
pub use tokens::{ENDS, passed_over, special_token, token_type};
pub(super) use write::{Row, head, padding};
