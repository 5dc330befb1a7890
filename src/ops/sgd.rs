//! One step of stochastic gradient descent with momentum (Polyak, 1964; Nesterov's as in Sutskever et al., 2013) on a flat
//! page of parameters, in place.

use super::gaps;
use super::update::{self, Part};
use crate::base::{Array, Limits, TensorType};
use crate::error::Result;
use crate::graph::{Cost, Io, Kernel, Op};

/// Updates p, and with momentum m (states, f32 of one shape), from g.
///
/// Inputs: p, g, m where there is momentum; then as [`super::AdamW`] what the judge tells, and the table of gaps. No outputs.
///
/// As `torch.optim.SGD`, from an m of zeros: the decay of p is added to the gradient, m = µ·m + g, and p -= lr·m, or
/// lr·(g + µ·m) with Nesterov's.
#[derive(Debug, Clone, PartialEq)]
pub struct Sgd {
    /// How much of the buffer stays, µ; 0 for no buffer.
    pub momentum: f32,
    /// Whether the gradient is looked at one step ahead.
    pub nesterov: bool,
    /// The page's parts.
    pub parts: Vec<Part>,
}

impl Sgd {
    fn pages(&self) -> usize {
        if self.momentum == 0.0 { 2 } else { 3 }
    }
}

impl Op for Sgd {
    fn name(&self) -> &'static str {
        "sgd"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        update::check(inputs, self.pages(), &self.parts).map(|()| vec![])
    }

    fn writes(&self) -> Vec<usize> {
        if self.momentum == 0.0 { vec![0] } else { vec![0, 2] }
    }

    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        let names = &["p", "g", "m"][..self.pages()];
        let kernel = update::kernel("sgd", io, limits, names, &self.parts, &[("momentum", self.momentum)]);
        let has_momentum = usize::from(self.momentum != 0.0);
        vec![kernel.constant("MOMENTUM", has_momentum).constant("NESTEROV", usize::from(self.nesterov))]
    }

    fn cost(&self, io: &Io) -> Cost {
        let page = &io.inputs[0];
        Cost { flops: 8 * page.shape.elements() as u64, bytes: io.bytes() + self.writes().len() as u64 * page.bytes() }
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let (told, momentum) = (self.pages(), f64::from(self.momentum));
        let (lr, factor) = (inputs[told].data[0], inputs[told].data[3]);
        let mut p = inputs[0].clone();
        let mut m = (momentum != 0.0).then(|| inputs[2].clone());
        for i in (0..p.data.len()).filter(|&i| factor != 0.0 && !gaps::contains(inputs.get(told + 1), i)) {
            let part = update::part_of(&self.parts, i);
            let rate = lr * f64::from(part.rate);
            let mut step = inputs[1].data[i] * factor + p.data[i] * f64::from(part.decay);
            if let Some(m) = &mut m {
                m.data[i] = momentum * m.data[i] + step;
                step = if self.nesterov { step + momentum * m.data[i] } else { m.data[i] };
            }
            p.data[i] -= rate * step;
        }
        [Some(p), m].into_iter().flatten().collect()
    }
}
