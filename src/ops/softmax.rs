//! Softmax of rows, and the logarithm of its denominator. R rows, N columns.

use super::windows::{RowLanes, Window, ranges, rows_per_binding};
use crate::base::{Array, DType, Limits, TensorType};
use crate::error::Result;
use crate::graph::{Cost, Dispatch, Graph, Io, Kernel, Op, OpNode, Operand, Value, spread};

/// x `[R,N]` to p = softmax(x) over each row, `[R,N]`, and lse = log Σ exp(x), `[R]`. For rows of moderate width, such as
/// a router's; the vocabulary has `linear_cross_entropy`.
#[derive(Debug, Clone, PartialEq)]
pub struct Softmax;

/// Gradient of [`Softmax`] towards x: p · (dp - Σ p·dp + dlse). Inputs: p, then dp `[R,N]` and dlse `[R]`, as far as there
/// are such.
#[derive(Debug, Clone, PartialEq)]
pub struct SoftmaxGrad {
    /// There is a gradient towards p.
    pub dp: bool,
    /// There is a gradient towards lse.
    pub dlse: bool,
}

fn check(x: &TensorType) -> Result<[usize; 2], String> {
    match x.shape.dims() {
        &[r, n] if x.dtype == DType::F32 && r * n > 0 => Ok([r, n]),
        _ => Err(format!("rows must be f32 [R,N], not {x}")),
    }
}

/// Kernels of one dispatch for each range of rows; operands are `[R,N]`, or `[R]` where the flag is set.
fn kernels(
    ty: &TensorType,
    limits: &Limits,
    operands: &[(&'static str, Operand, bool)],
    base: impl Fn(RowLanes) -> Kernel,
) -> Vec<Kernel> {
    let [_, n] = check(ty).expect("checked when the node was made");
    // Maxima are not made from lane to lane.
    let shapes = RowLanes::of(n, limits).into_iter().filter(|shape| shape.shuffle == 0);
    shapes.map(|shape| kernel(base(shape), shape.rows(), ty, limits, operands)).collect()
}

fn kernel(
    kernel: Kernel,
    rows_of_group: usize,
    ty: &TensorType,
    limits: &Limits,
    operands: &[(&'static str, Operand, bool)],
) -> Kernel {
    let [r, n] = check(ty).expect("checked when the node was made");
    ranges(r, rows_per_binding(r, n, limits)).fold(kernel, |kernel, rows| {
        let wide = Window::new(rows.start * n..rows.end * n, limits);
        let thin = Window::new(rows.clone(), limits);
        let mut d = Dispatch::new(spread(rows.len().div_ceil(rows_of_group), limits))
            .param("rows", rows.len())
            .param("columns", n)
            .param("skip", wide.skip)
            .param("skip_rows", thin.skip);
        for &(name, operand, is_thin) in operands {
            d = if is_thin { thin } else { wide }.bind(d, name, operand);
        }
        kernel.dispatch(d)
    })
}

impl Op for Softmax {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [x] = inputs else { return Err("takes one input".into()) };
        let [r, _] = check(x)?;
        Ok(vec![(*x).clone(), TensorType::f32([r])])
    }

    fn gradient(&self, g: &mut Graph, node: &OpNode, dy: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        let op = SoftmaxGrad { dp: dy[0].is_some(), dlse: dy[1].is_some() };
        let inputs: Vec<Value> = [Some(node.outputs[0]), dy[0], dy[1]].into_iter().flatten().collect();
        Ok(vec![Some(g.apply1(op, &inputs)?)])
    }

    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        let operands =
            [("x", Operand::Input(0), false), ("p", Operand::Output(0), false), ("lse", Operand::Output(1), true)];
        kernels(&io.inputs[0], limits, &operands, |shape| shape.kernel("softmax", 1))
    }

    fn cost(&self, io: &Io) -> Cost {
        Cost { flops: 18 * io.elements(), bytes: io.bytes() }
    }

    fn reduction(&self, io: &Io) -> usize {
        io.inputs[0].shape.last()
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let mut p = inputs[0].clone();
        let mut lse = Array::zeros([p.ty.shape.rows()]);
        for (row, lse) in p.data.chunks_mut(p.ty.shape.last()).zip(&mut lse.data) {
            let largest = row.iter().copied().fold(f64::MIN, f64::max);
            *lse = largest + row.iter().map(|x| (x - largest).exp()).sum::<f64>().ln();
            row.iter_mut().for_each(|x| *x = (*x - *lse).exp());
        }
        vec![p, lse]
    }
}

impl Op for SoftmaxGrad {
    fn name(&self) -> &'static str {
        "softmax_grad"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let (&p, rest) = inputs.split_first().ok_or("takes p, dp and dlse")?;
        let [r, _] = check(p)?;
        let wanted: Vec<TensorType> =
            [self.dp.then(|| p.clone()), self.dlse.then(|| TensorType::f32([r]))].into_iter().flatten().collect();
        if rest.len() != wanted.len() || rest.iter().zip(&wanted).any(|(a, b)| *a != b) {
            return Err("dp must be f32 [R,N] and dlse f32 [R], where they are given".into());
        }
        Ok(vec![p.clone()])
    }

    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        let mut operands = vec![("p", Operand::Input(0), false), ("dx", Operand::Output(0), false)];
        for (name, thin) in
            [self.dp.then_some(("dp", false)), self.dlse.then_some(("dlse", true))].into_iter().flatten()
        {
            operands.push((name, Operand::Input(operands.len() - 1), thin));
        }
        kernels(&io.inputs[0], limits, &operands, |shape| {
            let kernel = shape.kernel("softmax_grad", 1).constant("DP", usize::from(self.dp));
            kernel.constant("DLSE", usize::from(self.dlse))
        })
    }

    fn cost(&self, io: &Io) -> Cost {
        Cost { flops: 4 * io.elements(), bytes: io.bytes() }
    }

    fn reduction(&self, io: &Io) -> usize {
        io.inputs[0].shape.last()
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let n = inputs[0].ty.shape.last();
        let dp = self.dp.then(|| &inputs[1].data);
        let dlse = self.dlse.then(|| &inputs[inputs.len() - 1].data);
        let mut dx = inputs[0].clone();
        for (row, p) in dx.data.chunks_mut(n).enumerate() {
            let dp = dp.map_or(vec![0.0; n], |dp| dp[row * n..][..n].to_vec());
            let dot: f64 = p.iter().zip(&dp).map(|(p, dp)| p * dp).sum();
            let shift = dlse.map_or(0.0, |dlse| dlse[row]) - dot;
            p.iter_mut().zip(&dp).for_each(|(p, dp)| *p *= dp + shift);
        }
        vec![dx]
    }
}
