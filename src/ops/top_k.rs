//! The largest elements of each row: what a sampler needs of the logits, so that they need not all be read back.
//! N rows, V columns.

use super::windows::{entries, item, loads};
use crate::base::{Array, DType, Limits, TensorType};
use crate::error::Result;
use crate::graph::{Cost, Dispatch, Io, Kernel, Op, Operand, spread};

/// x f32 `[N,V]` to values f32 `[N,k]` and ids u32 `[N,k]`: each row's k largest elements, descending, and their columns;
/// of equals the lower column first. What is no number is never among them; where too few are left, the id is
/// `u32::MAX`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopK {
    /// How many, up to V.
    pub k: usize,
}

/// Chunks whose best a workgroup keeps; 8 KiB.
const CHUNKS: usize = 1024;

impl Op for TopK {
    fn name(&self) -> &'static str {
        "top_k"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [x] = inputs else { return Err("takes one input".into()) };
        let (&[n, v], DType::F32) = (x.shape.dims(), x.dtype) else {
            return Err(format!("x must be f32 [N,V], not {x}"));
        };
        if self.k == 0 || self.k > v {
            return Err(format!("there are no {} largest of {v} elements", self.k));
        }
        Ok(vec![TensorType::f32([n, self.k]), TensorType::u32([n, self.k])])
    }

    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        let (n, v) = (io.inputs[0].shape.rows(), io.inputs[0].shape.last());
        let lanes = if limits.is_cpu { 8 } else { 256 };
        let mut kernel = Kernel::new("top_k", format!("lanes_{lanes}"))
            .constant("WORKGROUP", lanes)
            .constant("CHUNKS", CHUNKS)
            .constant("VECTOR", usize::from(!limits.is_cpu && item(v) == 4))
            .constant("LOADS", 2 * loads(limits))
            .constant("K", self.k);
        let step = entries(n, &[v, self.k].map(|row| 4 * row as u64), n, limits);
        for first in (0..n).step_by(step) {
            let rows = step.min(n - first);
            let range = |row: usize| (4 * (first * row) as u64, 4 * (rows * row) as u64);
            let ((x, xs), (y, ys)) = (range(v), range(self.k));
            let dispatch = Dispatch::new(spread(rows, limits))
                .bind("x", Operand::Input(0), x, xs)
                .bind("values", Operand::Output(0), y, ys)
                .bind("ids", Operand::Output(1), y, ys)
                .param("columns", v)
                .param("rows", rows);
            kernel = kernel.dispatch(dispatch);
        }
        vec![kernel]
    }

    fn cost(&self, io: &Io) -> Cost {
        Cost { flops: io.inputs[0].shape.elements() as u64, bytes: io.bytes() }
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let (n, v) = (inputs[0].ty.shape.rows(), inputs[0].ty.shape.last());
        let (mut values, mut ids) = (Vec::new(), Vec::new());
        for row in inputs[0].data.chunks(v) {
            let mut order: Vec<usize> = (0..v).collect();
            order.sort_by(|&a, &b| row[b].total_cmp(&row[a]).then(a.cmp(&b)));
            values.extend(order[..self.k].iter().map(|&i| row[i]));
            ids.extend(order[..self.k].iter().map(|&i| i as f64));
        }
        vec![Array::new(TensorType::f32([n, self.k]), values), Array::new(TensorType::u32([n, self.k]), ids)]
    }
}
