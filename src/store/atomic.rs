//! Files that are whole or absent: written under a temporary name in the same folder, synced, then renamed. Whatever
//! fails, nothing half-written stands under the final name and the temporary file is removed.

use crate::error::{Error, Result};
use ring::digest::{SHA256, digest};
use std::fs::{self, File};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

/// Temporary files of this process that stand now, for whoever must end it at once.
static STANDING: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

pub(super) fn standing() -> MutexGuard<'static, Vec<PathBuf>> {
    STANDING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where it cannot be asked whether a process still runs, its temporary files are left alone for this long.
const STALE: Duration = Duration::from_secs(24 * 3600);

/// A file that is complete on disk but does not bear its name yet. Dropped without [`Staged::commit`], it is removed.
#[derive(Debug)]
pub struct Staged {
    temporary: PathBuf,
    path: PathBuf,
    bytes: u64,
    committed: bool,
}

impl Staged {
    /// Writes `bytes` bytes with `fill` under a temporary name and syncs them.
    ///
    /// # Errors
    /// If the folder cannot be written or the disk is full; the message says where, and how much was wanted.
    pub fn write(path: &Path, bytes: u64, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<Staged> {
        let temporary = temporary(path)?;
        standing().push(temporary.clone());
        let file = File::create(&temporary).map_err(|e| {
            forget(&temporary);
            explain(path, bytes, e)
        })?;
        let staged = Staged { temporary, path: path.to_path_buf(), bytes, committed: false };
        let write = || {
            let mut writer = BufWriter::with_capacity(1 << 20, file);
            fill(&mut writer)?;
            writer.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
        };
        write().map_err(|e| explain(path, bytes, e))?;
        Ok(staged)
    }

    /// The name that it is to bear.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The name under which it lies until then.
    pub fn temporary(&self) -> &Path {
        &self.temporary
    }

    /// Gives the file its name, in place of any other of that name.
    ///
    /// # Errors
    /// If the system refuses the renaming.
    pub fn commit(mut self) -> Result<()> {
        {
            let mut standing = standing();
            fs::rename(&self.temporary, &self.path).map_err(|e| explain(&self.path, self.bytes, e))?;
            self.committed = true;
            standing.retain(|other| *other != self.temporary);
        }
        sync_folder(folder_of(&self.path));
        Ok(())
    }
}

/// Gives files their names, the last one last: that by which what they make together is known, such as config.json. Another
/// of its name goes first, so that a process which ends at once between two of them leaves nothing that would be taken for a
/// whole, and never one model's weights with another's configuration.
///
/// # Errors
/// As [`Staged::commit`].
pub fn commit_all(staged: Vec<Staged>) -> Result<()> {
    commit_in_place_of(staged, &[])
}

/// As [`commit_all`], and before the last one gets its name those are removed that are `stale`: what made a whole with another of its name.
///
/// # Errors
/// As [`Staged::commit`], and if one of them stays.
pub fn commit_in_place_of(mut staged: Vec<Staged>, stale: &[PathBuf]) -> Result<()> {
    let Some(last) = staged.pop() else { return Ok(()) };
    if !staged.is_empty() {
        match fs::remove_file(&last.path) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(explain(&last.path, last.bytes, e)),
            _ => sync_folder(folder_of(&last.path)),
        }
    }
    staged.into_iter().try_for_each(Staged::commit)?;
    let gone = |file: &PathBuf| match fs::remove_file(file) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io("remove", file, e)),
        _ => Ok(()),
    };
    // One that stays is said, and no reason to leave the others without that by which they are known.
    let removed: Result<Vec<()>> = stale.iter().map(gone).collect();
    last.commit()?;
    removed.map(drop)
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.committed {
            remove(&self.temporary);
            forget(&self.temporary);
        }
    }
}

/// Nobody can be told where this is called, and what is left over bears a name that nothing reads.
pub(super) fn remove(path: &Path) {
    let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
}

pub(super) fn forget(temporary: &Path) {
    standing().retain(|other| other != temporary);
}

/// Removes the temporary files and folders of this process, which must end now: whatever is still being written comes to
/// nothing, and no file is begun or gets its name after this.
pub fn abandon() {
    let mut standing = standing();
    standing.drain(..).for_each(|path| remove(&path));
    std::mem::forget(standing);
}

/// The name beside `path` under which this process writes what is to bear that name: with its number, and whose number that is.
///
/// # Errors
/// If the path ends in no name.
pub fn temporary(path: &Path) -> Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| Error::file(path, "is not the name of a file"))?;
    Ok(path.with_file_name(format!("{}.{}-{}.tmp", name.to_string_lossy(), machine(), std::process::id())))
}

/// Whose process numbers can be asked for here: this machine since its start, and of its containers this one. Others may write
/// to the same disk.
pub fn machine() -> &'static str {
    static MACHINE: OnceLock<String> = OnceLock::new();
    MACHINE.get_or_init(|| {
        let started = fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let space = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
        let sum = digest(&SHA256, &[&started, space.as_os_str().as_encoded_bytes()].concat());
        sum.as_ref()[..4].iter().map(|b| format!("{b:02x}")).collect()
    })
}

/// Removes temporary files and folders that processes left which ended at once, for final names of which `own` is true. Those of
/// other machines' processes go by their age only. For who is about to write there: who only reads changes nothing.
pub fn sweep(folder: &Path, own: &dyn Fn(&str) -> bool) {
    let folder = if folder == Path::new("") { Path::new(".") } else { folder };
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some((name, id)) = name.strip_suffix(".tmp").and_then(|rest| rest.rsplit_once('.')) else { continue };
        let (whose, process) = id.split_once('-').unwrap_or(("", id));
        let Ok(process) = process.parse::<u32>() else { continue };
        let old =
            || entry.metadata().and_then(|m| m.modified()).is_ok_and(|m| m.elapsed().is_ok_and(|age| age > STALE));
        let known = if whose == machine() { ended(process) } else { None };
        if own(name) && known.unwrap_or_else(old) {
            remove(&entry.path());
        }
    }
}

/// Whether a process of this machine's has ended, where the system says it.
pub fn ended(process: u32) -> Option<bool> {
    Path::new("/proc/self").exists().then(|| !Path::new("/proc").join(process.to_string()).exists())
}

/// A folder that was perhaps made for what is to be written into it. Dropped without [`Made::keep`], it is removed again if
/// it was and holds nothing.
#[derive(Debug)]
pub struct Made(Option<PathBuf>);

impl Made {
    /// As [`create_folder`].
    ///
    /// # Errors
    /// As there.
    pub fn folder(folder: &Path) -> Result<Made> {
        let made = Made((!folder.exists()).then(|| folder.to_path_buf()));
        create_folder(folder)?;
        Ok(made)
    }

    /// It stays.
    pub fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        // A folder that holds something is not removed by this, which is as it should be.
        self.0.take().map(fs::remove_dir);
    }
}

/// Writes one whole file.
///
/// # Errors
/// As [`Staged::write`] and [`Staged::commit`].
pub fn write_file(path: &Path, content: &[u8]) -> Result<()> {
    Staged::write(path, content.len() as u64, |w| w.write_all(content))?.commit()
}

/// Makes a folder and those above it, and proves that files can be made in it.
///
/// # Errors
/// If they cannot.
pub fn create_folder(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).map_err(|e| explain(&folder.join("probe"), 0, e))?;
    drop(Staged::write(&folder.join("probe"), 0, |_| Ok(()))?);
    Ok(())
}

/// The renaming itself outlives a power cut only once the folder is synced; where that is not a thing, nothing is lost.
pub(super) fn sync_folder(folder: &Path) {
    if let Ok(folder) = File::open(folder) {
        let _ = folder.sync_all();
    }
}

/// The folder that a path's name is in.
pub(crate) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

/// The system's answer as a sentence with what to do.
pub(super) fn explain(path: &Path, bytes: u64, error: io::Error) -> Error {
    // What was to be written can be at fault too, and says so itself.
    let error = match error.downcast::<Error>() {
        Ok(own) => return own,
        Err(error) => error,
    };
    let folder = folder_of(path).display();
    let full = [ErrorKind::StorageFull, ErrorKind::QuotaExceeded, ErrorKind::FileTooLarge];
    let refused = [ErrorKind::PermissionDenied, ErrorKind::ReadOnlyFilesystem, ErrorKind::NotADirectory];
    if full.contains(&error.kind()) {
        let message = format!(
            "cannot be saved, the disk is full ({error}): {bytes} bytes are wanted in {folder}; \
             nothing half-written was left; free space there or choose another folder"
        );
        return Error::file(path, message);
    }
    if refused.contains(&error.kind()) || matches!(error.kind(), ErrorKind::NotFound | ErrorKind::AlreadyExists) {
        let message = format!("cannot write into {folder} ({error}); choose another folder, or make that one writable");
        return Error::Invalid(message);
    }
    Error::io("write", path, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
        fs::read_dir(folder).unwrap().map(name).collect()
    }

    /// What a disk with room for `room` bytes does.
    fn fill_disk(room: usize) -> impl FnOnce(&mut dyn Write) -> io::Result<()> {
        move |w| {
            w.write_all(&vec![7; room])?;
            w.flush()?;
            Err(io::Error::from(ErrorKind::StorageFull))
        }
    }

    #[test]
    fn a_full_disk_leaves_nothing_and_keeps_what_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let error = Staged::write(&path, 5000, fill_disk(100)).unwrap_err().to_string();
        let expected = format!(
            "{}: cannot be saved, the disk is full (no storage space): 5000 bytes are wanted in {}; \
             nothing half-written was left; free space there or choose another folder",
            path.display(),
            folder.path().display()
        );
        assert_eq!(error, expected);
        assert_eq!(names(folder.path()), [""; 0]);
        write_file(&path, b"old").unwrap();
        Staged::write(&path, 5000, fill_disk(2_000_000)).unwrap_err();
        assert_eq!(names(folder.path()), ["model.safetensors"]);
        assert_eq!(fs::read(&path).unwrap(), b"old");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_device_that_is_really_full() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let full = |_: &mut dyn Write| fs::OpenOptions::new().write(true).open("/dev/full")?.write_all(b"x");
        let error = Staged::write(&path, 1, full).unwrap_err().to_string();
        assert!(
            error.contains("the disk is full (No space left on device (os error 28)): 1 bytes are wanted"),
            "{error}"
        );
        assert_eq!(names(folder.path()), [""; 0]);
    }

    #[test]
    fn a_dropped_file_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let staged = Staged::write(&path, 1, |w| w.write_all(b"x")).unwrap();
        assert_eq!(names(folder.path()).len(), 1);
        assert!(!path.exists());
        drop(staged);
        assert_eq!(names(folder.path()), [""; 0]);
    }

    #[test]
    fn what_a_dead_process_left_is_swept_and_a_live_ones_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let own = temporary(Path::new("model.gguf")).unwrap().to_str().unwrap().to_string();
        let number = format!("-{}.tmp", std::process::id());
        assert!(own.ends_with(&number), "{own}");
        let dead = own.replace(&number, "-4294967294.tmp");
        let other = dead.replace("model.gguf", "other");
        // On another machine nobody knows whether it still runs; a day says it.
        let elsewhere = "model.gguf.elsewhere-4294967294.tmp";
        let old = ["model.gguf.elsewhere-4294967293.tmp", "model.gguf.4294967294.tmp"];
        for name in [&own, &dead, &other, elsewhere, "model.gguf.tmp", old[0], old[1]] {
            let file = File::create(folder.path().join(name)).unwrap();
            // Where no system says of a process that it has ended, its file's age does.
            if old.contains(&name) || (name == dead && !cfg!(target_os = "linux")) {
                file.set_modified(std::time::SystemTime::now() - 2 * STALE).unwrap();
            }
        }
        sweep(folder.path(), &|name| name == "model.gguf");
        let mut left = names(folder.path());
        left.sort();
        let mut expected = [own.as_str(), elsewhere, "model.gguf.tmp", &other];
        expected.sort_unstable();
        assert_eq!(left, expected);
    }

    /// What stands after each renaming is what a process leaves that is killed there.
    #[test]
    fn several_files_are_never_parts_of_two() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let stage = |text: &[u8]| {
            ["weights", "words", "config"].map(|name| Staged::write(&path(name), 1, |w| w.write_all(text)).unwrap())
        };
        commit_all(stage(b"1").into()).unwrap();
        assert_eq!(fs::read(path("config")).unwrap(), b"1");
        // The second cannot get its name, so that the first one stands alone.
        fs::remove_file(path("words")).unwrap();
        fs::create_dir_all(path("words/x")).unwrap();
        commit_all(stage(b"2").into()).unwrap_err();
        assert!(fs::read(path("weights")).unwrap() == b"2" && !path("config").exists());
        fs::remove_dir_all(path("words")).unwrap();
        commit_all(stage(b"3").into()).unwrap();
        assert!(["weights", "words", "config"].iter().all(|name| fs::read(path(name)).unwrap() == b"3"));
    }

    #[test]
    fn a_folder_made_for_nothing_goes_and_others_stay() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m");
        drop(Made::folder(&path).unwrap());
        assert!(!path.exists());
        Made::folder(&path).unwrap().keep();
        drop(Made::folder(&path).unwrap());
        assert!(path.exists(), "it was there before");
    }

    #[test]
    fn unwritable_places_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        write_file(&file, b"").unwrap();
        for path in [file.join("inside"), file.clone()] {
            let error = create_folder(&path).unwrap_err().to_string();
            let start = format!("cannot write into {} (", path.display());
            assert!(error.starts_with(&start), "{error}");
            assert!(error.ends_with("); choose another folder, or make that one writable"), "{error}");
        }
        let error = write_file(&folder.path().join("none").join("x"), b"").unwrap_err().to_string();
        assert!(error.starts_with(&format!("cannot write into {} (", folder.path().join("none").display())), "{error}");
        create_folder(&folder.path().join("a").join("b")).unwrap();
    }
}
