//! What operands of f16 are rounded to.

use super::{both, gpu, rounds_natively};
use danlu::base::{Array, DType, TensorType};
use danlu::gpu::Gpu;
use danlu::graph::{Io, Kernel, Op};
use danlu::ops::{Cast, MatMul, Operands};
use danlu::run::run_kernel;
use pollster::block_on;

/// Every kernel of f16 operands rounds to the nearest f16, ties to even, and from 65,520 on to infinity: bit by bit, for
/// either operand. Where f16 itself is staged, an adapter may take numbers below the smallest normal one for zero.
#[test]
fn operands_are_rounded_to_the_nearest_f16() {
    let Some(gpu) = &gpu() else { return };
    // Of every exponent of f32, on, beside and far from where roundings turn, no numbers among them.
    let heads = [0, 1, 2, 0x155, 0x3fe, 0x3ff].map(|head| head << 13);
    let bits = (0..256 << 23).step_by(1 << 23).flat_map(|exponent| heads.map(|head| exponent | head));
    let normal = bits.flat_map(|bits| [0, 1, 0xfff, 0x1000, 0x1001, 0x1fff].map(|tail| bits | tail));
    // Below 2^-14 f16 are the multiples of 2^-24: halfway between any two, and beside that.
    let halfway = (0..1024).map(|i| (2f32.powi(-24) * (i as f32 + 0.5)).to_bits());
    let small = halfway.flat_map(|bits| [bits - 1, bits, bits + 1]);
    let edges = [65504f32, 65519.996, 65520.0, 65536.0].map(f32::to_bits);
    let both_signs = normal.chain(small).chain(edges).flat_map(|bits| [bits, bits | 1 << 31]);
    let values = both_signs.map(f32::from_bits).collect::<Vec<f32>>();
    assert_rounded(gpu, &values, usize::MAX);
    assert_copied(gpu, &values);
    // And all over f32, evenly (Weyl, 1916), in the ways of rounding that no adapter has a part in.
    let all = (0..1 << 17).map(|i: u32| f32::from_bits(i.wrapping_mul(0x9e37_79b1)));
    assert_rounded(gpu, &all.collect::<Vec<f32>>(), 1);
}

/// Tries some numbers, as one operand and the other, in the first so many candidates of either order.
fn assert_rounded(gpu: &Gpu, values: &[f32], candidates: usize) {
    let column = TensorType::f32([values.len(), 1]);
    let column = Array::new(column, values.iter().map(|&x| f64::from(x)).collect());
    let one = Array::new(TensorType::f32([1, 1]), vec![1.0]);
    for [a, b] in [[&column, &one], [&one, &column]] {
        let op = MatMul::linear().with(Operands::F16);
        let outputs = op.infer(&[&a.ty, &b.ty]).unwrap();
        let io = Io { inputs: vec![a.ty.clone(), b.ty.clone()], outputs };
        let kernels =
            both(gpu.limits()).into_iter().flat_map(|limits| op.kernels(&io, &limits).into_iter().take(candidates));
        let is_barred = |k: &Kernel| k.constants.contains(&("NATIVE", 1)) && !rounds_natively(gpu);
        for kernel in kernels.filter(|kernel| !is_barred(kernel)) {
            let got = block_on(run_kernel(gpu, &kernel, &io, &[a.clone(), b.clone()], &[])).unwrap().remove(0);
            let staged = kernel.variant.contains("staged") || kernel.variant.contains("coop");
            for (&x, &y) in values.iter().zip(&got.data) {
                let nearest = half::f16::from_f32(x).to_f64();
                let flushed = staged && nearest.abs() < f64::powi(2.0, -14) && y == 0.0;
                // WGSL does not say what becomes of what is no number, but whoever judges a step must see that it is none.
                let is_none = x.is_nan() && !y.is_finite();
                assert!(
                    y == nearest || flushed || is_none,
                    "{}: {x:e} ({:x}) became {y:e}, not {nearest:e}",
                    kernel.variant,
                    x.to_bits()
                );
            }
        }
    }
}

/// Copies of weights are the nearest f16 to the bit, whatever the adapter makes of small numbers.
fn assert_copied(gpu: &Gpu, values: &[f32]) {
    let n = values.len().next_multiple_of(4);
    let mut column = Array::zeros([n]);
    column.data.iter_mut().zip(values).for_each(|(x, &value)| *x = f64::from(value));
    let io =
        Io { inputs: vec![TensorType { shape: [n].into(), dtype: DType::F16 }, column.ty.clone()], outputs: vec![] };
    for kernel in both(gpu.limits()).into_iter().flat_map(|limits| Cast { start: 0 }.kernels(&io, &limits)) {
        let before = Array::new(io.inputs[0].clone(), vec![0.5; n]);
        let got = block_on(run_kernel(gpu, &kernel, &io, &[before, column.clone()], &[0])).unwrap().remove(0);
        for (&x, &y) in column.data.iter().zip(&got.data) {
            let (nearest, bits) = (half::f16::from_f32(x as f32), half::f16::from_f64(y).to_bits());
            let is_none = x.is_nan() && !y.is_finite();
            assert!(bits == nearest.to_bits() || is_none, "{}: {x:e} became {y:e}, not {nearest:e}", kernel.variant);
        }
    }
}
