//! Cross entropy over a vocabulary that comes in chunks: running statistics of each row, the mean loss, and the gradient
//! towards one chunk's logits. `linear_cross_entropy.rs` puts them together.
//!
//! Legend: R rows (tokens), N words of a chunk.

use super::windows::{item, loads};
use crate::base::{Array, DType, Limits, TensorType};
use crate::error::Result;
use crate::graph::{Cost, Dispatch, Io, Kernel, Op, Operand, spread};

/// The target of a row that does not count.
pub const IGNORE: u32 = u32::MAX;

/// The target logit of a row whose target has not been seen yet.
pub(super) const UNSEEN: f64 = -3.0e38;

/// Folds logits `[R,N]` of the words start .. start + N into statistics `[R,3]`: largest logit so far, sum of
/// exp(logit - largest), and the target's logit (online softmax: Milakov and Gimelshein, 2018).
/// Inputs: logits, targets u32 `[R]`, and the statistics so far unless this is the first chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CrossEntropyUpdate {
    /// First word of the chunk.
    pub start: usize,
}

/// The end of the sums: from statistics `[R,3]` and targets u32 `[R]`, the mean loss `[1]` over rows that count, lse
/// `[R]`, and the number of rows that count `[1]`. The loss is 0 where no row counts. A target outside the vocabulary
/// makes the loss larger than 1e30.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CrossEntropyLoss;

/// Gradient towards the logits `[R,N]` of one chunk: (softmax - 1 at the target) · dloss / count, 0 in rows that do not
/// count. Inputs: logits, targets u32 `[R]`, lse `[R]`, count `[1]`, dloss `[1]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CrossEntropyGrad {
    /// First word of the chunk.
    pub start: usize,
}

pub(super) fn check_rows(logits: &TensorType, targets: &TensorType) -> Result<usize, String> {
    match logits.shape.dims() {
        &[r, n] if logits.dtype == DType::F32 && n > 0 && *targets == TensorType::u32([r]) => Ok(r),
        _ => Err("logits must be f32 [R,N] and targets u32 [R]".into()),
    }
}

/// True where lanes read a row by fours: a CPU's have side by side what they read at once.
fn by_fours(n: usize, limits: &Limits) -> bool {
    !limits.is_cpu && item(n) == 4
}

/// Dispatches over rows of `[R,N]` logits, in windows of rows whose ranges are aligned in every operand.
pub(super) fn windows(r: usize, n: usize, limits: &Limits) -> impl Iterator<Item = (usize, usize)> {
    let fit = (limits.max_binding_bytes / (4 * n.max(3)) as u64).max(64) as usize / 64 * 64;
    (0..r).step_by(fit).map(move |first| (first, fit.min(r - first)))
}

/// Binds rows first .. first + count of an operand that has R rows.
pub(super) fn bind_rows(
    d: Dispatch,
    name: &'static str,
    operand: Operand,
    ty: &TensorType,
    r: usize,
    window: (usize, usize),
) -> Dispatch {
    let row = ty.bytes() / r as u64;
    d.bind(name, operand, window.0 as u64 * row, window.1 as u64 * row)
}

/// The kernel of a gradient towards one chunk's logits: of a mean, from its gradient and count, or where each row has a
/// log-probability, from that one's gradient.
pub(super) fn chunk_grad(io: &Io, limits: &Limits, start: usize) -> Vec<Kernel> {
    let &[r, n] = io.inputs[0].shape.dims() else { unreachable!("checked when the node was made") };
    let workgroup = if limits.is_cpu { 8 } else { 64 };
    let per_row = io.inputs.len() == 4;
    let mut kernel = Kernel::new("cross_entropy_grad", format!("lanes_{workgroup}"))
        .constant("WORKGROUP", workgroup)
        .constant("PER_ROW", usize::from(per_row))
        .constant("LOADS", loads(limits))
        .constant("VECTOR", usize::from(by_fours(n, limits)));
    kernel = kernel.writing(&io.outputs[0]);
    for w in windows(r, n, limits) {
        let mut d = Dispatch::new(spread(w.1, limits)).param("rows", w.1).param("columns", n).param("start", start);
        for (i, name) in ["logits", "targets", "lse"].into_iter().enumerate() {
            d = bind_rows(d, name, Operand::Input(i), &io.inputs[i], r, w);
        }
        d = match per_row {
            true => bind_rows(d, "dy", Operand::Input(3), &io.inputs[3], r, w),
            false => d.bind("count", Operand::Input(3), 0, 4).bind("dloss", Operand::Input(4), 0, 4),
        };
        kernel = kernel.dispatch(bind_rows(d, "dlogits", Operand::Output(0), &io.outputs[0], r, w));
    }
    vec![kernel]
}

impl Op for CrossEntropyUpdate {
    fn name(&self) -> &'static str {
        "cross_entropy_update"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [logits, targets, previous @ ..] = inputs else {
            return Err("takes logits, targets and statistics".into());
        };
        let stats = TensorType::f32([check_rows(logits, targets)?, 3]);
        match previous {
            [] => Ok(vec![stats]),
            [previous] if **previous == stats => Ok(vec![stats]),
            _ => Err("the statistics so far must be f32 [R,3]".into()),
        }
    }

    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        let &[r, n] = io.inputs[0].shape.dims() else { unreachable!("checked when the node was made") };
        let workgroup = if limits.is_cpu { 8 } else { 64 };
        let previous = io.inputs.len() - 2;
        let mut kernel = Kernel::new("cross_entropy_update", format!("lanes_{workgroup}"))
            .constant("WORKGROUP", workgroup)
            .constant("PREVIOUS", previous)
            .constant("VECTOR", usize::from(by_fours(n, limits)));
        for w in windows(r, n, limits) {
            let mut d =
                Dispatch::new(spread(w.1, limits)).param("rows", w.1).param("columns", n).param("start", self.start);
            for (i, name) in ["logits", "targets", "previous"].into_iter().enumerate().take(2 + previous) {
                d = bind_rows(d, name, Operand::Input(i), &io.inputs[i], r, w);
            }
            kernel = kernel.dispatch(bind_rows(d, "stats", Operand::Output(0), &io.outputs[0], r, w));
        }
        vec![kernel]
    }

    fn cost(&self, io: &Io) -> Cost {
        Cost { flops: 10 * io.inputs[0].shape.elements() as u64, bytes: io.bytes() }
    }

    fn reduction(&self, io: &Io) -> usize {
        io.inputs[0].shape.last()
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let &[r, n] = inputs[0].dims() else { unreachable!("checked when the node was made") };
        let mut stats = Array::zeros([r, 3]);
        for (row, logits) in inputs[0].data.chunks_exact(n).enumerate() {
            let before = inputs.get(2).map_or([UNSEEN, 0.0, UNSEEN], |p| [0, 1, 2].map(|i| p.data[3 * row + i]));
            let max = logits.iter().copied().fold(before[0], f64::max);
            let sum = before[1] * (before[0] - max).exp() + logits.iter().map(|x| (x - max).exp()).sum::<f64>();
            let target = (inputs[1].data[row] as usize).checked_sub(self.start).and_then(|t| logits.get(t));
            stats.data[3 * row..3 * row + 3].copy_from_slice(&[max, sum, *target.unwrap_or(&before[2])]);
        }
        vec![stats]
    }
}

impl Op for CrossEntropyLoss {
    fn name(&self) -> &'static str {
        "cross_entropy_loss"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [stats, targets] = inputs else { return Err("takes statistics and targets".into()) };
        let r = check_rows(stats, targets)?;
        if r == 0 || stats.shape.last() != 3 {
            return Err("statistics must be f32 [R,3] and targets u32 [R], R > 0".into());
        }
        Ok(vec![TensorType::f32([1]), TensorType::f32([r]), TensorType::f32([1])])
    }

    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        let workgroup = if limits.is_cpu { 8 } else { 256 };
        let d = Dispatch::new([1, 1, 1])
            .bind("stats", Operand::Input(0), 0, io.inputs[0].bytes())
            .bind("targets", Operand::Input(1), 0, io.inputs[1].bytes())
            .bind("loss", Operand::Output(0), 0, 4)
            .bind("lse", Operand::Output(1), 0, io.outputs[1].bytes())
            .bind("count", Operand::Output(2), 0, 4)
            .param("rows", io.outputs[1].shape.elements());
        let kernel = Kernel::new("cross_entropy_loss", format!("lanes_{workgroup}"));
        vec![kernel.constant("WORKGROUP", workgroup).constant("LOADS", loads(limits)).dispatch(d)]
    }

    fn cost(&self, io: &Io) -> Cost {
        Cost { flops: 12 * io.outputs[1].shape.elements() as u64, bytes: io.bytes() }
    }

    fn reduction(&self, io: &Io) -> usize {
        io.outputs[1].shape.elements()
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let stats = inputs[0].data.chunks_exact(3);
        let lse: Vec<f64> = stats.clone().map(|s| s[0] + s[1].ln()).collect();
        let counts = inputs[1].data.iter().map(|&t| t != f64::from(IGNORE));
        let count = counts.clone().filter(|&c| c).count() as f64;
        let rows = stats.zip(&lse).zip(counts).filter(|(_, counts)| *counts);
        let loss = rows.map(|((s, lse), _)| lse - s[2]).sum::<f64>() / count.max(1.0);
        let one = |x| Array::new(TensorType::f32([1]), vec![x]);
        vec![one(loss), Array::new(TensorType::f32([lse.len()]), lse), one(count)]
    }
}

impl Op for CrossEntropyGrad {
    fn name(&self) -> &'static str {
        "cross_entropy_grad"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [logits, targets, lse, count, dloss] = inputs else {
            return Err("takes logits, targets, lse, count and dloss".into());
        };
        let (r, one) = (check_rows(logits, targets)?, TensorType::f32([1]));
        if **lse != TensorType::f32([r]) || **count != one || **dloss != one {
            return Err("lse must be f32 [R], count and dloss f32 [1]".into());
        }
        Ok(vec![(*logits).clone()])
    }

    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        chunk_grad(io, limits, self.start)
    }

    fn half_outputs(&self, _io: &Io, _limits: &Limits) -> Vec<usize> {
        vec![0]
    }

    fn cost(&self, io: &Io) -> Cost {
        Cost { flops: 10 * io.elements(), bytes: io.bytes() }
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let n = inputs[0].ty.shape.last();
        let scale = inputs[4].data[0] / inputs[3].data[0].max(1.0);
        let gradient = |(i, x): (usize, &f64)| {
            let target = inputs[1].data[i / n];
            let hit = target == (self.start + i % n) as f64;
            let counts = target != f64::from(IGNORE);
            if counts { ((x - inputs[2].data[i / n]).exp() - f64::from(u8::from(hit))) * scale } else { 0.0 }
        };
        let data = inputs[0].data.iter().enumerate().map(gradient).collect();
        vec![Array::new(inputs[0].ty.clone(), data)]
    }
}
