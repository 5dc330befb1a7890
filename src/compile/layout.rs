//! Where everything lies: a buffer for each state, one for inputs, one for constants, and arenas for what the steps make.
//! It does not depend on which kernels are picked.

use super::flight;
use super::memory::{Block, Span, pack};
use super::place::{self, Places, Storage, is_transient, storage_bytes};
use super::plan::{BufferKind, BufferSpec, Tenant};
use super::rewrite::ids;
use crate::base::Limits;
use crate::error::{Error, Result};
use crate::graph::{Graph, Kind, NodeId, Value};
use std::collections::{BTreeMap, HashMap, HashSet};

/// The buffers of a plan, for each storage its buffer and first byte, and who lies in the arenas when.
pub(super) struct Layout {
    pub(super) buffers: Vec<BufferSpec>,
    pub(super) located: HashMap<Storage, (usize, u64)>,
    pub(super) tenants: Vec<Tenant>,
}

impl Layout {
    /// All bytes on the device.
    pub(super) fn bytes(&self) -> u64 {
        self.buffers.iter().map(|b| b.bytes).sum()
    }
}

/// When the memory of each thing that the steps make is needed; times are indices of [`order`].
pub(super) struct Lifetimes {
    pub(super) storages: Vec<Storage>,
    pub(super) blocks: Vec<Block>,
    /// Pairs that no buffer may hold both of.
    apart: HashSet<(usize, usize)>,
}

/// What stands for the scratch memory of a node's kernels.
pub(super) fn scratch(node: NodeId) -> Storage {
    Value { node, output: u32::MAX }
}

/// Bytes that the kernels of a node may take besides what they read and write.
pub(super) fn scratch_bytes(graph: &Graph, id: NodeId, limits: &Limits) -> u64 {
    let node = graph.node(id);
    node.op().map_or(0, |op| op.scratch(&place::io(graph, node), limits))
}

/// The nodes that do something, in program order.
pub(super) fn steps(graph: &Graph) -> Vec<NodeId> {
    ids(graph).filter(|&id| is_transient(graph, id) && place::view(graph, graph.node(id)).is_none()).collect()
}

/// The nodes of the plan's steps: of a collective in flight twice, as it is in use from the one to the other.
pub(super) fn order(graph: &Graph, places: &Places) -> Vec<NodeId> {
    flight::turns(graph, places).into_iter().map(|turn| turn.node).collect()
}

pub(super) fn layout(graph: &Graph, places: &Places, limits: &Limits) -> Result<Layout> {
    let mut layout = sources(graph, limits)?;
    let Lifetimes { storages, blocks, apart } =
        lifetimes(graph, places, &order(graph, places), &|id| scratch_bytes(graph, id, limits))?;
    let (regions, sizes) = pack(&blocks, &apart, limits.binding_alignment, limits.max_buffer_bytes).map_err(|i| {
        let name = &graph.node(storages[i].node).name;
        fits(name, blocks[i].bytes, limits).expect_err("a block that fits can always be placed")
    })?;
    let arenas = layout.buffers.len();
    layout.buffers.extend(sizes.into_iter().map(|bytes| BufferSpec { kind: BufferKind::Arena, bytes }));
    for ((storage, region), block) in storages.into_iter().zip(regions).zip(blocks) {
        let buffer = arenas + region.buffer;
        let tenant = |span: &Span| {
            let (name, bytes) = (graph.node(storage.node).name.clone(), span.end - span.start);
            Tenant { name, buffer, offset: region.offset + span.start, bytes, first: span.first, last: span.last }
        };
        layout.tenants.extend(block.spans.iter().map(tenant));
        layout.located.insert(storage, (buffer, region.offset));
    }
    Ok(layout)
}

/// Buffers for states (one each), inputs and constants (one for all).
pub(super) fn sources(graph: &Graph, limits: &Limits) -> Result<Layout> {
    let (mut buffers, mut located) = (Vec::new(), HashMap::new());
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
    Ok(Layout { buffers, located, tenants: Vec::new() })
}

fn fits(what: &str, wanted: u64, limits: &Limits) -> Result<()> {
    fits_buffer(what, wanted, limits, "choose a smaller model, batch or sequence")
}

/// Refuses what fits no buffer of an adapter with these limits, with what would help.
///
/// # Errors
/// If so.
pub fn fits_buffer(what: &str, wanted: u64, limits: &Limits, advice: &str) -> Result<()> {
    if wanted <= limits.max_buffer_bytes {
        return Ok(());
    }
    // The largest that is used wherever it is, or that of one adapter.
    let of = if limits.max_buffer_bytes < Limits::COUNTABLE_BYTES { "this" } else { "any" };
    Err(Error::Memory {
        what: what.to_string(),
        wanted,
        had: limits.max_buffer_bytes,
        adapter: format!("a buffer of {of} adapter"),
        advice: advice.into(),
    })
}

/// A range of a storage that a step uses.
struct Use {
    start: u64,
    end: u64,
    step: usize,
}

/// Lifetimes of everything transient: each part of a storage lives while it is used.
/// `scratch_of` tells the bytes of a node's scratch memory, which to find out takes as long as all the rest.
pub(super) fn lifetimes(
    graph: &Graph,
    places: &Places,
    steps: &[NodeId],
    scratch_of: &dyn Fn(NodeId) -> u64,
) -> Result<Lifetimes> {
    let mut index: HashMap<Storage, usize> = HashMap::new();
    let mut storages: Vec<Storage> = Vec::new();
    let mut uses: Vec<Vec<Use>> = Vec::new();
    let mut apart = HashSet::new();
    let mut own: HashMap<Storage, u64> = HashMap::new();
    for (step, &id) in steps.iter().enumerate() {
        let (reads, writes) = sides(graph, places, id);
        for &value in reads.iter().chain(&writes) {
            let storage = places[&value].storage;
            let i = *index.entry(storage).or_insert_with(|| {
                storages.push(storage);
                uses.push(Vec::new());
                uses.len() - 1
            });
            uses[i].push(used(graph, places, value, step));
        }
        for &r in &reads {
            for &w in &writes {
                let (r, w) = (index[&places[&r].storage], index[&places[&w].storage]);
                if r == w {
                    let name = graph.node(id).name.clone();
                    return Err(Error::Graph(format!("{name} reads and writes one storage")));
                }
                apart.insert((r.min(w), r.max(w)));
            }
        }
        // A stage writes what the next one reads, beside all that the node reads and writes.
        let (bytes, storage) = (scratch_of(id), scratch(id));
        if bytes > 0 {
            let i = storages.len();
            apart.extend(reads.iter().chain(&writes).map(|v| (index[&places[v].storage], i)));
            own.insert(storage, bytes);
            storages.push(storage);
            uses.push(vec![Use { start: 0, end: bytes, step }]);
        }
    }
    for (_, value) in graph.outputs() {
        if let Some(&i) = index.get(&places[value].storage) {
            uses[i].push(used(graph, places, *value, steps.len()));
        }
    }
    let block = |(&storage, uses): (&Storage, &Vec<Use>)| Block {
        bytes: own.get(&storage).copied().unwrap_or_else(|| storage_bytes(graph, storage)),
        spans: spans(uses),
    };
    let blocks = storages.iter().zip(&uses).map(block).collect();
    Ok(Lifetimes { storages, blocks, apart })
}

fn used(graph: &Graph, places: &Places, value: Value, step: usize) -> Use {
    let start = places[&value].offset;
    Use { start, end: start + graph.ty(value).bytes(), step }
}

/// The parts between the ends of all ranges, each with the time from its first use to its last; equal neighbours are one.
fn spans(uses: &[Use]) -> Vec<Span> {
    let mut ends: Vec<u64> = uses.iter().flat_map(|u| [u.start, u.end]).collect();
    ends.sort_unstable();
    ends.dedup();
    let mut spans: Vec<Span> = Vec::new();
    for pair in ends.windows(2) {
        let steps = || uses.iter().filter(|u| u.start <= pair[0] && pair[1] <= u.end).map(|u| u.step);
        let (Some(first), Some(last)) = (steps().min(), steps().max()) else { continue };
        match spans.last_mut().filter(|s| (s.end, s.first, s.last) == (pair[0], first, last)) {
            Some(span) => span.end = pair[1],
            None => spans.push(Span { start: pair[0], end: pair[1], first, last }),
        }
    }
    spans
}

/// Values in transient storage that a step reads and writes.
fn sides(graph: &Graph, places: &Places, id: NodeId) -> (Vec<Value>, Vec<Value>) {
    let node = graph.node(id);
    let transient = |v: &Value| is_transient(graph, places[v].storage.node);
    let reads = node.inputs.iter().copied().filter(transient).collect();
    let writes = graph.op_node(id).outputs.into_iter().filter(transient).collect();
    (reads, writes)
}
