//! Tensors of a model as a file is to hold them, made of the parameters as another one holds them: the inverse of
//! `weights.rs`. A packed tensor is put together again, a stacked one taken apart, row by row, and never whole in memory.

use super::narrow::unheld;
use super::tensors::{file_bytes, widen};
use super::weights::{Weight, kept_row, stored_row};
use crate::base::quantise::encode;
use crate::base::{DType, Shape};
use crate::error::Error;
use crate::model::Source;
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::ops::Range;

/// Bytes that are made at once.
const PIECE: usize = 16 << 20;

/// Rows of a parameter that lie together in a tensor.
#[derive(Debug)]
struct Part {
    weight: usize,
    /// Rows of the tensor.
    to: Range<usize>,
    /// First row of the parameter.
    from: usize,
    interleaved_heads: Option<usize>,
}

/// A tensor to be written.
#[derive(Debug)]
pub(super) struct Target {
    pub name: String,
    pub shape: Shape,
    pub dtype: DType,
    parts: Vec<Part>,
}

/// The tensors that hold these parameters, in the parameters' order, in f32 as yet.
pub(super) fn targets(weights: &[Weight], sources: &dyn Fn(&str) -> Vec<Source>) -> Vec<Target> {
    let mut targets: Vec<Target> = Vec::new();
    let mut places: BTreeMap<String, usize> = BTreeMap::new();
    for (i, weight) in weights.iter().enumerate() {
        let sources = sources(weight.name);
        let each = weight.rows() / sources.len();
        let mut from = 0;
        for source in &sources {
            let to = source.rows.clone().unwrap_or(0..each);
            let part = Part { weight: i, to: to.clone(), from, interleaved_heads: source.interleaved_heads };
            from += to.len();
            let whole = sources.len() == 1 && source.rows.is_none();
            let at = *places.entry(source.tensor.clone()).or_insert_with(|| {
                targets.push(Target {
                    name: source.tensor.clone(),
                    shape: if whole { weight.shape.clone() } else { Shape::from(Vec::new()) },
                    dtype: DType::F32,
                    parts: Vec::new(),
                });
                targets.len() - 1
            });
            let target = &mut targets[at];
            target.parts.push(part);
            if !whole {
                let rows: usize = target.parts.iter().map(|p| p.to.len()).sum();
                let width = (weight.shape.rank() > 1).then(|| weight.shape.last());
                target.shape = [Some(rows), width].into_iter().flatten().collect::<Vec<_>>().into();
            }
        }
    }
    targets
}

impl Target {
    /// Dtypes of what it is made of.
    pub fn stored<'a>(&'a self, weights: &'a [Weight]) -> impl Iterator<Item = DType> + 'a {
        self.parts.iter().map(|p| weights[p.weight].dtype)
    }

    /// True if it holds other numbers than what it is made of.
    pub fn is_changed(&self, weights: &[Weight]) -> bool {
        self.parts.iter().any(|p| weights[p.weight].is_changed())
    }

    /// Bytes in the file.
    pub fn bytes(&self) -> u64 {
        file_bytes(self.dtype, &self.shape).expect("a dtype that the shape allows")
    }

    fn rows(&self) -> usize {
        if self.shape.rank() == 1 { self.shape.last() } else { self.shape.rows() }
    }

    /// The weight of which a row is, and the row there.
    fn row<'a, 'w>(&self, weights: &'a [Weight<'w>], row: usize) -> (&'a Weight<'w>, usize) {
        let part = self.parts.iter().find(|p| p.to.contains(&row)).expect("parts cover the tensor");
        let (at, rows) = (row - part.to.start, part.to.len());
        let at = part.interleaved_heads.map_or(at, |heads| kept_row(at, rows / heads));
        debug_assert!(part.interleaved_heads.is_none_or(|h| stored_row(at, rows / h) == row - part.to.start));
        (&weights[part.weight], part.from + at)
    }

    /// Writes it, piece by piece. Numbers that become another dtype must be finite, before and after.
    ///
    /// # Errors
    /// If one is not, by an [`Error`] in the system's; or if it cannot be written.
    pub fn write(&self, weights: &[Weight], writer: &mut dyn Write) -> io::Result<()> {
        let (rows, mut at) = (self.rows(), 0);
        let row_bytes = (self.bytes() / rows as u64) as usize;
        let width = self.shape.elements() / rows;
        let step = (PIECE / row_bytes).clamp(1, rows);
        let mut piece = vec![0; step * row_bytes];
        while at < rows {
            let count = step.min(rows - at);
            let piece = &mut piece[..count * row_bytes];
            let rows = piece.par_chunks_exact_mut(row_bytes).with_min_len(16).enumerate();
            let wrong =
                rows.map(|(i, out)| self.write_row(weights, at + i, width, out)).find_map_first(|row| row.err());
            if let Some(error) = wrong {
                return Err(io::Error::other(error));
            }
            writer.write_all(piece)?;
            at += count;
        }
        Ok(())
    }

    fn write_row(&self, weights: &[Weight], row: usize, width: usize, out: &mut [u8]) -> Result<(), Error> {
        let (weight, from) = self.row(weights, row);
        let (dtype, bytes) = weight.row(from);
        if dtype == self.dtype && !weight.is_changed() {
            out.copy_from_slice(bytes);
            return Ok(());
        }
        let mut wide = vec![0.0; width];
        weight.values(from, &mut wide);
        let Some((column, what)) = unheld(self.dtype, &wide) else {
            encode(self.dtype, &wide, out);
            return Ok(());
        };
        let at = row * width + column;
        let message = format!("tensor {}: its element {at} (row {row}, column {column}) is {what}", self.name);
        Err(Error::file(weight.file(), message))
    }

    /// True if nothing is lost when its numbers become `dtype`, which is narrow.
    pub fn survives(&self, weights: &[Weight], dtype: DType) -> bool {
        let rows = self.rows();
        let width = self.shape.elements() / rows;
        (0..rows).all(|row| {
            let (weight, row) = self.row(weights, row);
            let (mut wide, mut narrow, mut again) = (vec![0.0; width], vec![0; 2 * width], vec![0.0f32; width]);
            weight.values(row, &mut wide);
            encode(dtype, &wide, &mut narrow);
            widen(dtype, &narrow, &mut again);
            wide.iter().zip(&again).all(|(a, b)| a.to_bits() == b.to_bits())
        })
    }
}
