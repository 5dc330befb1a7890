//! Many ranks that work on one thing: the communicator, and an engine whose ranks are threads of one process.
//!
//! Sums have one order, that of the ranks, and are made in f32 whatever is added: they are the same to the bit on every
//! rank, and from run to run.

mod clocks;
mod element;
mod groups;
mod local;
mod nodes;
#[cfg(feature = "mpi")]
mod mpi;
mod over;
mod pending;
mod waiting;

pub use clocks::compare_clocks;
pub use element::Element;
pub use groups::Groups;
pub use local::LocalComm;
#[cfg(feature = "mpi")]
pub use mpi::{MpiComm, MpiWorld};
pub use nodes::Nodes;
pub(crate) use nodes::turn;
pub use pending::{Background, Pending};
pub use waiting::{Waited, Waiting};

use crate::error::{Error, Result};
use std::ops::Range;

/// A rank among others. All ranks of a group call the same collectives in the same order.
///
/// Required are what moves bytes; what computes is made of it here, in one order for every engine. A rank that has failed
/// makes the calls of all others fail.
pub trait Communicator: Send + Sync {
    /// This rank, from 0.
    fn rank(&self) -> usize;

    /// How many ranks there are.
    fn size(&self) -> usize;

    /// Waits until all ranks are here.
    ///
    /// # Errors
    /// [`Error::Rank`] if a rank left, hangs, or is somewhere else; as all others here.
    fn barrier(&self) -> Result<()>;

    /// What `root` has in `data` comes to all.
    ///
    /// # Errors
    /// As [`Communicator::barrier`], and if lengths differ.
    fn broadcast(&self, root: usize, data: &mut [u8]) -> Result<()>;

    /// What all have in `mine`, which need not be of one length, one after another in `all`.
    ///
    /// # Errors
    /// As [`Communicator::broadcast`]; `all` must be as long as all of them together.
    fn all_gather(&self, mine: &[u8], all: &mut [u8]) -> Result<()>;

    /// The part `to[r]` of `mine` goes to rank `r`; what comes from rank `r` goes to `from[r]` of `theirs`.
    ///
    /// # Errors
    /// As [`Communicator::broadcast`]; what is sent and what is expected must have one length.
    fn all_to_all_v(&self, mine: &[u8], to: &[Range<usize>], theirs: &mut [u8], from: &[Range<usize>]) -> Result<()>;

    /// Sends to a rank; does not wait for it. What is sent to one rank arrives in order.
    ///
    /// # Errors
    /// [`Error::Rank`] if that rank has left.
    fn send(&self, to: usize, data: &[u8]) -> Result<()>;

    /// Takes what a rank sent.
    ///
    /// # Errors
    /// As [`Communicator::broadcast`].
    fn receive(&self, from: usize, data: &mut [u8]) -> Result<()>;

    /// The ranks of one `colour` as a group of their own, in the order of `key` and then of their ranks here.
    ///
    /// # Errors
    /// As [`Communicator::barrier`].
    fn split(&self, colour: u32, key: u32) -> Result<Box<dyn Communicator>>;

    /// The machine that this rank is on, as a number that its others there have too and nobody else.
    fn machine(&self) -> usize {
        0
    }

    /// Tells all others that this rank cannot go on, and why: their calls fail with these words. Where an engine cannot tell
    /// them, they hear of it when this rank leaves.
    fn abort(&self, why: &str) {
        let _ = why;
    }

    /// Equal parts: part `r` of `mine` goes to rank `r`, and part `r` of `theirs` comes from there.
    ///
    /// # Errors
    /// As [`Communicator::all_to_all_v`].
    fn all_to_all(&self, mine: &[u8], theirs: &mut [u8]) -> Result<()> {
        if !mine.len().is_multiple_of(self.size()) {
            let (n, size) = (mine.len(), self.size());
            return Err(Error::Rank(format!("{n} bytes cannot be dealt to {size} ranks in equal parts")));
        }
        let part = mine.len() / self.size();
        let parts: Vec<Range<usize>> = (0..self.size()).map(|r| r * part..(r + 1) * part).collect();
        self.all_to_all_v(mine, &parts, theirs, &parts)
    }

    /// The elementwise sum over all ranks, of which this one gets the part [`share`] says.
    ///
    /// Each rank sends (N-1)/N of its bytes and gets as many, which is the least that does it.
    ///
    /// # Errors
    /// As [`Communicator::broadcast`].
    fn reduce_scatter(&self, data: &[u8], of: Element, part: &mut [u8]) -> Result<()> {
        let elements = of.count(data.len())?;
        let bytes = |rank| of.range(share(elements, self.size(), rank));
        let mine = bytes(self.rank()).len();
        let to: Vec<Range<usize>> = (0..self.size()).map(bytes).collect();
        let from: Vec<Range<usize>> = (0..self.size()).map(|r| r * mine..(r + 1) * mine).collect();
        let mut all = vec![0; mine * self.size()];
        self.all_to_all_v(data, &to, &mut all, &from)?;
        expect("the part", part.len(), mine)?;
        let parts: Vec<&[u8]> = from.iter().map(|range| &all[range.clone()]).collect();
        of.sum(&parts, part);
        Ok(())
    }

    /// The elementwise sum over all ranks, on all of them and there the same to the bit.
    ///
    /// # Errors
    /// As [`Communicator::broadcast`].
    fn all_reduce(&self, data: &mut [u8], of: Element) -> Result<()> {
        let elements = of.count(data.len())?;
        let mut part = vec![0; of.range(share(elements, self.size(), self.rank())).len()];
        self.reduce_scatter(data, of, &mut part)?;
        self.all_gather(&part, data)
    }
}

/// Which of so many elements are a rank's: neighbours, and of two ranks' counts none is larger by more than one.
pub fn share(elements: usize, ranks: usize, rank: usize) -> Range<usize> {
    let start = |rank: usize| (elements as u128 * rank as u128 / ranks as u128) as usize;
    start(rank)..start(rank + 1)
}

fn expect(what: &str, has: usize, wants: usize) -> Result<()> {
    if has == wants {
        return Ok(());
    }
    Err(Error::Rank(format!("{what} has {has} bytes where {wants} are wanted")))
}

#[cfg(test)]
mod engine_tests;
#[cfg(test)]
mod tests;
