//! A copy in f16 of a range of a page of parameters, in place: what updates keep up from then on.

use super::Operands;
use super::update::COPIES;
use crate::base::{Array, DType, Limits, TensorType};
use crate::error::Result;
use crate::graph::{Cost, Dispatch, Io, Kernel, Op, Operand, spread};

/// Rounds elements of p to the nearest f16, of two equally near ones the even one. Inputs: the copy, a state, f16 `[n]`, n a
/// multiple of 4; and p, f32. No outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cast {
    /// The first element of p that the copy is of, a multiple of 128.
    pub start: usize,
}

impl Op for Cast {
    fn name(&self) -> &'static str {
        "cast"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [copy, p] = inputs else { return Err("takes a copy and a page".into()) };
        let n = copy.shape.elements();
        let fits = n > 0 && n.is_multiple_of(4) && self.start.is_multiple_of(COPIES);
        if copy.dtype != DType::F16 || p.dtype != DType::F32 || !fits || self.start + n > p.shape.elements() {
            return Err(format!("the copy must be f16 of fours of elements of an f32 page from {} on", self.start));
        }
        Ok(vec![])
    }

    fn writes(&self) -> Vec<usize> {
        vec![0]
    }

    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        let n = io.inputs[0].shape.elements();
        let workgroup = if limits.is_cpu { 64 } else { 256 };
        let mut kernel =
            Kernel::new("cast", format!("lanes_{workgroup}")).constant("WORKGROUP", workgroup).constant("HALF", 1);
        let window = (limits.max_binding_bytes / 4) as usize / COPIES * COPIES;
        for from in (0..n).step_by(window) {
            let count = window.min(n - from);
            let dispatch = Dispatch::new(spread((count / 4).div_ceil(workgroup), limits))
                .param("count", count / 4)
                .bind("p", Operand::Input(1), (self.start + from) as u64 * 4, count as u64 * 4)
                .bind("copy", Operand::Input(0), from as u64 * 2, count as u64 * 2);
            kernel = kernel.dispatch(dispatch);
        }
        vec![kernel]
    }

    fn cost(&self, io: &Io) -> Cost {
        let n = io.inputs[0].shape.elements() as u64;
        Cost { flops: 4 * n, bytes: 6 * n }
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let n = inputs[0].data.len();
        let data = inputs[1].data[self.start..self.start + n].iter().map(|&x| Operands::F16.round(x)).collect();
        vec![Array::new(inputs[0].ty.clone(), data)]
    }
}
