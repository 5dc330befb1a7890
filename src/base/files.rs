//! Files of strangers, read whole up to a bound: a length is not believed, since devices and pipes have none.

use crate::error::{Error, Result};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// The bytes of a file of at most `most`.
///
/// # Errors
/// If it is longer or cannot be read.
pub fn read_bytes(path: &Path, most: u64) -> Result<Vec<u8>> {
    let fail = |e| Error::io("read", path, e);
    let mut bytes = Vec::new();
    File::open(path).map_err(fail)?.take(most + 1).read_to_end(&mut bytes).map_err(fail)?;
    if bytes.len() as u64 > most {
        let message = format!("is too long: none is longer than {most} bytes, this is something else");
        return Err(Error::file(path, message));
    }
    Ok(bytes)
}

/// The text of a file of at most `most` bytes.
///
/// # Errors
/// If it is longer, not UTF-8, or cannot be read.
pub fn read_text(path: &Path, most: u64) -> Result<String> {
    String::from_utf8(read_bytes(path, most)?).map_err(|e| {
        let error = e.utf8_error();
        let (at, byte) = (error.valid_up_to(), e.as_bytes()[error.valid_up_to()]);
        let message = format!("is not UTF-8 text: byte 0x{byte:02X} at offset {at}; it is damaged: fetch it again");
        Error::file(path, message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_files_and_other_encodings_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x");
        for (content, message) in [
            (&b"12345"[..], "is too long: none is longer than 4 bytes, this is something else"),
            (b"a\xff", "is not UTF-8 text: byte 0xFF at offset 1; it is damaged: fetch it again"),
        ] {
            std::fs::write(&file, content).unwrap();
            let expected = format!("{}: {message}", file.display());
            assert_eq!(read_text(&file, 4).unwrap_err().to_string(), expected);
        }
        std::fs::write(&file, "1234").unwrap();
        assert_eq!(read_text(&file, 4).unwrap(), "1234");
        // Such a file says that it has no bytes, and never ends.
        if cfg!(target_os = "linux") {
            read_bytes(Path::new("/dev/zero"), 4).unwrap_err();
        }
    }
}
