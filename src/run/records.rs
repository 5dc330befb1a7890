//! What the tuner remembers: rows of evidence by adapter, in a file that outlives the process.

use super::{Machine, Roofline};
use crate::base::AdapterId;
use crate::error::{Error, Result};
use crate::graph::{Io, Kernel, Op};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::path::{Path, PathBuf};

/// Changes when older files can no longer be read.
const FORMAT: u32 = 1;
/// The file's name in the cache folder.
pub(super) const FILE: &str = "tuning.json";
/// Measured by tests/tuner.rs, `write_table`.
const SHIPPED: &str = include_str!("tuned.json");

/// A candidate without the shape that it runs on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelId {
    /// `shader:variant`.
    pub kernel: String,
    /// The header, as `NAME=1 OTHER=2`.
    pub constants: String,
}

impl KernelId {
    /// The identity of a kernel: that of its first stage, which kernels whose later stages differ name apart. Fused expressions
    /// do not count: they change neither the order of speeds nor the tiling.
    pub fn of(kernel: &Kernel) -> Self {
        let constants: Vec<String> = kernel.constants.iter().map(|(name, value)| format!("{name}={value}")).collect();
        KernelId { kernel: format!("{}:{}", kernel.shader, kernel.variant), constants: constants.join(" ") }
    }
}

/// What makes two choices one: the operator, its candidates and the class of its sizes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// The operator's name.
    pub op: String,
    /// For each input, separated by blanks, its dims rounded up to powers of two, `~` after those not divisible by 4;
    /// leading ones are left out.
    pub class: String,
    /// The candidates, in the operator's order.
    pub candidates: Vec<KernelId>,
}

impl Key {
    /// The key of one node.
    pub fn of(op: &dyn Op, io: &Io, kernels: &[Kernel]) -> Self {
        let dim = |&d: &usize| format!("{}{}", d.next_power_of_two(), if d.is_multiple_of(4) { "" } else { "~" });
        let class: Vec<String> = io
            .inputs
            .iter()
            .map(|ty| ty.shape.dims().iter().skip_while(|&&d| d == 1).map(dim).collect::<Vec<_>>().join(","))
            .collect();
        let candidates = kernels.iter().map(KernelId::of).collect();
        Key { op: op.name().to_string(), class: class.join(" "), candidates }
    }

    /// How far another class lies, in octaves; `None` if the candidates are others.
    fn distance(&self, other: &Key) -> Option<f64> {
        let names = |k: &Key| k.candidates.iter().map(|c| c.kernel.clone()).collect::<Vec<_>>();
        if self.op != other.op || names(self) != names(other) {
            return None;
        }
        // Octaves of rows and columns; a different header (such as a transpose) weighs like four of them.
        let sizes = |class: &str| -> Vec<(f64, f64)> {
            let dims =
                |part: &str| part.split(',').map(|d| d.trim_end_matches('~').parse().unwrap_or(1.0_f64)).collect();
            let split = |dims: Vec<f64>| {
                let last = dims.last().map_or(0.0, |d| d.log2());
                (dims.iter().map(|d| d.log2()).sum::<f64>() - last, last)
            };
            class.split(' ').map(|part| split(dims(part))).collect()
        };
        let (a, b) = (sizes(&self.class), sizes(&other.class));
        let octaves: f64 = a.iter().zip(&b).map(|(x, y)| (x.0 - y.0).abs() + (x.1 - y.1).abs()).sum();
        let differ = |(x, y): (&KernelId, &KernelId)| {
            let [x, y] = [x, y].map(|kernel| kernel.constants.split(' ').collect::<Vec<_>>());
            x.iter().zip(&y).filter(|(a, b)| a != b).count() + x.len().abs_diff(y.len())
        };
        let headers = self.candidates.iter().zip(&other.candidates).map(differ).max().unwrap_or(0);
        Some(octaves + 4.0 * headers as f64 + a.len().abs_diff(b.len()) as f64)
    }
}

/// A choice and what it rests on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// What was chosen for.
    #[serde(flatten)]
    pub key: Key,
    /// Seconds of each candidate; `None` where it was not measured. Empty where there was no time, and the nearest class decided;
    /// nothing but `None` where no candidate could be run.
    pub seconds: Vec<Option<f64>>,
    /// What each was expected to take at least; empty where none was measured.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub forecasts: Vec<f64>,
    /// Why each of those that were not measured was not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<Option<String>>,
    /// The candidate taken, by its place.
    pub winner: usize,
}

impl Row {
    /// Whether the choice rests on measurements; else it was assumed.
    pub fn is_measured(&self) -> bool {
        self.seconds.iter().any(Option::is_some)
    }
}

/// A candidate that this adapter does not compute right.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Barred {
    /// The candidate.
    #[serde(flatten)]
    pub id: KernelId,
    /// What was wrong.
    pub reason: String,
}

/// Everything known of one adapter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Records {
    /// The adapter. In the table that ships, the beginning of its name.
    pub adapter: AdapterId,
    /// Version and shaders under which it was measured.
    pub build: String,
    /// The choices.
    pub rows: Vec<Row>,
    /// Candidates that gave what the operator's reference gives.
    #[serde(default)]
    pub proved: Vec<KernelId>,
    /// Candidates that did not.
    #[serde(default)]
    pub barred: Vec<Barred>,
    /// Measured bandwidth and rate.
    #[serde(default)]
    pub roofline: Option<Roofline>,
    /// The limits that forecasts rest on.
    #[serde(default)]
    pub machine: Option<Machine>,
    /// Limits with what kernels of a training step reach of them, as a benchmark learned it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learned: Option<Machine>,
}

/// The file: one record an adapter.
#[derive(Debug, Serialize, Deserialize)]
struct Document {
    format: u32,
    adapters: Vec<Records>,
}

impl Records {
    /// Nothing known yet.
    pub fn new(adapter: AdapterId) -> Self {
        let (rows, proved, barred) = (Vec::new(), Vec::new(), Vec::new());
        Records { adapter, build: build(), rows, proved, barred, roofline: None, machine: None, learned: None }
    }

    /// What a file in `folder` says of this adapter under this build; nothing if there is none. A file that cannot be
    /// read is reported in the log and replaced by the next [`Records::save`].
    pub fn load(folder: &Path, adapter: &AdapterId) -> Self {
        let build = build();
        let found = document(folder).into_iter().find(|r| r.adapter == *adapter && r.build == build);
        found.unwrap_or_else(|| Records::new(adapter.clone()))
    }

    /// Everything in the file in `folder`, also of other adapters, drivers and builds.
    pub fn all(folder: &Path) -> Vec<Records> {
        document(folder)
    }

    /// The file in `folder`.
    pub fn file(folder: &Path) -> PathBuf {
        folder.join(FILE)
    }

    /// Puts these records into the file in `folder`, whole or not at all, beside those of other adapters. What another process
    /// found out about this one meanwhile under the same build is kept; of another build it is replaced.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder cannot be made or written.
    pub fn save(&self, folder: &Path) -> Result<()> {
        std::fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
        // Until the new file has its name. Where folders cannot be locked, of two processes that end at once one may be lost.
        let lock = File::open(folder).and_then(|folder| folder.lock().map(|()| folder));
        let mut adapters = document(folder);
        let mut mine = self.clone();
        if let Some(at) = adapters.iter().position(|r| r.adapter == self.adapter) {
            mine.merge(adapters.swap_remove(at));
        }
        adapters.push(mine);
        let text = serde_json::to_vec_pretty(&Document { format: FORMAT, adapters }).expect("plain data");
        let temporary = folder.join(format!("{FILE}.{}", std::process::id()));
        let path = folder.join(FILE);
        let written = std::fs::write(&temporary, text).and_then(|()| std::fs::rename(&temporary, &path));
        drop(lock);
        written.map_err(|e| {
            // The temporary file is worthless, and whether it can be removed changes nothing.
            let _ = std::fs::remove_file(&temporary);
            Error::io("write", &path, e)
        })
    }

    /// Adds what these lack and the others of the same adapter and build have: rows, measured ones also in the place of those
    /// that were only assumed, what was proved and barred, and the better of all limits.
    fn merge(&mut self, other: Records) {
        if other.build != self.build {
            return;
        }
        for row in other.rows {
            if self.row(&row.key).is_none_or(|mine| row.is_measured() && !mine.is_measured()) {
                self.put(row);
            }
        }
        let barred: Vec<Barred> = other.barred.into_iter().filter(|b| !self.is_barred(&b.id)).collect();
        self.barred.extend(barred);
        let proved: Vec<KernelId> = other.proved.into_iter().filter(|id| !self.proved.contains(id)).collect();
        self.proved.extend(proved);
        // What failed once is not taken again.
        let Records { proved, barred, .. } = self;
        proved.retain(|id| barred.iter().all(|b| b.id != *id));
        self.roofline = match (self.roofline, other.roofline) {
            (Some(a), Some(b)) => Some(a.max(b)),
            (a, b) => a.or(b),
        };
        self.machine = match (self.machine.take(), other.machine) {
            (Some(a), Some(b)) => Some(a.best(&b)),
            (a, b) => a.or(b),
        };
        self.learned = self.learned.take().or(other.learned);
    }

    /// What ships for this adapter, under whatever driver it was measured.
    pub fn shipped(adapter: &AdapterId) -> Option<Records> {
        let fits = |r: &Records| adapter.name.starts_with(&r.adapter.name) && adapter.backend == r.adapter.backend;
        shipped().adapters.into_iter().find(fits)
    }

    /// The table that ships with these records in the place of those of their adapter: one row a line, three digits.
    pub fn shipped_with(self) -> String {
        let mut all = shipped().adapters;
        let same = |r: &Records| (&r.adapter.name, &r.adapter.backend) == (&self.adapter.name, &self.adapter.backend);
        match all.iter_mut().find(|r| same(r)) {
            Some(place) => *place = self,
            None => all.push(self),
        }
        let text: Vec<String> = all.iter().map(Records::to_table).collect();
        format!("{{\"format\":{FORMAT},\"adapters\":[{}]}}\n", text.join(",\n"))
    }

    fn to_table(&self) -> String {
        let row = |r: &Row| {
            let round = |s: f64| format!("{s:.2e}").parse().unwrap_or(s);
            let seconds = r.seconds.iter().map(|s| s.map(round)).collect();
            // Those of one day's machine.
            let row = Row { seconds, forecasts: Vec::new(), notes: Vec::new(), ..r.clone() };
            format!("  {}", serde_json::to_string(&row).expect("plain data"))
        };
        let rows: Vec<String> = self.rows.iter().map(row).collect();
        let adapter = serde_json::to_string(&self.adapter).expect("plain data");
        let (rows, build) = (rows.join(",\n"), &self.build);
        format!("{{\"adapter\":{adapter},\"build\":\"{build}\",\"rows\":[\n{rows}\n]}}")
    }

    /// The row of a key.
    pub fn row(&self, key: &Key) -> Option<&Row> {
        self.rows.iter().find(|r| r.key == *key)
    }

    /// Adds a row, in the place of an earlier one of its key.
    pub fn put(&mut self, row: Row) {
        match self.rows.iter_mut().find(|r| r.key == row.key) {
            Some(place) => *place = row,
            None => self.rows.push(row),
        }
    }

    /// The row whose class is nearest, among those that were measured of the same candidates.
    pub fn nearest(&self, key: &Key) -> Option<&Row> {
        let measured = self.rows.iter().filter(|r| r.is_measured());
        let near = measured.filter_map(|r| Some((key.distance(&r.key)?, r)));
        near.min_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, row)| row)
    }

    /// True if this candidate is barred.
    pub fn is_barred(&self, id: &KernelId) -> bool {
        self.barred.iter().any(|b| b.id == *id)
    }
}

/// The table that ships.
fn shipped() -> Document {
    serde_json::from_str(SHIPPED).expect("the table that ships is well-formed: a test reads it")
}

/// The file's records; none if there is no file or it cannot be understood.
fn document(folder: &Path) -> Vec<Records> {
    let path = folder.join(FILE);
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
        Err(e) => {
            tracing::warn!("{} cannot be read ({e}); kernels are measured anew", path.display());
            return Vec::new();
        }
    };
    match serde_json::from_slice::<Document>(&text) {
        Ok(d) if d.format == FORMAT => d.adapters,
        Ok(d) => {
            tracing::info!("{} has format {} and not {FORMAT}; kernels are measured anew", path.display(), d.format);
            Vec::new()
        }
        Err(e) => {
            tracing::warn!("{} is damaged ({e}); it is ignored and written anew", path.display());
            Vec::new()
        }
    }
}

/// This crate's version and a hash (FNV-1a) of all its shaders, and of what rewrites them on a CPU: what was measured under
/// another is not believed.
pub fn build() -> String {
    let texts = crate::shader::names().flat_map(|n| [n, crate::shader::text(n).unwrap_or_default()]);
    let texts = texts.chain([include_str!("../gpu/wide.rs")]);
    let hash = texts
        .flat_map(str::bytes)
        .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    format!("{} {hash:016x}", env!("CARGO_PKG_VERSION"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Limits;
    use crate::ops::table::table;
    use std::collections::{BTreeMap, BTreeSet};

    /// What is proved, or barred, of one candidate is believed of all with its identity.
    #[test]
    fn candidates_of_one_identity_have_the_same_stages() {
        let cpu = Limits { is_cpu: true, min_subgroup: 8, max_subgroup: 8, ..Limits::default() };
        let gpu = Limits { max_invocations: 1024, ..crate::run::forecast::tests::limits() };
        for limits in [Limits::default(), cpu, gpu] {
            let mut known: BTreeMap<_, (String, BTreeSet<_>)> = BTreeMap::new();
            for case in table() {
                for kernel in case.kernels(&limits).unwrap_or_else(|e| panic!("{}: {e}", case.label)) {
                    let id = KernelId::of(&kernel);
                    // Of a chain's blocks each has the same.
                    let stages = kernel.stages().map(|stage| (stage.shader, format!("{:?}", stage.constants)));
                    let stages: BTreeSet<_> = stages.collect();
                    let (label, before) = known
                        .entry((id.kernel.clone(), id.constants.clone()))
                        .or_insert_with(|| (case.label.clone(), stages.clone()));
                    assert_eq!(*before, stages, "{id:?} of {label} and of {}", case.label);
                }
            }
            assert!(known.values().any(|(_, stages)| stages.len() > 1), "no candidate has several stages");
        }
    }
}
