//! Files of one commit, into the cache that hf-hub lays out: sizes and digests are checked, a download that broke or stalled
//! is taken up again where it did, and what a server says never becomes a path outside the cache.

use super::refusal::Refusal;
use super::{HubEvent, HubName, HubOptions, HubReport};
use hf_hub::Cache;
use hf_hub::api::sync::{Api, ApiError, ApiRepo};
use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Tries that bring nothing, one after the other, before we give up.
const TRIES: u32 = 5;

/// What is needed to download files of a commit.
pub(super) struct Download<'a> {
    pub hub: &'a HubOptions,
    pub name: &'a HubName,
    pub api: &'a Api,
    /// For the files themselves: hf-hub's own has no time limits.
    pub agent: &'a ureq::Agent,
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
        let disk = |e| Refusal::disk(a.file, a.bytes, e);
        let blob = Cache::new(self.hub.cache.clone()).repo(self.name.repo_at(self.commit)).blob_path(&a.etag);
        let _lock = lock(a, &blob, self.hub.stall, report)?;
        // Another process may have brought it meanwhile, or another commit have had the same.
        if self.snapshot.join(a.file).is_file() {
            return Ok(());
        }
        // Its name says what is in it where that is a digest that can be compared.
        if a.etag.len() == 64 && blob.is_file() && check(&blob, a).is_ok() {
            return self.place(a, &blob).map_err(disk);
        }
        let part = blob.with_extension("part");
        if fs::metadata(&part).is_ok_and(|m| m.is_file() && m.len() >= a.bytes) {
            // Asked for the bytes after the last, no server gives any.
            fs::remove_file(&part).map_err(disk)?;
        }
        for attempt in 0..2 {
            self.transfer(a, &blob, before, total, report)?;
            match check(&blob, a) {
                Ok(()) => return self.place(a, &blob).map_err(disk),
                Err(refusal) => {
                    // Nothing that is not what was announced stays where others would trust it.
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
        blob: &Path,
        before: u64,
        total: u64,
        report: &mut HubReport,
    ) -> Result<(), Refusal> {
        let part = blob.with_extension("part");
        let size = || fs::metadata(&part).map_or(0, |m| m.len());
        let mut reached = size();
        let mut idle = 0;
        loop {
            let mut watch = |done| report(HubEvent::Progress { file: a.file, done: before + done, total });
            let refusal = match self.request(a, blob, &part, &mut watch) {
                Ok(()) => return Ok(()),
                Err(refusal) => refusal,
            };
            let now = size();
            idle = if now > reached { 0 } else { idle + 1 };
            reached = now;
            self.wait_or(refusal, idle, report)?;
        }
    }

    /// Asks for what is missing of a file, writes it behind what is there, and gives the whole its name.
    fn request(&self, a: &Announced, blob: &Path, part: &Path, watch: &mut dyn FnMut(u64)) -> Result<(), Refusal> {
        let disk = |e| Refusal::disk(a.file, a.bytes, e);
        let mut out = File::options().create(true).append(true).open(part).map_err(disk)?;
        let mut done = out.metadata().map_err(disk)?.len();
        let mut request = self.agent.get(self.repo.url(a.file)).header("Range", format!("bytes={done}-"));
        if let Some(token) = &self.hub.token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        let answer = request.call().map_err(|e| Refusal::of_file(a.file, a.bytes, ApiError::RequestError(e.into())))?;
        if done > 0 && answer.status().as_u16() != 206 {
            // A server that knows no ranges sends all of it.
            out.set_len(0).map_err(disk)?;
            done = 0;
        }
        let mut body = answer.into_body().into_reader();
        let mut buffer = vec![0; 1 << 18];
        loop {
            watch(done);
            match body.read(&mut buffer).map_err(|e| Refusal::Unreachable(e.to_string()))? {
                0 => break,
                n => out.write_all(&buffer[..n]).map_err(disk)?,
            }
            done = out.metadata().map_or(done, |m| m.len());
        }
        fs::rename(part, blob).map_err(disk)
    }

    /// Lets the file's name lead to its content, as every tool that shares the cache expects it.
    fn place(&self, a: &Announced, blob: &Path) -> io::Result<()> {
        let pointer = self.snapshot.join(a.file);
        fs::create_dir_all(pointer.parent().unwrap_or(self.snapshot))?;
        // One that leads nowhere is in the way.
        let _ = fs::remove_file(&pointer);
        let up = "../".repeat(a.file.split('/').count() + 1);
        // Where links are forbidden, as on Windows for most, the content itself takes the name.
        let target = PathBuf::from(format!("{up}blobs/{}", a.etag));
        link(&target, &pointer).or_else(|_| fs::rename(blob, &pointer))
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

#[cfg(unix)]
fn link(target: &Path, pointer: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, pointer)
}

#[cfg(windows)]
fn link(target: &Path, pointer: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_file(target, pointer)
}

/// Keeps other processes from the file while it is held; where one has it, such as another rank of the same run, waits for that.
fn lock(a: &Announced, blob: &Path, stall: Duration, report: &mut HubReport) -> Result<File, Refusal> {
    let disk = |e| Refusal::disk(a.file, a.bytes, e);
    fs::create_dir_all(blob.parent().unwrap_or(Path::new("."))).map_err(disk)?;
    // Whoever uses hf-hub on this cache holds the same lock.
    let lock = File::create(blob.with_extension("lock")).map_err(disk)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            report(HubEvent::Note(&format!("another process is downloading {}: waiting for it", a.file)));
            wait(&lock, a, blob, stall)?;
        }
        Err(TryLockError::Error(error)) => return Err(disk(error)),
    }
    Ok(lock)
}

/// Until the other has left, or has brought nothing for longer than a download may.
fn wait(lock: &File, a: &Announced, blob: &Path, stall: Duration) -> Result<(), Refusal> {
    let size = || fs::metadata(blob.with_extension("part")).map_or(0, |m| m.len());
    let (mut reached, mut since) = (size(), Instant::now());
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(100)),
            Err(TryLockError::Error(error)) => return Err(Refusal::disk(a.file, a.bytes, error)),
        }
        if size() != reached {
            (reached, since) = (size(), Instant::now());
        }
        // A digest of what has come takes its time, too.
        if since.elapsed() > stall.max(Duration::from_secs(1)) * 10 {
            return Err(Refusal::Locked { file: a.file.into() });
        }
    }
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
