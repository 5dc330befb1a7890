//! The backward pass of the token embedding, without float atomics. V vocabulary, D width, N tokens.

use super::windows::{Window, item, ranges, rows_per_binding};
use crate::base::{Array, DType, Limits, TensorType};
use crate::error::Result;
use crate::graph::{Cost, Dispatch, Io, Kernel, Op, Operand, spread};

/// Gradient of [`super::Embedding`] towards its table: dy f32 `[..,D]`, tokens u32 `[..]` to `[V,D]`. Row v is the sum
/// of dy over the positions that hold token `first` + v, in their order: the same bits every time. Tokens outside the vocabulary
/// add nothing. A third input, f32 `[V,D]`, is added to these sums: the other gradient of a table that is the output's, too.
#[derive(Debug, Clone, PartialEq)]
pub struct EmbeddingGrad {
    /// Rows of the table, or as many of them as are asked for.
    pub vocab: usize,
    /// The first of these.
    pub first: usize,
}

const WORKGROUP: usize = 64;

impl EmbeddingGrad {
    /// Whether a sum onto a third input has the bits of that input plus the sum: where dy is bound as a whole.
    pub(crate) fn is_exact_onto(dy: &TensorType, limits: &Limits) -> bool {
        ranges(dy.shape.rows(), rows_per_binding(dy.shape.rows(), dy.shape.last(), limits)).count() == 1
    }
}

impl Op for EmbeddingGrad {
    fn name(&self) -> &'static str {
        "embedding_grad"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let (&[dy, tokens], base) =
            inputs.split_first_chunk().ok_or("takes dy, tokens, and what the sums are added to, if anything")?;
        let d = dy.shape.last();
        let want = [tokens.shape.dims(), &[d]].concat();
        if dy.dtype != DType::F32 || tokens.dtype != DType::U32 || dy.shape.dims() != want {
            return Err(format!("dy must be f32 [..,D] over tokens u32 [..], not {dy} over {tokens}"));
        }
        let y = TensorType::f32([self.vocab, d]);
        match base {
            [] => Ok(vec![y]),
            [base] if **base == y => Ok(vec![y]),
            _ => Err(format!("takes {y} as its third and last input")),
        }
    }

    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        let (rows, d) = (io.inputs[0].shape.rows(), io.inputs[0].shape.last());
        let item = item(d);
        let mut kernel = Kernel::new("embedding_grad", "rows")
            .constant("WORKGROUP", WORKGROUP)
            .constant("VECTOR", usize::from(item == 4))
            .constant("BASE", io.inputs.len() - 2);
        for v in ranges(self.vocab, rows_per_binding(self.vocab, d, limits)) {
            let out = Window::new(v.start * d..v.end * d, limits);
            let parts: Vec<_> = ranges(rows, rows_per_binding(rows, d, limits)).collect();
            // First zeros everywhere, then one dispatch for each part of dy.
            for (fill, r) in parts.first().map(|r| (true, r)).into_iter().chain(parts.iter().map(|r| (false, r))) {
                let input = Window::new(r.start * d..r.end * d, limits);
                let groups = if fill { (v.len() * d / item).div_ceil(WORKGROUP) } else { r.len() };
                let mut dispatch = Dispatch::new(spread(groups, limits))
                    .bind("tokens", Operand::Input(1), 0, io.inputs[1].bytes())
                    .param("fill", usize::from(fill))
                    .param("columns", d / item)
                    .param("first_row", r.start)
                    .param("end_row", r.end)
                    .param("first_token", self.first + v.start)
                    .param("end_token", self.first + v.end)
                    .param("skip_dy", input.skip / item)
                    .param("skip_y", out.skip / item);
                dispatch = input.bind(dispatch, "dy", Operand::Input(0));
                if io.inputs.len() == 3 {
                    dispatch = out.bind(dispatch, "base", Operand::Input(2));
                }
                kernel = kernel.dispatch(out.bind(dispatch, "y", Operand::Output(0)));
            }
        }
        vec![kernel]
    }

    fn cost(&self, io: &Io) -> Cost {
        let added = io.inputs.iter().filter(|ty| ty.dtype == DType::F32).map(|ty| ty.shape.elements() as u64);
        Cost { flops: added.sum(), bytes: io.bytes() }
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let (dy, tokens) = (&inputs[0], &inputs[1]);
        let d = dy.ty.shape.last();
        let mut y = inputs.get(2).cloned().unwrap_or_else(|| Array::zeros([self.vocab, d]));
        for (dy, &token) in dy.data.chunks(d).zip(&tokens.data) {
            let row = (token as usize).checked_sub(self.first);
            if let Some(row) = row.and_then(|row| y.data.chunks_mut(d).nth(row)) {
                row.iter_mut().zip(dy).for_each(|(y, dy)| *y += dy);
            }
        }
        vec![y]
    }

    fn reduction(&self, io: &Io) -> usize {
        io.inputs[1].shape.elements() + io.inputs.len() - 2
    }
}
