//! Blocks of narrow and quantised elements: what each holds, in a file and on the device, and what it means in f32. The
//! formats are GGUF's (ggml's `block_q4_0` and its kin); all numbers are little-endian, all scales f16. NF4 is in `nf4.rs`.
//!
//! A quantised block of 32 is scale `d`, in the `_1` types a minimum `m`, in the 5-bit types 32 high bits, and the quants:
//! of two halves of 16 elements the first lies in the low nibbles, the second in the high ones.
//! A block of 256 (`_K`) has scales of its own for every 16 or 32 elements, quantised themselves.
//!
//! On the device each block fills whole words, and its quants begin at one: Q4_0, Q5_0 and Q8_0 have two bytes of padding
//! after the scale, Q3_K and Q6_K at their end.

use super::{DType, Rng, nf4};
use half::{bf16, f16};

/// Byte of the block after which the device's form has its padding, if there is any.
fn padding_at(dtype: DType) -> usize {
    match dtype {
        DType::Q4_0 | DType::Q5_0 | DType::Q8_0 => 2,
        _ => dtype.block().file_bytes,
    }
}

/// Blocks as they lie in a file to blocks as the device reads them; `out` has room for just these.
pub fn to_device(dtype: DType, file: &[u8], out: &mut [u8]) {
    let (block, at) = (dtype.block(), padding_at(dtype));
    if block.bytes == block.file_bytes {
        return out.copy_from_slice(file);
    }
    let pad = block.bytes - block.file_bytes;
    for (from, to) in file.chunks_exact(block.file_bytes).zip(out.chunks_exact_mut(block.bytes)) {
        to[..at].copy_from_slice(&from[..at]);
        to[at..at + pad].fill(0);
        to[at + pad..].copy_from_slice(&from[at..]);
    }
}

/// Blocks as the device has them to blocks as a file has them.
pub fn from_device(dtype: DType, device: &[u8], out: &mut [u8]) {
    let (block, at) = (dtype.block(), padding_at(dtype));
    let pad = block.bytes - block.file_bytes;
    for (from, to) in device.chunks_exact(block.bytes).zip(out.chunks_exact_mut(block.file_bytes)) {
        to[..at].copy_from_slice(&from[..at]);
        to[at..].copy_from_slice(&from[at + pad..]);
    }
}

/// The values of whole blocks in the device's form.
pub fn decode_device(dtype: DType, device: &[u8], out: &mut [f32]) {
    let block = dtype.block();
    let mut file = vec![0; device.len() / block.bytes * block.file_bytes];
    from_device(dtype, device, &mut file);
    decode(dtype, &file, out);
}

/// The values of whole blocks in a file's form.
///
/// # Panics
/// If `file` and `out` do not hold the same number of whole blocks, or the dtype is U32.
pub fn decode(dtype: DType, file: &[u8], out: &mut [f32]) {
    let block = dtype.block();
    assert!(
        file.len().is_multiple_of(block.file_bytes)
            && file.len() / block.file_bytes * block.elements == out.len()
            && dtype != DType::U32,
        "{dtype}: {} bytes for {} elements",
        file.len(),
        out.len()
    );
    for (b, y) in file.chunks_exact(block.file_bytes).zip(out.chunks_exact_mut(block.elements)) {
        match dtype {
            DType::F32 => y[0] = f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
            DType::F16 => (y[0], y[1]) = (half_at(b, 0), half_at(b, 2)),
            DType::BF16 => {
                let at = |i: usize| bf16::from_le_bytes([b[i], b[i + 1]]).to_f32();
                (y[0], y[1]) = (at(0), at(2));
            }
            DType::Q4_0 => nibbles(half_at(b, 0), -8.0 * half_at(b, 0), 0, &b[2..], y),
            DType::Q4_1 => nibbles(half_at(b, 0), half_at(b, 2), 0, &b[4..], y),
            DType::Q5_0 => nibbles(half_at(b, 0), -16.0 * half_at(b, 0), word_at(b, 2), &b[6..], y),
            DType::Q5_1 => nibbles(half_at(b, 0), half_at(b, 2), word_at(b, 4), &b[8..], y),
            DType::Q8_0 => y.iter_mut().zip(&b[2..]).for_each(|(y, &q)| *y = half_at(b, 0) * f32::from(q as i8)),
            DType::Q2K => q2_k(b, y),
            DType::Q3K => q3_k(b, y),
            DType::Q4K => q4_k(b, &[0; 32], &b[16..], y),
            DType::Q5K => q4_k(b, &b[16..48], &b[48..], y),
            DType::Q6K => q6_k(b, y),
            DType::Nf4 => nf4::decode(b, y),
            DType::U32 => unreachable!("refused above"),
        }
    }
}

fn half_at(b: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([b[at], b[at + 1]]).to_f32()
}

fn word_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

/// `d·q + m` for 32 quants of four bits, and a fifth in `high`.
fn nibbles(d: f32, m: f32, high: u32, quants: &[u8], y: &mut [f32]) {
    for (j, &q) in quants.iter().enumerate() {
        let fifth = |bit: usize| (high >> bit & 1) << 4;
        y[j] = d * (u32::from(q & 15) | fifth(j)) as f32 + m;
        y[j + 16] = d * (u32::from(q >> 4) | fifth(j + 16)) as f32 + m;
    }
}

/// Two bits a quant; a scale and a minimum of four bits for every 16.
fn q2_k(b: &[u8], y: &mut [f32]) {
    let (d, dmin) = (half_at(b, 80), half_at(b, 82));
    for (i, y) in y.iter_mut().enumerate() {
        let (quant, scale) = (b[16 + i / 128 * 32 + i % 32] >> (2 * (i % 128 / 32)) & 3, b[i / 16]);
        *y = d * f32::from(scale & 15) * f32::from(quant) - dmin * f32::from(scale >> 4);
    }
}

/// Three bits a quant, the third one apart; a signed scale of six bits for every 16.
fn q3_k(b: &[u8], y: &mut [f32]) {
    let (high, quants, scales, d) = (&b[..32], &b[32..96], &b[96..108], half_at(b, 108));
    for (i, y) in y.iter_mut().enumerate() {
        let s = i / 16;
        let low = if s < 8 { scales[s] & 15 } else { scales[s - 8] >> 4 };
        let scale = i32::from(low | (scales[8 + s % 4] >> (2 * (s / 4)) & 3) << 4) - 32;
        let low = i32::from(quants[i / 128 * 32 + i % 32] >> (2 * (i % 128 / 32)) & 3);
        let quant = low - if high[i % 32] >> (i / 32) & 1 == 1 { 0 } else { 4 };
        *y = d * scale as f32 * quant as f32;
    }
}

/// Four bits a quant, and in Q5_K a fifth in `high`; a scale and a minimum of six bits for every 32.
fn q4_k(b: &[u8], high: &[u8], quants: &[u8], y: &mut [f32]) {
    let (d, dmin, s) = (half_at(b, 0), half_at(b, 2), &b[4..16]);
    for (i, y) in y.iter_mut().enumerate() {
        let j = i / 32;
        let (scale, min) = if j < 4 {
            (s[j] & 63, s[j + 4] & 63)
        } else {
            (s[j + 4] & 15 | s[j - 4] >> 6 << 4, s[j + 4] >> 4 | s[j] >> 6 << 4)
        };
        let quant = quants[i / 64 * 32 + i % 32] >> (4 * (j % 2)) & 15 | (high[i % 32] >> j & 1) << 4;
        *y = d * f32::from(scale) * f32::from(quant) - dmin * f32::from(min);
    }
}

/// Six bits a quant, two of them apart; a signed scale of eight bits for every 16.
fn q6_k(b: &[u8], y: &mut [f32]) {
    let d = half_at(b, 208);
    for (i, y) in y.iter_mut().enumerate() {
        let (half, part, l) = (i / 128, i % 128 / 32, i % 32);
        let low = b[half * 64 + part % 2 * 32 + l] >> (4 * (part / 2)) & 15;
        let high = b[128 + half * 32 + l] >> (2 * part) & 3;
        let scale = b[192 + i / 16] as i8;
        *y = d * f32::from(scale) * (i32::from(low | high << 4) - 32) as f32;
    }
}

/// Random blocks in the device's form, with elements of the order of one.
pub fn random(dtype: DType, elements: usize, rng: &mut Rng) -> Vec<u8> {
    let block = dtype.block();
    let mut file = Vec::with_capacity(elements / block.elements * block.file_bytes);
    // Where a block's f16 scales are, and the largest number that each multiplies.
    let (scales, most): (&[usize], f64) = match dtype {
        DType::F32 | DType::F16 | DType::BF16 | DType::U32 | DType::Nf4 => (&[], 1.0),
        DType::Q4_0 => (&[0], 8.0),
        DType::Q4_1 => (&[0, 2], 15.0),
        DType::Q5_0 => (&[0], 16.0),
        DType::Q5_1 => (&[0, 2], 31.0),
        DType::Q8_0 => (&[0], 127.0),
        DType::Q2K => (&[80, 82], 45.0),
        DType::Q3K => (&[108], 128.0),
        DType::Q4K => (&[0, 2], 945.0),
        DType::Q5K => (&[0, 2], 1953.0),
        DType::Q6K => (&[208], 4096.0),
    };
    for _ in 0..elements / block.elements {
        let start = file.len();
        match dtype {
            DType::F32 => file.extend((rng.normal() as f32).to_le_bytes()),
            DType::U32 => file.extend((rng.next_u64() as u32).to_le_bytes()),
            DType::F16 => (0..2).for_each(|_| file.extend(f16::from_f64(rng.normal()).to_le_bytes())),
            DType::BF16 => (0..2).for_each(|_| file.extend(bf16::from_f64(rng.normal()).to_le_bytes())),
            _ => file.extend((0..block.file_bytes).map(|_| rng.next_u64() as u8)),
        }
        if dtype == DType::Nf4 {
            file[start..start + 4].copy_from_slice(&((0.5 + rng.uniform()) as f32).to_le_bytes());
        }
        for &at in scales {
            let scale = f16::from_f64((0.5 + rng.uniform()) / most);
            file[start + at..start + at + 2].copy_from_slice(&scale.to_le_bytes());
        }
    }
    let mut device = vec![0; dtype.size(elements) as usize];
    to_device(dtype, &file, &mut device);
    device
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_devices_form_keeps_every_byte() {
        let mut rng = Rng::new(5, 0);
        for dtype in DType::WEIGHTS {
            let elements = 512;
            let device = random(dtype, elements, &mut rng);
            let mut file = vec![0; dtype.file_size(elements) as usize];
            from_device(dtype, &device, &mut file);
            let (mut a, mut b) = (vec![0.0; elements], vec![0.0; elements]);
            decode_device(dtype, &device, &mut a);
            decode(dtype, &file, &mut b);
            assert_eq!(a, b, "{dtype}");
            let largest = a.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
            assert!(a.iter().all(|x| x.is_finite()) && (0.1..10.0).contains(&largest), "{dtype}: {largest}");
            let mut again = vec![0; device.len()];
            to_device(dtype, &file, &mut again);
            assert_eq!(device, again, "{dtype}");
        }
    }
}
