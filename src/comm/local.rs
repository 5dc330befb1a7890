//! Ranks that are threads of one process: bytes go through memory that all of them see.
//!
//! A collective is one meeting: each rank lays down what it has, all meet, and each takes what it wants from the others.
//! What was laid down may be read until the next meeting, so there are two places for it, used in turn.

use super::{Communicator, Element, expect, share};
use crate::error::{Error, Result};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

/// One of several threads that work together.
pub struct LocalComm {
    hub: Arc<Hub>,
    rank: usize,
    /// Meetings so far.
    meetings: AtomicU64,
}

/// What ranks share.
struct Hub {
    state: Mutex<State>,
    changed: Condvar,
    /// How long a rank is waited for.
    patience: Option<Duration>,
    /// What each rank has laid down, by turns.
    laid: [Vec<RwLock<Laid>>; 2],
}

#[derive(Default)]
struct Laid {
    bytes: Vec<u8>,
    /// For each rank its part.
    parts: Vec<Range<usize>>,
}

/// What a rank has come for; all must have come for the same.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Call {
    name: &'static str,
    /// What must be the same on all ranks.
    same: usize,
}

#[derive(Default)]
struct State {
    calls: Vec<Option<Call>>,
    generation: u64,
    gone: Vec<Option<&'static str>>,
    fault: Option<String>,
    mail: BTreeMap<(usize, usize), VecDeque<Vec<u8>>>,
    /// Groups that not all of their ranks have taken, by meeting and colour.
    groups: BTreeMap<(u64, u32), (Arc<Hub>, usize)>,
}

type Guard<'a> = MutexGuard<'a, State>;

impl Hub {
    fn new(size: usize, patience: Option<Duration>) -> Arc<Hub> {
        let state = State { calls: vec![None; size], gone: vec![None; size], ..State::default() };
        let places = || (0..size).map(|_| RwLock::default()).collect();
        Arc::new(Hub { state: Mutex::new(state), changed: Condvar::new(), patience, laid: [places(), places()] })
    }

    fn lock(&self) -> Guard<'_> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// From now on nothing succeeds here.
    fn fail(&self, state: &mut Guard<'_>, text: String) -> Error {
        let text = state.fault.get_or_insert(text).clone();
        self.changed.notify_all();
        Error::Rank(text)
    }

    /// Waits until something is so; `absent` says who was waited for in vain.
    fn wait<T>(
        &self,
        mut state: Guard<'_>,
        mut ready: impl FnMut(&mut State) -> Option<T>,
        absent: impl Fn(&State) -> (Vec<usize>, String),
    ) -> Result<T> {
        let until = self.patience.map(|patience| Instant::now() + patience);
        loop {
            if let Some(value) = ready(&mut state) {
                return Ok(value);
            }
            if let Some(text) = &state.fault {
                return Err(Error::Rank(text.clone()));
            }
            let (missing, what) = absent(&state);
            let gone = missing.iter().find_map(|&rank| state.gone[rank].map(|why| format!("rank {rank} {why}")));
            if let Some(gone) = gone {
                return Err(self.fail(&mut state, format!("{gone}, and {what}")));
            }
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            state = match left {
                None => self.changed.wait(state).unwrap_or_else(|e| e.into_inner()),
                Some(left) if left.is_zero() => {
                    let ranks: Vec<String> = missing.iter().map(|rank| format!("rank {rank}")).collect();
                    let seconds = self.patience.unwrap_or_default().as_secs_f64();
                    let text = format!("{} did nothing for {seconds} s, and {what}", ranks.join(", "));
                    return Err(self.fail(&mut state, text));
                }
                Some(left) => self.changed.wait_timeout(state, left).unwrap_or_else(|e| e.into_inner()).0,
            };
        }
    }

    fn meet(&self, rank: usize, call: Call) -> Result<()> {
        let mut state = self.lock();
        if let Some(text) = &state.fault {
            return Err(Error::Rank(text.clone()));
        }
        let (generation, name) = (state.generation, call.name);
        state.calls[rank] = Some(call);
        if state.calls.iter().all(Option::is_some) {
            let calls: Vec<Call> = state.calls.iter_mut().filter_map(Option::take).collect();
            if let Some(other) = calls.iter().position(|call| *call != calls[0]) {
                let text = |c: &Call| format!("{} of {}", c.name, c.same);
                let text = format!("rank 0 calls {}, and rank {other} {}", text(&calls[0]), text(&calls[other]));
                return Err(self.fail(&mut state, text));
            }
            state.generation += 1;
            self.changed.notify_all();
        }
        let absent = |state: &State| {
            let missing = (0..state.calls.len()).filter(|&r| state.calls[r].is_none());
            (missing.collect(), format!("the others wait for {name}"))
        };
        self.wait(state, |state| (state.generation > generation).then_some(()), absent)
    }
}

impl LocalComm {
    /// So many ranks, for as many threads. A rank that is waited for longer than `patience` counts as failed.
    ///
    /// A rank that is dropped is gone: whoever waits for it is told so.
    pub fn group(size: usize, patience: Option<Duration>) -> Vec<LocalComm> {
        let hub = Hub::new(size.max(1), patience);
        (0..size.max(1)).map(|rank| LocalComm::of(hub.clone(), rank)).collect()
    }

    fn of(hub: Arc<Hub>, rank: usize) -> LocalComm {
        LocalComm { hub, rank, meetings: AtomicU64::new(0) }
    }

    /// Lays down bytes and parts, meets, and gives what all laid down.
    fn exchange(&self, call: Call, bytes: &[u8], parts: &[Range<usize>]) -> Result<Vec<RwLockReadGuard<'_, Laid>>> {
        let turn = self.meetings.fetch_add(1, Ordering::Relaxed);
        let places = &self.hub.laid[turn as usize % 2];
        {
            let mut mine = places[self.rank].write().unwrap_or_else(|e| e.into_inner());
            mine.bytes.clear();
            mine.bytes.extend_from_slice(bytes);
            mine.parts.clear();
            mine.parts.extend_from_slice(parts);
        }
        self.hub.meet(self.rank, call)?;
        Ok(places.iter().map(|place| place.read().unwrap_or_else(|e| e.into_inner())).collect())
    }

    /// What was found wrong here ends the work of all.
    fn tell(&self, result: Result<()>) -> Result<()> {
        result.map_err(|error| match error {
            Error::Rank(text) => {
                let rank = self.rank;
                self.hub.fail(&mut self.hub.lock(), format!("on rank {rank}, {text}"))
            }
            other => other,
        })
    }
}

impl Drop for LocalComm {
    fn drop(&mut self) {
        let why = if std::thread::panicking() { "panicked" } else { "has left" };
        self.hub.lock().gone[self.rank] = Some(why);
        self.hub.changed.notify_all();
    }
}

impl Communicator for LocalComm {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.hub.laid[0].len()
    }

    fn barrier(&self) -> Result<()> {
        self.exchange(Call { name: "barrier", same: 0 }, &[], &[]).map(drop)
    }

    fn broadcast(&self, root: usize, data: &mut [u8]) -> Result<()> {
        let mine: &[u8] = if self.rank == root { data } else { &[] };
        let all = self.exchange(Call { name: "broadcast", same: data.len() }, mine, &[])?;
        let from = all.get(root).map(|laid| laid.bytes.as_slice()).unwrap_or_default();
        self.tell(expect("what is broadcast", from.len(), data.len()))?;
        data.copy_from_slice(from);
        Ok(())
    }

    fn all_gather(&self, mine: &[u8], all: &mut [u8]) -> Result<()> {
        let laid = self.exchange(Call { name: "all_gather", same: all.len() }, mine, &[])?;
        self.tell(expect("what all ranks give", laid.iter().map(|l| l.bytes.len()).sum(), all.len()))?;
        let mut rest = all;
        for laid in &laid {
            let (now, later) = rest.split_at_mut(laid.bytes.len());
            now.copy_from_slice(&laid.bytes);
            rest = later;
        }
        Ok(())
    }

    fn all_to_all_v(&self, mine: &[u8], to: &[Range<usize>], theirs: &mut [u8], from: &[Range<usize>]) -> Result<()> {
        let laid = self.exchange(Call { name: "all_to_all", same: 0 }, mine, to)?;
        self.tell(expect("the list of parts", from.len(), self.size()))?;
        for (laid, range) in laid.iter().zip(from) {
            let part = laid.parts.get(self.rank).and_then(|part| laid.bytes.get(part.clone())).unwrap_or_default();
            self.tell(expect("what comes from a rank", part.len(), range.len()))?;
            let length = theirs.len();
            let place = theirs.get_mut(range.clone());
            let place = place.ok_or_else(|| Error::Rank(format!("{range:?} lies outside of {length} bytes")));
            place?.copy_from_slice(part);
        }
        Ok(())
    }

    fn send(&self, to: usize, data: &[u8]) -> Result<()> {
        let mut state = self.hub.lock();
        match state.gone.get(to) {
            None => return Err(Error::Rank(format!("there is no rank {to}"))),
            Some(Some(why)) => {
                let text = format!("rank {to} {why}, and rank {} sends to it", self.rank);
                return Err(self.hub.fail(&mut state, text));
            }
            Some(None) => {}
        }
        state.mail.entry((self.rank, to)).or_default().push_back(data.to_vec());
        self.hub.changed.notify_all();
        Ok(())
    }

    fn receive(&self, from: usize, data: &mut [u8]) -> Result<()> {
        if from >= self.size() {
            return Err(Error::Rank(format!("there is no rank {from}")));
        }
        let route = (from, self.rank);
        let take = |state: &mut State| state.mail.get_mut(&route).and_then(VecDeque::pop_front);
        let absent = |_: &State| (vec![from], format!("rank {} waits for what it sends", self.rank));
        let came = self.hub.wait(self.hub.lock(), take, absent)?;
        self.tell(expect("what was sent", came.len(), data.len()))?;
        data.copy_from_slice(&came);
        Ok(())
    }

    fn split(&self, colour: u32, key: u32) -> Result<Box<dyn Communicator>> {
        let meeting = self.meetings.load(Ordering::Relaxed);
        let mine = (u64::from(colour) << 32 | u64::from(key)).to_le_bytes();
        let laid = self.exchange(Call { name: "split", same: 0 }, &mine, &[])?;
        let word = |laid: &Laid| laid.bytes.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let words = laid.iter().map(|laid| word(laid)).enumerate();
        let mut members: Vec<(u32, usize)> =
            words.filter(|(_, w)| (w >> 32) as u32 == colour).map(|(rank, w)| (w as u32, rank)).collect();
        members.sort_unstable();
        let at = members.iter().position(|(_, rank)| *rank == self.rank).unwrap_or_default();
        let mut state = self.hub.lock();
        let new = || (Hub::new(members.len(), self.hub.patience), 0);
        let (hub, taken) = state.groups.entry((meeting, colour)).or_insert_with(new);
        *taken += 1;
        let (hub, all) = (hub.clone(), *taken == members.len());
        if all {
            state.groups.remove(&(meeting, colour));
        }
        Ok(Box::new(LocalComm::of(hub, at)))
    }

    fn abort(&self, why: &str) {
        self.hub.fail(&mut self.hub.lock(), format!("rank {}: {why}", self.rank));
    }

    /// Straight from what the others laid down: nothing is copied before it is added.
    fn reduce_scatter(&self, data: &[u8], of: Element, part: &mut [u8]) -> Result<()> {
        let elements = of.count(data.len())?;
        let laid = self.exchange(Call { name: "reduce_scatter", same: data.len() }, data, &[])?;
        let range = of.range(share(elements, self.size(), self.rank));
        self.tell(expect("the part", part.len(), range.len()))?;
        let parts: Vec<&[u8]> = laid.iter().map(|laid| &laid.bytes[range.clone()]).collect();
        of.sum(&parts, part);
        Ok(())
    }
}
