//! One step of AdamW (Loshchilov and Hutter, 2019) on a flat page of parameters, in place.

use super::gaps;
use super::windows::item;
use crate::base::{Array, DType, Limits, TensorType};
use crate::error::Result;
use crate::graph::{Cost, Dispatch, Io, Kernel, Op, Operand, spread};

/// Updates p, m and v (states, f32 of one shape) from g, after clipping by the global norm.
///
/// Inputs: p, m, v, g; norm f32 `[1]`, of all gradients; hyper f32 `[4]`: learning rate, 1/(1-β₁ᵗ), 1/(1-β₂ᵗ), and
/// what g is multiplied by to be of that norm's scale, 0 leaving the step out whatever g holds;
/// and, where the page has padding, a table made by [`super::gap_table`]: those elements stay as they are. No outputs.
///
/// The order of operations is that of `torch.optim.AdamW`, and clipping that of `torch.nn.utils.clip_grad_norm_`.
#[derive(Debug, Clone, PartialEq)]
pub struct AdamW {
    /// Decay of the first moment, β₁.
    pub beta1: f32,
    /// Decay of the second moment, β₂.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub epsilon: f32,
    /// Decoupled weight decay, times the learning rate.
    pub weight_decay: f32,
    /// Elements from here on are not decayed.
    pub decay_end: usize,
    /// Gradients are scaled so that their global norm is at most this; infinite turns clipping off.
    pub max_norm: f32,
}

const NAMES: [&str; 7] = ["p", "m", "v", "g", "norm", "hyper", "gaps"];

impl Op for AdamW {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [p, m, v, g, norm, hyper, table @ ..] = inputs else {
            return Err("takes p, m, v, g, norm, hyper, and the table of gaps if there are any".into());
        };
        gaps::check(table)?;
        if p.dtype != DType::F32 || [m, v, g].iter().any(|x| *x != p) {
            return Err("p, m, v and g must be f32 of one shape".into());
        }
        if **norm != TensorType::f32([1]) || **hyper != TensorType::f32([4]) {
            return Err("norm must be f32[1] and hyper f32[4]".into());
        }
        Ok(vec![])
    }

    fn writes(&self) -> Vec<usize> {
        vec![0, 1, 2]
    }

    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        let n = io.inputs[0].shape.elements();
        let workgroup = if limits.is_cpu { 64 } else { 256 };
        // Padding begins at any element.
        let item = if io.inputs.len() == 6 { item(n) } else { 1 };
        let mut kernel = Kernel::new("adamw", format!("lanes_{workgroup}"))
            .constant("WORKGROUP", workgroup)
            .constant("VECTOR", usize::from(item == 4))
            .constant("GAPS", io.inputs.len() - 6);
        let window = (limits.max_binding_bytes / 256 * 64) as usize;
        for start in (0..n).step_by(window) {
            let count = window.min(n - start);
            let mut d = Dispatch::new(spread((count / item).div_ceil(workgroup), limits))
                .param("start", start / item)
                .param("count", count / item)
                .param("decay_end", self.decay_end.saturating_sub(start).min(count))
                .param("beta1", self.beta1)
                .param("beta2", self.beta2)
                .param("epsilon", self.epsilon)
                .param("weight_decay", self.weight_decay)
                .param("max_norm", self.max_norm.min(f32::MAX));
            for (i, (ty, name)) in io.inputs.iter().zip(NAMES).enumerate() {
                let (at, bytes) = if i < 4 { (start as u64 * 4, count as u64 * 4) } else { (0, ty.bytes()) };
                d = d.bind(name, Operand::Input(i), at, bytes);
            }
            kernel = kernel.dispatch(d);
        }
        vec![kernel]
    }

    fn cost(&self, io: &Io) -> Cost {
        let page = &io.inputs[0];
        Cost { flops: 16 * page.shape.elements() as u64, bytes: io.bytes() + 3 * page.bytes() }
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let [beta1, beta2] = [self.beta1, self.beta2].map(f64::from);
        let clip = (f64::from(self.max_norm.min(f32::MAX)) / (inputs[4].data[0] + 1e-6)).min(1.0);
        let [rate, bias1, bias2, factor] = inputs[5].data[..] else { unreachable!("checked when the node was made") };
        let (mut p, mut m, mut v) = (inputs[0].clone(), inputs[1].clone(), inputs[2].clone());
        for i in (0..p.data.len()).filter(|&i| factor != 0.0 && !gaps::contains(inputs.get(6), i)) {
            let g = inputs[3].data[i] * factor * clip;
            if i < self.decay_end {
                p.data[i] -= p.data[i] * rate * f64::from(self.weight_decay);
            }
            m.data[i] += (g - m.data[i]) * (1.0 - beta1);
            v.data[i] = v.data[i] * beta2 + g * g * (1.0 - beta2);
            let denominator = (v.data[i] * bias2).sqrt() + f64::from(self.epsilon);
            p.data[i] -= rate * bias1 * m.data[i] / denominator;
        }
        vec![p, m, v]
    }
}
