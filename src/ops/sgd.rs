//! One step of stochastic gradient descent with momentum (Polyak, 1964; Nesterov's as in Sutskever et al., 2013) on a flat
//! page of parameters, in place.

use super::gaps;
use super::update::{self, Part, RUN};
use crate::base::{Array, Limits, TensorType};
use crate::error::Result;
use crate::graph::{Cost, Io, Kernel, Op};

/// Updates p, and with momentum m (states, f32), from g: m is of the whole page as p is, or of g's elements only.
///
/// Inputs: p, g, m where there is momentum; then as [`super::AdamW`] what the judge tells, a copy where there is one, and the
/// table of gaps. The output is also that of AdamW.
///
/// As `torch.optim.SGD`, from an m of zeros: the decay of p is added to the gradient, m = µ·m + g, and p -= lr·m, or
/// lr·(g + µ·m) with Nesterov's.
#[derive(Debug, Clone, PartialEq)]
pub struct Sgd {
    /// How much of the buffer stays, µ; 0 for no buffer.
    pub momentum: f32,
    /// Whether the gradient is looked at one step ahead.
    pub nesterov: bool,
    /// The first element of the page that g is of, a multiple of 64: g may be of some of them only, which the parts end with.
    pub start: usize,
    /// The page's parts.
    pub parts: Vec<Part>,
    /// The first element of the page that the copy is of, a multiple of 128; none where there is no copy.
    pub copied: Option<usize>,
}

impl Sgd {
    fn given(&self) -> update::Given {
        update::Given { gradient: 1, start: self.start, copied: self.copied }
    }

    fn pages(&self) -> usize {
        if self.momentum == 0.0 { 2 } else { 3 }
    }
}

impl Op for Sgd {
    fn name(&self) -> &'static str {
        "sgd"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        update::check(inputs, self.pages(), self.given(), &self.parts)?;
        Ok(vec![update::added_type(&self.parts, self.start, RUN)])
    }

    fn writes(&self) -> Vec<usize> {
        let momentum = (self.momentum != 0.0).then_some(2);
        [Some(0), momentum, self.given().rest(self.pages()).0].into_iter().flatten().collect()
    }

    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        let names = &["p", "g", "m"][..self.pages()];
        let kernel =
            update::kernel("sgd", io, limits, names, self.given(), &self.parts, &[("momentum", self.momentum)]);
        let has_momentum = usize::from(self.momentum != 0.0);
        vec![kernel.constant("MOMENTUM", has_momentum).constant("NESTEROV", usize::from(self.nesterov))]
    }

    fn cost(&self, io: &Io) -> Cost {
        let g = &io.inputs[1];
        let states = self.pages() as u64 - 1;
        Cost { flops: 8 * g.shape.elements() as u64, bytes: (1 + 2 * states) * g.bytes() + update::copy_bytes(io) }
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let (told, momentum) = (self.pages(), f64::from(self.momentum));
        let (lr, factor) = (inputs[told].data[0], inputs[told].data[3]);
        let mut p = inputs[0].clone();
        let mut m = (momentum != 0.0).then(|| inputs[2].clone());
        let all = self.start..self.start + inputs[1].data.len();
        for i in all.clone().filter(|&i| factor != 0.0 && !gaps::contains(inputs.get(self.given().rest(told).1), i)) {
            let part = update::part_of(&self.parts, i);
            let rate = lr * f64::from(part.rate);
            let mut step = inputs[1].data[i - self.start] * factor + p.data[i] * f64::from(part.decay);
            if let Some(m) = &mut m {
                let k = i - self.given().first(m.data.len(), p.data.len());
                m.data[k] = momentum * m.data[k] + step;
                step = if self.nesterov { step + momentum * m.data[k] } else { m.data[k] };
            }
            p.data[i] -= rate * step;
        }
        let added = update::added([&inputs[0], &p], &self.parts, self.start, RUN);
        let copy = self.given().copy(inputs, told, &p, if factor != 0.0 { all } else { 0..0 });
        [Some(added), Some(p), m, copy].into_iter().flatten().collect()
    }
}
