//! The steps of a plan at which ranks meet: bytes go to the host in pieces, meet those of the others there, and come back.
//! While ranks meet over a piece, the next one is on its way.

use crate::base::{Axis, DType, TensorType};
use crate::comm::{Communicator, Element, Groups};
use crate::compile::{Meeting, Plan};
use crate::error::{Error, Result};
use crate::gpu::{Buffer, Gpu, Readback, Upload};
use crate::graph::Collective;
use std::sync::Arc;
use std::time::Instant;

/// Bytes of a piece: large enough that a meeting costs little of its time, and a few of them no memory to speak of.
const PIECE: u64 = 8 << 20;

/// What a rank needs to meet the others.
pub(super) struct Ranks {
    groups: Groups,
    down: [Readback; 2],
    up: [Upload; 2],
    /// What comes from the device, what goes there, and both in the order of ranks.
    piece: Vec<u8>,
    given: Vec<u8>,
    order: Vec<u8>,
    /// Seconds spent here, since they were last asked for.
    seconds: f64,
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

/// Turns `[rows][columns]` parts of `part` bytes into `[columns][rows]`.
fn turn(from: &[u8], rows: usize, columns: usize, part: usize, to: &mut Vec<u8>) {
    to.clear();
    let places = (0..columns).flat_map(|c| (0..rows).map(move |r| (r * columns + c) * part));
    places.for_each(|at| to.extend_from_slice(&from[at..at + part]));
}

impl Ranks {
    /// Ready for all meetings of a plan.
    pub(super) async fn new(gpu: &Gpu, groups: Groups, plan: &[Meeting]) -> Result<Ranks> {
        for meeting in plan {
            let ranks = group(&groups, meeting.axis)?.size();
            if ranks != meeting.ranks {
                let (axis, wanted) = (meeting.axis, meeting.ranks);
                return Err(Error::Graph(format!(
                    "the plan is for {wanted} ranks along {axis}, and it was joined to {ranks}"
                )));
            }
        }
        let bytes = plan.iter().flat_map(|m| m.read.iter().chain(&m.written)).map(|b| b.bytes);
        let piece = bytes.max().unwrap_or(0).clamp(4, PIECE);
        let down = [gpu.readback(piece).await?, gpu.readback(piece).await?];
        let up = [gpu.upload(piece).await?, gpu.upload(piece).await?];
        let host = || Vec::with_capacity(piece as usize);
        Ok(Ranks { groups, down, up, piece: host(), given: host(), order: host(), seconds: 0.0 })
    }

    /// Holds a meeting, after everything that was submitted.
    pub(super) async fn meet(&mut self, gpu: &Gpu, buffers: &[Buffer], meeting: &Meeting, ty: DType) -> Result<()> {
        let began = Instant::now();
        let bytes = [&meeting.read, &meeting.written].map(|b| b.as_ref().map_or(0, |b| b.bytes));
        let most = self.up[0].bytes().max(4 * meeting.ranks as u64);
        let pieces = pieces(meeting.what, meeting.blocks, bytes, meeting.ranks as u64, most);
        for i in 0..=pieces.len() {
            if let (Some(piece), Some(from)) = (pieces.get(i), &meeting.read) {
                let mut submission = gpu.submission();
                for (at, slot) in piece.down.iter() {
                    let range = buffers[from.buffer].range(from.offset + at, piece.down.each);
                    submission.copy_out_at(range, &self.down[i % 2], slot)?;
                }
                submission.submit()?;
            }
            let Some(before) = i.checked_sub(1) else { continue };
            let (piece, slot) = (pieces[before], before % 2);
            if meeting.read.is_some() {
                let bytes = &mut self.piece;
                let copy = |read: &[u8]| {
                    bytes.clear();
                    bytes.extend_from_slice(read);
                };
                self.down[slot].read(gpu, piece.down.bytes(), copy).await?;
            }
            self.exchange(meeting, piece, ty)?;
            let Some(to) = &meeting.written else { continue };
            self.up[slot].fill(gpu, &self.given).await?;
            let mut submission = gpu.submission();
            for (at, from) in piece.up.iter() {
                let range = buffers[to.buffer].range(to.offset + at, piece.up.each);
                submission.copy_in(&self.up[slot], from, range)?;
            }
            submission.submit()?;
        }
        self.seconds += began.elapsed().as_secs_f64();
        Ok(())
    }

    /// From `piece`, which lies as on the device, to `given`, which will.
    fn exchange(&mut self, meeting: &Meeting, piece: Piece, ty: DType) -> Result<()> {
        let comm = group(&self.groups, meeting.axis)?.as_ref();
        let Ranks { piece: mine, given, order, .. } = self;
        let (part, ranks) = (piece.part as usize, meeting.ranks);
        let of = if ty == DType::F16 { Element::F16 } else { Element::F32 };
        given.resize(piece.up.bytes() as usize, 0);
        match meeting.what {
            Collective::AllReduce => {
                given.copy_from_slice(mine);
                comm.all_reduce(given, of)
            }
            Collective::AllGather { .. } => {
                order.resize(given.len(), 0);
                comm.all_gather(mine, order)?;
                turn(order, ranks, mine.len() / part, part, given);
                Ok(())
            }
            Collective::ReduceScatter { .. } => {
                turn(mine, given.len() / part, ranks, part, order);
                comm.reduce_scatter(order, of, given)
            }
            Collective::AllToAll => comm.all_to_all(mine, given),
            Collective::Shift { back } => {
                let (to, from) = ((comm.rank() + 1) % ranks, (comm.rank() + ranks - 1) % ranks);
                let (to, from) = if back { (from, to) } else { (to, from) };
                comm.send(to, mine)?;
                comm.receive(from, given)
            }
            Collective::Send { to } => comm.send(to, mine),
            Collective::Receive { from } => comm.receive(from, given),
        }
    }

    /// Seconds spent here since the last call.
    pub(super) fn take_seconds(&mut self) -> f64 {
        std::mem::take(&mut self.seconds)
    }
}

fn group(groups: &Groups, axis: Axis) -> Result<&Arc<dyn Communicator>> {
    let missing = || Error::Graph(format!("the plan meets other ranks along {axis}, and it was joined to none there"));
    groups.along(axis).ok_or_else(missing)
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
