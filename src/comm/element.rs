//! Numbers as bytes, and their sum.

use crate::error::{Error, Result};
use half::{bf16, f16};
use std::ops::Range;

/// What is added: elements of 4 or 2 bytes, little-endian. Sums of narrow ones are made in f32 and rounded once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Element {
    /// 32 bits.
    F32,
    /// IEEE's 16 bits.
    F16,
    /// The upper half of an f32.
    Bf16,
}

/// Elements of which sums are kept at a time.
const BLOCK: usize = 256;

impl Element {
    /// Bytes of one.
    pub fn bytes(self) -> usize {
        match self {
            Element::F32 => 4,
            Element::F16 | Element::Bf16 => 2,
        }
    }

    /// How many so many bytes are.
    pub(super) fn count(self, bytes: usize) -> Result<usize> {
        if bytes.is_multiple_of(self.bytes()) {
            return Ok(bytes / self.bytes());
        }
        Err(Error::Rank(format!("{bytes} bytes are no whole number of elements of {} bytes", self.bytes())))
    }

    /// The bytes of some elements.
    pub(super) fn range(self, elements: Range<usize>) -> Range<usize> {
        elements.start * self.bytes()..elements.end * self.bytes()
    }

    /// The sum of parts of one length, in their order: ((p₀ + p₁) + p₂) + …
    pub(super) fn sum(self, parts: &[&[u8]], into: &mut [u8]) {
        let mut sums = [0f32; BLOCK];
        let step = BLOCK * self.bytes();
        for start in (0..into.len()).step_by(step) {
            let end = into.len().min(start + step);
            let sums = &mut sums[..(end - start) / self.bytes()];
            sums.fill(0.0);
            for (i, part) in parts.iter().enumerate() {
                self.add(&part[start..end], sums, i == 0);
            }
            self.store(sums, &mut into[start..end]);
        }
    }

    fn add(self, bytes: &[u8], sums: &mut [f32], first: bool) {
        // The first is taken as it is: 0 + -0 would be 0.
        let add = |sum: &mut f32, x: f32| *sum = if first { x } else { *sum + x };
        match self {
            Element::F32 => {
                let (words, _) = bytes.as_chunks::<4>();
                sums.iter_mut().zip(words).for_each(|(sum, w)| add(sum, f32::from_le_bytes(*w)));
            }
            Element::F16 => {
                let (words, _) = bytes.as_chunks::<2>();
                sums.iter_mut().zip(words).for_each(|(sum, w)| add(sum, f16::from_le_bytes(*w).to_f32()));
            }
            Element::Bf16 => {
                let (words, _) = bytes.as_chunks::<2>();
                sums.iter_mut().zip(words).for_each(|(sum, w)| add(sum, bf16::from_le_bytes(*w).to_f32()));
            }
        }
    }

    fn store(self, sums: &[f32], into: &mut [u8]) {
        match self {
            Element::F32 => {
                let (words, _) = into.as_chunks_mut::<4>();
                words.iter_mut().zip(sums).for_each(|(w, sum)| *w = sum.to_le_bytes());
            }
            Element::F16 => {
                let (words, _) = into.as_chunks_mut::<2>();
                words.iter_mut().zip(sums).for_each(|(w, sum)| *w = f16::from_f32(*sum).to_le_bytes());
            }
            Element::Bf16 => {
                let (words, _) = into.as_chunks_mut::<2>();
                words.iter_mut().zip(sums).for_each(|(w, sum)| *w = bf16::from_f32(*sum).to_le_bytes());
            }
        }
    }
}
