//! Picks among a step's candidates by measuring them on the device, and remembers.

use super::forecast::{self, Forecast, Race};
use super::kernel::compile;
use super::machine::Machine;
use super::probe;
use super::race_kernel;
use super::records::{Barred, FILE, KernelId, Key, Records, Row};
use super::roofline::Roofline;
use super::rounding;
use crate::compile::{Chooser, Learning};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::graph::{Cost, Io, Kernel, Op};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a [`Tuner`] may do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
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

/// How long a process may measure kernels, and as long again compile them for that. Proofs are made beside it.
const BUDGET: Duration = Duration::from_secs(3);
/// For both together of what an earlier process had no time for, and for limits known already: a second start is to be quick.
const LATER: Duration = Duration::from_millis(500);

/// Chooses kernels by measurement. In this order it believes: what it measured on the adapter earlier, the table that ships,
/// a measurement now, what it assumed earlier, the nearest class that it measured, the first candidate. Where there is a
/// choice, a candidate is taken only after it gave the results of the operator's reference on this adapter, within the tests' tolerance; the
/// first that does, where the one that was to be taken does not.
///
/// What was measured once stays chosen. What was only assumed, since a process had no time left, stays so until a process has
/// the time to measure it; so runs repeat to the bit, as long as the file stays, once everything was measured, and a run that
/// is taken up, whatever was measured in between ([`super::Choices`]).
#[derive(Debug)]
pub struct Tuner {
    gpu: Gpu,
    mode: TuneMode,
    folder: Option<PathBuf>,
    records: Records,
    /// What ships for this adapter, perhaps measured under another driver and with earlier shaders: a hint, since what is
    /// taken is proved here.
    shipped: Option<Records>,
    /// For what nobody asked about before, and for what was only assumed.
    budget: Duration,
    later: Duration,
    spent: Duration,
    compiled: Duration,
    measured: usize,
    changed: bool,
    /// The device's limits were measured in this process.
    has_machine: bool,
    /// Whether this process brought what a benchmark learned; else another's may be newer.
    has_learned: bool,
    /// What [`rounding::run`] found, once it was asked.
    misrounds: Option<Option<String>>,
    /// What was asked for and not known.
    asked: Vec<Asked>,
    /// What was found out in this process.
    decided: Vec<(Key, usize)>,
}

/// A choice that has to wait for the device.
#[derive(Debug)]
struct Asked {
    op: Arc<dyn Op>,
    io: Io,
    key: Key,
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
            later: LATER,
            spent: Duration::ZERO,
            compiled: Duration::ZERO,
            measured: 0,
            changed: false,
            has_machine: false,
            has_learned: false,
            misrounds: None,
            asked: Vec::new(),
            decided: Vec::new(),
        }
    }

    /// A tuner for who waits for text: on a GPU what is not known is measured once, where there is a folder to keep it; where the
    /// host computes, each candidate takes seconds to compile, and a table ships.
    pub fn serving(gpu: &Gpu, folder: Option<&Path>) -> Self {
        let is_measured = folder.is_some() && !gpu.limits().is_cpu;
        Self::new(gpu, if is_measured { TuneMode::Full } else { TuneMode::Cached }, folder)
    }

    /// Another budget than three seconds, also for what was only assumed; `Duration::MAX` for none.
    pub fn with_budget(mut self, budget: Duration) -> Self {
        (self.budget, self.later) = (budget, budget);
        self
    }

    /// Ignores the table that ships.
    pub fn without_table(mut self) -> Self {
        self.shipped = None;
        self
    }

    /// Time spent on measuring so far, without that of a first [`Tuner::roofline`].
    pub fn spent(&self) -> Duration {
        self.spent
    }

    /// Time spent on compiling what was measured or proved, which is not among [`Tuner::spent`].
    pub fn compiled(&self) -> Duration {
        self.compiled
    }

    /// Choices made by measurement so far.
    pub fn measured(&self) -> usize {
        self.measured
    }

    /// What is known of the adapter.
    pub fn records(&self) -> &Records {
        &self.records
    }

    /// Bandwidth and rate of the device, the best ever seen: measured where nothing is remembered, which takes half a second on a
    /// CPU and has a budget of its own, as choosing its products has. In full mode what is remembered is measured again, unless
    /// this process spent time on kernels already; then it counts as [`Tuner::spent`]. With `half` also of products of f16 operands.
    ///
    /// # Errors
    /// If the device fails.
    pub async fn roofline(&mut self, half: bool) -> Result<Roofline> {
        let known = self.records.roofline;
        let enough = known.filter(|r| r.half_flops_per_second > 0.0 || !half);
        let is_quick = self.mode != TuneMode::Full || !(self.spent + self.compiled).is_zero();
        if let Some(known) = enough.filter(|_| is_quick) {
            return Ok(known);
        }
        let gpu = self.gpu.clone();
        let start = Instant::now();
        let before = (std::mem::take(&mut self.spent), std::mem::take(&mut self.compiled));
        let mut measured = Roofline::measure(&gpu, self).await?;
        if half {
            measured = measured.with_half(&gpu, self).await?;
        }
        (self.spent, self.compiled) = before;
        if enough.is_some() {
            self.spent += start.elapsed();
        }
        let roofline = known.map_or(measured, |known| known.max(measured));
        self.records.roofline = Some(roofline);
        self.changed = true;
        Ok(roofline)
    }

    /// Remembers what a benchmark learned, in the place of what an earlier one did; nothing where it timed no training step.
    pub fn keep_learned(&mut self, machine: &Machine) {
        if !machine.taken.is_empty() {
            self.records.learned = Some(machine.clone());
            (self.has_learned, self.changed) = (true, true);
        }
    }

    /// Writes what was learnt since the last time. Dropping the tuner does so too.
    ///
    /// # Errors
    /// If the folder cannot be written.
    pub fn save(&mut self) -> Result<()> {
        if let Some(folder) = self.folder.as_ref().filter(|_| self.changed) {
            let learned = self.records.learned.clone().filter(|_| self.has_learned);
            Records { learned, ..self.records.clone() }.save(folder)?;
        }
        self.changed = false;
        Ok(())
    }

    /// Whether a choice may still be measured. What an earlier process only assumed is there already.
    fn has_time(&self, key: &Key) -> bool {
        let is_left = match self.records.row(key) {
            Some(_) => self.spent.saturating_add(self.compiled) < self.later,
            None => self.spent < self.budget && self.compiled < self.budget,
        };
        self.mode == TuneMode::Full && is_left
    }

    /// True if candidate `i` may be taken, after a proof where there is none yet. That takes milliseconds and stands under no
    /// budget: what is chosen must not depend on how busy the machine is.
    async fn trusted(&mut self, op: &dyn Op, io: &Io, key: &Key, i: usize) -> bool {
        if let Some(trusted) = self.verdict(key, i) {
            return trusted;
        }
        let id = &key.candidates[i];
        match self.prove(op, io, id).await {
            Ok(None) => self.records.proved.push(id.clone()),
            Ok(Some(reason)) => {
                self.bar(id, reason);
                return false;
            }
            // A lost device, or lack of memory, says nothing about the kernel.
            Err(Error::Memory { .. }) => return false,
            Err(_) if self.gpu.check().is_err() => return false,
            Err(error) => {
                self.bar(id, error.to_string());
                return false;
            }
        }
        self.changed = true;
        true
    }

    /// The first candidate that may be taken; where none may, the very first, aloud.
    async fn first_right(&mut self, op: &dyn Op, io: &Io, key: &Key) -> usize {
        for i in 0..key.candidates.len() {
            if self.trusted(op, io, key, i).await {
                return i;
            }
        }
        if (0..key.candidates.len()).all(|i| self.verdict(key, i) == Some(false)) {
            tracing::warn!("no kernel of {} is right on this adapter: do not believe what it computes", key.op);
        }
        0
    }

    /// What is wrong with a candidate, if anything. What is fused to the operator has no part in its identity, nor in its proof.
    async fn prove(&mut self, op: &dyn Op, io: &Io, id: &KernelId) -> Result<Option<String>> {
        let bare = op.bare(io);
        let (op, io) = bare.as_ref().map_or((op, io), |(op, io)| (&**op, io));
        let kernels = op.kernels(io, self.gpu.limits());
        let kernel =
            kernels.iter().find(|kernel| KernelId::of(kernel) == *id).expect("fusing leaves candidates as they are");
        self.compiled += compile(&self.gpu, [kernel]);
        match probe::prove(&self.gpu, op, io, id).await {
            Ok(None) if rounding::is_native(kernel) => self.misrounds().await,
            proof => proof,
        }
    }

    /// What the adapter's own conversion rounds wrongly, if anything; tried once in a process.
    async fn misrounds(&mut self) -> Result<Option<String>> {
        if let Some(known) = &self.misrounds {
            return Ok(known.clone());
        }
        let trials = rounding::trials(self.gpu.limits())?;
        self.compiled += compile(&self.gpu, trials.iter().flat_map(|trial| &trial.kernels));
        let wrong = rounding::run(&self.gpu, &trials).await;
        Ok(self.misrounds.insert(wrong?).clone())
    }

    fn bar(&mut self, id: &KernelId, reason: String) {
        tracing::warn!("kernel {} ({}) is not used on this adapter: {reason}", id.kernel, id.constants);
        self.records.barred.push(Barred { id: id.clone(), reason });
        self.changed = true;
    }

    /// Times the candidates that may win on a small version of the node, a smaller one as long as memory is lacking; the fastest
    /// that proves right is taken.
    async fn measure(&mut self, op: &dyn Op, io: &Io, key: &Key) -> Row {
        let machine = self.machine(self.records.row(key).is_some()).await;
        let gpu = self.gpu.clone();
        let limits = gpu.limits();
        let most = machine.as_ref().map_or(probe::LEAST, |m| probe::measured(&op.kernels(io, limits), m, limits));
        let mut small = probe::shrink_further(op, io, limits, most);
        loop {
            let (forecasts, race) = self.race(op, &small, key, machine.as_ref()).await;
            // Other programs may hold the memory.
            let less = Cost { flops: u64::MAX, bytes: small.bytes() / 2 };
            let smaller = probe::shrink_further(op, &small, limits, less);
            if race.is_short && smaller.bytes() < small.bytes() {
                small = smaller;
                continue;
            }
            let Race { mut seconds, notes, failed, .. } = race;
            for i in failed {
                // A lost device says nothing about the kernel.
                if gpu.check().is_ok() {
                    self.bar(&key.candidates[i], notes[i].clone().unwrap_or_default());
                }
            }
            let (mut winner, mut is_refused) = (0, false);
            for i in by_time(&seconds) {
                if self.trusted(op, io, key, i).await {
                    winner = i;
                    break;
                }
                match self.verdict(key, i) {
                    Some(_) => is_refused = true,
                    // What could not be tried for lack of memory is no evidence either.
                    None => seconds.fill(None),
                }
            }
            // One that is wrong may have kept others out of the race.
            let is_out = |(id, s): (&KernelId, &Option<f64>)| s.is_none() && !self.records.is_barred(id);
            if is_refused && key.candidates.iter().zip(&seconds).any(is_out) {
                continue;
            }
            if is_refused && self.verdict(key, winner) == Some(false) {
                winner = self.first_right(op, io, key).await;
            }
            let row = Row { key: key.clone(), seconds, forecasts, notes, winner };
            self.measured += usize::from(row.is_measured());
            return row;
        }
    }

    /// Races the candidates on this version of the node; gives the forecasts, too.
    async fn race(&mut self, op: &dyn Op, small: &Io, key: &Key, machine: Option<&Machine>) -> (Vec<f64>, Race) {
        let limits = self.gpu.limits();
        let kernels = op.kernels(small, limits);
        let forecast = |k: &Kernel| machine.map_or(0.0, |m| Forecast::of(k, op.cost(small), m).seconds());
        let forecasts: Vec<f64> = kernels.iter().map(forecast).collect();
        let reached = forecast::experience(key, &self.records.rows);
        let barred: Vec<bool> = key.candidates.iter().map(|id| self.records.is_barred(id)).collect();
        let gpu = &self.gpu;
        // A GPU's driver compiles beside the host's other threads, so it is given all at once; where the host computes, what is
        // left out of the race is not worth it.
        let open =
            || kernels.iter().zip(&barred).filter(|(_, barred)| !limits.is_cpu && !*barred).map(|(kernel, _)| kernel);
        let mut compiling = compile(gpu, open());
        let start = Instant::now();
        let mut meanwhile = Duration::ZERO;
        let time = async |i: usize, best| {
            meanwhile += compile(gpu, [&kernels[i]]);
            race_kernel(gpu, &kernels[i], small, best).await
        };
        let race = forecast::race(&forecasts, &reached, &barred, time).await;
        compiling += meanwhile;
        self.spent += start.elapsed().saturating_sub(meanwhile);
        self.compiled += compiling;
        (forecasts, race)
    }

    /// The limits that forecasts rest on, the best ever seen, measured at the first question of a process; as the roofline
    /// they do not count towards the budget. Those remembered do where the start `is_later`. `None` if the device fails.
    async fn machine(&mut self, is_later: bool) -> Option<Machine> {
        let is_known = self.has_machine || is_later && self.records.machine.is_some();
        if !is_known {
            let now = Machine::bare(&self.gpu).await.ok()?;
            self.records.machine = Some(self.records.machine.as_ref().map_or(now.clone(), |m| m.best(&now)));
            self.has_machine = true;
        }
        self.records.machine.clone()
    }

    /// Whether candidate `i` may be taken, where that was found out already.
    fn verdict(&self, key: &Key, i: usize) -> Option<bool> {
        let id = &key.candidates[i];
        let is_proved = self.records.proved.contains(id);
        is_proved.then_some(true).or_else(|| self.records.is_barred(id).then_some(false))
    }

    /// What was measured, ships, or was assumed and cannot be measured now.
    fn remembered(&self, key: &Key) -> Option<usize> {
        let mine = self.records.row(key).filter(|row| row.is_measured() || !self.has_time(key));
        let table = || self.shipped.as_ref().and_then(|t| t.row(key).or_else(|| t.nearest(key)));
        mine.or_else(table).map(|row| row.winner).filter(|&i| i < key.candidates.len())
    }

    /// What needs no device: what was decided in this process, or is remembered and was proved.
    fn known(&self, key: &Key) -> Option<usize> {
        if let Some((_, i)) = self.decided.iter().find(|(decided, _)| decided == key) {
            return Some(*i);
        }
        let i = self.remembered(key)?;
        (self.verdict(key, i)?).then_some(i)
    }

    /// Measures and proves what is wanted for one choice.
    async fn decide(&mut self, op: &dyn Op, io: &Io, key: &Key) -> usize {
        if self.gpu.check().is_err() {
            return 0;
        }
        if let Some(winner) = self.remembered(key) {
            return if self.trusted(op, io, key, winner).await { winner } else { self.first_right(op, io, key).await };
        }
        let row = if self.has_time(key) {
            self.measure(op, io, key).await
        } else {
            let nearest = self.records.nearest(key).map(|row| row.winner);
            let nearest = nearest.filter(|&i| i < key.candidates.len()).unwrap_or(0);
            let winner =
                if self.trusted(op, io, key, nearest).await { nearest } else { self.first_right(op, io, key).await };
            Row { key: key.clone(), seconds: Vec::new(), forecasts: Vec::new(), notes: Vec::new(), winner }
        };
        if self.gpu.check().is_err() {
            return 0;
        }
        let winner = row.winner;
        tracing::debug!("{} {}: {}", row.key.op, row.key.class, row.key.candidates[winner].kernel);
        if self.mode == TuneMode::Full {
            self.records.put(row);
            self.changed = true;
        }
        winner
    }
}

/// Those that were measured, the fastest first. Within the measurement's noise the operator's own order decides, so that two
/// fresh starts agree.
fn by_time(seconds: &[Option<f64>]) -> Vec<usize> {
    let best = seconds.iter().flatten().copied().fold(f64::INFINITY, f64::min);
    let mut order: Vec<usize> = (0..seconds.len()).filter(|&i| seconds[i].is_some()).collect();
    let time = |i: usize| seconds[i].filter(|&t| t > 1.05 * best).unwrap_or(0.0);
    order.sort_by(|&a, &b| time(a).total_cmp(&time(b)).then(a.cmp(&b)));
    order
}

impl Chooser for Tuner {
    fn choose(&mut self, op: &Arc<dyn Op>, io: &Io, kernels: &[Kernel]) -> usize {
        if self.mode == TuneMode::Off || kernels.len() < 2 || self.gpu.check().is_err() {
            return 0;
        }
        let key = Key::of(&**op, io, kernels);
        if let Some(i) = self.known(&key) {
            return i;
        }
        if !self.asked.iter().any(|asked| asked.key == key) {
            self.asked.push(Asked { op: op.clone(), io: io.clone(), key });
        }
        0
    }

    fn learn(&mut self) -> Learning<'_> {
        Box::pin(async {
            let mut moved = false;
            for asked in std::mem::take(&mut self.asked) {
                let i = self.decide(&*asked.op, &asked.io, &asked.key).await;
                moved |= i != 0;
                self.decided.push((asked.key, i));
            }
            moved
        })
    }
}

impl Drop for Tuner {
    fn drop(&mut self) {
        if let Err(e) = self.save() {
            tracing::warn!("{FILE} is not kept, so the next start measures again: {e}");
        }
    }
}
