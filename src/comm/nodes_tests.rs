//! An exchange by machine against the plain one, and the messages of both, on threads that say which machine they are on.

use super::super::LocalComm;
use super::*;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Messages of one rank: within its machine, and to others.
#[derive(Default)]
struct Count([AtomicUsize; 2]);

/// A thread on a machine, whose exchanges are counted.
struct On {
    comm: Box<dyn Communicator>,
    /// Of every rank of the group.
    machines: Vec<usize>,
    count: Arc<Count>,
}

impl Over for On {
    fn inner(&self) -> &dyn Communicator {
        self.comm.as_ref()
    }

    fn all_to_all_v(&self, mine: &[u8], to: &[Range<usize>], theirs: &mut [u8], from: &[Range<usize>]) -> Result<()> {
        for (rank, range) in to.iter().enumerate().filter(|(rank, _)| *rank != self.rank()) {
            let leaves = self.machines[rank] != self.machines[self.rank()];
            self.count.0[usize::from(leaves)].fetch_add(usize::from(!range.is_empty()), Relaxed);
        }
        self.comm.all_to_all_v(mine, to, theirs, from)
    }

    /// By the trait's own way, whose messages are counted.
    fn all_to_all(&self, mine: &[u8], theirs: &mut [u8]) -> Result<()> {
        let part = mine.len() / self.size();
        let parts: Vec<Range<usize>> = (0..self.size()).map(|r| r * part..(r + 1) * part).collect();
        Over::all_to_all_v(self, mine, &parts, theirs, &parts)
    }

    fn split(&self, colour: u32, key: u32) -> Result<Box<dyn Communicator>> {
        let comm = self.comm.split(colour, key)?;
        let mut machines = vec![0; 8 * comm.size()];
        let mine = (self.machines[self.rank()] as u64).to_le_bytes();
        comm.all_gather(&mine, &mut machines)?;
        let machines = machines.chunks(8).map(|m| u64::from_le_bytes(m.try_into().unwrap()) as usize).collect();
        Ok(Box::new(On { comm, machines, count: self.count.clone() }))
    }

    fn machine(&self) -> usize {
        self.machines[self.rank()]
    }
}

/// An exchange of parts of so many bytes: what each rank got, and its messages.
fn exchange(machines: &[usize], part: usize, by_machine: bool) -> Vec<(Vec<u8>, [usize; 2])> {
    let rank = |comm: LocalComm| {
        let count = Arc::new(Count::default());
        let comm: Arc<dyn Communicator> =
            Arc::new(On { comm: Box::new(comm), machines: machines.to_vec(), count: count.clone() });
        let comm = if by_machine { Nodes::over(comm).unwrap() } else { comm };
        let (rank, bytes) = (comm.rank(), part * machines.len());
        let mine: Vec<u8> = (0..bytes).map(|i| (rank * 31 + i * 7) as u8).collect();
        let mut theirs = vec![0; bytes];
        comm.all_to_all(&mine, &mut theirs).unwrap();
        (theirs, [0, 1].map(|i| count.0[i].load(Relaxed)))
    };
    std::thread::scope(|scope| {
        let rank = &rank;
        let group = LocalComm::group(machines.len(), None);
        let threads: Vec<_> = group.into_iter().map(|comm| scope.spawn(move || rank(comm))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn what_goes_by_machine_arrives_as_it_does_plainly_in_fewer_messages() {
    for (machines, local) in [(vec![5, 5, 9, 9], 2), (vec![0, 0, 0, 4, 4, 4], 3), (vec![7, 7, 1, 1, 3, 3, 2, 2], 2)] {
        let (n, m) = (machines.len(), machines.len() / local);
        for part in [1, 12, 1000] {
            let (plain, by_machine) = (exchange(&machines, part, false), exchange(&machines, part, true));
            for (a, b) in plain.iter().zip(&by_machine) {
                assert!(a.0 == b.0, "{machines:?}");
                assert_eq!((a.1, b.1), ([local - 1, n - local], [local - 1, m - 1]), "{machines:?}");
            }
        }
    }
}

/// One machine, one rank on each, other numbers on each, or ranks that do not lie together.
#[test]
fn other_groups_stay_as_they_are() {
    for machines in [vec![3; 4], vec![0, 1, 2], vec![0, 0, 1], vec![0, 1, 0, 1], vec![0, 0, 1, 1, 0, 0]] {
        let (plain, by_machine) = (exchange(&machines, 4, false), exchange(&machines, 4, true));
        assert!(plain == by_machine, "{machines:?}");
    }
}
