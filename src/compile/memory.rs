//! The memory plan: lifetimes → offsets in a few buffers.
//!
//! Greedy by size (Pisarchyk and Lee, 2020), with one rule of WebGPU's added: a buffer may not be bound for reading
//! and for writing in one dispatch, even on disjoint ranges, so blocks that meet on two sides of a step must lie in
//! different buffers.

use std::collections::HashSet;

/// Memory wanted from one step to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// Bytes.
    pub bytes: u64,
    /// First step that writes it.
    pub first: usize,
    /// Last step that reads or writes it.
    pub last: usize,
}

/// Where a block lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// Which buffer.
    pub buffer: usize,
    /// First byte.
    pub offset: u64,
}

/// Places every block: blocks that live at the same time do not overlap, blocks in `apart` lie in different buffers,
/// offsets are multiples of `alignment`, no buffer exceeds `capacity`. Gives the regions and the buffers' sizes, or
/// the index of a block that fits no buffer.
pub fn pack(
    blocks: &[Block],
    apart: &HashSet<(usize, usize)>,
    alignment: u64,
    capacity: u64,
) -> Result<(Vec<Region>, Vec<u64>), usize> {
    let mut order: Vec<usize> = (0..blocks.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(blocks[i].bytes), blocks[i].first, i));
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
            let offset = lowest_gap(blocks, &regions, &members[buffer], i, bytes, alignment);
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

/// The lowest offset where block `i` meets no member that lives at the same time.
fn lowest_gap(
    blocks: &[Block],
    regions: &[Option<Region>],
    members: &[usize],
    i: usize,
    bytes: u64,
    alignment: u64,
) -> u64 {
    let mut taken: Vec<(u64, u64)> = members
        .iter()
        .filter(|&&m| blocks[m].first <= blocks[i].last && blocks[i].first <= blocks[m].last)
        .filter_map(|&m| regions[m].map(|r| (r.offset, r.offset + blocks[m].bytes.next_multiple_of(alignment))))
        .collect();
    taken.sort_unstable();
    let mut offset = 0;
    for (start, end) in taken {
        if offset + bytes <= start {
            break;
        }
        offset = offset.max(end);
    }
    offset
}
