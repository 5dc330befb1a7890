//! `danlu generate`, and the demo's engine.

use super::progress::loading;
use super::sampling::{CacheArgs, SamplingArgs};
use super::signals::{INTERRUPTED, Signals};
use super::text::{self, Watch, whole};
use super::{AdapterArgs, batch, hub, pipelines};
use crate::base::count;
use crate::compile::human_bytes;
use crate::error::Error;
use crate::gpu::Gpu;
use crate::infer::{Finish, Generator, Growing, Options};
use crate::store::Checkpoint;
use anyhow::Result;
use clap::builder::{NonEmptyStringValueParser, RangedU64ValueParser};
use clap::{Args, Parser};
use serde_json::json;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// Flags of `danlu generate`.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// Hugging Face folder, GGUF file, or name on the hub: org/model, with @revision and :file.gguf where wanted.
    #[arg(long, value_name = "PATH|NAME")]
    pub model: PathBuf,
    /// An adapter of the model, in PEFT's form: the folder with adapter_config.json.
    #[arg(long, value_name = "FOLDER")]
    pub lora: Option<PathBuf>,
    /// What to continue.
    #[command(flatten)]
    pub source: Source,
    /// Most tokens to add.
    #[arg(long, default_value_t = 200, value_name = "N", allow_negative_numbers = true, value_parser = whole)]
    pub tokens: usize,
    /// How they are picked.
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// What they are kept in.
    #[command(flatten)]
    pub cache: CacheArgs,
    /// The text ends before this; may be given again.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, value_parser = NonEmptyStringValueParser::new())]
    pub stop: Vec<String>,
    /// One JSON object at the end, in place of the text as it comes.
    #[arg(long)]
    pub json: bool,
    /// With --batch-file: where the results go, one JSON object a line [default: standard output].
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt", "prompt_file"])]
    pub out: Option<PathBuf>,
    /// Write over the file of --out, if it is there.
    #[arg(long, requires = "out")]
    pub force: bool,
    /// With --batch-file: texts at a time.
    #[arg(long, default_value_t = 8, value_name = "N", conflicts_with_all = ["prompt", "prompt_file"],
        value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    pub batch: usize,
    /// Which adapter to compute on.
    #[command(flatten)]
    pub adapter: AdapterArgs,
}

/// Where prompts come from: one of these.
#[derive(Debug, Default, Args)]
#[group(required = true, multiple = false)]
pub struct Source {
    /// Text to continue; - reads it from standard input, to the byte: a line break at its end belongs to the text.
    #[arg(long, allow_hyphen_values = true)]
    pub prompt: Option<String>,
    /// File with the text to continue; - is standard input.
    #[arg(long, value_name = "FILE")]
    pub prompt_file: Option<PathBuf>,
    /// JSONL file with a prompt a line: {"prompt": TEXT}, beside it any of "tokens", "temperature", "top_k", "top_p",
    /// "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias", "seed", "stop", "id"; - is
    /// standard input. Lines alike in all give the same text: another "seed" gives another.
    #[arg(long, value_name = "FILE")]
    pub batch_file: Option<PathBuf>,
}

/// For the demo: the flags of a command line, as the parser fills them in.
#[derive(Parser)]
struct Parsed {
    #[command(flatten)]
    args: GenerateArgs,
}

impl GenerateArgs {
    /// The flags as they are if nothing but these two is given.
    pub fn new(model: PathBuf, prompt: String) -> GenerateArgs {
        let mut args = Parsed::parse_from(["generate", "--model=x", "--prompt="]).args;
        args.model = model;
        args.source.prompt = Some(prompt);
        args
    }
}

/// Prints prompt and continuation as the tokens come.
pub async fn generate(args: GenerateArgs) -> Result<()> {
    args.sampling.sampling()?;
    if let Some(file) = &args.source.batch_file {
        return batch::run(&args, file).await;
    }
    let text = args.source.read()?;
    let signals = Signals::listen(Some("stopped: no text was begun"))?;
    let checkpoint = hub::open(&args.model, args.lora.as_deref())?;
    let sampling = args.sampling.sampling_for(&checkpoint, args.json)?;
    let tokenizer = text::tokenizer(&checkpoint)?;
    let prompt = tokenizer.encode_prompt(&text)?;
    let wanted = prompt.len().saturating_add(args.tokens);
    let options = args.cache.options(1, wanted, checkpoint.config().max_context());
    options.check_prompt(&prompt, checkpoint.config())?;
    let gpu = Gpu::open(&args.adapter.selector()).await?;
    let mut generator = load(&gpu, &checkpoint, options).await?;
    let fed = generator.kept(prompt.len());
    if let Some(cut) = cut(prompt.len(), fed) {
        tell!("danlu: {cut}");
    }
    let mut out = super::out::Out;
    let mut say = |text: &str| {
        // A reader that left, such as `head`, is no error of ours.
        args.json || out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_ok()
    };
    let (mut growing, mut watch) = (Growing::new(&tokenizer, &prompt, args.stop.clone()), Watch::start());
    say(&text);
    let receive = |token| {
        watch.token();
        let listens = say(&growing.push(token)?);
        Ok(listens && !growing.stopped && !signals.asked())
    };
    signals.begin();
    let finish = match generator.read(&prompt, || !signals.asked()).await? {
        true => generator.generate(&prompt, args.tokens, &sampling, receive).await?,
        false => Finish::Stopped,
    };
    let (summary, seconds) = (watch.summary(fed, growing.tokens), watch.seconds());
    say(&growing.finish()?);
    say("\n");
    if args.json {
        let (reason, tokens, text_of) = (growing.reason(finish), growing.tokens, &growing.text);
        say!(
            "{}",
            json!({"prompt": text, "text": text_of, "finish": reason, "prompt_tokens": fed, "tokens": tokens,
                "seconds": seconds})
        );
    }
    let interrupted = finish == Finish::Stopped && signals.asked();
    if interrupted {
        tell!("danlu: stopped");
    }
    conclude(&generator, finish, checkpoint.config().max_context(), &summary);
    if interrupted {
        std::process::exit(INTERRUPTED);
    }
    Ok(())
}

/// Says what ended the text, where that was not the text itself, and how fast it was.
fn conclude(generator: &Generator, finish: Finish, most: usize, summary: &str) {
    let context = generator.context();
    match finish {
        Finish::ContextFull if context < most => {
            tell!("danlu: the context of {} is full: raise --context (up to {most})", count(context, "token"));
        }
        Finish::ContextFull => tell!("danlu: the model's context of {} is full", count(context, "token")),
        _ => {}
    }
    tell_summary(generator, summary);
}

/// What is said of a prompt of which a shift leaves `kept` tokens; nothing where it is refused.
pub(super) fn cut(prompt: usize, kept: usize) -> Option<String> {
    let newest = kept.saturating_sub(1);
    (0 < kept && kept < prompt).then(|| {
        format!("the prompt's {prompt} tokens are more than the context: the first and the newest {newest} are read")
    })
}

/// Says how fast it was, and what the cache takes.
pub(super) fn tell_summary(generator: &Generator, summary: &str) {
    let (bytes, dtype) = generator.cache();
    let (bytes, context) = (human_bytes(bytes), generator.context());
    let context = count(context, "token");
    tell!("danlu: {summary}; KV cache of {context} in {dtype}: {bytes}");
}

/// Loads a model, with a bar where somebody watches.
///
/// # Errors
/// As [`Generator::load`].
pub(super) async fn load(gpu: &Gpu, checkpoint: &Checkpoint, options: Options) -> Result<Generator> {
    pipelines::take(gpu);
    let (bar, mut show) = loading();
    let generator = Generator::load(gpu, checkpoint, options, &mut show).await;
    bar.finish_and_clear();
    let generator = generator?;
    pipelines::leave(gpu);
    Ok(generator)
}

impl Source {
    fn read(&self) -> Result<String, Error> {
        match (&self.prompt, &self.prompt_file) {
            (Some(text), _) if text == "-" => read_text(Path::new("-")),
            (Some(text), _) => Ok(text.clone()),
            (None, Some(file)) => read_text(file),
            (None, None) => Err(Error::Invalid("there is no prompt; give --prompt TEXT or --prompt-file FILE".into())),
        }
    }
}

/// A text file, or standard input.
///
/// # Errors
/// If it cannot be read or is no UTF-8.
pub(super) fn read_text(file: &Path) -> Result<String, Error> {
    if file != Path::new("-") {
        let text = std::fs::read_to_string(file).map_err(|e| Error::io("read", file, e))?;
        return Ok(without_mark(text));
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).map_err(|e| Error::io("read", "standard input", e))?;
    Ok(without_mark(text))
}

/// Some editors begin a file with a mark that says it is UTF-8; it is no part of the text.
fn without_mark(mut text: String) -> String {
    if text.starts_with('\u{feff}') {
        text.drain(..'\u{feff}'.len_utf8());
    }
    text
}
