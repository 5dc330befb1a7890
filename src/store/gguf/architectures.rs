//! Which of our families GGUF has an architecture for, what each calls the other, and how llama.cpp turns its heads.

use super::Metadata;
use crate::error::{Error, Result};
use crate::model::ModelConfig;

/// A family in GGUF.
pub(super) struct Architecture {
    /// `general.architecture`.
    pub(super) name: &'static str,
    /// Hugging Face's class.
    pub(super) class: &'static str,
    /// Hugging Face's model type, by which a row of `FAMILIES` is found.
    pub(super) model_type: &'static str,
    /// Queries and keys are stored for rotation by pairs of neighbours (llama.cpp's `LLAMA_ROPE_TYPE_NORM`), the same in
    /// all rows of a name.
    interleaved: bool,
}

const fn row(name: &'static str, class: &'static str, model_type: &'static str, interleaved: bool) -> Architecture {
    Architecture { name, class, model_type, interleaved }
}

const ARCHITECTURES: [Architecture; 10] = [
    row("llama", "LlamaForCausalLM", "llama", true),
    // Told apart by keys that the file has: see `config.rs`.
    row("llama", "MistralForCausalLM", "mistral", true),
    row("llama", "MixtralForCausalLM", "mixtral", true),
    row("qwen2", "Qwen2ForCausalLM", "qwen2", false),
    row("qwen3", "Qwen3ForCausalLM", "qwen3", false),
    row("qwen3moe", "Qwen3MoeForCausalLM", "qwen3_moe", false),
    row("phi3", "Phi3ForCausalLM", "phi3", false),
    row("baichuan", "BaichuanForCausalLM", "baichuan", true),
    row("smollm3", "SmolLM3ForCausalLM", "smollm3", true),
    row("olmo2", "Olmo2ForCausalLM", "olmo2", false),
];

/// The first row of an architecture, or of a model type where one is given.
pub(super) fn find(name: &str, model_type: Option<&str>) -> Option<&'static Architecture> {
    ARCHITECTURES.iter().find(|row| row.name == name && model_type.is_none_or(|kind| row.model_type == kind))
}

/// Whether queries and keys of an architecture are stored for interleaved rotation.
pub(super) fn interleaved(name: &str) -> bool {
    find(name, None).is_some_and(|row| row.interleaved)
}

/// The architecture that a file names.
///
/// # Errors
/// If it names none, or one that is not known.
pub(in crate::store) fn architecture(metadata: &Metadata) -> Result<&str> {
    let fail = |why: String| {
        let mut known: Vec<&str> = ARCHITECTURES.iter().map(|row| row.name).collect();
        known.dedup();
        Error::file(metadata.path(), format!("{why}; known: {}", known.join(", ")))
    };
    match metadata.string("general.architecture")? {
        Some(name) if find(name, None).is_some() => Ok(name),
        Some(name) => Err(fail(format!("the architecture {name:?} (general.architecture) is not known"))),
        None => Err(fail("general.architecture is missing: it names no model".into())),
    }
}

/// GGUF's architecture for a row of the table of families.
///
/// # Errors
/// If GGUF has none that computes the same.
pub(in crate::store) fn architecture_of(config: &ModelConfig) -> Result<&'static str> {
    let row = ARCHITECTURES.iter().find(|row| row.model_type == config.family.model_type);
    let none = || Error::Invalid(format!("GGUF has no architecture for {}", config.family.name));
    row.map(|row| row.name).ok_or_else(none)
}
