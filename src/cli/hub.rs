//! The `--model` of every command: a path, or a name on a hub, which is then downloaded.

use super::paths;
use crate::store::{Checkpoint, Hub, HubEvent, HubName, HubOptions, HubPart};
use anyhow::{Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The address of a hub where nothing else is said.
const HUGGING_FACE: &str = "https://huggingface.co";

/// The path that an argument stands for: itself if something is there, else what a hub has under that name.
///
/// # Errors
/// If it is neither, or the hub does not give it.
pub fn resolve(argument: &Path) -> Result<PathBuf> {
    if argument.exists() {
        return Ok(argument.to_path_buf());
    }
    let text = argument.to_string_lossy().to_ascii_lowercase();
    if text.ends_with(".gguf") && !text.contains(':') {
        bail!("{}: there is no such file; a file of a model on a hub is named org/model:file.gguf", argument.display());
    }
    let Some(name) = argument.to_str().and_then(HubName::parse) else {
        bail!(
            "{}: no such file or folder, and no name on a hub, which is org/model, org/model@revision or \
             org/model:file.gguf",
            argument.display()
        );
    };
    fetch(argument, &name, HubPart::Model)
}

/// The model that an argument stands for, with an adapter of it beside it where one is named.
///
/// # Errors
/// As [`resolve`], [`Checkpoint::open`] and [`Checkpoint::adapt`].
pub fn open(model: &Path, lora: Option<&Path>) -> Result<Checkpoint> {
    let checkpoint = Checkpoint::open(&resolve(model)?)?;
    Ok(match lora {
        Some(folder) => checkpoint.adapt(folder)?,
        None => checkpoint,
    })
}

/// The folder with a part of a model for an argument that names one on a hub; any other argument as it is, for whoever
/// reads it to say what is wrong.
///
/// # Errors
/// If the hub does not give it.
pub fn resolve_part(argument: &Path, part: HubPart) -> Result<PathBuf> {
    let name = argument.to_str().and_then(HubName::parse).filter(|name| name.file.is_none() && !argument.exists());
    name.map_or_else(|| Ok(argument.into()), |name| fetch(argument, &name, part))
}

/// The same for `--config`, which may also be the name of a preset.
///
/// # Errors
/// As [`resolve_part`].
pub fn resolve_config(argument: &str) -> Result<String> {
    Ok(resolve_part(Path::new(argument), HubPart::Config)?.to_string_lossy().into_owned())
}

/// The name on a hub that a place of data may be: nothing is there, and what is named like a file of data is no name.
pub fn data_name(argument: &Path) -> Option<HubName> {
    let text = argument.to_str().unwrap_or_default();
    let lower = text.to_ascii_lowercase();
    let endings = ["txt", "md", "json", "jsonl", "ndjson", "parquet", "gz", "zst", "tokens"];
    let file = !text.contains(':') && lower.rsplit_once('.').is_some_and(|(_, ending)| endings.contains(&ending));
    HubName::parse_data(text).filter(|_| !file && !argument.exists())
}

/// The file or folder that a place of data stands for: itself, or what a hub has under that name.
///
/// # Errors
/// If the hub does not give it.
pub fn resolve_data(argument: &Path) -> Result<PathBuf> {
    match data_name(argument) {
        None => Ok(argument.into()),
        Some(name) => fetch(argument, &name, HubPart::Data),
    }
}

fn fetch(argument: &Path, name: &HubName, part: HubPart) -> Result<PathBuf> {
    let mut bar = Bar { bar: ProgressBar::hidden(), total: 0 };
    let found = Hub::new(options())?.fetch_part(name, part, &mut |event| bar.show(event));
    bar.bar.finish_and_clear();
    // Whoever mistyped a folder should not have to think of hubs.
    found.map_err(|e| anyhow::anyhow!("there is no file or folder {} here, and from the hub: {e}", argument.display()))
}

/// What the environment says, by the variables of Hugging Face's own tools.
fn options() -> HubOptions {
    let var = |name: &str| std::env::var(name).ok().map(|v| v.trim().to_string()).filter(|v| !v.is_empty());
    let on = |name: &str| var(name).is_some_and(|v| ["1", "on", "yes", "true"].contains(&&*v.to_ascii_lowercase()));
    let home = var("HF_HOME").map_or_else(paths::hugging_face, PathBuf::from);
    let from_file = || {
        let file = var("HF_TOKEN_PATH").map_or_else(|| home.join("token"), PathBuf::from);
        std::fs::read_to_string(file).ok().map(|t| t.trim().to_string()).filter(|t| !t.is_empty())
    };
    HubOptions {
        endpoint: var("HF_ENDPOINT").unwrap_or_else(|| HUGGING_FACE.into()),
        cache: var("HF_HUB_CACHE").map_or_else(|| home.join("hub"), PathBuf::from),
        token: var("HF_TOKEN").or_else(from_file),
        offline: on("HF_HUB_OFFLINE") || on("TRANSFORMERS_OFFLINE"),
        retry_wait: Duration::from_secs(1),
        stall: Duration::from_secs(60),
    }
}

/// How much of the model is here.
struct Bar {
    bar: ProgressBar,
    total: u64,
}

impl Bar {
    fn show(&mut self, event: HubEvent) {
        match event {
            HubEvent::Note(text) => self.bar.suspend(|| tell!("danlu: {text}")),
            HubEvent::Progress { file, done, total } => {
                if self.total != total {
                    self.total = total;
                    self.bar.finish_and_clear();
                    self.bar = ProgressBar::new(total);
                    let template = "downloading {msg} {bar:24} {bytes}/{total_bytes} {bytes_per_sec} eta {eta}";
                    self.bar.set_style(ProgressStyle::with_template(template).expect("a valid template"));
                }
                self.bar.set_message(file.to_string());
                self.bar.set_position(done);
            }
        }
    }
}
