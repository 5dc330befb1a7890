//! Runs of several ranks, as threads with a device handle each, of tiny models: what they saw, and what one device computes.

use super::golden::{Numbers, Sources, Step};
use super::interpret::Noise;
use super::spread::Spread;
use danlu::base::{Array, TensorType, packed};
use danlu::comm::LocalComm;
use danlu::compile::First;
use danlu::error::Result;
use danlu::graph::{Graph, Kind};
use danlu::model::Llama;
use danlu::nn::{Declare, ParamLayout};
use danlu::optim::Shard;
use danlu::parallel::Mesh;
use danlu::train::{
    Ending, Event, Prepared, Recipe, Resumption, Subject, Trainer, World, optimizer, prepare, run, schedule,
};
use pollster::block_on;
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock};

pub const CONFIG: &str = r#"{"model_type": "llama", "vocab_size": 300, "hidden_size": 16, "intermediate_size": 24,
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64,
    "tie_word_embeddings": true}"#;
pub const STEPS: u64 = 20;

pub fn recipe(folder: &Path, name: &str) -> Recipe {
    let config = folder.join("config.json");
    std::fs::write(&config, CONFIG).unwrap();
    Recipe {
        config: config.to_str().unwrap().into(),
        stories: 60,
        steps: STEPS,
        batch: 4,
        seq: 12,
        val_sequences: 4,
        eval_every: Some(STEPS),
        compare_every: 7,
        out: folder.join(name),
        ..Recipe::default()
    }
}

pub fn mesh(data: usize) -> Mesh {
    Mesh { data, ..Mesh::ONE }
}

/// What a rank saw of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    /// Bits of loss and norm of every step.
    pub steps: Vec<(u32, u32)>,
    /// Norms of what steps added, where ranks hold all parameters.
    pub updates: Vec<Option<f32>>,
    pub validation: f64,
    pub pages: Vec<Vec<f32>>,
    /// Names of the states that a step changes, and their bytes.
    pub states: Vec<Vec<u8>>,
}

impl Seen {
    /// Losses of all steps, and the parameters after them, within their bars.
    pub fn check(&self, spread: &mut Spread, layout: &ParamLayout) {
        let losses = self.steps.iter().map(|(loss, _)| f64::from(f32::from_bits(*loss))).collect();
        let mut got: Vec<(String, Vec<f64>)> = vec![("losses".into(), losses)];
        for (spec, data) in layout.tensors(&self.pages) {
            got.push((format!("final.{}", spec.name), data.iter().map(|&x| f64::from(x)).collect()));
        }
        for (name, values) in &got {
            let exact = spread.exact[name].clone();
            spread.check(name, values, &exact, 0.0);
        }
    }
}

/// One rank's run.
pub fn rank(recipe: &Recipe, prepared: &Prepared, world: &World) -> Result<Seen> {
    let gpu = super::gpu();
    let (mut trainer, ..) = block_on(Trainer::among(&gpu, recipe, prepared, &mut First, world, &mut |_| {}))?;
    go(&gpu, recipe, prepared, &mut trainer, &AtomicBool::new(false)).map(|(seen, _)| seen)
}

/// A trainer's run from where it stands.
pub fn go(
    gpu: &danlu::gpu::Gpu,
    recipe: &Recipe,
    prepared: &Prepared,
    trainer: &mut Trainer,
    stop: &AtomicBool,
) -> Result<(Seen, Ending)> {
    let (mut steps, mut updates, mut validation) = (Vec::new(), Vec::new(), 0.0);
    let mut observer = |event: &Event| match event {
        Event::Step { loss, grad_norm, update_norm, .. } => {
            steps.push((loss.to_bits(), grad_norm.to_bits()));
            updates.push(*update_norm);
        }
        Event::Validation { loss, .. } => validation = *loss,
        _ => {}
    };
    let ending = block_on(run(gpu, recipe, prepared, trainer, None, stop, &mut observer))?;
    let states = trainer.written_states().iter().map(|s| block_on(trainer.states.read(&s.name)).unwrap()).collect();
    let (subject, mut pages) = block_on(trainer.whole()).unwrap();
    if recipe.shard != Shard::None {
        // As they lie on one device.
        let layout = layout_of(recipe, prepared);
        let mut plain = layout.zeros();
        let own = layout.tensors_mut(&mut plain).into_iter();
        own.for_each(|(spec, data)| data.copy_from_slice(subject.layout.tensor(&pages, &spec.name).unwrap()));
        pages = plain;
    }
    Ok((Seen { steps, updates, validation, pages, states }, ending))
}

/// The same on as many ranks as the mesh has.
pub fn ranks<T: Send>(recipe: &Recipe, work: impl Fn(&World) -> T + Sync) -> Vec<T> {
    let work = &work;
    std::thread::scope(|scope| {
        let start = |comm| scope.spawn(move || work(&World::of(Arc::new(comm))));
        let threads: Vec<_> = LocalComm::group(recipe.mesh.ranks(), None).into_iter().map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

pub fn prepared(recipe: &Recipe, folder: &Path) -> Prepared {
    prepare(recipe, &folder.join("cache"), &mut |_: &Event| {}).unwrap()
}

/// A run by its recipe; all ranks must have seen the same.
pub fn train(recipe: &Recipe, folder: &Path) -> Seen {
    let prepared = prepared(recipe, folder);
    let mut seen = ranks(recipe, |world| rank(recipe, &prepared, world).unwrap());
    let first = seen.remove(0);
    assert_eq!(first.steps.len() as u64, recipe.steps);
    for (rank, other) in (1..).zip(&seen) {
        assert!(other.pages == first.pages, "rank {rank} ends with other parameters");
        assert!(other.steps == first.steps && other.validation == first.validation, "rank {rank} tells otherwise");
    }
    first
}

/// Those of the same steps are drawn once, however many tests hold ranks to them.
static DRAWN: Mutex<BTreeMap<u64, Arc<OnceLock<Spread>>>> = Mutex::new(BTreeMap::new());

/// The steps of a recipe for one device by the operators' references, in f64, and how far roundings carry them: from what a
/// fresh trainer holds, frozen weights too.
pub fn spread(recipe: &Recipe, prepared: &Prepared, layout: &ParamLayout) -> Spread {
    let (trainer, ..) = block_on(Trainer::new(&super::gpu(), recipe, prepared, &mut First)).unwrap();
    let optimizer = optimizer(recipe);
    let mut graph = Graph::new();
    let params = trainer.subject.declare(&mut graph).unwrap();
    let ty = TensorType::u32([recipe.batch, recipe.seq]);
    let (tokens, targets) = (graph.input("tokens", ty.clone()), graph.input("targets", ty.clone()));
    let loss = trainer.model.loss(&mut graph, &params, tokens, targets, None).unwrap();
    optimizer.train_step(&mut graph, layout, &params, loss).unwrap();
    let sources = states_of(&trainer, &graph);
    let array = |ids: &[u32]| Array::new(ty.clone(), ids.iter().map(|&id| f64::from(id)).collect());
    let mut batch = prepared.loader.empty_batch();
    let batches: Vec<(Array, Array)> = (0..recipe.steps)
        .map(|step| {
            prepared.loader.batch(step, &mut batch).unwrap();
            (array(&batch.tokens), array(&batch.targets))
        })
        .collect();
    let step = Step { graph, params };
    let run = |noise: Option<&mut Noise>| -> Numbers {
        step.train_from(sources.clone(), layout, &schedule(recipe), &batches, noise)
    };
    // All that a run is given, to the bit.
    let mut hash = DefaultHasher::new();
    format!("{:?}{:?}{layout:?}", step.graph, schedule(recipe)).hash(&mut hash);
    let states = sources.iter().collect::<BTreeMap<_, _>>().into_iter().map(|(name, x)| (name.as_str(), x));
    let inputs = batches.iter().flat_map(|(tokens, targets)| [("tokens", tokens), ("targets", targets)]);
    for (name, x) in states.chain(inputs) {
        (name, x.ty.to_string()).hash(&mut hash);
        x.data.iter().for_each(|x| x.to_bits().hash(&mut hash));
    }
    let known = DRAWN.lock().unwrap().entry(hash.finish()).or_default().clone();
    known.get_or_init(|| Spread::new(run)).clone()
}

/// What a trainer's states hold of those of a graph.
pub fn states_of(trainer: &Trainer, graph: &Graph) -> Sources {
    let states = graph.nodes().iter().filter(|n| matches!(n.kind, Kind::State));
    let read = |node: &danlu::graph::Node| {
        let (ty, bytes) = (node.outputs[0].clone(), block_on(trainer.states.read(&node.name)).unwrap());
        let mut values = vec![0.0f32; ty.shape.elements()];
        packed::decode_device(ty.dtype, &bytes, &mut values);
        (node.name.clone(), Array::new(ty, values.into_iter().map(f64::from).collect()))
    };
    states.map(read).collect()
}

/// A run that goes on by this recipe from its last checkpoint.
pub fn go_on(recipe: &Recipe, folder: &Path) -> Seen {
    let mut found = Resumption::find(&recipe.out, &mut |note| panic!("{note}")).unwrap();
    found.change(recipe.clone()).unwrap();
    let prepared = prepared(recipe, folder);
    let mut seen = ranks(recipe, |world| {
        let gpu = super::gpu();
        let (mut trainer, ..) =
            block_on(Trainer::among(&gpu, recipe, &prepared, &mut First, world, &mut |_| {})).unwrap();
        block_on(found.restore(&mut trainer, &prepared)).unwrap();
        go(&gpu, recipe, &prepared, &mut trainer, &AtomicBool::new(false)).unwrap().0
    });
    seen.remove(0)
}

pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(|entry| entry.unwrap()) {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Where all parameters of a recipe's model lie on one device.
pub fn layout_of(recipe: &Recipe, prepared: &Prepared) -> ParamLayout {
    let recipe = Recipe { mesh: Mesh::ONE, shard: Shard::None, ..recipe.clone() };
    let model = Llama::new(prepared.config.clone());
    Subject::new(&model, &recipe, prepared.base.as_deref(), super::gpu().limits()).unwrap().layout
}
