//! Dropout (Srivastava et al., 2014) whose choice is a function of seed, step and position: computed again, it is the same.

use super::windows::elements_per_binding;
use crate::base::{Array, DType, Limits, TensorType};
use crate::error::Result;
use crate::graph::{Cost, Dispatch, Graph, Io, Kernel, Op, OpNode, Operand, Value, spread};

/// x with a share of its elements left out, the others scaled so that their mean stays. Inputs: x f32, and u32 `[3]`:
/// seed, step, and which of several equal parts of a whole x is: what is left out of it is what would be of the whole.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    /// How many are left out, from 0 to below 1.
    pub share: f32,
    /// Keeps the places of one step apart.
    pub stream: u32,
}

const WORKGROUP: usize = 64;

impl Dropout {
    /// Random bits below this leave an element out.
    fn dropped(self) -> u32 {
        (f64::from(self.share) * f64::powi(2.0, 32)) as u32
    }

    fn scale(self) -> f32 {
        1.0 / (1.0 - self.share)
    }
}

/// As in the shader.
fn mix(z: u32) -> u32 {
    let z = (z ^ (z >> 16)).wrapping_mul(0x7feb_352d);
    let z = (z ^ (z >> 15)).wrapping_mul(0x846c_a68b);
    z ^ (z >> 16)
}

impl Op for Dropout {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [x, seed] = inputs else { return Err("takes x, and seed, step and part".into()) };
        if x.dtype != DType::F32 || **seed != TensorType::u32([3]) || !(0.0..1.0).contains(&self.share) {
            return Err(format!("x must be f32, seed, step and part u32[3], and the share {} below 1", self.share));
        }
        Ok(vec![(*x).clone()])
    }

    fn gradient(&self, g: &mut Graph, node: &OpNode, dy: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        let Some(dy) = dy[0] else { return Ok(vec![None, None]) };
        Ok(vec![Some(g.apply1(*self, &[dy, node.inputs[1]])?), None])
    }

    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        let n = io.inputs[0].shape.elements();
        let mut kernel = Kernel::new("dropout", "elements").constant("WORKGROUP", WORKGROUP);
        let step = elements_per_binding(limits);
        for start in (0..n).step_by(step) {
            let count = step.min(n - start);
            let (at, bytes) = (start as u64 * 4, count as u64 * 4);
            let d = Dispatch::new(spread(count.div_ceil(WORKGROUP), limits))
                .bind("x", Operand::Input(0), at, bytes)
                .bind("seed", Operand::Input(1), 0, 12)
                .bind("y", Operand::Output(0), at, bytes)
                .param("start", start)
                .param("count", count)
                .param("elements", n)
                .param("stream", self.stream)
                .param("dropped", self.dropped())
                .param("scale", self.scale());
            kernel = kernel.dispatch(d);
        }
        vec![kernel]
    }

    fn cost(&self, io: &Io) -> Cost {
        Cost { flops: 2 * io.elements(), bytes: io.bytes() }
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let [seed, step, part] = [0, 1, 2].map(|i| inputs[1].data[i] as u32);
        let first = part.wrapping_mul(inputs[0].data.len() as u32);
        let key = mix(seed ^ mix(step ^ mix(self.stream)));
        let keeps = |i: usize| mix(mix(key.wrapping_add(first).wrapping_add(i as u32)) ^ key) >= self.dropped();
        let kept = |(i, x): (usize, &f64)| if keeps(i) { x * f64::from(self.scale()) } else { 0.0 };
        vec![Array::new(inputs[0].ty.clone(), inputs[0].data.iter().enumerate().map(kept).collect())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The share that is left out is the one asked for, and steps, seeds and streams choose independently: of two, both
    /// leave out what chance says.
    #[test]
    fn choices_are_random_and_repeat() {
        let n = 1 << 16;
        let x = Array::new(TensorType::f32([n]), vec![1.0; n]);
        let kept = |share, stream, seed: f64, step: f64| -> Vec<bool> {
            let seed = Array::new(TensorType::u32([3]), vec![seed, step, 0.0]);
            Dropout { share, stream }.reference(&[x.clone(), seed])[0].data.iter().map(|y| *y != 0.0).collect()
        };
        for share in [0.05f32, 0.5] {
            let base = kept(share, 1, 7.0, 3.0);
            assert_eq!(base, kept(share, 1, 7.0, 3.0));
            let keep = 1.0 - f64::from(share);
            // Five standard deviations of a share of n draws.
            let near = |count: usize, p: f64| {
                let (share, bar) = (count as f64 / n as f64, 5.0 * (p * (1.0 - p) / n as f64).sqrt());
                assert!((share - p).abs() < bar, "{share} for {p}");
            };
            near(base.iter().filter(|k| **k).count(), keep);
            let others = [kept(share, 2, 7.0, 3.0), kept(share, 1, 8.0, 3.0), kept(share, 1, 7.0, 4.0)];
            for other in others {
                near(base.iter().zip(&other).filter(|(a, b)| **a && **b).count(), keep * keep);
            }
        }
    }
}
