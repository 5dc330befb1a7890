//! Room on a disk, looked for before hours of work end without it.

use crate::error::{Error, Result};
use std::path::Path;

/// Refuses what is to be written to `path` in so many bytes where its disk has not as many left.
///
/// # Errors
/// [`Error::File`] with the bytes wanted and free. Where the system does not say, the writing itself will tell.
pub fn check_room(path: &Path, wanted: u64) -> Result<()> {
    let Some(folder) = path.ancestors().skip(1).find(|folder| folder.as_os_str().is_empty() || folder.is_dir()) else {
        return Ok(());
    };
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    match fs4::available_space(folder).ok().filter(|&free| free < wanted) {
        None => Ok(()),
        Some(free) => Err(Error::file(
            path,
            format!(
                "cannot be saved, the disk is nearly full: {wanted} bytes are wanted in {} and {free} are free; nothing was \
                 written; free space there or choose another folder",
                folder.display()
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_disk_holds_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("not/there/yet");
        check_room(&path, 1).unwrap();
        let said = check_room(&path, u64::MAX).unwrap_err().to_string();
        assert!(
            said.contains(&format!("18446744073709551615 bytes are wanted in {}", folder.path().display())),
            "{said}"
        );
    }
}
