//! An operator with elementwise expressions attached to what it loads or stores.

use crate::base::{Array, Limits, TensorType};
use crate::graph::{Cost, Expr, Hook, Io, Kernel, Op, Operand};
use std::sync::Arc;

/// An expression of a value (`Input(0)`) and of extra tensors (`Input(k + 1)` is extra `k`), which are the fused
/// node's inputs from `first` on.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Attached {
    pub(super) expr: Expr,
    pub(super) first: usize,
    pub(super) extras: usize,
}

impl Attached {
    fn hook(&self, name: &'static str, value: &TensorType, io: &Io) -> Hook {
        let n = value.shape.elements();
        let body = self.expr.wgsl(&|k| {
            let Some(k) = k.checked_sub(1) else { return "v".to_string() };
            let index = self.first + k;
            let len = io.inputs[index].shape.elements();
            let at = if len == n { "i".to_string() } else { format!("i % {len}u") };
            format!("e{index}[{at}]")
        });
        let reads = (self.first..self.first + self.extras).map(|i| (format!("e{i}"), "f32")).collect();
        Hook { name, code: format!("fn {name}(v: f32, i: u32) -> f32 {{ return {body}; }}"), reads }
    }

    /// Adds the hook to one stage of a kernel, and what it reads.
    fn attach(&self, stage: &mut Kernel, hook: Hook, io: &Io) {
        stage.hooks.push(hook);
        for dispatch in &mut stage.dispatches {
            for index in self.first..self.first + self.extras {
                let bytes = io.inputs[index].bytes();
                *dispatch = dispatch.clone().bind(format!("e{index}"), Operand::Input(index), 0, bytes);
            }
        }
    }

    fn apply(&self, value: &mut Array, inputs: &[Array]) {
        for i in 0..value.data.len() {
            let v = value.data[i];
            value.data[i] = self.expr.eval(&|k| match k.checked_sub(1) {
                None => v,
                Some(k) => {
                    let extra = &inputs[self.first + k].data;
                    extra[i % extra.len()]
                }
            });
        }
    }
}

/// `base` with a prologue on the input that it names and an epilogue on output 0.
#[derive(Debug, Clone)]
pub(super) struct Fused {
    pub(super) base: Arc<dyn Op>,
    pub(super) base_inputs: usize,
    pub(super) prologue: Option<Attached>,
    pub(super) epilogue: Option<Attached>,
}

impl Fused {
    fn base_io(&self, io: &Io) -> Io {
        Io { inputs: io.inputs[..self.base_inputs].to_vec(), outputs: io.outputs.clone() }
    }
}

impl Op for Fused {
    fn name(&self) -> &'static str {
        self.base.name()
    }

    fn infer(&self, inputs: &[&TensorType]) -> crate::error::Result<Vec<TensorType>, String> {
        self.base.infer(&inputs[..self.base_inputs])
    }

    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        let mut kernels = self.base.kernels(&self.base_io(io), limits);
        for kernel in &mut kernels {
            if let (Some(p), Some(at)) = (&self.prologue, self.base.prologue()) {
                p.attach(kernel, p.hook("prologue", &io.inputs[at], io), io);
            }
            if let Some(e) = &self.epilogue {
                e.attach(kernel.last_mut(), e.hook("epilogue", &io.outputs[0], io), io);
            }
        }
        kernels
    }

    fn scratch(&self, io: &Io, limits: &Limits) -> u64 {
        self.base.scratch(&self.base_io(io), limits)
    }

    fn cost(&self, io: &Io) -> Cost {
        let base = self.base.cost(&self.base_io(io));
        let extra_bytes: u64 = io.inputs[self.base_inputs..].iter().map(TensorType::bytes).sum();
        let attached = |a: &Option<Attached>, n: u64| a.as_ref().map_or(0, |a| a.expr.flops() * n);
        let loaded = self.base.prologue().map_or(0, |at| io.inputs[at].shape.elements() as u64);
        let flops = base.flops + attached(&self.epilogue, io.elements()) + attached(&self.prologue, loaded);
        Cost { flops, bytes: base.bytes + extra_bytes }
    }

    fn reduction(&self, io: &Io) -> usize {
        self.base.reduction(&self.base_io(io))
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let mut base = inputs[..self.base_inputs].to_vec();
        if let (Some(p), Some(at)) = (&self.prologue, self.base.prologue()) {
            p.apply(&mut base[at], inputs);
        }
        let mut outputs = self.base.reference(&base);
        if let Some(e) = &self.epilogue {
            e.apply(&mut outputs[0], inputs);
        }
        outputs
    }

    fn epilogue(&self) -> bool {
        self.epilogue.is_none() && self.base.epilogue()
    }

    fn prologue(&self) -> Option<usize> {
        if self.prologue.is_some() { None } else { self.base.prologue() }
    }
}
