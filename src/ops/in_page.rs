//! What operators share that work in place on one tensor's range of a flat page.

use super::windows::{elements_per_binding, item};
use crate::base::{DType, Limits, TensorType};
use crate::graph::{Dispatch, Io, Kernel, Operand, aligned, spread};

/// Checks the inputs: a page, a tensor that lies in it from `start` on, and f32 `[told]`.
pub(super) fn check(inputs: &[&TensorType], start: usize, told: usize) -> Result<(), String> {
    let [page, x, rest] = inputs else { return Err("takes a page, a tensor and what it is told".into()) };
    let end = start + x.shape.elements();
    if page.dtype != DType::F32 || x.dtype != DType::F32 || page.shape.rank() != 1 || end > page.shape.elements() {
        return Err(format!("a tensor from element {start} on must lie in an f32 page"));
    }
    let unit = aligned(DType::F32);
    if !start.is_multiple_of(unit) || **rest != TensorType::f32([told]) {
        return Err(format!("{start} must be a multiple of {unit}, and what it is told f32[{told}]"));
    }
    Ok(())
}

/// A kernel over windows of input 0, from `start` on, and of `tensors`, whose sizes are those of input 1. Names are those of
/// input 0 and of input 2, which is bound whole.
pub(super) fn kernel(
    shader: &'static str,
    [page, told]: [&'static str; 2],
    tensors: &[(&'static str, Operand)],
    params: &[(&'static str, f32)],
    start: usize,
    io: &Io,
    limits: &Limits,
) -> Kernel {
    let n = io.inputs[1].shape.elements();
    let workgroup = if limits.is_cpu { 64 } else { 256 };
    let item = item(n);
    let mut kernel = Kernel::new(shader, format!("lanes_{workgroup}"))
        .constant("WORKGROUP", workgroup)
        .constant("VECTOR", usize::from(item == 4));
    let window = elements_per_binding(limits);
    for from in (0..n).step_by(window) {
        let count = window.min(n - from);
        let (at, bytes) = (from as u64 * 4, count as u64 * 4);
        let mut d = Dispatch::new(spread((count / item).div_ceil(workgroup), limits))
            .param("count", count / item)
            .bind(page, Operand::Input(0), at + start as u64 * 4, bytes)
            .bind(told, Operand::Input(2), 0, io.inputs[2].bytes());
        for (name, operand) in tensors {
            d = d.bind(*name, *operand, at, bytes);
        }
        for &(name, value) in params {
            d = d.param(name, value);
        }
        kernel = kernel.dispatch(d);
    }
    kernel
}
