//! The LLaMA family: its configuration as Hugging Face writes it, the presets kept in `models/`, and the model as a graph.

mod config;
mod llama;
mod parse;
mod presets;
mod source;

pub use config::ModelConfig;
pub use llama::Llama;
pub use presets::{DEFAULT_PRESET, PRESETS, find_config};
pub use source::Source;
