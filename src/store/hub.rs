//! Models and data sets by their name on a hub: `org/model[@revision]`, `org/model[@revision]:file.gguf`, and
//! `org/data[@revision][:file]`, downloaded through hf-hub into the cache that Hugging Face's tools share. What hf-hub 0.5 leaves out is in `hub/download.rs`; why 0.5, in
//! docs/decisions/0005-hf-hub-0.5.md.

mod data;
mod download;
mod refusal;

use super::folder::{TEMPLATES_FOLDER, TOKENIZER_FILES};
use super::gguf::part_names;
use super::shards::{INDEX, WEIGHTS, listed, weight_files};
use crate::base::count;
use crate::error::{Error, Result};
use data::{is_about, is_data, training_files, walk};
use download::{Download, is_safe};
use hf_hub::api::sync::{Api, ApiBuilder, ApiRepo};
use hf_hub::{Cache, CacheRepo, Repo, RepoType};
use refusal::Refusal;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the hub is, where its files are kept, and what may be done. The library reads no environment: whoever calls it
/// says what HF_ENDPOINT, HF_HOME and the like say.
#[derive(Debug, Clone)]
pub struct HubOptions {
    /// Address of the hub, without a slash at the end.
    pub endpoint: String,
    /// Folder of the cache, usually `~/.cache/huggingface/hub`.
    pub cache: PathBuf,
    /// The user's token, which opens private and gated models.
    pub token: Option<String>,
    /// True if only the cache may be used.
    pub offline: bool,
    /// Wait before a broken download is taken up again; doubled each time that brings nothing.
    pub retry_wait: Duration,
    /// A download that brings nothing for so long is broken off, and taken up again.
    pub stall: Duration,
}

/// What happens while a model is fetched.
#[derive(Debug, Clone, Copy)]
pub enum HubEvent<'a> {
    /// A sentence that the user should see.
    Note(&'a str),
    /// Bytes that have arrived.
    Progress {
        /// The file that is being downloaded.
        file: &'a str,
        /// Bytes of all files of this download that are here.
        done: u64,
        /// Bytes of all files of this download.
        total: u64,
    },
}

/// Receives what happens.
pub type HubReport<'a> = dyn FnMut(HubEvent) + 'a;

/// A model's name on a hub, or a data set's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubName {
    /// `org/model`.
    pub repo: String,
    /// Branch, tag or commit; `main` where none is given.
    pub revision: String,
    /// A GGUF file of the repository; none for the model in Hugging Face's form. Of a data set one of its files.
    pub file: Option<String>,
    /// Whether it is a data set's.
    pub data: bool,
}

impl HubName {
    /// Reads `org/model[@revision][:file.gguf]`; none if the text has another form, such as a path's.
    pub fn parse(text: &str) -> Option<HubName> {
        let gguf = |file: &str| file.to_ascii_lowercase().ends_with(".gguf");
        HubName::parse_with(text, false, &gguf)
    }

    /// Reads `org/data[@revision][:file]`, with or without `datasets/` before it; none if the text has another form.
    pub fn parse_data(text: &str) -> Option<HubName> {
        HubName::parse_with(text.strip_prefix("datasets/").unwrap_or(text), true, &is_data)
    }

    fn parse_with(text: &str, data: bool, is_file: &dyn Fn(&str) -> bool) -> Option<HubName> {
        let (rest, file) = match text.split_once(':') {
            Some((rest, file)) => (rest, Some(file)),
            None => (text, None),
        };
        let (repo, revision) = rest.split_once('@').unwrap_or((rest, "main"));
        let word = |s: &str| {
            s.starts_with(|c: char| c.is_ascii_alphanumeric())
                && s.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
                && !s.contains("..")
        };
        let (org, model) = repo.split_once('/')?;
        let fits = word(org) && word(model) && revision.split('/').all(word);
        let name = HubName { repo: repo.into(), revision: revision.into(), file: file.map(String::from), data };
        (fits && file.is_none_or(|file| is_safe(file) && is_file(file))).then_some(name)
    }

    fn repo_at(&self, revision: &str) -> Repo {
        let kind = if self.data { RepoType::Dataset } else { RepoType::Model };
        Repo::with_revision(self.repo.clone(), kind, revision.into())
    }
}

impl fmt::Display for HubName {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.repo)?;
        if self.revision != "main" {
            write!(f, "@{}", self.revision)?;
        }
        self.file.as_ref().map_or(Ok(()), |file| write!(f, ":{file}"))
    }
}

/// What of a model is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HubPart {
    /// All of it.
    Model,
    /// config.json.
    Config,
    /// tokenizer.json and what lies beside it for the tokenizer.
    Tokenizer,
    /// The files of a data set that are for training.
    Data,
}

/// The file, or all parts of the model of which it is one.
fn parts(file: &str) -> Vec<String> {
    part_names(file).unwrap_or_else(|| vec![file.into()])
}

/// A hub and the cache in front of it.
#[derive(Debug, Clone)]
pub struct Hub {
    options: HubOptions,
}

impl Hub {
    /// Nothing is asked yet.
    ///
    /// # Errors
    /// If the cache's path cannot be made absolute, or the endpoint is no address.
    pub fn new(mut options: HubOptions) -> Result<Hub> {
        options.cache = std::path::absolute(&options.cache).map_err(|e| Error::io("find", &options.cache, e))?;
        let address = options.endpoint.strip_prefix("https://").or(options.endpoint.strip_prefix("http://"));
        if address.is_none_or(|a| {
            a.trim_end_matches('/').is_empty() || a.contains(|c: char| c.is_whitespace() || c.is_control())
        }) {
            let message = format!(
                "the hub's address {:?} does not begin with https:// or http://; check HF_ENDPOINT",
                options.endpoint
            );
            return Err(Error::Invalid(message));
        }
        options.endpoint.truncate(options.endpoint.trim_end_matches('/').len());
        Ok(Hub { options })
    }

    /// The folder, or the GGUF file, of a model: from the cache where it holds all of it, else downloaded. `main` and
    /// other names that may move are looked up each time, unless offline or where the hub cannot be reached. Of a GGUF
    /// model in parts, all come, whichever is named.
    ///
    /// # Errors
    /// A sentence for a model, revision or file that is not there or not open to this user, a hub that cannot be
    /// reached, a full disk, and content that is not what the hub announced.
    pub fn fetch(&self, name: &HubName, report: &mut HubReport) -> Result<PathBuf> {
        self.fetch_part(name, HubPart::Model, report)
    }

    /// As [`Hub::fetch`], of less than a model: the folder holds at least that.
    ///
    /// # Errors
    /// As [`Hub::fetch`].
    pub fn fetch_part(&self, name: &HubName, part: HubPart, report: &mut HubReport) -> Result<PathBuf> {
        let path = self.fetch_any(name, part, report)?;
        if part == HubPart::Data && name.file.is_none() {
            let mut files = Vec::new();
            walk(&path, &path, &mut files)?;
            let wanted = training_files(&files);
            if let Some(other) = files.iter().find(|file| is_data(file) && !is_about(file) && !wanted.contains(file)) {
                return Err(Error::Invalid(format!(
                    "of the data set {name} the cache holds {other} besides the files for training, and a folder is read whole; \
                     name the file that is meant, as {name}:{}, or remove {}",
                    wanted.first().map_or("file", String::as_str),
                    path.join(other).display()
                )));
            }
        }
        Ok(path)
    }

    fn fetch_any(&self, name: &HubName, part: HubPart, report: &mut HubReport) -> Result<PathBuf> {
        let cached = self.cached(name, part);
        // Other tools keep single files under the same name.
        let told = |path: &Path, report: &mut HubReport| {
            let mut files = Vec::new();
            if part == HubPart::Data && name.file.is_none() && walk(path, path, &mut files).is_ok() {
                let held = count(training_files(&files).len(), "file");
                report(HubEvent::Note(&format!(
                    "of {name} the cache holds {held}; whether there are more only the hub says"
                )));
            }
        };
        if self.options.offline {
            cached.iter().for_each(|path| told(path, report));
            return cached.map_err(|missing| self.refuse(name, Refusal::Offline { missing }));
        }
        if cached.is_err() {
            // Before anything is asked: whoever waits for gigabytes should not learn in the end that they had no place.
            self.probe().map_err(|error| self.refuse(name, Refusal::disk("anything", 0, error)))?;
        }
        let api = self.api().map_err(|refusal| self.refuse(name, refusal))?;
        let (files, commit) = match (self.list(&api.repo(name.repo_at(&name.revision))), cached) {
            (Ok(listing), _) => listing,
            (Err(Refusal::Unreachable(reason)), Ok(path)) => {
                let note = format!("cannot reach {} ({reason}); using {name} from the cache", self.options.endpoint);
                report(HubEvent::Note(&note));
                told(&path, report);
                return Ok(path);
            }
            // The hub is there and has no time: what lies here is as good as it was.
            (Err(refusal), Ok(path)) if refusal.may_pass() => {
                report(HubEvent::Note(&format!("{}; using {name} from the cache", self.refuse(name, refusal))));
                told(&path, report);
                return Ok(path);
            }
            (Err(refusal), _) => return Err(self.refuse(name, refusal)),
        };
        let snapshot = self.cache(name, &commit).pointer_path(&commit);
        let repo = api.repo(name.repo_at(&commit));
        let agent = self.agent();
        let mut get = |wanted: &[String]| {
            if let Some(file) = wanted.iter().find(|file| !files.contains(file)) {
                return Err(self.refuse(name, Refusal::NoFile { file: file.clone(), files: files.clone() }));
            }
            let (hub, api, repo, snapshot, commit) = (&self.options, &api, &repo, &snapshot, &commit);
            let download = Download { hub, name, api, agent: &agent, repo, snapshot, commit };
            download.files(wanted, report).map_err(|refusal| self.refuse(name, refusal))
        };
        let there = |wanted: &[&str]| -> Vec<String> {
            let listed = |file: &&&str| files.iter().any(|f| f == **file);
            wanted.iter().filter(listed).map(|file| file.to_string()).collect()
        };
        let template = |file: &&String| {
            let inside = file.strip_prefix(TEMPLATES_FOLDER).and_then(|rest| rest.strip_prefix('/'));
            inside.is_some_and(|name| name.ends_with(".jinja") && !name.contains('/'))
        };
        let beside: Vec<String> =
            there(&TOKENIZER_FILES).into_iter().chain(files.iter().filter(template).cloned()).collect();
        match (part, &name.file) {
            (_, Some(file)) => get(&parts(file))?,
            (HubPart::Data, None) => match &training_files(&files)[..] {
                [] => return Err(self.refuse(name, Refusal::NoData { files })),
                wanted => get(wanted)?,
            },
            (HubPart::Config, None) => get(&["config.json".into()])?,
            (HubPart::Tokenizer, None) => {
                get(&["tokenizer.json".into()])?;
                get(&beside)?;
            }
            (HubPart::Model, None) => {
                let weights = there(&[WEIGHTS, INDEX]).into_iter().next();
                let Some(weights) = weights.filter(|_| files.iter().any(|f| f == "config.json")) else {
                    return Err(self.refuse(name, Refusal::NoModel { files }));
                };
                get(&[there(&["config.json", "generation_config.json"]), beside].concat())?;
                get(std::slice::from_ref(&weights))?;
                if weights == INDEX {
                    get(&listed(&snapshot.join(INDEX))?)?;
                }
            }
        }
        // Only now does the revision's name lead to this commit: what is found in the cache is complete. A part of a
        // model does not take the name from a whole one.
        let whole = part == HubPart::Model || (part == HubPart::Data && name.file.is_none());
        if whole || (!name.data && self.cached(name, HubPart::Model).is_err()) {
            let noted = self.cache(name, &name.revision).create_ref(&commit);
            noted.map_err(|e| self.refuse(name, Refusal::disk("refs", commit.len() as u64, e)))?;
        }
        Ok(name.file.as_ref().map_or(snapshot.clone(), |file| snapshot.join(file)))
    }

    /// The folder or file in the cache, or what is missing there.
    fn cached(&self, name: &HubName, part: HubPart) -> Result<PathBuf, Vec<String>> {
        let cache = self.cache(name, &name.revision);
        let refs = self.options.cache.join(name.repo_at("main").folder_name()).join("refs").join(&name.revision);
        let noted = fs::read_to_string(refs);
        if part == HubPart::Data && name.file.is_none() && noted.is_err() {
            // Only its name tells that all of a data set came.
            return Err(vec!["all files".into()]);
        }
        let commit = noted.unwrap_or_else(|_| name.revision.clone());
        let snapshot = cache.pointer_path(commit.trim());
        let wanted = match (part, &name.file) {
            (_, Some(file)) => parts(file),
            (HubPart::Data, None) => Vec::new(),
            (HubPart::Config, None) => vec!["config.json".into()],
            (HubPart::Tokenizer, None) => vec!["tokenizer.json".into()],
            (HubPart::Model, None) => match weight_files(&snapshot) {
                Ok(shards) => ["config.json".to_string()].into_iter().chain(shards).collect(),
                Err(_) => vec!["config.json".into(), WEIGHTS.into()],
            },
        };
        if !snapshot.is_dir() {
            return Err(if wanted.is_empty() { vec!["all files".into()] } else { wanted });
        }
        let missing: Vec<String> = wanted.into_iter().filter(|f| !snapshot.join(f).is_file()).collect();
        match (missing.is_empty(), &name.file) {
            (false, _) => Err(missing),
            (true, Some(file)) => Ok(snapshot.join(file)),
            (true, None) => Ok(snapshot),
        }
    }

    /// Makes the cache's folder and a file in it, and removes what it made: a name that is mistyped leaves nothing.
    fn probe(&self) -> std::io::Result<()> {
        let cache = &self.options.cache;
        let absent: Vec<&Path> = cache.ancestors().take_while(|folder| !folder.exists()).collect();
        let file = cache.join(format!("probe.{}.tmp", std::process::id()));
        let tried = fs::create_dir_all(cache).and_then(|()| fs::File::create(&file)).map(drop);
        let _ = fs::remove_file(&file);
        // What can be written to will be, by other processes perhaps already.
        for folder in absent.iter().filter(|_| tried.is_err()) {
            let _ = fs::remove_dir(folder);
        }
        tried
    }

    fn cache(&self, name: &HubName, revision: &str) -> CacheRepo {
        Cache::new(self.options.cache.clone()).repo(name.repo_at(revision))
    }

    fn api(&self) -> Result<Api, Refusal> {
        let builder = ApiBuilder::from_cache(Cache::new(self.options.cache.clone()))
            .with_endpoint(self.options.endpoint.clone())
            .with_token(self.options.token.clone())
            .with_user_agent("danlu", env!("CARGO_PKG_VERSION"));
        builder.build().map_err(Refusal::of)
    }

    /// Carries files. The token goes along to the hub's own host only.
    fn agent(&self) -> ureq::Agent {
        let stall = Some(self.options.stall);
        let config = ureq::Agent::config_builder()
            .user_agent(concat!("danlu/", env!("CARGO_PKG_VERSION")))
            .redirect_auth_headers(ureq::config::RedirectAuthHeaders::SameHost)
            .timeout_connect(stall)
            .timeout_per_read(stall);
        config.build().into()
    }

    /// The repository's files, and the commit that its revision stands for.
    fn list(&self, repo: &ApiRepo) -> Result<(Vec<String>, String), Refusal> {
        // With its headers, a refusal says more than its number.
        let request =
            repo.info_request().config().http_status_as_error(false).timeout_global(Some(Duration::from_secs(30)));
        let mut answer = request.build().call().map_err(Refusal::of_transfer)?;
        let code = answer.headers().get("x-error-code").and_then(|v| v.to_str().ok()).unwrap_or_default().to_string();
        if answer.status().as_u16() != 200 {
            return Err(Refusal::Status { status: answer.status().as_u16(), code, file: None });
        }
        let info: hf_hub::api::RepoInfo =
            answer.body_mut().with_config().limit(64 << 20).read_json().map_err(Refusal::of_transfer)?;
        let commit = info.sha;
        if commit.is_empty() || !commit.chars().all(|c| c.is_ascii_alphanumeric()) {
            return Err(Refusal::Nonsense(format!("names the commit {commit:?}")));
        }
        Ok((info.siblings.into_iter().map(|s| s.rfilename).filter(|f| is_safe(f)).collect(), commit))
    }

    fn refuse(&self, name: &HubName, refusal: Refusal) -> Error {
        Error::Invalid(refusal.sentence(&self.options, name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for (text, repo, revision, file) in [
            ("org/model", "org/model", "main", None),
            ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B", "main", None),
            ("org/model@v1.0", "org/model", "v1.0", None),
            ("org/model@refs/pr/1", "org/model", "refs/pr/1", None),
            ("org/model:a-Q4_0.gguf", "org/model", "main", Some("a-Q4_0.gguf")),
            ("org/model@abc123:sub/a.GGUF", "org/model", "abc123", Some("sub/a.GGUF")),
        ] {
            let name = HubName::parse(text).unwrap_or_else(|| panic!("{text}"));
            assert_eq!((&*name.repo, &*name.revision, name.file.as_deref()), (repo, revision, file), "{text}");
            assert_eq!(name.to_string(), text);
        }
        for text in [
            "",
            "model",
            "/org/model",
            "./org/model",
            "../model",
            "~/model",
            "org/model/",
            "a/b/c",
            "org/model@",
            "org/../x",
            "org/model@../../x",
            "org/model@/x",
            "org/model:x.bin",
            "org/model:../x.gguf",
            "org/model:/x.gguf",
            "-org/model",
            "org/mo del",
            r"C:\models\x.gguf",
            "C:/models/x.gguf",
            "https://hub/org/model",
            "org/model:",
            "org/m..l",
        ] {
            assert_eq!(HubName::parse(text), None, "{text}");
        }
    }

    #[test]
    fn names_of_data_sets() {
        for (text, repo, file) in [
            ("org/data", "org/data", None),
            ("datasets/org/data", "org/data", None),
            ("org/data@v2:data/train.jsonl.gz", "org/data", Some("data/train.jsonl.gz")),
        ] {
            let name = HubName::parse_data(text).unwrap_or_else(|| panic!("{text}"));
            assert_eq!((&*name.repo, name.file.as_deref(), name.data), (repo, file, true), "{text}");
        }
        for text in ["data", "org/data:../x.jsonl", "org/data:x.gguf", "a/b/c"] {
            assert_eq!(HubName::parse_data(text), None, "{text}");
        }
    }

    #[test]
    fn an_address_is_checked() {
        for endpoint in ["", "hub.example", "ftp://hub", "https://", "http://a b"] {
            let options = HubOptions {
                endpoint: endpoint.into(),
                cache: "cache".into(),
                token: None,
                offline: false,
                retry_wait: Duration::ZERO,
                stall: Duration::ZERO,
            };
            let message = Hub::new(options).unwrap_err().to_string();
            let expected =
                format!("the hub's address {endpoint:?} does not begin with https:// or http://; check HF_ENDPOINT");
            assert_eq!(message, expected);
        }
    }
}
