//! A shard holds the same bytes whoever made it, and a damaged one is noticed.

use std::fs;

use super::*;
use crate::data::{LossOn, StoryGrammar, Tokenizer};

fn tokenizer() -> Tokenizer {
    Tokenizer::train(StoryGrammar::new(1).take(100), 600).unwrap()
}

fn encoder<'a>(tokenizer: &'a Tokenizer, corpus: &Corpus) -> Encoder<'a> {
    Encoder::new(tokenizer, corpus, LossOn::Assistant).unwrap()
}

fn build(path: impl AsRef<Path>, corpus: &Corpus, tokenizer: &Tokenizer) -> Result<Shard> {
    Shard::build(path, corpus, &encoder(tokenizer, corpus), &mut |_, _| {})
}

fn cached(folder: impl AsRef<Path>, corpus: &Corpus, tokenizer: &Tokenizer) -> Result<Shard> {
    Shard::cached(folder, corpus, &encoder(tokenizer, corpus), &mut |_, _| {})
}

fn tokens(shard: &Shard) -> Vec<u32> {
    let mut tokens = vec![0; shard.len() as usize];
    shard.read(0, &mut tokens).unwrap();
    tokens
}

#[test]
fn threads_do_not_change_a_byte() {
    let dir = tempfile::tempdir().unwrap();
    let (corpus, tokenizer) = (Corpus::stories(4, 6000), tokenizer());
    let mut bytes = Vec::new();
    for threads in [1, 4] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let path = dir.path().join(format!("{threads}.tokens"));
        let mut heard = Vec::new();
        let encoder = encoder(&tokenizer, &corpus);
        pool.install(|| Shard::build(&path, &corpus, &encoder, &mut |done, all| heard.push((done, all)))).unwrap();
        assert!(heard.len() >= 4 && heard.is_sorted() && heard.first().unwrap().0 == 0, "{heard:?}");
        assert_eq!(heard.last(), Some(&(corpus.bytes(), corpus.bytes())));
        bytes.push(fs::read(path).unwrap());
    }
    assert!(bytes[0] == bytes[1]);
}

#[test]
fn documents_stand_in_order_each_with_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = tokenizer();
    let shard = build(dir.path().join("s"), &Corpus::stories(4, 50), &tokenizer).unwrap();
    let tokens = tokens(&shard);
    let texts: Vec<_> = tokens.split(|&id| id == 0).map(|ids| tokenizer.decode(ids).unwrap()).collect();
    assert_eq!(tokens.last(), Some(&0));
    assert_eq!(texts[..50], StoryGrammar::new(4).take(50).collect::<Vec<_>>());
    assert!(!shard.is_empty() && !shard.is_marked());
    assert_eq!(shard.documents(), 50);
    let mut at = 0;
    for index in 0..50 {
        let document = shard.document(index).unwrap();
        assert!(document.start == at && document.end > at && tokens[document.end as usize - 1] == 0);
        at = document.end;
    }
    assert_eq!(at, shard.len());
}

/// A long text in pieces gives the tokens of the whole where a good place to cut was found.
#[test]
fn cutting_a_long_text_does_not_change_its_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let text: Vec<String> = StoryGrammar::new(2).take(400).map(|s| s.replace(['.', '"'], "")).collect();
    fs::write(dir.path().join("t.txt"), text.join("\n")).unwrap();
    let (corpus, tokenizer) = (Corpus::open(dir.path().join("t.txt")).unwrap(), tokenizer());
    assert!(corpus.units().count() > 3);
    let shard = build(dir.path().join("s"), &corpus, &tokenizer).unwrap();
    let whole = [tokenizer.encode(&text.join("\n")).unwrap(), vec![0]].concat();
    assert!(tokens(&shard) == whole);
}

#[test]
fn the_cache_is_used_again_and_a_damaged_entry_is_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let (corpus, tokenizer) = (Corpus::stories(4, 20), tokenizer());
    let get = |corpus: &Corpus| {
        let mut calls = 0;
        let shard =
            Shard::cached(dir.path().join("cache"), corpus, &encoder(&tokenizer, corpus), &mut |_, _| calls += 1)
                .unwrap();
        (calls > 0, shard.checksum())
    };
    let (built, checksum) = get(&corpus);
    assert!(built);
    assert_eq!(get(&corpus), (false, checksum));
    let entry = fs::read_dir(dir.path().join("cache")).unwrap().next().unwrap().unwrap().path();
    let mut bytes = fs::read(&entry).unwrap();
    bytes[100] ^= 1;
    fs::write(&entry, &bytes).unwrap();
    assert_eq!(get(&corpus), (true, checksum));
    assert!(get(&Corpus::stories(4, 21)).0, "another text is another shard");
    assert_eq!(fs::read_dir(dir.path().join("cache")).unwrap().count(), 2, "nothing temporary is left");
}

#[test]
fn damage_is_said_in_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.tokens");
    build(&path, &Corpus::stories(4, 5), &tokenizer()).unwrap();
    let good = fs::read(&path).unwrap();
    let change = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] ^= value;
        bytes
    };
    let whole = good.len();
    let cases = [
        (
            b"hello".to_vec(),
            "is no token shard of Danlu; delete it, or choose another folder for the cache".to_string(),
        ),
        (good[..20].to_vec(), "is cut short: 20 bytes, a header has 64; delete it".to_string()),
        (
            good[..whole - 1].to_vec(),
            format!("is cut short or grown: {} bytes, its header says {whole}; delete it", whole - 1),
        ),
        (change(8, 3), "is a token shard of version 1, this is version 2; delete it".to_string()),
        (change(17, 1), "has a damaged header; delete it".to_string()),
    ];
    for (bytes, expected) in cases {
        fs::write(&path, bytes).unwrap();
        let error = Shard::open(&path).unwrap_err().to_string();
        assert_eq!(error, format!("{}: {expected}", path.display()));
    }
    fs::write(&path, change(70, 1)).unwrap();
    let error = Shard::open(&path).unwrap().verify().unwrap_err().to_string();
    assert!(error.contains(": is damaged: checksum ") && error.ends_with("; delete it"), "{error}");
}

#[test]
fn a_failed_build_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("d.jsonl"), "{\"text\": \"a\"}\nbroken\n").unwrap();
    let corpus = Corpus::open(dir.path().join("d.jsonl")).unwrap();
    let out = dir.path().join("out");
    assert!(cached(&out, &corpus, &tokenizer()).is_err());
    assert_eq!(fs::read_dir(&out).unwrap().count(), 0);
}

#[test]
fn an_unwritable_folder_is_said_in_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    let folder = dir.path().join("file/cache");
    let error = cached(&folder, &Corpus::stories(1, 1), &tokenizer()).unwrap_err();
    assert!(error.to_string().starts_with(&format!("cannot create {}: ", folder.display())), "{error}");
}

/// Marks survive, and reading without them gives the tokens alone.
#[test]
fn what_is_not_to_be_predicted_is_marked() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("d.jsonl"), "{\"prompt\": \"ab\", \"completion\": \"cd\"}\n").unwrap();
    let corpus = Corpus::open(dir.path().join("d.jsonl")).unwrap();
    let tokenizer = tokenizer();
    let shard = build(dir.path().join("s"), &corpus, &tokenizer).unwrap();
    let ids = [tokenizer.encode("abcd").unwrap(), vec![0]].concat();
    let mut marked = vec![0; shard.len() as usize];
    shard.read_marked(0, &mut marked).unwrap();
    assert_eq!(tokens(&shard), ids);
    let masked: Vec<bool> = marked.iter().map(|token| token & MASKED != 0).collect();
    assert!(shard.is_marked() && masked.starts_with(&[true]) && masked.ends_with(&[false, false]), "{masked:?}");
    assert_eq!(marked.iter().map(|token| token & !MASKED).collect::<Vec<_>>(), ids);
}

/// A file that is cut short while it is open is an error of who reads behind its end, whatever reads it.
#[test]
fn a_shard_that_shrinks_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let shard = build(&path, &Corpus::stories(4, 50), &tokenizer()).unwrap();
    let mut few = [0; 8];
    shard.read(0, &mut few).unwrap();
    let first = few;
    fs::File::options().write(true).open(&path).unwrap().set_len(HEADER as u64 + 16).unwrap();
    shard.read(0, &mut few).unwrap();
    assert_eq!(few, first, "what is there is read");
    let message = format!(
        "{}: was cut short while it was in use; delete it, and its tokens are made again by the next run",
        path.display()
    );
    assert_eq!(shard.read(shard.len() - 8, &mut few).unwrap_err().to_string(), message);
    assert_eq!(shard.document(7).unwrap_err().to_string(), message);
    assert_eq!(shard.verify().unwrap_err().to_string(), message);
}

/// A process that is killed while it tokenises leaves its files; the next one on this machine removes them, and no living one's.
#[test]
fn what_a_killed_process_left_goes() {
    use crate::store::atomic::temporary;
    let dir = tempfile::tempdir().unwrap();
    let number = format!("-{}.tmp", std::process::id());
    let beside = |name: &str| temporary(&dir.path().join(name)).unwrap().to_str().unwrap().to_string();
    let living = [beside("a.tokens"), beside("a.index")];
    let dead = living.clone().map(|path| path.replace(&number, "-4294967294.tmp"));
    living.iter().chain(&dead).for_each(|path| fs::write(path, "x").unwrap());
    build(dir.path().join("b.tokens"), &Corpus::stories(4, 5), &tokenizer()).unwrap();
    assert!(living.iter().all(|path| Path::new(path).exists()));
    let swept = cfg!(target_os = "linux");
    assert!(dead.iter().all(|path| Path::new(path).exists() != swept));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), if swept { 3 } else { 5 }, "of its own it leaves the shard");
}
