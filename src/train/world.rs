//! The ranks that a run is shared by, of which this is one. All of them go through the same steps and take the same decisions;
//! what only one of them can know, the first says to all.

use crate::base::Limits;
use crate::comm::Communicator;
use crate::error::{Error, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt;
use std::sync::Arc;

/// This rank among all of a run; or the only one.
#[derive(Clone, Default)]
pub struct World {
    comm: Option<Arc<dyn Communicator>>,
    /// Ranks of a machine, where that is known.
    near: Option<usize>,
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} of {}", self.rank(), self.size())
    }
}

impl World {
    /// A run of one rank.
    pub fn alone() -> World {
        World::default()
    }

    /// One of several ranks. Nobody else may call this communicator.
    pub fn of(comm: Arc<dyn Communicator>) -> World {
        World { comm: (comm.size() > 1).then_some(comm), near: None }
    }

    /// The same, of which so many are on one machine, next to each other.
    pub fn near(self, ranks: usize) -> World {
        World { near: Some(ranks), ..self }
    }

    /// The rank that keeps a copy of what this one has, and the one whose copy this one keeps: on another machine, where
    /// there are several.
    pub fn neighbours(&self) -> [usize; 2] {
        let (rank, size) = (self.rank(), self.size());
        let step = self.near.filter(|near| *near < size).unwrap_or(1) % size;
        [(rank + step) % size, (rank + size - step) % size]
    }

    /// The same ranks once more, for a thread of each to talk to those of the others. All call this together.
    ///
    /// # Errors
    /// Those of the communicator.
    pub fn again(&self) -> Result<World> {
        let comm = self.comm.as_ref().map(|comm| comm.split(0, comm.rank() as u32)).transpose()?;
        let again = comm.map_or_else(World::alone, |comm| World::of(Arc::from(comm)));
        Ok(World { near: self.near, ..again })
    }

    /// How it talks to the others, where there are any.
    pub fn comm(&self) -> Option<&Arc<dyn Communicator>> {
        self.comm.as_ref()
    }

    /// This rank, from 0.
    pub fn rank(&self) -> usize {
        self.comm.as_ref().map_or(0, |comm| comm.rank())
    }

    /// How many ranks there are.
    pub fn size(&self) -> usize {
        self.comm.as_ref().map_or(1, |comm| comm.size())
    }

    /// Whether this is the rank that prints, decides and writes.
    pub fn is_first(&self) -> bool {
        self.rank() == 0
    }

    /// Tells all others that this rank cannot go on: their calls fail with these words.
    pub fn abort(&self, why: &str) {
        self.comm.iter().for_each(|comm| comm.abort(why));
    }

    /// A number of each rank, in their order, on all of them.
    ///
    /// # Errors
    /// Those of the communicator.
    pub fn gather(&self, mine: u64) -> Result<Vec<u64>> {
        let Some(comm) = &self.comm else { return Ok(vec![mine]) };
        let mut all = vec![0; 8 * comm.size()];
        comm.all_gather(&mine.to_le_bytes(), &mut all)?;
        let (words, _) = all.as_chunks::<8>();
        Ok(words.iter().map(|word| u64::from_le_bytes(*word)).collect())
    }

    /// Whether this is so on any rank.
    ///
    /// # Errors
    /// Those of the communicator.
    pub fn any(&self, mine: bool) -> Result<bool> {
        match self.comm {
            None => Ok(mine),
            Some(_) => Ok(self.gather(mine.into())?.contains(&1)),
        }
    }

    /// The sum over all ranks, the same to the bit on each.
    ///
    /// # Errors
    /// Those of the communicator.
    pub fn sum(&self, mine: f64) -> Result<f64> {
        Ok(self.gather(mine.to_bits())?.into_iter().map(f64::from_bits).sum())
    }

    /// What the first rank found, which it alone gives, on all ranks; and where it failed, its words.
    ///
    /// # Errors
    /// The first rank's, and those of the communicator.
    pub fn first<T: Serialize + DeserializeOwned>(&self, mine: Option<Result<T>>) -> Result<T> {
        self.told_by(0, mine)
    }

    /// [`World::first`] with another rank in the first one's place.
    ///
    /// # Errors
    /// That rank's, and those of the communicator.
    pub fn told_by<T: Serialize + DeserializeOwned>(&self, rank: usize, mine: Option<Result<T>>) -> Result<T> {
        let missing = || Error::Rank(format!("rank {rank} has nothing to say where it should"));
        let Some(comm) = &self.comm else { return mine.unwrap_or_else(|| Err(missing())) };
        let mine = (self.rank() == rank).then(|| mine.unwrap_or_else(|| Err(missing())));
        let mut text = match &mine {
            Some(found) => {
                let told = found.as_ref().map_err(Error::to_string);
                serde_json::to_vec(&told).map_err(|e| Error::Rank(format!("what rank {rank} found: {e}")))?
            }
            None => Vec::new(),
        };
        let mut length = (text.len() as u64).to_le_bytes();
        comm.broadcast(rank, &mut length)?;
        text.resize(u64::from_le_bytes(length) as usize, 0);
        comm.broadcast(rank, &mut text)?;
        match mine {
            Some(found) => found,
            None => serde_json::from_slice::<Result<T, String>>(&text)
                .map_err(|e| Error::Rank(format!("what rank {rank} found cannot be read: {e}")))?
                .map_err(Error::Told),
        }
    }

    /// The least of what all have of memory, and of what pages of parameters are cut by: what ranks exchange, and when, follows from
    /// plans, which are made by these.
    ///
    /// # Errors
    /// As [`World::gather`].
    pub fn least(&self, limits: &Limits) -> Result<Limits> {
        let least = |mine: u64| Ok::<_, Error>(self.gather(mine)?.into_iter().min().unwrap_or(mine));
        let memory = least(limits.memory_bytes.unwrap_or(u64::MAX))?;
        Ok(Limits {
            memory_bytes: Some(memory).filter(|&bytes| bytes < u64::MAX),
            max_buffer_bytes: least(limits.max_buffer_bytes)?,
            max_binding_bytes: least(limits.max_binding_bytes)?,
            ..limits.clone()
        })
    }

    /// Refuses what differs from rank to rank and may not; each has a name, and a hash of what is there.
    ///
    /// # Errors
    /// [`Error::Rank`], the same on all, with the ranks that have another than most.
    pub fn compare(&self, all: &[(&str, u64)]) -> Result<()> {
        let everyone: Vec<usize> = (0..self.size()).collect();
        all.iter().try_for_each(|(what, mine)| same(what, &everyone, &self.gather(*mine)?))
    }

    /// The same of what ranks hold alike in groups, each within its own; who has nothing of it differs from nobody. All ranks call
    /// this together, with the same groups.
    ///
    /// # Errors
    /// As [`World::compare`]: the first group that has such ranks.
    pub fn compare_groups(&self, what: &str, mine: Option<u64>, groups: &[Vec<usize>]) -> Result<()> {
        let has = self.gather(mine.is_some().into())?;
        let theirs = self.gather(mine.unwrap_or_default())?;
        groups.iter().try_for_each(|group| {
            let those: Vec<usize> = group.iter().copied().filter(|rank| has[*rank] == 1).collect();
            same(what, &those, &theirs)
        })
    }
}

/// Refuses ranks, of these, that have another hash than most.
fn same(what: &str, ranks: &[usize], hashes: &[u64]) -> Result<()> {
    let count = |rank: &usize| ranks.iter().filter(|other| hashes[**other] == hashes[*rank]).count();
    // Of equally many the first rank's.
    let Some(usual) = ranks.iter().rev().max_by_key(|rank| count(rank)) else { return Ok(()) };
    let others: Vec<String> =
        ranks.iter().filter(|rank| hashes[**rank] != hashes[*usual]).map(usize::to_string).collect();
    if others.is_empty() {
        return Ok(());
    }
    let (word, has) = if others.len() == 1 { ("rank", "has") } else { ("ranks", "have") };
    let (others, size) = (others.join(", "), ranks.len());
    Err(Error::Rank(format!("{word} {others} {has} {what} other than most of the {size}")))
}

#[cfg(test)]
#[path = "world_tests.rs"]
mod tests;
