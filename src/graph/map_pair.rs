//! Two elementwise operators in one: what they both read is read once.

use super::map::kernel;
use super::{Cost, Expr, Io, Kernel, Map, Op};
use crate::base::{Array, Limits, TensorType};
use crate::error::Result;

/// Two expressions of the same inputs, applied to every element as [`Map`] applies one: an output for each, of one type.
#[derive(Debug, Clone, PartialEq)]
pub struct MapPair {
    /// The expressions.
    pub exprs: [Expr; 2],
}

impl Op for MapPair {
    fn name(&self) -> &'static str {
        "map_pair"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let ty = Map { expr: self.exprs[0].clone() }.infer(inputs)?.remove(0);
        Ok(vec![ty.clone(), ty])
    }

    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        vec![kernel(&self.exprs, io, limits)]
    }

    fn half_outputs(&self, _io: &Io, _limits: &Limits) -> Vec<usize> {
        vec![0, 1]
    }

    fn cost(&self, io: &Io) -> Cost {
        Cost { flops: io.elements() * self.exprs.iter().map(Expr::flops).sum::<u64>(), bytes: io.bytes() }
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let one = |expr: &Expr| Map { expr: expr.clone() }.reference(inputs).remove(0);
        self.exprs.iter().map(one).collect()
    }
}
