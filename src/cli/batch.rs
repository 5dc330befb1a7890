//! `danlu generate --batch-file`: many prompts, one a line of JSON, several at a time, and their results in order.

mod line;
mod results;

use super::generate::{GenerateArgs, cut, load, read_text, tell_summary};
use super::hub;
use super::signals;
use super::text::{self, Watch};
use crate::base::count;
use crate::data::Tokenizer;
use crate::error::Error;
use crate::gpu::Gpu;
use crate::infer::{Generator, Growing, News, Request};
use crate::store::Checkpoint;
use anyhow::{Result, bail};
use line::{Defaults, Entry, Line};
use results::Results;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Continues the prompts of a file.
pub(super) async fn run(args: &GenerateArgs, file: &Path) -> Result<()> {
    if let Some(out) = &args.out {
        results::check(out, file, args.force)?;
    }
    let text = read_text(file)?;
    let name = if file == Path::new("-") { "standard input".to_string() } else { file.display().to_string() };
    let checkpoint = hub::open(&args.model, args.lora.as_deref())?;
    let vocabulary = checkpoint.config().vocab_size;
    let sampling = args.sampling.sampling_for(&checkpoint, args.json)?;
    let tokenizer = text::tokenizer(&checkpoint)?;
    let defaults = Defaults { args, sampling: &sampling, tokenizer: &tokenizer, vocabulary };
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let lines: Vec<Line> = lines.map(|(i, line)| defaults.read(i + 1, line)).collect();
    if lines.is_empty() {
        bail!("{name}: holds no lines; each is an object such as {{\"prompt\": \"One day\"}}");
    }
    let entries: Vec<(&Line, &Entry)> =
        lines.iter().filter_map(|line| Some((line, line.entry.as_ref().ok()?))).collect();
    let generator = match entries.is_empty() {
        true => None,
        false => Some(generator(args, &checkpoint, &entries).await?),
    };
    let results = Results::create(args.out.as_deref(), lines.iter().map(|line| line.number))?;
    let results = Arc::new(Mutex::new(results));
    leave_on_signal(&results)?;
    for line in &lines {
        if let Err(e) = &line.entry {
            lock(&results).put(line.number, failure(&name, line, &format!("{e:#}")))?;
        }
    }
    if let Some(generator) = generator {
        continue_all(generator, &tokenizer, &name, &entries, &results).await?;
    }
    let failed = lock(&results).failed;
    if failed > 0 {
        bail!("{failed} of {} lines of {name} failed", lines.len());
    }
    Ok(())
}

async fn generator(args: &GenerateArgs, checkpoint: &Checkpoint, entries: &[(&Line, &Entry)]) -> Result<Generator> {
    let wanted = |(_, e): &(&Line, &Entry)| e.request.prompt.len().saturating_add(e.request.count);
    let wanted = entries.iter().map(wanted).max().unwrap_or(1);
    let options = args.cache.options(args.batch.clamp(1, entries.len()), wanted, checkpoint.config().max_context());
    let gpu = Gpu::open(&args.adapter.selector()).await?;
    load(&gpu, checkpoint, options).await
}

fn lock(results: &Mutex<Results>) -> MutexGuard<'_, Results> {
    results.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ctrl-C leaves what is finished, whole lines of it, and says where that is.
fn leave_on_signal(results: &Arc<Mutex<Results>>) -> Result<()> {
    let results = results.clone();
    signals::listen(move |code| {
        // Held to the end: nothing more is written.
        let mut results = lock(&results);
        tell!("danlu: {}", results.stop());
        std::process::exit(code);
    })
}

/// A line that failed is said at once, and stands among the results.
fn failure(name: &str, line: &Line, message: &str) -> Value {
    tell!("danlu: {name}, line {}: {message}", line.number);
    named(line, json!({"line": line.number, "error": message}))
}

/// With what the line calls itself.
fn named(line: &Line, mut result: Value) -> Value {
    if let Some(id) = &line.id {
        result["id"] = id.clone();
    }
    result
}

async fn continue_all(
    mut generator: Generator,
    tokenizer: &Tokenizer,
    name: &str,
    entries: &[(&Line, &Entry)],
    results: &Mutex<Results>,
) -> Result<()> {
    let growing = |(_, e): &(&Line, &Entry)| Growing::new(tokenizer, &e.request.prompt, e.stops.clone());
    let mut texts: Vec<Growing> = entries.iter().map(growing).collect();
    let watch = Watch::start();
    let requests: Vec<Request> = entries.iter().map(|(_, e)| e.request.clone()).collect();
    let kept: Vec<usize> = requests.iter().map(|r| generator.kept(r.prompt.len())).collect();
    for ((line, entry), &kept) in entries.iter().zip(&kept) {
        if let Some(cut) = cut(entry.request.prompt.len(), kept) {
            tell!("danlu: {name}, line {}: {cut}", line.number);
        }
    }
    let mut done = 0;
    let hear = |i: usize, news: News| -> Result<bool, Error> {
        let ((line, entry), text) = (entries[i], &mut texts[i]);
        let finish = match news {
            News::Token(token) => {
                text.push(token)?;
                return Ok(!text.stopped);
            }
            News::End(finish) => finish,
        };
        text.finish()?;
        let result = match finish {
            Ok(finish) => {
                done += 1;
                let result = json!({"line": line.number, "prompt": entry.prompt, "text": text.text,
                    "finish": text.reason(finish), "prompt_tokens": kept[i], "tokens": text.tokens});
                named(line, result)
            }
            Err(e) => failure(name, line, &e.to_string()),
        };
        lock(results).put(line.number, result)?;
        Ok(true)
    };
    generator.generate_each(&requests, hear).await?;
    let (tokens, seconds) = (texts.iter().map(|t| t.tokens).sum::<usize>(), watch.seconds());
    // What texts have in common at their beginnings is not always computed again.
    let fed = generator.fed();
    let rate = fed as f64 / seconds.max(1e-9);
    let summary = format!(
        "{}: {}; {} computed in {seconds:.2} s, {rate:.1} tok/s",
        count(done, "text"),
        count(tokens, "new token"),
        count(fed as usize, "token")
    );
    tell_summary(&generator, &summary);
    Ok(())
}
