//! How the operands of a product are rounded before they are multiplied. Sums are f32 whatever they are.

use crate::base::{Array, Tolerance, to_half};
use std::borrow::Cow;

/// What the operands of a product are rounded to as they are loaded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Operands {
    /// Nothing is rounded: strict f32.
    #[default]
    F32,
    /// To the nearest f16, of two equally near ones the even one; beyond 65,504 to infinity, as hardware does.
    F16,
}

impl Operands {
    /// True where operands are rounded.
    pub fn are_half(self) -> bool {
        self == Operands::F16
    }

    /// The bar for sums of `reduction` products of which one factor is computed, and rounded, on the way, as attention's
    /// probabilities are: the reference does not round it, for what a kernel rounds is not quite what the reference would,
    /// and may become the neighbour.
    pub(super) fn tolerance(self, reduction: usize) -> Tolerance {
        let strict = Tolerance::f32(reduction);
        if self.are_half() { strict.of_halves() } else { strict }
    }

    /// An element as it is multiplied.
    pub(super) fn round(self, x: f64) -> f64 {
        match self {
            Operands::F32 => x,
            Operands::F16 => to_half(x),
        }
    }

    /// An operand as it is multiplied.
    pub(super) fn rounded(self, x: &Array) -> Cow<'_, Array> {
        match self {
            Operands::F32 => Cow::Borrowed(x),
            Operands::F16 => {
                let data = x.data.iter().map(|&x| self.round(x)).collect();
                Cow::Owned(Array::new(x.ty.clone(), data))
            }
        }
    }
}
