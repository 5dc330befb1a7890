//! The smallest model that trains, and runs of it.

use danlu::compile::First;
use danlu::gpu::Gpu;
use danlu::train::{Event, Prepared, Recipe, Trainer, prepare};
use pollster::block_on;
use std::path::Path;

const CONFIG: &str = r#"{"model_type": "llama", "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}"#;

/// A recipe for it, on a few stories, whose run is `folder/name`.
pub fn recipe(folder: &Path, name: &str) -> Recipe {
    let config = folder.join("config.json");
    std::fs::write(&config, CONFIG).unwrap();
    Recipe {
        config: config.to_str().unwrap().into(),
        stories: 80,
        batch: 2,
        val_sequences: 2,
        out: folder.join(name),
        ..Recipe::default()
    }
}

/// A trainer of a recipe, and what it works on.
pub fn begin(gpu: &Gpu, recipe: &Recipe, folder: &Path) -> (Prepared, Trainer) {
    let prepared = prepare(recipe, &folder.join("cache"), &mut |_: &Event| {}).unwrap();
    let (trainer, ..) = block_on(Trainer::new(gpu, recipe, &prepared, &mut First)).unwrap();
    (prepared, trainer)
}
