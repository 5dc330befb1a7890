//! Parts of tensors that fit a binding: what keeps kernels within the adapter's limits. All are counted in words of four
//! bytes, which are elements where the dtype is f32 or u32, or in elements of a size that is told.

use crate::base::{DType, Limits, TensorType};
use crate::graph::{Dispatch, Kernel, Operand, aligned};
use std::ops::Range;

/// Rows that one binding can hold wherever the first of them starts: all of them where the tensor fits whole.
pub fn rows_per_binding(rows: usize, row_words: usize, limits: &Limits) -> usize {
    let row_bytes = (row_words as u64 * 4).max(1);
    if rows as u64 * row_bytes <= limits.max_binding_bytes {
        return rows.max(1);
    }
    // Offsets are rounded down to the alignment, in elements of two bytes, so that twice as much of a binding may be lost.
    ((limits.max_binding_bytes.saturating_sub(2 * limits.binding_alignment) / row_bytes) as usize).max(1)
}

/// Elements of f32 that one binding can hold, a whole number of those from which a view may begin.
pub fn elements_per_binding(limits: &Limits) -> usize {
    let unit = aligned(DType::F32);
    limits.max_binding_bytes as usize / 4 / unit * unit
}

/// How many of `count` entries a dispatch takes that cannot take all: as many as a binding holds of the widest operand, at most `most`,
/// in steps at which every operand's offset is aligned. `bytes` are those of an entry of each.
pub fn entries(count: usize, bytes: &[u64], most: usize, limits: &Limits) -> usize {
    let widest = bytes.iter().copied().max().unwrap_or(0).max(1);
    let fit = ((limits.max_binding_bytes / widest) as usize).min(most).max(1);
    let align = limits.binding_alignment; // a power of two
    let step = |bytes: &u64| align >> bytes.trailing_zeros().min(align.trailing_zeros());
    let unit = bytes.iter().map(step).max().unwrap_or(1) as usize;
    if fit >= count { count } else { (fit / unit * unit).max(1) }
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
        Window::of(words, 4, limits)
    }

    /// The same of elements of so many bytes; right for larger ones as well.
    pub fn of(elements: Range<usize>, bytes: u64, limits: &Limits) -> Self {
        let align = (limits.binding_alignment / bytes).max(1) as usize;
        let start = elements.start / align * align;
        Window { start, skip: elements.start - start, count: elements.end - start }
    }

    /// Binds this part of an operand.
    pub fn bind(self, dispatch: Dispatch, name: &'static str, operand: Operand) -> Dispatch {
        self.bind_as(dispatch, name, operand, 4)
    }

    /// Binds this part of an operand whose elements have so many bytes.
    pub fn bind_as(self, dispatch: Dispatch, name: &'static str, operand: Operand, bytes: u64) -> Dispatch {
        dispatch.bind(name, operand, self.start as u64 * bytes, self.count as u64 * bytes)
    }
}

/// Bytes of an element of a tensor in f32 or f16.
pub fn element(ty: &TensorType) -> u64 {
    if ty.dtype == DType::F16 { 2 } else { 4 }
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

/// How lanes share out rows that each is read, reduced and read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowLanes {
    /// Lanes of a workgroup.
    pub workgroup: usize,
    /// Lanes of one row.
    pub lanes: usize,
    /// Items of its row that a lane keeps, so that they are not read again; 0 where they are too many, or lanes a CPU's.
    pub items: usize,
    /// Lanes that reduce from lane to lane (`lib/reduce.wgsl`).
    pub shuffle: usize,
}

/// The most items that a lane keeps.
const KEPT: usize = 8;

impl RowLanes {
    /// Candidates for rows of so many items.
    pub fn of(columns: usize, limits: &Limits) -> Vec<RowLanes> {
        let wide = limits.max_invocations.min(256) as usize;
        if limits.is_cpu {
            return reduce_lanes(limits).map(|n| RowLanes { workgroup: n, lanes: n, items: 0, shuffle: 0 }).into();
        }
        // Some four items each: a lane loads all of them at once.
        let lanes = (columns / 4).next_power_of_two().clamp(16, wide);
        let items = Some(columns.div_ceil(lanes)).filter(|&n| n <= KEPT).unwrap_or(0);
        let shared = RowLanes { workgroup: lanes.max(64), lanes, items, shuffle: 0 };
        // Adapters without subgroups say that theirs have four lanes.
        let shuffle = if limits.min_subgroup >= 8 { limits.min_subgroup as usize } else { 0 };
        let shuffled = (shuffle > 0).then_some(RowLanes { shuffle: shuffle.min(lanes), ..shared });
        [Some(shared), shuffled].into_iter().flatten().collect()
    }

    /// The same with as many rows to a workgroup as it has room for, where lanes are not a CPU's.
    pub fn together(columns: usize, limits: &Limits) -> Vec<RowLanes> {
        let wide = if limits.is_cpu { 0 } else { limits.max_invocations.min(256) as usize };
        RowLanes::of(columns, limits).into_iter().map(|s| RowLanes { workgroup: s.workgroup.max(wide), ..s }).collect()
    }

    /// Rows of a workgroup.
    pub fn rows(self) -> usize {
        self.workgroup / self.lanes
    }

    /// A kernel of this shape over items of so many elements.
    pub fn kernel(self, shader: &'static str, item: usize) -> Kernel {
        let what = if self.shuffle > 0 { "shuffled" } else { "lanes" };
        let rows = if self.rows() > 1 { format!("{}x", self.rows()) } else { String::new() };
        Kernel::new(shader, format!("{what}_{rows}{}", self.lanes))
            .constant("WORKGROUP", self.workgroup)
            .constant("LANES", self.lanes)
            .constant("ITEMS", self.items)
            .constant("SHUFFLE", self.shuffle)
            .constant("VECTOR", usize::from(item == 4))
    }
}

/// Loads that a lane of a GPU has under way at once in kernels that only read through what they are given; those of a CPU, which
/// has nothing to gain by it, one by one.
pub fn loads(limits: &Limits) -> usize {
    if limits.is_cpu { 1 } else { 4 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_cut_where_all_operands_are_aligned() {
        let limits = Limits { max_binding_bytes: 40_000, binding_alignment: 32, ..Limits::default() };
        let step = |bytes: &[u64], most| {
            let step = entries(1000, bytes, most, &limits);
            assert!(
                step == 1000 || bytes.iter().all(|bytes| (step as u64 * bytes).is_multiple_of(32)),
                "{bytes:?}: {step}"
            );
            step
        };
        assert_eq!(step(&[40, 12], 5000), 1000, "all fit");
        assert_eq!(step(&[40, 12], 999), 992, "one workgroup too many");
        assert_eq!(step(&[400, 36], 1000), 96, "of 100, eights alone are aligned in both");
        assert_eq!(step(&[2304, 0], 1000), 17, "aligned wherever they are cut");
        assert_eq!(entries(7, &[1 << 20], 7, &limits), 1, "what no binding holds is refused elsewhere");
    }

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
                // The same of two bytes an element, and where it binds elements of four as well.
                let w = Window::of(r.start * row..r.end * row, 2, &limits);
                assert!(
                    w.start.is_multiple_of(128) && w.start + w.skip == r.start * row && w.count * 4 <= 1024,
                    "{w:?}"
                );
                next = r.end;
            }
            assert_eq!(next, 1000);
        }
    }
}
