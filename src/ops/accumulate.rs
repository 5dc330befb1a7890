//! Adds a tensor to its range of a flat page, in place: how gradients of several batches become one.

use super::in_page;
use crate::base::{Array, Limits, TensorType};
use crate::error::Result;
use crate::graph::{Cost, Io, Kernel, Op, Operand};

/// sum += x, or sum = x where what was there belongs to the step before. Inputs: the page of sums, a state; x; and f32 `[1]`,
/// 0 for the first of several. No outputs.
#[derive(Debug, Clone, PartialEq)]
pub struct Accumulate {
    /// The tensor's first element in the page, a multiple of 64.
    pub start: usize,
}

impl Op for Accumulate {
    fn name(&self) -> &'static str {
        "accumulate"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        in_page::check(inputs, self.start, 1).map(|()| vec![])
    }

    fn writes(&self) -> Vec<usize> {
        vec![0]
    }

    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        let tensors = [("x", Operand::Input(1))];
        vec![in_page::kernel("accumulate", ["sum", "keep"], &tensors, &[], self.start, io, limits)]
    }

    fn cost(&self, io: &Io) -> Cost {
        let x = &io.inputs[1];
        Cost { flops: x.shape.elements() as u64, bytes: 3 * x.bytes() }
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let (mut sum, first) = (inputs[0].clone(), inputs[2].data[0] == 0.0);
        for (i, x) in inputs[1].data.iter().enumerate() {
            let sum = &mut sum.data[self.start + i];
            *sum = if first { *x } else { *sum + x };
        }
        vec![sum]
    }
}
