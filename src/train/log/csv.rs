//! `metrics.csv`: a row a step, for spreadsheets.

use super::metrics::{METRICS, Metrics};
use std::fs::File;
use std::io::{Result, Write};
use std::path::Path;

/// The file, and the row that is not written yet: what is measured after a step belongs to its row.
pub(super) struct Csv {
    file: File,
    row: Option<(u64, Vec<Option<f64>>)>,
}

impl Csv {
    pub(super) fn create(path: &Path) -> Result<Csv> {
        let mut file = File::create(path)?;
        let names: Vec<&str> = METRICS.iter().map(|m| m.name).collect();
        writeln!(file, "step,{}", names.join(","))?;
        Ok(Csv { file, row: None })
    }

    pub(super) fn line(&mut self, metrics: &Metrics) -> Result<()> {
        let values = METRICS.iter().map(|m| (m.get)(metrics));
        match &mut self.row {
            // A checkpoint is told of when it is on disk, some steps after its own: its stall is that step's row's.
            // By its loss a step is not known: one that is no number is none in a file that was read again.
            Some((_, row)) if metrics.tokens.is_none() => {
                row.iter_mut().zip(values).for_each(|(old, new)| *old = new.or(*old))
            }
            _ => {
                let values = values.collect();
                self.flush()?;
                self.row = Some((metrics.step, values));
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        let Some((step, row)) = self.row.take() else { return Ok(()) };
        let cells: Vec<String> = row.iter().map(|v| v.map_or(String::new(), |v| v.to_string())).collect();
        writeln!(self.file, "{step},{}", cells.join(","))
    }
}

impl Drop for Csv {
    fn drop(&mut self) {
        // Whoever closes the file has been told of its errors before.
        let _ = self.flush();
    }
}
