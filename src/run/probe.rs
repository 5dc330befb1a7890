//! Small versions of a node, to time a kernel in milliseconds and to prove it right.

use super::{rounding, run_kernel};
use crate::base::{Array, DType, Limits, Rng, TensorType, packed};
use crate::gpu::Gpu;
use crate::graph::{Cost, Io, Kernel, Op};

use super::records::KernelId;

/// What one measured run may cost: some 5 ms on a slow adapter of the kind.
pub(super) fn measured(limits: &Limits) -> Cost {
    if limits.is_cpu {
        Cost { flops: 50_000_000, bytes: 32 << 20 }
    } else {
        Cost { flops: 4_000_000_000, bytes: 64 << 20 }
    }
}

/// What a run in a proof may cost: several tiles in each dim.
pub(super) const PROOF: Cost = Cost { flops: 1 << 25, bytes: 4 << 20 };

/// A node like `io` that costs at most `most`, or as little as its operator allows. Dims are halved, the largest first,
/// as long as the candidates stay the same.
pub(super) fn shrink(op: &dyn Op, io: &Io, limits: &Limits, most: Cost) -> Io {
    let ids = |io: &Io| op.kernels(io, limits).iter().map(KernelId::of).collect::<Vec<_>>();
    let wanted = ids(io);
    let mut now = io.clone();
    loop {
        let cost = op.cost(&now);
        if cost.flops <= most.flops && now.bytes() <= most.bytes {
            return now;
        }
        let mut places: Vec<(usize, usize, usize)> = Vec::new();
        for (i, ty) in now.inputs.iter().enumerate() {
            places.extend(ty.shape.dims().iter().enumerate().map(|(j, &d)| (d, i, j)));
        }
        places.sort_by_key(|p| std::cmp::Reverse(p.0));
        let smaller = places.into_iter().filter(|&(d, ..)| d > 16).find_map(|place| {
            let tries = halved(op, &now, place);
            tries.into_iter().find(|io| ids(io) == wanted)
        });
        match smaller {
            Some(io) => now = io,
            None => return now,
        }
    }
}

/// Ways to halve one dim of one input that the operator accepts.
fn halved(op: &dyn Op, io: &Io, (d, input, dim): (usize, usize, usize)) -> Vec<Io> {
    let half =
        if d.is_multiple_of(4) { (d / 2).next_multiple_of(4) } else { d / 2 + usize::from((d / 2).is_multiple_of(4)) };
    let with = |touched: &dyn Fn(usize, usize) -> bool| -> Option<Io> {
        let change = |(i, ty): (usize, &TensorType)| {
            let dims = ty.shape.dims().iter().enumerate();
            let dims: Vec<usize> = dims.map(|(j, &n)| if touched(i, j) && n == d { half } else { n }).collect();
            TensorType { shape: dims.into(), dtype: ty.dtype }
        };
        let mut inputs: Vec<TensorType> = io.inputs.iter().enumerate().map(change).collect();
        let infer = |inputs: &[TensorType]| op.infer(&inputs.iter().collect::<Vec<_>>()).ok();
        let outputs = infer(&inputs)?;
        // Tensors that a fused expression reads beside output 0 follow it.
        for (ty, old) in inputs.iter_mut().zip(&io.inputs) {
            if ty == old && *old == io.outputs[0] {
                *ty = outputs[0].clone();
            }
        }
        (infer(&inputs)? == outputs).then_some(Io { inputs, outputs })
    };
    let shape = &io.inputs[input].shape;
    let alike = |i: usize, j: usize| j == dim && io.inputs[i].shape == *shape;
    let alone = |i: usize, j: usize| (i, j) == (input, dim);
    let all = |_: usize, _: usize| true;
    [with(&alike), with(&alone), with(&all)].into_iter().flatten().collect()
}

/// Runs the first candidate and candidate `i` on a small version of the node, and says what is wrong with the latter.
pub(super) async fn prove(gpu: &Gpu, op: &dyn Op, io: &Io, i: usize) -> Result<(), String> {
    let limits = gpu.limits();
    let small = shrink(op, io, limits, PROOF);
    let kernels = op.kernels(&small, limits);
    let run = async |kernel: &Kernel, inputs: &[Array]| {
        run_kernel(gpu, kernel, &small, inputs, &op.writes()).await.map_err(|e| e.to_string())
    };
    let mut inputs = draw(&small, false);
    let mut expected = run(&kernels[0], &inputs).await?;
    if expected.iter().any(|a| a.data.iter().any(|x| !x.is_finite())) {
        // Some operators take roots and logarithms.
        inputs = draw(&small, true);
        expected = run(&kernels[0], &inputs).await?;
    }
    let bar = op.tolerance(&small);
    for (k, (mut y, mut r)) in run(&kernels[i], &inputs).await?.into_iter().zip(expected).enumerate() {
        for (a, b) in y.data.iter_mut().zip(&mut r.data) {
            if a.is_nan() && b.is_nan() {
                (*a, *b) = (0.0, 0.0);
            }
        }
        bar.check(&y, &r).map_err(|e| format!("result {k} of {:?}: {e}", small.inputs))?;
    }
    if rounding::is_native(&kernels[i]) { rounding::rounds_natively(gpu, limits).await } else { Ok(()) }
}

/// Random inputs; single integers, which are positions, are zero.
fn draw(io: &Io, positive: bool) -> Vec<Array> {
    let one = |(k, ty): (usize, &TensorType)| {
        let mut rng = Rng::new(0x007E_57ED, k as u64);
        let n = ty.shape.elements();
        if ty.dtype.is_packed() {
            return Array::from_bytes(ty.clone(), &packed::random(ty.dtype, n, &mut rng));
        }
        let mut next = || match ty.dtype {
            DType::U32 if n == 1 => 0.0,
            DType::U32 => rng.below(61) as f64,
            _ if positive => f64::from((0.5 + rng.uniform()) as f32),
            _ => f64::from(rng.normal() as f32),
        };
        Array::new(ty.clone(), (0..n).map(|_| next()).collect())
    };
    io.inputs.iter().enumerate().map(one).collect()
}
