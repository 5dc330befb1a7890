//! What a device can do at most, each limit measured by itself: what the roofline is drawn from.

use super::Timing;
use super::kernel::{filled, race_kernel};
use super::roofline::Roofline;
use super::timing::mean;
use crate::base::TensorType;
use crate::compile::{Plan, Step};
use crate::error::Result;
use crate::gpu::{Gpu, Submission};
use crate::graph::{Dispatch, Io, Kernel, Op, Operand};
use crate::ops::Copy;
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// Steps of each invocation of `arithmetic.wgsl`, and the flops of one: two multiply-adds of four lanes.
const STEPS: usize = 2048;
const STEP_FLOPS: usize = 2 * 4 * 2;
/// Dispatches of which the cost of one is the mean.
const DISPATCHES: usize = 512;
/// Submissions of which the cost of one is the mean.
const SUBMISSIONS: usize = 32;

/// A rate of arithmetic in one class of precision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ceiling {
    /// `f32`: operands and sums. Others (`f16`: operands f16, sums f32; `cooperative`) join the list in [`Machine::measure`]
    /// with the first kernel of their class.
    pub class: String,
    /// Floating-point operations per second of multiply-adds on registers, without memory.
    pub arithmetic: f64,
    /// Floating-point operations per second of the best matrix product that we have.
    pub matmul: f64,
}

/// The measured limits of a device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Bytes read and written by a large copy, per second.
    pub bytes_per_second: f64,
    /// Rates of arithmetic, f32 first.
    pub ceilings: Vec<Ceiling>,
    /// Seconds that a small dispatch takes among others in one pass.
    pub dispatch_seconds: f64,
    /// Seconds that a small dispatch takes in a pass of its own.
    pub pass_seconds: f64,
    /// Seconds from handing over a submission of one small dispatch to hearing that it is done.
    pub submission_seconds: f64,
}

impl Machine {
    /// Measures what `roofline` does not say yet.
    ///
    /// # Errors
    /// If the device fails.
    pub async fn measure(gpu: &Gpu, roofline: Roofline) -> Result<Machine> {
        let f32 =
            Ceiling { class: "f32".into(), arithmetic: arithmetic(gpu).await?, matmul: roofline.flops_per_second };
        let io = io(1);
        let tiny = filled(gpu, &Copy.kernels(&io, gpu.limits())[0], &io).await?;
        let mut each = Vec::new();
        for split in [false, true] {
            let dispatch = |s: &mut Submission| {
                tiny.record(s);
                if split {
                    s.split();
                }
            };
            let mut best = f64::INFINITY;
            for _ in 0..3 {
                best = best.min(mean(gpu, DISPATCHES, dispatch).await?);
            }
            each.push(best);
        }
        let mut waits = Vec::new();
        for _ in 0..SUBMISSIONS {
            let mut submission = gpu.submission();
            tiny.record(&mut submission);
            let start = Instant::now();
            submission.submit()?.wait(gpu).await?;
            waits.push(start.elapsed().as_secs_f64());
        }
        Ok(Machine {
            bytes_per_second: roofline.bytes_per_second,
            ceilings: vec![f32],
            dispatch_seconds: each[0],
            pass_seconds: each[1],
            submission_seconds: Timing::of(waits).median,
        })
    }

    /// The better of two measurements, each limit for itself: whatever else a machine does only makes them worse.
    pub fn best(&self, other: &Machine) -> Machine {
        let ceilings = self.ceilings.iter().zip(&other.ceilings).map(|(a, b)| Ceiling {
            class: a.class.clone(),
            arithmetic: a.arithmetic.max(b.arithmetic),
            matmul: a.matmul.max(b.matmul),
        });
        Machine {
            bytes_per_second: self.bytes_per_second.max(other.bytes_per_second),
            ceilings: ceilings.collect(),
            dispatch_seconds: self.dispatch_seconds.min(other.dispatch_seconds),
            pass_seconds: self.pass_seconds.min(other.pass_seconds),
            submission_seconds: self.submission_seconds.min(other.submission_seconds),
        }
    }

    /// The roof over kernels of f32: its arithmetic is the device's own, so that a product that gets slower is seen.
    pub fn roofline(&self) -> Roofline {
        let flops_per_second = self.ceilings.first().map_or(0.0, |c| c.arithmetic.max(c.matmul));
        Roofline { bytes_per_second: self.bytes_per_second, flops_per_second }
    }

    /// Seconds that a step takes if it reaches the roof and its dispatches cost what small ones do.
    pub fn predicted(&self, step: &Step) -> f64 {
        self.roofline().step_seconds(step).max(self.dispatch_seconds * step.dispatches.len() as f64)
    }

    /// The same of a whole plan, with the way to the device and back.
    pub fn predicted_plan(&self, plan: &Plan) -> f64 {
        self.submission_seconds + plan.steps.iter().map(|s| self.predicted(s)).sum::<f64>()
    }
}

fn io(elements: usize) -> Io {
    let ty = TensorType::f32([elements]);
    Io { inputs: vec![ty.clone()], outputs: vec![ty] }
}

/// Multiply-adds that need nothing but registers: flops per second. Compilers differ in whether `fma` or the two operations
/// that it stands for give the device's own instruction.
async fn arithmetic(gpu: &Gpu) -> Result<f64> {
    let mut best = 0.0_f64;
    for fused in [0, 1] {
        let (lanes, mut groups) = (64, 64_usize);
        // As many workgroups as fill the device: until they take milliseconds.
        while groups <= 65_535 {
            let io = io(groups * lanes);
            let kernel = Kernel::new("arithmetic", "registers")
                .constant("WORKGROUP", lanes)
                .constant("STEPS", STEPS)
                .constant("FUSED", fused)
                .dispatch(Dispatch::new([groups as u32, 1, 1]).bind("y", Operand::Output(0), 0, io.outputs[0].bytes()));
            let seconds = race_kernel(gpu, &kernel, &io, None).await?;
            best = best.max((groups * lanes * STEPS * STEP_FLOPS) as f64 / seconds);
            if seconds > 5e-3 {
                break;
            }
            groups *= 4;
        }
    }
    Ok(best)
}
