//! Folders that are whole or absent, as `atomic` has it for files: filled under a temporary name, synced, then renamed.

use super::atomic::{explain, folder_of, forget, remove, standing, sync_folder, temporary};
use crate::error::Result;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// A folder that does not bear its name yet. Dropped without [`StagedFolder::commit`], it is removed with what it holds.
#[derive(Debug)]
pub struct StagedFolder {
    temporary: PathBuf,
    path: PathBuf,
    committed: bool,
}

impl StagedFolder {
    /// Makes an empty folder under a temporary name beside `path`.
    ///
    /// # Errors
    /// If that cannot be written.
    pub fn new(path: &Path) -> Result<StagedFolder> {
        let temporary = temporary(path)?;
        // A process that was killed may have had our number.
        remove(&temporary);
        standing().push(temporary.clone());
        let staged = StagedFolder { temporary, path: path.to_path_buf(), committed: false };
        fs::create_dir_all(&staged.temporary).map_err(|e| explain(path, 0, e))?;
        Ok(staged)
    }

    /// Does something to a file of the folder, of `bytes` bytes in the end: `act` gets its path.
    ///
    /// # Errors
    /// If the disk is full or fails; the message says where, and how much was wanted.
    pub fn act<T>(&self, name: &str, bytes: u64, act: impl FnOnce(&Path) -> io::Result<T>) -> Result<T> {
        act(&self.temporary.join(name)).map_err(|e| explain(&self.path.join(name), bytes, e))
    }

    /// Writes a whole file of the folder and syncs it.
    ///
    /// # Errors
    /// As [`StagedFolder::act`].
    pub fn write_text(&self, name: &str, text: &str) -> Result<()> {
        self.act(name, text.len() as u64, |path| {
            let mut file = File::create(path)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()
        })
    }

    /// Gives the folder its name, in place of any other of that name.
    ///
    /// # Errors
    /// If the system refuses the renaming.
    pub fn commit(mut self) -> Result<()> {
        sync_folder(&self.temporary);
        // A folder cannot be put in the place of one that holds something: what was there steps aside, and goes when this one stands.
        let before = aside(&self.path).filter(|aside| fs::rename(&self.path, aside).is_ok());
        {
            let mut standing = standing();
            if let Err(error) = fs::rename(&self.temporary, &self.path) {
                before.iter().for_each(|before| drop(fs::rename(before, &self.path)));
                return Err(explain(&self.path, 0, error));
            }
            self.committed = true;
            standing.retain(|other| *other != self.temporary);
        }
        sync_folder(folder_of(&self.path));
        before.iter().for_each(|before| remove(before));
        Ok(())
    }
}

impl Drop for StagedFolder {
    fn drop(&mut self) {
        if !self.committed {
            remove(&self.temporary);
            forget(&self.temporary);
        }
    }
}

/// Removes a folder so that no half of it ever stands under its name.
pub fn discard(folder: &Path) {
    if let Some(aside) = aside(folder).filter(|aside| fs::rename(folder, aside).is_ok()) {
        remove(&aside);
    }
}

/// A name for what a folder held, free.
fn aside(folder: &Path) -> Option<PathBuf> {
    let name = folder.file_name()?.to_string_lossy().into_owned();
    let aside = temporary(&folder.with_file_name(format!("{name}.gone"))).ok()?;
    remove(&aside);
    Some(aside)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::store) fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_folder_is_whole_or_absent() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("a/b");
        let staged = StagedFolder::new(&path).unwrap();
        staged.write_text("x", "one").unwrap();
        assert!(!path.exists());
        let full = |_: &Path| Err::<(), _>(io::Error::from(io::ErrorKind::StorageFull));
        let error = staged.act("y", 7, full).unwrap_err().to_string();
        assert!(error.contains("b/y: cannot be saved, the disk is full") && error.contains("7 bytes"), "{error}");
        drop(staged);
        assert_eq!(names(&place.path().join("a")), [""; 0]);

        for text in ["one", "two"] {
            let staged = StagedFolder::new(&path).unwrap();
            staged.write_text("x", text).unwrap();
            staged.commit().unwrap();
            assert_eq!(fs::read_to_string(path.join("x")).unwrap(), text);
        }
        assert_eq!(names(&place.path().join("a")), ["b"]);
        discard(&path);
        assert_eq!(names(&place.path().join("a")), [""; 0]);
    }
}
