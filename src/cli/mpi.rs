//! This process among those that `mpirun` or `srun` started.

use crate::error::Error;
use anyhow::{Result, bail};

/// How many processes a launcher says that it started; 1 without one.
fn started() -> usize {
    // Open MPI; MPICH and Slurm's PMI; srun without either.
    let names = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"];
    let number = |name: &&str| std::env::var(name).ok()?.parse().ok();
    names.iter().find_map(number).unwrap_or(1)
}

/// Refuses to be one of several without knowing of the others.
#[cfg(not(feature = "mpi"))]
pub fn alone() -> Result<()> {
    match started() {
        0 | 1 => Ok(()),
        n => bail!(Error::Invalid(format!(
            "this is one of {n} processes that a launcher started, and this danlu was built without MPI: each would do the \
             whole work; build it with `cargo build --release --features mpi`, or start one"
        ))),
    }
}

#[cfg(feature = "mpi")]
pub use joined::Process;

#[cfg(feature = "mpi")]
mod joined {
    use super::{Error, Result, bail, started};
    use crate::comm::{Communicator, MpiWorld};
    use std::time::Duration;

    /// This process and the others.
    pub struct Process {
        world: MpiWorld,
        rank: usize,
    }

    impl Process {
        /// Joins the others, if a launcher started several. A rank that is waited for longer than `patience` has failed.
        pub fn join(patience: Option<Duration>) -> Result<Option<Process>> {
            let n = started();
            if n < 2 {
                return Ok(None);
            }
            // The rank is not known before.
            let world = MpiWorld::start(patience, |text| tell!("{text}"))?;
            let comm = world.comm();
            if comm.size() != n {
                let (size, library) = (comm.size(), world.library());
                bail!(Error::Invalid(format!(
                    "a launcher started {n} processes, of which {library} sees {size}: it is another MPI than danlu was built \
                     with; start danlu by the mpirun of {library}"
                )));
            }
            Ok(Some(Process { rank: comm.rank(), world }))
        }

        /// Does this rank's part. If it fails, that is said and all ranks end.
        pub fn run<T>(self, work: impl FnOnce(&MpiWorld, usize) -> Result<T>) -> Result<T> {
            let done = work(&self.world, self.rank);
            if let Err(error) = &done {
                tell!("rank {}: {error:#}", self.rank);
                self.world.abort(1);
            }
            done
        }
    }
}
