//! Files of one commit through hf-hub, and around it what it leaves out: sizes and digests are checked, a broken download
//! is taken up again where it broke, and what a server says never becomes a path outside the cache.

use super::refusal::Refusal;
use super::{HubEvent, HubName, HubOptions, HubReport};
use hf_hub::Cache;
use hf_hub::api::Progress;
use hf_hub::api::sync::{Api, ApiError, ApiRepo};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

/// Tries that bring nothing, one after the other, before we give up.
const TRIES: u32 = 5;

/// What is needed to download files of a commit.
pub(super) struct Download<'a> {
    pub hub: &'a HubOptions,
    pub name: &'a HubName,
    pub api: &'a Api,
    /// At the commit, so that no file is of another even if the branch moves meanwhile.
    pub repo: &'a ApiRepo,
    pub snapshot: &'a Path,
    pub commit: &'a str,
}

/// What the hub says of a file before it is downloaded.
struct Announced<'a> {
    file: &'a str,
    bytes: u64,
    /// Names the blob in the cache; of a large file it is the sha256.
    etag: String,
}

/// True for a relative path that leads nowhere but down, and that an address carries as it is.
pub(super) fn is_safe(path: &str) -> bool {
    let part = |p: &str| {
        !p.is_empty()
            && p != "."
            && p != ".."
            && !p.contains(['\\', ':', '?', '#', '%', ' '])
            && !p.contains(char::is_control)
    };
    path.split('/').all(part)
}

impl Download<'_> {
    /// Gets those of the files that the cache does not hold.
    pub fn files(&self, files: &[String], report: &mut HubReport) -> Result<(), Refusal> {
        let absent = files.iter().filter(|f| !self.snapshot.join(f).is_file());
        let announced = absent.map(|f| self.announced(f)).collect::<Result<Vec<_>, _>>()?;
        let total = announced.iter().map(|a| a.bytes).sum();
        let mut before = 0;
        for a in &announced {
            self.file(a, before, total, report)?;
            before += a.bytes;
            report(HubEvent::Progress { file: a.file, done: before, total });
        }
        Ok(())
    }

    fn announced<'f>(&self, file: &'f str) -> Result<Announced<'f>, Refusal> {
        let wrong = |what: String| Refusal::Nonsense(format!("says of {file} that {what}"));
        let answer = self.again(file, &mut |_| {}, || {
            let metadata = self.api.metadata(&self.repo.url(file))?;
            Ok((metadata.commit_hash().to_string(), metadata.etag().to_string(), metadata.size() as u64))
        });
        let (commit, etag, bytes) = answer?;
        if commit != self.commit {
            return Err(wrong(format!("it is of the commit {commit:?}, where {} was asked for", self.commit)));
        }
        // hf-hub makes a file's name of it.
        if etag.is_empty() || !etag.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') {
            return Err(wrong(format!("its etag is {etag:?}")));
        }
        Ok(Announced { file, bytes, etag })
    }

    fn file(&self, a: &Announced, before: u64, total: u64, report: &mut HubReport) -> Result<(), Refusal> {
        let blob = Cache::new(self.hub.cache.clone()).repo(self.name.repo_at(self.commit)).blob_path(&a.etag);
        let part = blob.with_extension("part");
        if fs::metadata(&part).is_ok_and(|m| m.is_file() && m.len() >= a.bytes) {
            // hf-hub would ask for the bytes after the last, which no server gives.
            fs::remove_file(&part).map_err(|e| Refusal::disk(a.file, a.bytes, e))?;
        }
        for attempt in 0..2 {
            self.transfer(a, &part, before, total, report)?;
            match check(&blob, a) {
                Ok(()) => return Ok(()),
                Err(refusal) => {
                    // Nothing that is not what was announced stays where others would trust it.
                    let _ = fs::remove_file(self.snapshot.join(a.file));
                    let _ = fs::remove_file(&blob);
                    if attempt == 1 {
                        return Err(refusal);
                    }
                    report(HubEvent::Note(&format!("{} arrived damaged; downloading it once more", a.file)));
                }
            }
        }
        Ok(())
    }

    /// Downloads a file, from where an earlier try left off.
    fn transfer(
        &self,
        a: &Announced,
        part: &Path,
        before: u64,
        total: u64,
        report: &mut HubReport,
    ) -> Result<(), Refusal> {
        let size = || fs::metadata(part).map_or(0, |m| m.len());
        let mut reached = size();
        let mut idle = 0;
        loop {
            let watch = Watch { report, file: a.file, before, done: 0, total };
            // hf-hub's own retries forget, in one that resumes, where the file ends.
            let refusal = match self.repo.download_with_progress(a.file, watch) {
                Ok(_) => return Ok(()),
                Err(error) => Refusal::of_file(a.file, a.bytes, error),
            };
            let now = size();
            idle = if now > reached { 0 } else { idle + 1 };
            reached = now;
            self.wait_or(refusal, idle, report)?;
        }
    }

    /// Asks until there is an answer, or too often.
    fn again<T>(
        &self,
        file: &str,
        report: &mut HubReport,
        ask: impl Fn() -> Result<T, ApiError>,
    ) -> Result<T, Refusal> {
        let mut idle = 0;
        loop {
            match ask() {
                Ok(answer) => return Ok(answer),
                Err(error) => {
                    idle += 1;
                    self.wait_or(Refusal::of_file(file, 0, error), idle, report)?;
                }
            }
        }
    }

    /// Waits before another try, or gives the refusal back where another try would not help.
    fn wait_or(&self, refusal: Refusal, idle: u32, report: &mut HubReport) -> Result<(), Refusal> {
        if !refusal.may_pass() || idle >= TRIES {
            return Err(refusal);
        }
        report(HubEvent::Note(&format!("the connection broke ({}); taking it up again", refusal.reason())));
        std::thread::sleep(self.hub.retry_wait * (1 << idle));
        Ok(())
    }
}

/// Turns hf-hub's words about one file into ours about all.
struct Watch<'a, 'r> {
    report: &'a mut HubReport<'r>,
    file: &'a str,
    before: u64,
    done: u64,
    total: u64,
}

impl Progress for Watch<'_, '_> {
    fn init(&mut self, _size: usize, _file: &str) {
        self.done = 0;
    }

    fn update(&mut self, size: usize) {
        self.done += size as u64;
        (self.report)(HubEvent::Progress { file: self.file, done: self.before + self.done, total: self.total });
    }

    fn finish(&mut self) {}
}

/// Holds a file to what was announced.
fn check(blob: &PathBuf, a: &Announced) -> Result<(), Refusal> {
    let mut file = File::open(blob).map_err(|e| Refusal::disk(a.file, a.bytes, e))?;
    let got = file.metadata().map_or(0, |m| m.len());
    if got != a.bytes {
        return Err(Refusal::Damaged {
            file: a.file.into(),
            what: format!("it has {got} bytes instead of {}", a.bytes),
        });
    }
    if a.etag.len() != 64 || !a.etag.chars().all(|c| c.is_ascii_hexdigit()) {
        return Ok(());
    }
    let mut digest = ring::digest::Context::new(&ring::digest::SHA256);
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).map_err(|e| Refusal::disk(a.file, a.bytes, e))? {
            0 => break,
            n => digest.update(&buffer[..n]),
        }
    }
    let hex: String = digest.finish().as_ref().iter().map(|b| format!("{b:02x}")).collect();
    if hex != a.etag.to_ascii_lowercase() {
        return Err(Refusal::Damaged {
            file: a.file.into(),
            what: format!("its sha256 is {hex} instead of {}", a.etag),
        });
    }
    Ok(())
}
