//! Standard output, written in one way. A reader that left, such as `head`, is no error of ours and ends no training;
//! whatever else goes wrong there, such as a full disk, is remembered and said at the end.

use std::fmt::Arguments;
use std::io::{Error, ErrorKind, Result, Write};
use std::sync::OnceLock;

/// The first failure that was more than a reader who left.
static FAILED: OnceLock<String> = OnceLock::new();

/// Standard output.
pub(super) struct Out;

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        heard(std::io::stdout().write(bytes))
    }

    fn flush(&mut self) -> Result<()> {
        heard(std::io::stdout().flush())
    }
}

fn heard<T>(done: Result<T>) -> Result<T> {
    done.map_err(|error| {
        let (kind, text) = (error.kind(), format!("cannot write to standard output: {error}"));
        if !matches!(kind, ErrorKind::BrokenPipe | ErrorKind::Interrupted) {
            FAILED.get_or_init(|| text.clone());
        }
        Error::new(kind, text)
    })
}

/// Writes a line.
pub(super) fn line(text: Arguments) {
    let _ = writeln!(Out, "{text}").and_then(|()| Out.flush());
}

/// Writes what is still held back; the first failure, if there was one.
pub(super) fn failure() -> Option<&'static str> {
    let _ = Out.flush();
    FAILED.get().map(String::as_str)
}
