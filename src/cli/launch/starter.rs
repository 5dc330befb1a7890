//! What starts the ranks of a job: the words of its command, each with its reason.

use super::Layout;
use crate::base::count;
use crate::error::Error;
use anyhow::{Result, bail};
use std::process::Command;

/// A way to start ranks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Starter {
    /// Threads of one process.
    Threads,
    /// Open MPI's mpirun.
    OpenMpi,
    /// MPICH's.
    Mpich,
    /// Slurm's srun.
    Srun {
        /// How it tells ranks of each other.
        mpi: String,
    },
}

/// Some words of a command, and what they are for.
pub type Words = Vec<(Vec<String>, String)>;

impl Starter {
    /// The mpirun of this machine.
    pub fn mpirun() -> Result<Starter> {
        let said = Command::new("mpirun").arg("--version").output();
        let Ok(said) = said else {
            bail!(Error::Invalid(
                "there is no mpirun here: install Open MPI or MPICH, or start ranks with --with threads, srun or slurm"
                    .into()
            ));
        };
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        Ok(if said.contains("Open MPI") || said.contains("OpenRTE") { Starter::OpenMpi } else { Starter::Mpich })
    }

    /// The words before the ranks' own command.
    pub fn words(&self, layout: Layout) -> Words {
        let Layout { ranks, nodes, per_node } = layout;
        let words = |text: &str, why: &str| (text.split(' ').map(String::from).collect::<Vec<_>>(), why.to_string());
        let count = match ranks {
            1 => "one process".to_string(),
            n => format!("{n} processes; each takes the adapter of its number on its machine"),
        };
        match self {
            Starter::Threads => Vec::new(),
            Starter::OpenMpi => {
                let mut line = vec![
                    words("mpirun", "Open MPI starts the ranks, and ends all when one has died"),
                    words(&format!("-n {ranks}"), &count),
                    words("--oversubscribe", "also more than cores: adapters compute, cores do not"),
                    words("--bind-to none", "a rank's threads use any core: data, checkpoints, the driver's"),
                ];
                if nodes > 1 {
                    line.insert(2, words(&format!("--map-by ppr:{per_node}:node"), "so many on each machine"));
                }
                line
            }
            Starter::Mpich => {
                let mut line = vec![
                    words("mpirun", "MPICH starts the ranks, and ends all when one has died"),
                    words(&format!("-n {ranks}"), &count),
                ];
                if nodes > 1 {
                    line.push(words(&format!("-ppn {per_node}"), "so many on each machine"));
                }
                line
            }
            Starter::Srun { mpi } => vec![
                words("srun", "Slurm starts the ranks"),
                words(&format!("--ntasks={ranks}"), &count),
                words(&format!("--ntasks-per-node={per_node}"), "so many on each machine"),
                words(&format!("--mpi={mpi}"), "how ranks learn of each other"),
                words("--input=0", "the first rank learns by its input when the supervisor is gone"),
                words("--kill-on-bad-exit=1", "when one has died, all end"),
                words("--cpu-bind=none", "a rank's threads use any core: data, checkpoints, the driver's"),
            ],
        }
    }

    /// So many ranks, by what they are here.
    pub fn counted(&self, ranks: u32) -> String {
        match (self, ranks) {
            (Starter::Threads, n) => count(n as usize, "thread"),
            (_, 1) => "1 process".into(),
            (_, n) => format!("{n} processes"),
        }
    }
}

/// Words as a shell reads them.
pub fn quoted<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./:,@%+".contains(c);
    let quote = |word: &str| match !word.is_empty() && word.chars().all(plain) {
        true => word.to_string(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    };
    words.into_iter().map(quote).collect::<Vec<_>>().join(" ")
}
