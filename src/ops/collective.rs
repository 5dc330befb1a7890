//! Operators at which the ranks of one axis of a mesh meet. No kernel computes them: the executor brings the bytes to the
//! host, where ranks meet. In a backward pass each is another of them: what all have summed hands its gradient on as it
//! is, what is gathered gets the sum's part, and so on (Shoeybi et al., "Megatron-LM", 2019; Korthikanti et al., 2022).
//!
//! Legend: N ranks of the axis, P the part of a dim that a rank has. References are those of ranks that all hold the same.

use crate::base::{Array, Axis, DType, Shape, TensorType};
use crate::error::Result;
use crate::graph::{Collective, Cost, Graph, Io, Meet, Op, OpNode, Value, View};

/// An axis and how many ranks it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Along {
    /// The axis.
    pub axis: Axis,
    /// N.
    pub ranks: usize,
}

impl Along {
    fn meet(self, what: Collective) -> Option<Meet> {
        Some(Meet { what, axis: self.axis, ranks: self.ranks, part: None, last: false })
    }
}

/// Replaces a state, f32, by its sum over all ranks, the same to the bit on each. Input: the state, or a view of it. No outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SumState {
    /// Over whom.
    pub along: Along,
    /// Whether only after the last of several batches, which all add to it: [`Meet::last`].
    pub last: bool,
}

/// Puts the sum over all ranks of a state, f32 `[N·P]`, in its place, but only in the part that is this rank's; the rest
/// then means nothing. Input: the state. No outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScatterState {
    /// Over whom.
    pub along: Along,
    /// Which part is this rank's.
    pub part: usize,
    /// As of [`SumState`].
    pub last: bool,
}

/// Gives all ranks what each has in its part of a state, in equal parts of whole words: after it the state is the same on all.
/// Input: the state, `[N·P]`. No outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GatherState {
    /// Over whom.
    pub along: Along,
    /// Which part is this rank's.
    pub part: usize,
}

/// The sum over all ranks, f32 or f16 to the same, the same to the bit on each. Every rank has the whole gradient towards
/// it, which is that towards each term.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AllReduce(pub Along);

/// A value that all ranks have alike, handed to what each does its own part with: the same value. Of its gradient every rank
/// has a term; they are summed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spread(pub Along);

/// The parts of all ranks one after another along a dim: `[..,P,..]` to `[..,N·P,..]`. Of its gradient every rank has a
/// term, and gets its part of their sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AllGather {
    /// Over whom.
    pub along: Along,
    /// Which dim grows.
    pub dim: usize,
}

/// The sum over all ranks, of which each gets its part along a dim: `[..,N·P,..]` to `[..,P,..]`, f32 or f16. Its gradient
/// is gathered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReduceScatter {
    /// Over whom.
    pub along: Along,
    /// Which dim is divided.
    pub dim: usize,
}

/// Part r of the first dim goes to rank r, and what rank r sends comes in its place; so does the gradient, back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AllToAll(pub Along);

/// Sends a value to the next rank of the axis, the last to the first, and takes that of the one before; or, `back`, the
/// other way round. So it does with the gradient, against the direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shift {
    /// Over whom.
    pub along: Along,
    /// To the one before.
    pub back: bool,
}

/// Sends a value to a rank of the axis. No outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Send {
    /// Over whom.
    pub along: Along,
    /// To which of them.
    pub to: usize,
}

/// Takes what a rank of the axis sends. No inputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receive {
    /// Over whom.
    pub along: Along,
    /// From which of them.
    pub from: usize,
    /// What comes.
    pub ty: TensorType,
}

/// The one input, where it can be summed over ranks.
fn summable<'a>(inputs: &[&'a TensorType]) -> Result<&'a TensorType, String> {
    match inputs {
        [x] if matches!(x.dtype, DType::F32 | DType::F16) && x.bytes() > 0 && x.bytes().is_multiple_of(4) => Ok(x),
        _ => Err("takes one value of f32, or of f16 in whole words".into()),
    }
}

/// Elements of dim `dim` times `of`, divided by `by`.
fn resized(x: &TensorType, dim: usize, of: usize, by: usize) -> Result<TensorType, String> {
    let mut dims = x.shape.dims().to_vec();
    let Some(size) = dims.get_mut(dim) else { return Err(format!("has no dim {dim}")) };
    if *size == 0 || !size.is_multiple_of(by) {
        return Err(format!("a dim of {size} cannot be divided among {by} ranks"));
    }
    let inner: usize = x.shape.dims()[dim + 1..].iter().product();
    if !(*size / by * inner).is_multiple_of(x.dtype.block().elements) {
        return Err(format!("parts of {x} among {by} ranks are no whole words"));
    }
    *size = *size / by * of;
    Ok(TensorType { shape: dims.into(), dtype: x.dtype })
}

/// Blocks of `parts` parts along a dim, as plain loops see them: how many blocks, and elements of a part.
fn blocks(shape: &Shape, dim: usize, parts: usize) -> (usize, usize) {
    let outer: usize = shape.dims()[..dim].iter().product();
    (outer, shape.elements() / outer.max(1) / parts)
}

fn traffic(io: &Io) -> Cost {
    Cost { flops: 0, bytes: io.bytes() }
}

impl Op for SumState {
    fn name(&self) -> &'static str {
        "sum_state"
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

    fn collective(&self) -> Option<Meet> {
        let meet = self.along.meet(Collective::AllReduce)?;
        Some(Meet { last: self.last, ..meet })
    }

    fn cost(&self, io: &Io) -> Cost {
        Cost { flops: 0, bytes: 2 * io.bytes() }
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        AllReduce(self.along).reference(inputs)
    }
}

/// Checks a flat state that ranks have equal parts of.
fn parted(inputs: &[&TensorType], along: Along, part: usize) -> Result<Vec<TensorType>, String> {
    let [x] = inputs else { return Err("takes one state".into()) };
    if part >= along.ranks || x.shape.rank() != 1 {
        return Err(format!("takes a flat state, of which part {part} of {} is this rank's", along.ranks));
    }
    resized(x, 0, 1, along.ranks).map(|_| vec![])
}

impl Op for ScatterState {
    fn name(&self) -> &'static str {
        "scatter_state"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        summable(inputs).and_then(|_| parted(inputs, self.along, self.part))
    }

    fn writes(&self) -> Vec<usize> {
        vec![0]
    }

    fn collective(&self) -> Option<Meet> {
        let meet = self.along.meet(Collective::ReduceScatter { dim: 0 })?;
        Some(Meet { part: Some(self.part), last: self.last, ..meet })
    }

    fn cost(&self, io: &Io) -> Cost {
        traffic(io)
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        AllReduce(self.along).reference(inputs)
    }
}

impl Op for GatherState {
    fn name(&self) -> &'static str {
        "gather_state"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        parted(inputs, self.along, self.part)
    }

    fn writes(&self) -> Vec<usize> {
        vec![0]
    }

    fn collective(&self) -> Option<Meet> {
        let meet = self.along.meet(Collective::AllGather { dim: 0 })?;
        Some(Meet { part: Some(self.part), ..meet })
    }

    fn cost(&self, io: &Io) -> Cost {
        traffic(io)
    }

    /// Ranks that all hold the same have it all.
    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        vec![inputs[0].clone()]
    }
}

impl Op for AllReduce {
    fn name(&self) -> &'static str {
        "all_reduce"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        Ok(vec![summable(inputs)?.clone()])
    }

    fn gradient(&self, _g: &mut Graph, _node: &OpNode, dy: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        Ok(vec![dy[0]])
    }

    fn collective(&self) -> Option<Meet> {
        self.0.meet(Collective::AllReduce)
    }

    fn cost(&self, io: &Io) -> Cost {
        traffic(io)
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let data = inputs[0].data.iter().map(|x| x * self.0.ranks as f64).collect();
        vec![Array::new(inputs[0].ty.clone(), data)]
    }
}

impl Op for Spread {
    fn name(&self) -> &'static str {
        "spread"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        Ok(vec![summable(inputs)?.clone()])
    }

    fn gradient(&self, g: &mut Graph, _node: &OpNode, dy: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        let sum = dy[0].map(|dy| g.apply1(AllReduce(self.0), &[dy])).transpose()?;
        Ok(vec![sum])
    }

    fn cost(&self, _io: &Io) -> Cost {
        Cost::default()
    }

    fn view(&self, _io: &Io) -> Option<View> {
        Some(View::Slice(0))
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        vec![inputs[0].clone()]
    }
}

impl Op for AllGather {
    fn name(&self) -> &'static str {
        "all_gather"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [x] = inputs else { return Err("takes one value".into()) };
        Ok(vec![resized(x, self.dim, self.along.ranks, 1)?])
    }

    fn gradient(&self, g: &mut Graph, _node: &OpNode, dy: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        let op = ReduceScatter { along: self.along, dim: self.dim };
        Ok(vec![dy[0].map(|dy| g.apply1(op, &[dy])).transpose()?])
    }

    fn collective(&self) -> Option<Meet> {
        self.along.meet(Collective::AllGather { dim: self.dim })
    }

    fn cost(&self, io: &Io) -> Cost {
        traffic(io)
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let (x, n) = (&inputs[0], self.along.ranks);
        let (outer, part) = blocks(&x.ty.shape, self.dim, 1);
        let data = (0..outer).flat_map(|o| x.data[o * part..(o + 1) * part].repeat(n)).collect();
        let ty = resized(&x.ty, self.dim, n, 1).expect("checked when the node was made");
        vec![Array::new(ty, data)]
    }
}

impl Op for ReduceScatter {
    fn name(&self) -> &'static str {
        "reduce_scatter"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        Ok(vec![resized(summable(inputs)?, self.dim, 1, self.along.ranks)?])
    }

    fn gradient(&self, g: &mut Graph, _node: &OpNode, dy: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        let op = AllGather { along: self.along, dim: self.dim };
        Ok(vec![dy[0].map(|dy| g.apply1(op, &[dy])).transpose()?])
    }

    fn collective(&self) -> Option<Meet> {
        self.along.meet(Collective::ReduceScatter { dim: self.dim })
    }

    fn cost(&self, io: &Io) -> Cost {
        traffic(io)
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let (x, n) = (&inputs[0], self.along.ranks);
        let (outer, part) = blocks(&x.ty.shape, self.dim, n);
        let mine = |o: usize| x.data[o * n * part..][..part].iter().map(|x| x * n as f64);
        let ty = resized(&x.ty, self.dim, 1, n).expect("checked when the node was made");
        vec![Array::new(ty, (0..outer).flat_map(mine).collect())]
    }
}

impl Op for AllToAll {
    fn name(&self) -> &'static str {
        "all_to_all"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [x] = inputs else { return Err("takes one value".into()) };
        resized(x, 0, 1, self.0.ranks)?;
        Ok(vec![(*x).clone()])
    }

    fn gradient(&self, g: &mut Graph, _node: &OpNode, dy: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        Ok(vec![dy[0].map(|dy| g.apply1(*self, &[dy])).transpose()?])
    }

    fn collective(&self) -> Option<Meet> {
        self.0.meet(Collective::AllToAll)
    }

    fn cost(&self, io: &Io) -> Cost {
        traffic(io)
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let (x, n) = (&inputs[0], self.0.ranks);
        let part = x.data.len() / n;
        vec![Array::new(x.ty.clone(), x.data[..part].repeat(n))]
    }
}

impl Op for Shift {
    fn name(&self) -> &'static str {
        "shift"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        match inputs {
            [x] if x.bytes() > 0 && x.bytes().is_multiple_of(4) => Ok(vec![(*x).clone()]),
            _ => Err("takes one value in whole words".into()),
        }
    }

    fn gradient(&self, g: &mut Graph, _node: &OpNode, dy: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        let op = Shift { back: !self.back, ..*self };
        Ok(vec![dy[0].map(|dy| g.apply1(op, &[dy])).transpose()?])
    }

    fn collective(&self) -> Option<Meet> {
        self.along.meet(Collective::Shift { back: self.back })
    }

    fn cost(&self, io: &Io) -> Cost {
        traffic(io)
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        vec![inputs[0].clone()]
    }
}

impl Op for Send {
    fn name(&self) -> &'static str {
        "send"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        match inputs {
            [_] if self.to < self.along.ranks => Ok(vec![]),
            [_] => Err(format!("there is no rank {}", self.to)),
            _ => Err("takes one value".into()),
        }
    }

    fn collective(&self) -> Option<Meet> {
        self.along.meet(Collective::Send { to: self.to })
    }

    fn cost(&self, io: &Io) -> Cost {
        traffic(io)
    }

    fn reference(&self, _inputs: &[Array]) -> Vec<Array> {
        vec![]
    }
}

impl Op for Receive {
    fn name(&self) -> &'static str {
        "receive"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        match inputs {
            [] if self.from < self.along.ranks => Ok(vec![self.ty.clone()]),
            [] => Err(format!("there is no rank {}", self.from)),
            _ => Err("takes no value".into()),
        }
    }

    fn collective(&self) -> Option<Meet> {
        self.along.meet(Collective::Receive { from: self.from })
    }

    fn cost(&self, io: &Io) -> Cost {
        traffic(io)
    }

    fn reference(&self, _inputs: &[Array]) -> Vec<Array> {
        vec![Array::zeros(self.ty.shape.clone())]
    }
}
