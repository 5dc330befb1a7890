//! A weight as the device is to hold it: as it is stored, widened, or narrowed on the way.

use super::adapter::Delta;
use super::weights::Weight;
use crate::base::quantise::encode;
use crate::base::{DType, nf4, packed};
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
    pub fn new(weight: &'a Weight<'w>, dtype: DType) -> Self {
        let mut narrow = Narrow { weight, dtype, scales: Vec::new() };
        if dtype == DType::Nf4 {
            // Also where a rank has a part of it.
            let of_row = |row| {
                let mut values = vec![0.0; weight.shape.last()];
                weight.whole_values(row, &mut values);
                nf4::scales(&values).collect::<Vec<_>>()
            };
            let scales: Vec<f32> = (0..weight.whole_rows()).into_par_iter().flat_map_iter(of_row).collect();
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
        narrow
    }

    fn values(&self, row: usize) -> Vec<f32> {
        let mut values = vec![0.0; self.weight.width()];
        self.weight.values(row, &mut values);
        values
    }

    /// Some rows in the device's form. `out` has room for just these.
    pub fn write(&self, rows: Range<usize>, out: &mut [u8]) {
        if self.dtype == DType::F32 || self.dtype == self.weight.dtype && !self.weight.is_changed() {
            return self.weight.write(rows, self.dtype, out);
        }
        let row_bytes = out.len() / rows.len();
        out.par_chunks_exact_mut(row_bytes).with_min_len(16).zip(rows.into_par_iter().with_min_len(16)).for_each(
            |(out, row)| {
                let values = self.values(row);
                if self.dtype == DType::Nf4 {
                    let blocks = values.len() / nf4::BLOCK;
                    return nf4::encode(&values, &self.scales[row * blocks..(row + 1) * blocks], out);
                }
                let mut file = vec![0; self.dtype.file_size(values.len()) as usize];
                encode(self.dtype, &values, &mut file);
                packed::to_device(self.dtype, &file, out);
            },
        );
    }

    /// The length of every row as the device holds it, with what an adapter adds.
    pub fn lengths(&self, delta: Option<&Delta>) -> Vec<f32> {
        let width = self.weight.width();
        let length = |row: usize| {
            let mut held = vec![0; self.dtype.size(width) as usize];
            self.write(row..row + 1, &mut held);
            let mut values = vec![0.0; width];
            packed::decode_device(self.dtype, &held, &mut values);
            if let Some(delta) = delta {
                delta.add(row, &mut values);
            }
            length(&values) as f32
        };
        (0..self.weight.rows()).into_par_iter().map(length).collect()
    }
}

/// The length of a vector.
pub(super) fn length(x: &[f32]) -> f64 {
    x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt()
}
