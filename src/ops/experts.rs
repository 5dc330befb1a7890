//! What the products of a mixture of experts share: sizes, and the parts of rows, slots and experts that fit a binding.
//! R rows, k choices of each, so R·k slots; E experts with matrices `[N,K]`.

use super::windows::{Window, ranges, rows_per_binding};
use crate::base::{DType, Limits, TensorType};
use crate::graph::{Dispatch, Operand};
use std::ops::Range;

/// Sizes of one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sizes {
    /// R.
    pub(super) rows: usize,
    /// k.
    pub(super) choices: usize,
    /// Slots that share a row of x: k where x has one for each row, 1 where it has one for each slot.
    pub(super) per_row: usize,
    /// E.
    pub(super) experts: usize,
    /// N and K.
    pub(super) matrix: [usize; 2],
    /// Width of a row of x.
    pub(super) width: usize,
}

impl Sizes {
    /// The sizes, from x, ids, order and starts (those of [`super::ExpertOrder`]), and the shape `[E,N,K]` of all matrices;
    /// or what is wrong.
    pub(super) fn new(
        x: &TensorType,
        weights: &[usize],
        ids: &TensorType,
        order: &TensorType,
        starts: &TensorType,
    ) -> Result<Sizes, String> {
        let &[experts, n, k] = weights else { return Err("the experts' matrices must be [E,N,K]".into()) };
        let &[rows, choices] = ids.shape.dims() else { return Err("ids must be u32 [R,k]".into()) };
        let sorted = *order == TensorType::u32([rows * choices]) && *starts == TensorType::u32([experts + 1]);
        if ids.dtype != DType::U32 || !sorted {
            return Err("ids must be u32 [R,k], order u32 [R·k] and starts u32 [E+1]".into());
        }
        let (per_row, width) = match *x.shape.dims() {
            [r, width] if r == rows => (choices, width),
            [r, c, width] if (r, c) == (rows, choices) => (1, width),
            _ => return Err(format!("x must be [R,..] or [R,k,..] with the rows of ids, not {x}")),
        };
        if x.dtype != DType::F32 || [experts, n, k, rows, choices].contains(&0) {
            return Err("x must be f32, and every size positive".into());
        }
        Ok(Sizes { rows, choices, per_row, experts, matrix: [n, k], width })
    }

    /// R·k.
    pub(super) fn slots(&self) -> usize {
        self.rows * self.choices
    }

    /// The mean number of slots of an expert, rounded up.
    pub(super) fn per_expert(&self) -> usize {
        self.slots().div_ceil(self.experts)
    }

    /// Ranges of rows, at most `most` of them, whose part of x and of slots of `width` elements each fit a binding.
    pub(super) fn row_ranges(&self, width: usize, most: usize, limits: &Limits) -> Vec<Range<usize>> {
        let x = rows_per_binding(self.rows, self.choices / self.per_row * self.width, limits);
        let y = rows_per_binding(self.rows, self.choices * width, limits);
        ranges(self.rows, x.min(y).min(most.max(1))).collect()
    }

    /// Ranges of experts, and of the stored rows of their matrices, that fit a binding: many whole experts, or a part of
    /// one, whose rows come in fours where four fit.
    pub(super) fn expert_ranges(&self, row_words: usize, limits: &Limits) -> Vec<(Range<usize>, Range<usize>)> {
        let n = self.matrix[0];
        let fit = rows_per_binding(self.experts * n, row_words, limits);
        if fit >= n {
            return ranges(self.experts, fit / n).map(|experts| (experts, 0..n)).collect();
        }
        let step = if fit >= 4 { fit / 4 * 4 } else { fit };
        (0..self.experts).flat_map(|e| ranges(n, step).map(move |rows| (e..e + 1, rows))).collect()
    }

    /// Whether every part of the matrices begins with a multiple of four rows, as kernels that read four rows' elements of
    /// x or dy at a time want it.
    pub(super) fn come_in_fours(parts: &[(Range<usize>, Range<usize>)]) -> bool {
        parts.iter().all(|(_, stored)| stored.start.is_multiple_of(4))
    }

    /// Binds the part of x that these rows have, skipping `column` elements of each, and says where it is.
    pub(super) fn bind_x(&self, d: Dispatch, rows: &Range<usize>, column: usize, limits: &Limits) -> Dispatch {
        let of_row = self.choices / self.per_row;
        let x = Window::new(rows.start * of_row * self.width..rows.end * of_row * self.width, limits);
        let d = d.param("row_x", self.width).param("skip_x", x.skip + column).param("first_row", rows.start * of_row);
        x.bind(d, "x", Operand::Input(0))
    }

    /// The part of slots of `width` elements each that these rows have.
    pub(super) fn slot_window(&self, rows: &Range<usize>, width: usize, limits: &Limits) -> Window {
        Window::new(rows.start * self.choices * width..rows.end * self.choices * width, limits)
    }

    /// Binds `order` and `starts`, inputs 3 and 4, and says which slots and experts the dispatch takes.
    pub(super) fn bind_order(&self, d: Dispatch, rows: &Range<usize>, experts: Range<usize>) -> Dispatch {
        d.bind("order", Operand::Input(3), 0, self.slots() as u64 * 4)
            .bind("starts", Operand::Input(4), 0, (self.experts + 1) as u64 * 4)
            .param("slots", self.slots())
            .param("first_slot", rows.start * self.choices)
            .param("end_slot", rows.end * self.choices)
            .param("experts", self.experts)
            .param("first_expert", experts.start)
            .param("end_expert", experts.end)
    }

    /// An expert's range of numbers with the one beyond the last, which stands for ids that are no expert, at the end.
    pub(super) fn with_tail(&self, experts: &Range<usize>) -> Range<usize> {
        experts.start..if experts.end == self.experts { experts.end + 1 } else { experts.end }
    }
}
