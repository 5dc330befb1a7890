//! Why a hub did not give a model, and the sentence for it.

use super::{HubName, HubOptions};
use hf_hub::api::sync::ApiError;
use std::io;

/// A reason.
#[derive(Debug)]
pub(super) enum Refusal {
    /// Only the cache may be used, and it lacks these files.
    Offline { missing: Vec<String> },
    /// No answer, or one that broke off.
    Unreachable(String),
    /// An answer other than the file or the listing; the hub's own code for it, where it gives one.
    Status { status: u16, code: String, file: Option<String> },
    /// The repository is there, but no model in Hugging Face's form is in it.
    NoModel { files: Vec<String> },
    /// The repository is there, but no files of data that are read are in it.
    NoData { files: Vec<String> },
    /// The repository has no such file.
    NoFile { file: String, files: Vec<String> },
    /// The operating system refused the cache.
    Disk { file: String, bytes: u64, error: io::Error },
    /// A file is not what was announced.
    Damaged { file: String, what: String },
    /// Another process is downloading the same.
    Locked { file: String },
    /// The hub said what no hub says.
    Nonsense(String),
}

impl Refusal {
    pub fn disk(file: &str, bytes: u64, error: io::Error) -> Refusal {
        Refusal::Disk { file: file.into(), bytes, error }
    }

    /// Of a request for no file in particular.
    pub fn of(error: ApiError) -> Refusal {
        Refusal::of_file("the listing", 0, error)
    }

    /// Of a request for a file of so many bytes.
    pub fn of_file(file: &str, bytes: u64, error: ApiError) -> Refusal {
        use io::ErrorKind::*;
        match error {
            ApiError::RequestError(error) => match *error {
                ureq::Error::StatusCode(status) => {
                    Refusal::Status { status, code: String::new(), file: Some(file.into()) }
                }
                error => Refusal::of_transfer(error),
            },
            ApiError::TooManyRetries(error) => Refusal::of_file(file, bytes, *error),
            ApiError::LockAcquisition(_) => Refusal::Locked { file: file.into() },
            // What the network and what the disk says comes in one kind of error.
            ApiError::IoError(error) => match error.kind() {
                UnexpectedEof | ConnectionReset | ConnectionAborted | ConnectionRefused | BrokenPipe | TimedOut
                | NotConnected | HostUnreachable | NetworkUnreachable | NetworkDown | Interrupted => {
                    Refusal::Unreachable(error.to_string())
                }
                Other if error.get_ref().is_some_and(|e| e.is::<ureq::Error>()) => {
                    Refusal::Unreachable(error.to_string())
                }
                _ => Refusal::disk(file, bytes, error),
            },
            error => Refusal::Nonsense(format!("answers for {file} in an unknown way ({error})")),
        }
    }

    /// Of a request that got no answer, or one that cannot be read.
    pub fn of_transfer(error: ureq::Error) -> Refusal {
        match error {
            ureq::Error::StatusCode(status) => Refusal::Status { status, code: String::new(), file: None },
            ureq::Error::Json(error) => {
                Refusal::Nonsense(format!("lists the model's files in an unknown way ({error})"))
            }
            ureq::Error::BadUri(_) | ureq::Error::Http(_) => {
                Refusal::Nonsense(format!("has an address or a token that no request can carry ({error})"))
            }
            error => Refusal::Unreachable(error.to_string()),
        }
    }

    /// True if it may be otherwise a moment later.
    pub fn may_pass(&self) -> bool {
        match self {
            Refusal::Unreachable(_) => true,
            Refusal::Status { status, .. } => *status == 408 || *status == 429 || *status >= 500,
            _ => false,
        }
    }

    /// The cause, in a few words.
    pub fn reason(&self) -> String {
        match self {
            Refusal::Unreachable(reason) => reason.clone(),
            Refusal::Status { status, .. } => format!("status {status}"),
            other => format!("{other:?}"),
        }
    }

    /// What is wrong and what to do.
    pub fn sentence(&self, hub: &HubOptions, name: &HubName) -> String {
        let (endpoint, cache) = (&hub.endpoint, hub.cache.display());
        match self {
            Refusal::Offline { missing } => format!(
                "{name} is not whole in the cache {cache}, it lacks {}; nothing may be downloaded: unset HF_HUB_OFFLINE once",
                few(missing)
            ),
            Refusal::Unreachable(reason) => format!(
                "cannot download {name}, {endpoint} cannot be reached or broke off ({reason}); check the network, a proxy \
                 and HF_ENDPOINT, and try again: what has arrived is kept"
            ),
            Refusal::Status { status, code, file } => self.status(hub, name, (*status, code, file.as_deref())),
            Refusal::NoModel { files } => no_model(hub, name, files),
            Refusal::NoData { files } => format!(
                "the data set {name} has no file that is read (.parquet, .jsonl, .json, .txt, .md; .gz and .zst too); there is {}",
                if files.is_empty() { "nothing".into() } else { few(files) }
            ),
            Refusal::NoFile { file, files } => {
                let alike: Vec<String> = files.iter().filter(|f| ending(f) == ending(file)).cloned().collect();
                let there = if alike.is_empty() { "none of that kind".into() } else { few(&alike) };
                format!("{} has no file {file}; there is {there}", at(name))
            }
            Refusal::Disk { file, bytes, error } => {
                use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
                let full = [StorageFull, QuotaExceeded, FileTooLarge].contains(&error.kind());
                if full {
                    return format!(
                        "cannot download {file} of {name}, the disk is full ({error}): {bytes} bytes are wanted in {cache}; \
                         free space there, or set HF_HOME to another folder, and try again: what has arrived is kept"
                    );
                }
                format!(
                    "cannot keep {file} of {name} in {cache} ({error}); make that folder writable, or set HF_HOME to another"
                )
            }
            Refusal::Damaged { file, what } => format!(
                "{file} of {name} arrived damaged twice, {what}; nothing of it was kept: try again, or check the proxy or \
                 mirror in between ({endpoint})"
            ),
            Refusal::Locked { file } => {
                format!("another process is downloading {file} of {name}; wait for it to finish, then try again")
            }
            Refusal::Nonsense(what) => {
                format!("cannot download {name}: {endpoint} {what}; is it a hub? check HF_ENDPOINT")
            }
        }
    }

    fn status(&self, hub: &HubOptions, name: &HubName, (status, code, file): (u16, &str, Option<&str>)) -> String {
        let (endpoint, repo) = (&hub.endpoint, &name.repo);
        let token = hub.token.is_some();
        match (status, code) {
            (_, "RevisionNotFound") => {
                format!(
                    "{repo} has no revision {}; its branches and commits are listed at {endpoint}/{repo}",
                    name.revision
                )
            }
            (401 | 403, "GatedRepo") | (403, _) => gated(endpoint, repo, token),
            (401, _) if file.is_some() => gated(endpoint, repo, token),
            (401, _) if token => format!(
                "{endpoint} does not accept the token for {repo}; check HF_TOKEN, or the token file in HF_HOME, and the name"
            ),
            // The hub tells strangers of a private model as little as of one that does not exist.
            (401, _) => format!(
                "{endpoint} has no model {repo}, or it is private; check the name, or set HF_TOKEN to a token of an account \
                 that may see it"
            ),
            (404, _) => match (file, code == "RepoNotFound" || name.revision == "main") {
                (Some(file), _) => format!("{endpoint} lists {file} of {name} but does not give it; try again"),
                (None, true) => format!("{endpoint} has no model {repo}; check the name"),
                (None, false) => format!("{endpoint} has no model {repo}, or that has no revision {}", name.revision),
            },
            (429, _) => format!(
                "{endpoint} wants fewer requests (status 429); wait a few minutes{}",
                if token { "" } else { ", or set HF_TOKEN: it allows more" }
            ),
            _ => format!("cannot download {name}: {endpoint} answers with status {status}; try again later"),
        }
    }
}

fn gated(endpoint: &str, repo: &str, token: bool) -> String {
    let account = if token { "the account of your HF_TOKEN" } else { "you, without a token," };
    let then = if token { "" } else { ", then set HF_TOKEN to a token of that account" };
    format!("{repo} is gated, and {account} may not download it; ask for access at {endpoint}/{repo}{then}")
}

fn no_model(hub: &HubOptions, name: &HubName, files: &[String]) -> String {
    let ggufs: Vec<String> = files.iter().filter(|f| ending(f) == "gguf").cloned().collect();
    if let Some(first) = ggufs.first() {
        return format!("{} holds GGUF files, {}; choose one, such as {}:{first}", at(name), few(&ggufs), at(name));
    }
    let pickled = files.iter().any(|f| f.ends_with(".bin") || f.ends_with(".pth") || f.ends_with(".pt"));
    if pickled && files.iter().any(|f| f == "config.json") {
        return format!(
            "{} holds its weights only as Python pickles, which are not read here because they can run code; look for the \
             model in safetensors or GGUF form, or convert it with transformers",
            at(name)
        );
    }
    format!(
        "{} at {} holds no model that can be read: that is a config.json with model.safetensors or its index, or GGUF files; \
         there is {}",
        at(name),
        hub.endpoint,
        few(files)
    )
}

/// The name without a file.
fn at(name: &HubName) -> HubName {
    HubName { file: None, ..name.clone() }
}

fn ending(file: &str) -> String {
    file.rsplit('.').next().unwrap_or_default().to_ascii_lowercase()
}

/// A few names of many.
fn few(names: &[String]) -> String {
    const SHOWN: usize = 12;
    match names.len() {
        0 => "nothing".into(),
        n if n > SHOWN => format!("{} and {} more", names[..SHOWN].join(", "), n - SHOWN),
        _ => names.join(", "),
    }
}
