//! `danlu chat`: a conversation with a model, at the terminal or from a script of lines.

mod command;
mod input;

use super::sampling::{Cache, CacheArgs, Full, SamplingArgs};
use super::signals::Signals;
use super::text::{self, whole};
use super::{AdapterArgs, generate, hub, paths};
use crate::base::count;
use crate::data::{ChatTemplate, Json, Message, RenderOptions};
use crate::gpu::Gpu;
use crate::infer::{Conversation, Finish, Sampling};
use crate::store::atomic;
use anyhow::{Context, Result, bail};
use clap::Args;
use clap::builder::{NonEmptyStringValueParser, RangedU64ValueParser};
use command::{Command, HELP};
use input::{Entry, Input};
use serde::{Deserialize, Serialize};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// A cache for more than this is asked for by name: it takes memory whether it is used or not.
const CONTEXT: usize = 4096;

/// Flags of `danlu chat`.
#[derive(Debug, Args)]
pub struct ChatArgs {
    /// Hugging Face folder, GGUF file, or name on the hub: org/model, with @revision and :file.gguf where wanted.
    #[arg(long, value_name = "PATH|NAME")]
    model: PathBuf,
    /// An adapter of the model, in PEFT's form: the folder with adapter_config.json.
    #[arg(long, value_name = "FOLDER")]
    lora: Option<PathBuf>,
    /// What the model is told about itself.
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Most tokens of an answer.
    #[arg(long, default_value_t = 1024, value_name = "N", allow_negative_numbers = true, value_parser = whole)]
    tokens: usize,
    /// How tokens are picked.
    #[command(flatten)]
    sampling: SamplingArgs,
    /// An answer ends before this; may be given again.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, value_parser = NonEmptyStringValueParser::new())]
    stop: Vec<String>,
    /// Tokens that the conversation can have; its oldest turns make room [default: the model's, at most 4096].
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    context: Option<usize>,
    /// What the KV cache holds: q8 takes little more than a quarter of f32.
    #[arg(long, value_enum, default_value_t = Cache::F32, value_name = "DTYPE")]
    kv_cache: Cache,
    /// Functions that the template may offer to the model: a JSON list of their schemas.
    #[arg(long, value_name = "FILE")]
    tools: Option<PathBuf>,
    /// A variable that the template knows, such as enable_thinking=false; may be given again.
    #[arg(long = "variable", value_name = "NAME=JSON")]
    variables: Vec<String>,
    /// Where lines that were typed are kept [default: danlu/chat_history in the user's data folder].
    #[arg(long, value_name = "FILE")]
    history: Option<PathBuf>,
    /// Which adapter to compute on.
    #[command(flatten)]
    adapter: AdapterArgs,
}

/// Talks until the input ends.
pub async fn chat(args: ChatArgs) -> Result<()> {
    args.sampling.sampling()?;
    let (tools, variables) = (args.tools.as_deref().map(read_tools).transpose()?, variables(&args.variables)?);
    let checkpoint = hub::open(&args.model, args.lora.as_deref())?;
    let sampling = args.sampling.sampling_for(&checkpoint, false)?;
    let tokenizer = text::tokenizer(&checkpoint)?;
    let template = ChatTemplate::of(&tokenizer, tools.is_some())?;
    let gpu = Gpu::open(&args.adapter.selector()).await?;
    // The conversation drops its oldest turns itself, so that the cache never has to.
    let cache = CacheArgs { context: args.context, kv_cache: args.kv_cache, context_full: Full::Stop };
    let most = checkpoint.config().max_context();
    let options = cache.options(1, most.min(CONTEXT), most);
    let generator = generate::load(&gpu, &checkpoint, options).await?;
    if template.is_fallback() {
        tell!(
            "danlu: this model came without a chat template: turns are written as \"User:\" and \"Assistant:\", which it \
             may never have seen"
        );
    }
    let history = args.history.unwrap_or_else(|| paths::data().join("chat_history"));
    let mut input = Input::new(std::io::stdin().is_terminal(), &history)?;
    let mut conversation = Conversation::new(generator, tokenizer, template);
    conversation.set_stops(args.stop);
    conversation.set_system(args.system.as_deref());
    if input.is_terminal() {
        let context = conversation.context();
        tell!("danlu: up to {context} tokens; /help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves");
    }
    let render = RenderOptions { tools, variables, now: 0, add_generation_prompt: true };
    let signals = Signals::listen(None)?;
    let mut chat = Chat { conversation, sampling, tokens: args.tokens, render, signals, dropped: 0, listens: true };
    while chat.listens {
        let text = match input.next()? {
            Entry::End => break,
            Entry::Interrupted => {
                tell!("danlu: Ctrl-D or /quit leaves");
                continue;
            }
            Entry::Text(text) => text,
        };
        let done = match Command::parse(&text) {
            Ok(Some(Command::Quit)) => break,
            Ok(Some(command)) => chat.command(command).await,
            Ok(None) => chat.ask(&text).await,
            Err(error) => Err(error),
        };
        match done {
            // A person sees what was wrong and goes on; a script that went wrong ends.
            Err(error) if input.is_terminal() => tell!("danlu: {}", super::sentence(&error)),
            done => done.with_context(|| format!("standard input, line {}", input.line()))?,
        }
    }
    input.close()
}

/// A conversation on disk, in the form in which data for instruction tuning comes.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    messages: Vec<Message>,
}

/// Who can have said something.
const ROLES: [&str; 5] = ["system", "developer", "user", "assistant", "tool"];

fn check_roles(messages: &[Message]) -> Result<()> {
    match messages.iter().enumerate().find(|(_, message)| !ROLES.contains(&message.role().as_str())) {
        Some((i, message)) => {
            bail!("message {} has the role {:?}; there are {}", i + 1, message.role(), ROLES.join(", "))
        }
        None => Ok(()),
    }
}

fn gone(dropped: usize) -> String {
    format!("{} {}", count(dropped, "message"), if dropped == 1 { "is" } else { "are" })
}

struct Chat {
    conversation: Conversation,
    sampling: Sampling,
    tokens: usize,
    render: RenderOptions,
    signals: Arc<Signals>,
    /// Messages that were left out so far, as was said.
    dropped: usize,
    /// False once nobody reads our output.
    listens: bool,
}

impl Chat {
    /// Says something and prints the answer as it comes.
    async fn ask(&mut self, text: &str) -> Result<()> {
        self.conversation.push(Message::new("user", text));
        let done = self.answer().await;
        if done.is_err() {
            self.conversation.pop();
        }
        done
    }

    async fn answer(&mut self) -> Result<()> {
        self.render.now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs() as i64);
        let mut out = super::out::Out;
        let mut listens = true;
        let signals = self.signals.clone();
        signals.begin();
        let start = Instant::now();
        let mut first = None;
        let answer = self.conversation.answer(&self.sampling, self.tokens, &self.render, |text| {
            if !text.is_empty() {
                first.get_or_insert_with(Instant::now);
            }
            listens = out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_ok();
            listens && !signals.asked()
        });
        let answer = answer.await;
        signals.end();
        let answer = answer?;
        self.listens = listens;
        say!("");
        if answer.dropped > self.dropped {
            let (dropped, context) = (answer.dropped, self.conversation.context());
            tell!("danlu: the context of {context} tokens is full: the oldest {} no longer seen", gone(dropped));
        }
        self.dropped = answer.dropped;
        match answer.finish {
            Finish::Length => {
                tell!("danlu: the answer was cut at {}; --tokens or /set tokens", count(answer.tokens, "token"));
            }
            Finish::ContextFull => tell!("danlu: the answer was cut: the context is full"),
            Finish::Stopped if listens && answer.tokens == 0 => {
                tell!("danlu: stopped before the first word; /retry asks again, /undo takes the question back");
            }
            Finish::Stopped if listens => tell!("danlu: stopped"),
            _ => {}
        }
        if std::io::stderr().is_terminal() && !(answer.finish == Finish::Stopped && answer.tokens == 0) {
            let (prompt, before) = (answer.prompt - answer.reused, first.map_or(start.elapsed(), |f| f - start));
            let rate =
                answer.tokens.saturating_sub(1) as f64 / first.map_or(1.0, |f| f.elapsed().as_secs_f64()).max(1e-9);
            tell!("[{prompt} tokens in, first word after {:.2} s, then {rate:.1} tok/s]", before.as_secs_f64());
        }
        Ok(())
    }

    /// Does what a line that begins with a stroke says.
    async fn command(&mut self, command: Command) -> Result<()> {
        match command {
            Command::Help => say!("{HELP}"),
            Command::Quit => {}
            Command::Clear => {
                let system = self.conversation.messages().iter().take(1).filter(|m| m.role() == "system");
                let system = system.cloned().collect();
                self.replace(system);
            }
            Command::System(None) => match self.conversation.messages().first().filter(|m| m.role() == "system") {
                Some(message) => say!("{}", message.content()),
                None => say!("there is no system message"),
            },
            Command::System(Some(text)) => self.conversation.set_system(Some(&text)),
            Command::Save(file) => {
                // A conversation is saved again and again; whatever else lies there is not one.
                let there = std::fs::read_to_string(&file).ok();
                if file.exists() && there.is_none_or(|text| serde_json::from_str::<Saved>(&text).is_err()) {
                    bail!("{} is there already, and is no conversation: give another name", file.display());
                }
                let saved = Saved { messages: self.conversation.messages().to_vec() };
                atomic::write_file(&file, serde_json::to_string_pretty(&saved)?.as_bytes())?;
                say!("{} in {}", count(saved.messages.len(), "message"), file.display());
            }
            Command::Load(file) => {
                let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
                let saved: Saved = serde_json::from_str(&text)
                    .with_context(|| format!("{}: is no conversation that /save wrote", file.display()))?;
                check_roles(&saved.messages).with_context(|| file.display().to_string())?;
                say!("{}", count(saved.messages.len(), "message"));
                self.replace(saved.messages);
            }
            Command::Set(setting) => {
                let mut sampling = self.sampling.clone();
                setting.apply(&mut sampling, &mut self.tokens);
                sampling.check()?;
                self.sampling = sampling;
            }
            Command::Settings => say!("{}", command::settings(&self.sampling, self.tokens)),
            Command::Undo => {
                self.take_back("user")?;
            }
            Command::Retry => {
                let question = self.take_back("user")?;
                self.conversation.push(question);
                // The same seed would give the same answer.
                self.sampling.seed = self.sampling.seed.wrapping_add(1);
                return self.answer().await;
            }
            Command::Tokens => {
                let (tokens, context) = (self.conversation.tokens(&self.render)?, self.conversation.context());
                say!("{tokens} of {context} tokens, {}", count(self.conversation.messages().len(), "message"));
            }
        }
        Ok(())
    }

    fn replace(&mut self, messages: Vec<Message>) {
        self.conversation.set_messages(messages);
        self.dropped = 0;
    }

    /// Takes back the newest messages up to the last one of a role, which is given.
    fn take_back(&mut self, role: &str) -> Result<Message> {
        if !self.conversation.messages().iter().any(|message| message.role() == role) {
            bail!("nothing was said yet");
        }
        loop {
            let message = self.conversation.pop().expect("one of them has the role");
            if message.role() == role {
                return Ok(message);
            }
        }
    }
}

fn read_tools(file: &Path) -> Result<Json> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let tools: Vec<Json> =
        serde_json::from_str(&text).with_context(|| format!("{}: is no JSON list of functions", file.display()))?;
    Ok(tools.into())
}

/// Variables of a template that are the conversation's own.
const OWN: [&str; 4] = ["messages", "tools", "add_generation_prompt", "strftime_now"];

fn variables(given: &[String]) -> Result<Vec<(String, Json)>> {
    let variable = |text: &String| match text.split_once('=') {
        Some((name, _)) if OWN.contains(&name) => {
            bail!(
                "--variable {text}: {name} is what the conversation itself gives to the template; choose another name"
            )
        }
        // What is no JSON is a text, so that nobody has to quote quotes.
        Some((name, value)) => Ok((name.to_string(), serde_json::from_str(value).unwrap_or_else(|_| value.into()))),
        None => bail!("--variable {text} is not NAME=JSON, such as enable_thinking=false"),
    };
    given.iter().map(variable).collect()
}
