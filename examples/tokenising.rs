//! How fast `danlu tokenize` is beside the `tokenizers` crate's own batches, on the same texts and cores, and that memory
//! stays flat: `cargo run --release --example tokenising -- TEXT TOKENIZER`. TEXT is repeated to some 40 MB of JSONL.

use danlu::data::{Corpus, Encoder, LossOn, Shard, Tokenizer};
use std::path::Path;
use std::time::Instant;

const DOCUMENT: usize = 2_000;
const BYTES: usize = 40 << 20;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [text, file] = &arguments[..] else { return Err("give a text file and a tokenizer.json".into()) };
    let text = std::fs::read_to_string(text)?;
    let documents: Vec<String> = pieces(&text)
        .cycle()
        .scan(0, |sum, piece| {
            *sum += piece.len();
            (*sum < BYTES).then(|| piece.to_string())
        })
        .collect();
    let bytes: usize = documents.iter().map(String::len).sum();
    let folder = std::env::temp_dir().join(format!("danlu-tokenising-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let tokenizer = Tokenizer::open(file)?;
    let theirs = tokenizers::Tokenizer::from_file(Path::new(file)).map_err(|error| error.to_string())?;
    for share in [4, 1] {
        let some = &documents[..documents.len() / share];
        let lines: String = some.iter().map(|d| format!("{}\n", serde_json::json!({ "text": d }))).collect();
        let path = folder.join(format!("{share}.jsonl"));
        std::fs::write(&path, lines)?;
        let corpus = Corpus::open(&path)?;
        let encoder = Encoder::new(&tokenizer, &corpus, LossOn::All)?;
        let (before, began) = (peak(), Instant::now());
        let shard = Shard::build(folder.join("shard"), &corpus, &encoder, &mut |_, _| {})?;
        let seconds = began.elapsed().as_secs_f64();
        let speed = bytes as f64 / share as f64 / seconds / 1e6;
        println!("danlu       {speed:6.2} MB/s  {} tokens, peak {} MB more", shard.len(), (peak() - before) / 1000);
    }
    // As their own examples call it: everything at once.
    let (before, began) = (peak(), Instant::now());
    let encoded = theirs.encode_batch(documents, false).map_err(|error| error.to_string())?;
    let seconds = began.elapsed().as_secs_f64();
    let tokens: usize = encoded.iter().map(|e| e.get_ids().len()).sum();
    println!(
        "tokenizers  {:6.2} MB/s  {tokens} tokens, peak {} MB more",
        bytes as f64 / seconds / 1e6,
        (peak() - before) / 1000
    );
    std::fs::remove_dir_all(folder)?;
    Ok(())
}

/// A text in documents of some lines.
fn pieces(text: &str) -> impl Iterator<Item = &str> + Clone {
    let mut ends = vec![0];
    for (at, _) in text.match_indices('\n') {
        if at - ends[ends.len() - 1] > DOCUMENT {
            ends.push(at);
        }
    }
    (1..ends.len()).map(move |i| ends[i]).scan(0, move |from, end| {
        let piece = &text[*from..end];
        *from = end;
        Some(piece)
    })
}

/// The most memory so far, in kB; 0 where the system does not say.
fn peak() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse().ok()).unwrap_or(0)
}
