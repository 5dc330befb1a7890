//! Where Danlu keeps what it can make again, tokenised data and measurements, and the little that it cannot.

use crate::error::{Error, Result};
use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};

/// A variable of the environment that names a path.
fn var(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from)
}

/// The cache folder: `DANLU_CACHE`, else in the platform's place for caches.
pub fn cache() -> PathBuf {
    var("DANLU_CACHE").unwrap_or_else(|| {
        let base = if cfg!(windows) {
            var("LOCALAPPDATA")
        } else if cfg!(target_os = "macos") {
            var("HOME").map(|home| home.join("Library/Caches"))
        } else {
            xdg_cache()
        };
        base.unwrap_or_else(std::env::temp_dir).join("danlu")
    })
}

/// The folder for what only a person can make again, such as the lines typed: in the platform's place for such data.
pub fn data() -> PathBuf {
    let home = || var("HOME").or_else(|| var("USERPROFILE"));
    let base = if cfg!(windows) {
        var("APPDATA")
    } else if cfg!(target_os = "macos") {
        home().map(|home| home.join("Library/Application Support"))
    } else {
        var("XDG_DATA_HOME").or_else(|| home().map(|home| home.join(".local/share")))
    };
    base.unwrap_or_else(std::env::temp_dir).join("danlu")
}

/// Where Hugging Face's tools keep what they download, unless told otherwise: on every platform by the same rule.
pub fn hugging_face() -> PathBuf {
    xdg_cache().unwrap_or_else(std::env::temp_dir).join("huggingface")
}

fn xdg_cache() -> Option<PathBuf> {
    let home = || var("HOME").or_else(|| var("USERPROFILE"));
    var("XDG_CACHE_HOME").or_else(|| home().map(|home| home.join(".cache")))
}

/// Tries a file before anything is computed for it; leaves it as it is.
///
/// # Errors
/// If it cannot be written.
pub fn try_file(out: &Path) -> Result<()> {
    let there = out.exists();
    if there && !out.is_file() && !out.is_dir() {
        // Opening a pipe once is all that its reader waits for.
        return Ok(());
    }
    if let Some(folder) = out.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.exists()) {
        let (out, folder) = (out.display(), folder.display());
        return Err(Error::Invalid(format!("cannot write {out}: there is no folder {folder}; make it first")));
    }
    OpenOptions::new().append(true).create(true).open(out).map_err(|e| Error::io("write", out, e))?;
    if !there {
        fs::remove_file(out).map_err(|e| Error::io("remove", out, e))?;
    }
    Ok(())
}
