//! The commands of conversion, and what it must not do: invent tokens, take ids that cannot be, leave half of a file behind.

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

/// The commands as a person types them.
#[test]
fn the_commands_convert_inspect_and_refuse() {
    let out = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| {
        let command = std::process::Command::new(env!("CARGO_BIN_EXE_danlu")).current_dir(&out).args(args).output();
        let done = command.unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (done.status.code(), text(done.stdout), text(done.stderr))
    };
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/goldens/gqa");
    let (code, text, notes) = run(&["convert", golden, "m.gguf", "--dtype", "f16"]);
    assert_eq!(code, Some(0), "{notes}");
    assert!(text.starts_with("m.gguf: ") && text.contains(" f16"), "{text}");
    assert!(notes.contains("holds no tokenizer.json; the GGUF file will hold no vocabulary"), "{notes}");
    let (code, _, text) = run(&["convert", golden, "m.gguf"]);
    assert_eq!(code, Some(1));
    assert_eq!(text, "danlu: m.gguf: is there already; give another name, or --force to overwrite it\n");
    let (code, _, text) = run(&["convert", "m.gguf", "m.gguf", "--force"]);
    assert!(code == Some(1) && text.ends_with("m.gguf: is what is read; write to another place\n"), "{text}");
    let (code, _, text) = run(&["convert", golden, "folder", "--dtype", "q8_0"]);
    assert!(code == Some(1) && text.contains("write a .gguf file for quantised weights"), "{text}");
    assert_eq!(run(&["convert", golden, "m.gguf", "--force"]).0, Some(0));
    assert_eq!(run(&["convert", "m.gguf", "folder"]).0, Some(0));

    let (code, text, _) = run(&["inspect", "m.gguf", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(code, Some(0));
    assert_eq!(json["metadata"]["general.architecture"], "llama");
    let tensors = json["tensors"].as_array().unwrap();
    assert_eq!(json["totals"]["tensors"], tensors.len());
    assert_eq!(json["totals"]["bytes"], tensors.iter().map(|t| t["bytes"].as_u64().unwrap()).sum::<u64>());
    let (code, text, _) = run(&["inspect", "folder"]);
    assert!(
        code == Some(0) && text.contains("model.embed_tokens.weight") && text.contains("on the device: "),
        "{text}"
    );
    assert!(text.contains(" parameters, family llama (Llama 1, 2, 3, "), "{text}");
    assert!(text.contains("no vocabulary: there is no tokenizer.json; "), "{text}");
    let (_, text, _) = run(&["inspect", "m.gguf"]);
    assert!(text.contains("no vocabulary: there is no tokenizer.ggml.tokens; "), "{text}");

    // Any file of a model's is somebody's, though no config.json stands beside it.
    for name in ["tokenizer.json", "model.safetensors", "model-00007-of-00009.safetensors"] {
        let folder = out.path().join(format!("with-{name}"));
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("README.md"), "mine").unwrap();
        std::fs::write(folder.join(name), "mine").unwrap();
        let target = folder.file_name().unwrap().to_str().unwrap();
        let (code, _, text) = run(&["convert", golden, target]);
        let message =
            format!("danlu: {target}/{name}: is there already; give another name, or --force to overwrite it\n");
        assert_eq!((code, text), (Some(1), message));
        assert_eq!(std::fs::read(folder.join(name)).unwrap(), b"mine");
        std::fs::remove_file(folder.join(name)).unwrap();
        assert_eq!(run(&["convert", golden, target]).0, Some(0), "a README.md is in nobody's way");
    }
    // With --force nothing of the model that was there is read along with the new one.
    let folder = out.path().join("over");
    std::fs::create_dir_all(folder.join("additional_chat_templates")).unwrap();
    let stale = [
        "chat_template.jinja",
        "additional_chat_templates/tools.jinja",
        "added_tokens.json",
        "adapter_config.json",
        "adapter_model.safetensors",
        "trained.json",
        "config.json",
    ];
    stale.iter().chain(&["README.md"]).for_each(|name| std::fs::write(folder.join(name), "mine").unwrap());
    assert_eq!(run(&["convert", golden, "over", "--force"]).0, Some(0));
    let is_there = |name: &&str| std::fs::read(folder.join(name)).is_ok_and(|bytes| bytes == b"mine");
    assert_eq!(stale.iter().filter(|name| is_there(name)).count(), 0);
    assert!(is_there(&"README.md"));
    assert_eq!(run(&["inspect", "over"]).0, Some(0));
    let (code, _, text) = run(&["inspect", "folder/model.safetensors"]);
    assert!(
        code == Some(1) && text.contains("holds weights alone; give its folder, folder, which says what"),
        "{text}"
    );

    // Targets: parents are made, and what is there of another kind is said.
    assert_eq!(run(&["convert", golden, "new/parents/m.gguf"]).0, Some(0));
    let (code, text, _) = run(&["convert", golden, "new/parents/folder", "--shard-size", "20KB"]);
    assert!(code == Some(0) && text.contains(" in 5 files, tensors: "), "{text}");
    let (_, text, _) = run(&["inspect", "new/parents/folder"]);
    assert!(text.contains("in 5 files\n  model-00001-of-00005.safetensors: "), "{text}");
    std::fs::write(out.path().join("file"), "x").unwrap();
    std::fs::create_dir(out.path().join("folder.gguf")).unwrap();
    std::fs::write(out.path().join("empty.gguf"), "").unwrap();
    for (args, message) in [
        (
            &["convert", golden, "file", "--force"][..],
            "file: is a file, where a folder is to be written; give another name, or one that ends with .gguf",
        ),
        (
            &["convert", golden, "folder.gguf", "--force"],
            "folder.gguf: is a folder, where a file is to be written; give another name",
        ),
        (
            &["convert", golden, "x.gguf", "--shard-size", "1GB"],
            "--shard-size is for folders: a GGUF file is written whole",
        ),
        (&["inspect", "empty.gguf"], "empty.gguf: is empty, it has 0 bytes: nothing of it has arrived; fetch it again"),
        #[cfg(unix)]
        (
            &["inspect", "/dev/null"],
            "/dev/null: is no regular file but a device, a pipe or a folder; give a file of weights",
        ),
    ] {
        let (code, _, text) = run(args);
        assert_eq!((code, text), (Some(1), format!("danlu: {message}\n")), "{args:?}");
    }
    let (code, _, text) = run(&["inspect", "nothing"]);
    assert!(code == Some(1) && text.contains("nothing: no such file or folder, and no name on a hub"), "{text}");
}
