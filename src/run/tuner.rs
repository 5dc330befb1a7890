//! Picks among a step's candidates by measuring them on the device, and remembers.

use super::probe;
use super::race_kernel;
use super::records::{Barred, FILE, KernelId, Key, Records, Row};
use super::roofline::Roofline;
use crate::compile::Chooser;
use crate::error::Result;
use crate::gpu::Gpu;
use crate::graph::{Io, Kernel, Op};
use pollster::block_on;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What a [`Tuner`] may do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum TuneMode {
    /// Take the first candidate always: the same kernels on every machine of a kind.
    Off,
    /// Take what is remembered or ships, and measure nothing.
    Cached,
    /// Measure what is not known, within the budget.
    #[default]
    Full,
}

impl std::str::FromStr for TuneMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(TuneMode::Off),
            "cached" => Ok(TuneMode::Cached),
            "full" => Ok(TuneMode::Full),
            _ => Err(format!("`{text}` is none of off, cached, full")),
        }
    }
}

/// Seconds that a process may spend on measuring kernels; proofs count towards it and are made beyond it.
const BUDGET: Duration = Duration::from_secs(3);

/// Chooses kernels by measurement. In this order it believes: what it remembers of the adapter, the table that ships,
/// a measurement now, the nearest class that it knows, the first candidate. A candidate other than the first is taken
/// only after it gave the first one's results on this adapter, within the tests' tolerance.
///
/// Whatever was chosen once stays chosen, so that runs repeat to the bit as long as the file stays.
#[derive(Debug)]
pub struct Tuner {
    gpu: Gpu,
    mode: TuneMode,
    folder: Option<PathBuf>,
    records: Records,
    /// What ships for this adapter, perhaps measured under another driver and with earlier shaders: a hint, since what is
    /// taken is proved here.
    shipped: Option<Records>,
    budget: Duration,
    spent: Duration,
    measured: usize,
    changed: bool,
}

impl Tuner {
    /// A tuner for a device, which keeps a file in `folder` if one is given.
    pub fn new(gpu: &Gpu, mode: TuneMode, folder: Option<&Path>) -> Self {
        let id = gpu.report().id();
        Tuner {
            gpu: gpu.clone(),
            mode,
            records: folder.map_or_else(|| Records::new(id.clone()), |f| Records::load(f, &id)),
            shipped: Records::shipped(&id),
            folder: folder.map(Path::to_path_buf),
            budget: BUDGET,
            spent: Duration::ZERO,
            measured: 0,
            changed: false,
        }
    }

    /// Another budget than three seconds.
    pub fn with_budget(mut self, budget: Duration) -> Self {
        self.budget = budget;
        self
    }

    /// Ignores the table that ships.
    pub fn without_table(mut self) -> Self {
        self.shipped = None;
        self
    }

    /// Time spent on measuring and proving so far.
    pub fn spent(&self) -> Duration {
        self.spent
    }

    /// Choices made by measurement so far.
    pub fn measured(&self) -> usize {
        self.measured
    }

    /// What is known of the adapter.
    pub fn records(&self) -> &Records {
        &self.records
    }

    /// Bandwidth and rate of the device, the best ever seen: measured now in full mode, or where nothing is remembered;
    /// which takes half a second on a CPU and does not count towards the budget.
    ///
    /// # Errors
    /// If the device fails.
    pub async fn roofline(&mut self) -> Result<Roofline> {
        let known = self.records.roofline;
        if let Some(known) = known.filter(|_| self.mode != TuneMode::Full) {
            return Ok(known);
        }
        let gpu = self.gpu.clone();
        let measured = Roofline::measure(&gpu, self).await?;
        let roofline = known.map_or(measured, |known| known.max(measured));
        self.records.roofline = Some(roofline);
        self.changed = true;
        Ok(roofline)
    }

    /// Writes what was learnt since the last time. Dropping the tuner does so too.
    ///
    /// # Errors
    /// If the folder cannot be written.
    pub fn save(&mut self) -> Result<()> {
        match &self.folder {
            Some(folder) if self.changed => self.records.save(folder)?,
            _ => {}
        }
        self.changed = false;
        Ok(())
    }

    fn has_time(&self) -> bool {
        self.spent < self.budget
    }

    /// True if candidate `i` may be taken, after a proof where there is none yet. That takes milliseconds and stands under no
    /// budget: what is chosen must not depend on how busy the machine is.
    fn trusted(&mut self, op: &dyn Op, io: &Io, key: &Key, i: usize) -> bool {
        let id = &key.candidates[i];
        if i == 0 || self.records.proved.contains(id) {
            return true;
        }
        if self.records.is_barred(id) {
            return false;
        }
        let start = Instant::now();
        let proof = block_on(probe::prove(&self.gpu, op, io, i));
        self.spent += start.elapsed();
        match proof {
            Ok(()) => self.records.proved.push(id.clone()),
            // A lost device says nothing about the kernel.
            Err(_) if self.gpu.check().is_err() => return false,
            Err(reason) => {
                self.bar(id, reason);
                return false;
            }
        }
        self.changed = true;
        true
    }

    fn bar(&mut self, id: &KernelId, reason: String) {
        tracing::warn!("kernel {} ({}) is not used on this adapter: {reason}", id.kernel, id.constants);
        self.records.barred.push(Barred { id: id.clone(), reason });
        self.changed = true;
    }

    /// Times every candidate on a small version of the node; the fastest that proves right wins.
    fn measure(&mut self, op: &dyn Op, io: &Io, key: &Key) -> Row {
        let start = Instant::now();
        let limits = self.gpu.limits();
        let small = probe::shrink(op, io, limits, probe::measured(limits));
        let kernels = op.kernels(&small, limits);
        let mut seconds: Vec<Option<f64>> = vec![None; kernels.len()];
        let mut best: Option<f64> = None;
        for (i, kernel) in kernels.iter().enumerate() {
            if self.records.is_barred(&key.candidates[i]) {
                continue;
            }
            match block_on(race_kernel(&self.gpu, kernel, &small, best)) {
                Ok(t) => {
                    seconds[i] = Some(t);
                    best = Some(best.map_or(t, |b| b.min(t)));
                }
                Err(e) if i > 0 && self.gpu.check().is_ok() => self.bar(&key.candidates[i], e.to_string()),
                Err(_) => {}
            }
        }
        self.spent += start.elapsed();
        let mut order: Vec<usize> = (0..kernels.len()).filter(|&i| seconds[i].is_some()).collect();
        // Within the measurement's noise the operator's own order decides, so that two fresh starts agree.
        let time = |i: usize| seconds[i].filter(|&t| t > 1.05 * best.unwrap_or(0.0)).unwrap_or(0.0);
        order.sort_by(|&a, &b| time(a).total_cmp(&time(b)).then(a.cmp(&b)));
        let winner = order.into_iter().find(|&i| self.trusted(op, io, key, i)).unwrap_or(0);
        self.measured += 1;
        Row { key: key.clone(), seconds, winner }
    }

    /// The winner of the nearest class in these records, if it may be taken here.
    fn nearest(&mut self, op: &dyn Op, io: &Io, key: &Key) -> Option<usize> {
        let i = self.records.nearest(key)?.winner;
        self.trusted(op, io, key, i).then_some(i)
    }

    /// What the table that ships says.
    fn table_choice(&mut self, op: &dyn Op, io: &Io, key: &Key) -> Option<usize> {
        let table = self.shipped.as_ref()?;
        let i = table.row(key).or_else(|| table.nearest(key))?.winner;
        Some(if self.trusted(op, io, key, i) { i } else { 0 })
    }
}

impl Chooser for Tuner {
    fn choose(&mut self, op: &dyn Op, io: &Io, kernels: &[Kernel]) -> usize {
        if self.mode == TuneMode::Off || kernels.len() < 2 || self.gpu.check().is_err() {
            return 0;
        }
        let key = Key::of(op, io, kernels);
        if let Some(row) = self.records.row(&key).filter(|r| r.winner < kernels.len()) {
            let winner = row.winner;
            return if self.trusted(op, io, &key, winner) { winner } else { 0 };
        }
        if let Some(winner) = self.table_choice(op, io, &key) {
            return winner;
        }
        if self.mode == TuneMode::Cached {
            return self.nearest(op, io, &key).unwrap_or(0);
        }
        let row = if self.has_time() {
            self.measure(op, io, &key)
        } else {
            let winner = self.nearest(op, io, &key).unwrap_or(0);
            Row { key, seconds: Vec::new(), winner }
        };
        if self.gpu.check().is_err() {
            return 0;
        }
        let winner = row.winner;
        tracing::debug!("{} {}: {}", row.key.op, row.key.class, row.key.candidates[winner].kernel);
        self.records.rows.push(row);
        self.changed = true;
        winner
    }
}

impl Drop for Tuner {
    fn drop(&mut self) {
        if let Err(e) = self.save() {
            tracing::warn!("{FILE} is not kept, so the next start measures again: {e}");
        }
    }
}
