//! The backward pass of RMS normalisation: towards x, and towards the gain in parts that `sum_rows` then adds, where the gain is not
//! frozen.

use super::rms_norm::{check, row_type};
use super::windows::{RowLanes, Window, item, ranges, rows_per_binding};
use crate::base::{Array, Limits, TensorType};
use crate::error::Result;
use crate::graph::{Cost, Dispatch, Io, Kernel, Op, Operand};
use std::sync::Arc;

/// Gradient of [`super::RmsNorm`], r the inverse root mean square: towards x, dx = r · gain · dy − x · r³ · mean(gain · dy · x),
/// and towards the gain in parts, the sums of dy · x · r over `rows_per_part` rows each. Inputs: x `[.., D]`, gain `[D]`,
/// r `[..]`, dy `[.., D]`. Outputs: dx `[.., D]`, and with `parts` those, `[parts, D]`.
#[derive(Debug, Clone, PartialEq)]
pub struct RmsNormGrad {
    /// Rows of one part.
    pub rows_per_part: usize,
    /// Whether the parts are wanted: compiling drops them where nobody reads them.
    pub parts: bool,
}

/// Parts aimed at: so many workgroups keep a large adapter busy, and one dispatch adds up what they give.
const PARTS: usize = 256;
/// Rows of a part at least, which some lanes take together.
const ROWS: usize = 8;

/// Rows of a part, where there are so many in all.
pub(super) fn rows_per_part(rows: usize) -> usize {
    rows.div_ceil(PARTS).max(ROWS)
}

impl Op for RmsNormGrad {
    fn name(&self) -> &'static str {
        "rms_norm_grad"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let &[x, gain, inverse, dy] = inputs else { return Err("takes four inputs: x, gain, r and dy".into()) };
        check(x, gain)?;
        if dy != x || *inverse != row_type(x) {
            return Err(format!("dy must be as x, and r f32 [..], a number a row, not {x}, {dy} and {inverse}"));
        }
        if self.rows_per_part == 0 {
            return Err("a part must have at least one row".into());
        }
        let parts = TensorType::f32([x.shape.rows().div_ceil(self.rows_per_part), x.shape.last()]);
        Ok([Some(x.clone()), self.parts.then_some(parts)].into_iter().flatten().collect())
    }

    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        let (rows, d) = (io.inputs[0].shape.rows(), io.inputs[0].shape.last());
        let item = item(d);
        let parts = rows.div_ceil(self.rows_per_part);
        let fit = rows_per_binding(rows, d, limits);
        let fit = if fit >= rows { parts } else { (fit / self.rows_per_part).max(1) };
        let build = |shape: RowLanes| {
            let sums = (d / item).div_ceil(shape.lanes);
            let kernel = shape.kernel("rms_norm_grad", item);
            let kernel = kernel.constant("SUMS", sums).constant("PARTS", usize::from(self.parts));
            ranges(parts, fit.min(limits.max_workgroups as usize)).fold(kernel, |kernel, p| {
                let r = p.start * self.rows_per_part..(p.end * self.rows_per_part).min(rows);
                let wide = Window::new(r.start * d..r.end * d, limits);
                let thin = Window::new(r.clone(), limits);
                let part = Window::new(p.start * d..p.end * d, limits);
                let mut dispatch = Dispatch::new([p.len() as u32, 1, 1])
                    .bind("gain", Operand::Input(1), 0, io.inputs[1].bytes())
                    .param("rows", r.len())
                    .param("columns", d / item)
                    .param("rows_per_part", self.rows_per_part)
                    .param("skip", wide.skip / item)
                    .param("skip_rows", thin.skip)
                    .param("skip_parts", part.skip / item)
                    .param("whole", wide.start);
                dispatch = wide.bind(dispatch, "x", Operand::Input(0));
                dispatch = thin.bind(dispatch, "inverse_rms", Operand::Input(2));
                dispatch = wide.bind(dispatch, "dy", Operand::Input(3));
                dispatch = wide.bind(dispatch, "dx", Operand::Output(0));
                if self.parts {
                    dispatch = part.bind(dispatch, "parts", Operand::Output(1));
                }
                kernel.dispatch(dispatch)
            })
        };
        RowLanes::together(d / item, limits).into_iter().map(build).collect()
    }

    fn cost(&self, io: &Io) -> Cost {
        Cost { flops: if self.parts { 11 } else { 8 } * io.elements(), bytes: io.bytes() }
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let [x, gain, inverse, dy] = inputs else { unreachable!("checked when the node was made") };
        let d = gain.data.len();
        let mut dx = Array::zeros(x.ty.shape.clone());
        let mut parts = Array::zeros([inverse.data.len().div_ceil(self.rows_per_part), d]);
        for (row, &r) in inverse.data.iter().enumerate() {
            let at = row * d;
            let mean = (0..d).map(|i| gain.data[i] * dy.data[at + i] * x.data[at + i]).sum::<f64>() / d as f64;
            for i in 0..d {
                dx.data[at + i] = r * gain.data[i] * dy.data[at + i] - x.data[at + i] * r.powi(3) * mean;
                parts.data[row / self.rows_per_part * d + i] += dy.data[at + i] * x.data[at + i] * r;
            }
        }
        [Some(dx), self.parts.then_some(parts)].into_iter().flatten().collect()
    }

    fn alone(&self) -> Option<Arc<dyn Op>> {
        self.parts.then(|| Arc::new(RmsNormGrad { parts: false, ..self.clone() }) as _)
    }

    /// The residual stream's gradient is added here.
    fn epilogue(&self) -> bool {
        true
    }

    fn reduction(&self, io: &Io) -> usize {
        io.inputs[0].shape.last().max(if self.parts { self.rows_per_part } else { 1 })
    }
}
