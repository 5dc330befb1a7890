//! The gradient of the experts' linear layer towards its weights. R rows, k choices of each, so R·k slots; E experts with
//! matrices `[N,K]`.

use super::experts::Sizes;
use super::windows::Window;
use crate::base::{Array, DType, Limits, TensorType};
use crate::graph::{Cost, Dispatch, Io, Kernel, Op, Operand};
use std::ops::Range;

/// Gradient of [`super::ExpertLinear`] towards its weights `[E,N,K]`: of each expert the sum over its slots, in their order,
/// of the products of dy and x. Inputs: x f32 `[R,K]` or `[R,k,K]`, dy f32 `[R,k,N]`, ids u32 `[R,k]`, order u32 `[R·k]`,
/// starts u32 `[E+1]`. An expert without slots gets zeros.
#[derive(Debug, Clone, PartialEq)]
pub struct ExpertLinearGrad;

struct Tier {
    kernel: Kernel,
    tile: [usize; 2],
}

fn sizes(inputs: &[&TensorType]) -> Result<Sizes, String> {
    let &[x, dy, ids, order, starts] = inputs else { return Err("takes x, dy, ids, order and starts".into()) };
    let (&[_, _, n], DType::F32) = (dy.shape.dims(), dy.dtype) else {
        return Err(format!("dy must be f32 [R,k,N], not {dy}"));
    };
    let weights = [starts.shape.elements().saturating_sub(1), n, x.shape.last()];
    let sizes = Sizes::new(x, &weights, ids, order, starts)?;
    if dy.shape.dims()[..2] != [sizes.rows, sizes.choices] {
        return Err(format!("dy must have the slots of ids, [R,k,N], not {dy}"));
    }
    Ok(sizes)
}

fn io_sizes(io: &Io) -> Sizes {
    sizes(&io.inputs.iter().collect::<Vec<_>>()).expect("checked when the node was made")
}

/// `fours`: parts of the matrices begin with multiples of four rows.
fn tier(s: &Sizes, fours: bool, limits: &Limits) -> Tier {
    let [n, k] = s.matrix;
    if limits.is_cpu && limits.min_subgroup >= 8 {
        let groups = if n <= 8 { 1 } else { 2 };
        let kernel = Kernel::new("expert_grad_rows", format!("rows_{}", 8 * groups))
            .constant("GROUPS", groups)
            .constant("VECTOR", usize::from(fours && n.is_multiple_of(4) && k.is_multiple_of(4)));
        return Tier { kernel, tile: [8 * groups, 32] };
    }
    let kernel = Kernel::new("expert_grad_tile", "tile_64x64")
        .constant("TILE_M", 64)
        .constant("TILE_N", 64)
        .constant("TILE_K", 16);
    Tier { kernel, tile: [64, 64] }
}

/// One dispatch: the slots of these rows, these experts, and these rows of their matrices.
fn part(s: &Sizes, tile: [usize; 2], parts: [&Range<usize>; 3], limits: &Limits) -> Dispatch {
    let [rows, experts, stored] = parts;
    let [n, k] = s.matrix;
    let w = Window::new((experts.start * n + stored.start) * k..((experts.end - 1) * n + stored.end) * k, limits);
    let dy = s.slot_window(rows, n, limits);
    let groups = [k.div_ceil(tile[1]), stored.len().div_ceil(tile[0]), experts.len()];
    let d = Dispatch::new(groups.map(|x| x as u32))
        .param("rows", stored.len())
        .param("columns", k)
        .param("expert_w", n * k)
        .param("skip_w", w.skip)
        .param("row_y", n)
        .param("skip_y", dy.skip + stored.start)
        .param("first", usize::from(rows.start == 0));
    let d = s.bind_x(d, rows, 0, limits);
    let d = w.bind(dy.bind(d, "dy", Operand::Input(1)), "dw", Operand::Output(0));
    s.bind_order(d, rows, experts.clone())
}

impl Op for ExpertLinearGrad {
    fn name(&self) -> &'static str {
        "expert_linear_grad"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let s = sizes(inputs)?;
        Ok(vec![TensorType::f32([s.experts, s.matrix[0], s.matrix[1]])])
    }

    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        let s = io_sizes(io);
        let parts = s.expert_ranges(s.matrix[1], limits);
        let Tier { mut kernel, tile } = tier(&s, Sizes::come_in_fours(&parts), limits);
        let row_ranges = s.row_ranges(s.matrix[0], usize::MAX, limits);
        let window = usize::from(row_ranges.len() > 1);
        kernel = kernel.constant("WINDOW", window).constant("PER_ROW", s.per_row);
        for rows in &row_ranges {
            for (experts, stored) in &parts {
                kernel = kernel.dispatch(part(&s, tile, [rows, experts, stored], limits));
            }
        }
        vec![kernel]
    }

    fn cost(&self, io: &Io) -> Cost {
        let s = io_sizes(io);
        Cost { flops: 2 * (s.slots() * s.matrix[0]) as u64 * s.matrix[1] as u64, bytes: io.bytes() }
    }

    fn reduction(&self, io: &Io) -> usize {
        io_sizes(io).slots()
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let s = sizes(&inputs.iter().map(|a| &a.ty).collect::<Vec<_>>()).expect("checked when the node was made");
        let [n, k] = s.matrix;
        let mut dw = Array::zeros([s.experts, n, k]);
        for slot in 0..s.slots() {
            let x = &inputs[0].data[slot / s.per_row * k..][..k];
            let Some(dw) = dw.data.chunks_mut(n * k).nth(inputs[2].data[slot] as usize) else { continue };
            for (dw, dy) in dw.chunks_mut(k).zip(&inputs[1].data[slot * n..]) {
                dw.iter_mut().zip(x).for_each(|(dw, x)| *dw += dy * x);
            }
        }
        vec![dw]
    }
}
