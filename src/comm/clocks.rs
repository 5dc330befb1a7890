//! How far the clocks of ranks are apart: what logs and checkpoints of several machines say of time is compared by people.

use super::Communicator;
use crate::error::{Error, Result};
use std::time::Duration;

/// Questions to each rank, of which the one that was answered soonest counts.
const QUESTIONS: usize = 5;
/// Apart by this much, it is worth a word.
pub const NOTED: Duration = Duration::from_secs(1);
/// Apart by this much, a clock is not set at all: time limits and dates mean nothing.
pub const REFUSED: Duration = Duration::from_secs(60);

/// What all ranks learn of their clocks: nothing where they agree, or a sentence that names those which are more than
/// a second from the first rank's. `now` is seconds by this rank's clock; all ranks call this together.
///
/// The first rank asks each other one for the time and takes it for that of the middle between question and answer (Mills,
/// 1991, as NTP does); it is off by no more than half of that.
///
/// # Errors
/// [`Error::Rank`], the same on all, where a clock is more than a minute off; those of the communicator.
pub fn compare_clocks(comm: &dyn Communicator, now: &dyn Fn() -> f64) -> Result<Option<String>> {
    let mut apart = vec![0; 8 * comm.size()];
    for rank in 1..comm.size() {
        if comm.rank() == 0 {
            let mut best = (f64::MAX, 0.0);
            for _ in 0..QUESTIONS {
                let (asked, mut answer) = (now(), [0; 8]);
                comm.send(rank, &[0])?;
                comm.receive(rank, &mut answer)?;
                let answered = now();
                let taken = answered - asked;
                if taken < best.0 {
                    best = (taken, f64::from_le_bytes(answer) - (asked + answered) / 2.0);
                }
            }
            apart[8 * rank..][..8].copy_from_slice(&best.1.to_le_bytes());
        } else if comm.rank() == rank {
            for _ in 0..QUESTIONS {
                comm.receive(0, &mut [0])?;
                comm.send(0, &now().to_le_bytes())?;
            }
        }
    }
    comm.broadcast(0, &mut apart)?;
    let (words, _) = apart.as_chunks::<8>();
    let seconds = words.iter().map(|word| f64::from_le_bytes(*word)).enumerate();
    let off: Vec<(usize, f64)> = seconds.filter(|(_, seconds)| seconds.abs() > NOTED.as_secs_f64()).collect();
    let named = off.iter().map(|(rank, seconds)| {
        let way = if *seconds > 0.0 { "ahead of" } else { "behind" };
        format!("that of rank {rank} is {:.1} s {way} rank 0's", seconds.abs())
    });
    let text = format!("clocks differ: {}", named.collect::<Vec<_>>().join(", "));
    if off.iter().any(|(_, seconds)| seconds.abs() > REFUSED.as_secs_f64()) {
        return Err(Error::Rank(format!("{text}; set them, as with NTP, before a run is started")));
    }
    Ok((!off.is_empty()).then_some(text))
}

#[cfg(test)]
mod tests {
    use super::super::LocalComm;
    use super::*;
    use std::time::Instant;

    /// What ranks say whose clocks are so many seconds off.
    fn told(off: [f64; 3]) -> Vec<Result<Option<String>>> {
        let began = Instant::now();
        std::thread::scope(|scope| {
            let look = |comm: LocalComm| {
                let mine = off[comm.rank()];
                scope.spawn(move || compare_clocks(&comm, &|| 1e9 + began.elapsed().as_secs_f64() + mine))
            };
            let threads: Vec<_> = LocalComm::group(3, None).into_iter().map(look).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    #[test]
    fn clocks_that_differ_are_named_and_those_that_were_never_set_refused() {
        for said in told([0.0, 0.2, -0.3]) {
            assert_eq!(said.unwrap(), None);
        }
        let text = "clocks differ: that of rank 1 is 2.5 s behind rank 0's, that of rank 2 is 9.0 s ahead of rank 0's";
        for said in told([0.0, -2.5, 9.0]) {
            assert_eq!(said.unwrap().unwrap(), text);
        }
        for said in told([0.0, 0.0, 3600.0]) {
            let text = "ranks: clocks differ: that of rank 2 is 3600.0 s ahead of rank 0's; set them, as with NTP, before a run \
                        is started";
            assert_eq!(said.unwrap_err().to_string(), text);
        }
    }
}
