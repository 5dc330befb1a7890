//! What ranks exchange in a second: each collective, by the size of what a rank gives.

use super::Hidden;
#[cfg(feature = "mpi")]
use crate::comm::MpiWorld;
use crate::comm::{Communicator, Element, LocalComm};
use crate::error::{Error, Result};
use serde::Serialize;
use std::fmt;
use std::ops::Range;
use std::time::Instant;

/// Bytes that a rank gives, from what measures latency to what measures bandwidth.
const SIZES: [usize; 4] = [4, 4 << 10, 1 << 20, 32 << 20];

/// One collective at one size.
#[derive(Debug, Clone, Serialize)]
pub struct CommFigure {
    /// Which.
    pub collective: &'static str,
    /// Bytes that a rank gives.
    pub bytes: usize,
    /// Seconds of a call: the median.
    pub seconds: f64,
    /// Bytes that a rank must send at least, on average, a second.
    pub bandwidth: f64,
}

/// All of them.
#[derive(Debug, Clone, Serialize)]
pub struct CommReport {
    /// What the ranks are.
    pub engine: String,
    /// Ranks.
    pub ranks: usize,
    /// The figures.
    pub figures: Vec<CommFigure>,
    /// How much of the talk about gradients is hidden, where that was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hidden: Option<Hidden>,
}

/// What is measured: its name, what it does with the bytes that a rank gives and those that it gets, and which part of the
/// former ranks must send at least, on average, for N of them.
type Case = (&'static str, fn(&dyn Communicator, &mut [u8], &mut Vec<u8>) -> Result<()>, fn(f64) -> f64);

const CASES: [Case; 10] = [
    ("barrier", |comm, _, _| comm.barrier(), |_| 0.0),
    ("broadcast", |comm, mine, _| comm.broadcast(0, mine), |_| 1.0),
    ("all_reduce", |comm, mine, _| comm.all_reduce(mine, Element::F32), |n| 2.0 * (n - 1.0) / n),
    ("all_reduce f16", |comm, mine, _| comm.all_reduce(mine, Element::F16), |n| 2.0 * (n - 1.0) / n),
    ("all_reduce bf16", |comm, mine, _| comm.all_reduce(mine, Element::Bf16), |n| 2.0 * (n - 1.0) / n),
    (
        "reduce_scatter",
        |comm, mine, other| {
            let part = crate::comm::share(mine.len() / 4, comm.size(), comm.rank()).len() * 4;
            comm.reduce_scatter(mine, Element::F32, &mut other[..part])
        },
        |n| (n - 1.0) / n,
    ),
    (
        "all_gather",
        |comm, mine, other| {
            let part = mine.len() / comm.size();
            comm.all_gather(&mine[..part], &mut other[..part * comm.size()])
        },
        |n| (n - 1.0) / n,
    ),
    (
        "all_to_all",
        |comm, mine, other| {
            let whole = mine.len() / comm.size() * comm.size();
            comm.all_to_all(&mine[..whole], &mut other[..whole])
        },
        |n| (n - 1.0) / n,
    ),
    // Unequal parts, as experts have them: half to the first rank, half of the rest to the next, and so on.
    (
        "all_to_all_v",
        |comm, mine, other| {
            let to = halves(mine.len(), comm.size());
            let own = to[comm.rank()].len();
            let from: Vec<Range<usize>> = (0..comm.size()).map(|rank| rank * own..(rank + 1) * own).collect();
            other.resize(own * comm.size(), 0);
            comm.all_to_all_v(mine, &to, other, &from)
        },
        |n| (n - 1.0) / n,
    ),
    // To the next, from the one before.
    (
        "send, receive",
        |comm, mine, other| {
            let (rank, size) = (comm.rank(), comm.size());
            comm.send((rank + 1) % size, mine)?;
            comm.receive((rank + size - 1) % size, &mut other[..mine.len()])
        },
        |_| 1.0,
    ),
];

/// Each half of what is left, and to the last two equally much.
fn halves(bytes: usize, ranks: usize) -> Vec<Range<usize>> {
    let mut start = 0;
    let part = |rank| {
        let left = bytes - start;
        let count = if rank + 1 == ranks { left } else { left / 2 };
        start += count;
        start - count..start
    };
    (0..ranks).map(part).collect()
}

/// Measures collectives among so many threads.
///
/// # Errors
/// If fewer than two ranks are asked for, or one fails.
pub fn measure_comm(ranks: usize, quick: bool) -> Result<CommReport> {
    if !(2..=64).contains(&ranks) {
        return Err(Error::Invalid(format!("{ranks} ranks: there must be from 2 to 64")));
    }
    let sizes = sizes(quick);
    let told: Vec<Result<Vec<CommFigure>>> = std::thread::scope(|scope| {
        let start = |comm: LocalComm| scope.spawn(move || measure_rank(&comm, sizes));
        let threads: Vec<_> = LocalComm::group(ranks, None).into_iter().map(start).collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        joined.map(|told| told.unwrap_or_else(|_| Err(Error::Rank("a rank panicked".into())))).collect()
    });
    let mut told = told.into_iter().collect::<Result<Vec<_>>>()?;
    Ok(CommReport { engine: "threads of this process".into(), ranks, figures: told.swap_remove(0), hidden: None })
}

/// Measures collectives among the processes of MPI, and its own all-reduce on the same numbers. All ranks must call this.
///
/// # Errors
/// If there is one rank only, or one fails.
#[cfg(feature = "mpi")]
pub fn measure_mpi(world: &MpiWorld, quick: bool) -> Result<CommReport> {
    let comm = world.comm();
    let ranks = comm.size();
    if ranks < 2 {
        return Err(Error::Invalid("one rank exchanges nothing: start several, as `mpirun -n 4`".into()));
    }
    let sizes = sizes(quick);
    let mut figures = measure_rank(&comm, sizes)?;
    for &bytes in sizes {
        let (mine, mut sum) = (vec![1.0; bytes / 4], vec![0.0; bytes / 4]);
        let seconds = median(bytes, || comm.all_reduce_of_mpi(&mine, &mut sum))?;
        let bandwidth = 2.0 * (ranks - 1) as f64 / ranks as f64 * bytes as f64 / seconds;
        figures.push(CommFigure { collective: "MPI's all_reduce", bytes, seconds, bandwidth });
    }
    Ok(CommReport { engine: format!("processes of {}", world.library()), ranks, figures, hidden: None })
}

fn sizes(quick: bool) -> &'static [usize] {
    &SIZES[..if quick { SIZES.len() - 1 } else { SIZES.len() }]
}

/// Seconds of a call that moves so many bytes.
fn median(bytes: usize, mut call: impl FnMut() -> Result<()>) -> Result<f64> {
    let runs = (64 << 20) / bytes.max(1 << 20) + 3;
    let mut times = Vec::new();
    for run in 0..runs {
        let began = Instant::now();
        call()?;
        // The first makes room.
        if run > 0 {
            times.push(began.elapsed().as_secs_f64());
        }
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

fn measure_rank(comm: &dyn Communicator, sizes: &[usize]) -> Result<Vec<CommFigure>> {
    let mut figures = Vec::new();
    for (collective, call, part) in CASES {
        for &bytes in &sizes[..if collective == "barrier" { 1 } else { sizes.len() }] {
            let (mut mine, mut other) = (vec![1; bytes], vec![0; bytes]);
            let seconds = median(bytes, || call(comm, &mut mine, &mut other))?;
            let bandwidth = part(comm.size() as f64) * bytes as f64 / seconds;
            figures.push(CommFigure { collective, bytes, seconds, bandwidth });
        }
    }
    Ok(figures)
}

impl fmt::Display for CommReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} ranks, {}", self.ranks, self.engine)?;
        write!(f, "{:<16} {:>12} {:>12} {:>12}", "collective", "bytes", "us", "MB/s a rank")?;
        for CommFigure { collective, bytes, seconds, bandwidth } in &self.figures {
            let (us, rate) = (seconds * 1e6, bandwidth / 1e6);
            write!(f, "\n{collective:<16} {bytes:>12} {us:>12.1} {rate:>12.1}")?;
        }
        if let Some(hidden) = &self.hidden {
            write!(f, "\n{hidden}")?;
        }
        Ok(())
    }
}
