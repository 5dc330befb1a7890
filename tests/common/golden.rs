//! PyTorch's goldens (tests/goldens/README.md), and the graphs whose numbers they hold: read here once for the tests that
//! compute them on the host and those that compute them on a device.

use super::interpret::{Interpreter, Noise};
use danlu::base::{Array, DType, TensorType};
use danlu::graph::{Graph, NodeId, Value};
use danlu::model::{Llama, ModelConfig};
use danlu::nn::{ParamLayout, Params};
use danlu::ops::IGNORE;
use danlu::optim::{HYPER, JUDGE, Optimizer, Schedule, Shape};
use danlu::store::{load_config, load_folder};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// Inputs and states by name.
pub type Sources = HashMap<String, Array>;

/// Results by name.
pub type Numbers = BTreeMap<String, Vec<f64>>;

/// The schedule of the ten steps of `gqa` and `tied`.
pub const TEN_STEPS: Schedule =
    Schedule { shape: Shape::Cosine, lr: 1e-2, min_lr: 1e-3, warmup: 3, total: 10, decay: 0, restarts: 0 };

/// One golden folder: the model, its weights, and PyTorch's numbers.
pub struct Golden {
    pub config: ModelConfig,
    pub layout: ParamLayout,
    pub pages: Vec<Vec<f32>>,
    pub numbers: HashMap<String, (Vec<usize>, Vec<f64>)>,
}

impl Golden {
    pub fn open(name: &str) -> Golden {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(name);
        let config = load_config(&folder).unwrap();
        // Small pages, so that parameters lie in several.
        let layout = ParamLayout::new(Llama::new(config.clone()).param_specs(), 8 << 10);
        assert!(layout.pages().len() > 2);
        let pages = load_folder(&folder, &config, &layout).unwrap();
        let numbers = read_numbers(&folder.join("golden.safetensors"));
        Golden { config, layout, pages, numbers }
    }

    pub fn get(&self, name: &str) -> &[f64] {
        &self.numbers.get(name).unwrap_or_else(|| panic!("no golden {name}")).1
    }

    /// Tokens or targets, with PyTorch's -100 as ours.
    pub fn ids(&self, name: &str) -> Array {
        let (shape, data) = &self.numbers[name];
        let id = |&x: &f64| if x == -100.0 { f64::from(IGNORE) } else { x };
        Array::new(TensorType::u32(shape.clone()), data.iter().map(id).collect())
    }

    /// Tokens and targets, `[B,T]` each, of every training step from batches `[steps,B,T+1]`.
    pub fn batches(&self, name: &str) -> Vec<(Array, Array)> {
        let (shape, data) = &self.numbers[name];
        let (b, t) = (shape[1], shape[2] - 1);
        let cut = |batch: &[f64], from: usize| {
            let ids = batch.chunks(t + 1).flat_map(|row| row[from..from + t].to_vec()).collect();
            Array::new(TensorType::u32([b, t]), ids)
        };
        data.chunks(b * (t + 1)).map(|batch| (cut(batch, 0), cut(batch, 1))).collect()
    }

    /// The initial parameters, and moments of zero.
    pub fn states(&self) -> Sources {
        let mut sources = Sources::from([(JUDGE.into(), Array::zeros([8]))]);
        for (i, page) in self.pages.iter().enumerate() {
            let values = page.iter().map(|&x| f64::from(x)).collect();
            sources.insert(format!("param.{i}"), Array::new(TensorType::f32([page.len()]), values));
            sources.insert(format!("adam_m.{i}"), Array::zeros([page.len()]));
            sources.insert(format!("adam_v.{i}"), Array::zeros([page.len()]));
        }
        sources
    }
}

/// The tensors of a golden file.
pub fn read_numbers(path: &Path) -> HashMap<String, (Vec<usize>, Vec<f64>)> {
    let bytes = std::fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let numbers = |view: &safetensors::tensor::TensorView| -> Vec<f64> {
        let words = || view.data().chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]]);
        match view.dtype() {
            safetensors::Dtype::F64 => {
                view.data().chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect()
            }
            safetensors::Dtype::F32 => words().map(|b| f64::from(f32::from_le_bytes(b))).collect(),
            safetensors::Dtype::I32 => words().map(|b| f64::from(i32::from_le_bytes(b))).collect(),
            safetensors::Dtype::U8 => view.data().iter().map(|&b| f64::from(b)).collect(),
            other => panic!("{other:?}"),
        }
    };
    file.iter().map(|(name, view)| (name.to_string(), (view.shape().to_vec(), numbers(&view)))).collect()
}

/// Logits, loss and every gradient: outputs `logits`, `loss`, `grad.<parameter>`.
pub fn forward_backward(golden: &Golden, tokens: &TensorType) -> Graph {
    let llama = Llama::new(golden.config.clone());
    let (mut g, params, [input, ..]) = loss_and_gradients(golden, tokens, false);
    let logits = llama.logits(&mut g, &params, input).unwrap();
    g.output("logits", logits);
    g
}

/// Loss and every gradient, of rows of several documents where `packed`: outputs `loss` and `grad.<parameter>`.
pub fn loss_and_gradients(golden: &Golden, tokens: &TensorType, packed: bool) -> (Graph, Params, [Value; 2]) {
    let llama = Llama::new(golden.config.clone());
    let mut g = Graph::new();
    let params = golden.layout.declare(&mut g).unwrap();
    let (input, targets) = (g.input("tokens", tokens.clone()), g.input("targets", tokens.clone()));
    let starts = packed.then(|| g.input("starts", tokens.clone()));
    let loss = llama.loss(&mut g, &params, input, targets, starts).unwrap();
    let gradients = danlu::graph::gradients(&mut g, loss, &params.views).unwrap();
    g.output("loss", loss);
    for (spec, gradient) in golden.layout.specs().iter().zip(gradients) {
        g.output(&format!("grad.{}", spec.name), gradient);
    }
    (g, params, [input, targets])
}

/// The outputs of a graph by its operators' references.
pub fn interpret(graph: &Graph, sources: &Sources, noise: Option<&mut Noise>) -> Numbers {
    let run = Interpreter::run_with(graph, sources, noise);
    graph.outputs().iter().map(|(name, value)| (name.clone(), run.get(*value).data)).collect()
}

/// A graph of one training step: outputs `loss` and `grad_norm`.
pub struct Step {
    pub graph: Graph,
    pub params: Params,
}

impl Step {
    pub fn new(golden: &Golden, tokens: &TensorType) -> Step {
        assert_eq!(tokens.dtype, DType::U32);
        let llama = Llama::new(golden.config.clone());
        let mut graph = Graph::new();
        let params = golden.layout.declare(&mut graph).unwrap();
        let (tokens, targets) = (graph.input("tokens", tokens.clone()), graph.input("targets", tokens.clone()));
        let loss = llama.loss(&mut graph, &params, tokens, targets, None).unwrap();
        Optimizer::default().train_step(&mut graph, &golden.layout, &params, loss).unwrap();
        Step { graph, params }
    }

    /// Trains on the batches by the operators' references. Gives `losses`, `grad_norms` and, under `final.<name>`, the
    /// parameters after the last step.
    pub fn train(
        &self,
        golden: &Golden,
        schedule: &Schedule,
        batches: &[(Array, Array)],
        noise: Option<&mut Noise>,
    ) -> Numbers {
        self.train_from(golden.states(), &golden.layout, schedule, batches, noise)
    }

    /// The same from these states, of parameters that lie so.
    pub fn train_from(
        &self,
        sources: Sources,
        layout: &ParamLayout,
        schedule: &Schedule,
        batches: &[(Array, Array)],
        noise: Option<&mut Noise>,
    ) -> Numbers {
        let batch = |(tokens, targets): &(Array, Array)| {
            Sources::from([("tokens".into(), tokens.clone()), ("targets".into(), targets.clone())])
        };
        self.train_on(sources, layout, schedule, &batches.iter().map(batch).collect::<Vec<_>>(), noise)
    }

    /// The same on batches of any inputs.
    pub fn train_on(
        &self,
        mut sources: Sources,
        layout: &ParamLayout,
        schedule: &Schedule,
        batches: &[Sources],
        mut noise: Option<&mut Noise>,
    ) -> Numbers {
        let mut numbers = Numbers::new();
        for (i, batch) in batches.iter().enumerate() {
            let hyper = Optimizer::default().hyper(schedule.rate(i as u64)).map(f64::from);
            sources.extend(batch.clone());
            sources.insert(HYPER.into(), Array::new(TensorType::f32([1]), hyper.to_vec()));
            let run = Interpreter::run_with(&self.graph, &sources, noise.as_deref_mut());
            for (name, value) in self.graph.outputs() {
                let name = match name.as_str() {
                    "loss" => "losses",
                    "grad_norm" => "grad_norms",
                    _ => continue,
                };
                numbers.entry(name.into()).or_default().push(run.get(*value).data[0]);
            }
            for (n, node) in self.graph.nodes().iter().enumerate() {
                if let Some(state) = sources.get_mut(&node.name) {
                    *state = run.get(Value { node: NodeId(n as u32), output: 0 });
                }
            }
        }
        for spec in layout.specs() {
            let (page, start) = layout.place(&spec.name).unwrap();
            let data = &sources[&format!("param.{page}")].data[start..start + spec.shape.elements()];
            numbers.insert(format!("final.{}", spec.name), data.to_vec());
        }
        numbers
    }
}
