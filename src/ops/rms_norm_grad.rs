//! The backward pass of RMS normalisation: towards x, and towards the gain in parts that `sum_rows` then adds.

use super::rms_norm::{check, row_type};
use super::windows::{RowLanes, Window, item, loads, ranges, rows_per_binding};
use crate::base::{Array, DType, Limits, TensorType};
use crate::error::Result;
use crate::graph::{Cost, Dispatch, Io, Kernel, Op, Operand, spread};

/// Gradient of [`super::RmsNorm`] towards x: dx = r · gain · dy − x · r³ · mean(gain · dy · x), r the inverse root mean
/// square. Inputs: x `[.., D]`, gain `[D]`, r `[..]`, dy `[.., D]`. Output: dx `[.., D]`.
#[derive(Debug, Clone, PartialEq)]
pub struct RmsNormGrad;

/// Gradient of [`super::RmsNorm`] towards the gain, in parts: output `[parts, D]` holds the sums of dy · x · r over
/// `rows_per_part` rows each. Inputs: x `[.., D]`, r `[..]`, dy `[.., D]`.
#[derive(Debug, Clone, PartialEq)]
pub struct RmsNormGradGain {
    /// Rows of one part.
    pub rows_per_part: usize,
}

/// Columns of a workgroup of `rms_norm_grad_gain.wgsl`.
const COLUMNS: usize = 32;
/// Rows up to which the gain's gradient is one part: so many rows are walked while a dispatch more would start.
const ROWS: usize = 256;

/// Rows of a part that balance the walks over a part and over the parts.
pub(super) fn rows_per_part(rows: usize) -> usize {
    if rows <= ROWS { rows } else { (rows as f64).sqrt().ceil() as usize }
}

fn check_rows(x: &TensorType, inverse: &TensorType, dy: &TensorType) -> Result<(), String> {
    if x.shape.rank() == 0 || x.dtype != DType::F32 || dy != x || *inverse != row_type(x) {
        return Err(format!("x and dy must be f32 [.., D] alike and r f32 [..], not {x}, {dy} and {inverse}"));
    }
    Ok(())
}

impl Op for RmsNormGrad {
    fn name(&self) -> &'static str {
        "rms_norm_grad"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [x, gain, inverse, dy] = inputs else { return Err("takes four inputs: x, gain, r and dy".into()) };
        check(x, gain)?;
        check_rows(x, inverse, dy)?;
        Ok(vec![(*x).clone()])
    }

    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        let (rows, d) = (io.inputs[0].shape.rows(), io.inputs[0].shape.last());
        let item = item(d);
        let build = |shape: RowLanes| {
            let kernel = shape.kernel("rms_norm_grad", item);
            ranges(rows, rows_per_binding(rows, d, limits)).fold(kernel, |kernel, r| {
                let wide = Window::new(r.start * d..r.end * d, limits);
                let thin = Window::new(r.clone(), limits);
                let mut dispatch = Dispatch::new(spread(r.len().div_ceil(shape.rows()), limits))
                    .bind("gain", Operand::Input(1), 0, io.inputs[1].bytes())
                    .param("rows", r.len())
                    .param("columns", d / item)
                    .param("skip", wide.skip / item)
                    .param("skip_rows", thin.skip)
                    .param("whole", wide.start);
                dispatch = wide.bind(dispatch, "x", Operand::Input(0));
                dispatch = thin.bind(dispatch, "inverse_rms", Operand::Input(2));
                dispatch = wide.bind(dispatch, "dy", Operand::Input(3));
                kernel.dispatch(wide.bind(dispatch, "dx", Operand::Output(0)))
            })
        };
        RowLanes::of(d / item, limits).into_iter().map(build).collect()
    }

    fn cost(&self, io: &Io) -> Cost {
        Cost { flops: 8 * io.elements(), bytes: io.bytes() }
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let [x, gain, inverse, dy] = inputs else { unreachable!("checked when the node was made") };
        let d = gain.data.len();
        let mut dx = Array::zeros(x.ty.shape.clone());
        for (row, &r) in inverse.data.iter().enumerate() {
            let at = row * d;
            let mean = (0..d).map(|i| gain.data[i] * dy.data[at + i] * x.data[at + i]).sum::<f64>() / d as f64;
            for i in 0..d {
                dx.data[at + i] = r * gain.data[i] * dy.data[at + i] - x.data[at + i] * r.powi(3) * mean;
            }
        }
        vec![dx]
    }

    /// The residual stream's gradient is added here.
    fn epilogue(&self) -> bool {
        true
    }

    fn reduction(&self, io: &Io) -> usize {
        io.inputs[0].shape.last()
    }
}

impl Op for RmsNormGradGain {
    fn name(&self) -> &'static str {
        "rms_norm_grad_gain"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [x, inverse, dy] = inputs else { return Err("takes three inputs: x, r and dy".into()) };
        check_rows(x, inverse, dy)?;
        if self.rows_per_part == 0 {
            return Err("a part must have at least one row".into());
        }
        Ok(vec![TensorType::f32([x.shape.rows().div_ceil(self.rows_per_part), x.shape.last()])])
    }

    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        let (rows, d) = (io.inputs[0].shape.rows(), io.inputs[0].shape.last());
        let parts = rows.div_ceil(self.rows_per_part);
        let step = (rows_per_binding(rows, d, limits) / self.rows_per_part).max(1);
        let step = if rows_per_binding(rows, d, limits) >= rows { parts } else { step };
        // A CPU's lanes have no use for shares, nor a short part.
        let shares = if limits.is_cpu { 1 } else { (self.rows_per_part / 4).next_power_of_two().clamp(1, 8) };
        let kernel = Kernel::new("rms_norm_grad_gain", format!("shares_{shares}"));
        let mut kernel =
            kernel.constant("COLUMNS", COLUMNS).constant("SHARES", shares).constant("LOADS", loads(limits));
        for p in ranges(parts, step.min(limits.max_workgroups as usize)) {
            let first = p.start * self.rows_per_part;
            let end = (p.end * self.rows_per_part).min(rows);
            let wide = Window::new(first * d..end * d, limits);
            let thin = Window::new(first..end, limits);
            let out = Window::new(p.start * d..p.end * d, limits);
            let mut dispatch = Dispatch::new([d.div_ceil(COLUMNS) as u32, p.len() as u32, 1])
                .param("rows", end - first)
                .param("columns", d)
                .param("rows_per_part", self.rows_per_part)
                .param("skip", wide.skip)
                .param("skip_rows", thin.skip)
                .param("skip_parts", out.skip);
            dispatch = wide.bind(dispatch, "x", Operand::Input(0));
            dispatch = thin.bind(dispatch, "inverse_rms", Operand::Input(1));
            dispatch = wide.bind(dispatch, "dy", Operand::Input(2));
            kernel = kernel.dispatch(out.bind(dispatch, "parts", Operand::Output(0)));
        }
        vec![kernel]
    }

    fn cost(&self, io: &Io) -> Cost {
        Cost { flops: 3 * io.inputs[0].shape.elements() as u64, bytes: io.bytes() }
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let [x, inverse, dy] = inputs else { unreachable!("checked when the node was made") };
        let d = x.ty.shape.last();
        let mut parts = Array::zeros([x.ty.shape.rows().div_ceil(self.rows_per_part), d]);
        for (row, &r) in inverse.data.iter().enumerate() {
            for i in 0..d {
                parts.data[row / self.rows_per_part * d + i] += dy.data[row * d + i] * x.data[row * d + i] * r;
            }
        }
        vec![parts]
    }

    fn reduction(&self, _io: &Io) -> usize {
        self.rows_per_part
    }
}
