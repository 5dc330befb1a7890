//! An operator whose results go to memory in f16.

use super::{Cost, Io, Kernel, Op};
use crate::base::{Array, DType, Limits, TensorType, Tolerance, to_half};
use crate::error::Result;
use std::sync::Arc;

/// The operator `base` with some of its outputs stored in f16, two bytes an element, rounded to the nearest, ties to even: those that it
/// names ([`Op::half_outputs`]). Inputs and all else are as it says.
#[derive(Debug, Clone)]
pub struct Halved {
    /// The operator.
    pub base: Arc<dyn Op>,
    /// Its outputs that are stored so.
    pub outputs: Vec<usize>,
}

impl Op for Halved {
    fn name(&self) -> &'static str {
        self.base.name()
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let mut types = self.base.infer(inputs)?;
        for &output in &self.outputs {
            let Some(ty) = types.get_mut(output) else { return Err(format!("has no output {output}")) };
            if ty.dtype != DType::F32 || !ty.shape.last().is_multiple_of(4) {
                return Err(format!("output {output} is {ty}: what is stored in f16 has rows of fours of f32"));
            }
            ty.dtype = DType::F16;
        }
        Ok(types)
    }

    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        if limits.has_f16 { self.base.kernels(io, limits) } else { Vec::new() }
    }

    fn scratch(&self, io: &Io, limits: &Limits) -> u64 {
        if limits.has_f16 { self.base.scratch(io, limits) } else { 0 }
    }

    fn cost(&self, io: &Io) -> Cost {
        self.base.cost(io)
    }

    fn half_inputs(&self, io: &Io, limits: &Limits) -> Vec<usize> {
        self.base.half_inputs(io, limits)
    }

    fn reduction(&self, io: &Io) -> usize {
        self.base.reduction(io)
    }

    fn integers(&self, input: usize, ty: &TensorType) -> Option<Vec<u32>> {
        self.base.integers(input, ty)
    }

    fn tolerance(&self, io: &Io) -> Tolerance {
        self.base.tolerance(io)
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let mut results = self.base.reference(inputs);
        for &output in &self.outputs {
            let Array { ty, data, .. } = &results[output];
            let ty = TensorType { shape: ty.shape.clone(), dtype: DType::F16 };
            results[output] = Array::new(ty, data.iter().map(|&x| to_half(x)).collect());
        }
        results
    }
}
