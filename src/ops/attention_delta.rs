//! What the backward pass of attention needs of each query: the softmax's denominator, and the inner product of the
//! output and its gradient.

use super::windows::entries;
use crate::base::{Array, Limits, TensorType};
use crate::error::Result;
use crate::graph::{Cost, Dispatch, Io, Kernel, Op, Operand, spread};

/// Inputs dy and o `[B,T,H,C]`, lse `[B,H,T]`; output `[B,H,T,2]`: lse and Σ_c dy·o ("D" of Dao et al., 2022,
/// equation 4), side by side so that the kernels that follow need one binding less.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttentionDelta;

impl Op for AttentionDelta {
    fn name(&self) -> &'static str {
        "attention_delta"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [dy, o, lse] = inputs else { return Err("takes dy, o and lse".into()) };
        let &[b, t, h, _] = o.shape.dims() else { return Err("o must be [B,T,H,C]".into()) };
        if dy != o || **lse != TensorType::f32([b, h, t]) {
            return Err("dy and o must be [B,T,H,C] and lse [B,H,T]".into());
        }
        Ok(vec![TensorType::f32([b, h, t, 2])])
    }

    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        let &[b, t, h, c] = io.inputs[0].shape.dims() else { unreachable!("checked when the node was made") };
        let workgroup = if limits.is_cpu { 8 } else { 64 };
        let mut kernel = Kernel::new("attention_delta", "rows").constant("WORKGROUP", workgroup);
        let bytes: Vec<u64> = io.inputs.iter().chain(&io.outputs).map(|ty| ty.bytes() / b as u64).collect();
        let step = entries(b, &bytes, b, limits);
        for first in (0..b).step_by(step) {
            let count = step.min(b - first);
            let range = |ty: &TensorType| {
                let entry = ty.bytes() / b as u64;
                (first as u64 * entry, count as u64 * entry)
            };
            let mut d = Dispatch::new(spread((count * h * t).div_ceil(workgroup), limits))
                .param("rows", count * h * t)
                .param("queries", t)
                .param("heads", h)
                .param("width", c);
            for (i, name) in ["dy", "o", "lse"].into_iter().enumerate() {
                let (offset, bytes) = range(&io.inputs[i]);
                d = d.bind(name, Operand::Input(i), offset, bytes);
            }
            let (offset, bytes) = range(&io.outputs[0]);
            kernel = kernel.dispatch(d.bind("stats", Operand::Output(0), offset, bytes));
        }
        vec![kernel]
    }

    fn cost(&self, io: &Io) -> Cost {
        Cost { flops: 2 * io.inputs[0].shape.elements() as u64, bytes: io.bytes() }
    }

    fn reduction(&self, io: &Io) -> usize {
        io.inputs[0].shape.last()
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let [dy, o, lse] = inputs else { unreachable!("checked when the node was made") };
        let &[b, t, h, c] = o.dims() else { unreachable!("checked when the node was made") };
        let mut stats = Array::zeros([b, h, t, 2]);
        for row in 0..b * h * t {
            let (entry, head, time) = (row / (h * t), row / t % h, row % t);
            let at = ((entry * t + time) * h + head) * c;
            stats.data[2 * row] = lse.data[row];
            stats.data[2 * row + 1] = (at..at + c).map(|i| dy.data[i] * o.data[i]).sum();
        }
        vec![stats]
    }
}
