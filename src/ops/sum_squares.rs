//! Sum of squares of a flat page, in parts, and the norm over the parts of all pages.

use super::gaps;
use super::windows::{item, loads};
use crate::base::{Array, DType, Limits, TensorType};
use crate::error::Result;
use crate::graph::{Cost, Dispatch, Graph, Io, Kernel, Op, OpNode, Operand, Value, spread};

/// Elements of one part: enough for a workgroup to have work, few enough for a whole page to spread over the adapter.
const PART: usize = 16_384;

/// Sums of the squares of x `[N]` over runs of 16,384 elements: `[P]`. A second input, a table made by
/// [`super::gap_table`], names elements to leave out: padding, whose content is undefined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SumSquares;

/// The square root of the sum of all elements of its inputs, each `[P]`: `[1]`. With inputs from [`SumSquares`] over
/// every page of the gradient it is the global norm; an element that is not finite makes it not finite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GlobalNorm;

/// The sum of all elements of up to seven inputs: `[1]`, or its root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SumParts {
    /// Take the square root in the end.
    pub root: bool,
}

/// Inputs of one `sum_parts` node: its storage bindings, less one for the output.
const INPUTS: usize = 7;

impl Op for SumSquares {
    fn name(&self) -> &'static str {
        "sum_squares"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let (&x, table) = inputs.split_first().ok_or("takes x, and the table of gaps if there are any")?;
        gaps::check(table)?;
        if x.dtype != DType::F32 || x.shape.elements() == 0 {
            return Err("x must be f32 and not empty".into());
        }
        Ok(vec![TensorType::f32([x.shape.elements().div_ceil(PART)])])
    }

    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        let n = io.inputs[0].shape.elements();
        let workgroup = if limits.is_cpu { 8 } else { 256 };
        let vector = !limits.is_cpu && item(n) == 4;
        let mut kernel = Kernel::new("sum_squares", format!("lanes_{workgroup}"))
            .constant("WORKGROUP", workgroup)
            .constant("PART", PART)
            .constant("LOADS", loads(limits))
            .constant("VECTOR", usize::from(vector))
            .constant("GAPS", io.inputs.len() - 1);
        // A window is a whole number of parts, and of the output's aligned ranges.
        let window = (limits.max_binding_bytes as usize / 4 / (PART * 64)).max(1) * PART * 64;
        for start in (0..n).step_by(window) {
            let count = window.min(n - start);
            let parts = count.div_ceil(PART);
            let mut d = Dispatch::new(spread(parts, limits))
                .bind("x", Operand::Input(0), start as u64 * 4, count as u64 * 4)
                .bind("y", Operand::Output(0), (start / PART) as u64 * 4, parts as u64 * 4)
                .param("count", count)
                .param("parts", parts)
                .param("start", start);
            if let Some(table) = io.inputs.get(1) {
                d = d.bind("gaps", Operand::Input(1), 0, table.bytes());
            }
            kernel = kernel.dispatch(d);
        }
        vec![kernel]
    }

    fn cost(&self, io: &Io) -> Cost {
        Cost { flops: 2 * io.inputs[0].shape.elements() as u64, bytes: io.bytes() }
    }

    fn reduction(&self, _io: &Io) -> usize {
        PART
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let mut y = Array::zeros([inputs[0].data.len().div_ceil(PART)]);
        for (i, x) in inputs[0].data.iter().enumerate() {
            if !gaps::contains(inputs.get(1), i) {
                y.data[i / PART] += x * x;
            }
        }
        vec![y]
    }
}

fn check_parts(inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
    if inputs.is_empty() || inputs.iter().any(|x| x.dtype != DType::F32 || x.shape.elements() == 0) {
        return Err("takes f32 tensors that are not empty, at least one".into());
    }
    Ok(vec![TensorType::f32([1])])
}

fn sum(inputs: &[Array]) -> f64 {
    inputs.iter().flat_map(|x| &x.data).sum()
}

impl Op for GlobalNorm {
    fn name(&self) -> &'static str {
        "global_norm"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        check_parts(inputs)
    }

    fn expand(&self, g: &mut Graph, node: &OpNode) -> Result<Option<Vec<Value>>> {
        let mut parts = node.inputs.clone();
        while parts.len() > INPUTS {
            let sums = parts.chunks(INPUTS).map(|some| g.apply1(SumParts { root: false }, some));
            parts = sums.collect::<Result<_>>()?;
        }
        Ok(Some(vec![g.apply1(SumParts { root: true }, &parts)?]))
    }

    fn cost(&self, io: &Io) -> Cost {
        Cost { flops: io.bytes() / 4, bytes: io.bytes() }
    }

    fn reduction(&self, io: &Io) -> usize {
        io.inputs.iter().map(|x| x.shape.elements()).sum()
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        vec![Array::new(TensorType::f32([1]), vec![sum(inputs).sqrt()])]
    }
}

impl Op for SumParts {
    fn name(&self) -> &'static str {
        "sum_parts"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        if inputs.len() > INPUTS {
            return Err(format!("{} inputs where {INPUTS} fit", inputs.len()));
        }
        check_parts(inputs)
    }

    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        let workgroup = if limits.is_cpu { 8 } else { 256 };
        const NAMES: [&str; INPUTS] = ["x0", "x1", "x2", "x3", "x4", "x5", "x6"];
        const COUNTS: [&str; INPUTS] = ["n0", "n1", "n2", "n3", "n4", "n5", "n6"];
        let mut d = Dispatch::new([1, 1, 1]).bind("y", Operand::Output(0), 0, 4);
        for i in 0..INPUTS {
            // A variable without an input of its own is bound to the last one, and none of it is read.
            let from = i.min(io.inputs.len() - 1);
            let count = if i == from { io.inputs[i].shape.elements() } else { 0 };
            d = d.bind(NAMES[i], Operand::Input(from), 0, io.inputs[from].bytes()).param(COUNTS[i], count);
        }
        let kernel = Kernel::new("sum_parts", format!("lanes_{workgroup}"));
        vec![
            kernel
                .constant("WORKGROUP", workgroup)
                .constant("ROOT", usize::from(self.root))
                .constant("LOADS", loads(limits))
                .dispatch(d),
        ]
    }

    fn cost(&self, io: &Io) -> Cost {
        Cost { flops: io.bytes() / 4, bytes: io.bytes() }
    }

    fn reduction(&self, io: &Io) -> usize {
        io.inputs.iter().map(|x| x.shape.elements()).sum()
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let sum = sum(inputs);
        vec![Array::new(TensorType::f32([1]), vec![if self.root { sum.sqrt() } else { sum }])]
    }
}
