//! What lies on disk: files and folders that are whole or absent, safetensors, GGUF, Hugging Face folders, any of them as a
//! checkpoint whose weights stream to the device, and snapshots of training.

mod adapter;
mod adapter_packed;
mod adapted;
pub mod atomic;
mod checkpoint;
mod convert;
mod cut;
mod folder;
mod generation;
pub mod gguf;
mod header;
mod hub;
mod layout;
mod narrow;
mod room;
mod safetensors;
mod shards;
pub mod snapshot;
pub(crate) mod staged_folder;
mod stream;
mod tensors;
mod weights;

pub use adapter::{CONFIG as ADAPTER_CONFIG, PeftAdapter, WEIGHTS as ADAPTER_WEIGHTS, write_adapter};
pub use checkpoint::{Checkpoint, Origin};
pub use convert::Converted;
pub use folder::{FolderFile, TEMPLATES_FOLDER, TOKENIZER_FILES, TRAINED, load_config, load_folder, save_folder};
pub use hub::{Hub, HubEvent, HubName, HubOptions, HubPart, HubReport};
pub use room::check_room;
pub use safetensors::{stage_safetensors, write_safetensors};
pub use shards::SHARD_BYTES;
pub use stream::Loaded;
pub use tensors::{Tensor, Tensors};
