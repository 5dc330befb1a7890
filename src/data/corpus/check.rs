//! Reads a file once before any work is done: whether it holds anything, and, where it must be text, that it is.

use std::path::Path;

use super::records;
use crate::data::passages::Passages;
use crate::error::{Error, Result};

/// Bytes that are looked at together.
const PASSAGE: usize = 1 << 20;
/// How gzip's and zstd's files begin.
const COMPRESSED: [&[u8]; 2] = [&[0x1F, 0x8B], &[0x28, 0xB5, 0x2F, 0xFD]];

/// Whether a file holds anything but white space. Where it must be text it refuses anything that is not UTF-8, or else a NUL.
pub(super) fn check(path: &Path, passages: &mut Passages, is_text: bool) -> Result<bool> {
    let start = passages.at(0, 4)?;
    if is_text && COMPRESSED.iter().any(|mark| start.starts_with(mark)) {
        let message = "is compressed, which only .jsonl and .json may be (.jsonl.gz, .json.zst); unpack it first";
        return Err(Error::file(path, message));
    }
    let (mut at, mut holds, mut nul) = (0, false, None);
    // Lines before the passage, and where the one begins that reaches into it.
    let (mut lines, mut line_start) = (0, 0);
    while at < passages.bytes() && (is_text || !holds) {
        let left = passages.bytes() - at;
        let bytes = passages.at(at, PASSAGE)?;
        holds = holds || !bytes.iter().all(u8::is_ascii_whitespace);
        let complain = |found: usize, what: &str, advice: &str| {
            let before = &bytes[..found];
            let begins = before.iter().rposition(|&b| b == b'\n').map_or(line_start, |last| at + last as u64 + 1);
            let column = at + found as u64 - begins + 1;
            records::at(path, lines + newlines(before) + 1, format!("{what} at column {column}; {advice}"))
        };
        let mut whole = bytes.len();
        if is_text {
            match std::str::from_utf8(bytes) {
                Ok(_) => {}
                // A character that the passage cuts is read again with the next.
                Err(e) if e.error_len().is_none() && (bytes.len() as u64) < left => whole = e.valid_up_to(),
                Err(e) => {
                    let what = format!("is not UTF-8 text: byte 0x{:02X}", bytes[e.valid_up_to()]);
                    let advice = "convert it first, for example with iconv -t UTF-8";
                    return Err(complain(e.valid_up_to(), &what, advice));
                }
            }
            if nul.is_none()
                && let Some(found) = bytes.iter().position(|&b| b == 0)
            {
                let what = "is a binary file, not text: a NUL byte";
                nul = Some(complain(found, what, "give plain text or JSONL"));
            }
        }
        let seen = &bytes[..whole];
        lines += newlines(seen);
        line_start = seen.iter().rposition(|&b| b == b'\n').map_or(line_start, |last| at + last as u64 + 1);
        at += whole as u64;
    }
    nul.map_or(Ok(holds), Err)
}

fn newlines(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|&&b| b == b'\n').count() as u64
}
