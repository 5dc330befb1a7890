//! Routing of tokens to experts: the k largest logits of each row, and their weights. R rows (tokens), E experts,
//! k choices.

use super::windows::{Window, ranges, rows_per_binding};
use crate::base::{Array, DType, Limits, TensorType};
use crate::error::Result;
use crate::graph::{Cost, Dispatch, Graph, Io, Kernel, Op, OpNode, Operand, Value, spread};

/// Router logits `[R,E]` to weights f32 `[R,k]` and expert ids u32 `[R,k]`, in descending order of the logits; of equal
/// ones the lower id comes first. Weights are the softmax over all experts, or, normalised, over the chosen ones, which
/// is the same as dividing by their sum (Mixtral: Jiang et al., 2024, §2.1; Qwen3-MoE's `norm_topk_prob`).
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    /// k: experts of each row.
    pub choices: usize,
    /// The weights of a row sum to one.
    pub normalise: bool,
}

/// Gradient of [`Route`] towards the logits `[R,E]`. Inputs: logits, weights and ids that it gave, and dweights `[R,k]`.
/// No gradient flows through the choice itself.
#[derive(Debug, Clone, PartialEq)]
pub struct RouteGrad {
    /// As in [`Route`].
    pub normalise: bool,
}

/// Largest k: a router's choices lie in shared memory.
const MAX_CHOICES: usize = 64;

fn check_logits(logits: &TensorType) -> Result<[usize; 2], String> {
    match logits.shape.dims() {
        &[r, e] if logits.dtype == DType::F32 && r * e > 0 => Ok([r, e]),
        _ => Err(format!("logits must be f32 [R,E], not {logits}")),
    }
}

/// A dispatch for each range of rows, with `per_group` rows a workgroup. Binds what is `[R,E]` and what is `[R,k]`.
fn dispatches(
    mut kernel: Kernel,
    [r, e, k]: [usize; 3],
    per_group: usize,
    limits: &Limits,
    wide: &[(&'static str, Operand)],
    narrow: &[(&'static str, Operand)],
) -> Kernel {
    for rows in ranges(r, rows_per_binding(r, e, limits)) {
        let wide_part = Window::new(rows.start * e..rows.end * e, limits);
        let narrow_part = Window::new(rows.start * k..rows.end * k, limits);
        let mut d = Dispatch::new(spread(rows.len().div_ceil(per_group), limits))
            .param("rows", rows.len())
            .param("experts", e)
            .param("skip_logits", wide_part.skip)
            .param("skip", narrow_part.skip);
        for &(name, operand) in wide {
            d = wide_part.bind(d, name, operand);
        }
        for &(name, operand) in narrow {
            d = narrow_part.bind(d, name, operand);
        }
        kernel = kernel.dispatch(d);
    }
    kernel
}

impl Op for Route {
    fn name(&self) -> &'static str {
        "route"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [logits] = inputs else { return Err("takes one input: logits".into()) };
        let [r, e] = check_logits(logits)?;
        let k = self.choices;
        if k == 0 || k > e.min(MAX_CHOICES) {
            return Err(format!("{k} choices of {e} experts; it must be 1 to {}", e.min(MAX_CHOICES)));
        }
        Ok(vec![TensorType::f32([r, k]), TensorType::u32([r, k])])
    }

    fn gradient(&self, g: &mut Graph, node: &OpNode, dy: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        let Some(dweights) = dy[0] else { return Ok(vec![None]) };
        let op = RouteGrad { normalise: self.normalise };
        Ok(vec![Some(g.apply1(op, &[node.inputs[0], node.outputs[0], node.outputs[1], dweights])?)])
    }

    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        let (r, e) = (io.inputs[0].shape.rows(), io.inputs[0].shape.last());
        let workgroup = if limits.is_cpu { 8 } else { 64 };
        let kernel = Kernel::new("route", format!("lanes_{workgroup}"))
            .constant("WORKGROUP", workgroup)
            .constant("CHOICES", self.choices)
            .constant("NORMALISE", usize::from(self.normalise));
        let narrow = [("weights", Operand::Output(0)), ("ids", Operand::Output(1))];
        vec![dispatches(kernel, [r, e, self.choices], 1, limits, &[("logits", Operand::Input(0))], &narrow)]
    }

    fn cost(&self, io: &Io) -> Cost {
        let e = io.inputs[0].shape.last() as u64;
        Cost { flops: (2 * e + 10) * io.inputs[0].shape.elements() as u64, bytes: io.bytes() }
    }

    fn reduction(&self, io: &Io) -> usize {
        io.inputs[0].shape.last()
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let (r, e, k) = (inputs[0].ty.shape.rows(), inputs[0].ty.shape.last(), self.choices);
        let mut weights = Array::zeros([r, k]);
        let mut ids = Array::new(TensorType::u32([r, k]), vec![0.0; r * k]);
        for (row, logits) in inputs[0].data.chunks(e).enumerate() {
            let mut order: Vec<usize> = (0..e).collect();
            order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
            let counted = if self.normalise { &order[..k] } else { &order[..] };
            let sum: f64 = counted.iter().map(|&i| (logits[i] - logits[order[0]]).exp()).sum();
            for (place, &i) in order[..k].iter().enumerate() {
                weights.data[row * k + place] = (logits[i] - logits[order[0]]).exp() / sum;
                ids.data[row * k + place] = i as f64;
            }
        }
        vec![weights, ids]
    }
}

impl Op for RouteGrad {
    fn name(&self) -> &'static str {
        "route_grad"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [logits, weights, ids, dweights] = inputs else {
            return Err("takes logits, weights, ids and dweights".into());
        };
        let [r, _] = check_logits(logits)?;
        let &[rows, k] = weights.shape.dims() else { return Err("weights must be f32 [R,k]".into()) };
        let fits = **weights == TensorType::f32([r, k]) && weights == dweights && **ids == TensorType::u32([r, k]);
        if rows != r || !fits {
            return Err("weights and dweights must be f32 [R,k], ids u32 [R,k]".into());
        }
        Ok(vec![(*logits).clone()])
    }

    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        let (r, e, k) = (io.inputs[0].shape.rows(), io.inputs[0].shape.last(), io.inputs[1].shape.last());
        let workgroup = if limits.is_cpu { 8 } else { 64 };
        let kernel = Kernel::new("route_grad", format!("lanes_{workgroup}"))
            .constant("WORKGROUP", workgroup)
            .constant("CHOICES", k)
            .constant("NORMALISE", usize::from(self.normalise));
        let wide = [("logits", Operand::Input(0)), ("dlogits", Operand::Output(0))];
        let narrow = [("weights", Operand::Input(1)), ("ids", Operand::Input(2)), ("dweights", Operand::Input(3))];
        vec![dispatches(kernel, [r, e, k], workgroup, limits, &wide, &narrow)]
    }

    fn cost(&self, io: &Io) -> Cost {
        Cost { flops: 20 * io.elements(), bytes: io.bytes() }
    }

    fn reduction(&self, io: &Io) -> usize {
        io.inputs[0].shape.last()
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let (e, k) = (inputs[0].ty.shape.last(), inputs[1].ty.shape.last());
        let mut dlogits = Array::zeros(inputs[0].ty.shape.clone());
        for (row, out) in dlogits.data.chunks_mut(e).enumerate() {
            let logits = &inputs[0].data[row * e..][..e];
            let at = |input: usize| &inputs[input].data[row * k..][..k];
            let dot: f64 = at(1).iter().zip(at(3)).map(|(w, dw)| w * dw).sum();
            if !self.normalise {
                let largest = logits.iter().copied().fold(f64::MIN, f64::max);
                let sum: f64 = logits.iter().map(|l| (l - largest).exp()).sum();
                out.iter_mut().zip(logits).for_each(|(d, l)| *d = -dot * (l - largest).exp() / sum);
            }
            for ((w, dw), &id) in at(1).iter().zip(at(3)).zip(at(2)) {
                if let Some(d) = out.get_mut(id as usize) {
                    *d = w * (dw - dot);
                }
            }
        }
        vec![dlogits]
    }
}
