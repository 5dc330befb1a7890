//! Files of strangers: cut off, with flipped bytes, with numbers that lie. Whatever is opened ends in a sentence or in a
//! right answer, in little time, and never in a panic.

use danlu::base::DType;
use danlu::data::Tokenizer;
use danlu::store::gguf::{Array, Metadata, Value};
use danlu::store::{Checkpoint, Tensors};
use proptest::prelude::*;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const CONFIG: &str = r#"{"architectures":["LlamaForCausalLM"],"model_type":"llama","vocab_size":8,"hidden_size":8,
"intermediate_size":12,"num_hidden_layers":1,"num_attention_heads":2,"num_key_value_heads":1,"max_position_embeddings":16,
"tie_word_embeddings":true,"bos_token_id":1,"eos_token_id":2,"torch_dtype":"float32"}"#;

/// A whole little model as a folder, and the same as a GGUF file.
fn model() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let rows: [(&str, &[usize]); 11] = [
        ("model.embed_tokens.weight", &[8, 8]),
        ("model.layers.0.input_layernorm.weight", &[8]),
        ("model.layers.0.mlp.down_proj.weight", &[8, 12]),
        ("model.layers.0.mlp.gate_proj.weight", &[12, 8]),
        ("model.layers.0.mlp.up_proj.weight", &[12, 8]),
        ("model.layers.0.post_attention_layernorm.weight", &[8]),
        ("model.layers.0.self_attn.k_proj.weight", &[4, 8]),
        ("model.layers.0.self_attn.o_proj.weight", &[8, 8]),
        ("model.layers.0.self_attn.q_proj.weight", &[8, 8]),
        ("model.layers.0.self_attn.v_proj.weight", &[4, 8]),
        ("model.norm.weight", &[8]),
    ];
    let values: Vec<f32> = (0..96).map(|i| i as f32 * 0.01 - 0.3).collect();
    let shapes: Vec<danlu::base::Shape> = rows.iter().map(|(_, dims)| (*dims).into()).collect();
    let tensors: Vec<_> =
        rows.iter().zip(&shapes).map(|((name, _), shape)| (*name, shape, &values[..shape.elements()])).collect();
    danlu::store::write_safetensors(&folder.path().join("model.safetensors"), &tensors).unwrap();
    std::fs::write(folder.path().join("config.json"), CONFIG).unwrap();
    let file = folder.path().join("model.gguf");
    let mut vocabulary = Metadata::new(&file);
    let tokens = ["<unk>", "<s>", "</s>", "a", "b", "c", "d", "e"];
    vocabulary.set("tokenizer.ggml.model", Value::String("llama".into()));
    vocabulary.set("tokenizer.ggml.tokens", Value::Array(Array::strings(tokens.into_iter())));
    vocabulary.set("tokenizer.ggml.token_type", Value::Array(Array::i32s(&[2, 3, 3, 1, 1, 1, 1, 1])));
    Checkpoint::open(folder.path()).unwrap().write_gguf(&file, Some(DType::F16), &vocabulary).unwrap();
    (folder, file)
}

/// Opens it and looks at every byte of every tensor; an error has to say which file.
fn look(path: &Path) -> Result<usize, String> {
    let look = || -> danlu::error::Result<usize> {
        let checkpoint = Checkpoint::open(path)?;
        checkpoint.frozen()?;
        Ok(checkpoint.tensors().iter().map(|t| t.bytes.iter().map(|&b| usize::from(b)).sum::<usize>()).sum())
    };
    look().map_err(|error| {
        let text = error.to_string();
        let folder = path.parent().unwrap().to_str().unwrap();
        assert!(text.contains(folder), "no file is named: {text}");
        text
    })
}

#[test]
fn a_gguf_file_cut_at_any_byte_is_refused() {
    let (_folder, file) = model();
    let whole = std::fs::read(&file).unwrap();
    let sum = look(&file).unwrap();
    let last = Tensors::open_gguf(&file).unwrap().0.iter().map(|t| t.offset + t.bytes.len()).max().unwrap();
    for length in 0..whole.len() {
        std::fs::write(&file, &whole[..length]).unwrap();
        match look(&file) {
            Ok(same) => assert!(length >= last && same == sum, "{length} bytes of {} were taken", whole.len()),
            Err(text) => assert!(text.ends_with("fetch it again") || length < 4, "{length}: {text}"),
        }
    }
}

#[test]
fn every_lie_of_a_gguf_file_has_its_sentence() {
    let (_folder, file) = model();
    let whole = std::fs::read(&file).unwrap();
    let find = |text: &str| whole.windows(text.len()).position(|w| w == text.as_bytes()).unwrap();
    // The entry of a tensor: name, rank, dims, type, offset.
    let entry = find("blk.0.attn_q.weight") + "blk.0.attn_q.weight".len();
    let key = find("llama.block_count");
    let base = find("llama.rope.freq_base") + "llama.rope.freq_base".len();
    let rows: [(usize, &[u8], &str); 17] = [
        (0, b"GGML", "is not a GGUF file: it does not begin with GGUF"),
        (4, &[1, 0, 0, 0], "is GGUF version 1; versions 2 and 3 can be read: convert it anew"),
        (4, &[0, 0, 0, 0], "is GGUF version 0; versions 2 and 3 can be read: convert it anew"),
        (4, &[0, 0, 0, 3], "is a big-endian GGUF file; only little-endian ones can be read"),
        (8, &[0xff; 8], "tensors; no real model has more than"),
        (16, &[0xff; 8], "keys; no real model has more than"),
        (key - 8, &[0xff; 8], "18446744073709551615 bytes are wanted and"),
        (key + 17, &[99, 0, 0, 0], "there is no type of value 99"),
        (key, b"llama.head__count", "llama.block_count is missing; convert the model anew"),
        (key + 21, &[0; 4], "\"llama.block_count\" (num_hidden_layers) is 0; it must be a whole number from 1"),
        (base + 4, &[0, 0, 0xc0, 0x7f], "the key llama.rope.freq_base is NaN; it must be a finite number"),
        (entry, &[5, 0, 0, 0], "tensor blk.0.attn_q.weight, at byte"),
        (entry + 4, &[0xff; 8], "elements of f16 are none, too many, or no whole blocks a row"),
        (entry + 4, &[0; 8], "elements of f16 are none, too many, or no whole blocks a row"),
        (entry + 20, &[23, 0, 0, 0], "tensor blk.0.attn_q.weight is of type IQ4_XS; these can be read: F32, F16, Q4_0"),
        (entry + 24, &[0, 0, 0, 0, 0, 0, 0, 0xf0], "reach beyond the file's"),
        (entry + 24, &[0; 8], "overlap at byte"),
    ];
    for (at, bytes, message) in rows {
        let mut lie = whole.clone();
        lie[at..at + bytes.len()].copy_from_slice(bytes);
        std::fs::write(&file, lie).unwrap();
        let text = look(&file).expect_err(message);
        assert!(text.contains(message), "{text}\nbut should say: {message}");
    }
    let mut twice = whole.clone();
    let other = find("blk.0.attn_k.weight");
    twice[other..other + 19].copy_from_slice(b"blk.0.attn_q.weight");
    std::fs::write(&file, twice).unwrap();
    assert!(look(&file).unwrap_err().contains("tensor blk.0.attn_q.weight stands there twice"));
}

/// Texts that the file has room for (as holes, so that the test takes none) are refused before they are copied.
#[test]
fn long_texts_of_a_gguf_file_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("m.gguf");
    let key =
        |name: u8, length: u64| [&1u64.to_le_bytes()[..], &[name], &8u32.to_le_bytes(), &length.to_le_bytes()].concat();
    for (length, message) in [
        (
            140 << 20,
            "a text is 146800640 bytes long, and none is longer than 134217728; the file is damaged: fetch it again",
        ),
        (100 << 20, "its metadata are longer than 134217728 bytes; no real model's are"),
    ] {
        let head = [&b"GGUF\x03\0\0\0"[..], &0u64.to_le_bytes(), &2u64.to_le_bytes(), &key(b'a', length)].concat();
        std::fs::write(&file, &head).unwrap();
        let mut open = std::fs::OpenOptions::new().append(true).open(&file).unwrap();
        open.set_len(head.len() as u64 + length).unwrap();
        std::io::Write::write_all(&mut open, &key(b'b', length)).unwrap();
        open.set_len(head.len() as u64 + 2 * length + 100).unwrap();
        let text = look(&file).expect_err(message);
        assert!(text.ends_with(message), "{text}\nbut should say: {message}");
    }
}

/// A model whose file names tokens that are not there still reads and writes; lists of nothing have their own words.
#[test]
fn wrong_ids_and_empty_lists_of_a_gguf_file() {
    let (_folder, file) = model();
    let folder = tempfile::tempdir().unwrap();
    let other = folder.path().join("other.gguf");
    let write = |key: &str, value: Value| {
        let mut more = Metadata::new(&other);
        more.set(key, value);
        Checkpoint::open(&file).unwrap().write_gguf(&other, None, &more).map(drop)
    };
    write("tokenizer.ggml.unknown_token_id", Value::u32(u32::MAX - 1)).unwrap();
    let checkpoint = Checkpoint::open(&other).unwrap();
    let tokenizer = Tokenizer::of(&checkpoint).unwrap();
    assert!(!tokenizer.encode("abc").unwrap().is_empty());
    let key = "tokenizer.ggml.unknown_token_id is 4294967294, and there are only 8 tokens; token 0 is taken";
    assert_eq!(tokenizer.notes(), [format!("{}: {key}", other.display())]);
    write("tokenizer.ggml.eos_token_id", Value::u32(8)).unwrap();
    assert_eq!(Checkpoint::open(&other).unwrap().config().eos_token_ids, [2]);
    let error = write("llama.attention.head_count_kv", Value::Array(Array::i32s(&[]))).unwrap_err().to_string();
    assert!(error.ends_with("llama.attention.head_count_kv is an empty list; convert the model anew"), "{error}");
}

#[test]
fn long_headers_are_refused_before_they_are_read() {
    let (folder, _) = model();
    let spaces = " ".repeat(100 << 20);
    let write = |name: &str, text: &[u8]| std::fs::write(folder.path().join(name), text).unwrap();
    let started = std::time::Instant::now();
    write("config.json", spaces.as_bytes());
    assert!(look(folder.path()).unwrap_err().contains("none is longer than"));
    write("config.json", CONFIG.as_bytes());
    write("generation_config.json", spaces.as_bytes());
    assert!(look(folder.path()).unwrap_err().contains("none is longer than"));
    std::fs::remove_file(folder.path().join("generation_config.json")).unwrap();
    let header = [&(spaces.len() as u64).to_le_bytes()[..], spaces.as_bytes()].concat();
    write("model.safetensors", &header);
    assert!(look(folder.path()).unwrap_err().contains("is not a whole safetensors file (its header should have"));
    std::fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    write("model.safetensors.index.json", spaces.as_bytes());
    assert!(look(folder.path()).unwrap_err().contains("none is longer than"));
    assert!(started.elapsed().as_secs() < 60, "{:?}", started.elapsed());
}

/// What lies beside a tokenizer.json is a stranger's, too; only a file that is not there is absent.
#[test]
fn files_beside_a_tokenizer_are_bounded_and_not_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in Tokenizer::train(["a b"].iter(), 300).unwrap().files(8).unwrap() {
        std::fs::write(folder.path().join(name), content).unwrap();
    }
    std::fs::remove_file(folder.path().join("tokenizer_config.json")).unwrap();
    std::fs::create_dir(folder.path().join("additional_chat_templates")).unwrap();
    let open = || Tokenizer::open(folder.path()).map(|t| t.chat_template(false).map(String::from));
    assert_eq!(open().unwrap(), None);
    for (name, most) in [
        ("tokenizer_config.json", 16 << 20),
        ("chat_template.json", 16 << 20),
        ("chat_template.jinja", 1 << 20),
        ("additional_chat_templates/default.jinja", 1 << 20),
    ] {
        let path = folder.path().join(name);
        let refused = |message: &str| {
            let text = open().expect_err(name).to_string();
            assert!(text.contains(path.to_str().unwrap()) && text.contains(message), "{text}\nshould say: {message}");
        };
        std::fs::write(&path, " ".repeat(most + 1)).unwrap();
        refused("is too long: none is longer than");
        std::fs::write(&path, b"\xff").unwrap();
        refused("is not UTF-8 text");
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        refused("cannot read");
        std::fs::remove_dir(&path).unwrap();
        if cfg!(unix) && std::process::Command::new("mkfifo").arg(&path).status().is_ok_and(|s| s.success()) {
            refused("is no plain file but a device or a pipe");
            std::fs::remove_file(&path).unwrap();
        }
    }
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("chat_template.json", r#"{"chat_template": "old"}"#);
    assert_eq!(open().unwrap().as_deref(), Some("old"));
    write("tokenizer_config.json", r#"{"chat_template": "new"}"#);
    assert_eq!(open().unwrap().as_deref(), Some("new"));
    (0..65).for_each(|i| write(&format!("additional_chat_templates/{i}.jinja"), "x"));
    assert!(open().unwrap_err().to_string().ends_with("holds more than 64 chat templates; no real model does"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_damage_to_a_file_is_a_panic(
        which in 0..3usize,
        // Most flips go where numbers are; the weights themselves may be anything.
        flips in prop::collection::vec((0..3000usize, any::<u8>()), 0..6),
        length in 0..12_000usize,
    ) {
        let (folder, file) = model();
        let (path, opened) = match which {
            0 => (file.clone(), file),
            1 => (folder.path().join("model.safetensors"), folder.path().to_path_buf()),
            _ => (folder.path().join("config.json"), folder.path().to_path_buf()),
        };
        let mut bytes = std::fs::read(&path).unwrap();
        for (at, byte) in flips {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        bytes.truncate(length);
        std::fs::write(&path, bytes).unwrap();
        let _ = look(&opened);
    }

    #[test]
    fn an_index_of_anything_is_no_panic(text in "\\PC{0,200}", name in "[a-z./\\\\]{0,12}") {
        let (folder, _) = model();
        std::fs::remove_file(folder.path().join("model.safetensors")).unwrap();
        let index = folder.path().join("model.safetensors.index.json");
        for content in [text, serde_json::json!({"weight_map": {"a": name}}).to_string()] {
            std::fs::write(&index, content).unwrap();
            prop_assert!(look(folder.path()).is_err());
        }
    }
}
