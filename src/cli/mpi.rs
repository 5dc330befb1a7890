//! This process among those that `mpirun` or `srun` started. Without the feature `mpi` there are none that it could know of.

use super::progress::RankLog;
use super::ranks::Patience;
use crate::error::Error;
use crate::train::{Observer, World};
use anyhow::{Result, bail};
use std::path::Path;

/// How many processes a launcher says that it started; 1 without one.
fn started() -> usize {
    // Open MPI; MPICH and Slurm's PMI; srun without either.
    let names = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"];
    let number = |name: &&str| std::env::var(name).ok()?.parse().ok();
    names.iter().find_map(number).unwrap_or(1)
}

/// Does something as one of the processes that a launcher started, or alone. A rank that is waited for longer than `patience`
/// has failed. Where a rank fails, it says so and all end.
///
/// # Errors
/// That of the work, where there is one process; if a launcher started several that cannot know of each other.
#[cfg(not(feature = "mpi"))]
pub fn among<T>(patience: Patience, work: impl FnOnce(Option<&Process>) -> Result<T>) -> Result<T> {
    let _ = patience;
    match started() {
        0 | 1 => work(None),
        n => bail!(Error::Invalid(format!(
            "this is one of {n} processes that a launcher started, and this danlu was built without MPI: each would do the \
             whole work; build it with `{BUILD}`, or start one"
        ))),
    }
}

/// How a danlu is built whose processes know of each other.
#[cfg(not(feature = "mpi"))]
const BUILD: &str = "cargo build --release --features mpi";

/// Refuses to have several processes started that could not know of each other.
pub fn check_built(processes: usize) -> Result<()> {
    #[cfg(not(feature = "mpi"))]
    bail!(Error::Invalid(format!(
        "{processes} processes are to be started, and this danlu was built without MPI, by which they would know of each other; \
         build it with `{BUILD}`, or start them with --with threads"
    )));
    #[cfg(feature = "mpi")]
    {
        let _ = processes;
        Ok(())
    }
}

#[cfg(feature = "mpi")]
pub use joined::{Process, among};

/// One of several processes, of which there are none.
#[cfg(not(feature = "mpi"))]
pub enum Process {}

#[cfg(not(feature = "mpi"))]
impl Process {
    pub fn rank(&self) -> usize {
        match *self {}
    }

    pub fn size(&self) -> usize {
        match *self {}
    }

    pub fn local(&self) -> (usize, usize) {
        match *self {}
    }

    pub fn world(&self) -> World {
        match *self {}
    }

    pub fn compare_clocks(&self) -> Result<Option<String>> {
        match *self {}
    }

    pub fn on_each_machine(&self, _: impl FnMut() -> Result<()>) -> Result<()> {
        match *self {}
    }

    pub fn in_turn<T>(&self, _: impl FnMut() -> Result<T>) -> Result<T> {
        match *self {}
    }
}

impl Process {
    /// Who hears of the run on any rank but the first, which prints: a file of its own.
    pub fn log(&self, out: &Path) -> Result<Option<Box<dyn Observer + Send>>> {
        if self.rank() == 0 {
            return Ok(None);
        }
        Ok(Some(Box::new(RankLog::open(out, self.rank())?)))
    }
}

#[cfg(feature = "mpi")]
mod joined {
    use super::super::{ranks::said, sentence};
    use super::{Error, Patience, Result, World, bail, started};
    use crate::comm::{Communicator, MpiWorld, compare_clocks};
    use std::io::Write;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::{Duration, SystemTime};

    /// How often who works tells those who wait for it that it does.
    const BEAT: Duration = Duration::from_millis(500);

    /// One of several processes.
    pub struct Process {
        world: MpiWorld,
        rank: usize,
        size: usize,
        /// Ranks of the machine with most.
        near: usize,
    }

    /// As it stands above.
    pub fn among<T>(patience: Patience, work: impl FnOnce(Option<&Process>) -> Result<T>) -> Result<T> {
        let n = started();
        if n < 2 {
            return work(None);
        }
        let world = MpiWorld::start(patience.work, patience.silence, |text| tell!("danlu: {text}"))?;
        let comm = world.comm();
        let (rank, size) = (comm.rank(), comm.size());
        if size != n {
            let library = world.library();
            bail!(Error::Invalid(format!(
                "a launcher started {n} processes, of which {library} sees {size}: it is another MPI than danlu was built with; \
                 start danlu by the mpirun of {library}"
            )));
        }
        let near = World::of(Arc::new(world.comm())).gather(world.local().1 as u64)?;
        let near = near.into_iter().max().unwrap_or(1) as usize;
        let process = Process { world, rank, size, near };
        let done = catch_unwind(AssertUnwindSafe(|| work(Some(&process))));
        let done = done.unwrap_or_else(|panic| Err(anyhow::anyhow!("panicked: {}", said(&*panic))));
        // All leave together: a launcher ends the others where one has left with an exit code.
        let done = done.and_then(|value| Ok(comm.barrier().map(|()| value)?));
        if let Err(error) = &done {
            // What all have found the first one says.
            std::thread::sleep(Duration::from_millis(if rank == 0 { 0 } else { 300 }));
            // In one piece, for others write there too.
            let text = format!("danlu: rank {rank}: {}\n", sentence(error));
            let _ = std::io::stderr().write_all(text.as_bytes());
            process.world.abort(1);
        }
        done
    }

    impl Process {
        /// This rank.
        pub fn rank(&self) -> usize {
            self.rank
        }

        /// How many there are.
        pub fn size(&self) -> usize {
            self.size
        }

        /// This rank's place among those of its machine, and how many they are.
        pub fn local(&self) -> (usize, usize) {
            self.world.local()
        }

        /// The others; all must ask for them.
        pub fn world(&self) -> World {
            World::of(Arc::new(self.world.comm())).near(self.near)
        }

        /// What is to be said of the ranks' clocks; all must ask. Refuses those that are not set at all.
        pub fn compare_clocks(&self) -> Result<Option<String>> {
            let now = || SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs_f64();
            Ok(compare_clocks(&self.world.comm(), &now)?)
        }

        /// Has one rank of each machine do something, for which the others wait.
        pub fn on_each_machine(&self, mut work: impl FnMut() -> Result<()>) -> Result<()> {
            let done = if self.local().0 == 0 { work() } else { Ok(()) };
            self.world.comm().barrier()?;
            done
        }

        /// MPI, as the library has it.
        pub fn mpi(&self) -> &MpiWorld {
            &self.world
        }

        /// Has the first rank of each machine do something that takes long, and then the others, which find it done.
        pub fn in_turn<T>(&self, mut work: impl FnMut() -> Result<T>) -> Result<T> {
            let near = self.world.comm().split(self.world.machine() as u32, 0)?;
            if near.rank() > 0 {
                let mut done = [0];
                while done[0] == 0 {
                    near.receive(0, &mut done)?;
                }
                return work();
            }
            let say = |what: u8| (1..near.size()).try_for_each(|rank| near.send(rank, &[what]));
            let done = AtomicBool::new(false);
            let worked = std::thread::scope(|scope| {
                let beats = scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        say(0)?;
                        std::thread::park_timeout(BEAT);
                    }
                    say(1)
                });
                let worked = work();
                done.store(true, Ordering::Relaxed);
                beats.thread().unpark();
                (worked, beats.join().unwrap_or(Ok(())))
            });
            worked.1?;
            worked.0
        }
    }
}
