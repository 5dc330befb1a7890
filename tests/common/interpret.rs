//! A graph computed by its operators' references, in f64 and in program order: what gradients and plans are held to.

use danlu::base::{Array, DType, Rng, TensorType};
use danlu::graph::{Graph, Io, Kind, NodeId, Op, Value, View};
use std::collections::HashMap;

/// Values of a graph's nodes.
pub struct Interpreter<'a> {
    graph: &'a Graph,
    values: HashMap<Value, Array>,
}

/// Random errors of a given size on every operator's results: what rounding does, made as large as a test wants it.
pub struct Noise {
    /// Standard deviation, in units of [`Noise::disturb`].
    pub size: f64,
    /// Where the errors come from.
    pub rng: Rng,
}

impl Noise {
    /// Adds to each element of a result r a normal error whose unit is that of `base::Tolerance`, ε·√K·rms(r), K being
    /// the length of the operator's sums; where there are none it is ε·|r|, for then each element is rounded by itself.
    /// Zeros stay: sums of nothing, such as the gradients of tokens that do not occur, have no rounding error.
    fn disturb(&mut self, op: &dyn Op, io: &Io, array: &mut Array) {
        if array.ty.dtype != DType::F32 {
            return self.store(op.tolerance(io).storing, array);
        }
        if op.view(io).is_some() {
            return;
        }
        let (epsilon, rms) = (self.size * f64::from(f32::EPSILON), array.rms());
        let reduction = op.reduction(io);
        for x in array.data.iter_mut().filter(|x| **x != 0.0) {
            let unit = if reduction > 1 { (reduction as f64).sqrt() * rms } else { x.abs() };
            *x += epsilon * unit * self.rng.normal();
        }
    }
}

impl Noise {
    /// The same for what is rounded to a narrow dtype as it is stored: an error anywhere within the share that
    /// `base::Tolerance` allows has a root of three less deviation.
    fn store(&mut self, share: f64, array: &mut Array) {
        let largest = array.data.iter().fold(0.0_f64, |m, x| m.max(x.abs()));
        for x in array.data.iter_mut().filter(|x| **x != 0.0) {
            *x += share * largest / 3.0_f64.sqrt() * self.rng.normal();
        }
    }
}

impl<'a> Interpreter<'a> {
    /// Computes every node. `sources` holds inputs and states by name; constants bring their own bytes.
    pub fn run(graph: &'a Graph, sources: &HashMap<String, Array>) -> Self {
        Self::run_with(graph, sources, None)
    }

    /// The same with errors.
    pub fn run_with(graph: &'a Graph, sources: &HashMap<String, Array>, mut noise: Option<&mut Noise>) -> Self {
        let mut this = Interpreter { graph, values: HashMap::new() };
        for (i, node) in graph.nodes().iter().enumerate() {
            let id = NodeId(i as u32);
            let value = Value { node: id, output: 0 };
            match &node.kind {
                Kind::Constant(bytes) => {
                    this.values.insert(value, Array::from_bytes(node.outputs[0].clone(), bytes));
                }
                Kind::Input | Kind::State => {
                    let array =
                        sources.get(&node.name).unwrap_or_else(|| panic!("nothing was given for {}", node.name));
                    assert_eq!(array.ty, node.outputs[0], "{}", node.name);
                    this.values.insert(value, array.clone());
                }
                Kind::Op(_) if this.slice(value).is_some() => {}
                Kind::Op(op) => {
                    let inputs: Vec<Array> = node.inputs.iter().map(|&v| this.get(v)).collect();
                    let mut results = op.reference(&inputs);
                    if let Some(noise) = &mut noise {
                        let io = this.io(id);
                        results.iter_mut().for_each(|array| noise.disturb(op.as_ref(), &io, array));
                    }
                    let mut results = results.into_iter();
                    for (output, ty) in node.outputs.iter().enumerate() {
                        let array = results.next().expect("one array an output");
                        assert_eq!(array.ty, *ty, "{}: the reference's type", node.name);
                        this.values.insert(Value { node: id, output: output as u32 }, array);
                    }
                    for input in op.writes() {
                        let array = results.next().expect("one array a written input");
                        this.set(node.inputs[input], array.data);
                    }
                }
            }
        }
        this
    }

    /// A value as it is after the run; parts of states as the states are.
    pub fn get(&self, value: Value) -> Array {
        match self.slice(value) {
            Some((base, start, ty)) => {
                let end = start + ty.shape.elements();
                Array::new(ty, self.get(base).data[start..end].to_vec())
            }
            None => self.values[&value].clone(),
        }
    }

    fn set(&mut self, value: Value, data: Vec<f64>) {
        let (mut value, mut at) = (value, 0);
        while let Some((base, start, _)) = self.slice(value) {
            (value, at) = (base, at + start);
        }
        let whole = self.values.get_mut(&value).expect("computed before it is written");
        whole.data[at..at + data.len()].copy_from_slice(&data);
    }

    /// The value that this one is a part of, its first element there, and its type.
    fn slice(&self, value: Value) -> Option<(Value, usize, TensorType)> {
        let node = self.graph.node(value.node);
        match node.op()?.view(&self.io(value.node))? {
            View::Slice(bytes) => {
                let (ty, block) = (node.outputs[0].clone(), node.outputs[0].dtype.block());
                Some((node.inputs[0], bytes as usize / block.bytes * block.elements, ty))
            }
            View::Concat(_) => None,
        }
    }

    fn io(&self, id: NodeId) -> Io {
        let node = self.graph.node(id);
        Io { inputs: node.inputs.iter().map(|&v| self.graph.ty(v).clone()).collect(), outputs: node.outputs.clone() }
    }
}
