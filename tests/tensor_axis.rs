//! The tensor axis: ranks with a part of every matrix each compute what one device does. The bars are those of
//! tests/common/spread.rs, around the operators' references.

mod common;

use common::golden::{Numbers, Sources, interpret};
use common::interpret::{Interpreter, Noise};
use common::spread::Spread;
use danlu::base::{Array, Axis, Limits, Rng, TensorType};
use danlu::comm::{Groups, LocalComm};
use danlu::compile::{First, Plan, Sent, compile};
use danlu::graph::{Graph, NodeId, Value, gradients};
use danlu::model::{Llama, ModelConfig, Share};
use danlu::nn::{ParamLayout, Params, Parts};
use danlu::ops::IGNORE;
use danlu::optim::{HYPER, JUDGE, Optimizer};
use danlu::parallel::Mesh;
use danlu::run::{Executor, States, f32s};
use pollster::block_on;
use std::path::Path;
use std::sync::Arc;

const SEED: u64 = 3;

fn config(family: &str) -> ModelConfig {
    let path = format!("{}/tests/goldens/families/{family}/config.json", env!("CARGO_MANIFEST_DIR"));
    ModelConfig::read(Path::new(&path)).unwrap()
}

fn mesh(tensor: usize) -> Mesh {
    Mesh { tensor, ..Mesh::ONE }
}

fn parts(config: &ModelConfig, ranks: usize, rank: usize) -> Parts {
    config.parts(mesh(ranks), rank).unwrap()
}

/// A model on one device, or a rank's part of it: what of it is where.
struct Model {
    llama: Llama,
    layout: ParamLayout,
}

impl Model {
    fn whole(config: &ModelConfig) -> Model {
        let specs = config.param_specs();
        // Small pages, so that parameters lie in several.
        let layout = Optimizer::default().layout(specs, 8 << 10).unwrap();
        Model { llama: Llama::new(config.clone()), layout }
    }

    fn part(config: &ModelConfig, ranks: usize, rank: usize) -> Model {
        let parts = parts(config, ranks, rank);
        let layout = Optimizer::default().layout_of(parts, 8 << 10).unwrap();
        Model { llama: Llama::new(config.clone()), layout }
    }

    /// A graph that ends with the loss.
    fn loss(&self, tokens: &TensorType) -> (Graph, Params, Value) {
        let mut g = Graph::new();
        let params = self.layout.declare(&mut g).unwrap();
        let (input, targets) = (g.input("tokens", tokens.clone()), g.input("targets", tokens.clone()));
        let mesh = self.layout.parts().map_or(Mesh::ONE, |parts| parts.mesh);
        let share = Share { mesh, sequence: None, capacity: None };
        let said = self.llama.said_by_rank(&mut g, &params, &self.layout, share, [input, targets], None);
        let loss = said.unwrap().loss;
        (g, params, loss)
    }

    /// Outputs `loss` and `grad.<parameter>`.
    fn gradients(&self, tokens: &TensorType) -> Graph {
        let (mut g, params, loss) = self.loss(tokens);
        let gradients = gradients(&mut g, loss, &params.views).unwrap();
        g.output("loss", loss);
        for (spec, gradient) in self.layout.specs().iter().zip(gradients) {
            g.output(&format!("grad.{}", spec.name), gradient);
        }
        g
    }

    /// One step of AdamW.
    fn step(&self, tokens: &TensorType) -> Graph {
        let (mut g, params, loss) = self.loss(tokens);
        Optimizer::default().train_step(&mut g, &self.layout, &params, loss).unwrap();
        g
    }
}

/// Tokens and targets of so many batches; some do not count.
fn batches(config: &ModelConfig, count: usize, ty: &TensorType) -> Vec<[Vec<u32>; 2]> {
    let mut rng = Rng::new(SEED, 0);
    let mut words = || -> Vec<u32> { (0..ty.shape.elements()).map(|_| rng.below(config.vocab_size) as u32).collect() };
    let mut batch = || {
        let (tokens, mut targets) = (words(), words());
        targets.iter_mut().step_by(5).for_each(|t| *t = IGNORE);
        [tokens, targets]
    };
    (0..count).map(|_| batch()).collect()
}

/// Runs something on each of so many ranks.
fn on_ranks<T: Send>(ranks: usize, work: impl Fn(usize, Groups) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let start = |(rank, comm): (usize, LocalComm)| {
            let work = &work;
            scope.spawn(move || work(rank, Groups::of(Axis::Tensor, Arc::new(comm))))
        };
        let threads: Vec<_> = LocalComm::group(ranks, None).into_iter().enumerate().map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// A graph on this rank's device, with fresh parameters.
fn device(model: &Model, graph: &Graph, groups: Groups) -> (Executor, States) {
    let gpu = common::gpu();
    let plan = compile(graph, gpu.limits(), &mut First).unwrap();
    let mut states = States::new(&gpu);
    let mut run = block_on(Executor::new(&gpu, &plan, &mut states)).unwrap();
    block_on(run.join_groups(groups)).unwrap();
    for (i, page) in model.layout.init(SEED).iter().enumerate() {
        block_on(states.write(&format!("param.{i}"), 0, bytemuck::cast_slice(page))).unwrap();
    }
    (run, states)
}

/// Every rank's part of a parameter, put together; what all have whole must be the same to the bit.
fn together(parts: &Parts, name: &str, ranks: &[Vec<f32>]) -> Vec<f64> {
    let spec = parts.spec(name).unwrap();
    let mut whole = vec![f32::NAN; spec.shape.elements()];
    for (rank, part) in ranks.iter().enumerate() {
        assert!(!parts.held(name).splits.is_empty() || *part == ranks[0], "{name} differs on rank {rank}");
        parts.paste(spec, rank, part, &mut whole);
    }
    whole.into_iter().map(f64::from).collect()
}

fn sources(model: &Model, [tokens, targets]: &[Vec<u32>; 2], ty: &TensorType) -> Sources {
    let ids = |ids: &[u32]| Array::new(ty.clone(), ids.iter().map(|&t| f64::from(t)).collect());
    let mut sources = Sources::from([
        (JUDGE.into(), Array::zeros([8])),
        ("tokens".into(), ids(tokens)),
        ("targets".into(), ids(targets)),
    ]);
    for (i, page) in model.layout.init(SEED).iter().enumerate() {
        let values = page.iter().map(|&x| f64::from(x)).collect();
        sources.insert(format!("param.{i}"), Array::new(TensorType::f32([page.len()]), values));
        sources.insert(format!("adam_m.{i}"), Array::zeros([page.len()]));
        sources.insert(format!("adam_v.{i}"), Array::zeros([page.len()]));
    }
    sources
}

/// Biases, norms of heads, tied and unit output rows, experts; an even and an odd number of tokens, of which the odd
/// is not split between blocks.
#[test]
fn losses_and_gradients_are_those_of_one_device() {
    for (family, ranks, time) in [
        ("llama", 2, 8),
        ("qwen2", 2, 7),
        ("qwen3", 2, 8),
        ("mixtral", 2, 8),
        ("baichuan2-7b", 4, 8),
        ("smollm3", 2, 6),
    ] {
        let (config, ty) = (config(family), TensorType::u32([2, time]));
        let (whole, batch) = (Model::whole(&config), batches(&config, 1, &ty).remove(0));
        let (graph, sources) = (whole.gradients(&ty), sources(&whole, &batch, &ty));
        let mut spread = Spread::new(|noise| interpret(&graph, &sources, noise));
        let got = on_ranks(ranks, |rank, groups| {
            let model = Model::part(&config, ranks, rank);
            let (mut run, _states) = device(&model, &model.gradients(&ty), groups);
            ["tokens", "targets"].iter().zip(&batch).for_each(|(name, ids)| run.set(name, ids).unwrap());
            block_on(run.run()).unwrap()
        });
        let parts = parts(&config, ranks, 0);
        for name in got[0].keys() {
            let each: Vec<Vec<f32>> = got.iter().map(|outputs| f32s(outputs, name)).collect();
            let together = match name.strip_prefix("grad.") {
                Some(parameter) => together(&parts, parameter, &each),
                None => {
                    assert!(each.iter().all(|loss| *loss == each[0]), "{family}: {each:?}");
                    each[0].iter().map(|&x| f64::from(x)).collect()
                }
            };
            let exact = spread.exact[name].clone();
            spread.check(name, &together, &exact, 0.0);
        }
        println!("{family} on {ranks}: worst {:.3} of its bar, {}", spread.worst.0, spread.worst.1);
    }
}

/// Steps by the operators' references: losses, norms, and parameters under `final.<name>`.
fn train_by_references(
    model: &Model,
    all: &[[Vec<u32>; 2]],
    ty: &TensorType,
    mut noise: Option<&mut Noise>,
) -> Numbers {
    let (graph, mut states, mut numbers) = (model.step(ty), sources(model, &all[0], ty), Numbers::new());
    for batch in all {
        for name in ["tokens", "targets"] {
            states.insert(name.into(), sources(model, batch, ty).remove(name).unwrap());
        }
        let hyper = Optimizer::default().hyper(1e-3).map(f64::from);
        states.insert(HYPER.into(), Array::new(TensorType::f32([1]), hyper.to_vec()));
        let run = Interpreter::run_with(&graph, &states, noise.as_deref_mut());
        for (name, value) in graph.outputs().iter().filter(|(name, _)| name != JUDGE) {
            numbers.entry(name.clone()).or_default().push(run.get(*value).data[0]);
        }
        for (n, node) in graph.nodes().iter().enumerate() {
            if let Some(state) = states.get_mut(&node.name) {
                *state = run.get(Value { node: NodeId(n as u32), output: 0 });
            }
        }
    }
    for spec in model.layout.specs() {
        let (page, start) = model.layout.place(&spec.name).unwrap();
        let data = &states[&format!("param.{page}")].data[start..start + spec.shape.elements()];
        numbers.insert(format!("final.{}", spec.name), data.to_vec());
    }
    numbers
}

/// The same on ranks: losses and norms, and this rank's pages in the end.
type Trained = ([Vec<f32>; 2], Vec<Vec<f32>>);

fn train(config: &ModelConfig, ranks: usize, all: &[[Vec<u32>; 2]], ty: &TensorType) -> Vec<Trained> {
    on_ranks(ranks, |rank, groups| {
        let model = Model::part(config, ranks, rank);
        let (mut run, states) = device(&model, &model.step(ty), groups);
        let mut told = [Vec::new(), Vec::new()];
        for batch in all {
            ["tokens", "targets"].iter().zip(batch).for_each(|(name, ids)| run.set(name, ids).unwrap());
            run.set(HYPER, &Optimizer::default().hyper(1e-3)).unwrap();
            let outputs = block_on(run.run()).unwrap();
            told[0].extend(f32s(&outputs, "loss"));
            told[1].extend(f32s(&outputs, "grad_norm"));
        }
        let page = |i| bytemuck::pod_collect_to_vec(&block_on(states.read(&format!("param.{i}"))).unwrap());
        (told, (0..model.layout.pages().len()).map(page).collect())
    })
}

#[test]
fn twenty_steps_are_those_of_one_device_and_the_same_twice() {
    let (config, ty) = (config("baichuan-7b"), TensorType::u32([2, 8]));
    let (whole, all) = (Model::whole(&config), batches(&config, 20, &ty));
    let mut spread = Spread::new(|noise| train_by_references(&whole, &all, &ty, noise));
    for ranks in [2, 4] {
        let got = train(&config, ranks, &all, &ty);
        for (i, name) in ["loss", "grad_norm"].into_iter().enumerate() {
            assert!(got.iter().all(|(told, _)| told[i] == got[0].0[i]), "{name} differs from rank to rank");
            let (mine, exact) =
                (got[0].0[i].iter().map(|&x| f64::from(x)).collect::<Vec<_>>(), spread.exact[name].clone());
            spread.check(name, &mine, &exact, 0.0);
        }
        let models: Vec<Model> = (0..ranks).map(|rank| Model::part(&config, ranks, rank)).collect();
        for spec in whole.layout.specs() {
            let part =
                |(model, (_, pages)): (&Model, &Trained)| model.layout.tensor(pages, &spec.name).unwrap().to_vec();
            let each: Vec<Vec<f32>> = models.iter().zip(&got).map(part).collect();
            let (name, parts) = (format!("final.{}", spec.name), models[0].layout.parts().unwrap());
            let exact = spread.exact[&name].clone();
            spread.check(&name, &together(parts, &spec.name, &each), &exact, 0.0);
        }
        println!("{ranks} ranks: worst {:.3} of its bar, {}", spread.worst.0, spread.worst.1);
        if ranks == 2 {
            assert!(train(&config, ranks, &all, &ty) == got, "the same ranks gave other bits");
        }
    }
}

/// What a step of AdamW sends, from its plan.
fn sent(config: &ModelConfig, ranks: usize, ty: &TensorType) -> Sent {
    let graph = Model::part(config, ranks, 1).step(ty);
    let plan: Plan = compile(&graph, &Limits::default(), &mut First).unwrap();
    plan.sent()[&Axis::Tensor]
}

/// Two sums of the residual stream a layer in the forward pass and two in the backward pass (Megatron-LM, 2019, §3), one for
/// the embedding and one for the output; as sums, or, which takes as many bytes, scattered and gathered. Beside these three
/// numbers a row for the cross entropy, one for the norm, and where tokens are split, each norm's gain.
#[test]
fn a_step_sends_what_the_textbook_says() {
    let config = config("baichuan-7b");
    let (layers, d) = (config.num_hidden_layers as u64, config.hidden_size as u64);
    for (ranks, b, t) in [(2, 2, 8), (4, 2, 8), (4, 3, 16), (2, 3, 7)] {
        let (n, rows, is_split) = (ranks as u64, (b * t) as u64, t % ranks == 0);
        let sum = |bytes: u64| 2 * bytes * (n - 1) / n;
        let stream = (4 * layers + 2) * sum(4 * rows * d);
        let gains = if is_split { (2 * layers + 1) * sum(4 * d) } else { 0 };
        let rest = 12 * rows * (n - 1) + sum(4);
        let got = sent(&config, ranks, &TensorType::u32([b, t]));
        assert_eq!(got.bytes, stream + gains + rest, "{ranks} ranks, [{b},{t}]");
        let each = if is_split { 2 } else { 1 };
        let meetings = each * (4 * layers + 2) + if is_split { 2 * layers + 1 } else { 0 } + 2;
        assert_eq!(got.meetings as u64, meetings, "{ranks} ranks, [{b},{t}]");
    }
}

#[test]
fn a_rank_holds_its_part_of_the_matrices() {
    let config = config("baichuan-7b");
    let whole = Model::whole(&config).layout;
    let gains: u64 = whole.specs().iter().filter(|s| s.shape.rank() == 1).map(|s| s.shape.elements() as u64).sum();
    for ranks in [2, 4] {
        let part = Model::part(&config, ranks, 1).layout;
        assert_eq!(part.parameters(), (whole.parameters() - gains) / ranks as u64 + gains);
    }
}

#[test]
fn what_cannot_be_split_is_refused() {
    for (family, ranks, part) in [
        ("llama", 4, "the model has 2 key and value heads, which 4 ranks cannot share in equal parts"),
        ("llama", 3, "the model has 4 query heads, which 3 ranks cannot share"),
        ("olmo2", 2, "the model norms its queries over all heads at once"),
        ("baichuan-13b", 5, "slopes of their own (ALiBi)"),
    ] {
        let mut config = config(family);
        config.intermediate_size = 60;
        let said = config.parts(mesh(ranks), 0).unwrap_err().to_string();
        assert!(said.contains(part) && said.contains(&format!("the mesh has tensor={ranks}")), "{said}");
    }
}
