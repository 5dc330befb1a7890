//! The sum over all ranks. No kernel computes it: the executor brings the bytes to the host, where ranks meet.

use crate::base::{Array, DType, TensorType};
use crate::error::Result;
use crate::graph::{Collective, Cost, Io, Op};

/// Replaces a state, f32, by its sum over all ranks, the same to the bit on each. Input: the state. No outputs.
///
/// Its reference is that of a single rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AllReduce;

impl Op for AllReduce {
    fn name(&self) -> &'static str {
        "all_reduce"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        match inputs {
            [x] if x.dtype == DType::F32 => Ok(vec![]),
            _ => Err("takes one state of f32".into()),
        }
    }

    fn writes(&self) -> Vec<usize> {
        vec![0]
    }

    fn collective(&self) -> Option<Collective> {
        Some(Collective::AllReduce)
    }

    fn cost(&self, io: &Io) -> Cost {
        Cost { flops: 0, bytes: 2 * io.bytes() }
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        vec![inputs[0].clone()]
    }
}
