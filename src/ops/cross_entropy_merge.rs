//! Cross entropy over a vocabulary whose words are spread over ranks: running statistics of every part of it become those of
//! the whole, which `cross_entropy.rs` goes on with.
//!
//! Legend: R rows (tokens), P parts.

use super::cross_entropy::UNSEEN;
use crate::base::{Array, DType, Limits, TensorType};
use crate::graph::{Cost, Dispatch, Io, Kernel, Op, Operand, spread};

/// From statistics `[P·R,3]`, those of each part after another: largest logit, sum of exp(logit - largest), and the target's
/// logit, which the part that has no such word does not know; to those of all words, `[R,3]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CrossEntropyMerge {
    /// P.
    pub parts: usize,
}

const WORKGROUP: usize = 64;

impl Op for CrossEntropyMerge {
    fn name(&self) -> &'static str {
        "cross_entropy_merge"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        match inputs {
            [x] if x.dtype == DType::F32
                && x.shape.rank() == 2
                && x.shape.last() == 3
                && x.shape.rows() > 0
                && x.shape.rows().is_multiple_of(self.parts) =>
            {
                Ok(vec![TensorType::f32([x.shape.rows() / self.parts, 3])])
            }
            _ => Err(format!("takes statistics f32 [P·R,3] of {} parts", self.parts)),
        }
    }

    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        let rows = io.outputs[0].shape.rows();
        let dispatch = Dispatch::new(spread(rows.div_ceil(WORKGROUP), limits))
            .bind("parts", Operand::Input(0), 0, io.inputs[0].bytes())
            .bind("stats", Operand::Output(0), 0, io.outputs[0].bytes())
            .param("rows", rows)
            .param("parts", self.parts);
        vec![Kernel::new("cross_entropy_merge", "rows").constant("WORKGROUP", WORKGROUP).dispatch(dispatch)]
    }

    fn cost(&self, io: &Io) -> Cost {
        Cost { flops: 4 * io.inputs[0].shape.elements() as u64, bytes: io.bytes() }
    }

    fn reduction(&self, _io: &Io) -> usize {
        self.parts
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let rows = inputs[0].ty.shape.rows() / self.parts;
        let mut y = Array::zeros([rows, 3]);
        for (row, all) in y.data.chunks_exact_mut(3).enumerate() {
            let parts = || inputs[0].data.chunks_exact(3).skip(row).step_by(rows);
            let largest = parts().map(|p| p[0]).fold(UNSEEN, f64::max);
            all[0] = largest;
            all[1] = parts().map(|p| p[1] * (p[0] - largest).exp()).sum();
            all[2] = parts().map(|p| p[2]).fold(UNSEEN, f64::max);
        }
        vec![y]
    }
}
