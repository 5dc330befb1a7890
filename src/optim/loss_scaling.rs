//! The state of dynamic loss scaling, and its nodes in a training step.

use super::Optimizer;
use crate::base::TensorType;
use crate::error::Result;
use crate::graph::{Graph, Slice, Value};
use crate::ops::LossScale;

/// Name of the state, and of the graph's output, that holds the scale and what belongs to it: see
/// [`LossScaling::initial`].
pub const SCALER: &str = "scaler";

/// How the scale of the loss begins and grows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LossScaling {
    /// The first scale: a power of two, so that scaling rounds nothing.
    pub first: f32,
    /// Steps in a row without an overflow after which the scale doubles.
    pub interval: u32,
}

impl Default for LossScaling {
    fn default() -> Self {
        LossScaling { first: 65_536.0, interval: 2_000 }
    }
}

impl LossScaling {
    /// What [`SCALER`] holds before the first step: the scale, good steps since it changed, steps left out so far, and
    /// 1-β₁ᵗ and 1-β₂ᵗ with t = 0.
    pub fn initial(&self) -> [f32; 5] {
        [self.first, 0.0, 0.0, 0.0, 0.0]
    }

    pub(super) fn state(&self, g: &mut Graph) -> Value {
        g.state(SCALER, TensorType::f32([5]))
    }

    /// The scale of this step, as the loss's gradient.
    pub(super) fn scale(g: &mut Graph, scaler: Value) -> Result<Value> {
        g.scope("loss_scale", |g| g.apply1(Slice { start: 0, shape: [1].into() }, &[scaler]))
    }

    /// From scaler, scaled norm and hyper: the norm, and hyper as AdamW is told.
    pub(super) fn judge(&self, g: &mut Graph, optimizer: &Optimizer, inputs: [Value; 3]) -> Result<(Value, Value)> {
        let (rest1, rest2) = ((1.0 - optimizer.beta1) as f32, (1.0 - optimizer.beta2) as f32);
        let op = LossScale { interval: self.interval, rest1, rest2 };
        let told = g.scope("optimizer", |g| g.apply(op, &inputs))?;
        g.output(SCALER, inputs[0]);
        Ok((told[0], told[1]))
    }
}
