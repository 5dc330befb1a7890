//! Conversions: what goes from one format to another and back is the same to the byte; what is written is what other
//! converters write; tokenizers keep their ids.

#[path = "common/shared.rs"]
mod shared;

use danlu::base::DType;
use danlu::data::{Tokenizer, Vocabulary};
use danlu::store::gguf::Metadata;
use danlu::store::{Checkpoint, SHARD_BYTES, Tensors, gguf};
use serde_json::json;
use shared::shared;
use std::collections::BTreeMap;
use std::path::Path;

/// dtype, shape and bytes of every tensor.
fn content(tensors: &Tensors) -> BTreeMap<String, (String, Vec<usize>, Vec<u8>)> {
    let row = |t: danlu::store::Tensor| (t.dtype_name().to_string(), t.shape.dims().to_vec(), t.bytes.to_vec());
    tensors.iter().map(|t| (t.name.to_string(), row(t))).collect()
}

fn folder_content(path: &Path) -> BTreeMap<String, (String, Vec<usize>, Vec<u8>)> {
    content(&Tensors::open_safetensors(path).unwrap())
}

/// A folder, to GGUF and back.
fn round_trip(folder: &Path) -> bool {
    let out = tempfile::tempdir().unwrap();
    let (file, again) = (out.path().join("m.gguf"), out.path().join("again"));
    let source = Checkpoint::open(folder).unwrap();
    if let Err(error) = source.write_gguf(&file, None, &Metadata::default()) {
        // What GGUF has no words for is refused, and leaves nothing.
        let text = error.to_string();
        assert!(text.contains("a GGUF file cannot say "), "{text}");
        let dynamic = folder.ends_with("dynamic");
        assert_eq!(text.contains("cannot say its dynamic scaling of positions ("), dynamic, "{text}");
        assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 0);
        println!("{}: {text}", folder.display());
        return false;
    }
    let written = Checkpoint::open(&file).unwrap();
    written.write_folder(&again, None, SHARD_BYTES, &[]).unwrap();
    let config = written.config();
    let (mut first, mut last) = (folder_content(folder), folder_content(&again));
    if config.family.unit_head {
        // Its rows come back of unit length (tests/family.rs): the same model in other numbers.
        assert_eq!(first.remove("lm_head.weight").unwrap().1, last.remove("lm_head.weight").unwrap().1);
    }
    assert!(first == last, "{}", folder.display());
    assert_eq!(Checkpoint::open(&again).unwrap().config(), config);
    assert_eq!(source.config().parameters(), config.parameters());
    true
}

/// Every golden model: packed, biased, normed, scaled, tied and untied ones.
#[test]
fn a_folder_goes_to_gguf_and_back_to_the_byte() {
    let goldens = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/goldens"));
    let (mut tried, mut written) = (Vec::new(), 0);
    let mut folders = vec![goldens.to_path_buf()];
    while let Some(folder) = folders.pop() {
        if folder.join("config.json").is_file() {
            written += usize::from(round_trip(&folder));
            tried.push(folder.file_name().unwrap().to_string_lossy().into_owned());
        }
        folders.extend(std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir()));
    }
    println!("{written} written of {tried:?}");
    for row in ["mixtral", "qwen3-moe-all"] {
        assert!(tried.iter().any(|name| name == row), "{row} has experts");
    }
    assert!(written >= 12, "{written} of {tried:?}");
    if let Some(stories) = shared("models/stories260K/derived/hf-f32") {
        assert!(round_trip(&stories));
    }
}

#[test]
fn narrow_folders_come_back_too() {
    let Some(stories) = shared("models/stories260K/derived/hf-f32") else { return };
    let out = tempfile::tempdir().unwrap();
    let source = Checkpoint::open(&stories).unwrap();
    for dtype in [DType::F16, DType::BF16] {
        let folder = out.path().join(dtype.name());
        let written = source.write_folder(&folder, Some(dtype), SHARD_BYTES, &[]).unwrap();
        assert_eq!(written.dtypes, [(dtype, 47)]);
        assert!(round_trip(&folder));
    }
}

/// The files that lie beside the model were written by llama.cpp's converter and ggml's quantisers.
#[test]
fn what_is_written_is_what_others_write() {
    let Some(stories) = shared("models/stories260K/derived") else { return };
    let out = tempfile::tempdir().unwrap();
    let source = Checkpoint::open(&stories.join("hf-f32")).unwrap();
    let tokenizer = Tokenizer::open(stories.join("hf-f32")).unwrap();
    let vocabulary = tokenizer.gguf_keys(source.config().vocab_size).unwrap();
    for dtype in [DType::F32, DType::F16, DType::Q8_0, DType::Q4_0] {
        let file = out.path().join("m.gguf");
        source.write_gguf(&file, Some(dtype), &vocabulary).unwrap();
        let (ours, metadata) = Tensors::open_gguf(&file).unwrap();
        let (theirs, other) = Tensors::open_gguf(&stories.join(format!("stories260K-{dtype}.gguf"))).unwrap();
        let (mut ours, mut theirs) = (content(&ours), content(&theirs));
        if dtype == DType::Q4_0 {
            // Theirs is as narrow as the rest; ours is not, and says so.
            assert_eq!(ours["token_embd.weight"].0, "q8_0");
            ours.remove("token_embd.weight");
            theirs.remove("token_embd.weight");
        }
        assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
        for (name, theirs) in &theirs {
            assert!(ours[name] == *theirs, "{dtype}: {name}");
        }
        for (key, value) in other.iter() {
            let differs = ["general.name", "general.license", "tokenizer.ggml.scores"].contains(&key);
            assert!(
                differs || metadata.get(key) == Some(value) || (dtype == DType::Q4_0 && key == "general.file_type"),
                "{dtype}: {key}: {value:?}, ours {:?}",
                metadata.get(key)
            );
        }
        assert_ids(&tokenizer, &metadata, &["Once upon a time, there was a little girl named Lily.", "Ünï ▁ <s> \n x"]);
    }
}

/// A tokenizer and what is made of its keys give the same ids.
fn assert_ids(tokenizer: &Tokenizer, metadata: &gguf::Metadata, texts: &[&str]) {
    let again = Tokenizer::from_vocabulary(Vocabulary::from_metadata(metadata).unwrap()).unwrap();
    for text in texts {
        assert_eq!(tokenizer.encode_prompt(text).unwrap(), again.encode_prompt(text).unwrap(), "{text:?}");
    }
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (again.bos(), again.eos()));
}

#[test]
fn tokenizers_keep_their_ids_in_gguf() {
    let texts = [
        "Hello, world! 12345 it's  two  spaces\n\n\tend ",
        "早上好 мир ñ 🙂 <|im_start|>user",
        "   ",
        "x=f(a)+b[0];\r\n",
    ];
    for (name, kind) in [("llama2", "llama"), ("llama3_1", "gpt2"), ("qwen3", "gpt2")] {
        let Some(folder) = shared("tokenizers").map(|t| t.join(name)) else { return };
        let tokenizer = Tokenizer::open(&folder).unwrap();
        let metadata = tokenizer.gguf_keys(tokenizer.vocab_size() + 7).unwrap();
        assert_eq!(metadata.string("tokenizer.ggml.model").unwrap(), Some(kind));
        assert_ids(&tokenizer, &metadata, &texts);
    }
    let too_few = Tokenizer::open(shared("tokenizers").unwrap().join("llama2")).unwrap().gguf_keys(5).unwrap_err();
    let message = "this tokenizer cannot be written into a GGUF file: it has 32000 tokens for 5 rows of the embedding";
    assert_eq!(too_few.to_string(), message);
}

/// What GGUF has no name for is refused by name, and what it has a name for is not lost.
#[test]
fn nothing_of_a_tokenizer_is_lost_in_gguf() {
    let folder = tempfile::tempdir().unwrap();
    let files = Tokenizer::train(["the cat, the cat"].iter(), 300).unwrap().files(8).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&files[0].1).unwrap();
    let keys = |pointer: &str, value: serde_json::Value, config: serde_json::Value| {
        let mut json = json.clone();
        *json.pointer_mut(pointer).unwrap() = value;
        std::fs::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
        std::fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
        Tokenizer::open(folder.path()).unwrap().gguf_keys(300).map_err(|e| e.to_string())
    };
    let bytes = |prefix: bool| json!({"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true, "use_regex": true});
    let split = |pattern: serde_json::Value, behavior: &str, invert: bool| json!({"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert});
    let after = |step: serde_json::Value| json!({"type": "Sequence", "pretokenizers": [step, bytes(false)]});
    let end = json!({"eos_token": "<|endoftext|>"});
    for (pointer, value, message) in [
        (
            "/pre_tokenizer",
            after(json!({"type": "Punctuation", "behavior": "Isolated"})),
            "GGUF has no name for the pre-tokenizer \"Punctuation\"",
        ),
        (
            "/pre_tokenizer",
            after(split(json!({"String": "a"}), "Isolated", false)),
            "GGUF has no name for the pre-tokenizer \"Split\" by a plain text",
        ),
        (
            "/pre_tokenizer",
            after(split(json!({"Regex": "a"}), "Removed", true)),
            "GGUF has no name for the pre-tokenizer \"Split\" that drops or joins what it cuts",
        ),
        (
            "/pre_tokenizer",
            after(split(json!({"Regex": "a"}), "Isolated", false)),
            "GGUF has no name for how it cuts words: a  's|'t|",
        ),
        (
            "/pre_tokenizer",
            json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": true}),
            "its pre-tokenizer does not end with \"ByteLevel\", and GGUF knows no other",
        ),
        (
            "/pre_tokenizer",
            bytes(true),
            "GGUF has no name for the pre-tokenizer \"ByteLevel\" that puts a space before a text",
        ),
        ("/normalizer", json!({"type": "Lowercase"}), "GGUF has no name for the normalizer \"Lowercase\""),
    ] {
        let text = keys(pointer, value, end.clone()).expect_err(message);
        let start = format!("this tokenizer cannot be written into a GGUF file: {message}");
        assert!(text.starts_with(&start), "{text}\nbut should say: {message}");
    }

    // Text, then the end: nothing before it.
    let token = json!({"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}});
    let single = json!([{"Sequence": {"id": "A", "type_id": 0}}, token]);
    let config = json!({"eos_token": "<|endoftext|>", "chat_template": [
        {"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]});
    let metadata = keys("/post_processor/single", single, config).unwrap();
    let flag = |key: &str| metadata.flag(&format!("tokenizer.ggml.{key}")).unwrap();
    assert_eq!((flag("add_bos_token"), flag("add_eos_token")), (Some(false), Some(true)));
    assert_eq!(metadata.strings("tokenizer.chat_templates").unwrap(), Some(vec!["tool_use"]));
    let tokenizer = Tokenizer::open(folder.path()).unwrap();
    assert_ids(&tokenizer, &metadata, &["the cat", ""]);
    let again = Tokenizer::from_vocabulary(Vocabulary::from_metadata(&metadata).unwrap()).unwrap();
    for (tools, template) in [(false, "plain"), (true, "tools")] {
        assert_eq!(again.chat_template(tools), Some(template));
        assert_eq!(tokenizer.chat_template(tools), Some(template));
    }
}

/// A large model lies in several files with an index, and what was there before is gone.
#[test]
fn folders_are_cut_into_files_of_a_size() {
    let golden = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/goldens/gqa"));
    let source = Checkpoint::open(golden).unwrap();
    let out = tempfile::tempdir().unwrap();
    let names = || {
        let name = |e: std::io::Result<std::fs::DirEntry>| e.unwrap().file_name().into_string().unwrap();
        let mut names: Vec<String> = std::fs::read_dir(out.path()).unwrap().map(name).collect();
        names.retain(|name| name.contains("model"));
        names.sort();
        names
    };
    let most = 30_000;
    for (bound, files) in [(SHARD_BYTES, 1), (most, 0), (1, 0), (SHARD_BYTES, 1)] {
        let written = source.write_folder(out.path(), None, bound, &[]).unwrap();
        assert!(folder_content(out.path()) == folder_content(golden), "{bound}");
        if files == 1 {
            assert_eq!((names(), written.files), (vec!["model.safetensors".to_string()], 1));
            continue;
        }
        let mut expected: Vec<String> =
            (1..=written.files).map(|i| format!("model-{i:05}-of-{:05}.safetensors", written.files)).collect();
        assert_eq!(written.files, if bound == 1 { folder_content(golden).len() } else { 4 });
        expected.push("model.safetensors.index.json".into());
        assert_eq!(names(), expected, "{bound}");
        let index = std::fs::read_to_string(out.path().join("model.safetensors.index.json")).unwrap();
        let index: serde_json::Value = serde_json::from_str(&index).unwrap();
        let tensors = Tensors::open_safetensors(out.path()).unwrap();
        assert_eq!(index["metadata"]["total_size"], tensors.iter().map(|t| t.bytes.len()).sum::<usize>());
        for file in tensors.files() {
            let own: Vec<_> = tensors.iter().filter(|t| t.file == file).collect();
            assert!(own.len() == 1 || own.iter().map(|t| t.bytes.len() as u64).sum::<u64>() <= bound);
            let name = file.file_name().unwrap().to_str().unwrap();
            assert!(own.iter().all(|t| index["weight_map"][t.name] == name));
        }
    }
}

/// From folder to folder nothing is lost that stands beside the weights.
#[test]
fn what_lies_beside_the_weights_is_kept_whole() {
    let out = tempfile::tempdir().unwrap();
    let (from, to, plain) = (out.path().join("from"), out.path().join("to"), out.path().join("plain"));
    let golden = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/goldens/gqa"));
    std::fs::create_dir_all(from.join("additional_chat_templates")).unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(golden.join(name), from.join(name)).unwrap();
    }
    let convert = |to: &Path| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_danlu"));
        let done = command.args(["convert", "--dtype", "bf16"]).arg(&from).arg(to).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    };
    convert(&plain);
    assert!(!plain.join("generation_config.json").exists(), "what was silent says nothing new");
    let kept = [
        ("generation_config.json", "{\"temperature\":0.6, \"top_k\": 7,\n\"unknown\": [1.50]}"),
        ("tokenizer_config.json", "{\"bos_token\": \"<s>\"}"),
        ("special_tokens_map.json", "{}"),
        ("added_tokens.json", "{ }"),
        ("vocab.json", "{  }"),
        ("merges.txt", "a b"),
        ("chat_template.jinja", "{{ 1 }}"),
        ("additional_chat_templates/tool_use.jinja", "{{ 2 }}"),
    ];
    for (name, text) in kept {
        std::fs::write(from.join(name), text).unwrap();
    }
    std::fs::write(from.join("README.md"), "not a model's").unwrap();
    convert(&to);
    for (name, text) in kept {
        assert_eq!(std::fs::read_to_string(to.join(name)).unwrap(), text, "{name}");
    }
    assert!(!to.join("README.md").exists());
    let json = |folder: &Path| -> serde_json::Value {
        serde_json::from_str(&std::fs::read_to_string(folder.join("config.json")).unwrap()).unwrap()
    };
    let (mut was, is) = (json(&from), json(&to));
    was["torch_dtype"] = "bfloat16".into();
    was.as_object_mut().unwrap().entry("dtype").and_modify(|d| *d = "bfloat16".into());
    assert_eq!(was, is);
}

/// A number that is none, or that the dtype has no room for, is found and named; copies are what they were.
#[test]
fn weights_that_are_no_numbers_are_not_converted() {
    let out = tempfile::tempdir().unwrap();
    let golden = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/goldens/gqa"));
    std::fs::copy(golden.join("config.json"), out.path().join("config.json")).unwrap();
    let file = out.path().join("model.safetensors");
    let name = "model.layers.1.mlp.up_proj.weight";
    let (offset, width) = {
        let tensors = Tensors::open_safetensors(golden).unwrap();
        let tensor = tensors.get(name).unwrap();
        (tensor.offset, tensor.shape.last())
    };
    let broken = "no number for a weight: the model is broken; fetch it again, or train it anew";
    for (x, dtype, what) in [
        (f32::NAN, DType::Q8_0, broken.to_string()),
        (f32::NEG_INFINITY, DType::Q4_0, broken.into()),
        (f32::NAN, DType::BF16, broken.into()),
        (-1e5, DType::F16, "more than f16 can hold; choose bf16 or f32".into()),
        (3e38, DType::Q8_0, "more than q8_0 can hold; choose bf16 or f32".into()),
    ] {
        let mut bytes = std::fs::read(golden.join("model.safetensors")).unwrap();
        // Two of them: the first is named.
        for at in [width + 3, 5 * width] {
            bytes[offset + 4 * at..][..4].copy_from_slice(&x.to_le_bytes());
        }
        std::fs::write(&file, bytes).unwrap();
        let source = Checkpoint::open(out.path()).unwrap();
        let target = out.path().join("m.gguf");
        let message = source.write_gguf(&target, Some(dtype), &Metadata::default()).unwrap_err().to_string();
        let element = width + 3;
        let at = format!("its element {element} (row 1, column 3) is {x}, {what}");
        assert_eq!(message, format!("{}: tensor blk.1.ffn_up.weight: {at}", file.display()));
        assert!(!target.exists());
        if dtype != DType::Q8_0 && dtype != DType::Q4_0 {
            let message = source.write_folder(&out.path().join("to"), Some(dtype), SHARD_BYTES, &[]).unwrap_err();
            assert_eq!(message.to_string(), format!("{}: tensor {name}: {at}", file.display()));
        }
        let copy = out.path().join("copy");
        source.write_folder(&copy, None, SHARD_BYTES, &[]).unwrap();
        assert!(folder_content(&copy) == folder_content(out.path()));
    }
}

/// A model in parts (tests/goldens/gguf_moe.py): any of them leads to all, and each way in which they do not fit
/// together is said.
#[test]
fn parts_of_a_gguf_model_are_one() {
    let golden = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/goldens/families/mixtral"));
    let out = tempfile::tempdir().unwrap();
    let part = |i: usize| format!("stacked-0000{i}-of-00003.gguf");
    let own = |name: &str| out.path().join(name);
    let fresh = || {
        for i in 1..=3 {
            std::fs::copy(golden.join(part(i)), own(&part(i))).unwrap();
        }
    };
    let change = |name: &str, key: &str, value: &[u8]| {
        let mut bytes = std::fs::read(own(name)).unwrap();
        let at = bytes.windows(key.len()).position(|w| w == key.as_bytes()).unwrap() + key.len() + 4;
        bytes[at..at + value.len()].copy_from_slice(value);
        std::fs::write(own(name), bytes).unwrap();
    };
    fresh();
    let whole = own("whole.gguf");
    for path in [own(&part(1)), own(&part(3)), out.path().to_path_buf()] {
        let checkpoint = Checkpoint::open(&path).unwrap();
        assert_eq!(checkpoint.tensors().files().collect::<Vec<_>>(), [1, 2, 3].map(|i| own(&part(i))), "{path:?}");
        assert_eq!(checkpoint.tensors().iter().count(), 23);
    }
    // Made whole, it says nothing of parts.
    let source = Checkpoint::open(&own(&part(2))).unwrap();
    source.write_gguf(&whole, None, &Metadata::default()).unwrap();
    let (tensors, metadata) = Tensors::open_gguf(&whole).unwrap();
    assert!(content(&tensors) == content(source.tensors()));
    assert!(metadata.iter().all(|(key, _)| !key.starts_with("split.")));
    std::fs::remove_file(&whole).unwrap();

    let look = |name: &str| {
        let text = Checkpoint::open(&own(name)).unwrap_err().to_string();
        text.replace(&format!("{}/", out.path().display()), "")
    };
    std::fs::remove_file(own(&part(2))).unwrap();
    let missing = "stacked-00002-of-00003.gguf: is not there: it is part 2 of 3 of a model; fetch it too";
    assert_eq!([look(&part(1)), look(&part(3))], [missing, missing]);
    // The folder of a part leads to the part that is missing, and another model beside them to a choice.
    let whole_folder = Checkpoint::open(out.path()).unwrap_err().to_string();
    assert!(whole_folder.ends_with(missing), "{whole_folder}");
    std::fs::copy(own(&part(1)), own("a.gguf")).unwrap();
    let choice = Checkpoint::open(out.path()).unwrap_err().to_string();
    let named =
        "holds 2 GGUF models and no config.json; name the one that you want: a.gguf, stacked-00001-of-00003.gguf";
    assert!(choice.ends_with(named), "{choice}");
    std::fs::remove_file(own("a.gguf")).unwrap();
    fresh();
    std::fs::rename(own(&part(2)), own("b.gguf")).unwrap();
    let named = "b.gguf: is part 2 of 3 of a model (split.no, split.count) and is not named so; give all parts their names \
                 back: NAME-00002-of-00003.gguf";
    assert_eq!(look("b.gguf"), named);
    std::fs::remove_file(own("b.gguf")).unwrap();
    fresh();
    std::fs::copy(own(&part(2)), own(&part(3))).unwrap();
    let other = "stacked-00003-of-00003.gguf: is named part 3 of 3, and its split.no is 1 where it should be 2, its \
                 split.count 3; fetch it again";
    assert_eq!(look(&part(1)), other);
    change(&part(3), "split.no", &[2, 0]);
    let twice = look(&part(1));
    assert!(twice.starts_with("stacked-00001-of-00003.gguf: tensor ") && twice.contains(" stands in two"), "{twice}");
    fresh();
    change(&part(1), "split.tensors.count", &[24, 0, 0, 0]);
    let count = "stacked-00001-of-00003.gguf: says that its parts hold 24 tensors (split.tensors.count), and they hold 23; \
                 fetch them again";
    assert_eq!(look(&part(2)), count);
    fresh();
    change(&part(2), "split.count", &[4, 0]);
    let other = "stacked-00002-of-00003.gguf: is named part 2 of 3, and its split.no is 1 where it should be 1, its \
                 split.count 4; fetch it again";
    assert_eq!(look(&part(1)), other);
}
