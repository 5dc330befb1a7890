//! A weight as the device is to hold it: as it is stored, widened, or narrowed on the way.

use super::adapter::Delta;
use super::weights::Weight;
use crate::base::quantise::{encode, holds};
use crate::base::{DType, nf4, packed};
use crate::error::{Error, Result};
use rayon::prelude::*;
use std::ops::Range;

/// A weight and the dtype that it becomes.
pub(super) struct Narrow<'a, 'w> {
    weight: &'a Weight<'w>,
    dtype: DType,
    /// Of NF4, scales of all blocks: they depend on the whole tensor.
    scales: Vec<f32>,
}

impl<'a, 'w> Narrow<'a, 'w> {
    /// Of a dtype whose blocks the rows are made of. For NF4 the weight is read once for its scales.
    ///
    /// # Errors
    /// As [`Narrow::write`], for NF4 already here.
    pub fn new(weight: &'a Weight<'w>, dtype: DType) -> Result<Self> {
        let mut narrow = Narrow { weight, dtype, scales: Vec::new() };
        if dtype == DType::Nf4 {
            // Also where a rank has a part of it.
            let of_row = |row| {
                let mut values = vec![0.0; weight.shape.last()];
                weight.whole_values(row, &mut values);
                narrow.check(row, 0, &values).map(|()| nf4::scales(&values).collect::<Vec<_>>())
            };
            let rows = (0..weight.whole_rows()).into_par_iter();
            let scales = rows.map(of_row).collect::<Result<Vec<_>>>()?.concat();
            let scales = nf4::quantised(&scales, nf4::mean(&scales));
            narrow.scales = match &weight.cut {
                None => scales,
                Some(cut) => {
                    let (blocks, own) = (weight.shape.last() / nf4::BLOCK, cut.columns.clone());
                    let own = own.start / nf4::BLOCK..own.end / nf4::BLOCK;
                    let first = |row: usize| cut.row(row) * blocks;
                    (0..weight.rows()).flat_map(|row| &scales[first(row)..][own.clone()]).copied().collect()
                }
            };
        }
        Ok(narrow)
    }

    /// Refuses values of the whole weight's row, from this column on, that become other numbers, as plausible as any, in
    /// the dtype.
    fn check(&self, row: usize, from: usize, values: &[f32]) -> Result<()> {
        let Some((column, what)) = unheld(self.dtype, values) else { return Ok(()) };
        let (name, column) = (self.weight.name, from + column);
        Err(Error::file(self.weight.file(), format!("{name}: its row {row} has in column {column} {what}")))
    }

    fn values(&self, row: usize) -> Vec<f32> {
        let mut values = vec![0.0; self.weight.width()];
        self.weight.values(row, &mut values);
        values
    }

    /// Some rows in the device's form. `out` has room for just these.
    ///
    /// # Errors
    /// With the place of a number that the dtype it becomes does not hold: one that is none, or too large.
    pub fn write(&self, rows: Range<usize>, out: &mut [u8]) -> Result<()> {
        if self.dtype == DType::F32 || self.dtype == self.weight.dtype && !self.weight.is_changed() {
            self.weight.write(rows, self.dtype, out);
            return Ok(());
        }
        let row_bytes = out.len() / rows.len();
        let rows = out.par_chunks_exact_mut(row_bytes).with_min_len(16).zip(rows.into_par_iter().with_min_len(16));
        let wrong = rows.map(|(out, row)| self.write_row(row, out)).find_map_first(Result::err);
        wrong.map_or(Ok(()), Err)
    }

    fn write_row(&self, row: usize, out: &mut [u8]) -> Result<()> {
        let values = self.values(row);
        if self.dtype == DType::Nf4 {
            let blocks = values.len() / nf4::BLOCK;
            nf4::encode(&values, &self.scales[row * blocks..(row + 1) * blocks], out);
            return Ok(());
        }
        let (at, from) = self.weight.cut.as_ref().map_or((row, 0), |cut| (cut.row(row), cut.columns.start));
        self.check(at, from, &values)?;
        let mut file = vec![0; self.dtype.file_size(values.len()) as usize];
        encode(self.dtype, &values, &mut file);
        packed::to_device(self.dtype, &file, out);
        Ok(())
    }

    /// The length of every row as the device holds it, with what an adapter adds.
    ///
    /// # Errors
    /// As [`Narrow::write`].
    pub fn lengths(&self, delta: Option<&Delta>) -> Result<Vec<f32>> {
        let width = self.weight.width();
        let length = |row: usize| {
            let mut held = vec![0; self.dtype.size(width) as usize];
            self.write(row..row + 1, &mut held)?;
            let mut values = vec![0.0; width];
            packed::decode_device(self.dtype, &held, &mut values);
            if let Some(delta) = delta {
                delta.add(row, &mut values);
            }
            Ok(length(&values) as f32)
        };
        (0..self.weight.rows()).into_par_iter().map(length).collect()
    }
}

/// The first of these numbers that is none in `dtype`, and what is to be said of it.
pub(super) fn unheld(dtype: DType, values: &[f32]) -> Option<(usize, String)> {
    // NaN is the largest of all here, and stays it.
    let largest = values.iter().fold(0.0f32, |m, x| if x.abs() > m || x.is_nan() { x.abs() } else { m });
    if holds(dtype, largest) {
        return None;
    }
    let (at, x) = values.iter().enumerate().find(|(_, x)| !holds(dtype, x.abs())).expect("the largest");
    let why = match x.is_finite() {
        true => format!("more than {dtype} can hold; choose bf16 or f32"),
        false => "no number for a weight: the model is broken; fetch it again, or train it anew".into(),
    };
    Some((at, format!("{x}, {why}")))
}

/// The length of a vector.
pub(super) fn length(x: &[f32]) -> f64 {
    x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt()
}
