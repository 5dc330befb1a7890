//! How fast `danlu tokenize` is beside the `tokenizers` crate's own batches, on the same texts and cores, and that memory
//! stays flat: `cargo run --release --example tokenising -- TEXT TOKENIZER [MB]`. TEXT is repeated to a JSONL of so many megabytes
//! (40), and to one of a quarter of that: what takes memory by the size of the text takes four times as much of the larger. Each
//! is measured in a process of its own, whose memory nothing else has raised.

use danlu::data::{Corpus, Encoder, LossOn, Shard, Tokenizer};
use std::error::Error;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

const DOCUMENT: usize = 2_000;
const MEGABYTES: usize = 40;
/// The word by which this program measures, and does not have it measured.
const MEASURE: &str = "--measure";

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (text, file, megabytes) = match words[..] {
        [MEASURE, "danlu", lines, tokenizer] => return danlu(Path::new(lines), Path::new(tokenizer)),
        [MEASURE, "tokenizers", lines, tokenizer] => return theirs(Path::new(lines), Path::new(tokenizer)),
        [text, file] => (text, file, MEGABYTES),
        [text, file, megabytes] => (text, file, megabytes.parse()?),
        _ => return Err("give a text file and a tokenizer.json".into()),
    };
    let text = fs::read_to_string(text)?;
    let folder = std::env::temp_dir().join(format!("danlu-tokenising-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    for share in [4, 1] {
        let lines = folder.join(format!("{share}.jsonl"));
        let (bytes, mut out) = ((megabytes << 20) / share, BufWriter::new(File::create(&lines)?));
        let (mut sum, mut documents) = (0, pieces(&text).cycle());
        while let Some(document) = documents.next().filter(|_| sum < bytes) {
            sum += document.len();
            writeln!(out, "{}", serde_json::json!({ "text": document }))?;
        }
        out.into_inner()?.sync_all()?;
        for who in ["danlu", "tokenizers"] {
            let mut measuring = Command::new(std::env::current_exe()?);
            if !measuring.args([MEASURE, who]).arg(&lines).arg(file).status()?.success() {
                return Err(format!("{who} was not measured").into());
            }
        }
    }
    fs::remove_dir_all(folder)?;
    Ok(())
}

/// What `danlu tokenize` does.
fn danlu(lines: &Path, tokenizer: &Path) -> Result<(), Box<dyn Error>> {
    let (tokenizer, corpus) = (Tokenizer::open(tokenizer)?, Corpus::open(lines)?);
    let encoder = Encoder::new(&tokenizer, &corpus, LossOn::All)?;
    let memory = Memory::now();
    let began = Instant::now();
    let shard = Shard::build(lines.with_extension("shard"), &corpus, &encoder, &mut |_, _| {})?;
    memory.tell("danlu", lines, began, shard.len())
}

/// As their own examples call it: everything at once.
fn theirs(lines: &Path, tokenizer: &Path) -> Result<(), Box<dyn Error>> {
    let tokenizer = tokenizers::Tokenizer::from_file(tokenizer).map_err(|error| error.to_string())?;
    let memory = Memory::now();
    let began = Instant::now();
    let mut documents = Vec::new();
    for line in BufReader::new(File::open(lines)?).lines() {
        let line: serde_json::Value = serde_json::from_str(&line?)?;
        documents.push(line["text"].as_str().unwrap_or_default().to_string());
    }
    let encoded = tokenizer.encode_batch(documents, false).map_err(|error| error.to_string())?;
    memory.tell("tokenizers", lines, began, encoded.iter().map(|e| e.get_ids().len() as u64).sum())
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

/// Megabytes of this process before what is measured; 0 where the system does not say.
struct Memory(f64);

impl Memory {
    /// From here on the most memory is that of what is measured: Linux forgets what was the most before.
    fn now() -> Memory {
        let _ = fs::write("/proc/self/clear_refs", "5");
        Memory(Memory::of("VmRSS:"))
    }

    fn of(what: &str) -> f64 {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix(what));
        line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok()).unwrap_or(0.0) / 1e3
    }

    fn tell(&self, who: &str, lines: &Path, began: Instant, tokens: u64) -> Result<(), Box<dyn Error>> {
        let (seconds, bytes) = (began.elapsed().as_secs_f64(), fs::metadata(lines)?.len() as f64 / 1e6);
        let (more, speed) = (Memory::of("VmHWM:") - self.0, bytes / seconds);
        println!(
            "{who:10} {bytes:6.1} MB of JSONL at {speed:6.2} MB/s, {tokens} tokens; at most {more:6.1} MB beside the {:.1} MB before",
            self.0
        );
        Ok(())
    }
}
