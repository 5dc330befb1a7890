//! Batches ahead of time: a thread fills those of the next steps while a step is under way. What a step sees is what the
//! loader itself would have given, since that depends on nothing but its number.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use super::batch::Batch;
use super::loader::{Loader, LoaderState};
use crate::error::Result;

/// Batches that wait at most.
const AHEAD: usize = 2;

/// A loader whose next batches are made by a thread.
pub struct Prefetch {
    loader: Loader,
    running: Option<Running>,
    /// Stands in while the thread fills the others.
    current: Batch,
}

struct Running {
    filled: Receiver<Result<Batch>>,
    empty: SyncSender<Batch>,
    thread: JoinHandle<()>,
}

impl Prefetch {
    /// Goes on where the loader stands. The thread begins with the first batch that is asked for.
    pub fn new(loader: Loader) -> Prefetch {
        Prefetch { current: loader.empty_batch(), loader, running: None }
    }

    /// The next step's batch.
    ///
    /// # Errors
    /// As [`super::Shard::read`].
    pub fn next_batch(&mut self) -> Result<&Batch> {
        let running = self.running.get_or_insert_with(|| Running::start(self.loader.clone()));
        // The buffer of the step before goes back to be filled; the thread ends only with its channels.
        let filled = running.filled.recv();
        match filled {
            Ok(batch) => {
                let used = std::mem::replace(&mut self.current, batch?);
                let _ = running.empty.send(used);
                let step = self.loader.state().step + 1;
                self.loader.restore(LoaderState { step });
            }
            Err(_) => self.loader.next_batch(&mut self.current)?,
        }
        Ok(&self.current)
    }

    /// The position of the next batch.
    pub fn state(&self) -> LoaderState {
        self.loader.state()
    }

    /// Goes to a position; what was made ahead is dropped.
    pub fn restore(&mut self, state: LoaderState) {
        self.stop();
        self.loader.restore(state);
    }

    fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            running.stop();
        }
    }

    /// The loader, at the position of the next batch.
    pub fn loader(&self) -> &Loader {
        &self.loader
    }
}

impl Drop for Prefetch {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Running {
    fn start(mut loader: Loader) -> Running {
        let (fill, filled) = sync_channel(AHEAD);
        let (empty, free) = sync_channel::<Batch>(AHEAD + 1);
        for _ in 0..AHEAD {
            let _ = empty.send(loader.empty_batch());
        }
        let thread = std::thread::spawn(move || {
            while let Ok(mut batch) = free.recv() {
                let made = loader.next_batch(&mut batch).map(|()| batch);
                let failed = made.is_err();
                if fill.send(made).is_err() || failed {
                    return;
                }
            }
        });
        Running { filled, empty, thread }
    }

    fn stop(self) {
        drop((self.filled, self.empty));
        let _ = self.thread.join();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Corpus, Encoder, LoaderOptions, LossOn, Shard, Tokenizer};
    use std::sync::Arc;

    #[test]
    fn batches_ahead_are_those_of_the_loader() {
        let dir = tempfile::tempdir().unwrap();
        let corpus = Corpus::stories(3, 40);
        let tokenizer = Tokenizer::train(corpus.sample(50_000).unwrap().into_iter(), 400).unwrap();
        let encoder = Encoder::new(&tokenizer, &corpus, LossOn::Assistant).unwrap();
        let shard = Arc::new(Shard::build(dir.path().join("s"), &corpus, &encoder, &mut |_, _| {}).unwrap());
        let options = LoaderOptions { batch: 2, seq: 32, ..LoaderOptions::default() };
        let mut loader = Loader::new(shard, options).unwrap();
        let mut ahead = Prefetch::new(loader.clone());
        let mut expected = loader.empty_batch();
        for step in 0..50 {
            if step == 20 {
                // Back, with batches waiting that must not come.
                loader.restore(LoaderState { step: 7 });
                ahead.restore(LoaderState { step: 7 });
            }
            loader.next_batch(&mut expected).unwrap();
            assert_eq!(*ahead.next_batch().unwrap(), expected, "step {step}");
            assert_eq!(ahead.state(), loader.state());
        }
    }
}
