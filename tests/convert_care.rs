//! What a conversion must not do: invent tokens, take ids that cannot be, leave half of a file behind.

use danlu::data::Tokenizer;
use danlu::store::{Checkpoint, Tensors};
use std::path::Path;

/// Nothing begins or ends the texts of such a model, whatever its tokens are called: neither does in the file.
#[test]
fn tokens_that_a_model_has_not_are_not_invented() {
    let out = tempfile::tempdir().unwrap();
    let tiny = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/models/tiny"));
    let read = |name: &str| -> serde_json::Value {
        serde_json::from_str(&std::fs::read_to_string(tiny.join(name)).unwrap()).unwrap()
    };
    let (mut config, mut tokenizer) = (read("config.json"), read("tokenizer.json"));
    (config["bos_token_id"], config["eos_token_id"]) = (serde_json::Value::Null, serde_json::Value::Null);
    tokenizer["post_processor"] = serde_json::Value::Null;
    std::fs::copy(tiny.join("model.safetensors"), out.path().join("model.safetensors")).unwrap();
    std::fs::write(out.path().join("config.json"), config.to_string()).unwrap();
    let write = |tokenizer: &serde_json::Value| {
        std::fs::write(out.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
        let source = Checkpoint::open(out.path()).unwrap();
        let vocabulary = Tokenizer::open(out.path()).unwrap().gguf_keys(source.config().vocab_size)?;
        source.write_gguf(&out.path().join("m.gguf"), None, &vocabulary).map(|written| written.lost)
    };
    assert_eq!(write(&tokenizer).unwrap(), [""; 0]);
    let written = Checkpoint::open(&out.path().join("m.gguf")).unwrap();
    assert_eq!((written.config().bos_token_id, written.config().eos_token_ids.as_slice()), (None, &[][..]));
    Tokenizer::of(&written).unwrap();
    // Of several tokens that end a text, those that the file has no key for are said.
    config["eos_token_id"] = serde_json::json!([0, 5]);
    std::fs::write(out.path().join("config.json"), config.to_string()).unwrap();
    let said = "GGUF has no room for all tokens that end a text: without 5, a text goes on behind it";
    assert_eq!(write(&tokenizer).unwrap(), [said]);
    tokenizer["model"]["merges"] = serde_json::json!([]);
    let refused = write(&tokenizer).unwrap_err().to_string();
    assert!(refused.ends_with("it has no merges, without which nobody reads a byte-level vocabulary"), "{refused}");
}

/// generation_config.json goes before config.json as far as it can be.
#[test]
fn ids_that_cannot_be_are_ignored_with_a_word() {
    let out = tempfile::tempdir().unwrap();
    let golden = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/models/tiny"));
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(golden.join(name), out.path().join(name)).unwrap();
    }
    let generation = r#"{"bos_token_id": 3, "eos_token_id": [2, 99999]}"#;
    std::fs::write(out.path().join("generation_config.json"), generation).unwrap();
    let read = Checkpoint::open(out.path()).unwrap();
    assert_eq!((read.config().bos_token_id, read.config().eos_token_ids.as_slice()), (Some(3), &[0][..]));
    let vocabulary = read.config().vocab_size;
    let said = format!("eos_token_id is [2,99999], and token ids are whole numbers below {vocabulary}");
    assert_eq!(read.ignored(), [said]);
}

/// Ctrl-C in the middle of a conversion: nothing of it stays.
#[test]
#[cfg(unix)]
fn ctrl_c_leaves_nothing_half_written() {
    use std::process::{Command, Stdio};
    let out = tempfile::tempdir().unwrap();
    // Of nothing but holes: 256 MB that take no room until they are copied.
    let (config, from) =
        (Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/goldens/gqa")), out.path().join("from"));
    std::fs::create_dir(&from).unwrap();
    let mut json: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(config.join("config.json")).unwrap()).unwrap();
    let width = json["hidden_size"].as_u64().unwrap();
    let rows = (256 << 20) / (4 * width);
    (json["vocab_size"], json["tie_word_embeddings"]) = (rows.into(), true.into());
    std::fs::write(from.join("config.json"), json.to_string()).unwrap();
    let (mut at, mut header) = (0, serde_json::Map::new());
    for tensor in Tensors::open_safetensors(config).unwrap().iter().filter(|t| t.name != "lm_head.weight") {
        let mut shape: Vec<u64> = tensor.shape.dims().iter().map(|&d| d as u64).collect();
        if tensor.name == "model.embed_tokens.weight" {
            shape[0] = rows;
        }
        let bytes = 4 * shape.iter().product::<u64>();
        let row = serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [at, at + bytes]});
        header.insert(tensor.name.into(), row);
        at += bytes;
    }
    let text = serde_json::Value::Object(header).to_string();
    let file = from.join("model.safetensors");
    std::fs::write(&file, [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()).unwrap();
    std::fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(8 + text.len() as u64 + at).unwrap();
    let mut run = Command::new(env!("CARGO_BIN_EXE_danlu"))
        .args(["convert", "from", "to", "--dtype", "f32"])
        .current_dir(&out)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let begun = || {
        let names = std::fs::read_dir(out.path().join("to")).into_iter().flatten().flatten();
        names.into_iter().any(|e| e.file_name().to_string_lossy().starts_with("model.safetensors."))
    };
    while !begun() {
        assert_eq!(run.try_wait().unwrap(), None, "it ended");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    assert!(Command::new("kill").args(["-INT", &run.id().to_string()]).status().unwrap().success());
    let done = run.wait_with_output().unwrap();
    let said = String::from_utf8(done.stderr).unwrap();
    assert_eq!(done.status.code(), Some(130), "{said}");
    assert_eq!(said, "danlu: stopped: nothing was written to to\n");
    assert!(!out.path().join("to").exists());
}
