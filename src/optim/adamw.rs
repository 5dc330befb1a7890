//! AdamW (Loshchilov and Hutter, 2019) with clipping by the global norm, appended to a graph that computes a loss.

use super::LossScaling;
use crate::base::TensorType;
use crate::error::Result;
use crate::graph::{Concat, Graph, Value, gradients, scaled_gradients};
use crate::nn::{ParamLayout, Params};
use crate::ops::{AdamW, GlobalNorm, SumSquares, gap_table};

/// Name of the graph's input that holds [`Optimizer::hyper`].
pub const HYPER: &str = "hyper";

/// Settings of AdamW that stay the same throughout a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Optimizer {
    /// Decay of the first moment, β₁.
    pub beta1: f64,
    /// Decay of the second moment, β₂.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay of matrices; times the learning rate.
    pub weight_decay: f64,
    /// Gradients are scaled down to this global norm; infinite turns that off.
    pub max_norm: f64,
    /// Where gradients are of f16 products: how the loss is scaled so that they neither vanish nor overflow.
    pub loss_scaling: Option<LossScaling>,
}

impl Default for Optimizer {
    fn default() -> Self {
        Optimizer { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weight_decay: 0.1, max_norm: 1.0, loss_scaling: None }
    }
}

impl Optimizer {
    /// What the host writes to the input [`HYPER`], f32 `[4]`, before `step` (the first is 0): the learning rate, the
    /// corrections 1/(1-β₁ᵗ) and 1/(1-β₂ᵗ) with t = step + 1, and 1. Where the loss is
    /// scaled only the rate counts: which steps do is known on the device.
    pub fn hyper(&self, lr: f64, step: u64) -> [f32; 4] {
        // Beyond this many steps the powers are 0 in f64 for any useful β.
        let t = (step + 1).min(i32::MAX as u64) as i32;
        let correction = |beta: f64| (1.0 / (1.0 - beta.powi(t))) as f32;
        [lr as f32, correction(self.beta1), correction(self.beta2), 1.0]
    }

    /// Appends the backward pass and one AdamW step. Reads the input [`HYPER`], which it declares; moments are the
    /// states `adam_m.<page>` and `adam_v.<page>`; gives the outputs `loss` and `grad_norm` (before clipping), f32
    /// `[1]` each; and with a scaled loss [`super::SCALER`], the state of that name after the step.
    ///
    /// # Errors
    /// If the loss does not depend on every parameter.
    pub fn train_step(&self, g: &mut Graph, layout: &ParamLayout, params: &Params, loss: Value) -> Result<()> {
        let scaler = self.loss_scaling.map(|scaling| scaling.state(g));
        let gradients = match scaler {
            None => gradients(g, loss, &params.views)?,
            Some(scaler) => {
                let scale = LossScaling::scale(g, scaler)?;
                scaled_gradients(g, loss, scale, &params.views)?
            }
        };
        let hyper = g.input(HYPER, TensorType::f32([4]));
        let (m, v) = (layout.states(g, "adam_m"), layout.states(g, "adam_v"));
        let (mut pages, mut sums, mut gaps) = (Vec::new(), Vec::new(), Vec::new());
        for (i, page) in layout.pages().iter().enumerate() {
            let name = format!("optimizer.{i}");
            let concat = Concat { starts: page.starts.clone(), elements: page.elements };
            let flat = g.scope(&name, |g| g.apply1(concat, &gradients[page.params.clone()]))?;
            let table: Vec<Value> = gap_table(&page.gaps)
                .map(|(ty, bytes)| g.scope(&name, |g| g.constant("gaps", ty, bytes)))
                .into_iter()
                .collect();
            sums.push(g.scope(&name, |g| g.apply1(SumSquares, &[&[flat], table.as_slice()].concat()))?);
            pages.push(flat);
            gaps.push(table);
        }
        let norm = g.scope("optimizer", |g| g.apply1(GlobalNorm, &sums))?;
        let (norm, hyper) = match self.loss_scaling.zip(scaler) {
            None => (norm, hyper),
            Some((scaling, scaler)) => scaling.judge(g, self, [scaler, norm, hyper])?,
        };
        for (i, page) in layout.pages().iter().enumerate() {
            let adamw = AdamW {
                beta1: self.beta1 as f32,
                beta2: self.beta2 as f32,
                epsilon: self.epsilon as f32,
                weight_decay: self.weight_decay as f32,
                decay_end: page.decay_end,
                max_norm: self.max_norm as f32,
            };
            let inputs = [&[params.pages[i], m[i], v[i], pages[i], norm, hyper], gaps[i].as_slice()].concat();
            g.scope(format!("optimizer.{i}"), |g| g.apply(adamw, &inputs))?;
        }
        g.output("loss", loss);
        g.output("grad_norm", norm);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn corrections_undo_the_bias_of_the_start() {
        let o = Optimizer::default();
        assert_eq!(o.hyper(0.25, 0), [0.25, 10.0, (1.0 / (1.0 - 0.95f64)) as f32, 1.0]);
        assert_eq!(o.hyper(1e-3, 1)[1], (1.0 / 0.19f64) as f32);
        assert_eq!(o.hyper(1e-3, u64::MAX - 1), [1e-3, 1.0, 1.0, 1.0]);
    }
}
