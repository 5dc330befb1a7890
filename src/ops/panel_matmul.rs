//! A product one of whose matrices is stored in panels: what makes one product of several over the same input, or of
//! several gradients. M rows, N columns, K the dim that is summed.

use super::matmul::MatMul;
use super::matmul_kernels::{Tier, hands_on};
use crate::base::{Array, Limits, TensorType};
use crate::error::Result;
use crate::graph::{Cost, Io, Kernel, Op};

/// Panels begin at multiples of this many columns, which is a whole number of every kernel's tiles: so each tile lies in one.
pub const PANEL: usize = 64;
/// Panels that a kernel tells apart.
pub const MOST: usize = 3;

/// Which matrix is stored in panels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Panelled {
    /// A.
    A,
    /// C.
    C,
}

/// [`MatMul`] with A or C stored in panels: blocks of the columns that it has as stored, one block after the other, each by
/// rows. A matrix in panels is flat, `[rows · columns]`; dtypes and the other matrices are as [`MatMul`] says, and make no batch. A in
/// panels is gradients of several linear layers, which by their weights give that of their input; transposed, by the input,
/// those of the weights. C in panels is the layers' results. The compiler makes it where weights adjoin.
#[derive(Debug, Clone, PartialEq)]
pub struct PanelMatMul {
    /// The product.
    pub product: MatMul,
    /// The matrix.
    pub panelled: Panelled,
    /// Columns of each panel: two or three of them, multiples of 64.
    pub widths: Vec<usize>,
}

impl PanelMatMul {
    /// x `[.., K]` by W `[N,K]` to the panels of `[.., N]`.
    pub fn linear(product: MatMul, widths: Vec<usize>) -> Self {
        PanelMatMul { product, panelled: Panelled::C, widths }
    }

    fn columns(&self) -> usize {
        self.widths.iter().sum()
    }

    /// A as a matrix.
    fn a(&self, a: &TensorType) -> Result<TensorType, String> {
        let (columns, elements) = (self.columns(), a.shape.elements());
        match self.panelled {
            Panelled::C => Ok(a.clone()),
            Panelled::A if a.shape.rank() == 1 && elements.is_multiple_of(columns) => {
                Ok(TensorType { shape: [elements / columns, columns].into(), dtype: a.dtype })
            }
            Panelled::A => Err(format!("a must be flat, and rows of {columns} columns")),
        }
    }

    /// The product's own inputs and outputs.
    pub(super) fn inner(&self, io: &Io) -> Io {
        let inputs = vec![self.a(&io.inputs[0]).expect("checked when the node was made"), io.inputs[1].clone()];
        let mut outputs = self.product.infer(&[&inputs[0], &inputs[1]]).expect("checked when the node was made");
        outputs[0].dtype = io.outputs[0].dtype;
        Io { inputs, outputs }
    }

    /// One tier's kernel, where one dispatch does all and every tile lies in one panel.
    pub(super) fn kernel(&self, tier: Tier, inner: &Io, limits: &Limits) -> Option<Kernel> {
        let in_a = self.panelled == Panelled::A;
        let [rows, columns] = tier.tile();
        let along_m = in_a && self.product.transpose_a;
        let along_k = in_a && !self.product.transpose_a;
        let tile = if along_k {
            PANEL
        } else if along_m {
            if tier.is_own() { 4 } else { rows }
        } else {
            columns
        };
        if !self.widths.iter().all(|width| width.is_multiple_of(tile)) {
            return None;
        }
        // Layers are joined in one dispatch or not at all.
        let mut kernel = self.product.kernel(tier, inner, limits, usize::MAX)?;
        let [dispatch] = kernel.dispatches.as_mut_slice() else { return None };
        let (first, second) = (self.widths[0], self.widths[0] + self.widths[1]);
        dispatch.params.extend([("panel_1", first.into()), ("panel_2", second.into())]);
        kernel.variant = format!("panels_{}", kernel.variant);
        let kernel = kernel.constant("PANELS", 1).constant(if in_a { "PANELS_A" } else { "PANELS_C" }, 1);
        Some(if along_k { kernel.constant("PANELS_K", 1) } else { kernel })
    }

    /// From panels to a matrix by rows, or the other way.
    fn arranged(&self, x: &Array, ty: TensorType, to_panels: bool) -> Array {
        let columns = self.columns();
        let rows = x.data.len() / columns;
        let mut y = Array::zeros(ty.shape.clone());
        let mut start = 0;
        for &width in &self.widths {
            for (r, c) in (0..rows).flat_map(|r| (0..width).map(move |c| (r, c))) {
                let (panel, row) = (rows * start + r * width + c, r * columns + start + c);
                let (to, from) = if to_panels { (panel, row) } else { (row, panel) };
                y.data[to] = x.data[from];
            }
            start += width;
        }
        y
    }
}

impl Op for PanelMatMul {
    fn name(&self) -> &'static str {
        "panel_matmul"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let &[a, b] = inputs else { return Err("takes two inputs: a and b".into()) };
        let count = self.widths.len();
        if !(2..=MOST).contains(&count) || self.widths.iter().any(|w| *w == 0 || !w.is_multiple_of(PANEL)) {
            return Err(format!("panels must be two or three, of a multiple of {PANEL} columns each"));
        }
        let a = self.a(a)?;
        let c = self.product.infer(&[&a, b])?.remove(0);
        if b.shape.rank() != 2 {
            return Err("products in panels make no batch".into());
        }
        if self.product.transpose_b && self.panelled != Panelled::C {
            return Err("b is not transposed where a is in panels".into());
        }
        match self.panelled {
            Panelled::A => Ok(vec![c]),
            Panelled::C if c.shape.last() != self.columns() => {
                Err(format!("the panels have {} columns, and the result {}", self.columns(), c.shape.last()))
            }
            Panelled::C => Ok(vec![TensorType::f32([c.shape.elements()])]),
        }
    }

    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        let inner = self.inner(io);
        let mut tiers = self.product.tiers(&inner, limits);
        if hands_on(limits) {
            // As for packed weights: a CPU's lanes have one kernel that others do not come near.
            tiers.truncate(tiers.iter().position(Tier::is_rows).map_or(tiers.len(), |i| i + 1));
        }
        tiers.into_iter().filter_map(|tier| self.kernel(tier, &inner, limits)).collect()
    }

    fn scratch(&self, io: &Io, limits: &Limits) -> u64 {
        self.product.scratch(&self.inner(io), limits)
    }

    fn cost(&self, io: &Io) -> Cost {
        self.product.cost(&self.inner(io))
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let ty = self.a(&inputs[0].ty).expect("checked when the node was made");
        let a = match self.panelled {
            Panelled::A => self.arranged(&inputs[0], ty, false),
            Panelled::C => inputs[0].clone(),
        };
        let c = self.product.reference(&[a, inputs[1].clone()]).remove(0);
        match self.panelled {
            Panelled::A => vec![c],
            Panelled::C => vec![self.arranged(&c, TensorType::f32([c.data.len()]), true)],
        }
    }

    fn half_inputs(&self, io: &Io, limits: &Limits) -> Vec<usize> {
        self.product.half_inputs(&self.inner(io), limits)
    }

    fn half_outputs(&self, io: &Io, limits: &Limits) -> Vec<usize> {
        self.product.half_outputs(&self.inner(io), limits)
    }

    fn epilogue(&self) -> bool {
        // An element's number in panels is not that of what would be added.
        self.panelled != Panelled::C
    }

    fn reduction(&self, io: &Io) -> usize {
        self.product.reduction(&self.inner(io))
    }
}
