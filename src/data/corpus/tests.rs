//! Documents come out as they went in, and what cannot be read is refused with a sentence.

use std::fs;

use super::pieces::PIECE_BYTES;
use super::*;

fn open(name: &str, content: &[u8]) -> (tempfile::TempDir, Result<Corpus>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    fs::write(&path, content).unwrap();
    let corpus = Corpus::open(&path);
    (dir, corpus)
}

/// The error's text without the folder it happened in.
fn message<T>(dir: &tempfile::TempDir, result: Result<T>) -> String {
    let text = result.err().expect("an error").to_string();
    text.replace(&format!("{}{}", dir.path().display(), std::path::MAIN_SEPARATOR), "")
}

fn pieces(corpus: &Corpus) -> impl Iterator<Item = Piece> {
    corpus.units().map(|unit| match unit.unwrap() {
        Unit::Piece(piece) => piece,
        Unit::Record(record) => panic!("{record:?} is no text"),
    })
}

fn documents(corpus: &Corpus) -> Vec<String> {
    let mut documents: Vec<String> = Vec::new();
    let mut inside = false;
    for piece in pieces(corpus) {
        assert_eq!(piece.starts_document, !inside);
        if piece.starts_document {
            documents.push(String::new());
        }
        documents.last_mut().unwrap().push_str(&piece.text);
        inside = !piece.ends_document;
    }
    assert!(!inside, "the last document never ended");
    documents
}

#[test]
fn what_cannot_be_read_is_refused_with_a_sentence() {
    let cases: [(&str, &[u8], &str); 7] = [
        ("empty.txt", b"", "empty.txt: is empty; training needs text"),
        ("blank.txt", b" \n\t\n", "blank.txt: is empty; training needs text"),
        (
            "nul.txt",
            b"abc\0def",
            "nul.txt:1: is a binary file, not text: a NUL byte at column 4; give plain text or JSONL",
        ),
        (
            "latin1.txt",
            b"Un\ncaf\xE9 au lait",
            "latin1.txt:2: is not UTF-8 text: byte 0xE9 at column 4; convert it first, for example with iconv -t UTF-8",
        ),
        (
            "cut.txt",
            b"abc\xE4\xB8",
            "cut.txt:1: is not UTF-8 text: byte 0xE4 at column 4; convert it first, for example with iconv -t UTF-8",
        ),
        ("none.jsonl", b"\n\n", "none.jsonl: is empty; training needs text"),
        (
            "packed.txt.gz",
            b"\x1F\x8B\x08",
            "packed.txt.gz: is compressed, which only .jsonl and .json may be (.jsonl.gz, .json.zst); unpack it first",
        ),
    ];
    for (name, content, expected) in cases {
        let (dir, corpus) = open(name, content);
        assert_eq!(message(&dir, corpus), expected);
    }
}

#[test]
fn broken_jsonl_names_file_and_line() {
    let cases: [(&[u8], &str); 5] = [
        (
            b"{\"text\": \"a\"}\n\n{\"text\": \"b\"\n",
            "d.jsonl:3: is not JSON: EOF while parsing an object at column 12",
        ),
        (
            b"{\"text\": \"a\"}\n{\"txt\": \"a\"}\n",
            "d.jsonl:2: has the fields txt, which are of no form that is known: text; messages; prompt and completion; \
             instruction and output (Alpaca); conversations (ShareGPT); chosen and rejected",
        ),
        (
            b"{\"text\": null, \"id\": 3}\n",
            "d.jsonl:1: has the fields text (null), id, which are of no form that is known: text; messages; prompt and completion; \
             instruction and output (Alpaca); conversations (ShareGPT); chosen and rejected",
        ),
        (b"{\"text\": 3}\n", "d.jsonl:1: has a \"text\" that is a number and no text"),
        (b"{\"text\": \"a\"}\nhello\n", "d.jsonl:2: is not JSON: expected value at column 1"),
    ];
    for (content, expected) in cases {
        let (dir, corpus) = open("d.jsonl", content);
        let error = corpus.map_or_else(Some, |c| c.units().find_map(Result::err)).expect("an error");
        assert_eq!(message::<()>(&dir, Err(error)), expected);
    }
}

#[test]
fn a_missing_path_and_a_folder_without_text_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let missing = Corpus::open(dir.path().join("no.txt"));
    assert_eq!(message(&dir, missing), "no.txt: no such file or folder; check the path given as data");
    fs::create_dir(dir.path().join("sub")).unwrap();
    fs::write(dir.path().join("sub/picture.png"), b"x").unwrap();
    fs::write(dir.path().join("sub/empty.txt"), b"").unwrap();
    let none = Corpus::open(dir.path().join("sub"));
    assert_eq!(message(&dir, none), "sub: holds no .txt, .md, .jsonl, .json or .parquet file with text in it");
}

#[test]
fn separator_lines_part_documents_and_nothing_else_does() {
    let text = b"<|endoftext|>\nOne <|endoftext|> inline.\n<|endoftext|>\n\n<|endoftext|>\nTwo\r\n<|endoftext|>\r\nThree\n<|endoftext|>";
    let (_dir, corpus) = open("d.txt", text);
    assert_eq!(documents(&corpus.unwrap()), ["One <|endoftext|> inline.", "Two", "Three"]);
}

#[test]
fn a_byte_order_mark_is_no_text() {
    let (_dir, corpus) = open("d.txt", b"\xEF\xBB\xBFHello");
    assert_eq!(documents(&corpus.unwrap()), ["Hello"]);
}

#[test]
fn a_folder_is_read_in_the_order_of_paths() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("b")).unwrap();
    fs::write(dir.path().join("c.md"), "third").unwrap();
    fs::write(dir.path().join("b/x.jsonl"), "{\"text\": \"second\", \"id\": 4}\n{\"text\": \"\\u00e9 \\n\"}\n")
        .unwrap();
    fs::write(dir.path().join("a.txt"), "first").unwrap();
    fs::write(dir.path().join(".hidden.txt"), "never").unwrap();
    fs::write(dir.path().join("z.bin"), b"\0").unwrap();
    assert_eq!(documents(&Corpus::open(dir.path()).unwrap()), ["first", "second", "é \n", "third"]);
}

/// As they come from hubs: records one a line under the name of JSON, names in capitals, and what is about the data and none of it.
#[test]
fn folders_of_hubs_are_read_for_their_data() {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in [
        ("a.json", "{\"text\": \"one\"}\n{\"text\": \"two\"}\n"),
        ("b.json", "{\n \"splits\": {\"train\": 2}\n}\n"),
        ("c.json", "{\"splits\": {\"train\": 2}}\n"),
        ("D.JSONL", "{\"text\": \"three\"}\n"),
        ("E.TXT", "four"),
        ("README.md", "---\nlicense: mit\n---\nWhat these data are.\n"),
    ] {
        fs::write(dir.path().join(name), text).unwrap();
    }
    let mut all = documents(&Corpus::open(dir.path()).unwrap());
    all.sort();
    assert_eq!(all, ["four", "one", "three", "two"]);
    // Somebody's own text may be called so.
    fs::write(dir.path().join("README.md"), "five").unwrap();
    assert!(documents(&Corpus::open(dir.path()).unwrap()).contains(&"five".to_string()));
}

#[test]
fn long_documents_come_in_pieces_that_join_to_the_whole() {
    for unit in ["A line of text\n", "no end of line ", "火", "x", "a\n\n"] {
        let whole = unit.repeat(5 * PIECE_BYTES / (2 * unit.len()));
        let (_dir, corpus) = open("d.txt", whole.as_bytes());
        let corpus = corpus.unwrap();
        assert!(pieces(&corpus).count() >= 3);
        assert!(pieces(&corpus).all(|p| p.text.len() <= PIECE_BYTES));
        assert_eq!(documents(&corpus), [whole.as_str()], "{unit:?}");
        let line = format!("{{\"text\": {}}}\n", serde_json::to_string(&whole).unwrap()).repeat(2);
        let (_dir, corpus) = open("d.jsonl", line.as_bytes());
        assert_eq!(documents(&corpus.unwrap()), [whole.as_str(), whole.as_str()], "{unit:?}");
    }
}

#[test]
fn the_hash_follows_content_not_names() {
    let (_a, one) = open("a.txt", b"some text");
    let (_b, two) = open("b.txt", b"some text");
    let (_c, three) = open("a.txt", b"some texT");
    let [one, two, three] = [one, two, three].map(|c| c.unwrap().content_hash());
    assert_eq!(one, two);
    assert_ne!(one, three);
    assert_ne!(Corpus::stories(1, 10).content_hash(), Corpus::stories(2, 10).content_hash());
}

#[test]
fn stories_are_documents_and_a_sample_is_bounded() {
    let corpus = Corpus::stories(3, 200);
    assert_eq!(documents(&corpus), StoryGrammar::new(3).take(200).collect::<Vec<_>>());
    let sampled: usize = corpus.sample(20_000).unwrap().iter().map(String::len).sum();
    assert!((10_000..30_000).contains(&sampled), "{sampled}");
}

/// What is wrong with examples, each with file and line; of an array the line is that of the element.
#[test]
fn bad_examples_name_file_line_and_reason() {
    let good = "{\"instruction\": \"Say a\", \"input\": \"\", \"output\": \"a\"}";
    let tokenizer = crate::data::Tokenizer::train(["x"].into_iter(), 257).unwrap();
    let no_form = "which are of no form that is known: text; messages; prompt and completion; instruction and output \
                   (Alpaca); conversations (ShareGPT); chosen and rejected";
    for (name, content, expected) in [
        ("a.jsonl", format!("{good}\n{{\"instruction\": \n"), "a.jsonl:2: is not JSON: EOF while parsing a value at column 16".into()),
        ("b.jsonl", format!("{good}\n\n{{\"instruction\": \"x\"}}\n"), format!("b.jsonl:3: has the fields instruction, {no_form}")),
        ("c.jsonl", format!("{good}\n{}\n", good.replace("\"a\"}", "\" \"}")),
            "c.jsonl:2: has an empty \"output\"; leave the example out, or fill it in".into()),
        ("d.jsonl", format!("{good}\n{}\n", good.replace("\"a\"}", "7}")), "d.jsonl:2: has a \"output\" that is a number and no text".into()),
        ("e.jsonl", format!("{good}\n{{\"text\": \"x\"}}\n"),
            "e.jsonl:2: is in text form, and the file began in Alpaca form; one file has one form".into()),
        ("f.json", format!("[\n  {good},\n  {{\n \"instruction\": \"x\",\n nonsense\n}}]"),
            "f.json:5: is not JSON: key must be a string at column 2".into()),
        ("g.json", format!("[\n{good},\n\n3]"), "g.json:4: is a number and no object with fields".into()),
        ("h.json", format!("[{good}\n{good}]"), "h.json:2: has no comma between two elements of its array".into()),
        ("i.json", format!("[{good},\n{{\"output\": "), "i.json:2: ends within an element of its array; the file is cut short".into()),
        ("j.json", format!("[{good}] x"), "j.json:1: goes on after the end of its array".into()),
        ("k.json", format!("{{\n \"rows\": [{good}]\n}}"), "k.json:1: is no JSON array, nor objects one a line".into()),
        ("k.json", "7".into(), "k.json:1: is no JSON array, nor objects one a line".into()),
        ("k.json", format!("{good}\n[{good}]"), "k.json:2: is a list and no object with fields".into()),
        ("l.jsonl", "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}]}".into(),
            "l.jsonl:1: holds no answer: no message is the assistant's".into()),
        ("m.jsonl", "{\"messages\": [{\"role\": \"user\"}]}".into(),
            "m.jsonl:1: message 1 of \"messages\" has neither \"content\" nor \"tool_calls\"".into()),
        ("n.jsonl", "{\"conversations\": [{\"from\": \"me\", \"value\": \"x\"}]}".into(),
            "n.jsonl:1: turn 1 of \"conversations\" is \"from\" \"me\", which is none of human, user, gpt, assistant, chatgpt, \
             model, bot, bing, bard, system, function_call, observation, tool, function_response".into()),
        ("n.json", format!("[{good},\n{{\"instruction\": [}},\n{good}]"),
            "n.json:2: is not JSON: } where ] is to come".into()),
        ("n.jsonl", "{\"messages\": [{\"role\": \"user\", \"content\": 5}, {\"role\": \"assistant\", \"content\": \"x\"}]}".into(),
            "n.jsonl:1: message 1 of \"messages\" has a \"content\" that is a number and no text".into()),
        ("o.jsonl", "{\"conversations\": [{\"from\": \"function_call\", \"value\": \"{x\"}]}".into(),
            "o.jsonl:1: turn 1 of \"conversations\" is a function call that is no JSON: key must be a string at column 2".into()),
        ("p.jsonl", "{\"prompt\": \"x\", \"chosen\": \"a\", \"rejected\": \"a\"}".into(),
            "p.jsonl:1: has the same answer as \"chosen\" and as \"rejected\"".into()),
    ] {
        let (dir, corpus) = open(name, content.as_bytes());
        let error = corpus.and_then(|corpus| {
            let encoder = crate::data::Encoder::new(&tokenizer, &corpus, crate::data::LossOn::Assistant)?;
            let found = corpus.units().find_map(|unit| unit.and_then(|unit| encoder.encode(&unit)).err());
            found.map_or(Ok(()), Err)
        });
        assert_eq!(message(&dir, error), expected, "{content}");
    }
    let (dir, corpus) = open("q.jsonl", &[good.as_bytes(), b"\n{\"instruction\": \"caf\xE9\"}\n"].concat());
    let advice = "convert it first, for example with iconv -t UTF-8";
    assert_eq!(message(&dir, corpus), format!("q.jsonl:2: is not UTF-8 text: byte 0xE9 at column 21; {advice}"));
}

/// The same records plain, compressed and in columns give the same examples, with the line or row of each.
#[test]
fn compressed_files_and_columns_hold_what_plain_ones_do() {
    use std::io::Write;
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/data");
    let plain = fs::read(goldens.join("chat.jsonl")).unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&plain).unwrap();
    let array = format!("[{}]", String::from_utf8_lossy(&plain).trim().replace('\n', ",\n"));
    let files = [
        ("a.jsonl", plain.clone()),
        ("b.jsonl.gz", gzip.finish().unwrap()),
        ("c.jsonl.zst", zstd::encode_all(&plain[..], 3).unwrap()),
        ("d.json.zst", zstd::encode_all(array.as_bytes(), 3).unwrap()),
        ("e.parquet", fs::read(goldens.join("chat.parquet")).unwrap()),
    ];
    let examples = |corpus: &Corpus| {
        let record = |unit: Result<Unit>| match unit.unwrap() {
            Unit::Record(record) => (record.line, record.example().unwrap()),
            Unit::Piece(piece) => panic!("{piece:?} is a text"),
        };
        corpus.units().map(record).collect::<Vec<_>>()
    };
    let (_dir, first) = open(files[0].0, &files[0].1);
    let expected = examples(&first.unwrap());
    assert_eq!(expected.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [1, 2, 3, 4]);
    for (name, content) in &files {
        let (_dir, corpus) = open(name, content);
        let corpus = corpus.unwrap();
        assert_eq!(examples(&corpus), expected, "{name}");
        assert!(corpus.units().all(|unit| unit.unwrap().bytes_done() <= corpus.bytes()), "{name}");
    }
    let (_dir, texts) = open("t.parquet", &fs::read(goldens.join("texts.parquet")).unwrap());
    assert_eq!(documents(&texts.unwrap()), ["One.", "Zwei — 二.", "Three\n\nlines."]);
    let (dir, other) = open("o.parquet", &fs::read(goldens.join("brotli.parquet")).unwrap());
    let error = other.and_then(|other| other.units().find_map(Result::err).map_or(Ok(()), Err));
    let said = "o.parquet: is compressed by brotli, which is not read here; write it with snappy, gzip or zstd";
    assert_eq!(message(&dir, error), said);
    let (dir, cut) = open("f.parquet", &files[4].1[..200]);
    let said = message(&dir, cut);
    assert!(said.starts_with("f.parquet: is no Parquet file that can be read: "), "{said}");
    let (dir, cut) = open("g.jsonl.gz", &files[1].1[..40]);
    let error = cut.and_then(|cut| cut.units().find_map(Result::err).map_or(Ok(()), Err));
    assert!(message(&dir, error).starts_with("cannot read "), "a broken stream is told");
}

/// A text that is cut short while it is tokenised is an error of who reads on, and no signal; and so is one that grew, or a list of
/// records, since tokens are kept under the name of what the file held.
#[test]
fn a_file_that_changes_while_it_is_read_is_an_error() {
    let long = "A line of some words that goes on.\n".repeat(100_000);
    let lines = "{\"text\": \"some words\"}\n".repeat(100_000);
    for (name, content, bytes) in
        [("a.txt", &long, 3_000_000), ("b.jsonl", &lines, 1_150_000), ("c.txt", &long, 4_000_000)]
    {
        let (dir, corpus) = open(name, content.as_bytes());
        let corpus = corpus.unwrap();
        let mut units = corpus.units();
        units.next().unwrap().unwrap();
        let file = fs::OpenOptions::new().write(true).open(dir.path().join(name)).unwrap();
        file.set_len(bytes).unwrap();
        if bytes > content.len() as u64 {
            // Who has it open reads what there was; the next time it is another file.
            assert!(units.all(|unit| unit.is_ok()));
            units = corpus.units();
        }
        let error = message(&dir, units.find(Result::is_err).unwrap());
        let before = content.len();
        assert_eq!(
            error,
            format!(
                "{name}: changed while it was read: {before} bytes before, {bytes} now; start again when nobody writes it"
            )
        );
    }
}

/// What is wrong with a long file is found where it is, wherever the passages end in which it is read.
#[test]
fn mistakes_are_found_across_passages() {
    let mut text = "é".repeat(600_000).into_bytes();
    text.insert(0, b'a');
    assert!(open("odd.txt", &text).1.is_ok());
    text.push(0xE9);
    let (dir, corpus) = open("odd.txt", &text);
    let column = text.len();
    assert!(
        message(&dir, corpus).starts_with(&format!("odd.txt:1: is not UTF-8 text: byte 0xE9 at column {column}; "))
    );
    let mut lines = "{\"text\": \"a\"}\n".repeat(100_000).into_bytes();
    lines.extend(b"{\"text\": \"\0\"}\n");
    let (dir, corpus) = open("nul.jsonl", &lines);
    assert!(
        message(&dir, corpus).starts_with("nul.jsonl:100001: is a binary file, not text: a NUL byte at column 11; ")
    );
}
