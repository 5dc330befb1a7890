//! The fuzz targets of fuzz/, driven for a few seconds on any toolchain: whole files with random damage, and their parts
//! shuffled. `DANLU_FUZZ_SECONDS` makes it longer.

#[path = "../fuzz/drive.rs"]
mod drive;

use danlu::base::Rng;
use std::path::Path;
use std::time::{Duration, Instant};

/// What is damaged: a whole file, by target.
const CONFIG: &[u8] = br#"{"architectures":["LlamaForCausalLM"],"model_type":"llama","vocab_size":8,"hidden_size":8,
"intermediate_size":12,"num_hidden_layers":1,"num_attention_heads":2,"num_key_value_heads":1,"head_dim":4,
"rope_scaling":{"rope_type":"yarn","factor":4.0,"original_max_position_embeddings":64,"beta_fast":32,"beta_slow":1},
"rope_theta":1e4,"sliding_window":16,"tie_word_embeddings":true,"bos_token_id":1,"eos_token_id":[2,3]}"#;
const INDEX: &[u8] = b"{\"metadata\":{\"total_size\":8},\"weight_map\":{\"x\":\"a.safetensors\"}}\0\
    \x3d\0\0\0\0\0\0\0{\"x\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}     \0\0\0\0\0\0\0\0";
const TOKENIZER: &[u8] =
    br#"{"version":"1.0","added_tokens":[{"id":3,"content":"<s>","single_word":false,"lstrip":false,
"rstrip":false,"normalized":false,"special":true}],"normalizer":{"type":"NFC"},"pre_tokenizer":{"type":"ByteLevel",
"add_prefix_space":false,"trim_offsets":true,"use_regex":true},"post_processor":null,"decoder":{"type":"ByteLevel"},
"model":{"type":"BPE","dropout":null,"unk_token":null,"fuse_unk":false,"byte_fallback":false,"vocab":{"a":0,"b":1,
"ab":2},"merges":["a b"]}}"#;

/// A little GGUF file: a vocabulary, keys of every type, two tensors.
fn gguf() -> Vec<u8> {
    let text = |t: &str| [&(t.len() as u64).to_le_bytes()[..], t.as_bytes()].concat();
    let key = |name: &str, kind: u32, value: &[u8]| [text(name), kind.to_le_bytes().to_vec(), value.to_vec()].concat();
    let array = |kind: u32, count: u64, values: &[u8]| [&kind.to_le_bytes()[..], &count.to_le_bytes(), values].concat();
    let keys = [
        key("general.architecture", 8, &text("llama")),
        key("llama.block_count", 4, &1u32.to_le_bytes()),
        key("llama.attention.head_count", 4, &2u32.to_le_bytes()),
        key("llama.feed_forward_length", 10, &12u64.to_le_bytes()),
        key("llama.rope.freq_base", 6, &1e4f32.to_le_bytes()),
        key("tokenizer.ggml.model", 8, &text("llama")),
        key("tokenizer.ggml.tokens", 9, &array(8, 3, &[text("<unk>"), text("a"), text("b")].concat())),
        key("tokenizer.ggml.scores", 9, &array(6, 3, &[0; 12])),
        key("nested", 9, &array(9, 1, &array(1, 2, &[1, 2]))),
    ];
    let tensor = |name: &str, dims: &[u64], offset: u64| {
        let dims: Vec<u8> = dims.iter().flat_map(|d| d.to_le_bytes()).collect();
        let rank = (dims.len() as u32 / 8).to_le_bytes();
        [text(name), rank.to_vec(), dims, 0u32.to_le_bytes().to_vec(), offset.to_le_bytes().to_vec()].concat()
    };
    let tensors = [tensor("token_embd.weight", &[8, 3], 0), tensor("output_norm.weight", &[8], 96)];
    let mut file = [&b"GGUF"[..], &3u32.to_le_bytes(), &(tensors.len() as u64).to_le_bytes()].concat();
    file.extend((keys.len() as u64).to_le_bytes());
    file.extend(keys.concat());
    file.extend(tensors.concat());
    file.resize(file.len().next_multiple_of(32) + 128, 0);
    file
}

/// Damage: bytes set, bits flipped, numbers made extreme, parts cut out, doubled, or put elsewhere.
fn damage(whole: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut bytes = whole.to_vec();
    for _ in 0..1 + rng.below(4) {
        if bytes.is_empty() {
            break;
        }
        let at = rng.below(bytes.len());
        let end = (at + 1 + rng.below(24)).min(bytes.len());
        match rng.below(7) {
            0 => bytes[at] = rng.next_u64() as u8,
            1 => bytes[at] ^= 1 << rng.below(8),
            2 => bytes[at..end.min(at + 8)].fill(0xff),
            3 => drop(bytes.drain(at..end)),
            4 => {
                let part = bytes[at..end].to_vec();
                let to = rng.below(bytes.len());
                drop(bytes.splice(to..to, part));
            }
            5 => bytes.truncate(at),
            _ => bytes[at] = b"\"{}[]:,0-9e.\\"[rng.below(13)],
        }
    }
    bytes
}

fn run(seed: &[u8], target: fn(&Path, &[u8])) {
    let seconds = std::env::var("DANLU_FUZZ_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(3.0);
    let folder = tempfile::tempdir().unwrap();
    let (started, mut rounds) = (Instant::now(), 0u64);
    target(folder.path(), seed);
    while started.elapsed() < Duration::from_secs_f64(seconds) {
        let input = damage(seed, &mut Rng::new(rounds, 0));
        let (now, path) = (Instant::now(), folder.path());
        let done = std::panic::catch_unwind(|| target(path, &input));
        assert!(done.is_ok(), "round {rounds} panics: {:?}", String::from_utf8_lossy(&input));
        let took = now.elapsed();
        assert!(took < Duration::from_secs(10), "round {rounds} took {took:?}");
        rounds += 1;
    }
    assert!(rounds > 20, "{rounds} rounds only");
    println!("{rounds} rounds");
}

#[test]
fn gguf_files() {
    run(&gguf(), drive::gguf);
}

#[test]
fn safetensors_indices() {
    run(INDEX, drive::safetensors_index);
}

#[test]
fn configurations() {
    run(CONFIG, drive::config);
}

#[test]
fn tokenizers() {
    run(TOKENIZER, drive::tokenizer);
}
