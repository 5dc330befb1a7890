//! One thing to measure: a graph, what its inputs hold, and whether its steps or the whole of it are timed.

use crate::base::{DType, Limits, Rng, TensorType, packed};
use crate::compile::Step;
use crate::error::Result;
use crate::graph::{Graph, Kind};
use crate::optim::{HYPER, JUDGE, Optimizer};
use crate::run::{Class, Executor, States};

/// Elements that fill a state, again and again.
const PATTERN: usize = 1 << 16;
/// Bytes written at a time.
const CHUNK: usize = 16 << 20;

/// What is timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Each distinct step of the plan by itself.
    Kernels,
    /// Runs of the plan, from the inputs on the host to the outputs there.
    Whole,
}

type Build = Box<dyn Fn(&Limits) -> Result<Graph>>;

/// Something to measure.
pub struct Case {
    /// Its name; those of its kernels begin with it.
    pub name: String,
    /// What is timed.
    pub scope: Scope,
    /// Tokens that a run works on; 0 where it has none.
    pub tokens: usize,
    /// Tokens are drawn below this.
    vocab: usize,
    /// Where in the text they stand.
    position: u32,
    /// Only kernels that read a packed operand are timed.
    packed: bool,
    /// Only kernels that round their operands are timed.
    half: bool,
    build: Build,
}

impl Case {
    /// A case without tokens.
    pub fn new(name: impl Into<String>, scope: Scope, build: impl Fn(&Limits) -> Result<Graph> + 'static) -> Case {
        Case {
            name: name.into(),
            scope,
            tokens: 0,
            vocab: 1,
            position: 0,
            packed: false,
            half: false,
            build: Box::new(build),
        }
    }

    /// The same with this many tokens of a vocabulary, the first at `position`.
    pub fn tokens(mut self, tokens: usize, vocab: usize, position: usize) -> Case {
        (self.tokens, self.vocab, self.position) = (tokens, vocab.max(1), position as u32);
        self
    }

    /// The same with only the kernels that read a packed operand.
    pub fn packed(self) -> Case {
        Case { packed: true, ..self }
    }

    /// The same with only the kernels that round their operands.
    pub fn half(self) -> Case {
        Case { half: true, ..self }
    }

    pub(super) fn wants(&self, step: &Step) -> bool {
        let is_half = Class::of(step.shader, &step.constants) != Class::F32;
        (is_half || !self.half) && (!self.packed || step.inputs.iter().any(|ty| ty.dtype.is_packed()))
    }

    /// Its graph for an adapter with these limits.
    ///
    /// # Errors
    /// If the graph cannot be built.
    pub fn graph(&self, limits: &Limits) -> Result<Graph> {
        (self.build)(limits)
    }

    /// Gives states small random numbers, which costs a GPU the power that real ones do, and inputs what they mean.
    /// Moments stay zero: a second moment is not negative.
    ///
    /// # Errors
    /// If the device fails.
    pub async fn fill(&self, graph: &Graph, states: &States, executor: &mut Executor) -> Result<()> {
        for node in graph.nodes() {
            let ty = node.outputs.first();
            let Some(ty) = ty.filter(|_| matches!(node.kind, Kind::State) && states.contains(&node.name)) else {
                continue;
            };
            if node.name == JUDGE {
                // A loss scaled by zero would have every update left out.
                states.write(JUDGE, 0, bytemuck::bytes_of(&1.0_f32)).await?;
            } else if !node.name.starts_with("adam_") {
                fill_state(states, &node.name, ty).await?;
            }
        }
        let mut rng = Rng::new(0, 1);
        for node in graph.nodes().iter().filter(|n| matches!(n.kind, Kind::Input)) {
            let Some(ty) = executor.input(&node.name).cloned() else { continue };
            let n = ty.shape.elements();
            match (node.name.as_str(), ty.dtype) {
                (HYPER, _) => executor.set(HYPER, &Optimizer::default().hyper(1e-4))?,
                (name, DType::U32) => {
                    let value = |i: usize, rng: &mut Rng| match name {
                        "position" => self.position,
                        "rows" => i as u32,
                        _ => rng.below(self.vocab) as u32,
                    };
                    let values: Vec<u32> = (0..n).map(|i| value(i, &mut rng)).collect();
                    executor.set(name, &values)?;
                }
                (name, _) => {
                    let values: Vec<f32> = (0..n).map(|_| small(&mut rng)).collect();
                    executor.set(name, &values)?;
                }
            }
        }
        Ok(())
    }
}

/// A number in (-0.05, 0.05), as weights are.
fn small(rng: &mut Rng) -> f32 {
    (0.1 * rng.uniform() - 0.05) as f32
}

async fn fill_state(states: &States, name: &str, ty: &TensorType) -> Result<()> {
    let mut rng = Rng::new(0, name.len() as u64);
    let pattern: Vec<u8> = match ty.dtype {
        DType::U32 => return Ok(()),
        DType::F32 => (0..PATTERN).flat_map(|_| small(&mut rng).to_le_bytes()).collect(),
        dtype => packed::random(dtype, PATTERN, &mut rng),
    };
    let (bytes, chunk) = (ty.bytes() as usize, CHUNK / pattern.len() * pattern.len());
    let filled: Vec<u8> = pattern.iter().copied().cycle().take(chunk.min(bytes)).collect();
    for at in (0..bytes).step_by(chunk) {
        states.write(name, at as u64, &filled[..chunk.min(bytes - at)]).await?;
    }
    Ok(())
}
