//! The state behind the judgement of a step, and dynamic scaling of the loss, which is part of it.

use crate::base::TensorType;
use crate::error::Result;
use crate::graph::{Graph, Slice, Value};

/// Name of the state, and of the graph's output, that [`crate::ops::Judge`] keeps: f32 `[8]`, the scale of the loss, good
/// steps since it changed, steps left out so far, and more; zeros before the first step, but where the loss is scaled.
pub const JUDGE: &str = "judge";

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
    /// What [`JUDGE`] begins with.
    pub fn initial(&self) -> [f32; 1] {
        [self.first]
    }
}

pub(super) fn state(g: &mut Graph) -> Value {
    g.state(JUDGE, TensorType::f32([8]))
}

/// The scale of this step, as the loss's gradient.
pub(super) fn scale(g: &mut Graph) -> Result<Value> {
    let state = state(g);
    g.scope("loss_scale", |g| g.apply1(Slice { start: 0, shape: [1].into() }, &[state]))
}
