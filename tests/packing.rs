//! How blocks are packed into buffers, on random input: what lives at one time never overlaps.

use danlu::compile::{Block, Span, pack};
use proptest::prelude::*;
use std::collections::HashSet;

/// Blocks of one to three spans, with a part between that nobody wants at times.
fn blocks() -> impl Strategy<Value = Vec<Block>> {
    let span = (0u64..300, 1u64..2000, 0usize..40, 0usize..12);
    let block = prop::collection::vec(span, 1..4).prop_map(|drawn| {
        let (mut spans, mut bytes) = (Vec::new(), 0);
        for (gap, length, first, steps) in drawn {
            let start = bytes + gap;
            bytes = start + length;
            spans.push(Span { start, end: bytes, first, last: first + steps });
        }
        Block { bytes, spans }
    });
    prop::collection::vec(block, 1..60)
}

/// True if some byte is two spans' at one time.
fn meet(a: (&Block, u64), b: (&Block, u64)) -> bool {
    let pairs = a.0.spans.iter().flat_map(|s| b.0.spans.iter().map(move |t| (s, t)));
    let overlap = |(s, t): (&Span, &Span)| s.start + a.1 < t.end + b.1 && t.start + b.1 < s.end + a.1;
    pairs.filter(|(s, t)| s.first <= t.last && t.first <= s.last).any(overlap)
}

proptest! {
    #[test]
    fn packed_blocks_do_not_meet(
        blocks in blocks(),
        pairs in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 0..60),
        alignment in prop::sample::select(vec![4u64, 32, 256]),
        capacity in 2000u64..20_000,
    ) {
        let pick = |i: &prop::sample::Index| i.index(blocks.len());
        let apart: HashSet<(usize, usize)> =
            pairs.iter().map(|(a, b)| (pick(a).min(pick(b)), pick(a).max(pick(b)))).filter(|(a, b)| a != b).collect();
        let size = |i: usize| blocks[i].bytes.next_multiple_of(alignment);
        match pack(&blocks, &apart, alignment, capacity) {
            Err(i) => prop_assert!(size(i) > capacity, "block {i} would fit"),
            Ok((regions, sizes)) => {
                let mut ends = vec![0; sizes.len()];
                for (i, r) in regions.iter().enumerate() {
                    prop_assert_eq!(r.offset % alignment, 0);
                    ends[r.buffer] = ends[r.buffer].max(r.offset + size(i));
                    for (j, other) in regions.iter().enumerate().take(i) {
                        let overlap = meet((&blocks[i], r.offset), (&blocks[j], other.offset));
                        prop_assert!(!(r.buffer == other.buffer && overlap), "{i} and {j} overlap");
                    }
                }
                for (a, b) in apart {
                    prop_assert_ne!(regions[a].buffer, regions[b].buffer, "{} and {} share a buffer", a, b);
                }
                prop_assert!(sizes.iter().all(|&s| s <= capacity));
                prop_assert_eq!(sizes, ends, "buffers are as large as what lies in them, to the byte");
            }
        }
    }
}
