//! The LLaMA family: the table of its members, their configurations as Hugging Face writes them, the presets kept in
//! `models/`, and the model as a graph.

mod config;
mod family;
mod keys;
mod llama;
mod parse;
mod parse_rope;
mod preference;
mod presets;
mod rope;
mod sequence;
mod source;
mod specs;
mod split;
mod stages;
mod write;

pub use config::{Biases, Experts, LayerConfig, MOST_PARAMETERS, ModelConfig};
pub use family::{BiasRule, Defaults, ExpertRule, FAMILIES, Family, Norms, Packed, QkNorm, WindowRule};
pub use llama::{Llama, Said};
pub use parse::{MOST_CONFIG, config_text};
pub use preference::{DpoConfig, PairInputs, Preference, PreferenceLoss, preference};
pub use presets::{DEFAULT_PRESET, PRESETS, find_config};
pub use rope::{Frequencies, RopeConfig, RopeScaling, rotary_share};
pub use source::Source;
pub use specs::{EMBEDDING, OUTPUT};
pub use split::Share;
pub use stages::Stages;
