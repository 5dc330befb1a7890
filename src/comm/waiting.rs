//! A communicator that counts how long its rank waits for what others send.

use super::Communicator;
use super::over::Over;
use crate::error::Result;
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

impl Over for Waiting {
    fn inner(&self) -> &dyn Communicator {
        self.inner.as_ref()
    }

    fn receive(&self, from: usize, data: &mut [u8]) -> Result<()> {
        let began = Instant::now();
        let received = self.inner.receive(from, data);
        self.nanoseconds.fetch_add(began.elapsed().as_nanos() as u64, Ordering::Relaxed);
        received
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
                // Long beside what is asked for: the other may come to its waiting late.
                std::thread::sleep(Duration::from_millis(300));
                late.send(1, b"word").unwrap();
                late.barrier().unwrap();
            });
            early.barrier().unwrap();
            assert_eq!(waited.take(), Duration::ZERO);
            let mut got = [0; 4];
            Communicator::receive(&early, 0, &mut got).unwrap();
            early.barrier().unwrap();
            assert!(&got == b"word" && waited.take() >= Duration::from_millis(20));
            assert_eq!(waited.take(), Duration::ZERO);
        });
    }
}
