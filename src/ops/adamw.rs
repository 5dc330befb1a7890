//! One step of AdamW (Loshchilov and Hutter, 2019) on a flat page of parameters, in place.

use super::update::{Part, RUN};
use super::{gaps, update};
use crate::base::{Array, Limits, TensorType};
use crate::error::Result;
use crate::graph::{Cost, Io, Kernel, Op};

/// Updates p, m and v (states, f32) from g: m and v are of the whole page as p is, or of g's elements only.
///
/// Inputs: p, m, v, g; what [`super::Judge`] tells, f32 `[4]`: learning rate, 1/(1-β₁ᵗ), 1/(1-β₂ᵗ), and what g is
/// multiplied by, 0 leaving the step out whatever g holds; where there is one, a copy of elements of p, a state, f16, which is
/// what these become, rounded to the nearest, ties to even; and, where the page has padding, a table made by
/// [`super::gap_table`]: those elements stay as they are. Output: of every 4,096 elements of a
/// part the sum of the squares of what was added to p.
///
/// The order of operations is that of `torch.optim.AdamW`.
#[derive(Debug, Clone, PartialEq)]
pub struct AdamW {
    /// Decay of the first moment, β₁.
    pub beta1: f32,
    /// Decay of the second moment, β₂.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub epsilon: f32,
    /// The first element of the page that g is of, a multiple of 64: g may be of some of them only, which the parts end with.
    pub start: usize,
    /// The page's parts.
    pub parts: Vec<Part>,
    /// The first element of the page that the copy is of, a multiple of 128; none where there is no copy.
    pub copied: Option<usize>,
}

impl AdamW {
    fn given(&self) -> update::Given {
        update::Given { gradient: 3, start: self.start, copied: self.copied }
    }
}

impl Op for AdamW {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        update::check(inputs, 4, self.given(), &self.parts)?;
        Ok(vec![update::added_type(&self.parts, self.start, RUN)])
    }

    fn writes(&self) -> Vec<usize> {
        [0, 1, 2].into_iter().chain(self.given().rest(4).0).collect()
    }

    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        let params = [("beta1", self.beta1), ("beta2", self.beta2), ("epsilon", self.epsilon)];
        vec![update::kernel("adamw", io, limits, &["p", "m", "v", "g"], self.given(), &self.parts, &params)]
    }

    fn cost(&self, io: &Io) -> Cost {
        let g = &io.inputs[3];
        Cost { flops: 16 * g.shape.elements() as u64, bytes: 7 * g.bytes() + update::copy_bytes(io) }
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let [beta1, beta2] = [self.beta1, self.beta2].map(f64::from);
        let [lr, bias1, bias2, factor] = inputs[4].data[..] else { unreachable!("checked when the node was made") };
        let (mut p, mut m, mut v) = (inputs[0].clone(), inputs[1].clone(), inputs[2].clone());
        let all = self.start..self.start + inputs[3].data.len();
        let table = self.given().rest(4).1;
        let kept = self.given().first(m.data.len(), p.data.len());
        for i in all.clone().filter(|&i| factor != 0.0 && !gaps::contains(inputs.get(table), i)) {
            let part = update::part_of(&self.parts, i);
            let (rate, g) = (lr * f64::from(part.rate), inputs[3].data[i - self.start] * factor);
            p.data[i] -= p.data[i] * rate * f64::from(part.decay);
            let k = i - kept;
            m.data[k] += (g - m.data[k]) * (1.0 - beta1);
            v.data[k] = v.data[k] * beta2 + g * g * (1.0 - beta2);
            let denominator = (v.data[k] * bias2).sqrt() + f64::from(self.epsilon);
            p.data[i] -= rate * bias1 * m.data[k] / denominator;
        }
        let copy = self.given().copy(inputs, 4, &p, if factor != 0.0 { all } else { 0..0 });
        let added = update::added([&inputs[0], &p], &self.parts, self.start, RUN);
        [added, p, m, v].into_iter().chain(copy).collect()
    }
}
