//! Parts of tensors that fit a binding: what keeps kernels within the adapter's limits. All are counted in words of four
//! bytes, which are elements where the dtype is f32 or u32.

use crate::base::Limits;
use crate::graph::{Dispatch, Operand};
use std::ops::Range;

/// Rows that one binding can hold wherever the first of them starts: all of them where the tensor fits whole.
pub fn rows_per_binding(rows: usize, row_words: usize, limits: &Limits) -> usize {
    let row_bytes = (row_words as u64 * 4).max(1);
    if rows as u64 * row_bytes <= limits.max_binding_bytes {
        return rows.max(1);
    }
    // Offsets are rounded down to the alignment, so that much of a binding may be lost.
    ((limits.max_binding_bytes.saturating_sub(limits.binding_alignment) / row_bytes) as usize).max(1)
}

/// `0..count` cut into ranges of at most `step`.
pub fn ranges(count: usize, step: usize) -> impl Iterator<Item = Range<usize>> {
    (0..count).step_by(step.max(1)).map(move |start| start..count.min(start + step))
}

/// A range of words as a binding, whose offset must be aligned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// First word that is bound.
    pub start: usize,
    /// Words between that and the first that was asked for.
    pub skip: usize,
    /// Words bound.
    pub count: usize,
}

impl Window {
    /// The binding that covers these words.
    pub fn new(words: Range<usize>, limits: &Limits) -> Self {
        let align = (limits.binding_alignment / 4).max(1) as usize;
        let start = words.start / align * align;
        Window { start, skip: words.start - start, count: words.end - start }
    }

    /// Binds this part of an operand.
    pub fn bind(self, dispatch: Dispatch, name: &'static str, operand: Operand) -> Dispatch {
        dispatch.bind(name, operand, self.start as u64 * 4, self.count as u64 * 4)
    }
}

/// Elements that a lane takes at a time (`lib/item.wgsl`) where rows of `width` stand one after the other.
pub fn item(width: usize) -> usize {
    if width.is_multiple_of(4) { 4 } else { 1 }
}

/// Lanes of a workgroup that reduces together: few where lanes are those of a CPU, which pays for every barrier.
pub fn reduce_lanes(limits: &Limits) -> [usize; 2] {
    let wide = limits.max_invocations.min(256) as usize;
    if limits.is_cpu { [8, wide] } else { [wide, 32] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_aligned_and_fit() {
        let limits = Limits { max_binding_bytes: 1024, ..Limits::default() };
        for row in [1, 3, 17, 48] {
            let step = rows_per_binding(1000, row, &limits);
            let mut next = 0;
            for r in ranges(1000, step) {
                assert_eq!(r.start, next);
                let w = Window::new(r.start * row..r.end * row, &limits);
                assert!(
                    w.start.is_multiple_of(64) && w.start + w.skip == r.start * row && w.count * 4 <= 1024,
                    "{w:?}"
                );
                next = r.end;
            }
            assert_eq!(next, 1000);
        }
    }
}
