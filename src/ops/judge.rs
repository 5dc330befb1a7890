//! After the backward pass, one decision on the device: whether the step counts, by how much gradients are multiplied, and
//! by what the next loss is (dynamic loss scaling: Micikevicius et al., "Mixed precision training", 2018, §3.2).

use crate::base::{Array, Limits, TensorType};
use crate::error::Result;
use crate::graph::{Cost, Dispatch, Io, Kernel, Op, Operand};

/// Judges a step by the norm of its gradients.
///
/// Inputs: the judge's state, f32 `[8]`: scale, good steps since it changed, steps left out so far, 1-β₁ᵗ and 1-β₂ᵗ, t being
/// the steps that counted, the sum of their norms, each weighing 0.98 of the one after it, the sum of those weights, and 1
/// if this step was left out, else 0; the norm f32 `[1]` of the gradients as they are; hyper f32 `[1]`: the learning rate;
/// and, where gradients are sums over several batches, those of their weights and of their losses times these, f32 `[1]` each.
/// Outputs: the norm `[1]` of the mean gradient,
/// neither scaled nor clipped; and what the updates are told `[4]`: the learning rate, 1/(1-β₁ᵗ), 1/(1-β₂ᵗ), and what
/// gradients are to be multiplied by, 0 leaving the step out whatever they hold; and, of sums, the mean loss `[1]`.
///
/// A norm that is not finite leaves the step out, and so does one that exceeds `outlier` times the running mean of those
/// before, once fifty steps have counted. Where the loss is scaled, an overflow halves the scale, down to a half; after
/// `interval` good steps in a row it doubles, up to 2³², where scaled gradients are still far from the end of f32.
#[derive(Debug, Clone, PartialEq)]
pub struct Judge {
    /// Good steps after which the scale doubles; 0 where the loss is not scaled.
    pub interval: u32,
    /// 1 - β₁.
    pub rest1: f32,
    /// 1 - β₂.
    pub rest2: f32,
    /// Gradients are multiplied so that their global norm is at most this, as `torch.nn.utils.clip_grad_norm_` does;
    /// infinite turns that off.
    pub max_norm: f32,
    /// How many times the running mean a norm may be; 0 for any.
    pub outlier: f32,
}

/// Smallest and largest scale.
const RANGE: [f64; 2] = [0.5, 4_294_967_296.0];
/// The weights of fifty steps sum up to a little more.
const WARM: f64 = 31.6;
/// The weight of a norm against that of the one after it.
const KEEP: f64 = 0.98;

impl Op for Judge {
    fn name(&self) -> &'static str {
        "judge"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let sizes = [8, 1, 1, 1, 1].map(|n| TensorType::f32([n]));
        if ![3, 5].contains(&inputs.len()) || inputs.iter().zip(&sizes).any(|(x, ty)| **x != *ty) {
            return Err("takes the judge's state f32[8], a norm and hyper f32[1], and perhaps two sums f32[1]".into());
        }
        let outputs = [1, 4, 1].map(|n| TensorType::f32([n]));
        Ok(outputs[..if inputs.len() == 5 { 3 } else { 2 }].to_vec())
    }

    fn writes(&self) -> Vec<usize> {
        vec![0]
    }

    fn kernels(&self, io: &Io, _limits: &Limits) -> Vec<Kernel> {
        let mut d = Dispatch::new([1, 1, 1])
            .param("interval", self.interval)
            .param("rest1", self.rest1)
            .param("rest2", self.rest2)
            .param("max_norm", self.max_norm.min(f32::MAX))
            .param("outlier", self.outlier);
        for (i, name) in ["state", "norm", "hyper", "weights", "losses"].into_iter().enumerate() {
            if let Some(ty) = io.inputs.get(i) {
                d = d.bind(name, Operand::Input(i), 0, ty.bytes());
            }
        }
        for (i, name) in ["true_norm", "told", "loss"].into_iter().enumerate().take(io.outputs.len()) {
            d = d.bind(name, Operand::Output(i), 0, io.outputs[i].bytes());
        }
        vec![Kernel::new("judge", "lane").constant("SUMS", io.outputs.len() - 2).dispatch(d)]
    }

    fn cost(&self, io: &Io) -> Cost {
        Cost { flops: 24, bytes: io.bytes() }
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let [scale, good, skipped, c1, c2, sum, weights, _] = inputs[0].data[..] else {
            unreachable!("checked when the node was made")
        };
        let (norm, lr) = (inputs[1].data[0], inputs[2].data[0]);
        let array = |data: Vec<f64>| Array::new(TensorType::f32([data.len()]), data);
        let is_scaled = self.interval != 0;
        // Batches of which no token counts have no gradient either.
        let weight = inputs.get(3).map_or(1.0, |w| if w.data[0] > 0.0 { w.data[0] } else { 1.0 });
        let factor = 1.0 / (if is_scaled { scale } else { 1.0 } * weight);
        let loss = inputs.get(4).map(|sum| array(vec![sum.data[0] / weight]));
        let results = |size, told, next| [Some(array(vec![size])), Some(array(told)), loss, Some(array(next))];
        let results = |size, told, next| results(size, told, next).into_iter().flatten().collect::<Vec<Array>>();
        let size = norm * factor;
        let outlier = f64::from(self.outlier);
        let overflows = !size.is_finite();
        let due = good + 1.0 >= f64::from(self.interval);
        let (scale, good) = match () {
            () if !is_scaled => (scale, good),
            () if overflows => ((scale / 2.0).max(RANGE[0]), 0.0),
            () if due => ((2.0 * scale).min(RANGE[1]), 0.0),
            () => (scale, good + 1.0),
        };
        if overflows || (outlier > 0.0 && weights > WARM && size * weights > outlier * sum) {
            let next = vec![scale, good, skipped + 1.0, c1, c2, sum, weights, 1.0];
            return results(size, vec![0.0; 4], next);
        }
        let c1 = c1 + f64::from(self.rest1) * (1.0 - c1);
        let c2 = c2 + f64::from(self.rest2) * (1.0 - c2);
        let clip = (f64::from(self.max_norm.min(f32::MAX)) / (size + 1e-6)).min(1.0);
        let told = vec![lr, 1.0 / c1, 1.0 / c2, factor * clip];
        let next = vec![scale, good, skipped, c1, c2, KEEP * sum + size, KEEP * weights + 1.0, 0.0];
        results(size, told, next)
    }
}
