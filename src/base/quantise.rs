//! f32 to narrow and quantised blocks, in a file's form. The quantised ones choose scale and quants as ggml's reference
//! quantisers do (`quantize_row_q4_0_ref` and its kin), bit for bit.

use super::DType;
use half::{bf16, f16};

/// Dtypes that numbers can be turned into here.
pub const ENCODED: [DType; 6] = [DType::F32, DType::F16, DType::BF16, DType::Q8_0, DType::Q4_0, DType::Q4_1];

/// True if a dtype has a number for one of this size, or a block for several of which this is the largest.
pub fn holds(dtype: DType, size: f32) -> bool {
    let scale = |x: f32| f16::from_f32(x).is_finite();
    match dtype {
        DType::BF16 => bf16::from_f32(size).is_finite(),
        DType::F16 | DType::Q4_1 => scale(size),
        DType::Q8_0 => scale(size / 127.0),
        DType::Q4_0 => scale(size / 8.0),
        _ => size.is_finite(),
    }
}

/// Writes numbers as whole blocks of a file's form; narrow ones may be odd in number. `out` has room for just these.
///
/// # Panics
/// If the dtype is not among [`ENCODED`], or the sizes do not fit.
pub fn encode(dtype: DType, values: &[f32], out: &mut [u8]) {
    let block = dtype.block();
    match dtype {
        DType::F32 => each(values, out, |x| x.to_le_bytes()),
        DType::F16 => each(values, out, |x| f16::from_f32(x).to_le_bytes()),
        DType::BF16 => each(values, out, |x| bf16::from_f32(x).to_le_bytes()),
        DType::Q8_0 | DType::Q4_0 | DType::Q4_1 => {
            assert_eq!(values.len() / block.elements * block.file_bytes, out.len(), "{dtype}: no whole blocks");
            for (x, out) in values.chunks_exact(block.elements).zip(out.chunks_exact_mut(block.file_bytes)) {
                match dtype {
                    DType::Q8_0 => q8_0(x, out),
                    DType::Q4_0 => q4_0(x, out),
                    _ => q4_1(x, out),
                }
            }
        }
        other => panic!("nothing is quantised to {other} here"),
    }
}

fn each<const N: usize>(values: &[f32], out: &mut [u8], bytes: impl Fn(f32) -> [u8; N]) {
    assert_eq!(values.len() * N, out.len(), "a number for each place");
    values.iter().zip(out.chunks_exact_mut(N)).for_each(|(&x, out)| out.copy_from_slice(&bytes(x)));
}

/// 1/d, and zero where all is zero.
fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

fn q8_0(x: &[f32], out: &mut [u8]) {
    let largest = x.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    let d = largest / 127.0;
    out[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
    let id = inverse(d);
    out[2..].iter_mut().zip(x).for_each(|(q, x)| *q = (x * id).round() as i8 as u8);
}

/// The number of the largest size, with its sign, becomes −8 exactly.
fn q4_0(x: &[f32], out: &mut [u8]) {
    let largest = x.iter().fold(0.0f32, |m, &x| if x.abs() > m.abs() { x } else { m });
    let d = largest / -8.0;
    out[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
    let id = inverse(d);
    nibbles(x, &mut out[2..], |x| x * id + 8.5);
}

fn q4_1(x: &[f32], out: &mut [u8]) {
    let (low, high) = x.iter().fold((f32::MAX, -f32::MAX), |(low, high), &x| (low.min(x), high.max(x)));
    let d = (high - low) / 15.0;
    out[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
    out[2..4].copy_from_slice(&f16::from_f32(low).to_le_bytes());
    let id = inverse(d);
    nibbles(x, &mut out[4..], |x| (x - low) * id + 0.5);
}

/// Quants of four bits, the first half of the block in the low ones.
fn nibbles(x: &[f32], out: &mut [u8], quant: impl Fn(f32) -> f32) {
    let quant = |x: f32| (quant(x) as i8).min(15) as u8 & 15;
    for (j, out) in out.iter_mut().enumerate() {
        *out = quant(x[j]) | quant(x[j + 16]) << 4;
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Rng, packed};
    use super::*;

    /// No number may be farther from what it was than half a step of its block, and what the f16 scales add.
    #[test]
    fn what_is_encoded_is_near() {
        let mut rng = Rng::new(1, 0);
        for dtype in ENCODED {
            for scale in [1e-3f32, 1.0, 100.0] {
                let x: Vec<f32> = (0..512).map(|_| rng.normal() as f32 * scale).collect();
                let (mut file, mut y) = (vec![0; dtype.file_size(512) as usize], vec![0.0; 512]);
                encode(dtype, &x, &mut file);
                packed::decode(dtype, &file, &mut y);
                for (x, y) in x.chunks(32).zip(y.chunks(32)) {
                    let largest = x.iter().fold(0.0f32, |m, x| m.max(x.abs()));
                    let range = x.iter().fold(f32::MIN, |m, x| m.max(*x)) - x.iter().fold(f32::MAX, |m, x| m.min(*x));
                    let half_step = match dtype {
                        DType::Q8_0 => largest / 127.0 / 2.0,
                        // The far end of Q4_0 has seven steps where the near one has eight.
                        DType::Q4_0 => largest / 8.0,
                        DType::Q4_1 => range / 15.0 / 2.0,
                        // Eight and eleven significant bits: a step is 2⁻⁷ and 2⁻¹⁰ of the power of two below.
                        DType::BF16 => largest * 2f32.powi(-8),
                        DType::F16 => largest * 2f32.powi(-11),
                        _ => 0.0,
                    };
                    let scaled = !matches!(dtype, DType::F32 | DType::F16 | DType::BF16);
                    let scales = if scaled { (largest + range) * 2f32.powi(-11) } else { 0.0 };
                    for (x, y) in x.iter().zip(y) {
                        assert!((x - y).abs() <= half_step + scales, "{dtype}: {x} became {y}");
                    }
                }
            }
        }
    }

    /// What is said to be held comes back finite, and what is said not to be does not.
    #[test]
    fn what_is_too_large_is_known() {
        for dtype in ENCODED {
            let mut size = 1.0f32;
            while size.is_finite() {
                for size in [size, size * 1.9999] {
                    let mut x = [0.0; 32];
                    x[7] = size;
                    let (mut file, mut y) = (vec![0; dtype.file_size(32) as usize], [0.0; 32]);
                    encode(dtype, &x, &mut file);
                    packed::decode(dtype, &file, &mut y);
                    // Minus infinity is Q4_1's lowest number then.
                    x[7] = -size;
                    let mut z = [0.0; 32];
                    encode(dtype, &x, &mut file);
                    packed::decode(dtype, &file, &mut z);
                    let finite = y.iter().chain(&z).all(|y| y.is_finite());
                    assert_eq!(finite, holds(dtype, size), "{dtype}: {size}");
                }
                size *= 2.0;
            }
            assert!(!holds(dtype, f32::NAN) && !holds(dtype, f32::INFINITY), "{dtype}");
        }
    }

    #[test]
    fn zeros_stay_zeros_and_what_was_quantised_comes_back() {
        for dtype in [DType::Q8_0, DType::Q4_0, DType::Q4_1] {
            let mut file = vec![0xff; dtype.block().file_bytes];
            encode(dtype, &[0.0; 32], &mut file);
            let mut y = [1.0; 32];
            packed::decode(dtype, &file, &mut y);
            assert_eq!(y, [0.0; 32], "{dtype}");
        }
        // Multiples of a power of two that use the whole range of the quants.
        let exact: Vec<f32> = (0..32).map(|i| (i % 16 - 8) as f32 * 0.25).collect();
        for dtype in [DType::Q4_0, DType::Q4_1] {
            let (mut file, mut y) = (vec![0; dtype.block().file_bytes], vec![0.0; 32]);
            encode(dtype, &exact, &mut file);
            packed::decode(dtype, &file, &mut y);
            assert_eq!(y, exact, "{dtype}");
        }
    }
}
