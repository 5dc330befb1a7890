//! A plain copy, which the compiler inserts where a view cannot be placed.

use crate::base::{Array, Limits, TensorType};
use crate::error::Result;
use crate::graph::{Cost, Expr, Graph, Io, Kernel, Map, Op, OpNode, Value};

/// y = x, in memory of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copy;

impl Copy {
    fn map() -> Map {
        Map { expr: Expr::Input(0) }
    }
}

impl Op for Copy {
    fn name(&self) -> &'static str {
        "copy"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        Copy::map().infer(inputs)
    }

    fn gradient(&self, _g: &mut Graph, _node: &OpNode, dy: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        Ok(dy.to_vec())
    }

    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        Copy::map().kernels(io, limits)
    }

    fn cost(&self, io: &Io) -> Cost {
        Cost { flops: 0, bytes: io.bytes() }
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        vec![inputs[0].clone()]
    }
}
