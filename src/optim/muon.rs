//! Muon (Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024): a matrix moves by its momentum
//! with all singular values brought near 1, which five steps of a Newton-Schulz iteration do with products alone.
//!
//! Legend: R rows and C columns of the matrix.

use super::Optimizer;
use crate::error::Result;
use crate::graph::{Binary, Expr, Graph, Map, Unary, Value};
use crate::nn::ParamLayout;
use crate::ops::{AllReduce, Along, GlobalNorm, MatMul, MuonMomentum, MuonUpdate, SumParts, SumSquares};

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

/// The sum over the ranks that have parts of a matrix; nothing where one has all of it.
fn over(g: &mut Graph, along: Option<Along>, term: Value) -> Result<Value> {
    along.map_or(Ok(term), |along| g.apply1(AllReduce(along), &[term]))
}

/// `[R,C]` with its singular values brought near 1. Of a matrix that is in parts along an axis a rank has its rows, or its
/// columns: what each multiplies its part by, X·Xᵀ or Xᵀ·X of all parts, is a sum of what ranks make of theirs.
fn orthogonalised(g: &mut Graph, x: Value, parts: Option<(usize, Along)>) -> Result<Value> {
    let &[rows, columns] = g.dims(x) else { unreachable!("a matrix") };
    let along = parts.map(|(_, along)| along);
    let squares = g.reshape(x, [rows * columns])?;
    let mut squares = g.apply1(SumSquares, &[squares])?;
    if along.is_some() {
        squares = g.apply1(SumParts { root: false }, &[squares])?;
        squares = over(g, along, squares)?;
    }
    let norm = g.apply1(GlobalNorm, &[squares])?;
    let square = Expr::binary(Binary::Mul, Expr::Input(1), Expr::Input(1));
    let square = Expr::binary(Binary::Add, square, Expr::Const(EPSILON * EPSILON));
    let unit = Expr::binary(Binary::Mul, Expr::Input(0), Expr::unary(Unary::InverseSqrt, square));
    let mut x = g.apply1(Map { expr: unit }, &[x, norm])?;
    let [a, b, c] = COEFFICIENTS;
    // X·Xᵀ where that is the smaller of the two, or columns are in parts, else Xᵀ·X.
    let wide = parts.map_or(rows <= columns, |(dim, _)| dim == 1);
    for _ in 0..STEPS {
        let gram = g.apply1(MatMul::new(!wide, wide), &[x, x])?;
        let gram = over(g, along, gram)?;
        let square = g.apply1(MatMul::new(false, false), &[gram, gram])?;
        let factor = sum(g, [b, c], [gram, square])?;
        let pair = if wide { [factor, x] } else { [x, factor] };
        let product = g.apply1(MatMul::new(false, false), &pair)?;
        x = sum(g, [a, 1.0], [x, product])?;
    }
    Ok(x)
}

/// Which dim of a matrix is in parts, and along what.
fn in_parts(layout: &ParamLayout, name: &str) -> Option<(usize, Along)> {
    let parts = layout.parts()?;
    let (dim, axis) = *parts.held(name).splits.first()?;
    Some((dim, Along { axis, ranks: parts.mesh.size(axis) }))
}

impl Optimizer {
    /// One step for every matrix of page `i`, whose parameters are the state `page`; of each, sums of squares of what is added.
    /// The momentum is the state `muon_m.<i>`.
    pub(super) fn orthogonal(
        &self,
        g: &mut Graph,
        layout: &ParamLayout,
        i: usize,
        page: Value,
        gradients: &[Value],
        told: Value,
    ) -> Result<Vec<Value>> {
        let place = &layout.pages()[i];
        let parts = self.parts(place);
        let momentum = g.state(&format!("muon_m.{i}"), g.ty(page).clone());
        let (copied, copy) = self.copy(g, layout, i).unzip();
        let mut added = Vec::new();
        for (n, &start) in place.params.clone().zip(&place.starts) {
            let (spec, part) =
                (&layout.specs()[n], parts.iter().find(|p| start < p.end).expect("parts cover the page"));
            added.push(g.scope(&spec.name, |g| {
                let op = MuonMomentum { start, momentum: self.momentum as f32, nesterov: self.nesterov };
                let velocity = g.apply1(op, &[momentum, gradients[n], told])?;
                let direction = orthogonalised(g, velocity, in_parts(layout, &spec.name))?;
                let whole = layout.parts().and_then(|parts| parts.spec(&spec.name)).unwrap_or(spec);
                let [rows, columns] = [0, 1].map(|d| whole.shape.dims()[d] as f64);
                // The root mean square of an update is then that of AdamW's, 0.2 or so, and one rate serves both.
                let adjusted = f64::from(part.rate) * 0.2 * rows.max(columns).sqrt();
                let op = MuonUpdate { start, rate: part.rate, decay: part.decay, adjusted: adjusted as f32, copied };
                g.apply1(op, &[&[page, direction, told], copy.as_slice()].concat())
            })?);
        }
        Ok(added)
    }
}
