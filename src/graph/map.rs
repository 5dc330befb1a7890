//! The elementwise operator. It stands with the graph because differentiation (sums of gradients) and fusion
//! (composition) build it themselves; everything else about operators is in `ops`.

use super::expr::{Binary, Expr, Unary};
use super::{Cost, Dispatch, Graph, Hook, Io, Kernel, Op, OpNode, Operand, Value};
use crate::base::{Array, Limits, Shape, TensorType};
use crate::error::Result;

/// An expression applied to every element. An input whose shape is a suffix of the result's shape (a bias, a scalar)
/// is repeated.
#[derive(Debug, Clone, PartialEq)]
pub struct Map {
    /// The expression.
    pub expr: Expr,
}

impl Map {
    /// x + y
    pub fn add() -> Self {
        Map { expr: Expr::binary(Binary::Add, Expr::Input(0), Expr::Input(1)) }
    }

    /// x · y
    pub fn mul() -> Self {
        Map { expr: Expr::binary(Binary::Mul, Expr::Input(0), Expr::Input(1)) }
    }

    /// factor · x
    pub fn scale(factor: f32) -> Self {
        Map { expr: Expr::binary(Binary::Mul, Expr::Const(factor), Expr::Input(0)) }
    }

    /// SwiGLU (Shazeer, 2020): silu(gate) · up, with inputs gate and up.
    pub fn swiglu() -> Self {
        let gate = Expr::Input(0);
        let silu = Expr::binary(Binary::Mul, gate.clone(), Expr::unary(Unary::Sigmoid, gate));
        Map { expr: Expr::binary(Binary::Mul, silu, Expr::Input(1)) }
    }
}

/// Item `i` of an expression's result, which is item `at` of the full-sized bindings, with inputs read from `e0`, `e1`,
/// … . An item is `lanes` neighbouring elements.
fn body(expr: &Expr, inputs: &[TensorType], out: &Shape, lanes: usize) -> String {
    expr.wgsl(&|k| match inputs[k].shape.elements() {
        1 => format!("e{k}[0]"),
        len if len == out.elements() => format!("e{k}[at]"),
        len => format!("e{k}[i % {}u]", len / lanes),
    })
}

/// Elements of one workgroup of `map.wgsl`.
const WORKGROUP: usize = 64;

/// Workgroups that cover `count` items of work, spread over x and y where one dimension does not suffice.
pub fn spread(groups: usize, limits: &Limits) -> [u32; 3] {
    let max = limits.max_workgroups as usize;
    let y = groups.div_ceil(max).max(1);
    [groups.div_ceil(y) as u32, y as u32, 1]
}

/// The kernel that computes one expression, or two of the same inputs.
pub(super) fn kernel(exprs: &[Expr], io: &Io, limits: &Limits) -> Kernel {
    let out = &io.outputs[0].shape;
    let n = out.elements();
    let sizes = || io.inputs.iter().map(|t| t.shape.elements());
    let vector = n.is_multiple_of(4) && sizes().all(|len| len == 1 || len.is_multiple_of(4));
    let (lanes, ty, variant) = if vector { (4, "vec4<f32>", "vector") } else { (1, "f32", "scalar") };
    let mut kernel = Kernel::new("map", variant)
        .constant("WORKGROUP", WORKGROUP)
        .constant("VECTOR", usize::from(vector))
        .constant("PAIR", exprs.len() - 1);
    let read = |(k, len)| (format!("e{k}"), if len == 1 { "f32" } else { ty });
    let mut reads: Vec<_> = sizes().enumerate().map(read).collect();
    for (name, expr) in ["map", "second"].into_iter().zip(exprs) {
        let body = body(expr, &io.inputs, out, lanes);
        let code = format!("fn {name}(at: u32, i: u32) -> Item {{ return Item({body}); }}");
        // The first says what both read.
        kernel.hooks.push(Hook { name, code, reads: std::mem::take(&mut reads) });
    }
    // Outputs may have two bytes an element.
    let step = (limits.max_binding_bytes / 512 * 128) as usize;
    let out = io.outputs[0].dtype;
    kernel = kernel.writing(&io.outputs[0]);
    for start in (0..n).step_by(step) {
        let count = step.min(n - start);
        let (at, bytes) = (start as u64 * 4, count as u64 * 4);
        let mut d = Dispatch::new(spread((count / lanes).div_ceil(WORKGROUP), limits))
            .param("start", start / lanes)
            .param("count", count / lanes);
        for (i, name) in ["y", "z"].into_iter().enumerate().take(exprs.len()) {
            d = d.bind(name, Operand::Output(i), out.size(start), out.size(count));
        }
        for (k, t) in io.inputs.iter().enumerate() {
            let whole = t.shape.elements() != n;
            let (at, bytes) = if whole { (0, t.bytes()) } else { (at, bytes) };
            d = d.bind(format!("e{k}"), Operand::Input(k), at, bytes);
        }
        kernel = kernel.dispatch(d);
    }
    kernel
}

impl Op for Map {
    fn name(&self) -> &'static str {
        "map"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let out = inputs.iter().max_by_key(|t| (t.shape.elements(), t.shape.rank())).ok_or("needs an input")?;
        for t in inputs {
            let suffix = out.shape.dims().ends_with(t.shape.dims()) || t.shape.elements() == 1;
            if t.dtype != crate::base::DType::F32 || !suffix {
                return Err(format!("{t} is not f32 with a shape that ends {}", out.shape));
            }
        }
        Ok(vec![(*out).clone()])
    }

    fn gradient(&self, g: &mut Graph, node: &OpNode, dy: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        let Some(dy) = dy[0] else { return Ok(vec![None; node.inputs.len()]) };
        let count = node.inputs.len();
        let full = g.ty(node.outputs[0]).clone();
        let mut inputs = node.inputs.clone();
        inputs.push(dy);
        let mut gradients = Vec::new();
        for (i, &input) in node.inputs.iter().enumerate() {
            let expr = Expr::binary(Binary::Mul, Expr::Input(count), self.expr.derivative(i));
            let dx = g.compact_map(expr, &inputs)?;
            let ty = g.ty(input).clone();
            gradients.push(Some(if ty == full { dx } else { g.sum_to(dx, &ty)? }));
        }
        Ok(gradients)
    }

    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        vec![kernel(std::slice::from_ref(&self.expr), io, limits)]
    }

    fn cost(&self, io: &Io) -> Cost {
        Cost { flops: io.elements() * self.expr.flops(), bytes: io.bytes() }
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let types: Vec<&TensorType> = inputs.iter().map(|a| &a.ty).collect();
        let ty = self.infer(&types).expect("checked when the node was made").remove(0);
        let at = |k: usize, i: usize| inputs[k].data[i % inputs[k].data.len()];
        let data = (0..ty.shape.elements()).map(|i| self.expr.eval(&|k| at(k, i))).collect();
        vec![Array::new(ty, data)]
    }

    fn half_outputs(&self, _io: &Io, _limits: &Limits) -> Vec<usize> {
        vec![0]
    }

    fn expression(&self) -> Option<&Expr> {
        Some(&self.expr)
    }
}

impl Graph {
    /// Applies an expression, leaving out the inputs that it does not use, and the whole map where it is an input.
    pub fn compact_map(&mut self, expr: Expr, inputs: &[Value]) -> Result<Value> {
        let (expr, inputs) = compact(&expr, inputs);
        if expr == Expr::Input(0) {
            return Ok(inputs[0]);
        }
        self.apply1(Map { expr }, &inputs)
    }

    /// x + y, elementwise.
    pub fn add(&mut self, x: Value, y: Value) -> Result<Value> {
        self.apply1(Map::add(), &[x, y])
    }

    /// x · y, elementwise.
    pub fn mul(&mut self, x: Value, y: Value) -> Result<Value> {
        self.apply1(Map::mul(), &[x, y])
    }
}

/// Drops unused inputs and joins equal ones.
pub(crate) fn compact(expr: &Expr, inputs: &[Value]) -> (Expr, Vec<Value>) {
    let mut kept: Vec<Value> = Vec::new();
    let used = std::cell::RefCell::new(&mut kept);
    let expr = expr.substitute(&|i| {
        let mut kept = used.borrow_mut();
        let at = kept.iter().position(|&v| v == inputs[i]).unwrap_or_else(|| {
            kept.push(inputs[i]);
            kept.len() - 1
        });
        Expr::Input(at)
    });
    (expr, kept)
}
