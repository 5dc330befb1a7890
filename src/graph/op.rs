//! What an operator must say of itself.

use super::{Graph, Kernel, Value};
use crate::base::{Array, Axis, Limits, TensorType, Tolerance};
use crate::error::Result;
use serde::Serialize;
use std::any::Any;
use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

/// Types of an operator's inputs and outputs at one node.
#[derive(Debug, Clone)]
pub struct Io {
    /// Types of the inputs.
    pub inputs: Vec<TensorType>,
    /// Types of the outputs.
    pub outputs: Vec<TensorType>,
}

impl Io {
    /// Bytes of all inputs and outputs, each once: what must cross the memory bus at least.
    pub fn bytes(&self) -> u64 {
        self.inputs.iter().chain(&self.outputs).map(TensorType::bytes).sum()
    }

    /// False if an input or output fits no buffer of such an adapter, so that its elements may be beyond what kernels count.
    pub fn fits(&self, limits: &Limits) -> bool {
        self.inputs.iter().chain(&self.outputs).all(|ty| ty.bytes() <= limits.max_buffer_bytes)
    }

    /// Elements of output 0, for operators that do a fixed amount of work for each.
    pub fn elements(&self) -> u64 {
        self.outputs.first().map_or(0, |t| t.shape.elements() as u64)
    }
}

/// What a node costs on any adapter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cost {
    /// Floating-point operations; a multiply-add counts as two.
    pub flops: u64,
    /// Bytes read and written.
    pub bytes: u64,
}

/// The place of a node in its graph, handed to [`Op::gradient`] and [`Op::expand`].
#[derive(Debug, Clone)]
pub struct OpNode {
    /// Its inputs.
    pub inputs: Vec<Value>,
    /// Its outputs.
    pub outputs: Vec<Value>,
}

/// An operator that moves no data: its result is its input's memory, seen otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum View {
    /// Output 0 is input 0 from this byte offset on.
    Slice(u64),
    /// Output 0 holds every input, one at each of these byte offsets; the producers write there directly.
    Concat(Vec<u64>),
}

/// What an operator does together with the same one on the other ranks of an axis. Nothing else moves between ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Collective {
    /// Input 0 becomes its sum over all ranks: output 0, or in place, where it is a state that is written.
    AllReduce,
    /// Output 0 is input 0 of all ranks, one after another along a dim.
    AllGather {
        /// The dim.
        dim: usize,
    },
    /// Output 0 is this rank's part, along a dim, of the sum of input 0 over all ranks.
    ReduceScatter {
        /// The dim.
        dim: usize,
    },
    /// Part r of input 0's first dim goes to rank r; in its place in output 0 stands what came from there.
    AllToAll,
    /// Input 0 goes to the next rank, from the last to the first, or back; output 0 is what came.
    Shift {
        /// To the one before.
        back: bool,
    },
    /// Input 0 goes to a rank.
    Send {
        /// Which one.
        to: usize,
    },
    /// Output 0 comes from a rank.
    Receive {
        /// Which one.
        from: usize,
    },
}

impl Collective {
    /// Bytes that each of `ranks` ranks must send, given those of its input: what textbooks show to be the least.
    pub fn sent(self, bytes: u64, ranks: usize) -> u64 {
        let (n, others) = (ranks as u64, ranks as u64 - 1);
        match self {
            Collective::AllReduce => 2 * bytes * others / n,
            Collective::AllGather { .. } => bytes * others,
            Collective::ReduceScatter { .. } | Collective::AllToAll => bytes * others / n,
            Collective::Send { .. } | Collective::Shift { .. } => bytes,
            Collective::Receive { .. } => 0,
        }
    }

    /// The dim that is divided or put together.
    pub fn dim(self) -> usize {
        match self {
            Collective::AllGather { dim } | Collective::ReduceScatter { dim } => dim,
            _ => 0,
        }
    }
}

/// A collective and the ranks that take part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Meet {
    /// What they do.
    pub what: Collective,
    /// The axis along which they lie.
    pub axis: Axis,
    /// How many they are.
    pub ranks: usize,
    /// Where a state is gathered or scattered in place: which part of it is this rank's.
    pub part: Option<usize>,
    /// Of several batches that make a step they meet only after the last: in the runs before that it is left out.
    pub last: bool,
}

/// An operator of the library. Everything has a default but the name, the types and the reference; an operator has
/// either kernels, or a view, or an expansion.
pub trait Op: Any + Debug + Send + Sync {
    /// The field's name for it; shader, file, table row and test share it.
    fn name(&self) -> &'static str;

    /// Types of the outputs, or what is wrong with the inputs.
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String>;

    /// Gradients towards each input as further nodes, from the gradients `dy` towards each output (`None` where the
    /// loss does not depend on it). `None` means: no gradient flows there.
    fn gradient(&self, g: &mut Graph, node: &OpNode, dy: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        let _ = (g, dy);
        Ok(vec![None; node.inputs.len()])
    }

    /// The gradient towards rows of input `input`, a matrix, alone, where that can be had without the other rows; else
    /// `None`. What it computes of them is what [`Op::gradient`] does.
    fn gradient_rows(
        &self,
        g: &mut Graph,
        node: &OpNode,
        dy: &[Option<Value>],
        input: usize,
        rows: Range<usize>,
    ) -> Result<Option<Value>> {
        let _ = (g, node, dy, input, rows);
        Ok(None)
    }

    /// Candidates, the first of them right on every adapter.
    fn kernels(&self, io: &Io, limits: &Limits) -> Vec<Kernel> {
        let _ = (io, limits);
        Vec::new()
    }

    /// The most bytes of [`crate::graph::Operand::Scratch`] that one of its kernels wants: reserved while the node runs,
    /// whichever is chosen.
    fn scratch(&self, io: &Io, limits: &Limits) -> u64 {
        let _ = (io, limits);
        0
    }

    /// Work and traffic.
    fn cost(&self, io: &Io) -> Cost {
        Cost { flops: io.elements(), bytes: io.bytes() }
    }

    /// The outputs, and after them the new values of the inputs that [`Op::writes`] names, in f64 by plain loops.
    fn reference(&self, inputs: &[Array]) -> Vec<Array>;

    /// Inputs that are states and are updated in place.
    fn writes(&self) -> Vec<usize> {
        Vec::new()
    }

    /// Set where ranks meet: there are no kernels then, and the executor does it.
    fn collective(&self) -> Option<Meet> {
        None
    }

    /// Set where the operator moves no data.
    fn view(&self, io: &Io) -> Option<View> {
        let _ = io;
        None
    }

    /// The same as suits an adapter, where the operator leaves open of which size its parts are, or whether it has any: asked
    /// before it is expanded, and where that has no parts, in its place. A function of shapes and limits alone, so that runs
    /// repeat.
    fn fitted(&self, io: &Io, limits: &Limits) -> Option<Arc<dyn Op>> {
        let _ = (io, limits);
        None
    }

    /// Set where the operator stands for several others: they are put in its place before kernels are picked.
    fn expand(&self, g: &mut Graph, node: &OpNode) -> Result<Option<Vec<Value>>> {
        let _ = (g, node);
        Ok(None)
    }

    /// The operator whose products round their operands to f16, where it has such: what mixed precision puts in its place.
    fn narrow(&self) -> Option<Arc<dyn Op>> {
        None
    }

    /// The operator that makes output 0 alone, where that is less: what compiling puts in its place where nobody reads the others.
    fn alone(&self) -> Option<Arc<dyn Op>> {
        None
    }

    /// The input on whose elements a fused expression may be applied as they are loaded, if the kernels have that hook.
    fn prologue(&self) -> Option<usize> {
        None
    }

    /// True where the kernels can apply a fused expression to output 0 as it is stored.
    fn epilogue(&self) -> bool {
        false
    }

    /// The operator without what was fused to it, and its inputs and outputs among these; none where nothing was.
    fn bare(&self, io: &Io) -> Option<(Arc<dyn Op>, Io)> {
        let _ = io;
        None
    }

    /// Inputs that are factors of products alone and rounded to f16 on their way there, where the kernels take them in f16 as well: what
    /// stands there may be stored so, and no product differs by it.
    fn half_inputs(&self, io: &Io, limits: &Limits) -> Vec<usize> {
        let _ = (io, limits);
        Vec::new()
    }

    /// Outputs that the kernels store in f16 where their types say so, all of them or none: rounded to the nearest, ties to even.
    fn half_outputs(&self, io: &Io, limits: &Limits) -> Vec<usize> {
        let _ = (io, limits);
        Vec::new()
    }

    /// True where the kernels can apply another fused expression to output 0 at the same time, to an output of its own.
    fn second(&self, io: &Io, limits: &Limits) -> bool {
        let _ = (io, limits);
        false
    }

    /// The elementwise expression, where the operator is one: the fuser composes these.
    fn expression(&self) -> Option<&crate::graph::Expr> {
        None
    }

    /// Length of the longest sum behind one output element: the error bar grows with its root.
    fn reduction(&self, io: &Io) -> usize {
        let _ = io;
        1
    }

    /// Numbers for an input of integers in proofs, where others are random: `None` where any below 61 will do.
    fn integers(&self, input: usize, ty: &TensorType) -> Option<Vec<u32>> {
        let _ = (input, ty);
        None
    }

    /// How far results may lie from the reference's.
    fn tolerance(&self, io: &Io) -> Tolerance {
        Tolerance::f32(self.reduction(io))
    }
}
