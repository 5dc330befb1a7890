//! Collectives that go on while their rank does something else.

use super::{Communicator, Element};
use crate::error::{Error, Result};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

type Job = Box<dyn FnOnce(&dyn Communicator) + Send>;

/// A thread that calls a communicator, in the order in which it is asked to. All ranks must ask in the same order, and
/// nothing else may call this communicator in the meantime: [`Communicator::split`] makes another one.
pub struct Background {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

/// What comes of a call that was begun.
pub struct Pending<T> {
    result: Receiver<Result<T>>,
}

impl<T> Pending<T> {
    /// Waits for it.
    ///
    /// # Errors
    /// Those of the call.
    pub fn wait(self) -> Result<T> {
        self.result.recv().unwrap_or_else(|_| Err(Error::Rank("the thread that talks to the others has ended".into())))
    }
}

impl Background {
    /// A thread for this communicator.
    pub fn new(comm: Arc<dyn Communicator>) -> Background {
        let (jobs, work) = channel::<Job>();
        let run = move || work.into_iter().for_each(|job| job(comm.as_ref()));
        Background { jobs: Some(jobs), thread: Some(std::thread::spawn(run)) }
    }

    /// Begins a call, or several in a row.
    pub fn start<T: Send + 'static>(
        &self,
        call: impl FnOnce(&dyn Communicator) -> Result<T> + Send + 'static,
    ) -> Pending<T> {
        let (tell, result) = channel();
        let job: Job = Box::new(move |comm| drop(tell.send(call(comm))));
        // A thread that has ended drops the job, and with it `tell`, of which `wait` hears.
        drop(self.jobs.as_ref().map(|jobs| jobs.send(job)));
        Pending { result }
    }

    /// Begins [`Communicator::all_reduce`]; gives the bytes back with the sum in them.
    pub fn all_reduce(&self, mut data: Vec<u8>, of: Element) -> Pending<Vec<u8>> {
        self.start(move |comm| comm.all_reduce(&mut data, of).map(|()| data))
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // The thread ends with its last job.
        self.jobs = None;
        self.thread.take().map(JoinHandle::join);
    }
}
