//! Sums in one order, in steps: while the bytes of a step are on their way, those of the one before are added.
//!
//! A step is a stretch of every rank's share. Each rank gets its own stretch from all others, adds them in the order of
//! ranks, and sends the sum to all: 2(N-1)/N of the bytes go out of every rank, which is the least that does it.

use super::requests::Transfers;
use super::{MpiComm, SUMS};
use crate::comm::{Communicator, Element, share};
use std::ops::Range;

/// Bytes that a rank adds at a time, of each rank: they stay in the cache.
const STRETCH: usize = 256 << 10;

/// A step's bytes of every rank's share.
type Stretches<'a> = Vec<&'a mut [u8]>;

impl MpiComm {
    /// Bytes of a stretch that are a whole number of elements, and how many steps there are.
    fn steps(&self, bytes: usize, of: Element) -> (usize, usize) {
        let stretch = (STRETCH.min(self.piece) / of.bytes()).max(1) * of.bytes();
        let longest = share(bytes / of.bytes(), self.size(), self.size() - 1).len() * of.bytes();
        let longest = longest.max((bytes / of.bytes()).div_ceil(self.size()) * of.bytes());
        (stretch, longest.div_ceil(stretch))
    }

    fn shares(&self, bytes: usize, of: Element) -> Vec<Range<usize>> {
        (0..self.size()).map(|rank| of.range(share(bytes / of.bytes(), self.size(), rank))).collect()
    }

    /// The sum over all ranks of this one's share.
    pub(super) fn sum_of_parts(&self, data: &[u8], of: Element, part: &mut [u8]) {
        let what = "the others wait for reduce_scatter";
        let (stretch, steps) = self.steps(data.len(), of);
        let shares = self.shares(data.len(), of);
        let at = |step: usize, rank: usize| {
            let Range { start, end } = shares[rank];
            (start + step * stretch).min(end)..(start + (step + 1) * stretch).min(end)
        };
        let mut room = self.room(2 * self.size() * stretch);
        let (mut now, mut next) = room.split_at_mut(self.size() * stretch);
        let mut sums = part.chunks_mut(stretch);
        for step in 0..=steps {
            self.transfer(what, SUMS, |transfers| {
                if step < steps {
                    let mine = |rank| &data[at(step, rank)];
                    self.scatter(transfers, mine, &mut *next, at(step, self.rank()).len(), stretch);
                }
                let sum = step.checked_sub(1).and_then(|_| sums.next());
                if let Some(sum) = sum {
                    self.add(now, &data[at(step - 1, self.rank())], of, sum, stretch);
                }
            });
            std::mem::swap(&mut now, &mut next);
        }
    }

    /// The sum over all ranks, on all of them.
    pub(super) fn sum_everywhere(&self, data: &mut [u8], of: Element) {
        let what = "the others wait for all_reduce";
        let (stretch, steps) = self.steps(data.len(), of);
        let shares = self.shares(data.len(), of);
        let mut rest = data;
        let mut columns: Vec<Stretches<'_>> = (0..steps).map(|_| Vec::with_capacity(self.size())).collect();
        for range in shares {
            let (share, after) = rest.split_at_mut(range.len());
            let mut stretches = share.chunks_mut(stretch);
            columns.iter_mut().for_each(|column| column.push(stretches.next().unwrap_or_default()));
            rest = after;
        }
        let mut room = self.room(2 * self.size() * stretch);
        let (mut now, mut next) = room.split_at_mut(self.size() * stretch);
        // At a time one step is scattered, the one before is added, and the one before that goes to all.
        for step in 0..steps + 2 {
            let (before, from) = columns.split_at_mut(step.min(steps));
            let (gathered, added) = before.split_at_mut(before.len().saturating_sub(usize::from(step <= steps)));
            self.transfer(what, SUMS, |transfers| {
                if let Some(column) = from.first() {
                    self.scatter(transfers, |rank| &*column[rank], &mut *next, column[self.rank()].len(), stretch);
                }
                if step >= 2 {
                    self.give(transfers, gathered.last_mut().expect("a step before the last"));
                }
                if let Some(column) = added.first_mut() {
                    let sum = &mut *column[self.rank()];
                    let own = &mut now[self.rank() * stretch..][..sum.len()];
                    own.copy_from_slice(sum);
                    let own = &now[self.rank() * stretch..][..sum.len()];
                    self.add(now, own, of, sum, stretch);
                }
            });
            std::mem::swap(&mut now, &mut next);
        }
    }

    /// Each rank's stretch goes to it, and this rank's comes from all.
    fn scatter<'a>(
        &self,
        transfers: &mut Transfers<'a, '_>,
        mine: impl Fn(usize) -> &'a [u8],
        room: &'a mut [u8],
        length: usize,
        stretch: usize,
    ) {
        for (rank, place) in room.chunks_mut(stretch).enumerate().filter(|(rank, _)| *rank != self.rank()) {
            transfers.receive(self.comm(), rank, &mut place[..length]);
        }
        self.others().for_each(|rank| transfers.send(self.comm(), rank, mine(rank)));
    }

    /// This rank's sum goes to all, and theirs come from them.
    fn give<'a>(&self, transfers: &mut Transfers<'a, '_>, column: &'a mut Stretches<'_>) {
        let (before, from) = column.split_at_mut(self.rank());
        let (mine, after) = from.split_at_mut(1);
        for (rank, place) in before.iter_mut().enumerate() {
            transfers.receive(self.comm(), rank, place);
        }
        for (i, place) in after.iter_mut().enumerate() {
            transfers.receive(self.comm(), self.rank() + 1 + i, place);
        }
        self.others().for_each(|rank| transfers.send(self.comm(), rank, &*mine[0]));
    }

    /// Adds what came, and this rank's own, in the order of ranks.
    fn add(&self, room: &[u8], own: &[u8], of: Element, sum: &mut [u8], stretch: usize) {
        let part = |rank: usize| if rank == self.rank() { own } else { &room[rank * stretch..][..sum.len()] };
        let parts: Vec<&[u8]> = (0..self.size()).map(part).collect();
        of.sum(&parts, sum);
    }

    fn room(&self, bytes: usize) -> std::sync::MutexGuard<'_, Vec<u8>> {
        let mut room = self.room.lock().unwrap_or_else(|e| e.into_inner());
        if room.len() < bytes {
            room.resize(bytes, 0);
        }
        room
    }
}
