//! How fast a device copies and multiplies, and how long a plan must take at least.

use super::ceilings::Class;
use super::race_kernel;
use crate::base::{Limits, TensorType};
use crate::compile::{Chooser, Plan, Step, settle};
use crate::error::{Error, Result};
use crate::gpu::{Gpu, time};
use crate::graph::{Io, Op};
use crate::ops::{Copy, MatMul, Operands};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Bytes that the copy reads, and writes, where the host computes: beyond its caches.
const COPY_CPU: u64 = 32 << 20;
/// The same on a GPU, whose last level of cache holds up to 256 MiB: 50 (H100), 72 (RTX 4090), 96 (RX 7900 XTX), 256 (MI300X).
const COPY_GPU: u64 = 512 << 20;
/// Products grow from the first to the last size until one takes [`ENOUGH`] seconds.
const SIZES: [usize; 4] = [512, 1024, 2048, 4096];
const ENOUGH: f64 = 5e-3;

/// Measured limits of a device (Williams, Waterman and Patterson, "Roofline", 2009).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Roofline {
    /// Bytes read and written by a large copy, per second: a kernel's or the device's own, whichever is faster.
    pub bytes_per_second: f64,
    /// Floating-point operations per second of the best matrix product, f32.
    pub flops_per_second: f64,
    /// The same of operands in f16 and sums in f32; 0 where it was not measured.
    #[serde(default)]
    pub half_flops_per_second: f64,
}

impl Roofline {
    /// Measures a device, with the product's kernels that `chooser` picks; takes half a second on a CPU.
    ///
    /// # Errors
    /// If the device fails.
    pub async fn measure(gpu: &Gpu, chooser: &mut dyn Chooser) -> Result<Roofline> {
        let flops_per_second = matmul(gpu, chooser, Operands::F32).await?;
        Ok(Roofline { bytes_per_second: copy(gpu).await?, flops_per_second, half_flops_per_second: 0.0 })
    }

    /// Adds what mixed precision is measured by: the best product of f16 operands.
    ///
    /// # Errors
    /// If the device fails.
    pub async fn with_half(self, gpu: &Gpu, chooser: &mut dyn Chooser) -> Result<Roofline> {
        let half_flops_per_second = matmul(gpu, chooser, Operands::F16).await?;
        Ok(Roofline { half_flops_per_second, ..self })
    }

    /// Floating-point operations per second of kernels of a class. What is allowed to round its operands may also leave that.
    pub fn rate(&self, class: Class) -> f64 {
        match class {
            Class::F32 => self.flops_per_second,
            Class::F16 | Class::Cooperative => self.flops_per_second.max(self.half_flops_per_second),
        }
    }

    /// The better of two measurements, each limit for itself: whatever else a machine does only makes them lower.
    pub fn max(self, other: Roofline) -> Roofline {
        Roofline {
            bytes_per_second: self.bytes_per_second.max(other.bytes_per_second),
            flops_per_second: self.flops_per_second.max(other.flops_per_second),
            half_flops_per_second: self.half_flops_per_second.max(other.half_flops_per_second),
        }
    }

    /// Seconds that a step takes at least: its work or its traffic, whichever is longer.
    pub fn step_seconds(&self, step: &Step) -> f64 {
        self.cost_seconds(Class::of(step.shader, &step.constants), step.flops, step.bytes)
    }

    /// Seconds that this much work of a class and this much traffic takes at least, whichever is longer.
    pub fn cost_seconds(&self, class: Class, flops: u64, bytes: u64) -> f64 {
        (flops as f64 / self.rate(class)).max(bytes as f64 / self.bytes_per_second)
    }

    /// Seconds that one run of a plan takes at least: the sum over its steps.
    pub fn seconds(&self, plan: &Plan) -> f64 {
        plan.steps.iter().map(|s| self.step_seconds(s)).sum()
    }

    /// The part of the roofline that a run of `seconds` reaches; 1 is all of it.
    pub fn fraction(&self, plan: &Plan, seconds: f64) -> f64 {
        self.seconds(plan) / seconds
    }
}

fn io(op: &dyn Op, inputs: Vec<TensorType>) -> Result<Io> {
    let outputs = op.infer(&inputs.iter().collect::<Vec<_>>()).map_err(Error::Graph)?;
    Ok(Io { inputs, outputs })
}

/// Bytes that the copy reads, and writes: what no cache holds, in an eighth of the memory and half of the largest buffer at most.
pub(super) fn copied(limits: &Limits) -> u64 {
    let wanted = if limits.is_cpu { COPY_CPU } else { COPY_GPU };
    wanted.min(limits.memory_bytes.unwrap_or(u64::MAX) / 8).min(limits.max_buffer_bytes / 2) / 4 * 4
}

/// Bytes a second; of a smaller copy where other programs hold the memory.
pub(super) async fn copy(gpu: &Gpu) -> Result<f64> {
    let mut bytes = copied(gpu.limits());
    loop {
        match copy_of(gpu, bytes).await {
            Err(Error::Memory { .. }) if bytes > COPY_CPU => bytes = bytes / 8 * 4,
            other => return other,
        }
    }
}

async fn copy_of(gpu: &Gpu, bytes: u64) -> Result<f64> {
    let io = io(&Copy, vec![TensorType::f32([bytes as usize / 4])])?;
    let kernel = race_kernel(gpu, &Copy.kernels(&io, gpu.limits())[0], &io, None).await?;
    let from = gpu.storage("copied", io.bytes() / 2).await?;
    let to = gpu.storage("copy", io.bytes() / 2).await?;
    let mut best = kernel;
    for _ in 0..3 {
        best = best.min(time(gpu, |s| s.copy(from.whole(), &to, 0)).await?);
    }
    Ok(io.bytes() as f64 / best)
}

/// Flops a second of the best product that the chooser's kernels make of such operands.
async fn matmul(gpu: &Gpu, chooser: &mut dyn Chooser, operands: Operands) -> Result<f64> {
    let op: Arc<dyn Op> = Arc::new(MatMul::new(false, false).with(operands));
    let limits = gpu.limits();
    let mut best = 0.0_f64;
    for n in SIZES {
        let io = io(&*op, vec![TensorType::f32([n, n]), TensorType::f32([n, n])])?;
        if io.bytes() > limits.max_buffer_bytes {
            break;
        }
        let kernels = op.kernels(&io, limits);
        let picked = settle(chooser, |chooser| Ok(chooser.choose(&op, &io, &kernels))).await?.min(kernels.len() - 1);
        let seconds = race_kernel(gpu, &kernels[picked], &io, None).await?;
        best = best.max(op.cost(&io).flops as f64 / seconds);
        if seconds > ENOUGH {
            break;
        }
    }
    Ok(best)
}

/// Flops a second of the best product that kernels of one class make of f16 operands; 0 where none is offered.
pub(super) async fn product(gpu: &Gpu, class: Class) -> Result<f64> {
    let op = MatMul::new(false, false).with(Operands::F16);
    let limits = gpu.limits();
    let mut best = 0.0_f64;
    for n in SIZES {
        let io = io(&op, vec![TensorType::f32([n, n]), TensorType::f32([n, n])])?;
        let kernels = op.kernels(&io, limits).into_iter().filter(|k| Class::of(k.shader, &k.constants) == class);
        let mut fastest: Option<f64> = None;
        for kernel in kernels {
            // One that the driver refuses is no ceiling.
            if let Ok(seconds) = race_kernel(gpu, &kernel, &io, fastest).await {
                fastest = Some(fastest.map_or(seconds, |f| f.min(seconds)));
            }
            gpu.check()?;
        }
        let Some(seconds) = fastest else { break };
        best = best.max(op.cost(&io).flops as f64 / seconds);
        if seconds > ENOUGH || 4 * io.bytes() > limits.max_buffer_bytes {
            break;
        }
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_larger_than_caches_and_fits_the_memory() {
        let mib = |n: u64| n << 20;
        // Memory and largest buffer in MiB, whether the host computes, and the copy.
        for (memory, buffer, is_cpu, copy) in [
            (Some(24 << 10), 4 << 10, false, 512),
            (None, 4 << 10, false, 512),
            // Half of the buffer: operands stand between guards.
            (Some(24 << 10), 256, false, 128),
            (Some(2 << 10), 4 << 10, false, 256),
            (Some(24 << 10), 4 << 10, true, 32),
            (Some(100), 4 << 10, true, 12),
        ] {
            let limits =
                Limits { is_cpu, memory_bytes: memory.map(mib), max_buffer_bytes: mib(buffer), ..Limits::default() };
            let found = copied(&limits);
            assert!(found.is_multiple_of(4) && found >> 20 == copy, "{memory:?} {buffer} {is_cpu}: {found}");
        }
    }
}
