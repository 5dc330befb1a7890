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

fn documents(corpus: &Corpus) -> Vec<String> {
    let mut documents: Vec<String> = Vec::new();
    let mut inside = false;
    for piece in corpus.pieces() {
        let piece = piece.unwrap();
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
    let cases: [(&str, &[u8], &str); 6] = [
        ("empty.txt", b"", "empty.txt: is empty; training needs text"),
        ("blank.txt", b" \n\t\n", "blank.txt: is empty; training needs text"),
        (
            "nul.txt",
            b"abc\0def",
            "nul.txt: is a binary file, not text: a NUL byte at offset 3; give plain text or JSONL",
        ),
        (
            "latin1.txt",
            b"caf\xE9 au lait",
            "latin1.txt: is not UTF-8 text: byte 0xE9 at offset 3; convert it first, for example with iconv -t UTF-8",
        ),
        (
            "cut.txt",
            b"abc\xE4\xB8",
            "cut.txt: is not UTF-8 text: byte 0xE4 at offset 3; convert it first, for example with iconv -t UTF-8",
        ),
        ("none.jsonl", b"\n\n", "none.jsonl: is empty; training needs text"),
    ];
    for (name, content, expected) in cases {
        let (dir, corpus) = open(name, content);
        assert_eq!(message(&dir, corpus), expected);
    }
}

#[test]
fn broken_jsonl_names_file_and_line() {
    let cases: [(&[u8], &str); 4] = [
        (
            b"{\"text\": \"a\"}\n\n{\"text\": \"b\"\n",
            "d.jsonl:3: is not a JSON object with a text: EOF while parsing an object at column 12",
        ),
        (b"{\"txt\": \"a\"}\n", "d.jsonl:1: has no \"text\" field; every line must look like {\"text\": \"...\"}"),
        (
            b"{\"text\": 3}\n",
            "d.jsonl:1: is not a JSON object with a text: invalid type: integer `3`, expected a string at column 10",
        ),
        (b"{\"text\": \"a\"}\nhello\n", "d.jsonl:2: is not a JSON object with a text: expected value at column 1"),
    ];
    for (content, expected) in cases {
        let (dir, corpus) = open("d.jsonl", content);
        let error = corpus.unwrap().pieces().find_map(|piece| piece.err()).expect("an error");
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
    assert_eq!(message(&dir, none), "sub: holds no .txt, .md or .jsonl file with text in it");
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

#[test]
fn long_documents_come_in_pieces_that_join_to_the_whole() {
    for unit in ["A line of text\n", "no end of line ", "火", "x", "a\n\n"] {
        let whole = unit.repeat(5 * PIECE_BYTES / (2 * unit.len()));
        let (_dir, corpus) = open("d.txt", whole.as_bytes());
        let corpus = corpus.unwrap();
        assert!(corpus.pieces().count() >= 3);
        assert!(corpus.pieces().all(|p| p.unwrap().text.len() <= PIECE_BYTES));
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
