//! From the k slots of each row to the row and back: the weighted sum that ends a mixture of experts, and the parts of its
//! gradient. R rows, k slots of each, D width.

use super::windows::{Window, item, ranges, reduce_lanes, rows_per_binding};
use crate::base::{Array, DType, Limits, TensorType};
use crate::error::Result;
use crate::graph::{Cost, Dispatch, Graph, Io, Kernel, Op, OpNode, Operand, Value, spread};
use std::ops::Range;

/// x `[R,k,D]`, and weights `[R,k]` if there are any, to their weighted sum `[R,D]`, slots in order.
#[derive(Debug, Clone, PartialEq)]
pub struct SlotSum;

/// x `[R,D]` and weights `[R,k]` to every product, `[R,k,D]`: the gradient of [`SlotSum`] towards the slots.
#[derive(Debug, Clone, PartialEq)]
pub struct SlotScale;

/// x `[R,k,D]` and dy `[R,D]` to their products over D, `[R,k]`: the gradient of [`SlotSum`] towards the weights.
#[derive(Debug, Clone, PartialEq)]
pub struct SlotDot;

const WORKGROUP: usize = 64;

/// R, k and D of slots `[R,k,D]`, or what is wrong.
fn sizes(slots: &TensorType) -> Result<[usize; 3], String> {
    match slots.shape.dims() {
        &[r, k, d] if slots.dtype == DType::F32 && r * k * d > 0 => Ok([r, k, d]),
        _ => Err(format!("slots must be f32 [R,k,D], not {slots}")),
    }
}

/// Ranges of rows of which every operand fits a binding, with the windows of slots, weights and rows of each.
fn windows([r, k, d]: [usize; 3], limits: &Limits) -> impl Iterator<Item = (Range<usize>, [Window; 3])> {
    let step = rows_per_binding(r, k * d, limits);
    ranges(r, step).map(move |rows| {
        let part = |width: usize| Window::new(rows.start * width..rows.end * width, limits);
        let parts = [part(k * d), part(k), part(d)];
        (rows, parts)
    })
}

/// A dispatch of so many items, which reads from the window x and writes to y: what `slot_sum` and `slot_scale` share.
fn items(count: usize, [k, d]: [usize; 2], [x, weights, y]: [Window; 3], limits: &Limits) -> Dispatch {
    let item = item(d);
    Dispatch::new(spread(count.div_ceil(WORKGROUP), limits))
        .param("count", count)
        .param("columns", d / item)
        .param("choices", k)
        .param("skip_x", x.skip / item)
        .param("skip_w", weights.skip)
        .param("skip_y", y.skip / item)
}

impl Op for SlotSum {
    fn name(&self) -> &'static str {
        "slot_sum"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let (&x, weights) = inputs.split_first().ok_or("takes x, and weights if there are any")?;
        let [r, k, d] = sizes(x)?;
        match weights {
            [] => {}
            [weights] if **weights == TensorType::f32([r, k]) => {}
            _ => return Err("weights must be f32 [R,k], and the last input".into()),
        }
        Ok(vec![TensorType::f32([r, d])])
    }

    fn gradient(&self, g: &mut Graph, node: &OpNode, dy: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        let Some(dy) = dy[0] else { return Ok(vec![None; node.inputs.len()]) };
        let (x, &[r, k, _]) = (node.inputs[0], g.dims(node.inputs[0])) else { unreachable!("checked by infer") };
        let Some(&weights) = node.inputs.get(1) else {
            let ones = 1.0f32.to_le_bytes().repeat(r * k);
            let ones = g.constant("ones", TensorType::f32([r, k]), ones);
            return Ok(vec![Some(g.apply1(SlotScale, &[dy, ones])?)]);
        };
        let dx = g.apply1(SlotScale, &[dy, weights])?;
        Ok(vec![Some(dx), Some(g.apply1(SlotDot, &[x, dy])?)])
    }

    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        let [r, k, d] = sizes(&io.inputs[0]).expect("checked when the node was made");
        let (item, weighted) = (item(d), io.inputs.len() > 1);
        let mut kernel = Kernel::new("slot_sum", "items")
            .constant("WORKGROUP", WORKGROUP)
            .constant("VECTOR", usize::from(item == 4))
            .constant("WEIGHTS", usize::from(weighted));
        for (rows, [slots, weights, row]) in windows([r, k, d], limits) {
            let mut dispatch = items(rows.len() * d / item, [k, d], [slots, weights, row], limits);
            if weighted {
                dispatch = weights.bind(dispatch, "weights", Operand::Input(1));
            }
            kernel = kernel.dispatch(row.bind(slots.bind(dispatch, "x", Operand::Input(0)), "y", Operand::Output(0)));
        }
        vec![kernel]
    }

    fn cost(&self, io: &Io) -> Cost {
        Cost { flops: io.inputs.len() as u64 * io.inputs[0].shape.elements() as u64, bytes: io.bytes() }
    }

    fn reduction(&self, io: &Io) -> usize {
        io.inputs[0].shape.dims()[1]
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let [r, k, d] = sizes(&inputs[0].ty).expect("checked when the node was made");
        let mut y = Array::zeros([r, d]);
        for (slot, x) in inputs[0].data.chunks(d).enumerate() {
            let weight = inputs.get(1).map_or(1.0, |w| w.data[slot]);
            y.data[slot / k * d..][..d].iter_mut().zip(x).for_each(|(y, x)| *y += weight * x);
        }
        vec![y]
    }
}

impl Op for SlotScale {
    fn name(&self) -> &'static str {
        "slot_scale"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [x, weights] = inputs else { return Err("takes x and weights".into()) };
        let (&[r, d], &[rows, k]) = (x.shape.dims(), weights.shape.dims()) else {
            return Err("x must be [R,D] and weights [R,k]".into());
        };
        if r != rows || r * k * d == 0 || x.dtype != DType::F32 || weights.dtype != DType::F32 {
            return Err("x and weights must be f32 and have the same rows".into());
        }
        Ok(vec![TensorType::f32([r, k, d])])
    }

    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        let [r, k, d] = sizes(&io.outputs[0]).expect("checked when the node was made");
        let item = item(d);
        let mut kernel = Kernel::new("slot_scale", "items")
            .constant("WORKGROUP", WORKGROUP)
            .constant("VECTOR", usize::from(item == 4));
        for (rows, [slots, weights, row]) in windows([r, k, d], limits) {
            let mut dispatch = items(rows.len() * k * d / item, [k, d], [row, weights, slots], limits);
            dispatch = weights.bind(dispatch, "weights", Operand::Input(1));
            kernel = kernel.dispatch(slots.bind(row.bind(dispatch, "x", Operand::Input(0)), "y", Operand::Output(0)));
        }
        vec![kernel]
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let (d, k) = (inputs[0].ty.shape.last(), inputs[1].ty.shape.last());
        let mut y = Array::zeros([inputs[1].ty.shape.rows(), k, d]);
        for (slot, y) in y.data.chunks_mut(d).enumerate() {
            let x = &inputs[0].data[slot / k * d..];
            y.iter_mut().zip(x).for_each(|(y, x)| *y = inputs[1].data[slot] * x);
        }
        vec![y]
    }
}

impl Op for SlotDot {
    fn name(&self) -> &'static str {
        "slot_dot"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [x, dy] = inputs else { return Err("takes x and dy".into()) };
        let [r, k, d] = sizes(x)?;
        if **dy != TensorType::f32([r, d]) {
            return Err(format!("dy must be f32 [R,D] beside {x}, not {dy}"));
        }
        Ok(vec![TensorType::f32([r, k])])
    }

    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        let [r, k, d] = sizes(&io.inputs[0]).expect("checked when the node was made");
        let item = item(d);
        let build = |workgroup: usize| {
            let kernel = Kernel::new("slot_dot", format!("lanes_{workgroup}"))
                .constant("WORKGROUP", workgroup)
                .constant("VECTOR", usize::from(item == 4));
            windows([r, k, d], limits).fold(kernel, |kernel, (rows, [slots, out, row])| {
                let mut dispatch = Dispatch::new(spread(rows.len() * k, limits))
                    .param("slots", rows.len() * k)
                    .param("columns", d / item)
                    .param("choices", k)
                    .param("skip_x", slots.skip / item)
                    .param("skip_dy", row.skip / item)
                    .param("skip_y", out.skip);
                dispatch = slots.bind(dispatch, "x", Operand::Input(0));
                dispatch = row.bind(dispatch, "dy", Operand::Input(1));
                kernel.dispatch(out.bind(dispatch, "y", Operand::Output(0)))
            })
        };
        reduce_lanes(limits).map(build).into()
    }

    fn cost(&self, io: &Io) -> Cost {
        Cost { flops: 2 * io.inputs[0].shape.elements() as u64, bytes: io.bytes() }
    }

    fn reduction(&self, io: &Io) -> usize {
        io.inputs[0].shape.last()
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let [r, k, d] = sizes(&inputs[0].ty).expect("checked when the node was made");
        let dot = |(slot, x): (usize, &[f64])| {
            let dy = &inputs[1].data[slot / k * d..];
            x.iter().zip(dy).map(|(x, dy)| x * dy).sum()
        };
        vec![Array::new(TensorType::f32([r, k]), inputs[0].data.chunks(d).enumerate().map(dot).collect())]
    }
}
