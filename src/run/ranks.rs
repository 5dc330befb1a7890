//! The steps of a plan at which ranks meet: bytes go to the host, meet those of the others there, and come back. Where a plan has
//! steps between both ends of a collective, the device goes on with these, while a thread waits for its bytes and meets the
//! others; else it goes in pieces, of which the next is on its way while ranks meet over one.

use crate::base::{Axis, DType, TensorType};
use crate::comm::{Background, Communicator, Element, Groups, Pending, turn};
use crate::compile::{Binding, Meeting, Phase, Plan};
use crate::error::{Error, Result};
use crate::gpu::{Buffer, Gpu, Readback, Upload};
use crate::graph::Collective;
use pollster::block_on;
use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

/// Bytes of a piece: large enough that a meeting costs little of its time, and a few of them no memory to speak of.
const PIECE: u64 = 8 << 20;

/// From when to when ranks met over something: from all of this rank's bytes being on the host until it had the others'.
pub type Talk = [Instant; 2];

/// What a rank needs to meet the others.
pub(super) struct Ranks {
    /// For each axis a thread that meets those along it, in the order of the plan.
    threads: BTreeMap<Axis, Background>,
    down: [Readback; 2],
    up: [Upload; 2],
    room: Room,
    slots: Vec<Slot>,
    /// Of each meeting of the plan that begins a collective its slot.
    places: Vec<usize>,
    /// Collectives in flight, by their slots, in their order.
    flights: VecDeque<(usize, Pending<(Room, Talk)>)>,
    talks: Vec<Talk>,
    /// Whether a run has begun to meet others and not ended.
    is_running: bool,
}

/// Host memory of an exchange: what comes from the device, what goes there, and both in the order of ranks.
#[derive(Default)]
struct Room {
    mine: Vec<u8>,
    given: Vec<u8>,
    order: Vec<u8>,
}

/// What a collective in flight goes through.
struct Slot {
    down: Arc<Readback>,
    up: Upload,
    room: Room,
}

/// One exchange.
#[derive(Clone, Copy)]
struct Exchange {
    what: Collective,
    ranks: usize,
    of: Element,
    piece: Piece,
}

/// Ranges of one length at equal distances.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Ranges {
    first: u64,
    count: u64,
    stride: u64,
    each: u64,
}

impl Ranges {
    fn one(first: u64, bytes: u64) -> Ranges {
        Ranges { first, count: 1, stride: 0, each: bytes }
    }

    fn bytes(&self) -> u64 {
        self.count * self.each
    }

    /// Where each begins in its tensor, and in the slot where they lie one after another.
    fn iter(self) -> impl Iterator<Item = (u64, u64)> {
        (0..self.count).map(move |i| (self.first + i * self.stride, i * self.each))
    }
}

/// What meets at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Piece {
    down: Ranges,
    up: Ranges,
    /// Bytes of one rank's part of one block.
    part: u64,
}

/// Cuts a collective into pieces of at most `most` bytes. `blocks` blocks lie one after another; of each, the whole has
/// `ranks` parts and the part one.
fn pieces(what: Collective, blocks: u64, [read, written]: [u64; 2], ranks: u64, most: u64) -> Vec<Piece> {
    let cut = |bytes: u64, most: u64| {
        let most = (most / 4 * 4).max(4);
        (0..bytes.div_ceil(most)).map(move |i| (i * most, most.min(bytes - i * most)))
    };
    // The parts of all ranks, from byte `at` of each on.
    let spread = |block: u64, part: u64, at: u64, each: u64| Ranges {
        first: block * ranks * part + at,
        count: ranks,
        stride: part,
        each,
    };
    match what {
        Collective::AllReduce | Collective::Shift { .. } => {
            let piece = |(at, n)| Piece { down: Ranges::one(at, n), up: Ranges::one(at, n), part: n };
            cut(read, most).map(piece).collect()
        }
        Collective::Send { .. } => {
            cut(read, most).map(|(at, n)| Piece { down: Ranges::one(at, n), up: Ranges::default(), part: n }).collect()
        }
        Collective::Receive { .. } => {
            let piece = |(at, n)| Piece { down: Ranges::default(), up: Ranges::one(at, n), part: n };
            cut(written, most).map(piece).collect()
        }
        Collective::AllToAll => {
            let part = read / ranks;
            let both = |(at, n)| spread(0, part, at, n);
            cut(part, most / ranks).map(|c| Piece { down: both(c), up: both(c), part: c.1 }).collect()
        }
        Collective::AllGather { .. } | Collective::ReduceScatter { .. } => {
            let part = read.min(written) / blocks;
            let turned = |one: Ranges, all: Ranges, part: u64| match what {
                Collective::AllGather { .. } => Piece { down: one, up: all, part },
                _ => Piece { down: all, up: one, part },
            };
            if part * ranks <= most {
                // Several whole blocks at once.
                let at_once = most / (part * ranks);
                let piece = |first: u64| {
                    let n = at_once.min(blocks - first);
                    let one = Ranges::one(first * part, n * part);
                    turned(one, Ranges::one(first * part * ranks, n * part * ranks), part)
                };
                return (0..blocks).step_by(at_once as usize).map(piece).collect();
            }
            let piece = |block: u64| {
                cut(part, most / ranks)
                    .map(move |(at, n)| (Ranges::one(block * part + at, n), spread(block, part, at, n), n))
            };
            (0..blocks).flat_map(piece).map(|(one, all, n)| turned(one, all, n)).collect()
        }
    }
}

impl Ranks {
    /// Ready for all meetings of a plan.
    pub(super) async fn new(gpu: &Gpu, groups: Groups, plan: &[Meeting]) -> Result<Ranks> {
        let mut threads = BTreeMap::new();
        for meeting in plan {
            let (comm, axis, wanted) = (group(&groups, meeting.axis)?, meeting.axis, meeting.ranks);
            if comm.size() != wanted {
                let ranks = comm.size();
                return Err(Error::Graph(format!(
                    "the plan is for {wanted} ranks along {axis}, and it was joined to {ranks}"
                )));
            }
            threads.entry(axis).or_insert_with(|| Background::new(comm.clone()));
        }
        let bytes = |binding: &Option<Binding>| binding.as_ref().map_or(0, |b| b.bytes);
        let whole = plan.iter().filter(|m| m.phase == Phase::Whole);
        let most = whole.map(|m| bytes(&m.read).max(bytes(&m.written))).max();
        let piece = most.unwrap_or(0).clamp(4, PIECE);
        let down = [gpu.readback(piece).await?, gpu.readback(piece).await?];
        let up = [gpu.upload(piece).await?, gpu.upload(piece).await?];
        let mut slots = Vec::new();
        let (sizes, places) = slot_bytes(plan);
        for [down, up] in sizes {
            let (down, up) = (Arc::new(gpu.readback(down.max(4)).await?), gpu.upload(up.max(4)).await?);
            slots.push(Slot { down, up, room: Room::default() });
        }
        let (room, flights) = (Room::default(), VecDeque::new());
        Ok(Ranks { threads, down, up, room, slots, places, flights, talks: Vec::new(), is_running: false })
    }

    /// Holds a meeting, or begins or ends it, after everything that was submitted; `index` is its number in the plan.
    pub(super) async fn meet(
        &mut self,
        gpu: &Gpu,
        buffers: &[Buffer],
        (index, meeting): (usize, &Meeting),
        ty: DType,
    ) -> Result<()> {
        match meeting.phase {
            Phase::Whole => self.whole(gpu, buffers, meeting, ty).await,
            Phase::Begin => self.begin(gpu, buffers, (self.places[index], meeting), ty),
            Phase::End => self.end(gpu, buffers, meeting).await,
        }
    }

    async fn whole(&mut self, gpu: &Gpu, buffers: &[Buffer], meeting: &Meeting, ty: DType) -> Result<()> {
        let pieces = cut(meeting, self.up[0].bytes().max(4 * meeting.ranks as u64));
        for i in 0..=pieces.len() {
            if let (Some(piece), Some(from)) = (pieces.get(i), &meeting.read) {
                copy_down(gpu, buffers, from, piece, &self.down[i % 2])?;
            }
            let Some(before) = i.checked_sub(1) else { continue };
            let (piece, slot, mut room) = (pieces[before], before % 2, std::mem::take(&mut self.room));
            if meeting.read.is_some() {
                self.down[slot].read(gpu, piece.down.bytes(), |read| room.take(read)).await?;
            }
            let exchange = Exchange::of(meeting, piece, ty);
            let pending = self.thread(meeting.axis)?.start(move |comm| exchange.run(comm, room));
            let (room, talk) = pending.wait()?;
            self.room = room;
            self.talks.push(talk);
            if let Some(to) = &meeting.written {
                self.up[slot].fill(gpu, &self.room.given).await?;
                copy_up(gpu, buffers, to, &piece, &self.up[slot])?;
            }
        }
        Ok(())
    }

    /// Begins a collective: its bytes leave the device after what was submitted, and the thread does the rest.
    fn begin(&mut self, gpu: &Gpu, buffers: &[Buffer], (at, meeting): (usize, &Meeting), ty: DType) -> Result<()> {
        let slot = &mut self.slots[at];
        let (piece, mut room, down) = (all(meeting), std::mem::take(&mut slot.room), slot.down.clone());
        if let Some(from) = &meeting.read {
            copy_down(gpu, buffers, from, &piece, &down)?;
        }
        let (gpu, reads, exchange) = (gpu.clone(), meeting.read.is_some(), Exchange::of(meeting, piece, ty));
        let pending = self.thread(meeting.axis)?.start(move |comm| {
            if reads {
                block_on(down.read(&gpu, piece.down.bytes(), |read| room.take(read)))?;
            }
            exchange.run(comm, room)
        });
        self.flights.push_back((at, pending));
        Ok(())
    }

    /// Ends the oldest collective in flight.
    async fn end(&mut self, gpu: &Gpu, buffers: &[Buffer], meeting: &Meeting) -> Result<()> {
        let Some((at, pending)) = self.flights.pop_front() else {
            return Err(Error::Graph("a collective ends that did not begin".into()));
        };
        let (room, talk) = pending.wait()?;
        self.talks.push(talk);
        let slot = &mut self.slots[at];
        slot.room = room;
        if let Some(to) = &meeting.written {
            slot.up.fill(gpu, &slot.room.given).await?;
            copy_up(gpu, buffers, to, &all(meeting), &slot.up)?;
        }
        Ok(())
    }

    fn thread(&self, axis: Axis) -> Result<&Background> {
        self.threads.get(&axis).ok_or_else(|| missing(axis))
    }

    /// Forgets when ranks met in earlier runs.
    ///
    /// # Errors
    /// If one of those failed: what it had in flight may still be read from where another would put its own, and ranks that have
    /// not met as often as others would take what is of one meeting for what is of another.
    pub(super) fn begin_run(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.is_running, true) {
            let text = "a run failed while ranks met, which are not in step since: nothing more can be run with them";
            return Err(Error::Rank(text.into()));
        }
        self.talks.clear();
        Ok(())
    }

    /// Says that a run has met all whom it was to meet.
    pub(super) fn end_run(&mut self) {
        self.is_running = false;
    }

    /// When ranks met in this run.
    pub(super) fn talks(&self) -> &[Talk] {
        &self.talks
    }
}

impl Room {
    fn take(&mut self, read: &[u8]) {
        self.mine.clear();
        self.mine.extend_from_slice(read);
    }
}

impl Exchange {
    fn of(meeting: &Meeting, piece: Piece, ty: DType) -> Exchange {
        let of = if ty == DType::F16 { Element::F16 } else { Element::F32 };
        Exchange { what: meeting.what, ranks: meeting.ranks, of, piece }
    }

    /// From `mine`, which lies as on the device, to `given`, which will.
    fn run(self, comm: &dyn Communicator, mut room: Room) -> Result<(Room, Talk)> {
        let (Room { mine, given, order }, Exchange { ranks, of, piece, .. }) = (&mut room, self);
        let (part, began) = (piece.part as usize, Instant::now());
        given.resize(piece.up.bytes() as usize, 0);
        match self.what {
            Collective::AllReduce => {
                given.copy_from_slice(mine);
                comm.all_reduce(given, of)?;
            }
            Collective::AllGather { .. } => {
                order.resize(given.len(), 0);
                comm.all_gather(mine, order)?;
                turn(order, ranks, mine.len() / part, part, given);
            }
            Collective::ReduceScatter { .. } => {
                turn(mine, given.len() / part, ranks, part, order);
                comm.reduce_scatter(order, of, given)?;
            }
            Collective::AllToAll => comm.all_to_all(mine, given)?,
            Collective::Send { to } => comm.send(to, mine)?,
            Collective::Receive { from } => comm.receive(from, given)?,
            Collective::Shift { back } => {
                let (to, from) = ((comm.rank() + 1) % ranks, (comm.rank() + ranks - 1) % ranks);
                let (to, from) = if back { (from, to) } else { (to, from) };
                comm.send(to, mine)?;
                comm.receive(from, given)?
            }
        }
        Ok((room, [began, Instant::now()]))
    }
}

/// A meeting in pieces of so many bytes at most.
fn cut(meeting: &Meeting, most: u64) -> Vec<Piece> {
    let bytes = [&meeting.read, &meeting.written].map(|b| b.as_ref().map_or(0, |b| b.bytes));
    pieces(meeting.what, meeting.blocks, bytes, meeting.ranks as u64, most)
}

/// All of a meeting as one piece.
fn all(meeting: &Meeting) -> Piece {
    cut(meeting, u64::MAX)[0]
}

fn copy_down(gpu: &Gpu, buffers: &[Buffer], from: &Binding, piece: &Piece, slot: &Readback) -> Result<()> {
    let mut submission = gpu.submission();
    for (at, to) in piece.down.iter() {
        let range = buffers[from.buffer].range(from.offset + at, piece.down.each);
        submission.copy_out_at(range, slot, to)?;
    }
    submission.submit().map(|_| ())
}

fn copy_up(gpu: &Gpu, buffers: &[Buffer], to: &Binding, piece: &Piece, slot: &Upload) -> Result<()> {
    let mut submission = gpu.submission();
    for (at, from) in piece.up.iter() {
        submission.copy_in(slot, from, buffers[to.buffer].range(to.offset + at, piece.up.each))?;
    }
    submission.submit().map(|_| ())
}

/// Bytes of each slot, from the device and back, and of each meeting of a plan that begins a collective the slot that it takes: one
/// that none has that is in flight then. It is the meeting's whatever else is in flight in a run, for some meet in the last of
/// several batches only.
fn slot_bytes(plan: &[Meeting]) -> (Vec<[u64; 2]>, Vec<usize>) {
    let (mut slots, mut free, mut flying): (Vec<[u64; 2]>, Vec<bool>, _) = (Vec::new(), Vec::new(), VecDeque::new());
    let mut places = vec![0; plan.len()];
    for (meeting, place) in plan.iter().zip(&mut places) {
        match meeting.phase {
            Phase::Whole => {}
            Phase::End => free[flying.pop_front().expect("it began")] = true,
            Phase::Begin => {
                let at = free.iter().position(|free| *free).unwrap_or(slots.len());
                if at == slots.len() {
                    slots.push([0; 2]);
                    free.push(false);
                }
                (free[at], *place) = (false, at);
                let piece = all(meeting);
                let [down, up] = &mut slots[at];
                (*down, *up) = ((*down).max(piece.down.bytes()), (*up).max(piece.up.bytes()));
                flying.push_back(at);
            }
        }
    }
    (slots, places)
}

fn missing(axis: Axis) -> Error {
    Error::Graph(format!("the plan meets other ranks along {axis}, and it was joined to none there"))
}

fn group(groups: &Groups, axis: Axis) -> Result<&Arc<dyn Communicator>> {
    groups.along(axis).ok_or_else(|| missing(axis))
}

/// All meetings of a plan, each with the number of its step and its elements' dtype.
pub(super) fn meetings(plan: &Plan) -> impl Iterator<Item = (usize, &Meeting, DType)> {
    plan.steps.iter().enumerate().filter_map(|(i, step)| {
        let ty = |tys: &[TensorType]| tys.first().map(|ty| ty.dtype);
        let dtype = ty(&step.inputs).or(ty(&step.outputs)).unwrap_or(DType::F32);
        step.meeting.as_ref().map(|meeting| (i, meeting, dtype))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All bytes of either side are met once, and a piece is never larger than allowed.
    #[test]
    fn pieces_cover_everything_once() {
        let (gather, scatter) = (Collective::AllGather { dim: 1 }, Collective::ReduceScatter { dim: 1 });
        for (what, blocks, read, written, ranks, most) in [
            (Collective::AllReduce, 1, 100, 100, 3, 48),
            (gather, 5, 5 * 12, 5 * 36, 3, 80),
            (gather, 2, 2 * 100, 2 * 300, 3, 80),
            (scatter, 5, 5 * 36, 5 * 12, 3, 80),
            (scatter, 2, 2 * 300, 2 * 100, 3, 80),
            (Collective::AllToAll, 1, 300, 300, 3, 80),
            (Collective::Shift { back: false }, 1, 100, 100, 3, 48),
            (Collective::Send { to: 1 }, 1, 100, 0, 3, 48),
            (Collective::Receive { from: 1 }, 1, 0, 100, 3, 48),
        ] {
            let pieces = pieces(what, blocks, [read, written], ranks, most);
            for (bytes, side) in [(read, (|p| p.down) as fn(&Piece) -> Ranges), (written, |p| p.up)] {
                let mut seen = vec![0; bytes as usize];
                for ranges in pieces.iter().map(side) {
                    assert!(ranges.bytes() <= most && ranges.each.is_multiple_of(4), "{what:?}");
                    ranges.iter().for_each(|(at, _)| {
                        seen[at as usize..(at + ranges.each) as usize].iter_mut().for_each(|n| *n += 1);
                    });
                }
                assert!(seen.iter().all(|n| *n == 1), "{what:?}: {seen:?}");
            }
        }
    }
}
