//! Rotary position embedding. B batch, T time, H heads, C head width, R turned elements of a head, S positions of the
//! table.

use super::attention_sizes::{check_starts, each, is_packed};
use super::windows::{Window, item, ranges, rows_per_binding};
use crate::base::{Array, DType, Limits, TensorType};
use crate::error::Result;
use crate::graph::{Cost, Dispatch, Graph, Io, Kernel, Op, OpNode, Operand, Value, spread};

/// Rotary position embedding (Su et al., 2021) in Hugging Face's pairing: of the first R elements of a head, element i
/// turns with element i + R/2; the others stay. Inputs: x f32 `[B,T,H,C]`, table f32 `[S,R/2,2]` from [`rope_table`],
/// offset u32 `[1]` or `[B]`: the position of the first of the T tokens, of all sequences or of each, or u32 `[B,T]`: for
/// each token the index in its row at which its document begins, from which its position counts, and which wraps where it is
/// below zero; and maybe another x,
/// `[B,T,K,C]`, as queries and keys are turned alike. An output as each x. Positions beyond the table are taken as its
/// last; callers keep offset + T <= S.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Turns the other way, by the same factor: what the backward pass does.
    pub inverse: bool,
}

/// Cosines and sines of the angles p · inverse(i), computed in f64 and scaled by `factor`: `[positions, R/2, 2]`, cosine
/// first, for `inverse` of R/2 frequencies.
pub fn rope_table(inverse: &[f64], factor: f64, positions: usize) -> Vec<f32> {
    let mut table = Vec::with_capacity(positions * inverse.len() * 2);
    for p in 0..positions {
        for frequency in inverse {
            let angle = p as f64 * frequency;
            table.extend([(factor * angle.cos()) as f32, (factor * angle.sin()) as f32]);
        }
    }
    table
}

const WORKGROUP: usize = 64;

impl Op for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let (&[x, table, offset] | &[x, table, offset, _]) = inputs else {
            return Err("takes x, table, offset, and maybe another x".into());
        };
        let &[b, t, _, c] = x.shape.dims() else { return Err(format!("x must be f32 [B,T,H,C], not {x}")) };
        if x.dtype != DType::F32 || c == 0 || c % 2 != 0 {
            return Err(format!("x must be f32 [B,T,H,C] with an even C, not {x}"));
        }
        match table.shape.dims() {
            &[s, half, 2] if (1..=c / 2).contains(&half) && s >= t && table.dtype == DType::F32 => {}
            _ => {
                let half = c / 2;
                return Err(format!("the table must be f32 [S,R/2,2] with S >= {t} and R/2 <= {half}, not {table}"));
            }
        }
        check_starts(offset, [b, t], t)?;
        if let Some(other) = inputs.get(3) {
            match other.shape.dims() {
                &[ob, ot, _, oc] if (ob, ot, oc, other.dtype) == (b, t, c, DType::F32) => {}
                _ => return Err(format!("the other x must be f32 [{b},{t},K,{c}], not {other}")),
            }
        }
        Ok([x].into_iter().chain(inputs.get(3).copied()).cloned().collect())
    }

    fn gradient(&self, g: &mut Graph, node: &OpNode, dy: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        let back = Rope { inverse: !self.inverse };
        let (table, offset) = (node.inputs[1], node.inputs[2]);
        let mut dx = vec![None; node.inputs.len()];
        match dy {
            &[Some(x), Some(other)] => {
                let both = g.apply(back, &[x, table, offset, other])?;
                (dx[0], dx[3]) = (Some(both[0]), Some(both[1]));
            }
            _ => {
                for (&dy, input) in dy.iter().zip([0, 3]) {
                    dx[input] = dy.map(|dy| g.apply1(back.clone(), &[dy, table, offset])).transpose()?;
                }
            }
        }
        Ok(dx)
    }

    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        let &[b, t, h, c] = io.inputs[0].shape.dims() else { unreachable!("checked when the node was made") };
        let (positions, turned) = (io.inputs[1].shape.dims()[0], io.inputs[1].shape.dims()[1]);
        // Whole items turn with whole items, and whole items stay.
        let item = if item(turned) == 4 { item(c / 2) } else { 1 };
        let mut kernel =
            Kernel::new("rope", "pairs").constant("WORKGROUP", WORKGROUP).constant("VECTOR", usize::from(item == 4));
        kernel = each(kernel, Some(&io.inputs[2]));
        let other_heads = io.inputs.get(3).map_or(0, |x| x.shape.dims()[2]);
        kernel = kernel.constant("BOTH", usize::from(other_heads > 0));
        // A row is one token: all its heads.
        for r in ranges(b * t, rows_per_binding(b * t, h.max(other_heads) * c, limits)) {
            let window = |h: usize| Window::new(r.start * h * c..r.end * h * c, limits);
            let (w, other) = (window(h), window(other_heads));
            let pairs = |h: usize| r.len() * h * c / 2 / item;
            let mut dispatch = Dispatch::new(spread(pairs(h + other_heads).div_ceil(WORKGROUP), limits))
                .bind("table", Operand::Input(1), 0, io.inputs[1].bytes())
                .bind("offset", Operand::Input(2), 0, io.inputs[2].bytes())
                .param("pairs", pairs(h))
                .param("other_pairs", pairs(other_heads))
                .param("first_row", r.start)
                .param("time", t)
                .param("heads", h)
                .param("other_heads", other_heads)
                .param("half_width", c / 2 / item)
                .param("half_turned", turned / item)
                .param("positions", positions)
                .param("skip", w.skip / item)
                .param("other_skip", other.skip / item)
                .param("turn", if self.inverse { -1.0 } else { 1.0 });
            dispatch = w.bind(dispatch, "x", Operand::Input(0));
            dispatch = w.bind(dispatch, "y", Operand::Output(0));
            if other_heads > 0 {
                dispatch = other.bind(dispatch, "other", Operand::Input(3));
                dispatch = other.bind(dispatch, "other_y", Operand::Output(1));
            }
            kernel = kernel.dispatch(dispatch);
        }
        vec![kernel]
    }

    fn cost(&self, io: &Io) -> Cost {
        let bytes: u64 = io.outputs.iter().map(TensorType::bytes).sum();
        Cost { flops: 3 * bytes / 4, bytes: 2 * bytes }
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let (table, offset) = (&inputs[1], &inputs[2].data);
        let half = table.dims()[1];
        let turned = |x: &Array| {
            let &[_, t, h, c] = x.dims() else { unreachable!("checked when the node was made") };
            let mut y = x.clone();
            for (head, (x, y)) in x.data.chunks(c).zip(y.data.chunks_mut(c)).enumerate() {
                let (row, time) = (head / h, head / h % t);
                let position = match is_packed(&inputs[2].ty) {
                    // Numbers below zero wrap.
                    true => (time as i64 - i64::from(offset[row] as u32 as i32)).max(0) as usize,
                    false => offset[(row / t).min(offset.len() - 1)] as usize + time,
                };
                let position = position.min(table.dims()[0] - 1);
                for i in 0..half {
                    let at = (position * half + i) * 2;
                    let (cos, sin) = (table.data[at], table.data[at + 1] * if self.inverse { -1.0 } else { 1.0 });
                    y[i] = x[i] * cos - x[i + half] * sin;
                    y[i + half] = x[i + half] * cos + x[i] * sin;
                }
            }
            y
        };
        [0, 3].iter().filter_map(|&i| inputs.get(i)).map(turned).collect()
    }

    fn reduction(&self, _io: &Io) -> usize {
        2
    }
}
