//! What a run writes down of itself beside the model: `metrics.jsonl`, a line for everything measured; and made from the
//! same lines `metrics.csv` and an event file for TensorBoard. A run that is taken up goes on in them, without doubles.

mod csv;
mod metrics;
mod tensorboard;

pub use metrics::{METRICS, Metric, Metrics, are_metrics, read_metrics, read_whole_metrics};
pub use tensorboard::{EventFile, crc32c, is_event_file, masked};

use super::Event;
use crate::error::{Error, Result};
use crate::store::atomic::write_file;
use csv::Csv;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Name of the recipe in a run's folder, with what was left open filled in.
pub const RECIPE: &str = "recipe.toml";
/// Name of the measurements in a run's folder.
pub const JSONL: &str = "metrics.jsonl";
const CSV: &str = "metrics.csv";

/// The files of a run, open. What cannot be written is said once and ends them, not the training.
pub struct RunLog {
    folder: PathBuf,
    device_bytes: u64,
    open: Option<Open>,
}

struct Open {
    jsonl: File,
    csv: Csv,
    events: EventFile,
}

impl RunLog {
    /// Opens the files in a run's folder and keeps what they hold up to `step`: of what came later, the run will tell anew.
    ///
    /// # Errors
    /// If they cannot be read or written.
    pub fn open(folder: &Path, step: u64, device_bytes: u64) -> Result<RunLog> {
        let open = Open::new(folder, step)?;
        Ok(RunLog { folder: folder.to_path_buf(), device_bytes, open: Some(open) })
    }

    /// Goes back to `step`, as [`RunLog::open`] does; a sentence if that fails.
    pub fn back_to(&mut self, step: u64) -> Option<String> {
        // Closed first: the files are written anew.
        self.open = None;
        let opened = Open::new(&self.folder, step);
        let failed = opened.map(|open| self.open = Some(open)).err();
        failed.map(lost)
    }

    /// Writes down what an event says, if it is a measurement; a sentence if that fails, once.
    pub fn event(&mut self, event: &Event) -> Option<String> {
        let mut metrics = Metrics::of(event)?;
        metrics.wall = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64());
        if metrics.validation_loss.is_some() {
            metrics.device_bytes = Some(self.device_bytes as f64);
        }
        let failed = self.open.as_mut()?.line(&metrics, matches!(event, Event::Checkpoint { .. })).err()?;
        self.open = None;
        Some(lost(failed))
    }
}

fn lost(error: impl std::fmt::Display) -> String {
    format!("metrics cannot be written ({error}): training goes on without them")
}

impl Open {
    fn new(folder: &Path, step: u64) -> Result<Open> {
        let path = folder.join(JSONL);
        let kept: Vec<Metrics> = if step == 0 { Vec::new() } else { read_metrics(folder)? };
        let kept: Vec<Metrics> = kept.into_iter().filter(|m| m.step <= step).collect();
        let text: String = kept.iter().map(Metrics::line).collect();
        write_file(&path, text.as_bytes())?;
        let jsonl = OpenOptions::new().append(true).open(&path).map_err(|e| Error::io("open", &path, e))?;
        let path = folder.join(CSV);
        let mut csv = Csv::create(&path).map_err(|e| Error::io("write", &path, e))?;
        let mut events = EventFile::create(folder)?;
        for metrics in &kept {
            csv.line(metrics).and_then(|()| events.line(metrics)).map_err(|e| Error::io("write", folder, e))?;
        }
        Ok(Open { jsonl, csv, events })
    }

    /// `sync`: no power cut may take what comes before a checkpoint.
    fn line(&mut self, metrics: &Metrics, sync: bool) -> std::io::Result<()> {
        self.jsonl.write_all(metrics.line().as_bytes())?;
        self.csv.line(metrics)?;
        self.events.line(metrics)?;
        if sync { self.jsonl.sync_data() } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests;
