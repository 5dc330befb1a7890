//! The `indent` filter of chat templates, as Jinja has it: a line end at the end of the text stays.

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind};

/// What else ends a line for Python.
const LINE_ENDS: [char; 9] = ['\r', '\u{b}', '\u{c}', '\u{1c}', '\u{1d}', '\u{1e}', '\u{85}', '\u{2028}', '\u{2029}'];

/// Indents every line but the first (unless `first`) by a number of spaces or a text; empty lines only if `blank`.
pub(super) fn indent(
    text: &str,
    width: Option<Value>,
    first: Option<bool>,
    blank: Option<bool>,
    arguments: Kwargs,
) -> Result<String, Error> {
    let width = match width {
        Some(width) => width,
        None => arguments.get::<Option<Value>>("width")?.unwrap_or_else(|| Value::from(4)),
    };
    let first = first.or(arguments.get("first")?).unwrap_or(false);
    let blank = blank.or(arguments.get("blank")?).unwrap_or(false);
    arguments.assert_all_used()?;
    let by = match width.kind() {
        ValueKind::String => width.to_string(),
        _ => match width.as_usize() {
            Some(width) if width <= 1024 => " ".repeat(width),
            _ => return Err(Error::new(ErrorKind::InvalidOperation, "indent: the width is no small number")),
        },
    };
    let mut out = String::with_capacity(text.len());
    for (at, line) in text.replace("\r\n", "\n").replace(LINE_ENDS, "\n").split('\n').enumerate() {
        if at > 0 {
            out.push('\n');
        }
        // The first line is indented whatever it holds; of the others, empty ones only if asked for.
        if if at == 0 { first } else { blank || !line.is_empty() } {
            out.push_str(&by);
        }
        out.push_str(line);
    }
    Ok(out)
}
