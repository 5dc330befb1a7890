//! The place in a graph at which a sum over a batch's rows is one over all ranks that share the batch.

use super::{AllReduce, Along, Spread};
use crate::base::{Array, DType, TensorType};
use crate::error::Result;
use crate::graph::{Cost, Graph, Io, Map, Op, OpNode, Value, View};

/// A value that a batch's rows add up to, f32: the value itself, which is all of it on one device. Where ranks have rows each,
/// [`BatchMean::over`] stands in its place, so that what is no sum of terms of rows (a product of two such sums, as in the loss
/// of experts' balance) is that of the whole batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchMean;

impl BatchMean {
    /// The mean over ranks of what each has: one value, on all of them. Each has a loss of its own, whose gradients towards
    /// this are summed.
    ///
    /// # Errors
    /// If the value is not f32.
    pub fn over(g: &mut Graph, along: Along, value: Value) -> Result<Value> {
        let sum = g.apply1(AllReduce(along), &[value])?;
        let sum = g.apply1(Spread(along), &[sum])?;
        g.apply1(Map::scale(1.0 / along.ranks as f32), &[sum])
    }
}

impl Op for BatchMean {
    fn name(&self) -> &'static str {
        "batch_mean"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        match inputs {
            [x] if x.dtype == DType::F32 => Ok(vec![(*x).clone()]),
            _ => Err("takes one value of f32".into()),
        }
    }

    fn gradient(&self, _g: &mut Graph, _node: &OpNode, dy: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        Ok(vec![dy[0]])
    }

    fn cost(&self, _io: &Io) -> Cost {
        Cost::default()
    }

    fn view(&self, _io: &Io) -> Option<View> {
        Some(View::Slice(0))
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        vec![inputs[0].clone()]
    }
}
