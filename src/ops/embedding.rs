//! Rows of a table, looked up by token. V vocabulary, D width.

use super::windows::{Window, ranges, rows_per_binding};
use super::{EmbeddingGrad, weight};
use crate::base::{Array, DType, Limits, TensorType};
use crate::error::Result;
use crate::graph::{Cost, Dispatch, Graph, Io, Kernel, Op, OpNode, Operand, Value, spread};
use std::ops::Range;

/// Token embedding: table `[V,D]` of any dtype of weights, tokens u32 `[..]` to f32 `[..,D]`. A token outside the vocabulary
/// gives zeros. No gradient flows into a table that is not f32.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedding;

/// The same of rows `first` .. `first` + V of a larger table: tokens of other rows give zeros.
#[derive(Debug, Clone, PartialEq)]
pub struct EmbeddingPart {
    /// The token of the first row.
    pub first: usize,
}

const WORKGROUP: usize = 64;

impl Op for Embedding {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [table, tokens] = inputs else { return Err("takes two inputs: table and tokens".into()) };
        let &[_, d] = table.shape.dims() else { return Err(format!("the table must be [V,D], not {table}")) };
        weight::check("the table", table)?;
        if tokens.dtype != DType::U32 {
            return Err(format!("tokens must be u32, not {tokens}"));
        }
        Ok(vec![TensorType::f32([tokens.shape.dims(), &[d]].concat())])
    }

    fn gradient(&self, g: &mut Graph, node: &OpNode, dy: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        gradient(g, node, dy, 0)
    }

    fn gradient_rows(
        &self,
        g: &mut Graph,
        node: &OpNode,
        dy: &[Option<Value>],
        _input: usize,
        rows: Range<usize>,
    ) -> Result<Option<Value>> {
        gradient_rows(g, node, dy, rows, 0)
    }

    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        kernels(io, limits, 0)
    }

    fn cost(&self, io: &Io) -> Cost {
        let rows = io.inputs[1].shape.elements() as u64;
        Cost { flops: 0, bytes: rows * io.inputs[0].row_bytes() + io.outputs[0].bytes() + io.inputs[1].bytes() }
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        reference(inputs, 0)
    }
}

impl Op for EmbeddingPart {
    fn name(&self) -> &'static str {
        "embedding_part"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        Embedding.infer(inputs)
    }

    fn gradient(&self, g: &mut Graph, node: &OpNode, dy: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        gradient(g, node, dy, self.first)
    }

    fn gradient_rows(
        &self,
        g: &mut Graph,
        node: &OpNode,
        dy: &[Option<Value>],
        _input: usize,
        rows: Range<usize>,
    ) -> Result<Option<Value>> {
        gradient_rows(g, node, dy, rows, self.first)
    }

    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        kernels(io, limits, self.first)
    }

    fn cost(&self, io: &Io) -> Cost {
        Embedding.cost(io)
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        reference(inputs, self.first)
    }
}

fn gradient(g: &mut Graph, node: &OpNode, dy: &[Option<Value>], first: usize) -> Result<Vec<Option<Value>>> {
    let Some(dy) = dy[0] else { return Ok(vec![None, None]) };
    if g.ty(node.inputs[0]).dtype.is_packed() {
        return Ok(vec![None, None]);
    }
    let vocab = g.dims(node.inputs[0])[0];
    Ok(vec![Some(g.apply1(EmbeddingGrad { vocab, first }, &[dy, node.inputs[1]])?), None])
}

fn gradient_rows(
    g: &mut Graph,
    node: &OpNode,
    dy: &[Option<Value>],
    rows: Range<usize>,
    first: usize,
) -> Result<Option<Value>> {
    let op = EmbeddingGrad { vocab: rows.len(), first: first + rows.start };
    dy[0].map(|dy| g.apply1(op, &[dy, node.inputs[1]])).transpose()
}

fn kernels(io: &Io, limits: &Limits, first: usize) -> Vec<Kernel> {
    let (vocab, d) = (io.inputs[0].shape.rows(), io.inputs[0].shape.last());
    let rows = io.inputs[1].shape.elements();
    let dtype = io.inputs[0].dtype;
    let row = weight::words(dtype, d);
    let kernel = Kernel::new("embedding", "elements").constant("WORKGROUP", WORKGROUP);
    let mut kernel = weight::header(kernel, dtype);
    // Each dispatch writes the rows whose token lies in its part of the table; the first also those that lie nowhere.
    for r in ranges(rows, rows_per_binding(rows, d, limits)) {
        let out = Window::new(r.start * d..r.end * d, limits);
        for v in ranges(vocab, rows_per_binding(vocab, row, limits)) {
            let table = Window::new(v.start * row..v.end * row, limits);
            let mut dispatch = Dispatch::new(spread((r.len() * d.div_ceil(4)).div_ceil(WORKGROUP), limits))
                .bind("tokens", Operand::Input(1), 0, io.inputs[1].bytes())
                .param("first_row", r.start)
                .param("count", r.len())
                .param("columns", d)
                .param("row_table", row)
                .param("vocab", vocab)
                .param("first_token", v.start)
                .param("end_token", v.end)
                .param("skip_table", table.skip)
                .param("skip_y", out.skip)
                .param("shift", first);
            dispatch = table.bind(dispatch, "table", Operand::Input(0));
            kernel = kernel.dispatch(out.bind(dispatch, "y", Operand::Output(0)));
        }
    }
    vec![kernel]
}

fn reference(inputs: &[Array], first: usize) -> Vec<Array> {
    let (table, tokens) = (&inputs[0], &inputs[1]);
    let d = table.dims()[1];
    let mut y = Array::zeros([tokens.dims(), &[d]].concat());
    for (y, &token) in y.data.chunks_mut(d).zip(&tokens.data) {
        let row = (token as usize).checked_sub(first).and_then(|row| table.data.chunks(d).nth(row));
        if let Some(row) = row {
            y.copy_from_slice(row);
        }
    }
    vec![y]
}
