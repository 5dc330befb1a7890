//! NF4 with double quantisation (QLoRA, Dettmers et al., 2023), as bitsandbytes has it, bit for bit: 64 elements share a
//! scale, their largest size; the scales of a tensor, less their mean, are quantised to eight bits in blocks of 256 (Dettmers
//! et al., "8-bit optimizers via block-wise quantization", 2022). Where bitsandbytes' sum of the scales, in f32 in its device's
//! order, rounds to another mean than the exact one, as it may of larger tensors, scales differ in their last bits.
//!
//! A block is the scale as f32, as its eight bits and the constants behind them say it, and 32 bytes of quants, of two
//! neighbours the first in the high nibble. bitsandbytes keeps the eight bits; a block with its own f32 is read by itself,
//! wherever a row or a view begins.

use std::sync::OnceLock;

/// Elements that share a scale.
pub const BLOCK: usize = 64;
/// Scales that share a scale.
const SCALES: usize = 256;

/// What the quants stand for: quantiles of the standard normal, with an exact zero.
pub const CODE: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// The values of a block.
pub(super) fn decode(block: &[u8], out: &mut [f32]) {
    let scale = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
    for (pair, byte) in out.chunks_exact_mut(2).zip(&block[4..]) {
        (pair[0], pair[1]) = (CODE[usize::from(byte >> 4)] * scale, CODE[usize::from(byte & 15)] * scale);
    }
}

/// The scales of whole blocks before they are quantised.
pub fn scales(values: &[f32]) -> impl Iterator<Item = f32> {
    values.chunks_exact(BLOCK).map(largest)
}

fn largest(block: &[f32]) -> f32 {
    block.iter().fold(0.0f32, |m, x| m.max(x.abs()))
}

/// The mean of a tensor's scales. The order of bitsandbytes' sum is its device's; this one is exact until it is rounded.
pub fn mean(scales: &[f32]) -> f32 {
    (scales.iter().map(|&x| f64::from(x)).sum::<f64>() / scales.len().max(1) as f64) as f32
}

/// The scales of a tensor as eight bits less `mean` say them.
pub fn quantised(scales: &[f32], mean: f32) -> Vec<f32> {
    let code = dynamic_code();
    let mut out = Vec::with_capacity(scales.len());
    for block in scales.chunks(SCALES) {
        let centred: Vec<f32> = block.iter().map(|x| x - mean).collect();
        let scale = largest(&centred);
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        out.extend(centred.iter().map(|x| nearest(code, x * inverse) * scale + mean));
    }
    out
}

/// Writes whole blocks of values with these scales, one a block.
pub fn encode(values: &[f32], scales: &[f32], out: &mut [u8]) {
    let blocks = values.chunks_exact(BLOCK).zip(scales).zip(out.chunks_exact_mut(4 + BLOCK / 2));
    for ((values, scale), out) in blocks {
        out[..4].copy_from_slice(&scale.to_le_bytes());
        let inverse = 1.0 / largest(values).max(1e-38);
        let quant = |x: f32| {
            let x = (x * inverse).clamp(-1.0, 1.0);
            CODE.windows(2).filter(|pair| x > (pair[0] + pair[1]) / 2.0).count() as u8
        };
        for (byte, pair) in out[4..].iter_mut().zip(values.chunks_exact(2)) {
            *byte = quant(pair[0]) << 4 | quant(pair[1]);
        }
    }
}

/// The 256 values of dynamic quantisation with a sign, ascending: of seven decades, each of twice as many values as the one
/// below.
pub fn dynamic_code() -> &'static [f32] {
    static TABLE: OnceLock<Vec<f32>> = OnceLock::new();
    TABLE.get_or_init(|| {
        let mut code = vec![0.0, 1.0];
        for (decade, scale) in [1e-6f32, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0].into_iter().enumerate() {
            let steps = 1usize << decade;
            let step = (1.0f32 - 0.1) / steps as f32;
            // From both ends, and rounded once, as torch.linspace goes.
            let edge = |i: usize| match i < steps.div_ceil(2) {
                true => step.mul_add(i as f32, 0.1),
                false => step.mul_add(-((steps - i) as f32), 1.0),
            };
            for i in 0..steps {
                let middle = scale * ((edge(i) + edge(i + 1)) / 2.0);
                code.extend([middle, -middle]);
            }
        }
        code.sort_by(f32::total_cmp);
        code
    })
}

fn nearest(code: &[f32], x: f32) -> f32 {
    let above = code.partition_point(|&c| c < x).clamp(1, code.len() - 1);
    let (low, high) = (code[above - 1], code[above]);
    if x - low <= high - x { low } else { high }
}
