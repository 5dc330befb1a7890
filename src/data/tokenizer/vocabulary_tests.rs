//! Vocabularies of GGUF files: llama.cpp's test vectors, a brute-force computation, and small ones for every branch.

use super::*;
use crate::base::Rng;
use crate::data::StreamDecoder;
use crate::shared::shared;
use crate::store::Tensors;
use crate::store::gguf::{Array, Kind, Metadata, Value as Stored, passed_over};
use std::collections::HashMap;
use std::path::Path;

fn read(path: &Path) -> Vocabulary {
    let (_, metadata) = Tensors::open_gguf(path).unwrap();
    Vocabulary::from_metadata(&metadata).unwrap()
}

fn strings<const N: usize>(list: [&str; N]) -> Vec<String> {
    list.map(String::from).to_vec()
}

/// SentencePiece's vocabulary in the small: specials, all bytes, and a few pieces.
fn small_pieces() -> Vocabulary {
    let mut tokens = strings(["<unk>", "<s>", "</s>"]);
    tokens.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
    let mut types = vec![2, 3, 3];
    types.extend([6; 256]);
    let mut scores = vec![0.0; tokens.len()];
    let pieces = ["▁a", "ab", "abc", "▁ab", "▁▁", "▁▁▁▁", "bc", "▁", "a", "b", "c", "é", "d"];
    for (rank, piece) in pieces.into_iter().enumerate() {
        tokens.push(piece.into());
        types.push(1);
        scores.push(-(rank as f32));
    }
    tokens.push("<hint>".into());
    types.push(4);
    scores.push(0.0);
    let model = "llama".into();
    Vocabulary { model, tokens, scores, types, bos: Some(1), eos: Some(2), unknown: Some(0), ..Vocabulary::default() }
}

/// A byte-level vocabulary in the small: all bytes, a few merges, specials behind them.
fn small_bytes() -> Vocabulary {
    let mut alphabet: Vec<String> = ByteLevel::alphabet().into_iter().map(String::from).collect();
    alphabet.sort();
    let mut tokens = alphabet;
    tokens.extend(strings(["th", "the", "Ġthe", "12", "123", "1234", "ĠĠ", "<|end|>", "<tool>"]));
    let mut types = vec![1; tokens.len() - 2];
    types.extend([3, 4]);
    let merges = strings(["t h", "th e", "Ġ the", "1 2", "12 3", "Ġ Ġ"]);
    let end = tokens.len() as u32 - 2;
    Vocabulary { model: "gpt2".into(), tokens, types, merges, eos: Some(end), ..Vocabulary::default() }
}

/// The texts of a text's tokens.
fn pieces(tokenizer: &Tokenizer, text: &str) -> Vec<String> {
    tokenizer.encode_prompt(text).unwrap().iter().map(|&id| tokenizer.inner.id_to_token(id).unwrap()).collect()
}

#[test]
fn small_pieces_are_joined_by_score_and_the_rest_is_bytes() {
    let tokenizer = Tokenizer::from_vocabulary(small_pieces()).unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.vocab_size()), (Some(1), Some(2), 273));
    for (text, expected) in [
        ("abc", vec!["<s>", "▁ab", "c"]),
        (" abc", vec!["<s>", "▁", "▁ab", "c"]),
        ("dabc   ab", vec!["<s>", "▁", "d", "abc", "▁▁", "▁ab"]),
        ("é火", vec!["<s>", "▁", "é", "<0xE7>", "<0x81>", "<0xAB>"]),
        ("a<hint>a</s>a", vec!["<s>", "▁a", "<hint>", "▁a", "</s>", "▁a"]),
        ("", vec!["<s>"]),
    ] {
        assert_eq!(pieces(&tokenizer, text), expected, "{text:?}");
        assert_eq!(
            tokenizer.decode(&tokenizer.encode(text).unwrap()).unwrap(),
            text.replace("</s>a", " a").replace("<hint>a", "<hint> a")
        );
    }
    let plain =
        Vocabulary { add_space_prefix: Some(false), add_bos: Some(false), add_eos: Some(true), ..small_pieces() };
    let plain = Tokenizer::from_vocabulary(plain).unwrap();
    assert_eq!(pieces(&plain, "abc a"), ["abc", "▁a", "</s>"]);
    assert_eq!(plain.decode(&plain.encode(" abc a").unwrap()).unwrap(), " abc a");
}

#[test]
fn every_way_of_cutting_words_is_known_by_name() {
    for (pre, text, expected) in [
        (None, "the 12345!", vec!["the", "Ġ", "123", "4", "5", "!"]),
        (Some("default"), "the 12345!", vec!["the", "Ġ", "123", "4", "5", "!"]),
        (Some("gpt-2"), "the 12345", vec!["the", "Ġ", "123", "4", "5"]),
        (Some("llama-bpe"), "1234 the\n\n", vec!["123", "4", "Ġthe", "Ċ", "Ċ"]),
        (Some("smaug-bpe"), "1234", vec!["123", "4"]),
        (Some("qwen2"), "123 the", vec!["1", "2", "3", "Ġthe"]),
        (Some("smollm"), " 123the", vec!["Ġ", "1", "2", "3", "the"]),
        (Some("tekken"), "THethe", vec!["T", "H", "e", "the"]),
        (Some("deepseek-llm"), " the123\n", vec!["Ġthe", "123", "Ċ"]),
        (Some("deepseek-coder"), " the123", vec!["Ġthe", "1", "2", "3"]),
    ] {
        let name = pre.unwrap_or("none");
        let tokenizer = Tokenizer::from_vocabulary(Vocabulary { pre: pre.map(String::from), ..small_bytes() }).unwrap();
        assert_eq!(pieces(&tokenizer, text), expected, "{name}");
        let odd = "  the\t火 <|end|> <tool> don't 1234567890\r\n ";
        let ids = tokenizer.encode(odd).unwrap();
        assert_eq!(tokenizer.decode(&ids).unwrap(), odd.replace("<|end|>", ""), "{name}");
    }
    // What Llama 3 takes whole although no merge leads there.
    let whole = |pre: &str| {
        let mut vocabulary = small_bytes();
        vocabulary.tokens.push("dog".into());
        vocabulary.types.push(1);
        vocabulary.bos = vocabulary.eos;
        pieces(&Tokenizer::from_vocabulary(Vocabulary { pre: Some(pre.into()), ..vocabulary }).unwrap(), "dog")
    };
    assert_eq!(whole("llama-bpe"), ["<|end|>", "dog"]);
    assert_eq!(whole("qwen2"), ["d", "o", "g"]);
}

#[test]
fn special_tokens_that_strip_take_the_line_end() {
    let strip = |special_strips_right| {
        let v = Vocabulary { special_strips_right, ..small_bytes() };
        pieces(&Tokenizer::from_vocabulary(v).unwrap(), "<|end|>\nthe")
    };
    assert_eq!(strip(true), ["<|end|>", "the"]);
    assert_eq!(strip(false), ["<|end|>", "Ċ", "the"]);
}

/// Bytes that are tokens are decoded by the run: after a prompt of characters of three bytes each, which no number of tokens to look back
/// on divides, what follows is whole.
#[test]
fn bytes_after_a_prompt_of_bytes_are_whole() {
    let tokenizer = Tokenizer::from_vocabulary(small_pieces()).unwrap();
    let (prompt, more) = ("မြန်မာနိုင်ငံ", "သည်");
    let (ids, all) = (tokenizer.encode(prompt).unwrap(), tokenizer.encode(&format!("{prompt}{more}")).unwrap());
    assert!(all.len() == ids.len() + 9 && all.starts_with(&ids), "a token a byte");
    for skipped in 0..3 {
        let mut stream = crate::data::StreamDecoder::new(&tokenizer, &ids[skipped * 3..]);
        let pieces = all[ids.len()..].iter().map(|&id| stream.push(id).unwrap());
        let text: String = pieces.collect();
        assert_eq!(text + &stream.finish().unwrap(), more);
    }
}

#[test]
fn what_is_no_vocabulary_is_refused_with_a_sentence() {
    let (pieces, bytes) = (small_pieces, small_bytes);
    for (vocabulary, expected) in [
        (Vocabulary::default(), "the vocabulary holds no tokens: tokenizer.ggml.tokens is missing or empty"),
        (
            Vocabulary { model: "bert".into(), ..pieces() },
            "tokenizer.ggml.model is \"bert\"; known are llama (SentencePiece) and gpt2",
        ),
        (
            Vocabulary { pre: Some("viking".into()), ..bytes() },
            "tokenizer.ggml.pre is \"viking\", which is unknown here; known are default, llama-bpe, llama3, llama-v3, \
             smaug-bpe, dbrx, qwen2, deepseek-r1-qwen, stablelm2, gpt-2, olmo, mpt, smollm, starcoder, refact, command-r, \
             codeshell, tekken, deepseek-llm, deepseek-coder",
        ),
        (Vocabulary { scores: vec![0.0], ..pieces() }, "tokenizer.ggml.scores has 1 entries for 273 tokens"),
        (Vocabulary { types: vec![1, 1], ..pieces() }, "tokenizer.ggml.token_type has 2 entries for 273 tokens"),
        (Vocabulary { eos: Some(999), ..bytes() }, "tokenizer.ggml.eos_token_id is 999, and there are only 265 tokens"),
        (
            Vocabulary { merges: vec![], ..bytes() },
            "a byte-level vocabulary needs tokenizer.ggml.merges, and there are none",
        ),
        (
            Vocabulary { merges: strings(["t h", "alone"]), ..bytes() },
            "merge 1 of tokenizer.ggml.merges, \"alone\", is no pair of tokens",
        ),
        (
            Vocabulary { merges: strings(["t x"]), ..bytes() },
            "merge 0 of tokenizer.ggml.merges, \"t x\", needs the token \"tx\", which is not there",
        ),
        (
            Vocabulary { tokens: (1..700).map(|n| "x".repeat(n)).collect(), scores: vec![], types: vec![], ..pieces() },
            "the tokens of tokenizer.ggml.tokens are joined from each other in more ways than a vocabulary's are: at token \
             586 these take over 67108864 bytes",
        ),
        (
            // Every length is there, and no left part of any.
            Vocabulary {
                tokens: (0..1600).map(|n| "a".repeat(n) + "b").collect(),
                scores: vec![],
                types: vec![],
                ..pieces()
            },
            "the tokens of tokenizer.ggml.tokens can be cut in more ways than a vocabulary's are: at token 1476 these take \
             over 1073741824 bytes",
        ),
        (
            Vocabulary { tokens: strings(["a", "b", "a"]), scores: vec![], types: vec![], ..pieces() },
            "tokens 0 and 2 of tokenizer.ggml.tokens are both \"a\"",
        ),
        (
            Vocabulary { tokens: vec!["x".repeat(5000)], scores: vec![], types: vec![], ..pieces() },
            "token 0 is 5000 bytes long, and no token may be longer than 4096",
        ),
    ] {
        assert_eq!(Tokenizer::from_vocabulary(vocabulary).unwrap_err().to_string(), expected);
    }
    let empty = Vocabulary { tokens: strings(["<unk>", "", "a"]), scores: vec![], types: vec![], ..pieces() };
    assert_eq!(Tokenizer::from_vocabulary(empty).unwrap().inner.id_to_token(1).unwrap(), "[EMPTY_1]");
}

/// Ids of no token are passed over for llama.cpp's own; −1 is none, in 32 bits without a sign too.
#[test]
fn special_tokens_that_are_not_there_are_passed_over() {
    let special = |model: &str, value: Option<Stored>| {
        let mut metadata = Metadata::new(Path::new("m.gguf"));
        metadata.set("tokenizer.ggml.model", Stored::String(model.into()));
        let v = small_pieces();
        metadata.set("tokenizer.ggml.tokens", Stored::Array(Array::strings(v.tokens.iter().map(String::as_str))));
        metadata.set("tokenizer.ggml.token_type", Stored::Array(Array::i32s(&v.types)));
        for name in ["bos", "eos", "unknown", "eot"] {
            value.iter().for_each(|value| {
                metadata.set(&format!("tokenizer.ggml.{name}_token_id"), value.clone());
            });
        }
        let v = Vocabulary::from_metadata(&metadata).unwrap();
        if model == "llama" {
            assert!(!Tokenizer::from_vocabulary(v.clone()).unwrap().encode("ab").unwrap().is_empty());
        }
        ([v.bos, v.eos, v.unknown, v.eot], passed_over(&metadata).unwrap())
    };
    let (usual, none) = ([Some(1), Some(2), Some(0), None], [None; 4]);
    assert_eq!(special("llama", None), (usual, vec![]));
    assert_eq!(special("gpt2", None), (none, vec![]));
    assert_eq!(special("llama", Some(Stored::Int(-1, Kind::I32))), (none, vec![]));
    assert_eq!(special("llama", Some(Stored::u32(u32::MAX))), (none, vec![]));
    assert_eq!(special("llama", Some(Stored::u32(272))), ([Some(272); 4], vec![]));
    let (ids, said) = special("llama", Some(Stored::u32(u32::MAX - 1)));
    assert_eq!((ids, said.len()), (usual, 4));
    let key = "m.gguf: tokenizer.ggml.unknown_token_id is 4294967294, and there are only 273 tokens";
    assert_eq!(said[2], format!("{key}; token 0 is taken"));
    let (ids, said) = special("gpt2", Some(Stored::u32(273)));
    let key = "m.gguf: tokenizer.ggml.eot_token_id is 273, and there are only 273 tokens";
    assert_eq!((ids, said[3].clone()), (none, format!("{key}; it is passed over")));
}

#[test]
fn a_folder_written_from_a_vocabulary_opens_as_the_same_tokenizer() {
    for vocabulary in [Vocabulary { chat_template: Some("{{ messages }}".into()), ..small_pieces() }, small_bytes()] {
        let tokenizer = Tokenizer::from_vocabulary(vocabulary).unwrap();
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in tokenizer.files(64).unwrap() {
            std::fs::write(dir.path().join(name), content).unwrap();
        }
        let again = Tokenizer::open(dir.path()).unwrap();
        assert_eq!(again.content_hash(), tokenizer.content_hash());
        assert_eq!((again.bos(), again.eos()), (tokenizer.bos(), tokenizer.eos()));
        assert_eq!(again.encode_prompt(" the ab<0x41>é").unwrap(), tokenizer.encode_prompt(" the ab<0x41>é").unwrap());
    }
}

/// The vectors that lie beside llama.cpp's vocabularies, which it makes without special tokens around the texts.
#[test]
fn published_vectors_come_out_exactly() {
    for name in ["llama-spm", "llama-bpe", "gpt-2", "qwen2"] {
        let Some(path) = shared(&format!("tokenizers/gguf-vocab/ggml-vocab-{name}.gguf")) else { return };
        let beside = |ending: &str| std::fs::read_to_string(format!("{}.{ending}", path.display())).unwrap();
        let tokenizer = Tokenizer::from_vocabulary(read(&path)).unwrap();
        let (inp, out) = (beside("inp"), beside("out"));
        let texts = inp.split("\n__ggml_vocab_test__\n");
        let mut seen = 0;
        for (text, ids) in texts.zip(out.lines()) {
            let expected: Vec<u32> = ids.split_whitespace().map(|id| id.parse().unwrap()).collect();
            assert_eq!(tokenizer.encode(text).unwrap(), expected, "{name}: {text:?}");
            assert_eq!(tokenizer.decode(&expected).unwrap(), text, "{name}");
            seen += 1;
        }
        assert_eq!((seen, seen), (out.lines().count(), inp.matches("\n__ggml_vocab_test__\n").count()), "{name}");
    }
}

/// SentencePiece's BPE by its definition: join the neighbours that give the piece of the highest score, the leftmost of
/// equals, until nothing joins; what is no piece goes out as bytes.
fn by_brute_force(v: &Vocabulary, text: &str) -> Vec<u32> {
    let ids: HashMap<&str, u32> = v.tokens.iter().enumerate().map(|(id, t)| (t.as_str(), id as u32)).collect();
    let text = if text.is_empty() { String::new() } else { format!("▁{}", text.replace(' ', "▁")) };
    let mut symbols: Vec<String> = text.chars().map(String::from).collect();
    loop {
        let mut best: Option<(f32, usize)> = None;
        for at in 1..symbols.len() {
            let joined = ids.get(format!("{}{}", symbols[at - 1], symbols[at]).as_str());
            if let Some(score) = joined.map(|&id| v.scores[id as usize])
                && best.is_none_or(|(most, _)| score > most)
            {
                best = Some((score, at));
            }
        }
        let Some((_, at)) = best else { break };
        let right = symbols.remove(at);
        symbols[at - 1].push_str(&right);
    }
    let mut out = Vec::new();
    for symbol in symbols {
        match ids.get(symbol.as_str()) {
            Some(&id) => out.push(id),
            None => out.extend(symbol.bytes().map(|byte| ids[format!("<0x{byte:02X}>").as_str()])),
        }
    }
    out
}

/// Texts that mix pieces of the vocabulary with runs, digits and scripts.
fn random_text(v: &Vocabulary, rng: &mut Rng) -> String {
    let mut text = String::new();
    for _ in 0..1 + rng.below(12) {
        match rng.below(6) {
            0 => text.push_str(&" ".repeat(1 + rng.below(20))),
            1 => text
                .push_str(["a", "ab", "!", "-", "=", "哈", "0", "ана"][rng.below(8)].repeat(1 + rng.below(9)).as_str()),
            2 => text.push_str(["\n", "\t", "丹炉", "👩‍👩‍👧", "é", "e\u{301}", "ไทย"][rng.below(7)]),
            _ => {
                let id = rng.below(v.tokens.len());
                if v.types[id] == 1 {
                    text.push_str(&v.tokens[id].replace('▁', " "));
                }
            }
        }
    }
    text
}

#[test]
fn pieces_are_those_of_a_brute_force_search() {
    let small = Vocabulary { tokens: small_pieces().tokens, ..small_pieces() };
    let mut vocabularies = vec![("small", small)];
    for path in [
        "tokenizers/gguf-vocab/ggml-vocab-llama-spm.gguf",
        "tokenizers/gguf-vocab/ggml-vocab-baichuan.gguf",
        "models/llama2-tiny-random/llama-2-tiny-random.gguf",
        "models/stories260K/derived/stories260K-q8_0.gguf",
    ] {
        vocabularies.extend(shared(path).map(|file| (path, read(&file))));
    }
    for (name, vocabulary) in vocabularies {
        let tokenizer = Tokenizer::from_vocabulary(vocabulary.clone()).unwrap();
        let mut rng = Rng::named(7, name);
        for _ in 0..250 {
            let text = random_text(&vocabulary, &mut rng);
            assert_eq!(tokenizer.encode(&text).unwrap(), by_brute_force(&vocabulary, &text), "{name}: {text:?}");
        }
    }
}

/// A model folder's tokenizer.json and a GGUF file of the same vocabulary give the same ids.
#[test]
fn files_of_one_vocabulary_agree() {
    for (folder, file, bos) in [
        ("tokenizers/llama2", "tokenizers/gguf-vocab/ggml-vocab-llama-spm.gguf", Some(1)),
        ("tokenizers/llama3_1", "tokenizers/gguf-vocab/ggml-vocab-llama-bpe.gguf", Some(128_000)),
        ("tokenizers/qwen3", "tokenizers/gguf-vocab/ggml-vocab-qwen2.gguf", None),
        ("models/stories260K/derived/hf-f32", "models/stories260K/derived/stories260K-f16.gguf", Some(1)),
    ] {
        let (Some(folder), Some(file)) = (shared(folder), shared(file)) else { return };
        let vocabulary = read(&file);
        let one = Tokenizer::open(folder).unwrap();
        let two = Tokenizer::from_vocabulary(vocabulary.clone()).unwrap();
        assert_eq!(two.encode_prompt("a").unwrap().first().copied().filter(|_| bos.is_some()), bos);
        let mut rng = Rng::named(8, "agree");
        let texts = ["Hello, y'all! 33333 丹炉", "  I'M\t\tsure\r\n\r\nthat's 1 234.5  "].map(String::from);
        for text in texts.into_iter().chain((0..200).map(|_| random_text(&small_pieces(), &mut rng))) {
            // Qwen's folder normalises to NFC first, of which GGUF files know nothing.
            let text = text.replace('\u{301}', "");
            assert_eq!(one.encode_prompt(&text).unwrap(), two.encode_prompt(&text).unwrap(), "{text:?}");
        }
    }
}

/// The vocabulary that the old file of random weights holds: keys are missing, and llama.cpp's values stand in.
#[test]
fn an_old_file_opens_with_the_defaults_of_llama_cpp() {
    let Some(path) = shared("models/llama2-tiny-random/llama-2-tiny-random.gguf") else { return };
    let vocabulary = read(&path);
    assert_eq!((vocabulary.pre.as_deref(), vocabulary.add_bos, vocabulary.add_space_prefix), (None, None, None));
    let tokenizer = Tokenizer::from_vocabulary(vocabulary).unwrap();
    assert_eq!(tokenizer.encode_prompt("Hello world").unwrap(), [1, 15043, 3186]);
}

#[test]
fn a_stream_holds_back_half_a_character() {
    let tokenizer = Tokenizer::from_vocabulary(small_pieces()).unwrap();
    let ids = tokenizer.encode("é火ab").unwrap();
    let mut stream = StreamDecoder::new(&tokenizer, &[1]);
    let parts: Vec<String> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
    assert_eq!(parts.concat() + &stream.finish().unwrap(), "é火ab");
    assert!(parts.iter().all(|part| !part.contains('\u{fffd}')), "{parts:?}");
}

/// Half a second of one core; the bound leaves room for a machine with ten other things to do, and none for a quadratic
/// search.
#[test]
fn a_vocabulary_of_128_thousand_opens_quickly() {
    let Some(path) = shared("tokenizers/gguf-vocab/ggml-vocab-llama-bpe.gguf") else { return };
    let vocabulary = read(&path);
    let start = std::time::Instant::now();
    Tokenizer::from_vocabulary(vocabulary).unwrap();
    assert!(start.elapsed().as_secs() < 20, "took {:?}", start.elapsed());
}

/// Keys of the wrong type, and none at all.
#[test]
fn metadata_without_a_vocabulary_is_refused() {
    let mut metadata = Metadata::new(Path::new("m.gguf"));
    let said = |metadata: &Metadata| Vocabulary::from_metadata(metadata).unwrap_err().to_string();
    assert_eq!(said(&metadata), "m.gguf: holds no tokenizer: the key tokenizer.ggml.model is missing");
    metadata.set("tokenizer.ggml.model", Stored::String("llama".into()));
    metadata.set("tokenizer.ggml.tokens", Stored::Array(Array::f32s(&[1.0])));
    assert!(
        said(&metadata).starts_with("m.gguf: the key tokenizer.ggml.tokens must hold texts"),
        "{}",
        said(&metadata)
    );
    metadata.set("tokenizer.ggml.tokens", Stored::Array(Array::strings(["<unk>", "a"].into_iter())));
    metadata.set("tokenizer.ggml.token_type", Stored::Array(Array::i32s(&[2, 1])));
    let vocabulary = Vocabulary::from_metadata(&metadata).unwrap();
    assert_eq!((vocabulary.tokens.len(), vocabulary.types.as_slice()), (2, &[2, 1][..]));
}

proptest::proptest! {
    /// Whatever a file says: a tokenizer that works, or a sentence; never a panic.
    #[test]
    fn hostile_vocabularies_do_not_panic(
        model in "llama|gpt2",
        pre in proptest::option::of("default|llama-bpe|deepseek-llm|smollm"),
        tokens in proptest::collection::vec("[ab▁Ġ é]{0,3}|<0x(41|C3|A9)>|<s>", 0..14),
        scores in proptest::collection::vec(proptest::num::f32::ANY, 0..14),
        types in proptest::collection::vec(-1..8, 0..14),
        pairs in proptest::collection::vec((0..14usize, 0..14usize), 0..8),
        odd in proptest::option::of("[ab ]{0,4}"),
        ids in proptest::array::uniform4(proptest::option::of(0..16u32)),
        flags in proptest::array::uniform4(proptest::option::of(proptest::bool::ANY)),
        text in "[ab▁Ġ é<s>0x41火]{0,12}",
    ) {
        let mut seen = std::collections::HashSet::new();
        let tokens: Vec<String> = tokens.into_iter().filter(|token| token.is_empty() || seen.insert(token.clone())).collect();
        let count = tokens.len();
        let fit = |length: usize| if length.is_multiple_of(3) { 0 } else { count };
        let (mut scores, mut types) = (scores, types);
        scores.resize(fit(scores.len()), 0.0);
        types.resize(fit(types.len()), 1);
        let token = |at: usize| tokens.get(at % count.max(1)).cloned().unwrap_or_default();
        let mut merges: Vec<String> = pairs.iter().map(|&(a, b)| format!("{} {}", token(a), token(b))).collect();
        merges.extend(odd);
        let vocabulary = Vocabulary {
            model, pre, scores, types, merges,
            tokens: tokens.clone(),
            bos: ids[0], eos: ids[1], eot: ids[2], unknown: ids[3],
            add_bos: flags[0], add_eos: flags[1], add_space_prefix: flags[2],
            special_strips_right: flags[3].unwrap_or(false),
            chat_template: None,
            named_templates: vec![],
        };
        if let Ok(tokenizer) = Tokenizer::from_vocabulary(vocabulary) {
            if let Ok(ids) = tokenizer.encode_prompt(&text) {
                tokenizer.decode(&ids).unwrap();
            }
            tokenizer.decode(&(0..20).collect::<Vec<u32>>()).unwrap();
            tokenizer.turn_ends();
        }
    }
}
