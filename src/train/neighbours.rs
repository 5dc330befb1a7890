//! Copies of a rank's part of the last checkpoint at a neighbour's: in a folder of that machine's own, such as one in memory. It
//! outlives the processes of a run, as what they hold themselves does not, but not its machine; of a machine that is lost the
//! neighbours have what was on it (docs/decisions/0016-copies-at-neighbours.md).

use super::folder::{RUN, RunId};
use super::log::RECIPE;
use super::{About, Recipe, Resumption, World};
use crate::comm::Communicator;
use crate::compile::human_bytes;
use crate::error::{Error, Result};
use crate::store::snapshot::{Series, Snapshot};
use crate::store::staged_folder::{StagedFolder, discard};
use ring::digest::{SHA256, digest};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Bytes that are sent at a time.
const PIECE: u64 = 8 << 20;
/// Longest list of a part's files that is believed.
const MOST_LIST: usize = 1 << 20;

/// Where a machine keeps what neighbours gave it of one run.
#[derive(Debug, Clone)]
pub struct Neighbours {
    series: Series,
    /// How the names of all folders begin that are of a run in this one's place.
    place: String,
}

/// A file of a part, and its bytes.
type Listed = (String, u64);

impl Neighbours {
    /// In a folder of this machine's for the copies of all runs: by the place of the recipe's run, and by which of all that were ever
    /// there it is.
    pub fn of(recipe: &Recipe, run: &RunId) -> Option<Neighbours> {
        let (folder, place) = place(recipe)?;
        Some(Neighbours { series: Series::at(&folder.join(format!("{place}{run}"))), place })
    }

    /// Removes what takes up memory here for nothing: copies of runs that were in this one's place before.
    pub fn forget_others(&self) {
        let own = self.series.folder();
        let all = own.parent().map(|folder| of_place(folder, &self.place)).unwrap_or_default();
        for other in all.iter().filter(|other| *other != own) {
            // Another rank of this machine may be at it as well.
            let _ = fs::remove_dir_all(other);
        }
    }

    /// Of its own such of steps that are still to come, which it went back from, and halves that processes left.
    pub fn forget_after(&self, step: u64) {
        self.series.sweep();
        for rank in ranks(&self.series) {
            let all = self.series.part(rank).list();
            all.iter().filter(|(later, _)| *later > step).for_each(|(_, folder)| discard(folder));
        }
    }

    /// Gives the part in `own` to the next rank, and takes that of the one before; the copy of an earlier step goes. All
    /// `ranks` call this.
    ///
    /// # Errors
    /// If the part cannot be read, or the other's not be written, which is then not kept; those of the communicator.
    pub fn exchange(&self, ranks: &World, own: &Path, step: u64) -> Result<()> {
        let (Some(comm), [to, from]) = (ranks.comm(), ranks.neighbours()) else { return Ok(()) };
        let listed = list(own);
        let mine = listed.as_deref().unwrap_or_default();
        let text = serde_json::to_vec(mine).expect("plain data");
        comm.send(to, &(text.len() as u64).to_le_bytes())?;
        comm.send(to, &text)?;
        // Of a list that cannot be read nobody knows what follows it: no further word of these ranks would be understood, and none
        // is to wait for one.
        let theirs = theirs(comm.as_ref(), from).inspect_err(|error| ranks.abort(&error.to_string()))?;
        let series = self.series.part(from);
        let leads_elsewhere = |(name, _): &Listed| name.contains(['/', '\\', ':']) || name.starts_with('.');
        let copy = match theirs.iter().any(leads_elsewhere) {
            true => Err(Error::Rank(format!("rank {from} lists a file that leads elsewhere"))),
            false => create(&series.step(step)),
        };
        let written = pieces(comm.as_ref(), [to, from], (own, mine), &theirs, copy)?;
        listed?;
        let staged = written?;
        if !theirs.is_empty() {
            staged.commit()?;
            let all = series.list();
            all.iter().filter(|(other, _)| *other != step).for_each(|(_, folder)| discard(folder));
        }
        Ok(())
    }

    /// Removes all of this run's, which is whole without. All `ranks` call this, and those of one machine have one folder: none goes
    /// before all have come.
    ///
    /// # Errors
    /// Those of the communicator.
    pub fn remove(&self, ranks: &World) -> Result<()> {
        ranks.gather(0)?;
        let _ = fs::remove_dir_all(self.series.folder());
        Ok(())
    }

    /// Puts back what is missing of a run's checkpoints, or damaged, and is whole here; `note` hears of each part. A folder with
    /// checkpoints, but nothing of the copies' step, was put back to an earlier one by somebody: it stays as it is.
    ///
    /// # Errors
    /// If a part cannot be written.
    pub fn put_back(&self, recipe: &Recipe, note: &mut dyn FnMut(String)) -> Result<()> {
        let run = Series::below(&recipe.out);
        let whole =
            |folder: &Path| Snapshot::open(folder).and_then(|snapshot| snapshot.verify().map(|()| snapshot)).ok();
        let steps = |series: &Series, rank| series.part(rank).list().into_iter().map(|(step, _)| step);
        let stand: BTreeSet<u64> = ranks(&run).into_iter().flat_map(|rank| steps(&run, rank)).collect();
        let mut passed = BTreeSet::new();
        for rank in ranks(&self.series) {
            for (step, copy) in self.series.part(rank).list() {
                let place = run.part(rank).step(step);
                if whole(&place).is_some() {
                    continue;
                }
                let Some(snapshot) = whole(&copy).filter(|snapshot| is_of(snapshot, recipe)) else { continue };
                if let Some(last) = stand.last().filter(|_| !stand.contains(&step)) {
                    if step > *last && passed.insert(step) {
                        note(format!(
                            "neighbours have copies of step {step}, of which nothing is in {}: it was put back to step {last}, and the \
                             run goes on from there; empty that folder to have the copies taken instead",
                            run.folder().display()
                        ));
                    }
                    continue;
                }
                let began = Instant::now();
                let (staged, files) = (create(&place)?, list(snapshot.folder())?);
                let all = human_bytes(files.iter().map(|(_, bytes)| bytes).sum());
                for (name, bytes) in files {
                    staged.act(&name, bytes, |path| {
                        fs::copy(copy.join(&name), path)?;
                        File::open(path)?.sync_all()
                    })?;
                }
                staged.commit()?;
                note(format!(
                    "rank {rank}'s part of the checkpoint of step {step} was lost or damaged, and is put back from the copy in {}: \
                     {all} in {:.2} s",
                    copy.display(),
                    began.elapsed().as_secs_f64()
                ));
            }
        }
        Ok(())
    }
}

/// Puts back what neighbours have of a run, if it has them keep copies. Of a folder that does not say which run it is of nothing is:
/// `note` hears what there would be.
///
/// # Errors
/// As [`Neighbours::put_back`].
pub fn put_back(folder: &Path, note: &mut dyn FnMut(String)) -> Result<()> {
    let Ok(recipe) = Recipe::open_run(folder.join(RECIPE)) else { return Ok(()) };
    let recipe = Recipe { out: folder.into(), ..recipe };
    let Some(run) = RunId::read(folder) else {
        unclaimed(&recipe).into_iter().for_each(note);
        return Ok(());
    };
    Neighbours::of(&recipe, &run).map_or(Ok(()), |neighbours| neighbours.put_back(&recipe, note))
}

/// What is said of copies for a run's place of which nobody knows whether they are its own.
fn unclaimed(recipe: &Recipe) -> Option<String> {
    let (folder, place) = place(recipe)?;
    let all: Vec<String> = of_place(folder, &place).iter().map(|path| path.display().to_string()).collect();
    let run = recipe.out.join(RUN);
    (!all.is_empty()).then(|| {
        format!(
            "{} does not say which run this is, and neighbours have copies of what was in its place, of which none is put back: {}; \
             if one is of this run, write the last 16 characters of its name there, and take the run up again",
            run.display(),
            all.join(", ")
        )
    })
}

/// A machine's folder for the copies of all runs, and how the names of those begin there that are of a run in this one's place.
fn place(recipe: &Recipe) -> Option<(&Path, String)> {
    let folder = recipe.checkpoint.neighbour_copies.as_ref()?;
    // Not what links lead to, which is known only once the folder is there.
    let out = std::path::absolute(&recipe.out).unwrap_or_else(|_| recipe.out.clone());
    let sum = digest(&SHA256, out.as_os_str().as_encoded_bytes());
    let name: String = sum.as_ref()[..8].iter().map(|b| format!("{b:02x}")).collect();
    Some((folder, format!("danlu-{name}-")))
}

/// The folders of all runs that were ever in a place, in the order of their names.
fn of_place(folder: &Path, place: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let of = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(place));
    let mut all: Vec<PathBuf> = of.map(|entry| entry.path()).collect();
    all.sort_unstable();
    all
}

/// The ranks of which a series may hold parts.
fn ranks(series: &Series) -> Vec<usize> {
    let entries = fs::read_dir(series.folder()).into_iter().flatten().flatten();
    let rank = |name: &str| name.strip_prefix("rank-")?.parse().ok();
    let others = entries.filter_map(|entry| rank(entry.file_name().to_str()?));
    let mut ranks: Vec<usize> = others.chain([0]).collect();
    ranks.sort_unstable();
    ranks
}

/// What a rank lists.
fn theirs(comm: &dyn Communicator, from: usize) -> Result<Vec<Listed>> {
    let mut length = [0; 8];
    comm.receive(from, &mut length)?;
    let length = u64::from_le_bytes(length) as usize;
    if length > MOST_LIST {
        return Err(Error::Rank(format!("rank {from} lists {length} bytes of files")));
    }
    let mut text = vec![0; length];
    comm.receive(from, &mut text)?;
    serde_json::from_slice(&text).map_err(|e| Error::Rank(format!("what rank {from} lists cannot be read: {e}")))
}

/// Sends and takes in turn, so that neither has much under way. What fails here does so after the last piece, for the others
/// go on; only what the ranks say to each other ends it at once.
fn pieces(
    comm: &dyn Communicator,
    [to, from]: [usize; 2],
    (own, mine): (&Path, &[Listed]),
    theirs: &[Listed],
    mut staged: Result<StagedFolder>,
) -> Result<Result<StagedFolder>> {
    let cut = |files: &[Listed]| -> Vec<(String, u64, u64)> {
        let pieces = |(name, bytes): &Listed| {
            let (name, bytes) = (name.clone(), *bytes);
            (0..bytes).step_by(PIECE as usize).map(move |at| (name.clone(), at, PIECE.min(bytes - at)))
        };
        files.iter().flat_map(pieces).collect()
    };
    let (out, come) = (cut(mine), cut(theirs));
    let (mut reading, mut writing): (Option<File>, Option<File>) = (None, None);
    for i in 0..out.len().max(come.len()) {
        if let Some((name, at, bytes)) = out.get(i) {
            let mut piece = vec![0; *bytes as usize];
            if *at == 0 {
                reading = File::open(own.join(name)).ok();
            }
            // A piece that cannot be read makes a copy whose sum does not fit, and which is never used.
            let _ = reading.as_mut().map(|file| file.read_exact(&mut piece));
            comm.send(to, &piece)?;
        }
        if let Some((name, at, bytes)) = come.get(i) {
            let mut piece = vec![0; *bytes as usize];
            comm.receive(from, &mut piece)?;
            staged = staged.and_then(|folder| {
                folder.act(name, *bytes, |path| {
                    if *at == 0 {
                        writing = Some(File::create(path)?);
                    }
                    writing.as_mut().map_or(Ok(()), |file| file.write_all(&piece))
                })?;
                Ok(folder)
            });
        }
    }
    Ok(staged)
}

/// Whether a part is of the run that this recipe began: a folder may have been used before.
fn is_of(snapshot: &Snapshot, recipe: &Recipe) -> bool {
    let Ok(about) = About::read(snapshot) else { return false };
    let mut resumption = Resumption { recipe: about.recipe, from: None };
    resumption.change(recipe.clone()).is_ok()
}

/// A staged folder in one that may not be there.
fn create(path: &Path) -> Result<StagedFolder> {
    let above = path.parent().map(PathBuf::from).unwrap_or_default();
    fs::create_dir_all(&above).map_err(|e| Error::io("create", &above, e))?;
    StagedFolder::new(path)
}

/// The files of a folder, by name.
fn list(folder: &Path) -> Result<Vec<Listed>> {
    let failed = |e| Error::io("read", folder, e);
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        files.push((entry.file_name().to_string_lossy().into_owned(), entry.metadata().map_err(failed)?.len()));
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
#[path = "neighbours_tests.rs"]
mod tests;
