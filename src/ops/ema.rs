//! A moving average of parameters (Polyak and Juditsky, 1992, with exponential weights), in place.

use super::gaps;
use super::update::{self, Part};
use crate::base::{Array, Limits, TensorType};
use crate::error::Result;
use crate::graph::{Cost, Io, Kernel, Op};

/// average += (p - average)·(1 - decay). Inputs: the average, a state, and p, f32 of one shape; then as [`super::AdamW`] what
/// the judge tells, of which counts whether the step is left out, and the table of gaps. No outputs.
#[derive(Debug, Clone, PartialEq)]
pub struct Ema {
    /// 1 - decay.
    pub rest: f32,
    /// Elements of the page.
    pub elements: usize,
}

impl Ema {
    const GIVEN: update::Given = update::Given { gradient: 1, start: 0, copied: None };

    fn parts(&self) -> [Part; 1] {
        [Part { end: self.elements, rate: 1.0, decay: 0.0 }]
    }
}

impl Op for Ema {
    fn name(&self) -> &'static str {
        "ema"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        update::check(inputs, 2, Ema::GIVEN, &self.parts()).map(|()| vec![])
    }

    fn writes(&self) -> Vec<usize> {
        vec![0]
    }

    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        vec![update::kernel("ema", io, limits, &["average", "p"], Ema::GIVEN, &self.parts(), &[("rest", self.rest)])]
    }

    fn cost(&self, io: &Io) -> Cost {
        Cost { flops: 3 * self.elements as u64, bytes: io.bytes() + io.inputs[0].bytes() }
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let mut average = inputs[0].clone();
        if inputs[2].data[3] != 0.0 {
            for i in (0..self.elements).filter(|&i| !gaps::contains(inputs.get(3), i)) {
                average.data[i] += (inputs[1].data[i] - average.data[i]) * f64::from(self.rest);
            }
        }
        vec![average]
    }
}
