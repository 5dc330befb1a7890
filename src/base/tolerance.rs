//! The bar that a kernel's result must meet, derived from the dtype and the length of its reductions.

use super::{Array, DType};

/// `|y - r| <= c * eps * sqrt(K) * rms(r)` elementwise, and a normalised mean-square bar; K is the reduction length.
#[derive(Debug, Clone, Copy)]
pub struct Tolerance {
    /// Factor for constants that the error model does not see; at most 64.
    pub c: f64,
    /// Relative rounding error of the dtype.
    pub epsilon: f64,
    /// Length of the longest reduction.
    pub reduction: usize,
    /// What rounding to a narrow dtype adds, of the result as it is stored or on the way to it, as a share of the largest
    /// element.
    pub storing: f64,
}

/// How far rounding to a dtype moves an element at most, as a share of the largest.
fn storing(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => f64::powi(2.0, -10),
        DType::Q8_0 => (1.0 + f64::powi(2.0, -10)) / 254.0,
        _ => 0.0,
    }
}

impl Tolerance {
    /// The bar for strict f32 with reductions of length `reduction`.
    pub fn f32(reduction: usize) -> Self {
        Tolerance { c: 16.0, epsilon: f32::EPSILON as f64, reduction: reduction.max(1), storing: 0.0 }
    }

    /// The bar for a result that is rounded to this dtype as it is stored. f16 keeps 11 bits, and WGSL lets an adapter
    /// round either way. Q8_0's nearest multiple of a block's scale is half a scale away at most, and the scale, a 127th
    /// of the block's largest element, is an f16 itself. Other dtypes are only read.
    pub fn stored_as(self, dtype: DType) -> Self {
        Tolerance { storing: storing(dtype), ..self }
    }

    /// The bar for sums of which one factor of each product is rounded to f16 after it was computed: 2^-11 of it, and as
    /// much again where the kernel's own error makes it the neighbour. A weighted mean moves by no more than that share of
    /// the largest of what is summed; sums of which none stands out, by the root of that share's mean square.
    pub fn of_halves(self) -> Self {
        Tolerance { storing: f64::powi(2.0, -10), ..self }
    }

    /// Largest admissible elementwise error for a result whose reference is `r`; of one in f16 what storing it adds is in it.
    pub fn bound(&self, r: &Array) -> f64 {
        let largest = || r.data.iter().fold(0.0_f64, |m, x| m.max(x.abs()));
        let share = self.storing.max(storing(r.ty.dtype));
        let storing = if share > 0.0 { share * largest() } else { 0.0 };
        self.c * self.epsilon * (self.reduction as f64).sqrt() * r.rms() + storing
    }

    /// `Ok` if `y` meets the bar against `r`, else a sentence that names the worst element.
    pub fn check(&self, y: &Array, r: &Array) -> Result<(), String> {
        if y.ty.shape != r.ty.shape {
            return Err(format!("shape {} where {} was expected", y.ty.shape, r.ty.shape));
        }
        let bound = self.bound(r);
        let mut worst = (0, -1.0);
        let mut square = 0.0;
        for (i, (a, b)) in y.data.iter().zip(&r.data).enumerate() {
            let error = if a.is_nan() || b.is_nan() { f64::INFINITY } else { (a - b).abs() };
            square += error * error;
            // An element larger than the rms may carry its own rounding error.
            let allowed = bound + 2.0 * self.epsilon * b.abs();
            if error - allowed > worst.1 {
                worst = (i, error - allowed);
            }
        }
        if worst.1 > 0.0 {
            let (i, over) = worst;
            return Err(format!(
                "element {i}: {} where {} was expected, {over:e} over the bar of {bound:e}",
                y.data[i], r.data[i]
            ));
        }
        let nmse = (square / y.data.len().max(1) as f64).sqrt();
        if nmse > bound / 2.0 {
            return Err(format!("root mean square error {nmse:e} over half the bar of {bound:e}"));
        }
        Ok(())
    }
}
