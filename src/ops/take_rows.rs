//! Rows by number, and back: how slots of a mixture of experts come to their places and home again. n rows of width W, of
//! which m are taken.

use super::{Embedding, SlotSum};
use crate::base::{Array, TensorType};
use crate::error::Result;
use crate::graph::{Cost, Graph, Io, Op, OpNode, Value};

/// x f32 `[n,W]` and take u32 `[..]` of m elements to the rows `x[take]`, `[..,W]`; zeros where there is no such row. Input
/// give, u32 `[n]` or `[n,k]`, says the same the other way round, for the gradient: which of those m rows row i of x became,
/// up to k of them; m where it became none. So a gradient is gathered as the rows were, and nothing is scattered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TakeRows;

impl Op for TakeRows {
    fn name(&self) -> &'static str {
        "take_rows"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let &[x, take, give] = inputs else { return Err("takes x, take and give".into()) };
        let given = match *give.shape.dims() {
            [n] | [n, _] => {
                x.shape.rank() == 2 && x.shape.dims()[0] == n && *give == TensorType::u32(give.shape.clone())
            }
            _ => false,
        };
        if !given || *x != TensorType::f32(x.shape.clone()) {
            return Err("x must be f32 [n,W], and give u32 [n] or [n,k]".into());
        }
        Embedding.infer(&[x, take])
    }

    fn gradient(&self, g: &mut Graph, node: &OpNode, dy: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        let Some(dy) = dy[0] else { return Ok(vec![None; 3]) };
        let shape = g.ty(dy).shape.clone();
        let dy = g.reshape(dy, [shape.rows(), shape.last()])?;
        let mut dx = g.apply1(Embedding, &[dy, node.inputs[2]])?;
        if g.ty(dx).shape.rank() == 3 {
            dx = g.apply1(SlotSum, &[dx])?;
        }
        Ok(vec![Some(dx), None, None])
    }

    fn expand(&self, g: &mut Graph, node: &OpNode) -> Result<Option<Vec<Value>>> {
        Ok(Some(g.apply(Embedding, &node.inputs[..2])?))
    }

    fn cost(&self, io: &Io) -> Cost {
        Embedding.cost(io)
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        Embedding.reference(&inputs[..2])
    }
}
