//! Sums over the leading dims: the reduction that broadcasting asks of every gradient.

use super::{Cost, Dispatch, Expr, Graph, Io, Kernel, Map, Op, OpNode, Operand, Value};
use crate::base::{Array, DType, Limits, Shape, TensorType};
use crate::error::Result;

/// Sums `[R, N]` over rows to `[N]`, in a fixed order: each partial result covers `rows_per_part` rows, one after the
/// other, so that the same input gives the same bits on any adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct SumRows {
    /// Shape of the result; its elements are N.
    pub shape: Shape,
    /// Rows of one part. With fewer parts than rows, the result is `[parts, N]`.
    pub rows_per_part: usize,
}

/// Rows up to which a sum is made in one part: so many are walked while a dispatch more would start.
const ROWS: usize = 256;

impl SumRows {
    fn rows(&self, x: &TensorType) -> usize {
        x.shape.elements() / self.shape.last().max(1)
    }

    fn columns(&self) -> usize {
        self.shape.last()
    }
}

impl Op for SumRows {
    fn name(&self) -> &'static str {
        "sum_rows"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [x] = inputs else { return Err("takes one input".into()) };
        let parts = self.rows(x).div_ceil(self.rows_per_part);
        if x.dtype != DType::F32
            || x.shape.elements() % self.columns() != 0
            || parts * self.columns() != self.shape.elements()
        {
            return Err(format!("cannot be summed to {} in parts of {} rows", self.shape, self.rows_per_part));
        }
        Ok(vec![TensorType::f32(self.shape.clone())])
    }

    fn gradient(&self, g: &mut Graph, node: &OpNode, dy: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        let x = g.ty(node.inputs[0]).clone();
        if self.rows_per_part < self.rows(&x) {
            return Err(crate::error::Error::Graph("sum_rows in parts has no gradient: use sum_to".into()));
        }
        SumTo { shape: self.shape.clone() }.gradient(g, node, dy)
    }

    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        let (rows, n) = (self.rows(&io.inputs[0]), self.columns());
        let parts = rows.div_ceil(self.rows_per_part);
        // A CPU's lanes have no use for shares, nor a short part; and it gains nothing by loads that are under way together.
        let shares = if limits.is_cpu { 1 } else { (self.rows_per_part / 4).next_power_of_two().clamp(1, 8) };
        let (columns, loads) = (if shares > 1 { 32 } else { 64 }, if limits.is_cpu { 1 } else { 4 });
        let kernel = Kernel::new("sum_rows", format!("shares_{shares}"));
        let kernel = kernel.constant("COLUMNS", columns).constant("SHARES", shares).constant("LOADS", loads);
        let row = 4 * n as u64;
        // Parts that a dispatch takes: those whose rows a binding holds, wherever the first of them begins. A part is not cut.
        let room = limits.max_binding_bytes.saturating_sub(limits.binding_alignment);
        let fit = (room / (row * self.rows_per_part as u64).max(1)).max(1) as usize;
        let step = if row * rows as u64 <= limits.max_binding_bytes { parts } else { fit };
        let step = step.min(limits.max_workgroups as usize).max(1);
        let dispatch = |part: usize| {
            let count = step.min(parts - part);
            let first = part * self.rows_per_part;
            let own = (count * self.rows_per_part).min(rows - first);
            let skip = |at: usize| row * at as u64 % limits.binding_alignment;
            let bind = |d: Dispatch, name: &'static str, operand, at: usize, count: usize| {
                d.bind(name, operand, row * at as u64 - skip(at), row * count as u64 + skip(at))
            };
            let d = Dispatch::new([n.div_ceil(columns) as u32, count as u32, 1]);
            let d = bind(d, "x", Operand::Input(0), first, own);
            bind(d, "y", Operand::Output(0), part, count)
                .param("rows", own)
                .param("columns", n)
                .param("rows_per_part", self.rows_per_part)
                .param("x_skip", (skip(first) / 4) as usize)
                .param("y_skip", (skip(part) / 4) as usize)
        };
        vec![(0..parts).step_by(step).map(dispatch).fold(kernel, Kernel::dispatch)]
    }

    fn cost(&self, io: &Io) -> Cost {
        Cost { flops: io.inputs[0].shape.elements() as u64, bytes: io.bytes() }
    }

    fn reduction(&self, _io: &Io) -> usize {
        self.rows_per_part
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let n = self.columns();
        let mut y = Array::zeros(self.shape.clone());
        for (i, x) in inputs[0].data.iter().enumerate() {
            y.data[i / n / self.rows_per_part * n + i % n] += x;
        }
        vec![y]
    }
}

/// Sums over all leading dims to `[N]`, N the elements of `shape`: stands for one [`SumRows`], or two where there are
/// many rows.
#[derive(Debug, Clone, PartialEq)]
pub struct SumTo {
    /// Shape of the result.
    pub shape: Shape,
}

impl SumTo {
    fn rows(&self, x: &TensorType) -> usize {
        x.shape.elements() / self.shape.elements().max(1)
    }
}

impl Op for SumTo {
    fn name(&self) -> &'static str {
        "sum_to"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [x] = inputs else { return Err("takes one input".into()) };
        let n = self.shape.elements();
        if x.dtype != DType::F32 || n == 0 || !x.shape.elements().is_multiple_of(n) {
            return Err(format!("cannot be summed to {}", self.shape));
        }
        Ok(vec![TensorType::f32(self.shape.clone())])
    }

    fn gradient(&self, g: &mut Graph, node: &OpNode, dy: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        let Some(dy) = dy[0] else { return Ok(vec![None]) };
        // Repeats dy over the rows: a map takes rows that end its result's shape.
        let shape = g.ty(node.inputs[0]).shape.clone();
        let n = self.shape.elements();
        let rows = g.reshape(node.inputs[0], [shape.elements() / n, n])?;
        let dy = g.reshape(dy, [n])?;
        let dx = g.apply1(Map { expr: Expr::Input(1) }, &[rows, dy])?;
        Ok(vec![Some(g.reshape(dx, shape)?)])
    }

    fn cost(&self, io: &Io) -> Cost {
        Cost { flops: io.inputs[0].shape.elements() as u64, bytes: io.bytes() }
    }

    fn reduction(&self, io: &Io) -> usize {
        self.rows(&io.inputs[0])
    }

    fn expand(&self, g: &mut Graph, node: &OpNode) -> Result<Option<Vec<Value>>> {
        let (mut x, n) = (node.inputs[0], self.shape.elements());
        let rows = self.rows(g.ty(x));
        if rows == 1 {
            return Ok(Some(vec![g.reshape(x, self.shape.clone())?]));
        }
        if rows > ROWS {
            // The root balances the two stages.
            let per_part = (rows as f64).sqrt().ceil() as usize;
            let parts = rows.div_ceil(per_part);
            x = g.apply1(SumRows { shape: [parts, n].into(), rows_per_part: per_part }, &[x])?;
        }
        let rows = self.rows(g.ty(x));
        let summed = g.apply1(SumRows { shape: [n].into(), rows_per_part: rows.max(1) }, &[x])?;
        Ok(Some(vec![g.reshape(summed, self.shape.clone())?]))
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let n = self.shape.elements();
        let mut y = Array::zeros(self.shape.clone());
        for (i, x) in inputs[0].data.iter().enumerate() {
            y.data[i % n] += x;
        }
        vec![y]
    }
}

impl Graph {
    /// Sums `x` over its leading dims to the type `to`: in two stages where there are many rows.
    ///
    /// # Errors
    /// If the sizes do not divide.
    pub fn sum_to(&mut self, x: Value, to: &TensorType) -> Result<Value> {
        self.apply1(SumTo { shape: to.shape.clone() }, &[x])
    }

    /// The same elements under another shape; moves no data.
    ///
    /// # Errors
    /// If the number of elements differs.
    pub fn reshape(&mut self, x: Value, shape: impl Into<Shape>) -> Result<Value> {
        let shape = shape.into();
        if self.ty(x).shape == shape { Ok(x) } else { self.apply1(super::Slice { start: 0, shape }, &[x]) }
    }
}
