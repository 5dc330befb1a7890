//! Nodes → steps: picks a kernel for each and resolves its operands to places in buffers.

use super::flight::{self, Phase, Turn};
use super::layout::{self, Layout};
use super::place::{self, Place, Places};
use super::plan::{Binding, Meeting, Plan, PlanDispatch, Step, Wire};
use super::rewrite::ids;
use crate::base::Limits;
use crate::error::{Error, Result};
use crate::graph::{Collective, Graph, Io, Kernel, Kind, Meet, NodeId, Op, Operand, Value};
use std::pin::Pin;
use std::sync::Arc;

/// Picks among the candidates of a step.
pub trait Chooser {
    /// Index of the kernel to use; `kernels` is not empty. Waits for nothing: what would have to be measured first is
    /// answered as well as is known, and left to [`Chooser::learn`].
    fn choose(&mut self, op: &Arc<dyn Op>, io: &Io, kernels: &[Kernel]) -> usize;

    /// Finds out what the choices since the last call lacked. True if some of them would now be others.
    fn learn(&mut self) -> Learning<'_> {
        Box::pin(std::future::ready(false))
    }
}

/// What [`Chooser::learn`] is doing.
pub type Learning<'a> = Pin<Box<dyn Future<Output = bool> + 'a>>;

/// Has something made with a chooser, and once more where the chooser then had to learn first, as when a tuner measures
/// kernels on a device. Whatever waits for a device waits here and nowhere in the compiler.
///
/// # Errors
/// Those of `make`.
pub async fn settle<T>(chooser: &mut dyn Chooser, mut make: impl FnMut(&mut dyn Chooser) -> Result<T>) -> Result<T> {
    loop {
        let made = make(chooser)?;
        if !chooser.learn().await {
            return Ok(made);
        }
    }
}

/// Picks the first candidate, which is right on every adapter.
#[derive(Debug, Clone, Copy, Default)]
pub struct First;

impl Chooser for First {
    fn choose(&mut self, _op: &Arc<dyn Op>, _io: &Io, _kernels: &[Kernel]) -> usize {
        0
    }
}

pub(super) fn lower(graph: &Graph, places: &Places, limits: &Limits, chooser: &mut dyn Chooser) -> Result<Plan> {
    let Layout { buffers, located, tenants } = layout::layout(graph, places, limits)?;
    let at = |value: Value| -> (usize, u64) {
        let Place { storage, offset } = places[&value];
        let (buffer, base) = located[&storage];
        (buffer, base + offset)
    };
    let wire = |name: &str, value: Value| {
        let (buffer, offset) = at(value);
        Wire { name: name.to_string(), ty: graph.ty(value).clone(), buffer, offset }
    };
    let mut plan = Plan {
        buffers,
        steps: Vec::new(),
        tenants,
        inputs: Vec::new(),
        outputs: graph.outputs().iter().map(|(name, v)| wire(name, *v)).collect(),
        constants: Vec::new(),
    };
    for id in ids(graph) {
        let node = graph.node(id);
        let value = Value { node: id, output: 0 };
        match &node.kind {
            Kind::Input => plan.inputs.push(wire(&node.name, value)),
            Kind::Constant(bytes) => plan.constants.push((wire(&node.name, value), bytes.clone())),
            _ => {}
        }
    }
    for turn in flight::turns(graph, places) {
        states_are_apart(graph, places, turn.node)?;
        let scratch = located.get(&layout::scratch(turn.node)).copied();
        plan.steps.extend(node_steps(graph, turn, limits, chooser, (&at, scratch))?);
    }
    Ok(plan)
}

/// A state may not be read through one binding and written through another, even on disjoint ranges.
fn states_are_apart(graph: &Graph, places: &Places, id: NodeId) -> Result<()> {
    let node = graph.node(id);
    let writes = node.op().map(|op| op.writes()).unwrap_or_default();
    let storage = |i: usize| places[&node.inputs[i]].storage;
    let mut reads = (0..node.inputs.len()).filter(|i| !writes.contains(i));
    match reads.find(|&r| writes.iter().any(|&w| storage(w) == storage(r))) {
        None => Ok(()),
        Some(r) => Err(Error::Graph(format!(
            "{} reads the state {} while it writes it: copy what it reads first",
            node.name,
            graph.node(storage(r).node).name
        ))),
    }
}

/// Where a value lies, and the node's scratch memory.
type At<'a> = (&'a dyn Fn(Value) -> (usize, u64), Option<(usize, u64)>);

/// A step for each stage of the kernel that is picked; among these the node's work is shared out.
fn node_steps(
    graph: &Graph,
    Turn { node: id, phase }: Turn,
    limits: &Limits,
    chooser: &mut dyn Chooser,
    (at, scratch): At,
) -> Result<Vec<Step>> {
    let node = graph.node(id);
    let op = node.op().expect("a step is an operator");
    let io = place::io(graph, node);
    let cost = op.cost(&io);
    if let Some(meet) = op.collective() {
        let meeting = Meeting { phase, ..meeting(graph, id, meet, &at, &io) };
        let bytes = if phase == Phase::End { 0 } else { cost.bytes };
        return Ok(vec![Step {
            name: node.name.clone(),
            op: op.name(),
            variant: String::new(),
            shader: "",
            constants: Vec::new(),
            hooks: Vec::new(),
            inputs: io.inputs,
            outputs: io.outputs,
            dispatches: Vec::new(),
            meeting: Some(meeting),
            flops: 0,
            bytes,
        }]);
    }
    let mut kernels = op.kernels(&io, limits);
    if kernels.is_empty() {
        return Err(Error::Graph(format!("{} at {} has no kernel for this adapter", op.name(), node.name)));
    }
    let picked = if kernels.len() == 1 { 0 } else { chooser.choose(op, &io, &kernels) };
    let kernel = kernels.swap_remove(picked.min(kernels.len() - 1));
    let in_place = op.writes();
    let (flops, bytes) = (kernel.shares(cost.flops), kernel.traffic(cost.bytes));
    let resolve = |b: &crate::graph::Bind, stage: usize| {
        let ((buffer, offset), written) = match b.operand {
            Operand::Input(i) => (at(node.inputs[i]), in_place.contains(&i)),
            Operand::Output(i) => (at(Value { node: id, output: i as u32 }), true),
            // Stages hand on by it what they make: the last one only reads.
            Operand::Scratch => (scratch.expect("its operator says that it wants some"), stage + 1 < flops.len()),
        };
        Binding { name: b.name.clone(), buffer, offset: offset + b.offset, bytes: b.bytes, written }
    };
    let step = |(i, stage): (usize, &Kernel)| Step {
        name: if i == 0 { node.name.clone() } else { format!("{}.{}", node.name, stage.variant) },
        op: op.name(),
        variant: stage.variant.clone(),
        shader: stage.shader,
        constants: stage.constants.clone(),
        hooks: stage.hooks.clone(),
        inputs: io.inputs.clone(),
        outputs: io.outputs.clone(),
        dispatches: stage
            .dispatches
            .iter()
            .map(|d| PlanDispatch {
                bindings: d.bindings.iter().map(|b| resolve(b, i)).collect(),
                params: d.params.clone(),
                workgroups: d.workgroups,
            })
            .collect(),
        meeting: None,
        flops: flops[i],
        bytes: bytes[i],
    };
    Ok(kernel.stages().enumerate().map(step).collect())
}

/// A collective with its ranges resolved.
fn meeting(graph: &Graph, id: NodeId, meet: Meet, at: &dyn Fn(Value) -> (usize, u64), io: &Io) -> Meeting {
    let node = graph.node(id);
    let in_place = node.op().is_some_and(|op| !op.writes().is_empty());
    let binding = |name: &str, value: Value, written| {
        let ((buffer, offset), bytes) = (at(value), graph.ty(value).bytes());
        Binding { name: name.into(), buffer, offset, bytes, written }
    };
    let input = node.inputs.first().copied();
    let output = if in_place { input } else { graph.op_node(id).outputs.first().copied() };
    // A state in place: what this rank gives to be gathered is its part of it, and what it gets of what is scattered.
    let scatters = matches!(meet.what, Collective::ReduceScatter { .. });
    let part = |whole: Binding| match meet.part {
        Some(part) if scatters == whole.written => {
            let bytes = whole.bytes / meet.ranks as u64;
            Binding { offset: whole.offset + part as u64 * bytes, bytes, ..whole }
        }
        _ => whole,
    };
    let read = input.map(|v| part(binding("x", v, false)));
    let blocks = |dims: &[usize]| dims[..meet.what.dim()].iter().product::<usize>() as u64;
    Meeting {
        what: meet.what,
        axis: meet.axis,
        ranks: meet.ranks,
        sent: meet.what.sent(read.as_ref().map_or(0, |b| b.bytes), meet.ranks),
        read,
        written: output.map(|v| part(binding("y", v, true))),
        last: meet.last,
        phase: Phase::Whole,
        blocks: io.inputs.first().map_or(1, |ty| blocks(ty.shape.dims())),
    }
}
