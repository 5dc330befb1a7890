//! `danlu generate --batch-file`: many prompts, one a line of JSON, several at a time, and their results in order.

use super::generate::{GenerateArgs, load, read_text, tell_summary};
use super::text::Watch;
use crate::data::Tokenizer;
use crate::error::Error;
use crate::gpu::Gpu;
use crate::infer::{Growing, Request, Sampling};
use crate::store::Checkpoint;
use anyhow::{Result, anyhow, bail};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// A line of the file. What it leaves out is as the flags say.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    prompt: String,
    id: Option<Value>,
    tokens: Option<usize>,
    temperature: Option<f32>,
    top_k: Option<usize>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    logit_bias: Option<BTreeMap<u32, f32>>,
    seed: Option<u64>,
    stop: Option<Stop>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Stop {
    One(String),
    Many(Vec<String>),
}

/// A line that was understood.
struct Entry {
    line: usize,
    id: Option<Value>,
    prompt: String,
    stops: Vec<String>,
    request: Request,
}

impl Line {
    fn sampling(&self, flags: &Sampling) -> Result<Sampling, Error> {
        let sampling = Sampling {
            temperature: self.temperature.unwrap_or(flags.temperature),
            top_k: self.top_k.unwrap_or(flags.top_k),
            top_p: self.top_p.unwrap_or(flags.top_p),
            min_p: self.min_p.unwrap_or(flags.min_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(flags.repetition_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(flags.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(flags.frequency_penalty),
            logit_bias: self.logit_bias.clone().unwrap_or_else(|| flags.logit_bias.clone()),
            seed: self.seed.unwrap_or(flags.seed),
        };
        sampling.check().map(|()| sampling)
    }
}

/// Reads a line, or says what is wrong with it.
fn entry(number: usize, text: &str, args: &GenerateArgs, flags: &Sampling, tokenizer: &Tokenizer) -> Result<Entry> {
    let line: Line = serde_json::from_str(text)
        .map_err(|e| anyhow!("is no object with a \"prompt\" and settings of known names: {e}"))?;
    let sampling = line.sampling(flags)?;
    let prompt = tokenizer.encode_prompt(&line.prompt)?;
    let stops = match line.stop {
        None => args.stop.clone(),
        Some(Stop::One(text)) => vec![text],
        Some(Stop::Many(texts)) => texts,
    };
    let request = Request { prompt, count: line.tokens.unwrap_or(args.tokens), sampling };
    Ok(Entry { line: number, id: line.id, prompt: line.prompt, stops, request })
}

/// Continues the prompts of a file.
pub(super) async fn run(args: &GenerateArgs, model: &Path, file: &Path, flags: Sampling) -> Result<()> {
    let text = read_text(file)?;
    let checkpoint = Checkpoint::open(model)?;
    let tokenizer = Tokenizer::of(&checkpoint)?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let read = |(i, line): (usize, &str)| (i + 1, entry(i + 1, line, args, &flags, &tokenizer));
    let lines: Vec<(usize, Result<Entry>)> = lines.map(read).collect();
    if lines.is_empty() {
        bail!("{}: holds no lines; each is an object such as {{\"prompt\": \"One day\"}}", file.display());
    }
    let (mut results, mut entries) = (BTreeMap::new(), Vec::new());
    for (number, line) in lines {
        match line {
            Ok(entry) => entries.push(entry),
            Err(e) => fail(&mut results, file, number, &format!("{e:#}")),
        }
    }
    if !entries.is_empty() {
        continue_all(args, &checkpoint, &tokenizer, file, &entries, &mut results).await?;
    }
    let failed = results.values().filter(|result| result.get("error").is_some()).count();
    let lines: String = results.values().map(|result| format!("{result}\n")).collect();
    match &args.out {
        Some(out) => std::fs::write(out, lines).map_err(|e| Error::io("write", out, e))?,
        None => say!("{}", lines.trim_end()),
    }
    if failed > 0 {
        bail!("{failed} of {} lines of {} failed", results.len(), file.display());
    }
    Ok(())
}

/// A line that failed is said at once, and stands among the results.
fn fail(results: &mut BTreeMap<usize, Value>, file: &Path, line: usize, message: &str) {
    tell!("danlu: {}, line {line}: {message}", file.display());
    results.insert(line, json!({"line": line, "error": message}));
}

async fn continue_all(
    args: &GenerateArgs,
    checkpoint: &Checkpoint,
    tokenizer: &Tokenizer,
    file: &Path,
    entries: &[Entry],
    results: &mut BTreeMap<usize, Value>,
) -> Result<()> {
    let gpu = Gpu::open(&args.adapter.selector()).await?;
    let wanted = entries.iter().map(|e| e.request.prompt.len().saturating_add(e.request.count)).max().unwrap_or(1);
    let options = args.cache.options(args.batch.clamp(1, entries.len()), wanted);
    let mut generator = load(&gpu, checkpoint, options).await?;
    let growing = |e: &Entry| Growing::new(tokenizer, &e.request.prompt, e.stops.clone());
    let mut texts: Vec<Growing> = entries.iter().map(growing).collect();
    let mut watch = Watch::start();
    let requests: Vec<Request> = entries.iter().map(|e| e.request.clone()).collect();
    let receive = |i: usize, token| {
        watch.token();
        texts[i].push(token)?;
        Ok(!texts[i].stopped)
    };
    let finishes = generator.generate_batch(&requests, receive).await?;
    for ((entry, text), finish) in entries.iter().zip(&mut texts).zip(finishes) {
        text.finish()?;
        let finish = match finish {
            Ok(finish) => text.reason(finish),
            Err(e) => {
                fail(results, file, entry.line, &e.to_string());
                continue;
            }
        };
        let mut result = json!({"line": entry.line, "prompt": entry.prompt, "text": text.text, "finish": finish,
            "prompt_tokens": entry.request.prompt.len(), "tokens": text.tokens});
        if let Some(id) = &entry.id {
            result["id"] = id.clone();
        }
        results.insert(entry.line, result);
    }
    let prompts = requests.iter().map(|r| r.prompt.len()).sum::<usize>();
    let (tokens, seconds) = (texts.iter().map(|t| t.tokens).sum::<usize>(), watch.seconds());
    let summary = format!(
        "{} texts: {prompts} prompt tokens and {tokens} new ones in {seconds:.2} s, {:.1} tok/s",
        texts.len(),
        (prompts + tokens) as f64 / seconds.max(1e-9)
    );
    tell_summary(&generator, &summary);
    Ok(())
}
