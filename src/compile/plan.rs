//! The plan: steps, buffers and offsets as plain data, to be printed, compared, costed or run.

use super::flight::Phase;
use crate::base::{Axis, TensorType};
use crate::graph::{Collective, Cost, Hook, Scalar};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Everything that the executor needs.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    /// The buffers.
    pub buffers: Vec<BufferSpec>,
    /// The steps, in order.
    pub steps: Vec<Step>,
    /// Who lies in the arenas when.
    #[serde(skip)]
    pub tenants: Vec<Tenant>,
    /// What the host writes before each run.
    pub inputs: Vec<Wire>,
    /// What the host may read after each run.
    pub outputs: Vec<Wire>,
    /// What is uploaded once.
    #[serde(skip)]
    pub constants: Vec<(Wire, Arc<[u8]>)>,
}

/// What a buffer is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "kind", content = "name")]
pub enum BufferKind {
    /// Written by the host before each run.
    Input,
    /// Uploaded once.
    Constant,
    /// Scratch of this plan.
    Arena,
    /// Shared by all plans that name it.
    State(String),
}

/// A buffer to allocate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BufferSpec {
    /// What it is for.
    #[serde(flatten)]
    pub kind: BufferKind,
    /// Its size.
    pub bytes: u64,
}

/// Something that steps make, at its place in an arena for as long as it is needed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Tenant {
    /// Path of the node that makes it.
    pub name: String,
    /// Index of its buffer.
    pub buffer: usize,
    /// First byte in that buffer.
    pub offset: u64,
    /// Bytes.
    pub bytes: u64,
    /// The first step that writes it.
    pub first: usize,
    /// The last step that reads or writes it; the number of steps where the caller reads it.
    pub last: usize,
}

/// A named tensor at its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Wire {
    /// The name that the graph gave it.
    pub name: String,
    /// Its type.
    pub ty: TensorType,
    /// Index of its buffer.
    pub buffer: usize,
    /// First byte in that buffer.
    pub offset: u64,
}

/// One kernel at work.
#[derive(Debug, Clone, Serialize)]
pub struct Step {
    /// The node's path.
    pub name: String,
    /// The operator.
    pub op: &'static str,
    /// The candidate that was picked.
    pub variant: String,
    /// The shader.
    pub shader: &'static str,
    /// Its header.
    pub constants: Vec<(&'static str, u32)>,
    /// Fused expressions.
    #[serde(skip)]
    pub hooks: Vec<Hook>,
    /// Types of what it reads.
    pub inputs: Vec<TensorType>,
    /// Types of what it makes.
    pub outputs: Vec<TensorType>,
    /// Its dispatches.
    pub dispatches: Vec<PlanDispatch>,
    /// Where ranks meet instead: what they do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub meeting: Option<Meeting>,
    /// Work and traffic.
    pub flops: u64,
    /// Bytes that it reads and writes.
    pub bytes: u64,
}

impl Step {
    /// All that it binds.
    pub fn bindings(&self) -> impl Iterator<Item = &Binding> {
        let own = self.dispatches.iter().flat_map(|d| &d.bindings);
        own.chain(self.meeting.iter().flat_map(|m| m.read.iter().chain(&m.written)))
    }
}

/// A step at which ranks of an axis meet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Meeting {
    /// What they do.
    pub what: Collective,
    /// Along which axis.
    pub axis: Axis,
    /// How many they are.
    pub ranks: usize,
    /// What this rank gives. Where a state is summed in place, `written` is the same range, or a part of it.
    pub read: Option<Binding>,
    /// What it gets.
    pub written: Option<Binding>,
    /// Product of the sizes before the dim that is divided or put together: so many blocks lie one after another.
    pub blocks: u64,
    /// Bytes that this rank sends: [`Collective::sent`].
    pub sent: u64,
    /// They meet after the last of several batches only: [`crate::graph::Meet::last`].
    pub last: bool,
    /// What this step is of it.
    pub phase: Phase,
}

/// One dispatch with everything resolved.
#[derive(Debug, Clone, Serialize)]
pub struct PlanDispatch {
    /// Shader variables and the ranges behind them.
    pub bindings: Vec<Binding>,
    /// Fields of `Params`.
    pub params: Vec<(&'static str, Scalar)>,
    /// Workgroups.
    pub workgroups: [u32; 3],
}

/// A shader variable and the range of a buffer behind it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Binding {
    /// The variable.
    pub name: String,
    /// Index of the buffer.
    pub buffer: usize,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub bytes: u64,
    /// True where the step writes it.
    pub written: bool,
}

/// What one run of a plan sends along an axis.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Sent {
    /// Times that its ranks meet.
    pub meetings: usize,
    /// Bytes that this rank sends.
    pub bytes: u64,
}

/// Sums over a plan.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Steps.
    pub steps: usize,
    /// Dispatches.
    pub dispatches: usize,
    /// Floating-point operations of one run.
    pub flops: u64,
    /// Bytes read and written by one run.
    pub traffic: u64,
    /// Device bytes of scratch.
    pub arena_bytes: u64,
    /// Device bytes of states.
    pub state_bytes: u64,
    /// Device bytes of inputs and constants.
    pub other_bytes: u64,
}

impl Totals {
    /// All bytes of tensors on the device: what the executor allocates for them, to the byte. Each kernel's parameters (a
    /// few dozen bytes) and the buffers that carry inputs and outputs come on top.
    pub fn device_bytes(&self) -> u64 {
        self.arena_bytes + self.state_bytes + self.other_bytes
    }
}

impl Plan {
    /// Sums over all steps and buffers.
    pub fn totals(&self) -> Totals {
        let mut t = Totals { steps: self.steps.len(), ..Totals::default() };
        for step in &self.steps {
            t.dispatches += step.dispatches.len();
            t.flops += step.flops;
            t.traffic += step.bytes;
        }
        for buffer in &self.buffers {
            *match buffer.kind {
                BufferKind::Arena => &mut t.arena_bytes,
                BufferKind::State(_) => &mut t.state_bytes,
                _ => &mut t.other_bytes,
            } += buffer.bytes;
        }
        t
    }

    /// What one run sends along each axis on which its ranks meet.
    pub fn sent(&self) -> BTreeMap<Axis, Sent> {
        let mut all: BTreeMap<Axis, Sent> = BTreeMap::new();
        let meetings = self.steps.iter().filter_map(|s| s.meeting.as_ref());
        for meeting in meetings.filter(|m| m.phase != Phase::End) {
            let sent = all.entry(meeting.axis).or_default();
            *sent = Sent { meetings: sent.meetings + 1, bytes: sent.bytes + meeting.sent };
        }
        all
    }

    /// The states that a run of it changes, and their bytes, in the order of its buffers: what a run of training is, and
    /// what has to be kept of it.
    pub fn written_states(&self) -> Vec<(&str, u64)> {
        let bindings = self.steps.iter().flat_map(Step::bindings);
        let written: BTreeSet<usize> = bindings.filter(|b| b.written).map(|b| b.buffer).collect();
        let state = |i: usize| match &self.buffers[i].kind {
            BufferKind::State(name) => Some((name.as_str(), self.buffers[i].bytes)),
            _ => None,
        };
        written.into_iter().filter_map(state).collect()
    }

    /// Work and traffic of one run.
    pub fn cost(&self) -> Cost {
        let t = self.totals();
        Cost { flops: t.flops, bytes: t.traffic }
    }
}
