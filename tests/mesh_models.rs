//! Ranks that hold parts of a model, through the trainer: what they write any other mesh reads, and whatever is trained like
//! that is what one device trains.

mod common;

use common::golden::{Sources, Step, interpret};
use common::interpret::Noise;
use common::ranks::{CONFIG, Seen, copy, go_on, layout_of, prepared, ranks, recipe, spread, states_of, train};
use common::spread::Spread;
use danlu::base::{Array, TensorType};
use danlu::compile::First;
use danlu::data::{DataSource, DataSources};
use danlu::graph::Graph;
use danlu::model::{DpoConfig, PairInputs, PreferenceLoss, preference};
use danlu::nn::{BaseDtype, Declare, LoraConfig, ParamLayout};
use danlu::optim::{Rule, Shape, Shard};
use danlu::parallel::Mesh;
use danlu::store::{Checkpoint, load_folder};
use danlu::train::{
    Event, Precision, Prepared, Recipe, Resumption, Rewards, TrainedRun, Trainer, optimizer, run, schedule,
};
use pollster::block_on;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

/// Heads that four ranks can share.
fn four_heads(folder: &Path, name: &str) -> Recipe {
    let recipe = recipe(folder, name);
    let config = CONFIG.replace("_heads\": 2", "_heads\": 4").replace("_heads\": 1", "_heads\": 4");
    std::fs::write(folder.join("config.json"), config).unwrap();
    recipe
}

fn on(mesh: &str) -> Mesh {
    mesh.parse().unwrap()
}

/// Each rank writes its parts of parameters and moments. The same mesh goes on as if nothing had happened; any other within
/// roundings of one device's nine steps; and what was written last is a Hugging Face folder, whoever exports it.
#[test]
fn what_ranks_with_parts_wrote_any_mesh_reads() {
    let folder = tempfile::tempdir().unwrap();
    let of = |name: &str, steps, mesh: &str| Recipe {
        steps,
        warmup: Some(1),
        schedule: Shape::Constant,
        eval_every: Some(3),
        mesh: on(mesh),
        ..four_heads(folder.path(), name)
    };
    let calm = train(&of("calm", 9, "tensor=2"), folder.path());
    train(&of("run", 3, "tensor=2"), folder.path());
    let part = folder.path().join("run/checkpoints/rank-1/step-3/manifest.json");
    assert!(part.is_file(), "every rank has a folder of its own");
    let copied = folder.path().join("other");
    copy(&folder.path().join("run"), &copied);
    let same = go_on(&of("run", 9, "tensor=2"), folder.path());
    assert!(same.pages == calm.pages && same.steps == calm.steps[3..], "the same ranks go on otherwise");
    let one = of("one", 9, "data=1");
    let prepared = prepared(&one, folder.path());
    let layout = layout_of(&one, &prepared);
    let mut spread = spread(&one, &prepared, &layout);
    calm.check(&mut spread, &layout);
    let mut all = Seen { steps: calm.steps[..3].to_vec(), ..calm.clone() };
    for (steps, mesh, shard) in [
        (4, "data=2", Shard::None),
        (5, "data=1", Shard::None),
        (6, "tensor=4", Shard::None),
        (8, "data=2,tensor=2", Shard::None),
        (9, "data=2", Shard::Optimizer),
    ] {
        let seen = go_on(&Recipe { shard, ..of("other", steps, mesh) }, folder.path());
        all = Seen { steps: [all.steps, seen.steps].concat(), pages: seen.pages, ..all };
        let snapshot = TrainedRun::open(&copied.join(format!("checkpoints/step-{steps}"))).unwrap();
        let exported = folder.path().join(format!("exported-{steps}"));
        snapshot.write_checkpoint(&exported, None, &folder.path().join("cache"), &mut |_: &Event| {}).unwrap();
        let written = load_folder(&exported, &prepared.config, &layout).unwrap();
        assert!(written.iter().zip(&all.pages).all(|(a, b)| *a == b[..a.len()]), "{mesh}: what is exported differs");
    }
    all.check(&mut spread, &layout);
    eprintln!("worst: {:?}", spread.worst);
    // Without a rank's folder none of the kept checkpoints is whole; the run is neither taken up nor begun over.
    std::fs::remove_dir_all(copied.join("checkpoints/rank-1")).unwrap();
    let refused = Resumption::find(&copied, &mut |_| {}).unwrap_err().to_string();
    assert!(refused.contains("step 9 is not used") && refused.contains("Bring back what is missing"), "{refused}");
}

/// Moments of eight bits lie in blocks of a rank's own pages: the same mesh takes them as they are; another rounds them anew,
/// says so, and goes on within what that rounding may do.
#[test]
fn moments_of_eight_bits_are_rounded_anew_on_another_mesh() {
    let folder = tempfile::tempdir().unwrap();
    let of = |name: &str, steps, mesh: &str| Recipe {
        steps,
        warmup: Some(1),
        schedule: Shape::Constant,
        eval_every: Some(3),
        mesh: on(mesh),
        optimizer: Rule::AdamW8bit,
        ..four_heads(folder.path(), name)
    };
    let calm = train(&of("calm", 6, "tensor=2"), folder.path());
    train(&of("run", 3, "tensor=2"), folder.path());
    copy(&folder.path().join("run"), &folder.path().join("other"));
    let same = go_on(&of("run", 6, "tensor=2"), folder.path());
    assert!(same.pages == calm.pages && same.steps == calm.steps[3..], "the same ranks go on otherwise");
    let mut seen = go_on(&of("other", 5, "data=2"), folder.path()).steps;
    seen.extend(go_on(&of("other", 6, "tensor=4"), folder.path()).steps);
    for (step, (got, expected)) in seen.iter().zip(&calm.steps[3..]).enumerate() {
        let [got, expected] = [got, expected].map(|(loss, _)| f32::from_bits(*loss));
        // Codes of eight bits turn a rounding into a step of their own, a hundredth of a moment.
        assert!((got - expected).abs() <= 1e-3 * expected, "step {}: {got} where {expected} was expected", step + 4);
    }
}

/// A tiny model with matrices of 128 columns, which NF4's blocks allow to be in two parts.
fn wide(folder: &Path, name: &str) -> Recipe {
    let recipe = recipe(folder, name);
    let config = CONFIG
        .replace("\"hidden_size\": 16, \"intermediate_size\": 24", "\"hidden_size\": 128, \"intermediate_size\": 128")
        .replace("_heads\": 1", "_heads\": 2");
    std::fs::write(folder.join("config.json"), config).unwrap();
    recipe
}

/// A whole model that is gone on with, adapters beside it in f32 and over NF4, and Muon: each rank reads its own parts of the
/// weights from disk, and what all of them compute is what one device does; twice the same bits. What is written is whole.
#[test]
fn models_and_adapters_in_parts_are_trained_as_by_one_device() {
    let folder = tempfile::tempdir().unwrap();
    let of = |name: &str| Recipe { steps: 3, eval_every: Some(3), ..four_heads(folder.path(), name) };
    let base = of("base");
    train(&base, folder.path());
    let model = Some(base.out.to_str().unwrap().to_string());
    let lora = LoraConfig { rank: 4, ..LoraConfig::default() };
    let large = Recipe { steps: 1, batch: 2, seq: 8, ..wide(folder.path(), "large") };
    train(&large, folder.path());
    let quantised = Recipe {
        steps: 2,
        model: Some(large.out.to_str().unwrap().into()),
        lora: Some(LoraConfig { base_dtype: BaseDtype::Nf4, ..lora.clone() }),
        out: folder.path().join("quantised"),
        ..large
    };
    let rows = [
        ("model", "tensor=4", Recipe { model: model.clone(), ..of("model") }),
        ("adapters", "data=2,tensor=2", Recipe { model, lora: Some(lora), ..of("adapters") }),
        ("quantised", "tensor=2", quantised),
        ("muon", "tensor=2", Recipe { optimizer: Rule::Muon, ..of("muon") }),
    ];
    for (name, mesh, one) in rows {
        let prepared = prepared(&one, folder.path());
        let layout = layout_of(&one, &prepared);
        let mut spread = spread(&one, &prepared, &layout);
        let recipe = Recipe { mesh: on(mesh), ..one };
        let seen = train(&recipe, folder.path());
        seen.check(&mut spread, &layout);
        let again = Recipe { out: folder.path().join("again"), ..recipe.clone() };
        assert!(train(&again, folder.path()) == seen, "{name}: another run gives other bits");
        if recipe.lora.is_some() {
            let adapter = Checkpoint::open(Path::new(recipe.model.as_ref().unwrap())).unwrap();
            assert!(adapter.adapt(&recipe.out).is_ok(), "{name}: what is written is no adapter of the model");
        } else {
            let written = load_folder(&recipe.out, &prepared.config, &layout).unwrap();
            assert!(written == seen.pages, "{name}: another model lies in the folder");
        }
        eprintln!("{name}, {mesh}: worst {:?}", spread.worst);
    }
}

/// Samples, and a model that is written, where the first rank's host has room for all of it, and only there; recomputation, mixed precision with averages and packed rows of several lengths: what is recomputed changes no bit, the
/// same layout gives the same bits, and killed runs go on as if nothing had happened.
#[test]
fn whatever_else_a_recipe_asks_for_goes_with_parts() {
    let folder = tempfile::tempdir().unwrap();
    let of = |name: &str| Recipe {
        steps: 4,
        warmup: Some(1),
        schedule: Shape::Constant,
        eval_every: Some(2),
        mesh: on("tensor=2"),
        ..four_heads(folder.path(), name)
    };
    let plain = of("plain");
    let ready = prepared(&plain, folder.path());
    let see = |recipe: &Recipe, host_memory: fn() -> Option<u64>| {
        let told = Mutex::new((Vec::new(), Vec::new()));
        let bytes = ranks(recipe, |world| {
            let gpu = common::gpu();
            let (mut trainer, ..) =
                block_on(Trainer::among(&gpu, recipe, &ready, &mut First, world, &mut |_| {})).unwrap();
            // The first rank's counts.
            trainer.host_memory = if world.is_first() { host_memory } else { || Some(0) };
            let mut observer = |event: &Event| match event {
                Event::Sample { text, .. } => told.lock().unwrap().0.push(text.clone()),
                Event::Note { text } if world.is_first() && text.contains("no room") => {
                    told.lock().unwrap().1.push(text.clone())
                }
                _ => {}
            };
            block_on(run(&gpu, recipe, &ready, &mut trainer, None, &AtomicBool::new(false), &mut observer)).unwrap();
            trainer.device_bytes()
        });
        (bytes[0], told.into_inner().unwrap())
    };
    let (bytes, (texts, notes)) = see(&plain, || None);
    assert!(texts.len() == 2 && texts.iter().all(|text| text.len() > plain.prompt.len()), "{texts:?}");
    assert!(notes.is_empty() && plain.out.join("model.safetensors").is_file(), "{notes:?}");
    let narrow = of("narrow");
    // Of f32 parameters the model has 300·16 and more.
    let (_, (texts, notes)) = see(&narrow, || Some(4 * 4800));
    let parts = ["there are no samples or tasks on the way", "`danlu export"];
    assert!(
        texts.is_empty() && notes.len() == 2 && notes.iter().zip(parts).all(|(note, part)| note.contains(part)),
        "{notes:?}"
    );
    assert!(!narrow.out.join("model.safetensors").exists());
    let exported = folder.path().join("exported");
    let snapshot = TrainedRun::open(&narrow.out.join("checkpoints/step-4")).unwrap();
    snapshot.write_checkpoint(&exported, None, &folder.path().join("cache"), &mut |_: &Event| {}).unwrap();
    let [exported, whole] =
        [&exported, &plain.out].map(|folder| std::fs::read(folder.join("model.safetensors")).unwrap());
    assert!(exported == whole, "what is exported differs");
    let memory = Some(danlu::base::Bytes(bytes - 1));
    let [all, less] = [plain, Recipe { memory, ..of("less") }].map(|recipe| train(&recipe, folder.path()));
    assert!(all.steps == less.steps && all.pages == less.pages, "what is computed again is something else");
    let rich = |name: &str| Recipe {
        precision: Precision::Mixed,
        ema: 0.9,
        pack: true,
        accumulate: 2,
        mesh: on("data=2,tensor=2"),
        ..of(name)
    };
    let calm = train(&rich("calm"), folder.path());
    train(&Recipe { steps: 2, ..rich("killed") }, folder.path());
    let gone_on = go_on(&rich("killed"), folder.path());
    assert!(gone_on.pages == calm.pages && gone_on.steps == calm.steps[2..], "a run that is taken up gives other bits");
    let one = train(&Recipe { mesh: Mesh::ONE, ..rich("one") }, folder.path());
    for (step, (got, expected)) in calm.steps.iter().zip(&one.steps).enumerate() {
        let [got, expected] = [got, expected].map(|(loss, _)| f64::from(f32::from_bits(*loss)));
        // Sums of at most 24 products of factors that f16 rounds, each by 2^-11: what a token's loss may move by.
        assert!(
            (got - expected).abs() <= 24.0 * 2f64.powi(-11) * expected,
            "step {step}: {got} where one has {expected}"
        );
    }
}

/// The same with experts, whose balance is no part of the loss of pairs.
fn with_experts(folder: &Path, name: &str) -> Recipe {
    let (recipe, file) = (four_heads(folder, name), folder.join("config.json"));
    let experts = "\"num_local_experts\": 4, \"num_experts_per_tok\": 2, \"output_router_logits\": true, \
                   \"router_aux_loss_coef\": 0.05, \"max_position";
    let config = std::fs::read_to_string(&file).unwrap().replace("\"llama\"", "\"mixtral\"");
    std::fs::write(file, config.replace("\"max_position", experts)).unwrap();
    recipe
}

/// A recipe of this name of a model that is written to a folder.
type Of = fn(&Path, &str) -> Recipe;

/// A recipe of preference pairs, for a model that is written first.
fn pairs(folder: &Path, base: Recipe) -> Recipe {
    let base = Recipe { steps: 2, eval_every: Some(2), ..base };
    train(&base, folder);
    let pair = |i: usize| {
        let who = ["cat", "dog", "mat"][i % 3];
        format!("{{\"prompt\": \"A {who}:\", \"chosen\": \"The {who} ran.\", \"rejected\": \"red {who} to\"}}\n")
    };
    let file = folder.join("pairs.jsonl");
    std::fs::write(&file, (0..27).map(pair).collect::<String>()).unwrap();
    Recipe {
        steps: 3,
        eval_every: Some(3),
        model: Some(base.out.to_str().unwrap().into()),
        data: DataSources(vec![DataSource { path: file, weight: 1.0 }]),
        seq: 24,
        dpo: Some(DpoConfig::default()),
        ..recipe(folder, "pairs")
    }
}

/// What a rank saw of preference pairs: bits of the losses, rewards, and what is trained in the end.
type Preferred = (Vec<(u32, Rewards)>, Vec<Vec<f32>>);

/// The same of each rank of a run by its recipe.
fn prefer(recipe: &Recipe, folder: &Path) -> Vec<Preferred> {
    let ready = prepared(recipe, folder);
    ranks(recipe, |world| {
        let gpu = common::gpu();
        let (mut trainer, ..) = block_on(Trainer::among(&gpu, recipe, &ready, &mut First, world, &mut |_| {})).unwrap();
        let (stop, mut seen) = (AtomicBool::new(false), Vec::new());
        let cache = folder.join("cache");
        block_on(trainer.take_reference(recipe, &ready, &cache, &stop, &mut |_: &Event| {})).unwrap();
        let mut observer = |event: &Event| match event {
            Event::Step { loss, rewards, .. } => seen.push((loss.to_bits(), rewards.unwrap())),
            Event::Validation { rewards, .. } => assert!(rewards.is_some()),
            _ => {}
        };
        block_on(run(&gpu, recipe, &ready, &mut trainer, None, &stop, &mut observer)).unwrap();
        (seen, block_on(trainer.whole()).unwrap().1)
    })
}

/// Preference pairs over the data axis, through a pipeline, by another loss too, and over both: the bits of one device that takes as
/// many batches, and rewards that are means over all ranks that have some.
#[test]
fn preferences_over_ranks_are_those_of_as_many_batches() {
    let folder = tempfile::tempdir().unwrap();
    let base = recipe(folder.path(), "base");
    let config = CONFIG.replace("\"num_hidden_layers\": 1", "\"num_hidden_layers\": 2");
    std::fs::write(folder.path().join("config.json"), config).unwrap();
    let pairs = Recipe { clip: 0.0, ..pairs(folder.path(), base) };
    let of = |loss: PreferenceLoss, mesh: &str, batch, accumulate| Recipe {
        batch,
        accumulate,
        mesh: on(mesh),
        dpo: Some(DpoConfig { loss, ..DpoConfig::default() }),
        lora: Some(LoraConfig { rank: 4, ..LoraConfig::default() }),
        out: folder.path().join(format!("{loss:?}-{mesh}")),
        ..pairs.clone()
    };
    let rows = [
        (PreferenceLoss::Sigmoid, &[("data=2", 4, 1), ("pipeline=2", 2, 2), ("data=2,pipeline=2", 4, 1)][..]),
        (PreferenceLoss::Ipo, &[("pipeline=2", 2, 2)][..]),
    ];
    let mut ended = Vec::new();
    for (loss, meshes) in rows {
        let alone = prefer(&of(loss, "data=1", 2, 2), folder.path()).remove(0);
        let over = |&(mesh, batch, accumulate)| prefer(&of(loss, mesh, batch, accumulate), folder.path());
        are_those_of_one(&alone, &meshes.iter().flat_map(over).collect::<Vec<_>>());
        ended.push(alone.1);
    }
    assert!(ended[0] != ended[1], "both losses train the same");
}

/// In a later epoch a rank gets pairs of which another found the reference: its own walk over the steps comes by them, too.
#[test]
fn pairs_have_references_in_every_epoch() {
    let folder = tempfile::tempdir().unwrap();
    let pairs = pairs(folder.path(), recipe(folder.path(), "base"));
    let word = |i: usize| ["cat", "dog", "mat", "red", "ran", "sat"][i];
    let pair = |i: usize| {
        let prompt = format!("{} {}:", word(i % 6), word(i / 6));
        format!("{{\"prompt\": \"{prompt}\", \"chosen\": \"ran\", \"rejected\": \"to\"}}\n")
    };
    std::fs::write(folder.path().join("pairs.jsonl"), (0..9).map(pair).collect::<String>()).unwrap();
    let lora = Some(LoraConfig { rank: 4, ..LoraConfig::default() });
    let recipe = Recipe { steps: 6, eval_every: Some(6), batch: 4, mesh: on("data=2"), lora, ..pairs };
    let epochs = recipe.steps * 8 / prepared(&recipe, folder.path()).loader.rows_per_epoch();
    assert!(epochs >= 2, "{epochs}");
    assert!(prefer(&recipe, folder.path()).iter().all(|(seen, _)| seen.len() == 6));
}

fn are_those_of_one(alone: &Preferred, all: &[Preferred]) {
    for (seen, pages) in all {
        assert!(*pages == alone.1, "ranks have other parameters than one device");
        assert_eq!(seen.len(), alone.0.len());
        for ((loss, rewards), (expected, of_one)) in seen.iter().zip(&alone.0) {
            assert_eq!(loss, expected);
            let apart =
                [rewards.chosen - of_one.chosen, rewards.rejected - of_one.rejected, rewards.margin - of_one.margin];
            // Sums in another order, of numbers that are f32.
            assert!(
                apart.iter().all(|x| x.abs() <= 1e-6) && rewards.accuracy == of_one.accuracy,
                "{rewards:?}, {of_one:?}"
            );
        }
    }
}

/// Preference pairs by the operators' references, from what a fresh trainer holds; the reference of the pairs is found so, too.
fn spread_of_pairs(recipe: &Recipe, prepared: &Prepared, layout: &ParamLayout) -> Spread {
    let (trainer, ..) = block_on(Trainer::new(&common::gpu(), recipe, prepared, &mut First)).unwrap();
    let rows = 2 * recipe.batch;
    let ty = TensorType::u32([rows, recipe.seq]);
    let of_answers = |g: &mut Graph| {
        let params = trainer.subject.declare(g).unwrap();
        let [tokens, targets] = ["tokens", "targets"].map(|name| g.input(name, ty.clone()));
        let log_probs = trainer.model.log_probs(g, &params, tokens, targets, None).unwrap();
        let of = PairInputs { reference: g.input("reference", TensorType::f32([rows])), token: None };
        (params, preference(g, log_probs, of, recipe.dpo.as_ref().unwrap(), None).unwrap())
    };
    let [mut before, mut graph] = [(); 2].map(|()| Graph::new());
    let (_, said) = of_answers(&mut before);
    before.output("answers", said.answers);
    let (params, said) = of_answers(&mut graph);
    optimizer(recipe).train_step(&mut graph, layout, &params, said.loss).unwrap();
    let sources = states_of(&trainer, &graph);
    let mut batch = prepared.loader.empty_batch();
    let mut batches = Vec::new();
    for step in 0..recipe.steps {
        prepared.loader.batch(step, &mut batch).unwrap();
        let ids = |ids: &[u32]| Array::new(ty.clone(), ids.iter().map(|&id| f64::from(id)).collect());
        batches.push(Sources::from([
            ("tokens".into(), ids(&batch.tokens)),
            ("targets".into(), ids(&batch.targets)),
            ("reference".into(), Array::zeros([rows])),
        ]));
    }
    let step = Step { graph, params };
    Spread::new(|mut noise: Option<&mut Noise>| {
        let mut batches = batches.clone();
        for batch in &mut batches {
            let known: Sources = sources.clone().into_iter().chain(batch.clone()).collect();
            let answers = interpret(&before, &known, noise.as_deref_mut()).remove("answers").unwrap();
            batch.insert("reference".into(), Array::new(TensorType::f32([rows]), answers));
        }
        step.train_on(sources.clone(), layout, &schedule(recipe), &batches, noise)
    })
}

/// The same where ranks have some of each row's tokens: an answer's are on several of them, all of which hear what all say of it;
/// and where they have some of each matrix and of the words, beside adapters too, and of the experts.
#[test]
fn preferences_of_what_is_in_parts_are_those_of_one_device() {
    let folder = tempfile::tempdir().unwrap();
    let lora = LoraConfig { rank: 4, ..LoraConfig::default() };
    let (dense, mixture): (Of, Of) = (four_heads, with_experts);
    let rows = [
        (dense, None, &["sequence=2", "data=2,sequence=2", "tensor=2"][..]),
        (dense, Some(lora), &["data=2,tensor=2"][..]),
        (mixture, None, &["data=2,tensor=2,expert=2"][..]),
    ];
    for (base, lora, meshes) in rows {
        let one = Recipe { batch: 2, lora, ..pairs(folder.path(), base(folder.path(), "base")) };
        let prepared = prepared(&one, folder.path());
        let layout = layout_of(&one, &prepared);
        let mut spread = spread_of_pairs(&one, &prepared, &layout);
        for mesh in meshes {
            let recipe = Recipe { mesh: on(mesh), out: folder.path().join(mesh), ..one.clone() };
            let seen = prefer(&recipe, folder.path());
            assert!(seen.iter().all(|other| *other == seen[0]), "{mesh}: ranks saw different things");
            let losses: Vec<f64> = seen[0].0.iter().map(|(loss, _)| f64::from(f32::from_bits(*loss))).collect();
            let exact = spread.exact["losses"].clone();
            spread.check("losses", &losses, &exact, 0.0);
            for (spec, data) in layout.tensors(&seen[0].1) {
                let name = format!("final.{}", spec.name);
                let (data, exact) =
                    (data.iter().map(|&x| f64::from(x)).collect::<Vec<_>>(), spread.exact[&name].clone());
                spread.check(&name, &data, &exact, 0.0);
            }
            let again = Recipe { out: folder.path().join("again"), ..recipe };
            assert!(prefer(&again, folder.path()) == seen, "{mesh}: another run gives other bits");
        }
        eprintln!("{meshes:?}: worst {:?}", spread.worst);
    }
    let dropping = Recipe { expert_capacity: Some(1.25), mesh: on("data=2,expert=2"), ..Recipe::preferring(true) };
    let said = dropping.check().unwrap_err().to_string();
    assert!(
        said.contains("expert_capacity is 1.25, and preference pairs are compared with what the model says"),
        "{said}"
    );
}
