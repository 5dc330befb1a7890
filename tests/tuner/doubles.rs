//! Operators that a tuner has to see through: of their kernels one is wrong, and for some there is no memory.

use danlu::base::{Array, Limits, TensorType};
use danlu::graph::{Io, Kernel, Map, Op};

/// y = 2x: slowly, wrongly, and fast.
#[derive(Debug, Clone)]
pub struct Double;

impl Op for Double {
    fn name(&self) -> &'static str {
        "double"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        Ok(vec![inputs[0].clone()])
    }

    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        let kernel = |factor: f32, variant: &str| {
            let mut kernel = Map::scale(factor).kernels(io, limits).remove(0);
            kernel.variant = variant.into();
            kernel
        };
        let mut slow = kernel(2.0, "slow");
        let once = slow.dispatches[0].clone();
        slow.dispatches.extend(vec![once.clone(); 9]);
        let mut fast = kernel(2.0, "fast");
        fast.dispatches.extend(vec![once; 2]);
        vec![slow, kernel(3.0, "wrong"), fast]
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        Map::scale(2.0).reference(inputs)
    }
}

/// y = 2x by the same kernels, for which there is memory up to so many bytes of operands.
#[derive(Debug, Clone)]
pub struct Hungry {
    pub enough: u64,
}

impl Op for Hungry {
    fn name(&self) -> &'static str {
        "hungry"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        Double.infer(inputs)
    }

    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        let scratch = if io.bytes() > self.enough { 1 << 50 } else { 0 };
        Double.kernels(io, limits).into_iter().map(|kernel| Kernel { scratch, ..kernel }).collect()
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        Double.reference(inputs)
    }
}

/// y = 2x by the same kernels, the wrong one first.
#[derive(Debug, Clone)]
pub struct Misled;

impl Op for Misled {
    fn name(&self) -> &'static str {
        "misled"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        Double.infer(inputs)
    }

    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        let mut kernels = Double.kernels(io, limits);
        kernels.swap(0, 1);
        kernels
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        Double.reference(inputs)
    }
}
