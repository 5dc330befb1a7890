//! `danlu eval`: perplexity of texts, and scores of multiple-choice and cloze items.

use super::progress::loading;
use super::text;
use super::{AdapterArgs, hub, pipelines};
use crate::base::{count, read_given_text};
use crate::eval::{Perplexity, Report, Task, Windows, evaluate, perplexity, read_items};
use crate::gpu::Gpu;
use crate::infer::Scorer;
use anyhow::{Result, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Tokens that a model sees at once where it could see more and nothing is said.
const CONTEXT: usize = 2048;

/// Flags of `danlu eval`.
#[derive(Debug, Args)]
pub struct EvalArgs {
    /// Model folder, GGUF file, or a name on the hub: org/model, with @revision and :file.gguf where wanted.
    #[arg(long, value_name = "PATH|NAME")]
    model: PathBuf,
    /// An adapter of the model, in PEFT's form: the folder with adapter_config.json.
    #[arg(long, value_name = "FOLDER")]
    lora: Option<PathBuf>,
    /// Text file whose perplexity is measured; may be given again.
    #[arg(long, value_name = "FILE")]
    text: Vec<PathBuf>,
    /// JSONL file of items in the form of HellaSwag, ARC or LAMBADA; may be given again.
    #[arg(long, value_name = "FILE")]
    items: Vec<PathBuf>,
    /// Texts: tokens of a window [default: the model's context, at most 2048].
    #[arg(long, value_name = "N")]
    context: Option<usize>,
    /// Texts: tokens by which the window moves [default: half the window].
    #[arg(long, value_name = "N")]
    stride: Option<usize>,
    /// Only the first N items of a file, the first N windows of a text.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Items: how many others stand before each, with their answers.
    #[arg(long, default_value_t = 0, value_name = "N")]
    shots: usize,
    /// Items: seed by which those are drawn.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Tokens that run at once.
    #[arg(long, default_value_t = 1024, value_name = "N")]
    batch_tokens: usize,
    /// One JSON object for each file, on standard output.
    #[arg(long)]
    json: bool,
    /// Which adapter to compute on.
    #[command(flatten)]
    adapter: AdapterArgs,
}

/// One file's result.
#[derive(serde::Serialize)]
struct Line<'a, R: serde::Serialize> {
    model: String,
    file: &'a Path,
    seconds: f64,
    #[serde(flatten)]
    result: R,
}

/// Scores what the flags name.
pub async fn eval(args: EvalArgs) -> Result<()> {
    if args.text.is_empty() && args.items.is_empty() {
        bail!("nothing to evaluate: give --text FILE for perplexity, or --items FILE for multiple choice and cloze");
    }
    if args.text.is_empty() && (args.context.is_some() || args.stride.is_some()) {
        bail!(
            "--context and --stride are of texts (--text): items are scored in the whole context of the model; leave them out"
        );
    }
    if args.items.is_empty() && (args.shots > 0 || args.seed > 0) {
        bail!("--shots and --seed are of items (--items): leave them out");
    }
    if args.limit == Some(0) {
        bail!("--limit 0 leaves nothing to evaluate; give 1 or more");
    }
    // What can be wrong with files is said before a model is loaded.
    let texts = args.text.iter().map(|file| read_given_text(file)).collect::<Result<Vec<_>, _>>()?;
    // Shots are drawn from all items, whatever part of them is scored.
    let wanted = if args.shots == 0 { args.limit } else { None };
    let tasks = args.items.iter().map(|file| read_items(file, wanted)).collect::<Result<Vec<_>, _>>()?;
    for (file, (_, items)) in args.items.iter().zip(&tasks) {
        if items.iter().any(|item| item.cut) {
            let file = file.display();
            tell!(
                "danlu: {file}: by its field \"text\" it is taken for LAMBADA's, and the last word of each text is asked for"
            );
        }
    }
    let checkpoint = hub::open(&args.model, args.lora.as_deref())?;
    let most = checkpoint.config().max_context();
    let context = args.context.unwrap_or(most.min(CONTEXT));
    let windows = Windows { context, stride: args.stride.unwrap_or(context.div_ceil(2)) };
    if !args.text.is_empty() {
        windows.check(most)?;
    }
    let tokenizer = text::tokenizer(&checkpoint)?;
    let gpu = Gpu::open(&args.adapter.selector()).await?;
    pipelines::take(&gpu);
    let (bar, mut show) = loading();
    let scorer = Scorer::load(&gpu, &checkpoint, args.batch_tokens, &mut show).await;
    bar.finish_and_clear();
    let mut scorer = scorer?.tuned(Some(&super::paths::cache()));
    for (file, text) in args.text.iter().zip(&texts) {
        let started = Instant::now();
        let (bar, mut show) = scoring("windows", file);
        let result = perplexity(&mut scorer, &tokenizer, text, windows, args.limit, &mut show).await;
        bar.finish_and_clear();
        let result = result.map_err(|e| anyhow::Error::from(e).context(file.display().to_string()))?;
        args.print(file, started, &result, || say_perplexity(file, &result));
    }
    for (file, (form, items)) in args.items.iter().zip(&tasks) {
        let started = Instant::now();
        let task = Task { file, form: *form, items, limit: args.limit, shots: args.shots, seed: args.seed };
        let (bar, mut show) = scoring("choices", file);
        let result = evaluate(&mut scorer, &tokenizer, &task, &mut show).await;
        bar.finish_and_clear();
        let result = result?;
        args.print(file, started, &result, || say_report(file, &result));
    }
    pipelines::leave(&gpu);
    Ok(())
}

impl EvalArgs {
    fn print(&self, file: &Path, started: Instant, result: &impl serde::Serialize, say: impl FnOnce()) {
        if !self.json {
            return say();
        }
        let model = self.model.display().to_string();
        let line = Line { model, file, seconds: started.elapsed().as_secs_f64(), result };
        say!("{}", serde_json::to_string(&line).expect("figures serialise"));
    }
}

fn bar(template: &str) -> ProgressBar {
    ProgressBar::new(0).with_style(ProgressStyle::with_template(template).expect("a valid template"))
}

/// A bar, and what moves it.
fn scoring(what: &str, file: &Path) -> (ProgressBar, impl FnMut(usize, usize) + use<>) {
    let bar = bar(&format!("scoring {{bar:32}} {{pos}}/{{len}} {what} of {}, eta {{eta}}", file.display()));
    let moved = bar.clone();
    (bar, move |done, total| {
        moved.set_length(total as u64);
        moved.set_position(done as u64);
    })
}

fn say_perplexity(file: &Path, p: &Perplexity) {
    let (tokens, words, bytes) = (count(p.tokens, "token"), count(p.words, "word"), count(p.bytes, "byte"));
    say!("{}: {tokens}, {words}, {bytes}", file.display());
    say!("  window           {} tokens, moved by {}", p.context, p.stride);
    let error = p.perplexity_stderr.map_or(String::new(), |error| format!(" ± {}", figure(error)));
    say!("  perplexity       {}{error} a token", figure(p.perplexity));
    say!("  word perplexity  {}", figure(p.word_perplexity));
    say!("  bits per byte    {:.4}", p.bits_per_byte);
}

/// Four decimals, and an exponent where the figure is long.
fn figure(x: f64) -> String {
    if x.abs() < 1e7 { format!("{x:.4}") } else { format!("{x:.4e}") }
}

fn say_report(file: &Path, report: &Report) {
    let cut = match report.truncated {
        0 => String::new(),
        n => format!(", {n} of them cut at the front to fit the context"),
    };
    let (form, items, shots) = (report.form, count(report.items, "item"), count(report.shots, "shot"));
    say!("{}: {items} in the form of {form}, {shots}{cut}", file.display());
    for metric in &report.metrics {
        let error = metric.stderr.map_or(String::new(), |e| format!(" ± {e:.4}"));
        say!("  {:<12} {:.4}{error}", metric.name, metric.value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_figures_have_exponents() {
        assert_eq!([8.25, 4.7476236e25, f64::INFINITY].map(figure), ["8.2500", "4.7476e25", "inf"]);
    }
}
