//! Round trips, streams, special tokens, and files that others can open.

use super::*;
use crate::data::{StoryGrammar, StreamDecoder};
use crate::shared::shared;

/// Texts that break careless tokenizers: several scripts, joined emoji, combining marks, control characters, white space.
const TEXTS: [&str; 7] = [
    "Once upon a time there was a little fox.",
    "  two spaces,\ttabs\n\n\nand lines  \n",
    "Straße, naïve, e\u{301}, 丹炉造丹，火候到时自然成。",
    "👩‍👩‍👧‍👦 family, 🇨🇳 flag, 👍🏽",
    "العربية עברית हिन्दी ไทย",
    "\u{1}\u{7f}\u{a0}\u{feff}x",
    "1234567890 don't you'll WE'VE <|not special|>",
];

fn trained() -> Tokenizer {
    Tokenizer::train(StoryGrammar::new(1).take(400), 1024).unwrap()
}

#[test]
fn every_text_comes_back() {
    let tokenizer = trained();
    assert_eq!(tokenizer.vocab_size(), 1024);
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(0), Some(0)));
    for text in TEXTS {
        let ids = tokenizer.encode(text).unwrap();
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        assert_eq!(tokenizer.encode_prompt(text).unwrap(), [&[0], ids.as_slice()].concat());
    }
    assert_eq!(tokenizer.encode_prompt("").unwrap(), [0]);
    assert!(tokenizer.encode("").unwrap().is_empty());
}

#[test]
fn training_is_deterministic_and_compresses() {
    let (one, two) = (trained(), trained());
    assert_eq!(one.content_hash(), two.content_hash());
    let story = StoryGrammar::new(99).story(0);
    let (words, ids) = (story.split_whitespace().count(), one.encode(&story).unwrap().len());
    assert!(ids < 2 * words, "{ids} tokens for {words} words");
    assert_ne!(one.content_hash(), Tokenizer::train(StoryGrammar::new(1).take(400), 512).unwrap().content_hash());
}

#[test]
fn a_vocabulary_without_room_for_bytes_is_refused() {
    let error = Tokenizer::train(["a"].iter(), 256).unwrap_err();
    assert_eq!(
        error.to_string(),
        "a vocabulary of 256 is too small to train a tokenizer for; bytes alone need 257: \
         raise \"vocab_size\" in the configuration, or give --tokenizer"
    );
    assert_eq!(Tokenizer::train(["a"].iter(), 5000).unwrap().vocab_size(), 257);
}

/// Decodes a token at a time, and checks that each piece is whole.
fn streamed(tokenizer: &Tokenizer, prompt: &[u32], ids: &[u32]) -> String {
    let mut stream = StreamDecoder::new(tokenizer, prompt);
    let mut text = String::new();
    for &id in ids {
        let piece = stream.push(id).unwrap();
        assert!(!piece.contains('\u{fffd}'), "half a character in {piece:?}");
        text.push_str(&piece);
    }
    text + &stream.finish().unwrap()
}

#[test]
fn a_stream_gives_what_decoding_at_once_gives() {
    let mut tokenizers = vec![("trained", trained())];
    tokenizers.extend(published().into_iter().map(|(name, tokenizer, ..)| (name, tokenizer)));
    for (name, tokenizer) in &tokenizers {
        for text in TEXTS {
            let ids = tokenizer.encode_prompt(text).unwrap();
            assert_eq!(streamed(tokenizer, &[], &ids), tokenizer.decode(&ids).unwrap(), "{name}: {text:?}");
            let (prompt, rest) = ids.split_at(ids.len() / 2);
            let (prompt_text, whole) = (tokenizer.decode(prompt).unwrap(), tokenizer.decode(&ids).unwrap());
            if let Some(expected) = whole.strip_prefix(&prompt_text) {
                assert_eq!(streamed(tokenizer, prompt, rest), expected, "{name}: {text:?} after {prompt_text:?}");
            }
        }
    }
    let cut = tokenizers[0].1.encode("火").unwrap();
    assert_eq!(streamed(&tokenizers[0].1, &[], &cut[..1]), "\u{fffd}");
}

fn save(tokenizer: &Tokenizer, folder: &std::path::Path, length: usize) {
    for (name, content) in tokenizer.files(length).unwrap() {
        std::fs::write(folder.join(name), content).unwrap();
    }
}

/// What tokenizer_config.json says of tokens around a text stands over tokenizer.json, as in `transformers` 5: what it does not name
/// is not added.
#[test]
fn tokens_around_a_text_are_those_that_the_configuration_names() {
    let dir = tempfile::tempdir().unwrap();
    save(&trained(), dir.path(), 256);
    let file = dir.path().join("tokenizer_config.json");
    let said: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let plain = Tokenizer::open(dir.path()).unwrap();
    let text = plain.encode("one").unwrap();
    for (keys, before, after) in [
        (json!({}), true, false),
        (json!({"add_bos_token": true}), true, false),
        (json!({"add_bos_token": false}), false, false),
        (json!({"add_eos_token": true}), false, true),
        (json!({"add_bos_token": true, "add_eos_token": true}), true, true),
        (json!({"add_bos_token": true, "bos_token": null}), false, false),
    ] {
        let mut config = said.clone();
        config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        std::fs::write(&file, config.to_string()).unwrap();
        let tokenizer = Tokenizer::open(dir.path()).unwrap();
        let around = |is: bool| if is { vec![0] } else { vec![] };
        let expected = [around(before), text.clone(), around(after)].concat();
        assert_eq!(tokenizer.inner.encode("one", true).unwrap().get_ids(), expected, "{keys}");
        assert_eq!((tokenizer.adds_bos, tokenizer.adds_eos), (before, after), "{keys}");
    }
}

#[test]
fn saved_files_open_again_and_are_what_transformers_reads() {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = trained();
    save(&tokenizer, dir.path(), 256);
    let again = Tokenizer::open(dir.path()).unwrap();
    assert_eq!(again.content_hash(), tokenizer.content_hash());
    assert_eq!((again.bos(), again.eos(), again.vocab_size()), (Some(0), Some(0), 1024));
    let read =
        |name: &str| -> Value { serde_json::from_slice(&std::fs::read(dir.path().join(name)).unwrap()).unwrap() };
    let config = read("tokenizer_config.json");
    assert_eq!(
        config,
        json!({
            "bos_token": "<|endoftext|>",
            "clean_up_tokenization_spaces": false,
            "eos_token": "<|endoftext|>",
            "model_max_length": 256,
            "tokenizer_class": "PreTrainedTokenizerFast",
        })
    );
    let json = read("tokenizer.json");
    for (pointer, expected) in [
        ("/version", json!("1.0")),
        ("/model/type", json!("BPE")),
        ("/pre_tokenizer/type", json!("ByteLevel")),
        ("/decoder/type", json!("ByteLevel")),
        ("/post_processor/type", json!("TemplateProcessing")),
        ("/added_tokens/0/content", json!("<|endoftext|>")),
        ("/added_tokens/0/special", json!(true)),
    ] {
        assert_eq!(json.pointer(pointer), Some(&expected), "{pointer}");
    }
    let mut names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["tokenizer.json", "tokenizer_config.json"], "nothing temporary is left");
}

#[test]
fn what_is_no_tokenizer_is_refused_with_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let shown = |error: Error| error.to_string().replace(&dir.path().display().to_string(), "DIR");
    let missing = Tokenizer::open(dir.path()).unwrap_err();
    assert_eq!(
        shown(missing),
        "DIR/tokenizer.json: no such file; a tokenizer is a tokenizer.json, the folder that holds one, or a GGUF file"
    );
    std::fs::write(dir.path().join("tokenizer.json"), "{\"version\": 7}").unwrap();
    let broken = shown(Tokenizer::open(dir.path()).unwrap_err());
    assert!(broken.starts_with("DIR/tokenizer.json: is not a tokenizer.json that can be used: "), "{broken}");
    save(&trained(), dir.path(), 8);
    std::fs::write(dir.path().join("tokenizer_config.json"), "[]").unwrap();
    let broken = shown(Tokenizer::open(dir.path()).unwrap_err());
    assert!(broken.starts_with("DIR/tokenizer_config.json: is not a JSON object: "), "{broken}");
}

/// The tokenizers of published models, where they are: name, bos, eos, size.
fn published() -> Vec<(&'static str, Tokenizer, Option<&'static str>, &'static str, usize)> {
    [
        ("tokenizers/llama2", Some("<s>"), "</s>", 32_000),
        ("tokenizers/llama3_1", Some("<|begin_of_text|>"), "<|end_of_text|>", 128_256),
        ("tokenizers/qwen3", None, "<|endoftext|>", 151_669),
        ("models/stories260K/derived/hf-f32", Some("<s>"), "</s>", 512),
    ]
    .into_iter()
    .filter_map(|(path, bos, eos, size)| Some((path, Tokenizer::open(shared(path)?).unwrap(), bos, eos, size)))
    .collect()
}

#[test]
fn published_tokenizers_open_with_their_special_tokens() {
    for (name, tokenizer, bos, eos, size) in published() {
        let token = |id: Option<u32>| id.and_then(|id| tokenizer.inner.id_to_token(id));
        assert_eq!(token(tokenizer.bos()).as_deref(), bos, "{name}");
        assert_eq!(token(tokenizer.eos()).as_deref(), Some(eos), "{name}");
        assert_eq!(tokenizer.vocab_size(), size, "{name}");
        let text = "Once upon a time, there was a little girl named Lily.";
        assert_eq!(tokenizer.decode(&tokenizer.encode(text).unwrap()).unwrap(), text, "{name}");
    }
}
