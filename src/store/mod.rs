//! What lies on disk: files that are whole or absent, safetensors, and Hugging Face model folders.

pub mod atomic;
mod folder;
mod header;
mod hub;
mod safetensors;

pub use folder::{FolderFile, load_config, load_folder, save_folder};
pub use hub::{Hub, HubEvent, HubName, HubOptions, HubReport};
pub use safetensors::{Weights, stage_safetensors, write_safetensors};
