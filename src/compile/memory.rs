//! The memory plan: lifetimes → offsets in a few buffers.
//!
//! Greedy by size (Pisarchyk and Lee, 2020), with one rule of WebGPU's added: a buffer may not be bound for reading
//! and for writing in one dispatch, even on disjoint ranges, so blocks that meet on two sides of a step must lie in
//! different buffers.

use std::collections::HashSet;

/// Memory wanted in one piece, of which each part may be wanted for a time of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// Bytes.
    pub bytes: u64,
    /// Its parts that are used at all, ascending; they do not overlap.
    pub spans: Vec<Span>,
}

/// A part of a block, and the steps between which it is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// First byte within the block.
    pub start: u64,
    /// The byte after the last.
    pub end: u64,
    /// First step that uses it.
    pub first: usize,
    /// Last step that reads or writes it.
    pub last: usize,
}

impl Block {
    /// A block of one span.
    pub fn whole(bytes: u64, first: usize, last: usize) -> Block {
        Block { bytes, spans: vec![Span { start: 0, end: bytes, first, last }] }
    }

    fn first(&self) -> usize {
        self.spans.iter().map(|s| s.first).min().unwrap_or(0)
    }
}

impl Span {
    /// Its bytes, counted as far as whole multiples of the alignment go.
    pub fn aligned(&self, alignment: u64) -> std::ops::Range<u64> {
        self.start / alignment * alignment..self.end.next_multiple_of(alignment)
    }
}

/// Where a block lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// Which buffer.
    pub buffer: usize,
    /// First byte.
    pub offset: u64,
}

/// Places every block: spans that live at the same time do not overlap, blocks in `apart` lie in different buffers,
/// offsets are multiples of `alignment`, no buffer exceeds `capacity`. Gives the regions and the buffers' sizes, or
/// the index of a block that fits no buffer.
pub fn pack(
    blocks: &[Block],
    apart: &HashSet<(usize, usize)>,
    alignment: u64,
    capacity: u64,
) -> Result<(Vec<Region>, Vec<u64>), usize> {
    let mut order: Vec<usize> = (0..blocks.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(blocks[i].bytes), blocks[i].first(), i));
    let mut regions: Vec<Option<Region>> = vec![None; blocks.len()];
    let mut sizes: Vec<u64> = Vec::new();
    let mut members: Vec<Vec<usize>> = Vec::new();
    let mut enemies: Vec<Vec<usize>> = vec![Vec::new(); blocks.len()];
    for &(a, b) in apart {
        enemies[a].push(b);
        enemies[b].push(a);
    }
    for i in order {
        let bytes = blocks[i].bytes.next_multiple_of(alignment);
        if bytes > capacity {
            return Err(i);
        }
        let barred: HashSet<usize> = enemies[i].iter().filter_map(|&e| regions[e].map(|r| r.buffer)).collect();
        let mut best: Option<(u64, Region)> = None;
        for buffer in (0..sizes.len()).filter(|b| !barred.contains(b)) {
            let offset = lowest_gap(blocks, &regions, &members[buffer], i, alignment);
            let growth = (offset + bytes).saturating_sub(sizes[buffer]);
            if offset + bytes <= capacity && best.is_none_or(|(least, _)| growth < least) {
                best = Some((growth, Region { buffer, offset }));
            }
        }
        let region = best.map(|(_, region)| region).unwrap_or_else(|| {
            sizes.push(0);
            members.push(Vec::new());
            Region { buffer: sizes.len() - 1, offset: 0 }
        });
        sizes[region.buffer] = sizes[region.buffer].max(region.offset + bytes);
        members[region.buffer].push(i);
        regions[i] = Some(region);
    }
    Ok((regions.into_iter().map(|r| r.expect("every block was placed")).collect(), sizes))
}

/// The lowest offset where no span of block `i` meets one of a member that lives at the same time.
fn lowest_gap(blocks: &[Block], regions: &[Option<Region>], members: &[usize], i: usize, alignment: u64) -> u64 {
    // Offsets between these two, both left out, would have two spans meet.
    let mut barred: Vec<(i64, i64)> = Vec::new();
    for (region, &m) in members.iter().filter_map(|m| Some((regions[*m]?, m))) {
        for theirs in &blocks[m].spans {
            let meets = |own: &&Span| theirs.first <= own.last && own.first <= theirs.last;
            for own in blocks[i].spans.iter().filter(meets) {
                let (theirs, own) = (theirs.aligned(alignment), own.aligned(alignment));
                let at = |byte: u64, own: u64| (region.offset + byte) as i64 - own as i64;
                barred.push((at(theirs.start, own.end), at(theirs.end, own.start)));
            }
        }
    }
    barred.sort_unstable();
    let mut offset = 0;
    for (low, high) in barred {
        if offset <= low {
            break;
        }
        offset = offset.max(high);
    }
    offset as u64
}
