//! A normalised row times a matrix, in one kernel. M rows, N columns, K the dim that is summed.

use super::matmul::MatMul;
use super::panel_matmul::PanelMatMul;
use super::rms_norm::RmsNorm;
use crate::base::{Array, Limits, TensorType};
use crate::error::Result;
use crate::graph::{Cost, Io, Kernel, Op, Operand};

/// [`RmsNorm`] and then [`MatMul::linear`], for few rows: y = r · ((x ∘ gain) · Wᵀ), where r is the inverse root mean
/// square, which every workgroup sums for itself as it walks along the row. Inputs: x `[.., K]`, gain `[K]`, W `[N,K]` of
/// any dtype of weights. Output: y `[.., N]`, or its panels. The compiler puts it where it has kernels and nobody else wants
/// the normalised row.
#[derive(Debug, Clone, PartialEq)]
pub struct NormMatMul {
    /// Added to the mean square.
    pub eps: f32,
    /// Columns of each panel of y ([`PanelMatMul::linear`]); none where y is one.
    pub widths: Vec<usize>,
}

impl NormMatMul {
    /// With a result by rows.
    pub fn new(eps: f32) -> Self {
        NormMatMul { eps, widths: Vec::new() }
    }

    fn panels(&self) -> Option<PanelMatMul> {
        (!self.widths.is_empty()).then(|| PanelMatMul::linear(MatMul::linear(), self.widths.clone()))
    }

    /// A product's kernel that norms its rows.
    fn normed(&self, kernel: Kernel, io: &Io) -> Kernel {
        let mut kernel = kernel.constant("NORM", 1);
        kernel.variant = format!("norm_{}", kernel.variant);
        for dispatch in &mut kernel.dispatches {
            let weight = dispatch.bindings.iter_mut().find(|b| b.operand == Operand::Input(1));
            weight.expect("a product binds its weight").operand = Operand::Input(2);
            *dispatch =
                dispatch.clone().bind("gain", Operand::Input(1), 0, io.inputs[1].bytes()).param("eps", self.eps);
        }
        kernel
    }

    fn norm(&self) -> RmsNorm {
        RmsNorm { eps: self.eps }
    }

    /// The product's own inputs and outputs.
    fn product(io: &Io) -> Io {
        Io { inputs: vec![io.inputs[0].clone(), io.inputs[2].clone()], outputs: io.outputs.clone() }
    }
}

impl Op for NormMatMul {
    fn name(&self) -> &'static str {
        "norm_matmul"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let &[x, gain, weight] = inputs else { return Err("takes three inputs: x, gain and a weight".into()) };
        self.norm().infer(&[x, gain])?;
        match self.panels() {
            None => MatMul::linear().infer(&[x, weight]),
            Some(panels) => panels.infer(&[x, weight]),
        }
    }

    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        let (product, mut own) = (MatMul::linear(), Self::product(io));
        let panels = self.panels();
        if let Some(panels) = &panels {
            own = panels.inner(&own);
        }
        let tiers = product.few_rows(&own, limits).into_iter();
        let kernels = tiers.filter_map(|tier| match &panels {
            None => product.kernel(tier, &own, limits, usize::MAX),
            Some(panels) => panels.kernel(tier, &own, limits),
        });
        kernels.map(|kernel| self.normed(kernel, io)).collect()
    }

    fn cost(&self, io: &Io) -> Cost {
        let own = Self::product(io);
        let product = self.panels().map_or_else(|| MatMul::linear().cost(&own), |panels| panels.cost(&own));
        let row = io.inputs[0].shape.elements() as u64;
        Cost { flops: product.flops + 4 * row, bytes: io.bytes() }
    }

    fn epilogue(&self) -> bool {
        self.widths.is_empty()
    }

    fn reduction(&self, io: &Io) -> usize {
        io.inputs[1].shape.last()
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let normed = self.norm().reference(&inputs[..2]).swap_remove(0);
        let inputs = [normed, inputs[2].clone()];
        self.panels().map_or_else(|| MatMul::linear().reference(&inputs), |panels| panels.reference(&inputs))
    }
}
