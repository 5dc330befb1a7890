//! The sequence axis: ranks with parts of every row, around which keys and values go, train what one device trains. The bars
//! are those of tests/common/spread.rs, around the operators' references.

mod common;

use common::golden::{Numbers, Sources, Step};
use common::interpret::Noise;
use common::spread::Spread;
use danlu::base::{Array, Axis, Limits, TensorType};
use danlu::comm::LocalComm;
use danlu::compile::{First, Plan, Sent};
use danlu::graph::{Graph, Kind};
use danlu::model::{Llama, ModelConfig};
use danlu::nn::ParamLayout;
use danlu::parallel::Mesh;
use danlu::train::{Event, Prepared, Recipe, Trainer, World, optimizer, plans_of_rank, prepare, run, schedule};
use pollster::block_on;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Two layers, of which each sees all; or, where that is a window, so many tokens.
fn config(window: &str) -> String {
    format!(
        r#"{{"model_type": "mistral", "vocab_size": 300, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "sliding_window": {window}}}"#
    )
}

fn recipe(folder: &Path, name: &str, window: &str) -> Recipe {
    let path = folder.join("config.json");
    std::fs::write(&path, config(window)).unwrap();
    Recipe {
        config: path.to_str().unwrap().into(),
        stories: 60,
        steps: 20,
        batch: 2,
        seq: 16,
        val_sequences: 4,
        eval_every: Some(20),
        compare_every: 7,
        out: folder.join(name),
        ..Recipe::default()
    }
}

fn mesh(text: &str) -> Mesh {
    text.parse().unwrap()
}

/// What a rank saw of a run: bits of loss and norm of every step, validation, and the model in the end.
#[derive(Debug, Clone, PartialEq)]
struct Seen {
    steps: Vec<(u32, u32)>,
    validation: f64,
    pages: Vec<Vec<f32>>,
}

fn rank(recipe: &Recipe, prepared: &Prepared, world: &World) -> Seen {
    let gpu = common::gpu();
    let (mut trainer, ..) = block_on(Trainer::among(&gpu, recipe, prepared, &mut First, world, &mut |_| {})).unwrap();
    let (mut steps, mut validation) = (Vec::new(), 0.0);
    let mut observer = |event: &Event| match event {
        Event::Step { loss, grad_norm, .. } => steps.push((loss.to_bits(), grad_norm.to_bits())),
        Event::Validation { loss, .. } => validation = *loss,
        _ => {}
    };
    block_on(run(&gpu, recipe, prepared, &mut trainer, None, &AtomicBool::new(false), &mut observer)).unwrap();
    Seen { steps, validation, pages: block_on(trainer.whole()).unwrap().1 }
}

/// A run by its recipe, on threads; all ranks must have seen the same.
fn train(recipe: &Recipe, prepared: &Prepared) -> Seen {
    let mut seen: Vec<Seen> = std::thread::scope(|scope| {
        let start = |comm| scope.spawn(move || rank(recipe, prepared, &World::of(Arc::new(comm))));
        let threads: Vec<_> = LocalComm::group(recipe.mesh.ranks(), None).into_iter().map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let first = seen.remove(0);
    assert!(seen.iter().all(|other| *other == first), "ranks saw different things");
    first
}

/// Twenty steps by the operators' references, in f64, and how far roundings carry them.
fn spread(recipe: &Recipe, prepared: &Prepared, layout: &ParamLayout) -> Spread {
    let llama = Llama::new(prepared.config.clone());
    let mut graph = Graph::new();
    let params = layout.declare(&mut graph).unwrap();
    let ty = TensorType::u32([recipe.batch, recipe.seq]);
    let mut input = |name| graph.input(name, ty.clone());
    let (tokens, targets, starts) = (input("tokens"), input("targets"), recipe.pack.then(|| input("starts")));
    let loss = llama.loss(&mut graph, &params, tokens, targets, starts).unwrap();
    optimizer(recipe).train_step(&mut graph, layout, &params, loss).unwrap();
    let mut sources = Sources::new();
    for node in graph.nodes().iter().filter(|n| matches!(n.kind, Kind::State)) {
        sources.insert(node.name.clone(), Array::zeros(node.outputs[0].shape.clone()));
    }
    for (i, page) in layout.init(recipe.seed).iter().enumerate() {
        let data = page.iter().map(|&x| f64::from(x)).collect();
        sources.insert(format!("param.{i}"), Array::new(TensorType::f32([page.len()]), data));
    }
    let array = |ids: &[u32]| Array::new(ty.clone(), ids.iter().map(|&id| f64::from(id)).collect());
    let mut batch = prepared.loader.empty_batch();
    let mut batches = Vec::new();
    for step in 0..recipe.steps {
        prepared.loader.batch(step, &mut batch).unwrap();
        let all = [("tokens", &batch.tokens), ("targets", &batch.targets), ("starts", &batch.starts)];
        batches.push(all.into_iter().map(|(name, ids)| (name.into(), array(ids))).collect::<Sources>());
    }
    let step = Step { graph, params };
    let run = |noise: Option<&mut Noise>| -> Numbers {
        step.train_on(sources.clone(), layout, &schedule(recipe), &batches, noise)
    };
    Spread::new(run)
}

/// Losses of all steps and the parameters after them are those of one device, within the bar that is drawn from the roundings of
/// twenty steps; and of each mesh the second run has the bits of the first.
fn meshes_train_what_one_device_trains(name: &str, window: &str, pack: bool, meshes: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let one = Recipe { pack, ..recipe(folder.path(), name, window) };
    let prepared = prepare(&one, &folder.path().join("cache"), &mut |_: &Event| {}).unwrap();
    let subject = danlu::train::Subject::new(&Llama::new(prepared.config.clone()), &one, None, common::gpu().limits());
    let layout = subject.unwrap().layout;
    let mut spread = spread(&one, &prepared, &layout);
    let alone = train(&one, &prepared);
    for (i, text) in meshes.iter().enumerate() {
        eprintln!("{name}, {text}");
        let recipe = Recipe { mesh: mesh(text), out: folder.path().join(text), ..one.clone() };
        let seen = train(&recipe, &prepared);
        let losses: Vec<f64> = seen.steps.iter().map(|(loss, _)| f64::from(f32::from_bits(*loss))).collect();
        let exact = spread.exact["losses"].clone();
        spread.check("losses", &losses, &exact, 0.0);
        for (spec, data) in layout.tensors(&seen.pages) {
            let (name, data) = (format!("final.{}", spec.name), data.iter().map(|&x| f64::from(x)).collect::<Vec<_>>());
            let exact = spread.exact[&name].clone();
            spread.check(&name, &data, &exact, 0.0);
        }
        let off = (seen.validation - alone.validation).abs();
        assert!(off <= 1e-5 * alone.validation, "{text}: {} and {} alone", seen.validation, alone.validation);
        if i == 0 {
            let again = Recipe { out: folder.path().join("again"), ..recipe };
            assert!(train(&again, &prepared) == seen, "{text}: another run gives other bits");
        }
    }
    println!("{name}: worst {:?}", spread.worst);
}

#[test]
fn rows_in_parts_train_what_one_device_trains() {
    let meshes = ["sequence=2", "sequence=4", "data=2,sequence=2", "tensor=2,sequence=2"];
    meshes_train_what_one_device_trains("plain", "null", false, &meshes);
}

/// A window of less than a piece, so that ranks see nothing of some others, and documents over several ranks' pieces.
#[test]
fn windows_and_documents_reach_over_ranks() {
    meshes_train_what_one_device_trains("window", "3", false, &["sequence=4"]);
    meshes_train_what_one_device_trains("packed", "6", true, &["sequence=4", "data=2,tensor=2,sequence=2"]);
}

/// The plan of a rank's batch.
fn plan(config: &ModelConfig, recipe: &Recipe, rank: usize) -> Plan {
    plans_of_rank(rank, config, recipe, None, &Limits::default(), &mut First).unwrap().train
}

/// Keys and values go around once forward, and with their gradients backward: N-1 hops of each (Liu et al., 2023, §3); the bytes
/// of activations that a rank holds fall as its tokens do, and the work is the same on all.
#[test]
fn a_step_sends_what_the_textbook_says_and_memory_falls() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = Recipe { batch: 1, seq: 1024, ..recipe(folder.path(), "plan", "null") };
    let config = ModelConfig::read(Path::new(&recipe.config)).unwrap();
    let arena = |plan: &Plan| plan.totals().arena_bytes as f64;
    let whole = plan(&config, &recipe, 0);
    let layers = config.num_hidden_layers as u64;
    let mut flops = Vec::new();
    for ranks in [2, 4, 8] {
        let recipe = Recipe { mesh: Mesh { sequence: ranks, ..Mesh::ONE }, ..recipe.clone() };
        let n = ranks as u64;
        let own = recipe.seq as u64 / n;
        let keys = 2 * 4 * own * (config.num_key_value_heads * config.head_dim) as u64;
        for rank in 0..ranks {
            let plan = plan(&config, &recipe, rank);
            let hops = n - 1;
            let wanted = Sent { meetings: (layers * 6 * hops) as usize, bytes: layers * 3 * hops * keys };
            assert_eq!(plan.sent()[&Axis::Sequence], wanted, "rank {rank} of {ranks}");
            let share = arena(&plan) / arena(&whole) * ranks as f64;
            println!(
                "rank {rank} of {ranks}: {share:.3} of 1/{ranks} of one device's scratch, {} operations",
                plan.totals().flops
            );
            assert!(share <= 1.3, "rank {rank} of {ranks}: {share} of its share");
            flops.push(plan.totals().flops);
        }
        assert!(flops.iter().all(|f| *f == flops[0]), "{ranks} ranks work differently: {flops:?}");
        flops.clear();
    }
}

#[test]
fn what_cannot_be_split_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = Recipe { mesh: mesh("sequence=2"), ..recipe(folder.path(), "refused", "null") };
    let config = ModelConfig::read(Path::new(&recipe.config)).unwrap();
    let said = |config: &ModelConfig, recipe: &Recipe| {
        plans_of_rank(0, config, recipe, None, &Limits::default(), &mut First).unwrap_err().to_string()
    };
    let text = said(&config, &Recipe { seq: 18, ..recipe.clone() });
    assert!(
        text.contains("rows of 18 tokens cannot be dealt to 2 ranks in two pieces each; choose a multiple of 4"),
        "{text}"
    );
    let path = format!("{}/tests/goldens/families/baichuan-13b/config.json", env!("CARGO_MANIFEST_DIR"));
    let text = said(&ModelConfig::read(Path::new(&path)).unwrap(), &recipe);
    assert!(text.contains("along sequence: its heads see distances by slopes of their own (ALiBi)"), "{text}");
}
