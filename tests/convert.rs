//! Conversions: what goes from one format to another and back is the same to the byte; what is written is what other
//! converters write; tokenizers keep their ids.

#[path = "common/shared.rs"]
mod shared;

use danlu::base::DType;
use danlu::data::{Tokenizer, Vocabulary};
use danlu::nn::ParamLayout;
use danlu::store::gguf::Metadata;
use danlu::store::{Checkpoint, Tensors, gguf};
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
        assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 0);
        println!("{}: {text}", folder.display());
        return false;
    }
    let written = Checkpoint::open(&file).unwrap();
    written.write_folder(&again, None, &[]).unwrap();
    let config = written.config();
    if config.experts.is_some() {
        // Experts may lie stacked or apart, as versions of transformers have them; we write them apart.
        let layout = ParamLayout::new(config.param_specs(), 1 << 30);
        let pages = |c: &Checkpoint| c.read_pages(&layout).unwrap();
        assert!(pages(&source) == pages(&Checkpoint::open(&again).unwrap()), "{}", folder.display());
    } else {
        assert!(folder_content(folder) == folder_content(&again), "{}", folder.display());
    }
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
        let written = source.write_folder(&folder, Some(dtype), &[]).unwrap();
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
    let (code, _, text) = run(&["inspect", "nothing"]);
    assert!(code == Some(1) && text.contains("nothing: no such file or folder, and no name on a hub"), "{text}");
}
