//! Communicators that are another one but for a call or two.

use super::{Communicator, Element};
use crate::error::Result;
use std::ops::Range;

/// What stands over a communicator and does the calls that are here in a way of its own; all others are the inner one's, also those that
/// an engine has better ways for than the trait.
pub(super) trait Over: Send + Sync {
    /// The one that does the rest.
    fn inner(&self) -> &dyn Communicator;

    /// [`Communicator::receive`].
    fn receive(&self, from: usize, data: &mut [u8]) -> Result<()> {
        self.inner().receive(from, data)
    }

    /// [`Communicator::all_to_all_v`].
    fn all_to_all_v(&self, mine: &[u8], to: &[Range<usize>], theirs: &mut [u8], from: &[Range<usize>]) -> Result<()> {
        self.inner().all_to_all_v(mine, to, theirs, from)
    }

    /// [`Communicator::all_to_all`].
    fn all_to_all(&self, mine: &[u8], theirs: &mut [u8]) -> Result<()> {
        self.inner().all_to_all(mine, theirs)
    }

    /// [`Communicator::split`].
    fn split(&self, colour: u32, key: u32) -> Result<Box<dyn Communicator>> {
        self.inner().split(colour, key)
    }

    /// [`Communicator::machine`].
    fn machine(&self) -> usize {
        self.inner().machine()
    }
}

impl<T: Over> Communicator for T {
    fn rank(&self) -> usize {
        self.inner().rank()
    }

    fn size(&self) -> usize {
        self.inner().size()
    }

    fn barrier(&self) -> Result<()> {
        self.inner().barrier()
    }

    fn broadcast(&self, root: usize, data: &mut [u8]) -> Result<()> {
        self.inner().broadcast(root, data)
    }

    fn all_gather(&self, mine: &[u8], all: &mut [u8]) -> Result<()> {
        self.inner().all_gather(mine, all)
    }

    fn all_to_all_v(&self, mine: &[u8], to: &[Range<usize>], theirs: &mut [u8], from: &[Range<usize>]) -> Result<()> {
        Over::all_to_all_v(self, mine, to, theirs, from)
    }

    fn send(&self, to: usize, data: &[u8]) -> Result<()> {
        self.inner().send(to, data)
    }

    fn receive(&self, from: usize, data: &mut [u8]) -> Result<()> {
        Over::receive(self, from, data)
    }

    fn split(&self, colour: u32, key: u32) -> Result<Box<dyn Communicator>> {
        Over::split(self, colour, key)
    }

    fn machine(&self) -> usize {
        Over::machine(self)
    }

    fn abort(&self, why: &str) {
        self.inner().abort(why);
    }

    fn all_to_all(&self, mine: &[u8], theirs: &mut [u8]) -> Result<()> {
        Over::all_to_all(self, mine, theirs)
    }

    fn reduce_scatter(&self, data: &[u8], of: Element, part: &mut [u8]) -> Result<()> {
        self.inner().reduce_scatter(data, of, part)
    }

    fn all_reduce(&self, data: &mut [u8], of: Element) -> Result<()> {
        self.inner().all_reduce(data, of)
    }
}
