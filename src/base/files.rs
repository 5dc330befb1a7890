//! Files of strangers, read whole up to a bound: a length is not believed, since devices and pipes have none.

use crate::error::{Error, Result};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// The bytes of a file of at most `most`.
///
/// # Errors
/// If it is longer, is a device or a pipe, or cannot be read.
pub fn read_bytes(path: &Path, most: u64) -> Result<Vec<u8>> {
    let fail = |e| Error::io("read", path, e);
    let kind = std::fs::metadata(path).map_err(fail)?.file_type();
    if !kind.is_file() && !kind.is_dir() {
        // A pipe that nobody writes to would be waited for without end.
        return Err(Error::file(path, "is no plain file but a device or a pipe; give a file"));
    }
    let mut bytes = Vec::new();
    File::open(path).map_err(fail)?.take(most + 1).read_to_end(&mut bytes).map_err(fail)?;
    if bytes.len() as u64 > most {
        let message = format!("is too long: none is longer than {most} bytes, this is something else");
        return Err(Error::file(path, message));
    }
    Ok(bytes)
}

/// Fills a buffer with a file's bytes from an offset on, whatever others read of it at the same time.
///
/// # Errors
/// The system's; `UnexpectedEof` where the file ends before.
pub fn read_at(file: &File, mut into: &mut [u8], mut offset: u64) -> std::io::Result<()> {
    while !into.is_empty() {
        #[cfg(unix)]
        let count = std::os::unix::fs::FileExt::read_at(file, into, offset);
        #[cfg(windows)]
        let count = std::os::windows::fs::FileExt::seek_read(file, into, offset);
        match count {
            Ok(0) => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => (into, offset) = (&mut into[count..], offset + count as u64),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
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

/// The text of a file that a person wrote and names.
///
/// # Errors
/// With line and column of what is not UTF-8; if it cannot be read.
pub fn read_given_text(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
    String::from_utf8(bytes).map_err(|e| {
        let (before, rest) = e.as_bytes().split_at(e.utf8_error().valid_up_to());
        let line = before.iter().filter(|&&b| b == b'\n').count() + 1;
        let column = before.iter().rev().take_while(|&&b| b != b'\n').count() + 1;
        let what = format!("line {line} is not UTF-8 text: byte 0x{:02X} at column {column}", rest[0]);
        Error::file(path, format!("{what}; convert it first, for example with iconv -t UTF-8"))
    })
}

/// The same of a file that may be absent; any other reason why it cannot be read is an error.
///
/// # Errors
/// As [`read_text`], but for a file that is not there.
pub fn read_optional_text(path: &Path, most: u64) -> Result<Option<String>> {
    match read_text(path, most) {
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
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
        std::fs::write(&file, b"a\nbc\xff").unwrap();
        let said = read_given_text(&file).unwrap_err().to_string();
        let place =
            "line 2 is not UTF-8 text: byte 0xFF at column 3; convert it first, for example with iconv -t UTF-8";
        assert_eq!(said, format!("{}: {place}", file.display()));
        std::fs::write(&file, "1234").unwrap();
        assert_eq!(read_optional_text(&file, 4).unwrap().as_deref(), Some("1234"));
        assert_eq!(read_optional_text(&folder.path().join("absent"), 4).unwrap(), None);
        read_optional_text(&file, 3).unwrap_err();
        read_optional_text(folder.path(), 4).unwrap_err();
        // Such a file says that it has no bytes, and never ends.
        if cfg!(target_os = "linux") {
            let text = read_bytes(Path::new("/dev/zero"), 4).unwrap_err().to_string();
            assert_eq!(text, "/dev/zero: is no plain file but a device or a pipe; give a file");
        }
    }
}
