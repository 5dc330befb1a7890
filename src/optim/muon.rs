//! Muon (Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024): a matrix moves by its momentum
//! with all singular values brought near 1, which five steps of a Newton-Schulz iteration do with products alone.
//!
//! Legend: R rows and C columns of the matrix.

use super::Optimizer;
use crate::error::Result;
use crate::graph::{Binary, Expr, Graph, Map, Unary, Value};
use crate::nn::ParamLayout;
use crate::ops::{GlobalNorm, MatMul, MuonMomentum, MuonUpdate, SumSquares};

/// Coefficients of the iteration x ↦ a·x + b·x³ + c·x⁵ on singular values.
const COEFFICIENTS: [f32; 3] = [3.4445, -4.775, 2.0315];
const STEPS: usize = 5;
/// Keeps a matrix of zeros from being divided by its norm.
const EPSILON: f32 = 1e-7;

/// x·X + y·Y, elementwise.
fn sum(g: &mut Graph, [x, y]: [f32; 2], inputs: [Value; 2]) -> Result<Value> {
    let term = |factor, i| Expr::binary(Binary::Mul, Expr::Const(factor), Expr::Input(i));
    g.apply1(Map { expr: Expr::binary(Binary::Add, term(x, 0), term(y, 1)) }, &inputs)
}

/// `[R,C]` with its singular values brought near 1.
fn orthogonalised(g: &mut Graph, x: Value) -> Result<Value> {
    let &[rows, columns] = g.dims(x) else { unreachable!("a matrix") };
    let squares = g.reshape(x, [rows * columns])?;
    let squares = g.apply1(SumSquares, &[squares])?;
    let norm = g.apply1(GlobalNorm, &[squares])?;
    let square = Expr::binary(Binary::Mul, Expr::Input(1), Expr::Input(1));
    let square = Expr::binary(Binary::Add, square, Expr::Const(EPSILON * EPSILON));
    let unit = Expr::binary(Binary::Mul, Expr::Input(0), Expr::unary(Unary::InverseSqrt, square));
    let mut x = g.apply1(Map { expr: unit }, &[x, norm])?;
    let [a, b, c] = COEFFICIENTS;
    let wide = rows <= columns;
    for _ in 0..STEPS {
        // X·Xᵀ where that is the smaller of the two, else Xᵀ·X.
        let gram = g.apply1(MatMul::new(!wide, wide), &[x, x])?;
        let square = g.apply1(MatMul::new(false, false), &[gram, gram])?;
        let factor = sum(g, [b, c], [gram, square])?;
        let pair = if wide { [factor, x] } else { [x, factor] };
        let product = g.apply1(MatMul::new(false, false), &pair)?;
        x = sum(g, [a, 1.0], [x, product])?;
    }
    Ok(x)
}

impl Optimizer {
    /// One step for every matrix of page `i`, whose parameters are the state `page`. The momentum is the state `muon_m.<i>`.
    pub(super) fn orthogonal(
        &self,
        g: &mut Graph,
        layout: &ParamLayout,
        i: usize,
        page: Value,
        gradients: &[Value],
        told: Value,
    ) -> Result<()> {
        let place = &layout.pages()[i];
        let parts = self.parts(place);
        let momentum = g.state(&format!("muon_m.{i}"), g.ty(page).clone());
        for (n, &start) in place.params.clone().zip(&place.starts) {
            let (spec, part) =
                (&layout.specs()[n], parts.iter().find(|p| start < p.end).expect("parts cover the page"));
            g.scope(&spec.name, |g| {
                let op = MuonMomentum { start, momentum: self.momentum as f32, nesterov: self.nesterov };
                let velocity = g.apply1(op, &[momentum, gradients[n], told])?;
                let direction = orthogonalised(g, velocity)?;
                let [rows, columns] = [0, 1].map(|d| spec.shape.dims()[d] as f64);
                // The root mean square of an update is then that of AdamW's, 0.2 or so, and one rate serves both.
                let adjusted = f64::from(part.rate) * 0.2 * rows.max(columns).sqrt();
                let op = MuonUpdate { start, rate: part.rate, decay: part.decay, adjusted: adjusted as f32 };
                g.apply(op, &[page, direction, told])
            })?;
        }
        Ok(())
    }
}
