//! Runs graphs, and plans, on the host in f64 through the operators' references: what compilation must not change.
//! It knows no shader; a plan's numbers move through the plan's own buffers and offsets.

use danlu::base::{Array, Limits};
use danlu::compile::{BufferKind, Plan, optimise};
use danlu::graph::{Graph, Io, Kind, Node, NodeId, Operand, Value, View};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// What the host provides: inputs and states, by name.
pub type Feed = BTreeMap<String, Array>;

fn io(graph: &Graph, node: &Node) -> Io {
    Io { inputs: node.inputs.iter().map(|&v| graph.ty(v).clone()).collect(), outputs: node.outputs.clone() }
}

fn constant(graph: &Graph, id: NodeId, bytes: &[u8]) -> Array {
    Array::from_bytes(graph.node(id).outputs[0].clone(), bytes)
}

/// A graph's outputs and the states after it, in program order. A slice is an alias: it sees what was written to its
/// state before it is read.
pub fn run_graph(graph: &Graph, feed: &Feed) -> Feed {
    let mut values: HashMap<Value, Array> = HashMap::new();
    let mut states = Feed::new();
    for (i, node) in graph.nodes().iter().enumerate() {
        let id = NodeId(i as u32);
        let made = Value { node: id, output: 0 };
        match &node.kind {
            Kind::Input => drop(values.insert(made, feed[&node.name].clone())),
            Kind::State => drop(states.insert(node.name.clone(), feed[&node.name].clone())),
            Kind::Constant(bytes) => drop(values.insert(made, constant(graph, id, bytes))),
            Kind::Op(op) if matches!(op.view(&io(graph, node)), Some(View::Slice(_))) => {}
            Kind::Op(op) => {
                let inputs: Vec<Array> = node.inputs.iter().map(|&v| look(graph, &values, &states, v)).collect();
                let mut results = op.reference(&inputs).into_iter();
                for output in 0..node.outputs.len() as u32 {
                    values.insert(Value { node: id, output }, results.next().expect("an array for each output"));
                }
                for (w, new) in op.writes().into_iter().zip(results) {
                    write_state(graph, &mut states, node.inputs[w], &new);
                }
            }
        }
    }
    for (name, value) in graph.outputs() {
        states.insert(format!("output {name}"), look(graph, &values, &states, *value));
    }
    states
}

/// The value now, seen through slices.
fn look(graph: &Graph, values: &HashMap<Value, Array>, states: &Feed, value: Value) -> Array {
    let node = graph.node(value.node);
    match &node.kind {
        Kind::State => states[&node.name].clone(),
        Kind::Op(op) if matches!(op.view(&io(graph, node)), Some(View::Slice(_))) => {
            op.reference(&[look(graph, values, states, node.inputs[0])]).remove(0)
        }
        _ => values[&value].clone(),
    }
}

fn write_state(graph: &Graph, states: &mut Feed, value: Value, new: &Array) {
    let (mut at, mut start) = (value, 0);
    loop {
        let node = graph.node(at.node);
        let Kind::Op(op) = &node.kind else { break };
        let Some(View::Slice(offset)) = op.view(&io(graph, node)) else { panic!("{} writes no state", node.name) };
        start += offset as usize / 4;
        at = node.inputs[0];
    }
    let state = states.get_mut(&graph.node(at.node).name).expect("a state");
    state.data[start..start + new.data.len()].copy_from_slice(&new.data);
}

/// The same through the plan: every number is read and written where the plan says, scratch starts as NaN. Fails where
/// a dispatch breaks a rule of WebGPU's.
pub fn run_plan(graph: &Graph, plan: &Plan, limits: &Limits, feed: &Feed) -> Result<Feed, String> {
    run_steps(&optimise(graph, limits).map_err(|e| e.to_string())?, plan, limits, feed)
}

/// [`run_plan`] of a graph whose nodes are the plan's steps.
pub fn run_steps(optimised: &Graph, plan: &Plan, limits: &Limits, feed: &Feed) -> Result<Feed, String> {
    let mut memory: Vec<Vec<f64>> = plan.buffers.iter().map(|b| vec![f64::NAN; b.bytes as usize / 4]).collect();
    let store = |memory: &mut Vec<Vec<f64>>, buffer: usize, offset: u64, data: &[f64]| {
        let at = offset as usize / 4;
        memory[buffer][at..at + data.len()].copy_from_slice(data);
    };
    for (i, buffer) in plan.buffers.iter().enumerate() {
        if let BufferKind::State(name) = &buffer.kind {
            store(&mut memory, i, 0, &feed[name].data);
        }
    }
    for wire in &plan.inputs {
        store(&mut memory, wire.buffer, wire.offset, &feed[&wire.name].data);
    }
    for (wire, bytes) in &plan.constants {
        store(&mut memory, wire.buffer, wire.offset, &Array::from_bytes(wire.ty.clone(), bytes).data);
    }
    let nodes = optimised.nodes().iter().filter(|n| n.op().is_some_and(|op| op.view(&io(optimised, n)).is_none()));
    let nodes: Vec<&Node> = nodes.collect();
    if nodes.len() != plan.steps.len() {
        return Err(format!("{} steps for {} nodes", plan.steps.len(), nodes.len()));
    }
    for (node, step) in nodes.into_iter().zip(&plan.steps) {
        let op = node.op().expect("an operator");
        let io = io(optimised, node);
        let kernel = &op.kernels(&io, limits)[0];
        let mut inputs: Vec<Vec<f64>> = io.inputs.iter().map(|t| vec![f64::NAN; t.shape.elements()]).collect();
        let mut places = Vec::new();
        for (planned, dispatch) in step.dispatches.iter().zip(&kernel.dispatches) {
            bindings_are_legal(plan, planned, limits).map_err(|e| format!("{}: {e}", step.name))?;
            for (bind, at) in dispatch.bindings.iter().zip(&planned.bindings) {
                let (from, count, to) = (at.offset as usize / 4, at.bytes as usize / 4, bind.offset as usize / 4);
                if let Operand::Input(k) = bind.operand {
                    inputs[k][to..to + count].copy_from_slice(&memory[at.buffer][from..from + count]);
                }
                places.push((bind.operand, to, count, at.buffer, from));
            }
        }
        let arrays = inputs.into_iter().zip(&io.inputs).map(|(data, ty)| Array::new(ty.clone(), data));
        let results = op.reference(&arrays.collect::<Vec<_>>());
        let outputs = (0..io.outputs.len()).map(Operand::Output);
        let targets = outputs.chain(op.writes().into_iter().map(Operand::Input));
        for (target, result) in targets.zip(&results) {
            for (_, to, count, buffer, from) in places.iter().filter(|p| p.0 == target) {
                memory[*buffer][*from..from + count].copy_from_slice(&result.data[*to..to + count]);
            }
        }
    }
    let mut results = Feed::new();
    for wire in &plan.outputs {
        let at = wire.offset as usize / 4;
        let data = memory[wire.buffer][at..at + wire.ty.shape.elements()].to_vec();
        results.insert(format!("output {}", wire.name), Array::new(wire.ty.clone(), data));
    }
    for (buffer, data) in plan.buffers.iter().zip(memory) {
        if let BufferKind::State(name) = &buffer.kind {
            results.insert(name.clone(), Array::new(feed[name].ty.clone(), data));
        }
    }
    Ok(results)
}

/// Within the buffer, aligned, few enough; no buffer both read and written; no two written ranges that overlap.
fn bindings_are_legal(plan: &Plan, dispatch: &danlu::compile::PlanDispatch, limits: &Limits) -> Result<(), String> {
    let side = |written| -> BTreeSet<usize> {
        dispatch.bindings.iter().filter(|b| b.written == written).map(|b| b.buffer).collect()
    };
    if let Some(buffer) = side(true).intersection(&side(false)).next() {
        return Err(format!("buffer {buffer} is bound for reading and for writing"));
    }
    let written: Vec<_> = dispatch.bindings.iter().filter(|b| b.written).collect();
    for (i, a) in written.iter().enumerate() {
        for b in &written[..i] {
            if a.buffer == b.buffer && a.offset < b.offset + b.bytes && b.offset < a.offset + a.bytes {
                return Err(format!("{} and {} overlap", a.name, b.name));
            }
        }
    }
    for b in &dispatch.bindings {
        if b.offset % limits.binding_alignment != 0 || b.offset + b.bytes > plan.buffers[b.buffer].bytes {
            return Err(format!("{} at {}+{} is not aligned or beyond its buffer", b.name, b.offset, b.bytes));
        }
    }
    if dispatch.bindings.len() > limits.max_storage_bindings as usize {
        return Err(format!("{} bindings", dispatch.bindings.len()));
    }
    Ok(())
}

/// `Ok` where every result of `expected` that `got` has is the same to f64 rounding; `got` must have every output.
pub fn same(got: &Feed, expected: &Feed) -> Result<(), String> {
    for (name, e) in expected {
        let Some(g) = got.get(name) else {
            if name.starts_with("output ") {
                return Err(format!("{name} is missing"));
            }
            continue;
        };
        for (i, (a, b)) in g.data.iter().zip(&e.data).enumerate() {
            let equal = (a - b).abs() <= 1e-9 * b.abs().max(1.0);
            if !equal {
                return Err(format!("{name}: element {i} is {a}, expected {b}"));
            }
        }
    }
    Ok(())
}
