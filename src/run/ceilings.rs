//! Rates of arithmetic alone, on registers, by class of precision: what no kernel of a class can beat.

use super::kernel::race_kernel;
use crate::base::{Limits, TensorType};
use crate::error::Result;
use crate::gpu::Gpu;
use crate::graph::{Constant, Dispatch, Io, Kernel, Operand};
use serde::{Deserialize, Serialize};

/// Steps of each invocation of `arithmetic.wgsl`, and the flops of one: two multiply-adds of four lanes.
const STEPS: usize = 2048;
const STEP_FLOPS: usize = 2 * 4 * 2;
/// Steps of each subgroup of `arithmetic_coop.wgsl`, and the subgroups of a workgroup.
const COOP_STEPS: usize = 512;
const COOP_GROUPS: usize = 4;
/// A measurement this long is believed.
const ENOUGH: f64 = 5e-3;

/// What a kernel multiplies with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// Operands and sums in f32.
    #[default]
    F32,
    /// Operands rounded to f16, sums in f32, by the instructions that every adapter has.
    F16,
    /// Cooperative matrices: operands in f16, sums in f32.
    Cooperative,
}

impl Class {
    /// The class of a kernel: shaders of cooperative matrices enable them, and others say by a header constant that they
    /// round their operands.
    pub fn of(shader: &str, constants: &[Constant]) -> Class {
        if crate::shader::text(shader).is_some_and(|t| t.contains("\nenable wgpu_cooperative_matrix;")) {
            Class::Cooperative
        } else if constants.contains(&("HALF", 1)) {
            Class::F16
        } else {
            Class::F32
        }
    }

    /// As it is printed.
    pub fn name(self) -> &'static str {
        match self {
            Class::F32 => "f32",
            Class::F16 => "f16",
            Class::Cooperative => "cooperative",
        }
    }

    /// The classes that an adapter with these limits computes in.
    pub fn all(limits: &Limits) -> Vec<Class> {
        let f16 = limits.has_f16.then_some(Class::F16);
        let cooperative = (limits.has_f16 && subgroup(limits).is_some()).then_some(Class::Cooperative);
        [Some(Class::F32), f16, cooperative].into_iter().flatten().collect()
    }
}

/// Lanes of the largest subgroup where cooperative matrices can be used. Where a driver makes smaller ones, several make the same
/// and the rate is a part of what there is, as it is for kernels.
fn subgroup(limits: &Limits) -> Option<usize> {
    let lanes = limits.max_subgroup as usize;
    (!limits.cooperative.is_empty() && COOP_GROUPS * lanes <= limits.max_invocations as usize).then_some(lanes)
}

/// A kernel of arithmetic alone, what one workgroup of it does, and how much it writes.
struct Work {
    shader: &'static str,
    constants: Vec<(&'static str, usize)>,
    flops: usize,
    elements: usize,
}

impl Work {
    /// Multiply-adds of `lanes` invocations a workgroup.
    fn lanes(lanes: usize, is_fused: bool, is_half: bool) -> Work {
        let mut constants = vec![("WORKGROUP", lanes), ("STEPS", STEPS), ("FUSED", usize::from(is_fused))];
        constants.extend(is_half.then_some(("HALF", 1)));
        Work { shader: "arithmetic", constants, flops: lanes * STEPS * STEP_FLOPS, elements: lanes }
    }

    /// Multiply-adds of cooperative matrices of `size`.
    fn matrices(size: usize, subgroup: usize, is_many: bool) -> Work {
        let sums = if is_many { 8 } else { 2 };
        let constants = vec![
            ("SIZE", size),
            ("SIZE_16", usize::from(size == 16)),
            ("SUBGROUP", subgroup),
            ("GROUPS", COOP_GROUPS),
            ("STEPS", COOP_STEPS),
            ("MANY", usize::from(is_many)),
        ];
        let flops = COOP_GROUPS * COOP_STEPS * sums * 2 * size.pow(3);
        Work { shader: "arithmetic_coop", constants, flops, elements: COOP_GROUPS * size * size }
    }

    /// All that may be the fastest of a class.
    fn all(class: Class, limits: &Limits) -> Vec<Work> {
        // Compilers differ in whether `fma` or the two operations that it stands for give the device's own instruction.
        match class {
            Class::F32 | Class::F16 => [false, true].map(|fused| Work::lanes(64, fused, class == Class::F16)).into(),
            Class::Cooperative => {
                let lanes = subgroup(limits).unwrap_or(1);
                let sizes = limits.cooperative.iter().map(|&size| size as usize);
                sizes.flat_map(|size| [false, true].map(|many| Work::matrices(size, lanes, many))).collect()
            }
        }
    }

    fn kernel(&self, groups: usize) -> (Kernel, Io) {
        let ty = TensorType::f32([groups * self.elements]);
        let dispatch = Dispatch::new([groups as u32, 1, 1]).bind("y", Operand::Output(0), 0, ty.bytes());
        let kernel = Kernel::new(self.shader, "registers");
        let kernel = self.constants.iter().fold(kernel, |k, &(name, value)| k.constant(name, value));
        (kernel.dispatch(dispatch), Io { inputs: Vec::new(), outputs: vec![ty] })
    }

    /// Floating-point operations a second of this many workgroups, and the seconds that they took.
    async fn rate(&self, gpu: &Gpu, groups: usize) -> Result<(f64, f64)> {
        let (kernel, io) = self.kernel(groups);
        let seconds = race_kernel(gpu, &kernel, &io, None).await?;
        Ok(((groups * self.flops) as f64 / seconds, seconds))
    }
}

/// Floating-point operations a second of a class. As many workgroups as fill the device: until they take milliseconds.
pub(super) async fn arithmetic(gpu: &Gpu, class: Class) -> Result<f64> {
    let limits = gpu.limits();
    let mut best = 0.0_f64;
    for work in Work::all(class, limits) {
        let mut groups = if limits.is_cpu { 16_usize } else { 64 };
        while groups <= limits.max_workgroups as usize {
            let (rate, seconds) = work.rate(gpu, groups).await?;
            best = best.max(rate);
            if seconds > ENOUGH || rate < best / 2.0 {
                break;
            }
            groups *= 4;
        }
    }
    Ok(best)
}

/// How many workgroups the device computes at the same time at full rate, at least one: a single one of 256 invocations,
/// each with eight chains, keeps one of its processors busy. `peak` is what [`arithmetic`] gave for f32.
pub(super) async fn width(gpu: &Gpu, peak: f64) -> Result<f64> {
    let lanes = gpu.limits().max_invocations.min(256) as usize;
    let mut one = 0.0_f64;
    for fused in [false, true] {
        one = one.max(Work::lanes(lanes, fused, false).rate(gpu, 1).await?.0);
    }
    Ok((peak / one).max(1.0))
}

/// Every kernel that measures a ceiling on an adapter with these limits: for tests.
pub fn ceiling_kernels(limits: &Limits) -> Vec<Kernel> {
    let works = Class::all(limits).into_iter().flat_map(|class| Work::all(class, limits));
    works.map(|work| work.kernel(1).0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_those_of_the_limits_and_of_kernels() {
        let none = Limits::default();
        assert_eq!(Class::all(&none), [Class::F32]);
        let half = Limits { has_f16: true, ..none };
        assert_eq!(Class::all(&half), [Class::F32, Class::F16]);
        // Subgroups of 32 or 64 lanes are taken for 64; of more than a quarter of a workgroup there is no room for four.
        let matrices = Limits { cooperative: vec![16], min_subgroup: 32, max_subgroup: 64, ..half.clone() };
        assert_eq!(Class::all(&matrices), [Class::F32, Class::F16, Class::Cooperative]);
        let kernels = ceiling_kernels(&matrices);
        assert_eq!(kernels.len(), 6);
        assert!(kernels[4..].iter().all(|kernel| kernel.constants.contains(&("SUBGROUP", 64))));
        assert_eq!(Class::all(&Limits { max_subgroup: 128, ..matrices }), [Class::F32, Class::F16]);
        assert_eq!(Class::of("matmul_coop", &[("HALF", 1)]), Class::Cooperative);
        assert_eq!(Class::of("matmul_tile", &[("TA", 0), ("HALF", 1)]), Class::F16);
        assert_eq!(Class::of("matmul_tile", &[("TA", 0), ("HALF", 0)]), Class::F32);
    }

    #[test]
    fn one_step_of_a_matrix_is_its_products() {
        // Four subgroups, each with two sums: 8 x 8 dot products of 8 multiply-adds.
        assert_eq!(Work::matrices(8, 8, false).flops, 4 * 512 * 2 * (2 * 8 * 8 * 8));
        assert_eq!(Work::lanes(64, true, true).flops, 64 * 2048 * 16);
    }
}
