//! Training by several ranks, as threads with a device handle each: the numbers are those of one device.

mod common;

use common::golden::{Numbers, Sources, Step};
use common::interpret::Noise;
use common::spread::Spread;
use danlu::base::{Array, TensorType};
use danlu::comm::LocalComm;
use danlu::compile::First;
use danlu::error::Result;
use danlu::graph::{Graph, Kind};
use danlu::model::Llama;
use danlu::nn::{LoraConfig, ParamLayout};
use danlu::optim::{Optimizer, Rule, Shape, Shard};
use danlu::parallel::Mesh;
use danlu::train::{
    Ending, Event, Precision, Prepared, Recipe, Resumption, Trainer, World, optimizer, plans, prepare, run, schedule,
};
use pollster::block_on;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

const CONFIG: &str = r#"{"model_type": "llama", "vocab_size": 300, "hidden_size": 16, "intermediate_size": 24,
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64,
    "tie_word_embeddings": true}"#;
const STEPS: u64 = 20;

fn recipe(folder: &Path, name: &str) -> Recipe {
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

fn mesh(data: usize) -> Mesh {
    Mesh { data, ..Mesh::ONE }
}

/// What a rank saw of a run.
#[derive(Debug, Clone, PartialEq)]
struct Seen {
    /// Bits of loss and norm of every step.
    steps: Vec<(u32, u32)>,
    validation: f64,
    pages: Vec<Vec<f32>>,
    /// Names of the states that a step changes, and their bytes.
    states: Vec<Vec<u8>>,
}

impl Seen {
    /// Losses of all steps, and the parameters after them, within their bars.
    fn check(&self, spread: &mut Spread, layout: &ParamLayout) {
        let losses = self.steps.iter().map(|(loss, _)| f64::from(f32::from_bits(*loss))).collect();
        let mut got: Vec<(String, Vec<f64>)> = vec![("losses".into(), losses)];
        // Pages that are shared out are longer, and the same but for their ends.
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
fn rank(recipe: &Recipe, prepared: &Prepared, world: &World) -> Result<Seen> {
    let gpu = common::gpu();
    let (mut trainer, ..) = block_on(Trainer::among(&gpu, recipe, prepared, &mut First, world, &mut |_| {}))?;
    go(&gpu, recipe, prepared, &mut trainer, &AtomicBool::new(false)).map(|(seen, _)| seen)
}

/// A trainer's run from where it stands.
fn go(
    gpu: &danlu::gpu::Gpu,
    recipe: &Recipe,
    prepared: &Prepared,
    trainer: &mut Trainer,
    stop: &AtomicBool,
) -> Result<(Seen, Ending)> {
    let (mut steps, mut validation) = (Vec::new(), 0.0);
    let mut observer = |event: &Event| match event {
        Event::Step { loss, grad_norm, .. } => steps.push((loss.to_bits(), grad_norm.to_bits())),
        Event::Validation { loss, .. } => validation = *loss,
        _ => {}
    };
    let ending = block_on(run(gpu, recipe, prepared, trainer, None, stop, &mut observer))?;
    let states = trainer.written_states().iter().map(|s| block_on(trainer.states.read(&s.name)).unwrap()).collect();
    Ok((Seen { steps, validation, pages: block_on(trainer.whole()).unwrap().1, states }, ending))
}

/// The same on as many ranks as the mesh has.
fn ranks<T: Send>(recipe: &Recipe, work: impl Fn(&World) -> T + Sync) -> Vec<T> {
    let work = &work;
    std::thread::scope(|scope| {
        let start = |comm| scope.spawn(move || work(&World::of(Arc::new(comm))));
        let threads: Vec<_> = LocalComm::group(recipe.mesh.ranks(), None).into_iter().map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn prepared(recipe: &Recipe, folder: &Path) -> Prepared {
    prepare(recipe, &folder.join("cache"), &mut |_: &Event| {}).unwrap()
}

/// A run by its recipe; all ranks must have seen the same.
fn train(recipe: &Recipe, folder: &Path) -> Seen {
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

/// Twenty steps by the operators' references, in f64, and how far roundings carry them.
fn spread(recipe: &Recipe, prepared: &Prepared, layout: &ParamLayout) -> Spread {
    let optimizer = optimizer(recipe);
    let llama = Llama::new(prepared.config.clone());
    let mut graph = Graph::new();
    let params = layout.declare(&mut graph).unwrap();
    let ty = TensorType::u32([recipe.batch, recipe.seq]);
    let (tokens, targets) = (graph.input("tokens", ty.clone()), graph.input("targets", ty.clone()));
    let loss = llama.loss(&mut graph, &params, tokens, targets, None).unwrap();
    optimizer.train_step(&mut graph, layout, &params, loss).unwrap();
    let mut sources = Sources::new();
    for node in graph.nodes().iter().filter(|n| matches!(n.kind, Kind::State)) {
        let ty = node.outputs[0].clone();
        sources.insert(node.name.clone(), Array::new(ty.clone(), vec![0.0; ty.shape.elements()]));
    }
    for (i, page) in layout.init(recipe.seed).iter().enumerate() {
        let data = page.iter().map(|&x| f64::from(x)).collect();
        sources.insert(format!("param.{i}"), Array::new(TensorType::f32([page.len()]), data));
    }
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
    Spread::new(run)
}

/// One device, and two ranks, and four, and two of two batches each: losses of twenty steps and the parameters after them within
/// the bar that is drawn from the roundings of twenty steps; and each of them twice, the same bits.
#[test]
fn ranks_train_what_one_device_trains_within_its_roundings() {
    let folder = tempfile::tempdir().unwrap();
    let one = recipe(folder.path(), "one");
    let prepared = prepared(&one, folder.path());
    let layout = ParamLayout::clone(
        &danlu::train::Subject::new(&Llama::new(prepared.config.clone()), &one, None, common::gpu().limits())
            .unwrap()
            .layout,
    );
    let mut spread = spread(&one, &prepared, &layout);
    let (none, optimizer) = (Shard::None, Shard::Optimizer);
    let (one, rings) = (mesh(1), Mesh { data: 2, sequence: 2, ..Mesh::ONE });
    for (name, mesh, batch, accumulate, shard) in [
        ("one", one, 4, 1, none),
        ("two", mesh(2), 4, 1, none),
        ("four", mesh(4), 4, 1, none),
        ("both", mesh(2), 2, 2, none),
        ("shared", mesh(4), 4, 1, optimizer),
        ("rings, shared", rings, 4, 1, optimizer),
    ] {
        let recipe = Recipe { mesh, batch, accumulate, shard, ..recipe(folder.path(), name) };
        let seen = train(&recipe, folder.path());
        seen.check(&mut spread, &layout);
        if mesh.ranks() > 1 {
            let again = Recipe { out: folder.path().join("again"), ..recipe };
            assert!(train(&again, folder.path()) == seen, "{name}: another run gives other bits");
        }
    }
    eprintln!("worst: {:?}", spread.worst);
}

/// The same where each rank has a part of every matrix, and of the batch: losses of twenty steps, norms that clip, the model that
/// is put together, and the folder that is written.
#[test]
fn ranks_with_parts_of_the_model_train_what_one_device_trains() {
    let folder = tempfile::tempdir().unwrap();
    let own = |name: &str| {
        let recipe = recipe(folder.path(), name);
        let config = CONFIG.replace("\"num_key_value_heads\": 1", "\"num_key_value_heads\": 2");
        std::fs::write(folder.path().join("config.json"), config).unwrap();
        recipe
    };
    let one = own("one");
    let prepared = prepared(&one, folder.path());
    let subject = danlu::train::Subject::new(&Llama::new(prepared.config.clone()), &one, None, common::gpu().limits());
    let layout = subject.unwrap().layout;
    let mut spread = spread(&one, &prepared, &layout);
    for (name, data, batch, accumulate) in [("tensor", 1, 4, 1), ("both", 2, 4, 1), ("several", 1, 2, 2)] {
        let mesh = Mesh { data, tensor: 2, ..Mesh::ONE };
        let recipe = Recipe { mesh, batch, accumulate, ..own(name) };
        let seen = train(&recipe, folder.path());
        seen.check(&mut spread, &layout);
        let written = danlu::store::load_folder(&recipe.out, &prepared.config, &layout).unwrap();
        assert!(written == seen.pages, "{name}: another model lies in the folder");
        if name == "both" {
            let again = Recipe { out: folder.path().join("again"), ..recipe };
            assert!(train(&again, folder.path()) == seen, "{name}: another run gives other bits");
        }
    }
    eprintln!("worst: {:?}", spread.worst);
}

/// What ranks compute of their parts of a batch and add up is what one device computes of as many batches and adds up, to the
/// bit: in strict and in mixed precision, with packed rows, with adapters over a frozen base, with any optimizer.
#[test]
fn ranks_give_the_bits_of_as_many_batches() {
    let folder = tempfile::tempdir().unwrap();
    let base = Recipe { steps: 3, eval_every: Some(3), ..recipe(folder.path(), "base") };
    train(&base, folder.path());
    let model = Some(base.out.to_str().unwrap().to_string());
    let lora = || Some(LoraConfig { rank: 4, ..LoraConfig::default() });
    let short = |name: &str| Recipe { steps: 6, eval_every: Some(6), ..recipe(folder.path(), name) };
    let rows = [
        ("strict", 2, short("strict")),
        ("mixed", 2, Recipe { precision: Precision::Mixed, ..short("mixed") }),
        ("packed", 4, Recipe { pack: true, optimizer: Rule::Muon, ..short("packed") }),
        ("eight bits", 2, Recipe { optimizer: Rule::AdamW8bit, ema: 0.9, ..short("eight") }),
        ("adapters", 2, Recipe { model, lora: lora(), ..short("adapters") }),
    ];
    for (name, data, recipe) in rows {
        let shared = train(&Recipe { mesh: mesh(data), ..recipe.clone() }, folder.path());
        let alone = Recipe { batch: recipe.batch / data, accumulate: data as u32, ..recipe };
        let alone = train(&Recipe { out: folder.path().join("alone"), ..alone }, folder.path());
        assert!(shared.steps == alone.steps, "{name}: {:?} where one device has {:?}", shared.steps, alone.steps);
        assert!(shared.pages == alone.pages && shared.states == alone.states, "{name}: parameters or moments differ");
        // Rows are held out in the same order; only their sums are made in another.
        let close = (shared.validation - alone.validation).abs() <= 1e-6 * alone.validation;
        assert!(close, "{name}: {} where one device has {}", shared.validation, alone.validation);
    }
}

/// What dropout leaves out is the same whoever computes which rows.
#[test]
fn dropout_is_that_of_the_whole_batch() {
    let folder = tempfile::tempdir().unwrap();
    let base = Recipe { steps: 2, eval_every: Some(2), ..recipe(folder.path(), "base") };
    train(&base, folder.path());
    let lora = LoraConfig { rank: 4, dropout: 0.5, ..LoraConfig::default() };
    let recipe = |name: &str, ranks| Recipe {
        steps: 1,
        model: Some(base.out.to_str().unwrap().into()),
        lora: Some(lora.clone()),
        mesh: mesh(ranks),
        ..recipe(folder.path(), name)
    };
    let [one, two] = [1, 2].map(|ranks| train(&recipe(&format!("ranks-{ranks}"), ranks), folder.path()));
    // Of one step, adapters that begin at zero: the norm depends on what is left out of the adapters' inputs, and another half
    // would be felt in its first digits.
    let norms = [&one, &two].map(|seen| f32::from_bits(seen.steps[0].1));
    assert!((norms[0] - norms[1]).abs() <= 1e-4 * norms[0], "{norms:?}");
    let plain = train(&Recipe { seed: 7, ..recipe("other", 1) }, folder.path());
    let other = f32::from_bits(plain.steps[0].1);
    assert!((norms[0] - other).abs() > 1e-3 * norms[0], "{other} and {norms:?}: what is left out does not show");
}

/// Ranks that have computed something else, at the start or on the way, are told apart; nobody goes on.
#[test]
fn a_rank_with_other_parameters_ends_the_run_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = Recipe { batch: 3, mesh: mesh(3), ..recipe(folder.path(), "ranks") };
    let prepared = prepared(&recipe, folder.path());
    for after in [0, 7] {
        let told = ranks(&recipe, |world| {
            let gpu = common::gpu();
            let (mut trainer, ..) =
                block_on(Trainer::among(&gpu, &recipe, &prepared, &mut First, world, &mut |_| {})).unwrap();
            let states = trainer.states.clone();
            let harm = || block_on(states.write("param.0", 64, &[0, 0, 0, 64])).unwrap();
            if after == 0 && world.rank() == 1 {
                harm();
            }
            // A bit flips after step five; ranks compare after the seventh.
            let mut observer = |event: &Event| {
                if matches!(event, Event::Step { step: 5, .. }) && world.rank() == 1 {
                    harm();
                }
            };
            let stop = AtomicBool::new(false);
            block_on(run(&gpu, &recipe, &prepared, &mut trainer, None, &stop, &mut observer)).unwrap_err().to_string()
        });
        let text = format!("ranks: rank 1 has parameters other than most of the 3, after step {after}");
        assert_eq!(told, vec![text; 3]);
    }
    let other = Recipe { lr: 1e-3, ..recipe.clone() };
    let told = ranks(&recipe, |world| {
        let recipe = if world.rank() == 2 { &other } else { &recipe };
        rank(recipe, &prepared, world).unwrap_err().to_string()
    });
    assert_eq!(told, vec!["ranks: rank 2 has a recipe other than most of the 3".to_string(); 3]);
}

/// Each rank keeps one part in N of the moments, no more; and what it sends is what textbooks allow: of every gradient and of
/// every parameter the (N-1)/N that are others'. Where nothing depends on the norm, whose sum is made in another order, all numbers
/// are those of ranks that keep everything, to the bit.
#[test]
fn moments_are_shared_out_and_change_no_number() {
    let folder = tempfile::tempdir().unwrap();
    let short = |name: &str| Recipe {
        steps: 6,
        eval_every: Some(6),
        clip: 0.0,
        batch: 6,
        mesh: mesh(3),
        ..recipe(folder.path(), name)
    };
    for (rule, accumulate) in [(Rule::AdamW, 1), (Rule::AdamW8bit, 2), (Rule::Sgd, 1)] {
        let whole = Recipe { optimizer: rule, accumulate, ..short("whole") };
        let shared = Recipe { shard: Shard::Optimizer, out: folder.path().join("shared"), ..whole.clone() };
        let [all, own] = [&whole, &shared].map(|recipe| train(recipe, folder.path()));
        for (step, (all, own)) in all.steps.iter().zip(&own.steps).enumerate() {
            assert_eq!(all.0, own.0, "{rule:?}: loss of step {step}");
            let [all, own] = [all.1, own.1].map(f32::from_bits);
            assert!((all - own).abs() <= 1e-5 * all, "{rule:?}: norm of step {step}: {own} where {all} was expected");
        }
        for (page, padded) in all.pages.iter().zip(&own.pages) {
            assert!(*page == padded[..page.len()], "{rule:?}: parameters differ");
        }
        let prepared = prepared(&whole, folder.path());
        let limits = danlu::base::Limits::default();
        let [all, own] =
            [&whole, &shared].map(|r| plans(&prepared.config, r, None, &limits, &mut First).unwrap().apply.unwrap());
        let states = |plan: &danlu::compile::Plan, moments: bool| -> u64 {
            let of = plan.written_states().into_iter();
            let bytes = of.filter(|(name, _)| Optimizer::is_moment(name) == moments && !Optimizer::is_sum(name));
            bytes.map(|(_, bytes)| bytes).sum()
        };
        let (pages, padding) = (4 * own_elements(&own), 3 * Optimizer::unit(3));
        assert!(3 * states(&own, true) - states(&all, true) <= padding, "{rule:?}: {} a rank", states(&own, true));
        assert_eq!(states(&own, false) - 32, pages, "all of the parameters, and how the step was judged");
        let sent = own.sent()[&danlu::base::Axis::Data].bytes;
        // Two thirds of each, and some words of norms and losses.
        let least = 2 * pages * 2 / 3;
        assert!((least..least + 64).contains(&sent), "{rule:?}: {sent} bytes are sent, {least} must be");
    }
}

/// Elements of the parameters' pages in a plan.
fn own_elements(plan: &danlu::compile::Plan) -> u64 {
    let pages = plan.written_states().into_iter().filter(|(name, _)| name.starts_with("param."));
    pages.map(|(_, bytes)| bytes / 4).sum()
}

/// A run that goes on by this recipe from its last checkpoint.
fn go_on(recipe: &Recipe, folder: &Path) -> Seen {
    let mut found = Resumption::find(&recipe.out, &mut |note| panic!("{note}")).unwrap();
    found.change(recipe.clone()).unwrap();
    let prepared = prepared(recipe, folder);
    let mut seen = ranks(recipe, |world| {
        let gpu = common::gpu();
        let (mut trainer, ..) =
            block_on(Trainer::among(&gpu, recipe, &prepared, &mut First, world, &mut |_| {})).unwrap();
        block_on(found.restore(&mut trainer, &prepared)).unwrap();
        go(&gpu, recipe, &prepared, &mut trainer, &AtomicBool::new(false)).unwrap().0
    });
    seen.remove(0)
}

/// Every rank writes its own moments; a run that stopped on four ranks goes on there as if nothing had happened, and on two,
/// three, one, sharing moments or not, within roundings.
#[test]
fn what_ranks_wrote_any_other_ranks_read() {
    let folder = tempfile::tempdir().unwrap();
    let of = |name: &str, steps, mesh, shard| Recipe {
        steps,
        warmup: Some(1),
        schedule: Shape::Constant,
        eval_every: Some(3),
        batch: 12,
        mesh,
        shard,
        optimizer: Rule::AdamW8bit,
        ..recipe(folder.path(), name)
    };
    let calm = train(&of("calm", 9, mesh(4), Shard::Optimizer), folder.path());
    train(&of("run", 3, mesh(4), Shard::Optimizer), folder.path());
    let parts = folder.path().join("run/checkpoints/rank-3/step-3/manifest.json");
    assert!(parts.is_file(), "every rank has a folder of its own");
    let copied = folder.path().join("other");
    copy(&folder.path().join("run"), &copied);
    let same = go_on(&of("run", 9, mesh(4), Shard::Optimizer), folder.path());
    assert!(
        same.pages == calm.pages && same.steps == calm.steps[3..],
        "four ranks go on otherwise than they would have"
    );
    let rings = Mesh { sequence: 2, ..Mesh::ONE };
    let layouts = [
        (5, mesh(2), Shard::Optimizer),
        (7, mesh(3), Shard::Optimizer),
        (8, rings, Shard::Optimizer),
        (9, mesh(1), Shard::None),
    ];
    let mut seen = Vec::new();
    for (steps, mesh, shard) in layouts {
        seen.extend(go_on(&of("other", steps, mesh, shard), folder.path()).steps);
    }
    assert_eq!(seen.len(), 6);
    for (step, (got, expected)) in seen.iter().zip(&calm.steps[3..]).enumerate() {
        let [got, expected] = [got, expected].map(|(loss, _)| f32::from_bits(*loss));
        // Codes of eight bits turn a rounding into a step of their own, a hundredth of a moment.
        assert!((got - expected).abs() <= 1e-3 * expected, "step {}: {got} where {expected} was expected", step + 4);
    }
    // A part that is damaged makes no checkpoint: the one before is taken, aloud.
    let part = folder.path().join("run/checkpoints/rank-2/step-9/manifest.json");
    std::fs::write(&part, "{}").unwrap();
    let mut said = Vec::new();
    let found = Resumption::find(&folder.path().join("run"), &mut |note| said.push(note)).unwrap();
    assert_eq!(found.step(), 6);
    assert!(said.len() == 1 && said[0].contains("step 9 is not used"), "{said:?}");
}

fn copy(from: &Path, to: &Path) {
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
