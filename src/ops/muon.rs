//! What is elementwise in Muon (Jordan et al., 2024): the momentum of one matrix before its direction is made orthogonal, and
//! the step along it. Both work in place on the matrix's range of a flat page.

use super::in_page;
use super::update::{self, Part, RUN};
use crate::base::{Array, Limits, TensorType};
use crate::error::Result;
use crate::graph::{Cost, Io, Kernel, Op, Operand};

/// m += (g - m)·(1 - µ), and y = m, or g + (m - g)·µ with Nesterov's momentum: the order of `torch.optim.Muon`.
///
/// Inputs: the page of m, a state; g `[R,C]`; what [`super::Judge`] tells, f32 `[4]`, whose last element g is multiplied by,
/// and which leaves m as it is where that is 0. Output: y `[R,C]`, zeros then.
#[derive(Debug, Clone, PartialEq)]
pub struct MuonMomentum {
    /// The matrix's first element in the page, a multiple of 64.
    pub start: usize,
    /// How much of the buffer stays, µ.
    pub momentum: f32,
    /// Whether the direction is that of one step ahead.
    pub nesterov: bool,
}

/// p -= lr·rate·decay·p + lr·adjusted·x. Inputs: the page of p, a state; x `[R,C]`; what the judge tells; a copy where there is
/// one. The output is that of [`super::AdamW`].
#[derive(Debug, Clone, PartialEq)]
pub struct MuonUpdate {
    /// The matrix's first element in the page, a multiple of 64.
    pub start: usize,
    /// Times the learning rate, for the decay.
    pub rate: f32,
    /// Decoupled weight decay.
    pub decay: f32,
    /// Times the learning rate, for the step along x.
    pub adjusted: f32,
    /// The first element of the page that the copy is of, a multiple of 128; none where there is no copy.
    pub copied: Option<usize>,
}

impl Op for MuonMomentum {
    fn name(&self) -> &'static str {
        "muon_momentum"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        in_page::check(inputs, self.start, 4).map(|()| vec![inputs[1].clone()])
    }

    fn writes(&self) -> Vec<usize> {
        vec![0]
    }

    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        let matrices = [("g", Operand::Input(1)), ("y", Operand::Output(0))];
        let params = [("momentum", self.momentum)];
        let kernel = in_page::kernel("muon_momentum", ["m", "told"], &matrices, &params, self.start, io, limits);
        vec![kernel.constant("NESTEROV", usize::from(self.nesterov))]
    }

    fn cost(&self, io: &Io) -> Cost {
        Cost { flops: 7 * io.elements(), bytes: 4 * io.outputs[0].bytes() }
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let (mut m, factor, momentum) = (inputs[0].clone(), inputs[2].data[3], f64::from(self.momentum));
        let mut y = Array::zeros(inputs[1].ty.shape.clone());
        if factor != 0.0 {
            for (i, g) in inputs[1].data.iter().map(|g| g * factor).enumerate() {
                let m = &mut m.data[self.start + i];
                *m += (g - *m) * (1.0 - momentum);
                y.data[i] = if self.nesterov { g + (*m - g) * momentum } else { *m };
            }
        }
        vec![y, m]
    }
}

impl MuonUpdate {
    fn given(&self) -> update::Given {
        update::Given { gradient: 1, start: self.start, copied: self.copied }
    }

    fn part(&self, x: &TensorType) -> [Part; 1] {
        [Part { end: self.start + x.shape.elements(), rate: self.rate, decay: self.decay }]
    }
}

impl Op for MuonUpdate {
    fn name(&self) -> &'static str {
        "muon_update"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let (own, copy) = inputs.split_at(inputs.len().min(3));
        in_page::check(own, self.start, 4)?;
        match (self.copied, copy) {
            (None, []) => {}
            (Some(_), [copy]) => {
                self.given().check_copy(copy, inputs[0].shape.elements(), &self.part(inputs[1]))?;
            }
            _ => return Err("takes a page, a tensor, what it is told, and a copy where there is one".into()),
        }
        Ok(vec![update::added_type(&self.part(inputs[1]), self.start, RUN)])
    }

    fn writes(&self) -> Vec<usize> {
        [0].into_iter().chain(self.given().rest(2).0).collect()
    }

    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        let (parts, params) = (self.part(&io.inputs[1]), [("adjusted", self.adjusted)]);
        vec![update::kernel("muon_update", io, limits, &["p", "x"], self.given(), &parts, &params)]
    }

    fn cost(&self, io: &Io) -> Cost {
        let x = &io.inputs[1];
        let copied = if self.copied.is_some() { x.bytes() / 2 } else { 0 };
        Cost { flops: 6 * x.shape.elements() as u64, bytes: 3 * x.bytes() + copied }
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let (mut p, lr) = (inputs[0].clone(), inputs[2].data[0]);
        let counts = inputs[2].data[3] != 0.0;
        if counts {
            let (decay, step) = (lr * f64::from(self.rate) * f64::from(self.decay), lr * f64::from(self.adjusted));
            for (i, x) in inputs[1].data.iter().enumerate() {
                let p = &mut p.data[self.start + i];
                *p = *p - *p * decay - step * x;
            }
        }
        let updated = if counts { self.start..self.start + inputs[1].data.len() } else { 0..0 };
        let copy = self.given().copy(inputs, 2, &p, updated);
        let added = update::added([&inputs[0], &p], &self.part(&inputs[1].ty), self.start, RUN);
        [added, p].into_iter().chain(copy).collect()
    }
}
