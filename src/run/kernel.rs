//! One kernel alone, on buffers of its own between guard words: for operator tests, the self-test and the tuner.

use super::bind::{check_range, params_bytes, resolve};
use super::executor::compile_all;
use super::timing::{self, Timing, repeats};
use crate::base::{Array, DType, TensorType};
use crate::error::{Error, Result};
use crate::gpu::{BindGroup, Buffer, Gpu, Pipeline, Submission};
use crate::graph::{Io, Kernel, Operand};
use crate::shader::assemble;
use half::f16;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What guards hold; as f32 a number that no test expects.
const GUARD: [u8; 4] = 0xDEAD_BEEF_u32.to_le_bytes();
/// Bytes after which the numbers of an operand that is only timed repeat: more than any compressor looks at.
const NOISE: u64 = 4 << 20;
/// What outputs hold before: a NaN, and as two f16 two of them.
const POISON: [u8; 4] = 0x7FC0_7FC0_u32.to_le_bytes();

/// A kernel with its buffers, ready to be recorded.
pub(super) struct Prepared {
    inputs: Vec<Buffer>,
    outputs: Vec<Buffer>,
    scratch: Option<Buffer>,
    steps: Vec<(Arc<Pipeline>, BindGroup, [u32; 3])>,
    /// Bytes of guard on either side of an operand.
    guard: u64,
}

impl Prepared {
    async fn new(gpu: &Gpu, kernel: &Kernel, io: &Io) -> Result<Prepared> {
        let guard = gpu.limits().binding_alignment.max(256);
        let mut made = Prepared { inputs: Vec::new(), outputs: Vec::new(), scratch: None, steps: Vec::new(), guard };
        for ty in &io.inputs {
            made.inputs.push(gpu.storage("input", ty.bytes() + 2 * guard).await?);
        }
        for ty in &io.outputs {
            made.outputs.push(gpu.storage("output", ty.bytes() + 2 * guard).await?);
        }
        if kernel.scratch > 0 {
            made.scratch = Some(gpu.storage("scratch", kernel.scratch + 2 * guard).await?);
        }
        for stage in kernel.stages() {
            made.stage(gpu, stage, io, kernel.scratch).await?;
        }
        Ok(made)
    }

    /// Adds the dispatches of one stage.
    async fn stage(&mut self, gpu: &Gpu, kernel: &Kernel, io: &Io, scratch: u64) -> Result<()> {
        let source = assemble(kernel.shader, &kernel.constants, &kernel.hooks)?;
        let pipeline = gpu.pipeline(kernel.shader, &source.text, &source.layout()).await?;
        let guard = self.guard;
        let scratch = TensorType::f32([(scratch / 4) as usize]);
        // One buffer for all dispatches: a tensor in many windows has hundreds.
        let bytes = source.params_bytes.next_multiple_of(16);
        let each = bytes.next_multiple_of(gpu.limits().binding_alignment as usize);
        let mut params = Vec::new();
        for (i, d) in kernel.dispatches.iter().enumerate() {
            params.resize(i * each, 0);
            params.extend(params_bytes(&source, &d.params)?);
        }
        params.resize(kernel.dispatches.len() * each, 0);
        let uniform = gpu.uniform("params", params.len() as u64).await?;
        gpu.write(&uniform, 0, &params).await?;
        for (i, d) in kernel.dispatches.iter().enumerate() {
            let numbers = resolve(&source, &d.bindings)?;
            let mut ranges = Vec::new();
            if let Some(binding) = source.uniform() {
                ranges.push((binding.index, uniform.range((i * each) as u64, bytes as u64)));
            }
            for (bind, (index, _)) in d.bindings.iter().zip(numbers) {
                let (buffer, ty) = match bind.operand {
                    Operand::Input(i) => (self.inputs.get(i), io.inputs.get(i)),
                    Operand::Output(i) => (self.outputs.get(i), io.outputs.get(i)),
                    Operand::Scratch => (self.scratch.as_ref(), Some(&scratch)),
                };
                let (Some(buffer), Some(ty)) = (buffer, ty) else {
                    let message =
                        format!("`{}` is bound to {:?}, which the node does not have", bind.name, bind.operand);
                    return Err(Error::Shader { shader: source.shader.clone(), message });
                };
                let limits = gpu.limits();
                check_range(&source, bind, ty, limits)?;
                // Many drivers drop accesses beyond a binding, others do not: binding the guard as well brings them to light.
                let to_end = bind.offset + bind.bytes == ty.bytes() && bind.bytes + guard <= limits.max_binding_bytes;
                let bytes = bind.bytes + if to_end { guard } else { 0 };
                ranges.push((index, buffer.range(guard + bind.offset, bytes)));
            }
            let group = gpu.bind(&pipeline, &ranges).await?;
            self.steps.push((pipeline.clone(), group, d.workgroups));
        }
        Ok(())
    }

    pub(super) fn record(&self, submission: &mut Submission) {
        for (pipeline, group, workgroups) in &self.steps {
            submission.dispatch(pipeline, group, *workgroups);
        }
    }

    async fn fill(&self, gpu: &Gpu, buffer: &Buffer, bytes: &[u8]) -> Result<()> {
        let guard = GUARD.repeat(self.guard as usize / 4);
        gpu.write(buffer, 0, &[&guard, bytes, &guard].concat()).await
    }

    /// Reads an operand back and checks what lies around it.
    async fn read(&self, gpu: &Gpu, kernel: &Kernel, buffer: &Buffer, ty: &TensorType, what: &str) -> Result<Array> {
        let bytes = gpu.read(buffer.whole()).await?;
        let (start, end) = (self.guard as usize, (self.guard + ty.bytes()) as usize);
        let broken = |range: std::ops::Range<usize>| {
            bytes[range.clone()].chunks_exact(4).position(|w| w != GUARD).map(|i| range.start + i * 4)
        };
        if let Some(at) = broken(0..start).or_else(|| broken(end..bytes.len())) {
            let message =
                format!("variant {} wrote outside {what}, {ty}: at byte {}", kernel.variant, at as i64 - start as i64);
            return Err(Error::Shader { shader: kernel.shader.to_string(), message });
        }
        Ok(Array::from_bytes(ty.clone(), &bytes[start..end]))
    }
}

/// Runs one kernel alone on `inputs`. Returns the outputs (NaN where nothing was written), then the inputs numbered in
/// `writes` as they are afterwards.
///
/// # Errors
/// [`Error::Shader`] if the kernel does not fit its shader, or wrote outside its operands or into an input not named in
/// `writes`; [`Error::Device`] if the device fails.
pub async fn run_kernel(gpu: &Gpu, kernel: &Kernel, io: &Io, inputs: &[Array], writes: &[usize]) -> Result<Vec<Array>> {
    if inputs.len() != io.inputs.len() || inputs.iter().zip(&io.inputs).any(|(a, t)| a.ty != *t) {
        return Err(Error::Graph(format!("{}: the arrays given are not of the kernel's input types", kernel.shader)));
    }
    let prepared = Prepared::new(gpu, kernel, io).await?;
    for (buffer, array) in prepared.inputs.iter().zip(inputs) {
        prepared.fill(gpu, buffer, &array.to_bytes()).await?;
    }
    for (buffer, ty) in prepared.outputs.iter().zip(&io.outputs) {
        prepared.fill(gpu, buffer, &POISON.repeat(ty.bytes() as usize / POISON.len())).await?;
    }
    let scratch = TensorType::f32([(kernel.scratch / 4) as usize]);
    if let Some(buffer) = &prepared.scratch {
        prepared.fill(gpu, buffer, &POISON.repeat(scratch.shape.elements())).await?;
    }
    let mut submission = gpu.submission();
    prepared.record(&mut submission);
    submission.submit()?;
    if let Some(buffer) = &prepared.scratch {
        prepared.read(gpu, kernel, buffer, &scratch, "its scratch memory").await?;
    }
    let mut results = Vec::new();
    for (i, (buffer, ty)) in prepared.outputs.iter().zip(&io.outputs).enumerate() {
        results.push(prepared.read(gpu, kernel, buffer, ty, &format!("output {i}")).await?);
    }
    for (i, (buffer, ty)) in prepared.inputs.iter().zip(&io.inputs).enumerate() {
        let array = prepared.read(gpu, kernel, buffer, ty, &format!("input {i}")).await?;
        if writes.contains(&i) {
            continue;
        }
        if array.to_bytes() != inputs[i].to_bytes() {
            let message =
                format!("variant {} changed input {i}, {ty}, which the operator does not write", kernel.variant);
            return Err(Error::Shader { shader: kernel.shader.to_string(), message });
        }
    }
    for &i in writes {
        results.push(prepared.read(gpu, kernel, &prepared.inputs[i], &io.inputs[i], &format!("input {i}")).await?);
    }
    Ok(results)
}

/// Compiles kernels on all cores, and says how long that took. What fails here fails again where it is run.
pub(super) fn compile<'a>(gpu: &Gpu, kernels: impl IntoIterator<Item = &'a Kernel>) -> Duration {
    let start = Instant::now();
    let stages = kernels.into_iter().flat_map(Kernel::stages);
    let sources: Vec<_> = stages.filter_map(|k| assemble(k.shader, &k.constants, &k.hooks).ok()).collect();
    compile_all(gpu, &sources);
    start.elapsed()
}

/// A kernel with buffers of numbers in (-0.5, 0.5), in f32 and f16; others hold zeros. Large operands repeat the first [`NOISE`] bytes,
/// which the device copies: the host would take longer than what is to be timed.
pub(super) async fn filled(gpu: &Gpu, kernel: &Kernel, io: &Io) -> Result<Prepared> {
    let prepared = Prepared::new(gpu, kernel, io).await?;
    for dtype in [DType::F32, DType::F16] {
        let floats = || prepared.inputs.iter().zip(&io.inputs).filter(|(_, ty)| ty.dtype == dtype);
        let most = floats().map(|(_, ty)| ty.bytes()).max().unwrap_or(0).min(NOISE);
        if most == 0 {
            continue;
        }
        let noise = gpu.storage("noise", most).await?;
        gpu.write(&noise, 0, &small_numbers(dtype, most as usize)).await?;
        let mut submission = gpu.submission();
        for (buffer, ty) in floats() {
            for at in (0..ty.bytes()).step_by(NOISE as usize) {
                submission.copy(noise.range(0, NOISE.min(ty.bytes() - at)), buffer, prepared.guard + at)?;
            }
        }
        submission.submit()?;
    }
    Ok(prepared)
}

/// [`time_kernel`] in haste, for a choice between kernels: one run to warm up and the better of two measurements; fewer
/// once the kernel is seen to take more than twice the time of the best one so far.
///
/// # Errors
/// As [`run_kernel`].
pub async fn race_kernel(gpu: &Gpu, kernel: &Kernel, io: &Io, best: Option<f64>) -> Result<f64> {
    let prepared = filled(gpu, kernel, io).await?;
    let best = best.unwrap_or(f64::INFINITY);
    // The first run also pays for page faults and the driver's lazy work, so it is given more.
    let warm = timing::mean(gpu, 1, |s| prepared.record(s)).await?;
    if warm > 8.0 * best {
        return Ok(warm);
    }
    let first = timing::mean(gpu, repeats(warm), |s| prepared.record(s)).await?;
    if first > 2.0 * best {
        return Ok(first);
    }
    Ok(first.min(timing::mean(gpu, repeats(first), |s| prepared.record(s)).await?))
}

/// Seconds that one run of a kernel takes on this device: the median over `runs` measurements, each of as many runs as
/// fill two milliseconds. Inputs hold small numbers, integer ones zeros.
///
/// # Errors
/// As [`run_kernel`].
pub async fn time_kernel(gpu: &Gpu, kernel: &Kernel, io: &Io, runs: usize) -> Result<f64> {
    let prepared = filled(gpu, kernel, io).await?;
    Ok(Timing::measure(gpu, runs, |s| prepared.record(s)).await?.median)
}

/// Numbers in (-0.5, 0.5) without a pattern that a cache or a compressor could use.
fn small_numbers(dtype: DType, bytes: usize) -> Vec<u8> {
    let number = |i: usize| ((i as u32).wrapping_mul(0x9E37_79B9) >> 8) as f32 / (1 << 24) as f32 - 0.5;
    match dtype {
        DType::F16 => (0..bytes / 2).flat_map(|i| f16::from_f32(number(i)).to_le_bytes()).collect(),
        _ => (0..bytes / 4).flat_map(|i| number(i).to_le_bytes()).collect(),
    }
}
