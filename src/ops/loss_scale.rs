//! Dynamic loss scaling (Micikevicius et al., "Mixed precision training", 2018), on the device: no host waits for a norm.

use crate::base::{Array, Limits, TensorType};
use crate::error::Result;
use crate::graph::{Cost, Dispatch, Io, Kernel, Op, Operand};

/// Judges a step by the norm of its scaled gradients and sets the next scale.
///
/// Inputs: the scaler, a state f32 `[5]`: scale, good steps since it changed, steps left out so far, and 1-β₁ᵗ and 1-β₂ᵗ,
/// t being the steps that counted; the norm f32 `[1]` of the scaled gradients; hyper f32 `[4]` as [`super::AdamW`] takes
/// it, of which the learning rate counts. Outputs: the norm of the unscaled gradients `[1]`, and hyper `[4]` for AdamW.
///
/// A norm that is not finite leaves the step out (hyper is zeros), and halves the scale, down to a half; after `interval`
/// good steps in a row it doubles, up to 2³², where scaled gradients are still far from the end of f32.
#[derive(Debug, Clone, PartialEq)]
pub struct LossScale {
    /// Good steps after which the scale doubles.
    pub interval: u32,
    /// 1 - β₁.
    pub rest1: f32,
    /// 1 - β₂.
    pub rest2: f32,
}

/// Smallest and largest scale.
const RANGE: [f64; 2] = [0.5, 4_294_967_296.0];

impl Op for LossScale {
    fn name(&self) -> &'static str {
        "loss_scale"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let sizes = [5, 1, 4].map(|n| TensorType::f32([n]));
        if inputs.len() != 3 || inputs.iter().zip(&sizes).any(|(x, ty)| **x != *ty) {
            return Err("takes a scaler f32[5], a norm f32[1] and hyper f32[4]".into());
        }
        Ok(vec![TensorType::f32([1]), TensorType::f32([4])])
    }

    fn writes(&self) -> Vec<usize> {
        vec![0]
    }

    fn kernels(&self, io: &Io, _limits: &Limits) -> Vec<Kernel> {
        let mut d = Dispatch::new([1, 1, 1])
            .param("interval", self.interval)
            .param("rest1", self.rest1)
            .param("rest2", self.rest2);
        for (i, name) in ["scaler", "norm", "hyper"].into_iter().enumerate() {
            d = d.bind(name, Operand::Input(i), 0, io.inputs[i].bytes());
        }
        for (i, name) in ["unscaled", "told"].into_iter().enumerate() {
            d = d.bind(name, Operand::Output(i), 0, io.outputs[i].bytes());
        }
        vec![Kernel::new("loss_scale", "lane").dispatch(d)]
    }

    fn cost(&self, io: &Io) -> Cost {
        Cost { flops: 16, bytes: io.bytes() }
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let [scaler, norm, hyper] = inputs else { unreachable!("checked when the node was made") };
        let [scale, good, skipped, c1, c2] = scaler.data[..] else { unreachable!("checked when the node was made") };
        let array = |data: Vec<f64>| Array::new(TensorType::f32([data.len()]), data);
        let unscaled = array(vec![norm.data[0] / scale]);
        if !norm.data[0].is_finite() {
            let next = array(vec![(scale / 2.0).max(RANGE[0]), 0.0, skipped + 1.0, c1, c2]);
            return vec![unscaled, array(vec![0.0; 4]), next];
        }
        let c1 = c1 + f64::from(self.rest1) * (1.0 - c1);
        let c2 = c2 + f64::from(self.rest2) * (1.0 - c2);
        let told = array(vec![hyper.data[0], 1.0 / c1, 1.0 / c2, 1.0 / scale]);
        let is_due = good + 1.0 >= f64::from(self.interval);
        let (scale, good) = if is_due { ((2.0 * scale).min(RANGE[1]), 0.0) } else { (scale, good + 1.0) };
        vec![unscaled, told, array(vec![scale, good, skipped, c1, c2])]
    }
}
