//! Puts rows of a table in their places, by token. V vocabulary, D width, n rows.

use super::windows::{Window, item, ranges, rows_per_binding};
use crate::base::{Array, DType, Limits, TensorType};
use crate::error::Result;
use crate::graph::{Cost, Dispatch, Io, Kernel, Op, Operand, spread};

/// Row i of x, f32 `[n,D]`, becomes the row of token i in a table `[V,D]`, a state or a view of one, in place; what is put for one
/// token more than once must be the same. Inputs: the table, x and tokens u32 `[n]`. A token outside of the table puts nothing. No
/// outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PutRows {
    /// The token of the table's first row.
    pub first: usize,
}

const WORKGROUP: usize = 64;

impl Op for PutRows {
    fn name(&self) -> &'static str {
        "put_rows"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [table, x, tokens] = inputs else { return Err("takes a table, rows and tokens".into()) };
        let (&[_, d], &[n, width]) = (table.shape.dims(), x.shape.dims()) else {
            return Err(format!("the table must be [V,D] and rows [n,D], not {table} and {x}"));
        };
        if d != width || table.dtype != DType::F32 || x.dtype != DType::F32 || **tokens != TensorType::u32([n]) {
            return Err(format!("{table} takes f32 rows of {d} for u32 tokens, not {x} for {tokens}"));
        }
        Ok(vec![])
    }

    fn writes(&self) -> Vec<usize> {
        vec![0]
    }

    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        let (vocab, d, rows) = (io.inputs[0].shape.rows(), io.inputs[0].shape.last(), io.inputs[1].shape.rows());
        let item = item(d);
        let mut kernel = Kernel::new("put_rows", "items")
            .constant("WORKGROUP", WORKGROUP)
            .constant("VECTOR", usize::from(item == 4));
        for v in ranges(vocab, rows_per_binding(vocab, d, limits)) {
            let table = Window::new(v.start * d..v.end * d, limits);
            for r in ranges(rows, rows_per_binding(rows, d, limits)) {
                let x = Window::new(r.start * d..r.end * d, limits);
                let dispatch = Dispatch::new(spread((r.len() * d / item).div_ceil(WORKGROUP), limits))
                    .bind("tokens", Operand::Input(2), 0, io.inputs[2].bytes())
                    .param("columns", d / item)
                    .param("first_row", r.start)
                    .param("count", r.len() * d / item)
                    .param("first_token", self.first + v.start)
                    .param("end_token", self.first + v.end)
                    .param("skip_x", x.skip / item)
                    .param("skip_table", table.skip / item);
                let dispatch = x.bind(dispatch, "x", Operand::Input(1));
                kernel = kernel.dispatch(table.bind(dispatch, "table", Operand::Input(0)));
            }
        }
        vec![kernel]
    }

    fn cost(&self, io: &Io) -> Cost {
        Cost { flops: 0, bytes: 2 * io.inputs[1].bytes() + io.inputs[2].bytes() }
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let [table, x, tokens] = inputs else { unreachable!("checked when the node was made") };
        let (d, mut put) = (x.ty.shape.last(), table.clone());
        for (x, &token) in x.data.chunks(d).zip(&tokens.data) {
            let row = (token as usize).checked_sub(self.first);
            if let Some(row) = row.and_then(|row| put.data.chunks_mut(d).nth(row)) {
                row.copy_from_slice(x);
            }
        }
        vec![put]
    }
}
