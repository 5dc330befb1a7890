//! An operator with elementwise expressions attached to what it loads or stores.

use crate::base::{Array, Limits, TensorType};
use crate::graph::{Cost, Expr, Hook, Io, Kernel, Op, Operand};
use std::sync::Arc;

/// An expression of a value (`Input(0)`) and of extra tensors (`Input(k + 1)` is extra `k`), which are the fused
/// node's inputs from `first` on.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Attached {
    pub(super) expr: Expr,
    /// Of an epilogue, another one, whose results are an output of its own.
    pub(super) second: Option<Expr>,
    pub(super) first: usize,
    pub(super) extras: usize,
}

impl Attached {
    fn hook(&self, name: &'static str, expr: &Expr, value: &TensorType, io: &Io) -> Hook {
        let n = value.shape.elements();
        let body = expr.wgsl(&|k| {
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

    /// Has the last stage apply the second expression as well: where output 0 is stored, output 1 is.
    fn attach_second(&self, expr: &Expr, stage: &mut Kernel, io: &Io) {
        stage.hooks.push(self.hook("second", expr, &io.outputs[1], io));
        for dispatch in &mut stage.dispatches {
            let stored = dispatch.bindings.iter().find(|b| b.operand == Operand::Output(0));
            let stored = stored.expect("the last stage stores output 0").clone();
            *dispatch = dispatch.clone().bind("beside", Operand::Output(1), stored.offset, stored.bytes);
        }
    }

    fn apply(&self, expr: &Expr, value: &Array, inputs: &[Array]) -> Array {
        let mut result = value.clone();
        for (i, &v) in value.data.iter().enumerate() {
            result.data[i] = expr.eval(&|k| match k.checked_sub(1) {
                None => v,
                Some(k) => {
                    let extra = &inputs[self.first + k].data;
                    extra[i % extra.len()]
                }
            });
        }
        result
    }

    /// Operations for each element.
    fn flops(&self) -> u64 {
        self.expr.flops() + self.second.as_ref().map_or(0, Expr::flops)
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
    fn second_expr(&self) -> Option<&Expr> {
        self.epilogue.as_ref()?.second.as_ref()
    }

    fn base_io(&self, io: &Io) -> Io {
        let own = io.outputs.len() - usize::from(self.second_expr().is_some());
        Io { inputs: io.inputs[..self.base_inputs].to_vec(), outputs: io.outputs[..own].to_vec() }
    }
}

impl Op for Fused {
    fn name(&self) -> &'static str {
        self.base.name()
    }

    fn infer(&self, inputs: &[&TensorType]) -> crate::error::Result<Vec<TensorType>, String> {
        let mut outputs = self.base.infer(&inputs[..self.base_inputs])?;
        if self.second_expr().is_some() {
            outputs.push(outputs[0].clone());
        }
        Ok(outputs)
    }

    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        let mut kernels = self.base.kernels(&self.base_io(io), limits);
        for kernel in &mut kernels {
            if let (Some(p), Some(at)) = (&self.prologue, self.base.prologue()) {
                p.attach(kernel, p.hook("prologue", &p.expr, &io.inputs[at], io), io);
            }
            if let Some(e) = &self.epilogue {
                let stage = kernel.last_mut();
                e.attach(stage, e.hook("epilogue", &e.expr, &io.outputs[0], io), io);
                if let Some(expr) = &e.second {
                    e.attach_second(expr, stage, io);
                }
            }
        }
        kernels
    }

    fn scratch(&self, io: &Io, limits: &Limits) -> u64 {
        self.base.scratch(&self.base_io(io), limits)
    }

    fn cost(&self, io: &Io) -> Cost {
        let base = self.base.cost(&self.base_io(io));
        let second = self.second_expr().map(|_| &io.outputs[io.outputs.len() - 1]);
        let extra_bytes: u64 = io.inputs[self.base_inputs..].iter().chain(second).map(TensorType::bytes).sum();
        let attached = |a: &Option<Attached>, n: u64| a.as_ref().map_or(0, |a| a.flops() * n);
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
            base[at] = p.apply(&p.expr, &base[at], inputs);
        }
        let mut outputs = self.base.reference(&base);
        if let Some(e) = &self.epilogue {
            let second = e.second.as_ref().map(|expr| e.apply(expr, &outputs[0], inputs));
            outputs[0] = e.apply(&e.expr, &outputs[0], inputs);
            outputs.extend(second);
        }
        outputs
    }

    fn bare(&self, io: &Io) -> Option<(Arc<dyn Op>, Io)> {
        Some((self.base.clone(), self.base_io(io)))
    }

    /// But for the one on whose elements something is done first.
    fn half_inputs(&self, io: &Io, limits: &Limits) -> Vec<usize> {
        let mut inputs = self.base.half_inputs(&self.base_io(io), limits);
        inputs.retain(|&input| self.prologue.is_none() || self.base.prologue() != Some(input));
        inputs
    }

    fn half_outputs(&self, io: &Io, limits: &Limits) -> Vec<usize> {
        let mut outputs = self.base.half_outputs(&self.base_io(io), limits);
        if self.second_expr().is_some() && outputs.contains(&0) {
            outputs.push(io.outputs.len() - 1);
        }
        outputs
    }

    fn epilogue(&self) -> bool {
        self.epilogue.is_none() && self.base.epilogue()
    }

    fn second(&self, io: &Io, limits: &Limits) -> bool {
        self.epilogue.is_none() && self.base.second(&self.base_io(io), limits)
    }

    fn prologue(&self) -> Option<usize> {
        if self.prologue.is_some() { None } else { self.base.prologue() }
    }
}
