//! The folder of a run: one run at a time writes there.

use super::Recipe;
use super::log::{RECIPE, RunLog};
use crate::error::{Error, Result};
use crate::store::atomic::{create_folder, ended, machine, temporary, write_file};
use crate::store::snapshot::Series;
use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

/// What a run has locked while it writes; it holds the number of its process and its machine, of whom it says nothing once it is not
/// locked, or [`ENDED`], or [`REFUSED`].
const LOCK: &str = ".lock";
/// What it holds of a run that came to its end.
const ENDED: &str = "ended";
/// What it holds of one that was refused before it began, where somebody waits for that word.
const REFUSED: &str = "refused";
/// Which run the folder is of.
pub(super) const RUN: &str = ".run";
/// A recipe as a person wrote it in the folder of its run.
pub(super) const GIVEN: &str = "recipe.given.toml";
/// For so long a run that was killed may still be leaving.
const LEAVING: Duration = Duration::from_secs(3);

/// A run's folder, which no other run may write to as long as this is there: whatever ends the process, its system unlocks it.
#[derive(Debug)]
pub struct RunLock {
    /// Closed, it is unlocked.
    file: File,
    /// Why it is not locked, where the file system has no locks.
    pub note: Option<String>,
}

impl RunLock {
    /// Locks a folder that is there.
    ///
    /// # Errors
    /// If another run has locked it, or it cannot be written to.
    pub fn take(folder: &Path) -> Result<RunLock> {
        let path = folder.join(LOCK);
        let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = options.map_err(|e| Error::io("open", &path, e))?;
        let note = wait(folder, || file.try_lock())?.map(|error| {
            let folder = folder.display();
            format!(
                "{folder} lies on a file system without locks ({error}): take care that no other run writes there, too"
            )
        });
        // For who is refused; a disk that is full refuses nobody.
        let _ = file.set_len(0).and_then(|()| writeln!(file, "{} {}", std::process::id(), machine()));
        Ok(RunLock { file, note })
    }

    /// Says of the run that it came to its end, until the next one takes the folder; who started it may not be told by what its
    /// process leaves with.
    pub fn end(mut self) {
        // Where a disk is full the run counts as one that did not, and is taken up at its end.
        let _ = self.file.set_len(0).and_then(|()| self.file.rewind()).and_then(|()| writeln!(self.file, "{ENDED}"));
    }

    /// Whether the last run in a folder came to its end.
    pub fn has_ended(folder: &Path) -> bool {
        word(folder).is_some_and(|word| word == ENDED)
    }

    /// Says of the run that is to be taken up in a folder that it is refused, to who started it and had the folder
    /// [`RunLock::forget`] what was before: to start it again would be in vain.
    pub fn refuse(folder: &Path) {
        // Of a run that has begun there it says whose it is. Where that cannot be written it is started again, and refused again.
        let _ = say(folder, REFUSED, str::is_empty);
    }

    /// Whether the last run that was to be taken up in a folder was refused before it began.
    pub fn is_refused(folder: &Path) -> bool {
        word(folder).is_some_and(|word| word == REFUSED)
    }

    /// Has a folder say nothing of a run before: what is about to begin there may not come to take it. Where another run has it
    /// locked it says so still.
    ///
    /// # Errors
    /// If it still says what became of one before.
    pub fn forget(folder: &Path) -> Result<()> {
        say(folder, "", |word| !word.is_empty())?;
        if RunLock::has_ended(folder) || RunLock::is_refused(folder) {
            return Err(Error::file(
                folder.join(LOCK),
                "says what became of a run before, and is locked; try again in a minute",
            ));
        }
        Ok(())
    }

    /// Refuses a folder that another run has locked, and makes nothing there.
    ///
    /// # Errors
    /// If so.
    pub fn check(folder: &Path) -> Result<()> {
        let Ok(file) = File::open(folder.join(LOCK)) else { return Ok(()) };
        wait(folder, || file.try_lock_shared()).map(|_| ())
    }

    /// The same, but gives the refusal of a lock that may be left of a run which has ended: of a machine that is gone, whose
    /// locks a file server keeps for a while, or by the process `own`. None is of a folder that is free.
    ///
    /// # Errors
    /// If another process of this machine's has it.
    pub fn left(folder: &Path, own: Option<u32>) -> Result<Option<Error>> {
        let Err(refusal) = RunLock::check(folder) else { return Ok(None) };
        let is_another = holder(folder)
            .is_some_and(|(process, of)| of == machine() && own != Some(process) && ended(process) != Some(true));
        if is_another { Err(refusal) } else { Ok(Some(refusal)) }
    }
}

/// What a folder's lock says; nothing where there is none.
fn word(folder: &Path) -> Option<String> {
    Some(std::fs::read_to_string(folder.join(LOCK)).ok()?.trim().to_string())
}

/// Has a folder's lock say something else where what it says `is_due`, unless a run has it: nobody takes it meanwhile.
fn say(folder: &Path, new: &str, is_due: impl Fn(&str) -> bool) -> Result<()> {
    if !word(folder).is_some_and(|word| is_due(&word)) {
        return Ok(());
    }
    let path = folder.join(LOCK);
    let mut file = OpenOptions::new().read(true).write(true).open(&path).map_err(|e| Error::io("open", &path, e))?;
    let Ok(unlocked) = wait(folder, || file.try_lock()) else { return Ok(()) };
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(|e| Error::io("read", &path, e))?;
    // Without locks a run may be at work there, which says neither of these.
    let is_free = unlocked.is_none() || [ENDED, REFUSED].contains(&text.trim());
    if !is_free || !is_due(text.trim()) {
        return Ok(());
    }
    let said = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(new.as_bytes()));
    said.map_err(|e| Error::io("write", &path, e))
}

/// Which run a folder is of, among all that were ever begun there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunId(String);

impl RunId {
    /// As a folder says it.
    pub fn read(folder: &Path) -> Option<RunId> {
        let text = std::fs::read_to_string(folder.join(RUN)).ok()?;
        let text = text.trim();
        // It becomes a part of names.
        let is_id = text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit());
        is_id.then(|| RunId(text.into()))
    }

    /// That of no run before: by the time, this process and its machine.
    fn new() -> RunId {
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
        let sum =
            digest(&SHA256, format!("{now} {}", temporary(Path::new(RUN)).unwrap_or_default().display()).as_bytes());
        RunId(sum.as_ref()[..8].iter().map(|b| format!("{b:02x}")).collect())
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Makes a folder ready for a run that is about to begin there: of one before it goes all that could be taken up in its place, its
/// checkpoints and its recipe, which stays if it is `given` to the new run.
///
/// # Errors
/// If another run has locked the folder, or something stays.
pub fn give_up(folder: &Path, given: Option<&Path>) -> Result<()> {
    if !folder.is_dir() {
        return Ok(());
    }
    RunLock::check(folder)?;
    // First: by its name neighbours' copies of that run would come back.
    let run = folder.join(RUN);
    match std::fs::remove_file(&run) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(Error::io("remove", &run, error)),
        _ => Series::of(folder).clear()?,
    }
    let recipe = folder.join(RECIPE);
    let place = |path: &Path| path.canonicalize().ok();
    let Some(own) = place(&recipe).filter(|own| given.and_then(place).as_ref() != Some(own)) else { return Ok(()) };
    std::fs::remove_file(own).map_err(|e| Error::io("remove", &recipe, e))
}

/// The process that has locked a folder, and its machine; nothing where the lock does not say them.
fn holder(folder: &Path) -> Option<(u32, String)> {
    let text = word(folder)?;
    let mut words = text.split_whitespace();
    Some((words.next()?.parse().ok()?, words.next().unwrap_or_default().into()))
}

/// Tries to lock until that is given up; gives why it cannot be done at all.
fn wait(folder: &Path, lock: impl Fn() -> Result<(), TryLockError>) -> Result<Option<std::io::Error>> {
    let until = Instant::now() + LEAVING;
    loop {
        match lock() {
            Ok(()) => return Ok(None),
            Err(TryLockError::Error(error)) => return Ok(Some(error)),
            Err(TryLockError::WouldBlock) if Instant::now() < until => std::thread::sleep(LEAVING / 20),
            Err(TryLockError::WouldBlock) => break,
        }
    }
    let path = folder.join(LOCK);
    let process = holder(folder).map_or_else(|| "another process".into(), |(number, _)| format!("process {number}"));
    let message = format!(
        "another run writes there, {process}: wait for its end, end it, or choose another --out; if it ran on a machine that is gone, \
         remove {}",
        path.display()
    );
    Err(Error::file(folder, message))
}

/// Makes the folder of a run ready for what is to come after `step`, and keeps others out of it. What begins at the first step is
/// a run of its own, whatever was there.
pub(super) fn begin(recipe: &Recipe, step: u64, device_bytes: u64) -> Result<(RunLog, RunLock, RunId)> {
    create_folder(&recipe.out)?;
    let lock = RunLock::take(&recipe.out)?;
    let run = RunId::read(&recipe.out).filter(|_| step > 0).unwrap_or_else(RunId::new);
    write_file(&recipe.out.join(RUN), format!("{run}\n").as_bytes())?;
    keep_comments(&recipe.out)?;
    write_file(&recipe.out.join(RECIPE), recipe.resolved().to_toml().as_bytes())?;
    // Those of a step that is still to come are damaged, or of another run.
    Series::of(&recipe.out).forget_after(step);
    Ok((RunLog::open(&recipe.out, step, device_bytes)?, lock, run))
}

/// A recipe that a person wrote where the run's own is to stand, as its comments show, stays beside it.
fn keep_comments(folder: &Path) -> Result<()> {
    let text = std::fs::read_to_string(folder.join(RECIPE)).unwrap_or_default();
    let is_commented = text.lines().any(|line| line.trim_start().starts_with('#'));
    if is_commented { write_file(&folder.join(GIVEN), text.as_bytes()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_s_recipe_stays_beside_the_run_s() {
        let folder = tempfile::tempdir().unwrap();
        let given = folder.path().join(GIVEN);
        for (text, stays) in [("steps = 7\n", false), ("# mine\nsteps = 7\n", true)] {
            write_file(&folder.path().join(RECIPE), text.as_bytes()).unwrap();
            keep_comments(folder.path()).unwrap();
            assert_eq!(std::fs::read_to_string(&given).ok(), stays.then(|| text.to_string()));
        }
    }

    #[test]
    fn one_run_at_a_time_has_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        RunLock::check(folder.path()).unwrap();
        assert!(std::fs::read_dir(folder.path()).unwrap().next().is_none(), "who only looks leaves nothing");
        let first = RunLock::take(folder.path()).unwrap();
        assert_eq!(first.note, None);
        for refused in [RunLock::take(folder.path()).map(|_| ()), RunLock::check(folder.path())] {
            let (said, folder) = (refused.unwrap_err().to_string(), folder.path().display());
            let by = format!("{folder}: another run writes there, process {}: wait for its end", std::process::id());
            assert!(said.starts_with(&by) && said.ends_with(&format!("remove {folder}/.lock")), "{said}");
        }
        // Only what may be left of one's own is waited for: by its process, one that has ended, or of another machine.
        let (lock, own) = (folder.path().join(LOCK), std::process::id());
        let left = |own| RunLock::left(folder.path(), own).map(|refusal| refusal.is_some());
        assert!(left(None).is_err() && left(Some(own)).unwrap());
        std::fs::write(&lock, format!("{own} elsewhere\n")).unwrap();
        assert!(left(None).unwrap());
        #[cfg(target_os = "linux")]
        {
            std::fs::write(&lock, format!("{} {}\n", i32::MAX, machine())).unwrap();
            assert!(left(None).unwrap());
        }
        drop(first);
        assert!(!left(None).unwrap());
        let ended = || RunLock::has_ended(folder.path());
        assert!(!ended());
        RunLock::take(folder.path()).unwrap().end();
        assert!(ended() && !left(None).unwrap());
        let again = RunLock::take(folder.path()).unwrap();
        assert!(!ended() && left(Some(own)).unwrap());
        again.end();
        let refused = || {
            RunLock::refuse(folder.path());
            RunLock::is_refused(folder.path())
        };
        assert!(!refused(), "nobody waits for that word");
        RunLock::forget(folder.path()).unwrap();
        assert!(!ended() && refused() && !ended());
        let begun = RunLock::take(folder.path()).unwrap();
        assert!(!refused(), "it has begun");
        RunLock::forget(folder.path()).unwrap();
        assert_eq!(holder(folder.path()), Some((own, machine().into())), "it is at work");
        drop(begun);
        assert!(!refused(), "it had begun");
        // One that is about to leave is waited for.
        let leaving = RunLock::take(folder.path()).unwrap();
        let left = std::thread::spawn(move || {
            std::thread::sleep(LEAVING / 4);
            drop(leaving);
        });
        RunLock::take(folder.path()).unwrap();
        left.join().unwrap();
    }

    #[test]
    fn where_there_are_no_locks_runs_go_on_with_a_note() {
        let none = || Err(TryLockError::Error(std::io::ErrorKind::Unsupported.into()));
        assert_eq!(wait(Path::new("out"), none).unwrap().unwrap().kind(), std::io::ErrorKind::Unsupported);
    }
}
