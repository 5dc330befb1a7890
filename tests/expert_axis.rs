//! The expert axis: ranks with some of every layer's experts each, and rows of their own, compute what one device does of all
//! rows. The bars are those of tests/common/spread.rs, around the operators' references.

mod common;

use common::golden::{Sources, interpret};
use common::spread::Spread;
use danlu::base::{Array, Axis, Rng, TensorType};
use danlu::comm::{Groups, LocalComm};
use danlu::compile::{First, Plan, Sent, compile};
use danlu::graph::{Graph, NodeId, Value, gradients};
use danlu::model::{Llama, ModelConfig};
use danlu::nn::{ParamLayout, ParamSpec, Params};
use danlu::optim::JUDGE;
use danlu::parallel::{ExpertAxis, Given, Mesh, OfRank, Placement};
use danlu::run::{Executor, Outputs, States, f32s};
use pollster::block_on;
use std::path::Path;

const SEED: u64 = 3;

/// With the balance of experts and the routers' z-loss in the loss.
fn config(family: &str) -> ModelConfig {
    let path = format!("{}/tests/goldens/families/{family}/config.json", env!("CARGO_MANIFEST_DIR"));
    let mut config = ModelConfig::read(Path::new(&path)).unwrap();
    let experts = config.experts.as_mut().unwrap();
    (experts.balance, experts.z) = (0.1, 0.05);
    config
}

fn mesh(data: usize, expert: usize) -> Mesh {
    Mesh { data, expert, ..Mesh::ONE }
}

fn is_expert(name: &str) -> bool {
    name.contains(".experts.")
}

/// A model on one device, or what a rank has of it.
struct Model {
    llama: Llama,
    whole: ParamLayout,
    own: ParamLayout,
    axis: ExpertAxis,
    /// Which part of the experts.
    place: usize,
}

impl Model {
    fn of(config: &ModelConfig, mesh: Mesh, rank: usize, capacity: Option<f64>) -> Model {
        let own = |mut spec: ParamSpec| {
            let mut dims = spec.shape.dims().to_vec();
            dims[0] /= if is_expert(&spec.name) { mesh.expert } else { 1 };
            spec.shape = dims.into();
            spec
        };
        // Small pages, so that parameters lie in several.
        let layout = |specs| ParamLayout::new(specs, 8 << 10);
        Model {
            llama: Llama::new(config.clone()),
            whole: layout(config.param_specs()),
            own: layout(config.param_specs().into_iter().map(own).collect()),
            axis: ExpertAxis { data: mesh.data, experts: mesh.expert, capacity },
            place: mesh.place(rank, Axis::Expert),
        }
    }

    fn loss(&self, rows: &TensorType) -> (Graph, Params, OfRank) {
        let (mut g, mut whole) = (Graph::new(), Graph::new());
        let params = self.own.declare(&mut g).unwrap();
        let all = self.whole.declare(&mut whole).unwrap();
        let mut given = Vec::new();
        for spec in self.whole.specs() {
            let in_parts = is_expert(&spec.name) && self.axis.experts > 1;
            let placement = if in_parts { Placement::Split { outer: 1 } } else { Placement::Same };
            let (whole, own) = (all.get(&spec.name).unwrap(), params.get(&spec.name).unwrap());
            given.push(Given { whole, own, placement });
        }
        let [tokens, targets] = ["tokens", "targets"].map(|name| {
            let (whole, own) = (whole.input(name, rows.clone()), g.input(name, rows.clone()));
            given.push(Given { whole, own, placement: Placement::Same });
            whole
        });
        let loss = self.llama.loss(&mut whole, &all, tokens, targets, None).unwrap();
        whole.output("loss", loss);
        let of_rank = self.axis.apply(&whole, &mut g, &given).unwrap();
        (g, params, of_rank)
    }

    /// Outputs `loss`, `grad.<parameter>`, `ids.<layer>` of this rank's rows, and `dropped.<layer>`.
    fn gradients(&self, rows: &TensorType) -> Graph {
        let (mut g, params, OfRank { outputs, dropped }) = self.loss(rows);
        choices(&mut g);
        for (layer, dropped) in dropped.into_iter().enumerate() {
            g.output(&format!("dropped.{layer}"), dropped);
        }
        let gradients = gradients(&mut g, outputs[0], &params.views).unwrap();
        g.output("loss", outputs[0]);
        for (spec, gradient) in self.own.specs().iter().zip(gradients) {
            g.output(&format!("grad.{}", spec.name), gradient);
        }
        g
    }

    /// Fresh parameters, of experts this rank's.
    fn init(&self) -> Vec<Vec<f32>> {
        let (whole, mut own) = (self.whole.init(SEED), self.own.zeros());
        for (spec, data) in self.own.tensors_mut(&mut own) {
            let all = self.whole.tensor(&whole, &spec.name).unwrap();
            let first = if is_expert(&spec.name) { self.place * data.len() } else { 0 };
            data.copy_from_slice(&all[first..first + data.len()]);
        }
        own
    }
}

/// Names the experts that routers choose.
fn choices(g: &mut Graph) {
    let routers = g.nodes().iter().enumerate().filter(|(_, node)| node.op_name() == "route");
    let ids: Vec<Value> = routers.map(|(n, _)| Value { node: NodeId(n as u32), output: 1 }).collect();
    ids.into_iter().enumerate().for_each(|(layer, ids)| g.output(&format!("ids.{layer}"), ids));
}

/// One device's outputs, as [`Model::gradients`] has them.
fn of_one_device(config: &ModelConfig, rows: &TensorType) -> (Graph, ParamLayout) {
    let (llama, layout) = (Llama::new(config.clone()), ParamLayout::new(config.param_specs(), 8 << 10));
    let mut g = Graph::new();
    let params = layout.declare(&mut g).unwrap();
    let (tokens, targets) = (g.input("tokens", rows.clone()), g.input("targets", rows.clone()));
    let loss = llama.loss(&mut g, &params, tokens, targets, None).unwrap();
    choices(&mut g);
    let gradients = gradients(&mut g, loss, &params.views).unwrap();
    g.output("loss", loss);
    for (spec, gradient) in layout.specs().iter().zip(gradients) {
        g.output(&format!("grad.{}", spec.name), gradient);
    }
    (g, layout)
}

/// Tokens and targets, all of which count.
fn batch(config: &ModelConfig, rows: &TensorType) -> [Vec<u32>; 2] {
    let mut rng = Rng::new(SEED, 0);
    [0, 1].map(|_| (0..rows.shape.elements()).map(|_| rng.below(config.vocab_size) as u32).collect())
}

/// What each rank of a mesh gives of its rows of a batch, and its plan.
fn on_ranks(
    config: &ModelConfig,
    mesh: Mesh,
    capacity: Option<f64>,
    [b, t]: [usize; 2],
    batch: &[Vec<u32>; 2],
) -> Vec<(Outputs, Plan)> {
    let rows = TensorType::u32([b / mesh.data, t]);
    let rank = |comm: LocalComm, rank: usize| {
        let model = Model::of(config, mesh, rank, capacity);
        let (gpu, groups) = (common::gpu(), Groups::split(&comm, mesh).unwrap());
        let plan = compile(&model.gradients(&rows), gpu.limits(), &mut First).unwrap();
        let mut states = States::new(&gpu);
        let mut run = block_on(Executor::new(&gpu, &plan, &mut states)).unwrap();
        block_on(run.join_groups(groups)).unwrap();
        for (i, page) in model.init().iter().enumerate() {
            block_on(states.write(&format!("param.{i}"), 0, bytemuck::cast_slice(page))).unwrap();
        }
        let own = rank * rows.shape.elements()..(rank + 1) * rows.shape.elements();
        ["tokens", "targets"].iter().zip(batch).for_each(|(name, all)| run.set(name, &all[own.clone()]).unwrap());
        (block_on(run.run()).unwrap(), plan)
    };
    std::thread::scope(|scope| {
        let rank = &rank;
        let start = |(r, comm)| scope.spawn(move || rank(comm, r));
        let threads: Vec<_> = LocalComm::group(mesh.ranks(), None).into_iter().enumerate().map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// What ranks have of a gradient, as one device would have it of the mean loss: summed over those that hold the same.
fn together(mesh: Mesh, name: &str, ranks: &[Vec<f32>]) -> Vec<f64> {
    let parts = if is_expert(name) { mesh.expert } else { 1 };
    let mut whole = vec![0.0; ranks[0].len() * parts];
    for (rank, part) in ranks.iter().enumerate() {
        let first = rank % parts * part.len();
        part.iter().zip(&mut whole[first..]).for_each(|(x, sum)| *sum += f64::from(*x) / mesh.data as f64);
    }
    whole
}

fn u32s(outputs: &Outputs, name: &str) -> Vec<u32> {
    bytemuck::pod_collect_to_vec(&outputs[name])
}

/// Every layout: the losses, the gradients of every parameter, and the experts that each token's router chose.
#[test]
fn losses_gradients_and_choices_are_those_of_one_device() {
    let all = [("mixtral", vec![mesh(2, 1), mesh(4, 2), mesh(4, 4)]), ("qwen3-moe", vec![mesh(2, 2)])];
    for (family, meshes) in all {
        let (config, sizes) = (config(family), [4, 5]);
        let rows = TensorType::u32(sizes);
        let batch = batch(&config, &rows);
        let (graph, layout) = of_one_device(&config, &rows);
        let ids = |ids: &[u32]| Array::new(rows.clone(), ids.iter().map(|&t| f64::from(t)).collect());
        let mut sources = Sources::from([
            (JUDGE.into(), Array::zeros([8])),
            ("tokens".into(), ids(&batch[0])),
            ("targets".into(), ids(&batch[1])),
        ]);
        for (i, page) in layout.init(SEED).iter().enumerate() {
            let values = page.iter().map(|&x| f64::from(x)).collect();
            sources.insert(format!("param.{i}"), Array::new(TensorType::f32([page.len()]), values));
        }
        let mut spread = Spread::new(|noise| interpret(&graph, &sources, noise));
        for mesh in meshes {
            let got = on_ranks(&config, mesh, None, sizes, &batch);
            for name in got[0].0.keys() {
                let each = || got.iter().map(|(outputs, _)| outputs);
                let exact = spread.exact.get(name).cloned();
                if name.starts_with("ids") {
                    let chosen: Vec<f64> = each().flat_map(|o| u32s(o, name)).map(f64::from).collect();
                    assert!(chosen == exact.unwrap(), "{family} on {mesh}: {name}");
                } else if name.starts_with("dropped") {
                    assert!(each().all(|o| f32s(o, name) == [0.0]), "{family} on {mesh}: {name}");
                } else {
                    let all: Vec<Vec<f32>> = each().map(|o| f32s(o, name)).collect();
                    spread.check(name, &together(mesh, name, &all), &exact.unwrap(), 0.0);
                }
            }
            println!("{family} on {mesh}: worst {:.3} of its bar, {}", spread.worst.0, spread.worst.1);
            if mesh.data > mesh.expert && mesh.expert > 1 {
                let again = on_ranks(&config, mesh, None, sizes, &batch);
                assert!(again.iter().zip(&got).all(|(a, b)| a.0 == b.0), "{mesh}: another run gives other bits");
            }
        }
    }
}

/// The slots of each layer that find no room, by plain loops over what the routers chose.
fn left_out(ids: &[u32], choices: usize, experts: usize, mesh: Mesh, factor: f64) -> f32 {
    let own = experts / mesh.expert;
    let room =
        ((factor * ids.len() as f64 / mesh.expert as f64).ceil() as usize).min(ids.len() / choices * own.min(choices));
    let to = |place: usize| ids.iter().filter(|id| **id as usize / own == place).count();
    (0..mesh.expert).map(|place| to(place).saturating_sub(room) as f32).sum()
}

/// What finds no room is dropped, and counted; with the same bits every time.
#[test]
fn slots_without_room_are_dropped_and_counted() {
    let (config, sizes) = (config("mixtral"), [4, 6]);
    let batch = batch(&config, &TensorType::u32(sizes));
    let experts = config.experts.unwrap();
    let mesh = mesh(2, 2);
    let mut seen = Vec::new();
    for factor in [0.5, 1.0, 4.0] {
        let got = on_ranks(&config, mesh, Some(factor), sizes, &batch);
        let mut dropped = 0.0;
        for (outputs, _) in &got {
            for layer in 0..config.num_hidden_layers {
                let ids = u32s(outputs, &format!("ids.{layer}"));
                let wanted = left_out(&ids, experts.per_token, experts.count, mesh, factor);
                assert_eq!(f32s(outputs, &format!("dropped.{layer}")), [wanted], "{factor}, layer {layer}");
                dropped += wanted;
            }
            assert!(
                outputs
                    .keys()
                    .filter(|name| name.starts_with("grad"))
                    .all(|name| { f32s(outputs, name).iter().all(|x| x.is_finite()) })
            );
        }
        seen.push(dropped);
        let again = on_ranks(&config, mesh, Some(factor), sizes, &batch);
        assert!(again.iter().zip(&got).all(|(a, b)| a.0 == b.0), "{factor}: another run gives other bits");
    }
    assert!(seen[0] > seen[1] && seen[2] == 0.0, "{seen:?}");
}

/// Of R rows with k choices and width D each layer sends R·k·D elements to experts and as many home, and back again in the
/// backward pass, of which (E-1)/E leave the rank: with room for the mean that is the least that there is; with room for
/// all, min(k, e)·E/k times as much, for e experts a rank. Beside them a number a slot: which expert.
#[test]
fn a_step_sends_what_the_textbook_says() {
    let config = config("mixtral");
    let (layers, d, experts) = (config.num_hidden_layers as u64, config.hidden_size as u64, config.experts.unwrap());
    for (mesh, capacity) in
        [(mesh(2, 2), None), (mesh(2, 2), Some(1.0)), (mesh(4, 2), Some(1.0)), (mesh(4, 4), Some(1.0))]
    {
        let rows = TensorType::u32([2, 8]);
        let graph = Model::of(&config, mesh, 1, capacity).gradients(&rows);
        let plan = compile(&graph, &danlu::base::Limits::default(), &mut First).unwrap();
        let (n, e) = (mesh.expert as u64, experts.count / mesh.expert);
        let slots = 16
            * match capacity {
                None => n * experts.per_token.min(e) as u64,
                Some(_) => experts.per_token as u64,
            };
        let bytes = layers * (4 * (4 * slots * d) + 4 * slots) * (n - 1) / n;
        assert_eq!(plan.sent()[&Axis::Expert], Sent { meetings: 5 * layers as usize, bytes }, "{mesh}, {capacity:?}");
        // Shares and counts of the whole batch, and the sum of squares; and the gradient towards the first and the last.
        let sum = |elements: u64| 2 * (4 * elements) * (mesh.data as u64 - 1) / mesh.data as u64;
        let count = experts.count as u64;
        let wanted = Sent { meetings: 5, bytes: 3 * sum(count) + 2 * sum(1) };
        assert_eq!(plan.sent()[&Axis::Data], wanted, "{mesh}");
    }
}

#[test]
fn what_cannot_be_split_is_refused() {
    for (family, n, part) in [
        ("mixtral", 3, "the model has 4 experts, which 3 ranks cannot share in equal parts"),
        ("llama", 2, "the model has no experts; leave that axis out"),
    ] {
        let path = format!("{}/tests/goldens/families/{family}/config.json", env!("CARGO_MANIFEST_DIR"));
        let said = ModelConfig::read(Path::new(&path)).unwrap().parts(mesh(n, n), 0).unwrap_err().to_string();
        assert!(said.contains(part) && said.contains(&format!("the mesh has expert={n}")), "{said}");
    }
}
