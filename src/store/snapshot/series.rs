//! The checkpoints of one run: which there are, the newest whole one, and which of them go.

use super::Snapshot;
use crate::error::Result;
use crate::store::atomic::sweep;
use crate::store::staged_folder::discard;
use std::path::{Path, PathBuf};

/// The folder that holds a run's checkpoints.
#[derive(Debug, Clone)]
pub struct Series {
    folder: PathBuf,
}

impl Series {
    /// The checkpoints below a run's folder, for the process that is about to write there: what earlier ones left half-written,
    /// in any rank's part, goes.
    pub fn of(run: &Path) -> Series {
        let series = Series::below(run);
        series.sweep();
        series
    }

    /// Removes what processes that have ended left half-written, in any rank's part.
    pub fn sweep(&self) {
        let parts = std::fs::read_dir(&self.folder).into_iter().flatten().flatten().map(|entry| entry.path());
        let parts = parts.filter(|path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("rank-")));
        parts.chain([self.folder.clone()]).for_each(|folder| sweep(&folder, &|name| name.starts_with("step-")));
    }

    /// The same, for who only reads, or where another rank's process sees to what is half-written.
    pub fn below(run: &Path) -> Series {
        Series { folder: run.join("checkpoints") }
    }

    /// The checkpoints in a folder of theirs.
    pub fn at(folder: &Path) -> Series {
        Series { folder: folder.into() }
    }

    /// What another rank than the first has written of the same checkpoints.
    pub fn part(&self, rank: usize) -> Series {
        match rank {
            0 => self.clone(),
            _ => Series { folder: self.folder.join(format!("rank-{rank}")) },
        }
    }

    /// The folder of a step's checkpoint, whether it is there or not.
    pub fn step(&self, step: u64) -> PathBuf {
        self.folder.join(format!("step-{step}"))
    }

    /// Their folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Steps and folders, the newest last. Nothing in them is looked at.
    pub fn list(&self) -> Vec<(u64, PathBuf)> {
        let step = |path: PathBuf| Some((path.file_name()?.to_str()?.strip_prefix("step-")?.parse().ok()?, path));
        let entries = std::fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let mut found: Vec<(u64, PathBuf)> = entries.filter_map(|entry| step(entry.path())).collect();
        found.sort();
        found
    }

    /// The newest checkpoint that is whole, every byte of it; `passed` hears of each newer one that is not.
    pub fn newest(&self, passed: &mut dyn FnMut(u64, crate::error::Error)) -> Option<Snapshot> {
        let mut all = self.list().into_iter().rev();
        all.find_map(|(step, _)| self.whole(step).map_err(|error| passed(step, error)).ok())
    }

    /// The checkpoint of a step, every byte of every rank's part compared.
    ///
    /// # Errors
    /// If it is not there, or not whole.
    pub fn whole(&self, step: u64) -> Result<Snapshot> {
        let snapshot = Snapshot::open(&self.step(step))?;
        snapshot.verify()?;
        for rank in 1..snapshot.manifest().parts {
            Snapshot::open(&self.part(rank).step(step))?.verify()?;
        }
        Ok(snapshot)
    }

    /// Removes those after a step: training goes on from there, and will not come by them in the same way.
    pub fn forget_after(&self, step: u64) {
        self.list().iter().filter(|(later, _)| *later > step).for_each(|(step, _)| self.discard(*step));
    }

    /// Keeps the last `keep` (one at least), and, if `best`, the one with the lowest loss on held-out data (the earliest of
    /// equals); removes the others.
    pub fn retain(&self, keep: usize, best: bool) {
        let mut all = self.list();
        let opened = |folder: &PathBuf| Snapshot::open(folder).ok()?.manifest().validation;
        let measured = all.iter().filter_map(|(step, folder)| Some((opened(folder)?, *step)));
        let lowest = measured.filter(|_| best).min_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, step)| step);
        all.truncate(all.len().saturating_sub(keep.max(1)));
        all.iter().filter(|(step, _)| Some(*step) != lowest).for_each(|(step, _)| self.discard(*step));
    }

    /// Removes one, the first rank's part before the others': what is left is no checkpoint.
    fn discard(&self, step: u64) {
        discard(&self.step(step));
        for entry in std::fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with("rank-") {
                discard(&entry.path().join(format!("step-{step}")));
            }
        }
    }

    /// Removes all of them.
    ///
    /// # Errors
    /// If one stays.
    pub fn clear(&self) -> Result<()> {
        self.list().iter().for_each(|(step, _)| self.discard(*step));
        match self.list().first() {
            None => Ok(()),
            Some((_, folder)) => Err(crate::error::Error::file(folder, "cannot be removed; make it writable")),
        }
    }
}
