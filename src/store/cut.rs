//! A rank's part of a weight: some of its rows, and of each some columns. Read like a weight that has no more.

use super::weights::Weight;
use crate::base::DType;
use crate::nn::{ParamSpec, Parts};
use std::ops::Range;

/// Which rows of a weight there are, and which of their columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cut {
    rows: Vec<Range<usize>>,
    pub columns: Range<usize>,
}

impl Cut {
    /// A rank's part of a parameter of a model; nothing where that is all of it.
    pub fn of(parts: &Parts, spec: &ParamSpec) -> Option<Cut> {
        let ranges = parts.ranges(spec);
        if ranges.iter().zip(spec.shape.dims()).all(|(range, size)| *range == (0..*size)) {
            return None;
        }
        // A vector's rows are its elements.
        let (outer, columns) = match &ranges[..] {
            [all] => (std::slice::from_ref(all), 0..1),
            [outer @ .., last] => (outer, last.clone()),
            [] => return None,
        };
        let (last, before) = outer.split_last()?;
        let mut blocks = vec![0];
        for (dim, range) in before.iter().enumerate() {
            let size = spec.shape.dims()[dim];
            blocks = blocks.into_iter().flat_map(|block| range.clone().map(move |i| block * size + i)).collect();
        }
        let size = spec.shape.dims()[before.len()];
        let rows = blocks.into_iter().map(|block| block * size + last.start..block * size + last.end).collect();
        Some(Cut { rows, columns })
    }

    /// How many rows.
    pub fn count(&self) -> usize {
        self.rows.iter().map(Range::len).sum()
    }

    /// Which row of the whole is this one.
    pub fn row(&self, mut row: usize) -> usize {
        for range in &self.rows {
            if row < range.len() {
                return range.start + row;
            }
            row -= range.len();
        }
        unreachable!("a row beyond the last")
    }

    /// The columns' bytes in a row as a file has it.
    pub fn bytes<'a>(&self, dtype: DType, row: &'a [u8]) -> &'a [u8] {
        &row[dtype.file_size(self.columns.start) as usize..dtype.file_size(self.columns.end) as usize]
    }
}

impl Weight<'_> {
    /// The same weight, of which only a rank's part is read.
    pub fn cut(mut self, parts: &Parts, spec: &ParamSpec) -> Self {
        self.cut = Cut::of(parts, spec);
        self
    }
}
