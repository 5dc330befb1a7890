//! Takes checkpoints while training goes on: at a step's end the device copies its states into memory that the host can
//! read, and a thread writes from there to the disk.
//!
//! Training waits for nothing but those copies, which stand in the device's queue before the next step, and go into memory that
//! was made, and written to once, before the first of them; and where the states are so large that the host has not the memory for a
//! whole copy, for as much as the slots do not hold.

use super::{Neighbours, Trainer, World};
use crate::error::{Error, Result};
use crate::gpu::{Gpu, Readback, Submission};
use crate::store::snapshot::{Manifest, Part, SHARD_BYTES, Series, SnapshotWriter, StateSize, cut};
use pollster::block_on;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Instant;

/// Bytes of one slot.
const SLOT: u64 = 32 << 20;
/// Slots that one submission fills: a gigabyte, so that no submission takes long.
const BATCH: usize = 32;
/// Slots where the host's memory is unknown or short.
const FEWEST: usize = 4;

/// What came of a checkpoint.
#[derive(Debug)]
pub enum Kept {
    /// It lies on disk.
    Saved {
        /// After this many steps.
        step: u64,
        /// Its folder.
        folder: PathBuf,
        /// Bytes of states.
        bytes: u64,
        /// Seconds for which the device worked on nothing else.
        stall: f64,
        /// Seconds until it was on disk.
        seconds: f64,
        /// Why a neighbour has no copy of this rank's part, or this one none of another's, where they should.
        uncopied: Option<Error>,
    },
    /// It does not; nothing half-written stays.
    Failed {
        /// After this many steps.
        step: u64,
        /// Why.
        error: Error,
    },
}

enum Job {
    Begin(Box<Manifest>, Instant),
    /// Slots with so many bytes each, which copies fill that were submitted.
    Batch(Vec<(u64, Readback)>),
    /// All copies are made; for so many seconds the device worked on nothing else.
    End(f64),
}

/// Copies, and a thread that writes them.
pub struct Keeper {
    gpu: Gpu,
    series: Series,
    sizes: Vec<StateSize>,
    loads: Vec<Vec<Part>>,
    slot_bytes: u64,
    most: usize,
    is_prepared: bool,
    /// Slots that have not been used yet.
    fresh: Vec<Readback>,
    free: Receiver<Readback>,
    told: Receiver<Kept>,
    busy: bool,
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// A keeper of the states that a trainer's step writes, in a run's series; of which it lets the last `keep` stay, and the `best`. Where
    /// several `ranks` each keep their own, their threads talk by these: the first one's part gets its name once those of all
    /// others have theirs, and `copies` of them go to neighbours.
    pub fn new(
        gpu: &Gpu,
        trainer: &Trainer,
        series: Series,
        (keep, best): (usize, bool),
        ranks: World,
        copies: Option<Neighbours>,
    ) -> Keeper {
        let sizes = trainer.kept_states();
        let bytes: u64 = sizes.iter().map(|s| s.bytes).sum();
        let slot_bytes = SLOT.min(bytes.max(4));
        let loads = cut(&sizes, slot_bytes);
        // A third of what is free: the files that are written stay in the system's cache as well.
        let room = (trainer.host_memory)().map_or(FEWEST, |free| (free / 3 / slot_bytes) as usize);
        let most = room.max(FEWEST).min(loads.len());
        let (jobs, work) = channel();
        let (tell, told) = channel();
        let (give, free) = channel();
        let series = series.part(ranks.rank());
        let writer = Writer { gpu: gpu.clone(), series: series.clone(), keep, best, tell, give, ranks, copies };
        let thread = std::thread::spawn(move || writer.run(&work));
        let (jobs, thread) = (Some(jobs), Some(thread));
        Keeper {
            gpu: gpu.clone(),
            series,
            sizes,
            loads,
            slot_bytes,
            most,
            is_prepared: false,
            fresh: Vec::new(),
            free,
            told,
            busy: false,
            jobs,
            thread,
        }
    }

    /// Makes the slots, and has the device write to them once: a system gives memory when it is first written to, which takes
    /// longer than the copies. To be called before the first is taken, which does it itself otherwise; again it has nothing to do.
    ///
    /// # Errors
    /// If there is no memory for them, or the device fails.
    pub async fn prepare(&mut self, trainer: &Trainer) -> Result<()> {
        if std::mem::replace(&mut self.is_prepared, true) {
            return Ok(());
        }
        while self.fresh.len() < self.most {
            let mut submission = self.gpu.submission();
            for at in self.fresh.len()..self.most.min(self.fresh.len() + BATCH) {
                let slot = self.gpu.readback(self.slot_bytes).await?;
                self.copy(trainer, at, &slot, &mut submission)?;
                self.fresh.push(slot);
            }
            submission.submit()?.wait(&self.gpu).await?;
        }
        Ok(())
    }

    /// Copies what belongs into one slot; gives its bytes.
    fn copy(&self, trainer: &Trainer, at: usize, slot: &Readback, submission: &mut Submission) -> Result<u64> {
        let mut bytes = 0;
        for part in &self.loads[at] {
            let state = trainer.states.get(&part.state)?;
            submission.copy_out_at(state.range(part.offset, part.bytes), slot, bytes)?;
            bytes += part.bytes;
        }
        Ok(bytes)
    }

    /// The run's series.
    pub fn series(&self) -> &Series {
        &self.series
    }

    /// The states that are kept, in order.
    pub fn sizes(&self) -> &[StateSize] {
        &self.sizes
    }

    /// True while one is being written.
    pub fn is_busy(&self) -> bool {
        self.busy
    }

    /// Copies the states as they are after all that was submitted, and has them written; `began` is when the device had
    /// nothing else to do. Not to be called while one is being written.
    ///
    /// # Errors
    /// If the device fails.
    pub async fn take(&mut self, trainer: &Trainer, manifest: Manifest, began: Instant) -> Result<()> {
        // A run that is taken up and goes back before its first step is told comes here without slots.
        self.prepare(trainer).await?;
        self.busy = true;
        self.send(Job::Begin(Box::new(manifest), began))?;
        let (mut at, mut copied, mut stall) = (0, Vec::new(), 0.0);
        while at < self.loads.len() {
            let mut submission = self.gpu.submission();
            let end = self.loads.len().min(at + BATCH);
            while at < end
                && let Some(slot) = self.slot(copied.is_empty())?
            {
                copied.push((self.copy(trainer, at, &slot, &mut submission)?, slot));
                at += 1;
            }
            let ticket = submission.submit()?;
            // Waited for here, where nothing else is submitted meanwhile: a driver may run what it is given before it gives
            // the queue back, and the other thread would learn of the last copy only after the first part of the next step.
            if at == self.loads.len() {
                ticket.wait(&self.gpu).await?;
                stall = began.elapsed().as_secs_f64();
            }
            // One message where the slots hold all: none is written before the last copy is made. Where they do not,
            // training waits for the disk as well.
            if at < end || at == self.loads.len() {
                self.send(Job::Batch(std::mem::take(&mut copied)))?;
            }
        }
        self.send(Job::End(stall))
    }

    /// A slot that nobody uses: a fresh one, one that came back, or, if `wait`, the next that comes back.
    fn slot(&mut self, wait: bool) -> Result<Option<Readback>> {
        match self.fresh.pop().or_else(|| self.free.try_recv().ok()) {
            None if wait => self.free.recv().map(Some).map_err(|_| ended()),
            slot => Ok(slot),
        }
    }

    fn send(&self, job: Job) -> Result<()> {
        self.jobs.as_ref().and_then(|jobs| jobs.send(job).ok()).ok_or_else(ended)
    }

    /// What came of the one that was being written, if that is known by now.
    pub fn poll(&mut self) -> Option<Kept> {
        let kept = self.told.try_recv().ok()?;
        self.busy = false;
        Some(kept)
    }

    /// The same, waited for; nothing if none is being written.
    pub fn wait(&mut self) -> Option<Kept> {
        if !std::mem::take(&mut self.busy) {
            return None;
        }
        self.told.recv().ok()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // The thread ends with its last job.
        self.jobs = None;
        self.thread.take().map(JoinHandle::join);
    }
}

fn ended() -> Error {
    Error::Graph("the thread that writes checkpoints has ended".into())
}

/// The thread's side.
struct Writer {
    gpu: Gpu,
    series: Series,
    keep: usize,
    best: bool,
    tell: Sender<Kept>,
    give: Sender<Readback>,
    ranks: World,
    copies: Option<Neighbours>,
}

impl Writer {
    fn run(&self, jobs: &Receiver<Job>) {
        while let Ok(Job::Begin(manifest, began)) = jobs.recv() {
            let (step, bytes) = (manifest.step, manifest.bytes());
            let written = SnapshotWriter::new(self.series.folder(), *manifest, SHARD_BYTES);
            let (filled, stall) = self.fill(written, jobs);
            let kept = match self.finish(filled) {
                Ok(folder) => {
                    if self.ranks.is_first() {
                        self.series.retain(self.keep, self.best);
                    }
                    let copied = self.copies.as_ref().map(|copies| copies.exchange(&self.ranks, &folder, step));
                    let uncopied = copied.and_then(Result::err);
                    Kept::Saved { step, folder, bytes, stall, seconds: began.elapsed().as_secs_f64(), uncopied }
                }
                Err(error) => Kept::Failed { step, error },
            };
            if self.tell.send(kept).is_err() {
                return;
            }
        }
    }

    /// Gives a part its name, the first rank's after all others.
    fn finish(&self, filled: Result<SnapshotWriter>) -> Result<PathBuf> {
        let finish = |filled: Result<SnapshotWriter>| filled.and_then(SnapshotWriter::finish);
        if self.ranks.size() == 1 {
            return finish(filled);
        }
        let all = |is_good: bool| -> Result<()> {
            let good = self.ranks.gather(is_good.into())?;
            match good.iter().position(|good| *good == 0) {
                None => Ok(()),
                Some(rank) => Err(Error::Rank(format!("rank {rank} could not write its part"))),
            }
        };
        if self.ranks.is_first() {
            let others = all(filled.is_ok());
            let done = filled.and_then(|writer| others.map(|()| writer)).and_then(SnapshotWriter::finish);
            let told = all(done.is_ok());
            return done.and_then(|folder| told.map(|()| folder));
        }
        let done = finish(filled);
        let (others, first) = (all(done.is_ok()), all(true));
        done.and_then(|folder| others.and(first).map(|()| folder))
    }

    /// Takes all batches, also after a failure: the slots must go back. Gives the seconds of the stall besides.
    fn fill(&self, mut writer: Result<SnapshotWriter>, jobs: &Receiver<Job>) -> (Result<SnapshotWriter>, f64) {
        loop {
            match jobs.recv() {
                Ok(Job::Batch(slots)) => {
                    for (bytes, slot) in slots {
                        writer = writer.and_then(|mut w| {
                            block_on(slot.read(&self.gpu, bytes, |content| w.push(content)))??;
                            Ok(w)
                        });
                        // Nobody may be left to take it.
                        let _ = self.give.send(slot);
                    }
                }
                Ok(Job::End(stall)) => return (writer, stall),
                // The copies could not be made: who made them says why.
                _ => return (Err(Error::Graph("the checkpoint was given up".into())), 0.0),
            }
        }
    }
}
