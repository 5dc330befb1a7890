//! Proves that an adapter's own conversion rounds operands to f16 as it should. Kernels that leave it to that (their header
//! says NATIVE) are some of the fastest, but WGSL lets a conversion round either way, and random numbers hardly show how.

use super::run_kernel;
use crate::base::{Array, Limits, TensorType};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::graph::{Io, Kernel, Op};
use crate::ops::{MatMul, Operands};
use half::f16;

/// Rows of the matrix of ones, and length of the sums, of which all terms but one are zeros.
const ONES: usize = 8;

/// True for kernels that round by the adapter's own conversion.
pub(super) fn is_native(kernel: &Kernel) -> bool {
    kernel.constants.contains(&("NATIVE", 1))
}

/// A product that has the numbers to be rounded on one side and ones on the other, with the kernels to be tried.
pub(super) struct Trial {
    is_left: bool,
    inputs: [Array; 2],
    io: Io,
    pub(super) kernels: Vec<Kernel>,
}

/// How products of f16 operands are rounded by an adapter's own conversion, with the kernels for these limits that leave it to
/// that.
///
/// # Errors
/// If the operator refuses them.
pub(super) fn trials(limits: &Limits) -> Result<Vec<Trial>> {
    let values = values();
    let mut trials = Vec::new();
    // As gradients of weights and as linear layers are: either operand is loaded along k and across it.
    for (transpose_a, transpose_b) in [(true, false), (false, true)] {
        let op = MatMul::new(transpose_a, transpose_b).with(Operands::F16);
        for is_left in [true, false] {
            let inputs = [(is_left, transpose_a), (!is_left, !transpose_b)]
                .map(|(is_tried, is_turned)| if is_tried { spread(&values, is_turned) } else { ones() });
            let types = inputs.each_ref().map(|x| x.ty.clone());
            let outputs = op.infer(&types.each_ref()).map_err(Error::Graph)?;
            let io = Io { inputs: types.to_vec(), outputs };
            let kernels = op.kernels(&io, limits).into_iter().filter(is_native).collect();
            trials.push(Trial { is_left, inputs, io, kernels });
        }
    }
    Ok(trials)
}

/// Runs all trials. Gives what was rounded otherwise, if anything was.
///
/// # Errors
/// If one of the kernels cannot be run.
pub(super) async fn run(gpu: &Gpu, trials: &[Trial]) -> Result<Option<String>> {
    let values = values();
    for Trial { is_left, inputs, io, kernels } in trials {
        for kernel in kernels {
            let got = run_kernel(gpu, kernel, io, inputs, &[]).await?;
            let at = |i: usize| if *is_left { got[0].data[i * ONES] } else { got[0].data[i] };
            if let Some(wrong) = misrounded(&values, at) {
                return Ok(Some(wrong));
            }
        }
    }
    Ok(None)
}

/// Tries how products of f16 operands are rounded by the adapter's own conversion, with the kernels for these limits that leave
/// it to that: it should be to the nearest, of two equally near ones to the even one, and from 65,520 on to infinity. Numbers
/// below 2^-14 may become zero. Gives what was rounded otherwise, if anything was.
///
/// # Errors
/// If one of the kernels cannot be run.
pub async fn misrounds(gpu: &Gpu, limits: &Limits) -> Result<Option<String>> {
    run(gpu, &trials(limits)?).await
}

/// Both signs of numbers of every exponent that matters, on, beside and far from where rounding turns.
fn values() -> Vec<f32> {
    let normal = (100..146_u32).flat_map(|exponent| {
        [0, 1, 2, 0x155, 0x3ff].into_iter().flat_map(move |head| {
            let bits = exponent << 23 | head << 13;
            [0, 1, 0xfff, 0x1000, 0x1001, 0x1fff].map(|tail| f32::from_bits(bits | tail))
        })
    });
    // Halfway between multiples of 2^-24, which are f16 below 2^-14.
    let small = (0..64).flat_map(|i| {
        let bits = (2f32.powi(-24) * (i as f32 + 0.5)).to_bits();
        [bits - 1, bits, bits + 1].map(f32::from_bits)
    });
    normal.chain(small).chain([0.0, 65520.0, f32::MAX, f32::INFINITY]).flat_map(|x| [x, -x]).collect()
}

/// A matrix in each of whose rows one of the values stands between zeros, or its transpose.
fn spread(values: &[f32], is_turned: bool) -> Array {
    let rows = values.len();
    let shape = if is_turned { [ONES, rows] } else { [rows, ONES] };
    let mut x = Array::zeros(shape);
    for (i, &value) in values.iter().enumerate() {
        let k = i % ONES;
        x.data[if is_turned { k * rows + i } else { i * ONES + k }] = f64::from(value);
    }
    x
}

fn ones() -> Array {
    Array::new(TensorType::f32([ONES, ONES]), vec![1.0; ONES * ONES])
}

/// The first value that became something else than its nearest f16.
fn misrounded(values: &[f32], got: impl Fn(usize) -> f64) -> Option<String> {
    let is_wrong = |i: usize| {
        let nearest = f16::from_f32(values[i]).to_f64();
        let is_flushed = got(i) == 0.0 && nearest.abs() < f64::powi(2.0, -14);
        (got(i) != nearest && !is_flushed).then(|| {
            let x = values[i];
            format!("its conversion made {:e} of {x:e}, whose nearest f16 is {nearest:e}", got(i))
        })
    };
    (0..values.len()).find_map(is_wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What an f16 is, by another rule for the bits that are cut off.
    fn rounded(x: f32, up: impl Fn(f64, f64, f64) -> bool) -> f64 {
        let (low, x) = (f16::from_f32(x).to_f64(), f64::from(x));
        let near = f16::from_f64(x);
        if !near.is_finite() || x == low {
            return low;
        }
        // Its neighbours, the one nearer to zero first.
        let bits = near.to_bits() & 0x7fff;
        let bits = if low.abs() > x.abs() { bits - 1 } else { bits };
        let [inner, outer] = [bits, bits + 1].map(|b| f16::from_bits(b).to_f64());
        (if up(inner, x.abs(), outer) { outer } else { inner }).copysign(x)
    }

    #[test]
    fn every_other_way_of_rounding_is_seen() {
        let values = values();
        assert!(values.len().is_multiple_of(4));
        let seen = |way: &dyn Fn(f32) -> f64| misrounded(&values, |i| way(values[i]));
        let even = |x: f32| f16::from_f32(x).to_f64();
        assert_eq!(seen(&even), None);
        let flushed = |x: f32| if even(x).abs() < f64::powi(2.0, -14) { 0.0 } else { even(x) };
        assert_eq!(seen(&flushed), None);
        assert!(seen(&|x| rounded(x, |_, _, _| false)).is_some(), "towards zero");
        assert!(seen(&|x| rounded(x, |_, _, _| true)).is_some(), "away from zero");
        assert!(seen(&|x| rounded(x, |inner, x, outer| x - inner >= outer - x)).is_some(), "ties away from zero");
        assert!(seen(&|x| rounded(x, |inner, x, outer| x - inner > outer - x)).is_some(), "ties towards zero");
        assert!(seen(&|x| even(x).clamp(-65504.0, 65504.0)).is_some(), "saturated");
        // Right for normal numbers only.
        let coarse = |x: f32| if even(x).abs() < f64::powi(2.0, -14) { f64::from(x) } else { even(x) };
        assert!(seen(&coarse).is_some(), "small numbers as they are");
    }
}
