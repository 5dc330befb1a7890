//! Nodes → steps: picks a kernel for each and resolves its operands to places in buffers.

use super::memory::{Block, pack};
use super::place::{self, Place, Places, Storage, is_transient, storage_bytes};
use super::plan::{Binding, BufferKind, BufferSpec, Plan, PlanDispatch, Step, Wire};
use super::rewrite::ids;
use crate::base::Limits;
use crate::error::{Error, Result};
use crate::graph::{Graph, Io, Kernel, Kind, NodeId, Op, Operand, Value};
use std::collections::{BTreeMap, HashMap, HashSet};

/// Picks among the candidates of a step.
pub trait Chooser {
    /// Index of the kernel to use; `kernels` is not empty.
    fn choose(&mut self, op: &dyn Op, io: &Io, kernels: &[Kernel]) -> usize;
}

/// Picks the first candidate, which is right on every adapter.
#[derive(Debug, Clone, Copy, Default)]
pub struct First;

impl Chooser for First {
    fn choose(&mut self, _op: &dyn Op, _io: &Io, _kernels: &[Kernel]) -> usize {
        0
    }
}

/// A place in a buffer of the plan.
type Located = HashMap<Storage, (usize, u64)>;

pub(super) fn lower(graph: &Graph, places: &Places, limits: &Limits, chooser: &mut dyn Chooser) -> Result<Plan> {
    let steps: Vec<NodeId> =
        ids(graph).filter(|&id| is_transient(graph, id) && place::view(graph, graph.node(id)).is_none()).collect();
    let mut buffers = Vec::new();
    let mut located = sources(graph, limits, &mut buffers)?;
    arena(graph, places, &steps, limits, &mut buffers, &mut located)?;
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
    for id in steps {
        states_are_apart(graph, places, id)?;
        plan.steps.push(step(graph, id, limits, chooser, &at)?);
    }
    Ok(plan)
}

/// Buffers for states (one each), inputs and constants (one for all).
fn sources(graph: &Graph, limits: &Limits, buffers: &mut Vec<BufferSpec>) -> Result<Located> {
    let mut located = Located::new();
    let mut shared: BTreeMap<u8, usize> = BTreeMap::new();
    for id in ids(graph) {
        let node = graph.node(id);
        let value = Value { node: id, output: 0 };
        let bytes = node.outputs.first().map_or(0, |t| t.bytes());
        let (key, kind) = match node.kind {
            Kind::Op(_) => continue,
            Kind::State => {
                located.insert(value, (buffers.len(), 0));
                buffers.push(BufferSpec { kind: BufferKind::State(node.name.clone()), bytes });
                fits(&node.name, bytes, limits)?;
                continue;
            }
            Kind::Input => (0, BufferKind::Input),
            Kind::Constant(_) => (1, BufferKind::Constant),
        };
        let buffer = *shared.entry(key).or_insert_with(|| {
            buffers.push(BufferSpec { kind, bytes: 0 });
            buffers.len() - 1
        });
        let offset = buffers[buffer].bytes.next_multiple_of(limits.binding_alignment);
        buffers[buffer].bytes = offset + bytes;
        located.insert(value, (buffer, offset));
        fits(&node.name, buffers[buffer].bytes, limits)?;
    }
    Ok(located)
}

fn fits(what: &str, wanted: u64, limits: &Limits) -> Result<()> {
    if wanted <= limits.max_buffer_bytes {
        return Ok(());
    }
    Err(Error::Memory {
        what: what.to_string(),
        wanted,
        had: limits.max_buffer_bytes,
        adapter: "a buffer of this adapter".into(),
        advice: "choose a smaller model, batch or sequence".into(),
    })
}

/// Lifetimes of everything transient, and its places in arenas.
fn arena(
    graph: &Graph,
    places: &Places,
    steps: &[NodeId],
    limits: &Limits,
    buffers: &mut Vec<BufferSpec>,
    located: &mut Located,
) -> Result<()> {
    let mut index: HashMap<Storage, usize> = HashMap::new();
    let mut storages: Vec<Storage> = Vec::new();
    let mut blocks: Vec<Block> = Vec::new();
    let mut apart = HashSet::new();
    for (step, &id) in steps.iter().enumerate() {
        let (reads, writes) = sides(graph, places, id);
        for &storage in reads.iter().chain(&writes) {
            let i = *index.entry(storage).or_insert_with(|| {
                storages.push(storage);
                blocks.push(Block { bytes: storage_bytes(graph, storage), first: step, last: step });
                blocks.len() - 1
            });
            blocks[i].last = step;
        }
        for &r in &reads {
            for &w in &writes {
                let (r_index, w_index) = (index[&r], index[&w]);
                if r == w {
                    let name = graph.node(id).name.clone();
                    return Err(Error::Graph(format!("{name} reads and writes one storage")));
                }
                apart.insert((r_index.min(w_index), r_index.max(w_index)));
            }
        }
    }
    for (_, value) in graph.outputs() {
        if let Some(&i) = index.get(&places[value].storage) {
            blocks[i].last = steps.len();
        }
    }
    let (regions, sizes) = pack(&blocks, &apart, limits.binding_alignment, limits.max_buffer_bytes).map_err(|i| {
        let name = &graph.node(storages[i].node).name;
        fits(name, blocks[i].bytes, limits).expect_err("a block that fits can always be placed")
    })?;
    let first = buffers.len();
    buffers.extend(sizes.into_iter().map(|bytes| BufferSpec { kind: BufferKind::Arena, bytes }));
    for (storage, region) in storages.into_iter().zip(regions) {
        located.insert(storage, (first + region.buffer, region.offset));
    }
    Ok(())
}

/// Transient storages that a step reads and writes.
fn sides(graph: &Graph, places: &Places, id: NodeId) -> (Vec<Storage>, Vec<Storage>) {
    let node = graph.node(id);
    let transient = |v: Value| Some(places[&v].storage).filter(|s| is_transient(graph, s.node));
    let reads = node.inputs.iter().filter_map(|&v| transient(v)).collect();
    let writes = graph.op_node(id).outputs.into_iter().filter_map(transient).collect();
    (reads, writes)
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

fn step(
    graph: &Graph,
    id: NodeId,
    limits: &Limits,
    chooser: &mut dyn Chooser,
    at: &dyn Fn(Value) -> (usize, u64),
) -> Result<Step> {
    let node = graph.node(id);
    let op = node.op().expect("a step is an operator");
    let io = place::io(graph, node);
    let mut kernels = op.kernels(&io, limits);
    if kernels.is_empty() {
        return Err(Error::Graph(format!("{} at {} has no kernel for this adapter", op.name(), node.name)));
    }
    let picked = if kernels.len() == 1 { 0 } else { chooser.choose(op.as_ref(), &io, &kernels) };
    let kernel = kernels.swap_remove(picked.min(kernels.len() - 1));
    let in_place = op.writes();
    let resolve = |b: &crate::graph::Bind| {
        let (value, written) = match b.operand {
            Operand::Input(i) => (node.inputs[i], in_place.contains(&i)),
            Operand::Output(i) => (Value { node: id, output: i as u32 }, true),
        };
        let (buffer, offset) = at(value);
        Binding { name: b.name.clone(), buffer, offset: offset + b.offset, bytes: b.bytes, written }
    };
    let dispatches = kernel
        .dispatches
        .iter()
        .map(|d| PlanDispatch {
            bindings: d.bindings.iter().map(resolve).collect(),
            params: d.params.clone(),
            workgroups: d.workgroups,
        })
        .collect();
    let cost = op.cost(&io);
    Ok(Step {
        name: node.name.clone(),
        op: op.name(),
        variant: kernel.variant,
        shader: kernel.shader,
        constants: kernel.constants,
        hooks: kernel.hooks,
        inputs: io.inputs,
        outputs: io.outputs,
        dispatches,
        flops: cost.flops,
        bytes: cost.bytes,
    })
}
