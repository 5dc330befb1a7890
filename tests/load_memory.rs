//! Loading takes little host memory beside the map, whatever the model's size. Alone in its process, whose memory it
//! watches. `DANLU_MODEL` names a model of your own to be loaded in place of a made one.

mod common;

use danlu::base::{DType, Shape};
use danlu::run::States;
use danlu::store::gguf::Metadata;
use danlu::store::{Checkpoint, write_safetensors};
use pollster::block_on;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Bytes of this process that belong to no file: its own, and what it shares with a driver.
fn own_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let field = |name: &str| -> Option<u64> {
        status.lines().find_map(|l| l.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
    };
    Some((field("RssAnon:")? + field("RssShmem:")?) * 1024)
}

/// A model whose two tables take 98 MB each: a folder of f32, and a GGUF file of f16.
fn model(folder: &Path) -> [PathBuf; 2] {
    let config = r#"{"architectures":["LlamaForCausalLM"],"model_type":"llama","vocab_size":24000,"hidden_size":1024,
        "intermediate_size":64,"num_hidden_layers":1,"num_attention_heads":16,"num_key_value_heads":1,
        "max_position_embeddings":16,"tie_word_embeddings":false}"#;
    std::fs::write(folder.join("config.json"), config).unwrap();
    let parsed = danlu::model::ModelConfig::parse(config, Path::new("config.json")).unwrap();
    let specs = parsed.param_specs();
    let values: Vec<f32> = (0..24_000 * 1024).map(|i| (i % 251) as f32 * 1e-3).collect();
    let rows: Vec<(&str, &Shape, &[f32])> =
        specs.iter().map(|s| (s.name.as_str(), &s.shape, &values[..s.shape.elements()])).collect();
    write_safetensors(&folder.join("model.safetensors"), &rows).unwrap();
    let file = folder.join("model.gguf");
    let source = Checkpoint::open(folder).unwrap();
    source.write_gguf(&file, Some(DType::F16), &Metadata::default()).unwrap();
    [folder.to_path_buf(), file]
}

/// Loads, and gives the most bytes that the process had beyond what it had before.
fn load(path: &Path) -> u64 {
    let gpu = common::gpu();
    let checkpoint = Checkpoint::open(path).unwrap();
    let frozen = checkpoint.frozen().unwrap();
    let mut states = States::new(&gpu);
    let before = own_bytes().unwrap_or(0);
    let done = AtomicBool::new(false);
    let most = std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut most = 0;
            while !done.load(Ordering::Relaxed) {
                most = most.max(own_bytes().unwrap_or(0));
                std::thread::sleep(Duration::from_millis(2));
            }
            most
        });
        let started = std::time::Instant::now();
        block_on(checkpoint.stream(&mut states, &frozen, &mut |_| {})).unwrap();
        let seconds = started.elapsed().as_secs_f64();
        let rate = frozen.bytes() as f64 / seconds / 1e6;
        println!("{}: {} bytes in {seconds:.3} s, {rate:.0} MB/s", path.display(), frozen.bytes());
        done.store(true, Ordering::Relaxed);
        watch.join().unwrap()
    });
    // A driver on the CPU has the weights themselves in our memory.
    let device = if gpu.limits().is_cpu { frozen.bytes() } else { 0 };
    let extra = most.saturating_sub(before + device);
    println!("{} bytes of host memory beside the map", extra);
    extra
}

#[test]
fn weights_are_never_twice_in_host_memory() {
    if own_bytes().is_none() {
        eprintln!("skipped: this system does not say what memory a process has");
        return;
    }
    if let Some(path) = std::env::var_os("DANLU_MODEL") {
        assert!(load(Path::new(&path)) <= 256 << 20);
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for path in model(folder.path()) {
        // A table is 98 MB (49 in f16): one copy of one of them would already be seen.
        assert!(load(&path) <= 80 << 20, "{}", path.display());
    }
}
