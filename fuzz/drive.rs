//! What the fuzz targets drive, and tests/fuzz.rs on any toolchain: bytes of strangers go the way of a model that is
//! opened, and nothing may panic, hang or take memory by a file's word.

use danlu::base::Limits;
use danlu::data::Tokenizer;
use danlu::model::ModelConfig;
use danlu::optim::Optimizer;
use danlu::store::{Checkpoint, Tensors};
use danlu::train::train_graph;
use std::path::Path;

/// Reads all that a checkpoint says, but not its weights' values.
fn open(path: &Path) {
    if let Ok(checkpoint) = Checkpoint::open(path) {
        let _ = checkpoint.frozen();
        let _ = Tokenizer::of(&checkpoint);
    }
}

/// A GGUF file: its head, configuration and vocabulary.
pub fn gguf(folder: &Path, bytes: &[u8]) {
    let path = folder.join("model.gguf");
    std::fs::write(&path, bytes).expect("a temporary file");
    open(&path);
}

/// An index of shards, and a shard, parted by a zero byte.
pub fn safetensors_index(folder: &Path, bytes: &[u8]) {
    let (index, shard) = match bytes.iter().position(|b| *b == 0) {
        Some(at) => (&bytes[..at], &bytes[at + 1..]),
        None => (bytes, &bytes[..0]),
    };
    let path = folder.join("model.safetensors.index.json");
    std::fs::write(&path, index).expect("a temporary file");
    std::fs::write(folder.join("a.safetensors"), shard).expect("a temporary file");
    let _ = Tensors::open_safetensors(&path);
    let _ = Tensors::open_safetensors(&folder.join("a.safetensors"));
}

/// A config.json.
pub fn config(_folder: &Path, bytes: &[u8]) {
    if let Ok(config) = ModelConfig::parse(&String::from_utf8_lossy(bytes), Path::new("config.json")) {
        // What is written has to be read again, and to mean the same; numbers may lose their last bit in JSON.
        let again = ModelConfig::parse(&config.to_json(), Path::new("config.json")).expect("our own config.json");
        assert_eq!(config.param_specs(), again.param_specs());
        assert_eq!((config.family, &config.layers), (again.family, &again.layers));
        assert_eq!((config.bos_token_id, &config.eos_token_ids), (again.bos_token_id, &again.eos_token_ids));
        assert_eq!(config.parameters(), again.parameters());
        if config.parameters() < 1 << 20 && config.num_hidden_layers < 8 {
            let graph = train_graph(&config, 1, 8, &Optimizer::default(), &Limits::default());
            graph.expect("a small model can be trained");
        }
        // However long: an answer or a sentence.
        let _ = train_graph(&config, usize::MAX, usize::MAX, &Optimizer::default(), &Limits::default());
    }
}

/// A tokenizer.json; what opens must encode.
pub fn tokenizer(folder: &Path, bytes: &[u8]) {
    let path = folder.join("tokenizer.json");
    std::fs::write(&path, bytes).expect("a temporary file");
    if let Ok(tokenizer) = Tokenizer::open(&path)
        && let Ok(ids) = tokenizer.encode("a b\u{e9}\n  <|x|>")
    {
        let _ = tokenizer.decode(&ids);
    }
}
