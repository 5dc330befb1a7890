//! A communicator that counts how long its rank waits for what others send.

use super::{Communicator, Element};
use crate::error::Result;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Another communicator, with a clock that runs while [`Communicator::receive`] does.
pub struct Waiting {
    inner: Arc<dyn Communicator>,
    nanoseconds: Arc<AtomicU64>,
}

/// What a clock shows.
#[derive(Clone, Default)]
pub struct Waited(Arc<AtomicU64>);

impl Waited {
    /// For how long messages were waited for since this was last asked.
    pub fn take(&self) -> Duration {
        Duration::from_nanos(self.0.swap(0, Ordering::Relaxed))
    }
}

impl Waiting {
    /// The same communicator, and its clock.
    pub fn new(inner: Arc<dyn Communicator>) -> (Waiting, Waited) {
        let waited = Waited::default();
        (Waiting { inner, nanoseconds: waited.0.clone() }, waited)
    }
}

impl Communicator for Waiting {
    fn rank(&self) -> usize {
        self.inner.rank()
    }

    fn size(&self) -> usize {
        self.inner.size()
    }

    fn barrier(&self) -> Result<()> {
        self.inner.barrier()
    }

    fn broadcast(&self, root: usize, data: &mut [u8]) -> Result<()> {
        self.inner.broadcast(root, data)
    }

    fn all_gather(&self, mine: &[u8], all: &mut [u8]) -> Result<()> {
        self.inner.all_gather(mine, all)
    }

    fn all_to_all_v(&self, mine: &[u8], to: &[Range<usize>], theirs: &mut [u8], from: &[Range<usize>]) -> Result<()> {
        self.inner.all_to_all_v(mine, to, theirs, from)
    }

    fn send(&self, to: usize, data: &[u8]) -> Result<()> {
        self.inner.send(to, data)
    }

    fn receive(&self, from: usize, data: &mut [u8]) -> Result<()> {
        let began = Instant::now();
        let received = self.inner.receive(from, data);
        self.nanoseconds.fetch_add(began.elapsed().as_nanos() as u64, Ordering::Relaxed);
        received
    }

    fn split(&self, colour: u32, key: u32) -> Result<Box<dyn Communicator>> {
        self.inner.split(colour, key)
    }

    fn abort(&self, why: &str) {
        self.inner.abort(why);
    }

    fn all_to_all(&self, mine: &[u8], theirs: &mut [u8]) -> Result<()> {
        self.inner.all_to_all(mine, theirs)
    }

    fn reduce_scatter(&self, data: &[u8], of: Element, part: &mut [u8]) -> Result<()> {
        self.inner.reduce_scatter(data, of, part)
    }

    fn all_reduce(&self, data: &mut [u8], of: Element) -> Result<()> {
        self.inner.all_reduce(data, of)
    }
}

#[cfg(test)]
mod tests {
    use super::super::LocalComm;
    use super::*;

    #[test]
    fn waiting_for_a_message_counts_and_nothing_else() {
        let mut ranks = LocalComm::group(2, None);
        let (late, early) = (ranks.remove(0), ranks.remove(0));
        let (early, waited) = Waiting::new(Arc::new(early));
        std::thread::scope(|scope| {
            scope.spawn(move || {
                late.barrier().unwrap();
                std::thread::sleep(Duration::from_millis(30));
                late.send(1, b"word").unwrap();
                late.barrier().unwrap();
            });
            early.barrier().unwrap();
            assert_eq!(waited.take(), Duration::ZERO);
            let mut got = [0; 4];
            early.receive(0, &mut got).unwrap();
            early.barrier().unwrap();
            assert!(&got == b"word" && waited.take() >= Duration::from_millis(20));
            assert_eq!(waited.take(), Duration::ZERO);
        });
    }
}
