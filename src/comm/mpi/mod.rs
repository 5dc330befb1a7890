//! Ranks that are processes, through MPI: the engine that leaves one machine.
//!
//! A collective begins with one small all-reduce by which all ranks learn whether all have come for the same; only then do
//! bytes move. So ranks that differ are told apart before MPI is asked for what it does not define, and who is late is
//! known before anybody's buffer is in MPI's hands. Bytes move from rank to rank, where sums have one order, which MPI's
//! own sums do not have.

mod beats;
mod requests;
mod sums;
mod world;

use super::{Communicator, Element, expect, share};
use crate::error::{Error, Result};
use ::mpi::Rank;
use ::mpi::collective::{CommunicatorCollectives as _, Root as _, SystemOperation};
use ::mpi::request::StaticScope;
use ::mpi::topology::{Color, Communicator as _};
use ::mpi::traits::{Destination as _, Source as _};
use requests::{PIECE, Transfers, own};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use world::{Handle, Wait, World};

/// The collectives; a rank says by number which it has come for.
const NAMES: [&str; 8] =
    ["barrier", "broadcast", "all_gather", "all_to_all", "split", "reduce_scatter", "all_reduce", "MPI's all_reduce"];
const BARRIER: u64 = 0;
const BROADCAST: u64 = 1;
const ALL_GATHER: u64 = 2;
const ALL_TO_ALL: u64 = 3;
const SPLIT: u64 = 4;
const REDUCE_SCATTER: u64 = 5;
const ALL_REDUCE: u64 = 6;
const THEIRS: u64 = 7;

/// Tags: the length of what is sent.
const LENGTH: i32 = 1;
/// Its bytes.
const BYTES: i32 = 2;
/// The bytes of collectives.
const PARTS: i32 = 3;
/// Those that are summed.
const SUMS: i32 = 4;

/// This process, among those that `mpirun` or `srun` started.
pub struct MpiWorld {
    world: Arc<World>,
}

impl MpiWorld {
    /// Starts MPI, which a process can do once. A rank that is waited for longer than `patience` counts as failed, and so does
    /// one whose process gives no sign of life for as long as `silence`, however long others compute.
    ///
    /// A fault while bytes are on their way ends all ranks at once, for then there is no way back; `last_words` is called
    /// before that with what is to be said. Any other fault is an error of the call, after which this ends all ranks when it
    /// is dropped.
    ///
    /// # Errors
    /// [`Error::Rank`] if MPI was started before, or allows one thread only.
    pub fn start(
        patience: Option<Duration>,
        silence: Option<Duration>,
        last_words: impl Fn(&str) + Send + Sync + 'static,
    ) -> Result<MpiWorld> {
        Ok(MpiWorld { world: World::start(patience, silence, Box::new(last_words))? })
    }

    /// All ranks; each call of this is a collective.
    pub fn comm(&self) -> MpiComm {
        let size = self.world.all.size() as usize;
        MpiComm::new(self.world.clone(), Handle::new(self.world.all.duplicate()), (0..size).collect())
    }

    /// This rank's place among those of its machine, and how many they are.
    pub fn local(&self) -> (usize, usize) {
        self.world.local
    }

    /// This rank's machine, as the number of its first rank.
    pub fn machine(&self) -> usize {
        self.world.machine
    }

    /// Which MPI this is, such as `Open MPI v4.1.4`.
    pub fn library(&self) -> String {
        let text = ::mpi::environment::library_version().unwrap_or_default();
        let line = text.trim_matches(['\0', '\n']).lines().next().unwrap_or_default();
        line.split(',').next().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// Ends all ranks.
    pub fn abort(&self, code: i32) -> ! {
        self.world.all.abort(code)
    }
}

/// A group of processes.
pub struct MpiComm {
    /// None only while this ends.
    comm: Option<Handle>,
    /// The ranks of the group in the world.
    members: Vec<usize>,
    rank: usize,
    /// What was sent and may not have arrived.
    sent: Mutex<Vec<own::Sent>>,
    /// Room for what is summed.
    room: Mutex<Vec<u8>>,
    /// Most bytes of one message.
    piece: usize,
    world: Arc<World>,
}

impl MpiComm {
    fn new(world: Arc<World>, comm: Handle, members: Vec<usize>) -> MpiComm {
        let rank = comm.rank() as usize;
        let (sent, room) = (Mutex::default(), Mutex::default());
        MpiComm { comm: Some(comm), members, rank, sent, room, piece: PIECE, world }
    }

    fn comm(&self) -> &Handle {
        self.comm.as_ref().expect("there until this is dropped")
    }

    fn wait<'a>(&'a self, what: &'a str) -> Wait<'a> {
        Wait { what, members: &self.members, of: &self.members }
    }

    fn small(&self, what: &str, begun: own::Begun<u64>) -> Result<Vec<u64>> {
        self.world.small(&self.wait(what), begun)
    }

    /// Some words of every rank.
    fn words(&self, what: &str, mine: &[u64]) -> Result<Vec<u64>> {
        let begin = |sent: &'static [u64], came: &'static mut [u64]| {
            self.comm().immediate_all_gather_into(StaticScope, sent, came)
        };
        self.small(what, own::Begun::new(mine, mine.len() * self.size(), begin))
    }

    /// The largest of every rank's words.
    fn largest(&self, what: &str, mine: &[u64]) -> Result<Vec<u64>> {
        let begin = |sent: &'static [u64], came: &'static mut [u64]| {
            self.comm().immediate_all_reduce_into(StaticScope, sent, came, SystemOperation::max())
        };
        self.small(what, own::Begun::new(mine, mine.len(), begin))
    }

    /// Waits until all are here, for the same.
    fn meet(&self, call: u64, same: usize) -> Result<()> {
        self.world.check()?;
        self.tidy();
        let what = format!("the others wait for {}", NAMES[call as usize]);
        let same = same as u64;
        let most = self.largest(&what, &[call, !call, same, !same])?;
        if most[0] == !most[1] && most[2] == !most[3] {
            return Ok(());
        }
        let calls = self.words(&what, &[call, same])?;
        let text = |c: &[u64]| format!("{} of {}", NAMES[c[0] as usize % NAMES.len()], c[1]);
        let calls: Vec<&[u64]> = calls.chunks(2).collect();
        let other = calls.iter().position(|call| *call != calls[0]).unwrap_or_default();
        let text = format!("rank 0 calls {}, and rank {other} {}", text(calls[0]), text(calls[other]));
        Err(self.world.fail(&[], text))
    }

    /// What this rank knows to be wrong.
    fn tell(&self, result: Result<()>) -> Result<()> {
        result.map_err(|error| match error {
            Error::Rank(text) => self.world.fail(&self.members, format!("on rank {}, {text}", self.rank)),
            other => other,
        })
    }

    /// What one rank may know to be wrong: all learn of it, and none goes on.
    fn agree(&self, what: &str, result: Result<()>) -> Result<()> {
        let worst = self.largest(what, &[if result.is_err() { (self.size() - self.rank) as u64 } else { 0 }])?[0];
        if worst == 0 {
            return Ok(());
        }
        let rank = self.size() - worst as usize;
        let text = result.err().map(|e| e.to_string()).unwrap_or_default();
        let text = text.strip_prefix("ranks: ").unwrap_or(&text);
        let length = self.largest(what, &[text.len() as u64])?[0] as usize;
        let mut words = vec![0; length];
        if rank == self.rank {
            words[..text.len()].copy_from_slice(text.as_bytes());
        }
        self.spread(what, rank, &mut words);
        let text = String::from_utf8_lossy(&words);
        Err(self.world.fail(&[], format!("on rank {rank}, {}", text.trim_end_matches('\0'))))
    }

    /// Transfers that nobody refuses any more.
    fn transfer<'a>(&self, what: &str, tag: i32, begin: impl FnOnce(&mut Transfers<'a, '_>)) {
        ::mpi::request::scope(|scope| {
            let mut transfers = Transfers::new(scope, tag, self.piece);
            begin(&mut transfers);
            transfers.settle(&self.world, &self.members, what);
        });
    }

    fn spread(&self, what: &str, root: usize, data: &mut [u8]) {
        for piece in data.chunks_mut(self.piece) {
            ::mpi::request::scope(|scope| {
                let mut transfers = Transfers::new(scope, 0, self.piece);
                transfers.add(self.comm().process_at_rank(root as Rank).immediate_broadcast_into(scope, piece));
                transfers.settle(&self.world, &self.members, what);
            });
        }
    }

    /// The other ranks, from the next one on: so not all send to one at a time.
    fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let (rank, size) = (self.rank, self.size());
        (1..size).map(move |i| (rank + i) % size)
    }

    fn sent(&self) -> MutexGuard<'_, Vec<own::Sent>> {
        self.sent.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Lets go of what has arrived.
    fn tidy(&self) {
        let mut sent = self.sent();
        *sent = sent.drain(..).filter_map(|sent| sent.test().err()).collect();
    }

    /// What MPI's own all-reduce makes of f32s, in whatever order it likes: to be measured beside.
    ///
    /// # Errors
    /// As [`Communicator::all_reduce`]; beyond 2^31 bytes.
    pub fn all_reduce_of_mpi(&self, data: &[f32], sum: &mut [f32]) -> Result<()> {
        self.meet(THEIRS, data.len())?;
        self.tell(expect("the sum", sum.len(), data.len()))?;
        if i32::try_from(data.len()).is_err() {
            return Err(Error::Rank(format!("MPI counts to 2^31, and there are {} elements", data.len())));
        }
        self.comm().all_reduce_into(data, sum, SystemOperation::sum());
        Ok(())
    }
}

/// The parts of some bytes, which must not meet.
fn apart<'a>(whole: &'a mut [u8], parts: &[Range<usize>]) -> Result<Vec<&'a mut [u8]>> {
    let length = whole.len();
    let mut order: Vec<usize> = (0..parts.len()).collect();
    order.sort_by_key(|&i| (parts[i].start, parts[i].end));
    let mut found: Vec<&mut [u8]> = parts.iter().map(|_| Default::default()).collect();
    let (mut rest, mut at) = (whole, 0);
    for i in order {
        let Range { start, end } = parts[i];
        if start > end || end > length {
            return Err(Error::Rank(format!("{:?} lies outside of {length} bytes", parts[i])));
        }
        if start == end {
            continue;
        }
        if start < at {
            return Err(Error::Rank(format!("{:?} begins before {at}, where another part ends", parts[i])));
        }
        let (part, after) = rest.split_at_mut(start - at).1.split_at_mut(end - start);
        (found[i], rest, at) = (part, after, end);
    }
    Ok(found)
}

impl Communicator for MpiComm {
    fn machine(&self) -> usize {
        self.world.machine
    }

    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.members.len()
    }

    fn barrier(&self) -> Result<()> {
        self.meet(BARRIER, 0)
    }

    fn broadcast(&self, root: usize, data: &mut [u8]) -> Result<()> {
        self.meet(BROADCAST, data.len())?;
        if root >= self.size() {
            return self.tell(Err(Error::Rank(format!("there is no rank {root}"))));
        }
        self.spread("the others wait for broadcast", root, data);
        Ok(())
    }

    fn all_gather(&self, mine: &[u8], all: &mut [u8]) -> Result<()> {
        self.meet(ALL_GATHER, all.len())?;
        let what = "the others wait for all_gather";
        let lengths = self.words(what, &[mine.len() as u64])?;
        self.tell(expect("what all ranks give", lengths.iter().sum::<u64>() as usize, all.len()))?;
        let ends = lengths.iter().scan(0, |end, length| {
            *end += *length as usize;
            Some(*end - *length as usize..*end)
        });
        let mut parts = apart(all, &ends.collect::<Vec<_>>())?;
        parts[self.rank].copy_from_slice(mine);
        self.transfer(what, PARTS, |transfers| {
            for (rank, part) in parts.into_iter().enumerate().filter(|(rank, _)| *rank != self.rank) {
                transfers.receive(self.comm(), rank, part);
            }
            self.others().for_each(|rank| transfers.send(self.comm(), rank, mine));
        });
        Ok(())
    }

    fn all_to_all_v(&self, mine: &[u8], to: &[Range<usize>], theirs: &mut [u8], from: &[Range<usize>]) -> Result<()> {
        self.meet(ALL_TO_ALL, 0)?;
        let what = "the others wait for all_to_all";
        let lengths: Vec<u64> = (0..self.size()).map(|r| to.get(r).map_or(0, |part| part.len() as u64)).collect();
        let begin = |sent: &'static [u64], came: &'static mut [u64]| {
            self.comm().immediate_all_to_all_into(StaticScope, sent, came)
        };
        let come = self.small(what, own::Begun::new(&lengths, self.size(), begin))?;
        let lengths_agree = || -> Result<()> {
            expect("the list of parts", from.len(), self.size())?;
            expect("the list of parts", to.len(), self.size())?;
            for (part, length) in from.iter().zip(&come) {
                expect("what comes from a rank", *length as usize, part.len())?;
            }
            let outside = to.iter().find(|part| mine.get((*part).clone()).is_none());
            let outside = outside.map(|part| Error::Rank(format!("{part:?} lies outside of {} bytes", mine.len())));
            outside.map_or(Ok(()), Err)
        };
        let (parts, result) = match lengths_agree().and_then(|()| apart(theirs, from)) {
            Ok(parts) => (parts, Ok(())),
            Err(error) => (Vec::new(), Err(error)),
        };
        self.agree(what, result)?;
        self.transfer(what, PARTS, |transfers| {
            for (rank, part) in parts.into_iter().enumerate() {
                match rank == self.rank {
                    true => part.copy_from_slice(&mine[to[rank].clone()]),
                    false => transfers.receive(self.comm(), rank, part),
                }
            }
            self.others().for_each(|rank| transfers.send(self.comm(), rank, &mine[to[rank].clone()]));
        });
        Ok(())
    }

    fn send(&self, to: usize, data: &[u8]) -> Result<()> {
        self.world.check()?;
        self.tidy();
        if to >= self.size() {
            return Err(Error::Rank(format!("there is no rank {to}")));
        }
        let process = self.comm().process_at_rank(to as Rank);
        let length = (data.len() as u64).to_le_bytes();
        let begin = |words, tag| own::Sent::new(words, |w| process.immediate_send_with_tag(StaticScope, w, tag));
        let mut sent = self.sent();
        sent.push(begin(&length, LENGTH));
        sent.extend(data.chunks(self.piece).map(|piece| begin(piece, BYTES)));
        Ok(())
    }

    fn receive(&self, from: usize, data: &mut [u8]) -> Result<()> {
        self.world.check()?;
        self.tidy();
        if from >= self.size() {
            return Err(Error::Rank(format!("there is no rank {from}")));
        }
        let what = format!("rank {} waits for what rank {from} sends", self.rank);
        let process = self.comm().process_at_rank(from as Rank);
        let begin = |_: &'static [u8], came: &'static mut [u8]| {
            process.immediate_receive_into_with_tag(StaticScope, came, LENGTH)
        };
        let wait = Wait { what: &what, members: &self.members, of: &self.members[from..=from] };
        let length = self.world.small(&wait, own::Begun::new(&[], 8, begin))?;
        let length = length.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes)) as usize;
        self.tell(expect("what was sent", length, data.len()))?;
        self.transfer(&what, BYTES, |transfers| transfers.receive(self.comm(), from, data));
        Ok(())
    }

    fn split(&self, colour: u32, key: u32) -> Result<Box<dyn Communicator>> {
        self.meet(SPLIT, 0)?;
        let words = self.words("the others wait for split", &[u64::from(colour), u64::from(key)])?;
        let all: Vec<(u64, u64, usize)> = words.chunks(2).enumerate().map(|(r, w)| (w[0], w[1], r)).collect();
        let mut mine: Vec<(u64, usize)> =
            all.iter().filter(|(c, _, _)| *c == u64::from(colour)).map(|(_, key, rank)| (*key, *rank)).collect();
        mine.sort_unstable();
        let place = mine.iter().position(|(_, rank)| *rank == self.rank).unwrap_or_default();
        // MPI's colours are numbers of 31 bits: here the first rank that has it stands for a colour.
        let first = all.iter().position(|(c, _, _)| *c == u64::from(colour)).unwrap_or_default();
        let group = self.comm().split_by_color_with_key(Color::with_value(first as i32), place as i32);
        let group = group.ok_or_else(|| Error::Rank("MPI made no group of these ranks".into()))?;
        let members = mine.iter().map(|(_, rank)| self.members[*rank]).collect();
        let mut group = MpiComm::new(self.world.clone(), Handle::new(group), members);
        group.piece = self.piece;
        Ok(Box::new(group))
    }

    fn abort(&self, why: &str) {
        self.world.fail(&self.members, format!("rank {}: {why}", self.rank));
    }

    fn reduce_scatter(&self, data: &[u8], of: Element, part: &mut [u8]) -> Result<()> {
        let elements = of.count(data.len())?;
        self.meet(REDUCE_SCATTER, data.len())?;
        self.tell(expect("the part", part.len(), of.range(share(elements, self.size(), self.rank)).len()))?;
        self.sum_of_parts(data, of, part);
        Ok(())
    }

    fn all_reduce(&self, data: &mut [u8], of: Element) -> Result<()> {
        of.count(data.len())?;
        self.meet(ALL_REDUCE, data.len())?;
        self.sum_everywhere(data, of);
        Ok(())
    }
}

impl Drop for MpiComm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let text = format!("rank {} panicked", self.members[self.rank]);
            drop(self.world.fail(&self.members, text));
        }
        // What was sent arrives, if anybody is there; and a group that has failed is MPI's to keep.
        let arrived = self.world.check().is_ok()
            && self
                .world
                .wait(&self.wait("another waits for its messages to arrive"), || {
                    self.tidy();
                    if self.sent().is_empty() { world::Step::Done } else { world::Step::Still }
                })
                .is_ok();
        if !arrived {
            std::mem::forget(self.comm.take());
            self.sent().drain(..).for_each(std::mem::forget);
        }
    }
}

#[cfg(test)]
mod tests;
