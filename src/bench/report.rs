//! What a benchmark found, as data, as a table, and as a file that the next one is compared with.

use super::Scope;
use crate::base::AdapterId;
use crate::compile::human_bytes;
use crate::error::{Error, Result};
use crate::run::{Class, Machine, Timing};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::{Path, PathBuf};

/// The form of the file; others are not read.
const FORMAT: u32 = 1;

/// One kernel or one whole run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// What it is: the case, and of a kernel the operator, its place in the model and its sizes.
    pub name: String,
    /// Shader and candidate; empty for whole runs.
    pub kernel: String,
    /// What it multiplies with; of a whole run the narrowest.
    #[serde(default)]
    pub class: Class,
    /// Floating-point operations.
    pub flops: u64,
    /// Bytes that must be read and written.
    pub bytes: u64,
    /// Dispatches.
    pub dispatches: usize,
    /// Seconds, as measured.
    pub seconds: Timing,
    /// Seconds that work and traffic take at least.
    pub limit: f64,
    /// The same where dispatches and the way to the device cost what they do.
    pub predicted: f64,
    /// The part of the roofline that is reached: limit by median.
    pub fraction: f64,
    /// Bytes on the device at most, of a whole run: exact, from its plan.
    pub device_bytes: Option<u64>,
    /// Tokens per second of a whole run.
    pub tokens_per_second: Option<f64>,
}

impl Entry {
    /// Whether it is one kernel or a whole run.
    pub fn scope(&self) -> Scope {
        if self.kernel.is_empty() { Scope::Whole } else { Scope::Kernels }
    }
}

/// All that one benchmark found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The file's form.
    pub format: u32,
    /// The adapter.
    pub adapter: AdapterId,
    /// Whether the adapter computes on the CPU, which all of a machine's such adapters are.
    #[serde(default)]
    pub is_cpu: bool,
    /// Whose clock timed the kernels: `device` or `host`.
    pub clock: String,
    /// The measured limits.
    pub machine: Machine,
    /// Kernels and runs.
    pub entries: Vec<Entry>,
    /// What was left out, and why.
    pub skipped: Vec<String>,
    /// What could not be measured though it should have been, and why.
    #[serde(default)]
    pub failed: Vec<String>,
}

impl Report {
    /// An empty one.
    pub fn new(adapter: AdapterId, device_clock: bool, machine: Machine) -> Report {
        let clock = if device_clock { "device" } else { "host" }.to_string();
        Report {
            format: FORMAT,
            adapter,
            is_cpu: false,
            clock,
            machine,
            entries: Vec::new(),
            skipped: Vec::new(),
            failed: Vec::new(),
        }
    }

    /// Reads a kept report.
    ///
    /// # Errors
    /// If the file cannot be read, or is no report of this form.
    pub fn read(path: &Path) -> Result<Report> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
        let advice = "write it anew with `danlu bench --keep`";
        let report: Report = serde_json::from_str(&text)
            .map_err(|e| Error::file(path, format!("is no report of a benchmark ({e}); {advice}")))?;
        if report.format != FORMAT {
            let form = report.format;
            return Err(Error::file(path, format!("has form {form}, and {FORMAT} is what is read here; {advice}")));
        }
        Ok(report)
    }

    /// Puts what another measurement found better in the place of what is here.
    pub fn take_better(&mut self, other: Report) {
        for entry in other.entries {
            if let Some(mine) = self.entries.iter_mut().find(|e| e.name == entry.name && e.fraction < entry.fraction) {
                *mine = entry;
            }
        }
    }

    /// The report as JSON, for [`Report::read`].
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("numbers and strings")
    }
}

/// The file in `folder` that keeps an adapter's figures. Drivers share it: that one got slower is worth knowing.
pub fn kept_path(folder: &Path, adapter: &AdapterId) -> PathBuf {
    let name = adapter.name.split(" (").next().unwrap_or_default();
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let words: String = format!("{name}-{}", adapter.backend).chars().map(plain).collect();
    let words: Vec<&str> = words.split('-').filter(|w| !w.is_empty()).collect();
    folder.join(words.join("-") + ".json")
}

/// Seconds as a person reads them.
pub(super) fn human_seconds(s: f64) -> String {
    match s {
        s if s >= 1.0 => format!("{s:.2} s"),
        s if s >= 1e-3 => format!("{:.2} ms", s * 1e3),
        s => format!("{:.2} µs", s * 1e6),
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let m = &self.machine;
        writeln!(
            f,
            "{} ({}, {}), timed by the {}'s clock",
            self.adapter.name, self.adapter.driver, self.adapter.backend, self.clock
        )?;
        writeln!(f, "copy bandwidth  {:.1} GB/s", m.bytes_per_second / 1e9)?;
        for c in &m.ceilings {
            let arithmetic = c.arithmetic / 1e9;
            let matmul = match c.matmul > 0.0 {
                true => format!("{:.1} GFLOP/s of matmul", c.matmul / 1e9),
                false => "no matmul of ours".to_string(),
            };
            writeln!(f, "{:<15} {arithmetic:.1} GFLOP/s of multiply-adds alone, {matmul}", c.class.name())?;
        }
        let (dispatch, pass) = (human_seconds(m.dispatch_seconds), human_seconds(m.pass_seconds));
        let submission = human_seconds(m.submission_seconds);
        writeln!(
            f,
            "a dispatch      {dispatch} in a pass, {pass} in one of its own; a submission {submission}, there and back"
        )?;
        for (title, scope) in [("kernel", Scope::Kernels), ("whole run", Scope::Whole)] {
            let entries = || self.entries.iter().filter(|e| e.scope() == scope);
            let width = entries().map(|e| e.name.chars().count()).max().unwrap_or(0).max(title.len());
            if entries().next().is_none() {
                continue;
            }
            writeln!(
                f,
                "\n{title:<width$} {:>10} {:>7} {:>10} {:>9} {:>8} {:>7}",
                "median", "spread", "predicted", "GFLOP/s", "GB/s", "of roof"
            )?;
            for e in entries() {
                row(f, e, width)?;
            }
        }
        self.skipped.iter().try_for_each(|s| writeln!(f, "left out: {s}"))?;
        self.failed.iter().try_for_each(|s| writeln!(f, "failed: {s}"))
    }
}

fn row(f: &mut fmt::Formatter<'_>, e: &Entry, width: usize) -> fmt::Result {
    let t = e.seconds;
    let (median, predicted) = (human_seconds(t.median), human_seconds(e.predicted));
    let spread = format!("{:.0} %", (t.high - t.low) / t.median * 100.0);
    let (rate, bandwidth) = (e.flops as f64 / t.median / 1e9, e.bytes as f64 / t.median / 1e9);
    let of = format!("{:.1} %", e.fraction * 100.0);
    write!(f, "{:<width$} {median:>10} {spread:>7} {predicted:>10} {rate:>9.2} {bandwidth:>8.2} {of:>7}", e.name)?;
    match (e.tokens_per_second, e.device_bytes) {
        (Some(tokens), Some(bytes)) => writeln!(f, "  {tokens:.1} tok/s, {} on the device", human_bytes(bytes)),
        _ => writeln!(f, "  {}", e.kernel),
    }
}
