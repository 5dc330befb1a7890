//! Where everything lies: a buffer for each state, one for inputs, one for constants, and arenas for what the steps make.
//! It does not depend on which kernels are picked.

use super::memory::{Block, pack};
use super::place::{self, Places, Storage, is_transient, storage_bytes};
use super::plan::{BufferKind, BufferSpec};
use super::rewrite::ids;
use crate::base::Limits;
use crate::error::{Error, Result};
use crate::graph::{Graph, Kind, NodeId, Value};
use std::collections::{BTreeMap, HashMap, HashSet};

/// The buffers of a plan, and for each storage its buffer and first byte.
pub(super) struct Layout {
    pub(super) buffers: Vec<BufferSpec>,
    pub(super) located: HashMap<Storage, (usize, u64)>,
}

impl Layout {
    /// All bytes on the device.
    pub(super) fn bytes(&self) -> u64 {
        self.buffers.iter().map(|b| b.bytes).sum()
    }
}

/// When the memory of each thing that the steps make is needed; times are indices of [`steps`].
pub(super) struct Lifetimes {
    pub(super) storages: Vec<Storage>,
    pub(super) blocks: Vec<Block>,
    /// Pairs that no buffer may hold both of.
    apart: HashSet<(usize, usize)>,
}

/// The nodes that are steps of the plan, in order.
pub(super) fn steps(graph: &Graph) -> Vec<NodeId> {
    ids(graph).filter(|&id| is_transient(graph, id) && place::view(graph, graph.node(id)).is_none()).collect()
}

pub(super) fn layout(graph: &Graph, places: &Places, limits: &Limits) -> Result<Layout> {
    let mut layout = sources(graph, limits)?;
    let Lifetimes { storages, blocks, apart } = lifetimes(graph, places, &steps(graph))?;
    let (regions, sizes) = pack(&blocks, &apart, limits.binding_alignment, limits.max_buffer_bytes).map_err(|i| {
        let name = &graph.node(storages[i].node).name;
        fits(name, blocks[i].bytes, limits).expect_err("a block that fits can always be placed")
    })?;
    let first = layout.buffers.len();
    layout.buffers.extend(sizes.into_iter().map(|bytes| BufferSpec { kind: BufferKind::Arena, bytes }));
    for (storage, region) in storages.into_iter().zip(regions) {
        layout.located.insert(storage, (first + region.buffer, region.offset));
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
    Ok(Layout { buffers, located })
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

/// Lifetimes of everything transient.
pub(super) fn lifetimes(graph: &Graph, places: &Places, steps: &[NodeId]) -> Result<Lifetimes> {
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
    Ok(Lifetimes { storages, blocks, apart })
}

/// Transient storages that a step reads and writes.
fn sides(graph: &Graph, places: &Places, id: NodeId) -> (Vec<Storage>, Vec<Storage>) {
    let node = graph.node(id);
    let transient = |v: Value| Some(places[&v].storage).filter(|s| is_transient(graph, s.node));
    let reads = node.inputs.iter().filter_map(|&v| transient(v)).collect();
    let writes = graph.op_node(id).outputs.into_iter().filter_map(transient).collect();
    (reads, writes)
}
