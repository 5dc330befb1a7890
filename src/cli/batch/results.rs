//! Where the results of a batch go: one JSON object a line, in the file's order, each as soon as those before it are out.

use crate::cli::paths::try_file;
use crate::error::{Error, Result};
use serde_json::Value;
use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::Write;
use std::path::Path;

/// Results on their way out.
pub(super) struct Results {
    out: Box<dyn Write + Send>,
    /// How a sentence calls the place.
    name: String,
    file: bool,
    /// Lines whose results are not out yet, and those of them that are there but must wait for others.
    waiting: VecDeque<usize>,
    ready: BTreeMap<usize, Value>,
    total: usize,
    written: usize,
    pub failed: usize,
}

impl Results {
    /// Begins the file, or standard output where there is none, for the results of these lines.
    pub(super) fn create(file: Option<&Path>, lines: impl IntoIterator<Item = usize>) -> Result<Results> {
        let (out, name): (Box<dyn Write + Send>, _) = match file {
            Some(file) => {
                let out = File::create(file).map_err(|e| Error::io("write", file, e))?;
                (Box::new(out), file.display().to_string())
            }
            None => (Box::new(std::io::stdout()), "standard output".into()),
        };
        let waiting: VecDeque<usize> = lines.into_iter().collect();
        Ok(Results {
            out,
            name,
            file: file.is_some(),
            total: waiting.len(),
            waiting,
            ready: BTreeMap::new(),
            written: 0,
            failed: 0,
        })
    }

    /// Takes the result of a line, and writes what has nothing left to wait for.
    pub(super) fn put(&mut self, line: usize, result: Value) -> Result<()> {
        self.failed += usize::from(result.get("error").is_some());
        self.ready.insert(line, result);
        while let Some(result) = self.waiting.front().and_then(|line| self.ready.remove(line)) {
            self.waiting.pop_front();
            self.write(&result)?;
        }
        Ok(())
    }

    fn write(&mut self, result: &Value) -> Result<()> {
        let line = format!("{result}\n");
        self.out
            .write_all(line.as_bytes())
            .and_then(|()| self.out.flush())
            .map_err(|e| Error::io(if self.file { "write" } else { "write to" }, &self.name, e))?;
        self.written += 1;
        Ok(())
    }

    /// Writes also what waits for others, which will not come any more, and says where all of it is.
    pub(super) fn stop(&mut self) -> String {
        let ready = std::mem::take(&mut self.ready);
        // The sentence counts what was written.
        let _ = ready.values().try_for_each(|result| self.write(result));
        format!("stopped: the results of {} of {} lines are in {}", self.written, self.total, self.name)
    }
}

/// Tries a place before anything is computed for it; leaves it as it is.
///
/// # Errors
/// If it cannot be written, is what the batch is read from, or holds something that was not to be written over.
pub(super) fn check(out: &Path, input: &Path, force: bool) -> Result<()> {
    if out.canonicalize().is_ok_and(|out| input.canonicalize().is_ok_and(|input| out == input)) {
        return Err(Error::Invalid(format!(
            "--out {} is the batch file itself, which it would overwrite; choose another",
            out.display()
        )));
    }
    // A pipe or a device holds nothing.
    if !force && out.metadata().is_ok_and(|is| is.is_file() && is.len() > 0) {
        return Err(Error::file(out, "is there already; give another name, or --force to overwrite it"));
    }
    try_file(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::fs;

    #[test]
    fn results_go_out_in_order_as_soon_as_they_can() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("out");
        let mut results = Results::create(Some(&file), [1, 2, 4, 5]).unwrap();
        let mut put = |line: usize, expected: &str| {
            results.put(line, json!(line)).unwrap();
            assert_eq!(fs::read_to_string(&file).unwrap(), expected);
        };
        put(2, "");
        put(1, "1\n2\n");
        put(5, "1\n2\n");
        let said = results.stop();
        assert_eq!(fs::read_to_string(&file).unwrap(), "1\n2\n5\n");
        assert_eq!(said, format!("stopped: the results of 3 of 4 lines are in {}", file.display()));
    }

    #[test]
    fn a_place_is_tried_and_left_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let (input, out) = (folder.path().join("in"), folder.path().join("out"));
        fs::write(&input, "x").unwrap();
        check(&out, &input, false).unwrap();
        assert!(!out.exists());
        fs::write(&out, "").unwrap();
        check(&out, &input, false).unwrap();
        fs::write(&out, "kept").unwrap();
        let said = check(&out, &input, false).unwrap_err().to_string();
        assert!(said.contains("is there already") && said.contains("--force"), "{said}");
        check(&out, &input, true).unwrap();
        assert_eq!(fs::read_to_string(&out).unwrap(), "kept");
        let said = check(&input, &input, true).unwrap_err().to_string();
        assert!(said.contains("is the batch file itself"), "{said}");
        let said = check(&folder.path().join("gone/out"), &input, false).unwrap_err().to_string();
        assert!(said.contains("cannot write"), "{said}");
    }
}
