//! RMS normalisation. D width, rows: all other dims.

use super::rms_norm_grad::{RmsNormGrad, rows_per_part};
use super::windows::{RowLanes, Window, element, item, ranges, rows_per_binding};
use crate::base::{Array, DType, Limits, TensorType};
use crate::error::{Error, Result};
use crate::graph::{Cost, Dispatch, Graph, Io, Kernel, Op, OpNode, Operand, Value, spread};

/// Root mean square layer normalisation (Zhang and Sennrich, 2019): y = gain · x / sqrt(mean(x²) + eps) over the last
/// dim. Inputs: x `[.., D]`, gain `[D]`. Outputs: y `[.., D]`, and the inverse root mean squares `[..]`, which the
/// backward pass reads.
#[derive(Debug, Clone, PartialEq)]
pub struct RmsNorm {
    /// Added to the mean square.
    pub eps: f32,
}

/// Checks that `x` is f32 `[.., D]` and `gain` f32 `[D]`.
pub(super) fn check(x: &TensorType, gain: &TensorType) -> Result<(), String> {
    let d = x.shape.last();
    if x.dtype != DType::F32 || x.shape.rank() == 0 || d == 0 {
        return Err(format!("x must be f32 [.., D], not {x}"));
    }
    if gain.dtype != DType::F32 || gain.shape.dims() != [d] {
        return Err(format!("gain must be f32[{d}], as wide as x, not {gain}"));
    }
    Ok(())
}

/// Type of one number for each row of `x`.
pub(super) fn row_type(x: &TensorType) -> TensorType {
    let dims = x.shape.dims();
    TensorType::f32(&dims[..dims.len() - 1])
}

impl Op for RmsNorm {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [x, gain] = inputs else { return Err("takes two inputs: x and gain".into()) };
        check(x, gain)?;
        Ok(vec![(*x).clone(), row_type(x)])
    }

    fn gradient(&self, g: &mut Graph, node: &OpNode, dy: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        if dy[1].is_some() {
            return Err(Error::Graph("rms_norm: its inverse root mean squares have no gradient; use output 0".into()));
        }
        let Some(dy) = dy[0] else { return Ok(vec![None, None]) };
        let (x, gain, inverse) = (node.inputs[0], node.inputs[1], node.outputs[1]);
        let (shape, ty) = (&g.ty(x).shape, g.ty(gain).clone());
        let grads = RmsNormGrad { rows_per_part: rows_per_part(shape.rows()), parts: true };
        let grads = g.apply(grads, &[x, gain, inverse, dy])?;
        Ok(vec![Some(grads[0]), Some(g.sum_to(grads[1], &ty)?)])
    }

    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        let (rows, d) = (io.inputs[0].shape.rows(), io.inputs[0].shape.last());
        let (item, y) = (item(d), &io.outputs[0]);
        let build = |shape: RowLanes| {
            let kernel = shape.kernel("rms_norm", item).writing(y);
            ranges(rows, rows_per_binding(rows, d, limits)).fold(kernel, |kernel, r| {
                let wide = Window::of(r.start * d..r.end * d, element(y), limits);
                let thin = Window::new(r.clone(), limits);
                let mut dispatch = Dispatch::new(spread(r.len().div_ceil(shape.rows()), limits))
                    .bind("gain", Operand::Input(1), 0, io.inputs[1].bytes())
                    .param("rows", r.len())
                    .param("columns", d / item)
                    .param("skip", wide.skip / item)
                    .param("skip_rows", thin.skip)
                    .param("eps", self.eps);
                dispatch = wide.bind(dispatch, "x", Operand::Input(0));
                dispatch = wide.bind_as(dispatch, "y", Operand::Output(0), element(y));
                kernel.dispatch(thin.bind(dispatch, "inverse_rms", Operand::Output(1)))
            })
        };
        RowLanes::of(d / item, limits).into_iter().map(build).collect()
    }

    fn cost(&self, io: &Io) -> Cost {
        Cost { flops: 4 * io.elements(), bytes: io.bytes() }
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let (x, gain) = (&inputs[0], &inputs[1].data);
        let mut y = Array::zeros(x.ty.shape.clone());
        let mut inverse = Array::zeros(row_type(&x.ty).shape);
        for (row, (x, y)) in x.data.chunks(gain.len()).zip(y.data.chunks_mut(gain.len())).enumerate() {
            let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
            inverse.data[row] = 1.0 / (mean + f64::from(self.eps)).sqrt();
            for i in 0..gain.len() {
                y[i] = gain[i] * x[i] * inverse.data[row];
            }
        }
        vec![y, inverse]
    }

    fn half_outputs(&self, io: &Io, _limits: &Limits) -> Vec<usize> {
        if item(io.inputs[0].shape.last()) == 4 { vec![0] } else { Vec::new() }
    }

    fn reduction(&self, io: &Io) -> usize {
        io.inputs[0].shape.last()
    }
}
