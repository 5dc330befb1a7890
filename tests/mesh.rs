//! Training by several ranks, as threads with a device handle each: the numbers are those of one device.

mod common;
#[path = "mesh/adapters.rs"]
mod adapters;
#[path = "mesh/experts.rs"]
mod experts;
#[path = "mesh/older.rs"]
mod older;
#[path = "mesh/pairs.rs"]
mod pairs;
#[path = "mesh/shared.rs"]
mod shared;
#[path = "mesh/sharing.rs"]
mod sharing;
#[path = "mesh/stages.rs"]
mod stages;

use common::ranks::{CONFIG, copy, go_on, layout_of, mesh, prepared, rank, ranks, recipe, spread, train};
use danlu::compile::First;
use danlu::nn::LoraConfig;
use danlu::optim::{Rule, Shape, Shard};
use danlu::parallel::Mesh;
use danlu::train::{Event, Precision, Recipe, Resumption, TrainedRun, Trainer, run};
use pollster::block_on;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

/// A mixture whose heads, feed-forward layers, experts and layers ranks can share in twos and threes.
const SIX: &str = r#"{"model_type": "mixtral", "vocab_size": 300, "hidden_size": 24, "intermediate_size": 12,
    "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 6, "max_position_embeddings": 64,
    "num_local_experts": 6, "num_experts_per_tok": 2, "tie_word_embeddings": true}"#;

/// One device, and two ranks, and four, and two of two batches each: losses of twenty steps and the parameters after them within
/// the bar that is drawn from the roundings of twenty steps; and each of them twice, the same bits.
#[test]
fn ranks_train_what_one_device_trains_within_its_roundings() {
    let folder = tempfile::tempdir().unwrap();
    let one = recipe(folder.path(), "one");
    let prepared = prepared(&one, folder.path());
    let layout = layout_of(&one, &prepared);
    let mut spread = spread(&one, &prepared, &layout);
    let none = Shard::None;
    let (single, rings) = (mesh(1), Mesh { data: 2, sequence: 2, ..Mesh::ONE });
    for (name, mesh, batch, accumulate, shard) in [
        ("one", single, 4, 1, none),
        ("two", mesh(2), 4, 1, none),
        ("four", mesh(4), 4, 1, none),
        ("both", mesh(2), 2, 2, none),
        ("optimizer", mesh(2), 2, 2, Shard::Optimizer),
        ("gradients", mesh(2), 2, 2, Shard::Gradients),
        ("parameters", mesh(4), 4, 1, Shard::Parameters),
        ("parameters of two batches", mesh(2), 2, 2, Shard::Parameters),
        ("rings", rings, 4, 1, Shard::Parameters),
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
    let layout = layout_of(&one, &prepared);
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
/// bit: in strict and in mixed precision, with packed rows and such of one example, with adapters over a frozen base, with any
/// optimizer.
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
        ("examples", 2, Recipe { data: examples(folder.path()).into(), seq: 48, ..short("examples") }),
        ("eight bits", 2, Recipe { optimizer: Rule::AdamW8bit, ema: 0.9, ..short("eight") }),
        ("adapters", 2, Recipe { model, lora: lora(), ..short("adapters") }),
    ];
    for (name, data, recipe) in rows {
        let shared = train(&Recipe { mesh: mesh(data), ..recipe.clone() }, folder.path());
        // Where ranks fill rows up, they do so to the full; sums over shorter rows are made in another order.
        let alone = Recipe { batch: recipe.batch / data, accumulate: data as u32, lengths: 1, ..recipe };
        let alone = train(&Recipe { out: folder.path().join("alone"), ..alone }, folder.path());
        assert!(shared.steps == alone.steps, "{name}: {:?} where one device has {:?}", shared.steps, alone.steps);
        assert!(shared.pages == alone.pages && shared.states == alone.states, "{name}: parameters or moments differ");
        // Rows are held out in the same order; only their sums are made in another.
        let close = (shared.validation - alone.validation).abs() <= 1e-6 * alone.validation;
        assert!(close, "{name}: {} where one device has {}", shared.validation, alone.validation);
    }
}

/// Examples of very different lengths, as lines of JSONL.
fn examples(folder: &Path) -> PathBuf {
    // Letters of which no two examples have many in the same order: nearly each is a token.
    let letter = |i: usize, k: usize| char::from(b'a' + ((i * 7 + k * (k + i) * 5) % 26) as u8);
    let answer = |i: usize| (0..9 * (1 + i * i % 5)).map(|k| letter(i, k)).collect::<String>();
    let line = |i: usize| format!("{{\"prompt\": \"{i}\", \"completion\": \"{}\"}}\n", answer(i));
    let path = folder.join("examples.jsonl");
    std::fs::write(&path, (0..200).map(line).collect::<String>()).unwrap();
    path
}

/// A run over examples that stopped on one device, with short rows, goes on over two ranks, which fill them up, with the examples
/// that come next.
#[test]
fn examples_come_in_one_order_on_any_ranks() {
    let folder = tempfile::tempdir().unwrap();
    let data = examples(folder.path());
    let of = |name: &str, steps, mesh| Recipe {
        data: data.clone().into(),
        steps,
        seq: 48,
        warmup: Some(1),
        schedule: Shape::Constant,
        eval_every: Some(3),
        mesh,
        ..recipe(folder.path(), name)
    };
    let calm = train(&of("calm", 6, mesh(1)), folder.path());
    train(&of("run", 3, mesh(1)), folder.path());
    let went_on = go_on(&of("run", 6, mesh(2)), folder.path());
    assert!(
        prepared(&of("run", 6, mesh(1)), folder.path()).loader.lengths().len() > 1,
        "rows of one device are shorter"
    );
    for ((loss, _), (expected, _)) in went_on.steps.iter().zip(&calm.steps[3..]) {
        let [got, expected] = [loss, expected].map(|bits| f32::from_bits(*bits));
        // Other sums of some hundred terms of the same examples; of others the loss is another in its second digit.
        assert!((got - expected).abs() <= 1e-4 * expected, "{got} where {expected} was expected");
    }
    assert_eq!(went_on.steps.len(), 3);
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

/// What ranks hold alike is compared along every axis, and whoever differs is named by its number among all: gains of those who
/// have parts of matrices, whether or not the ranks of a batch share parameters out; experts where all have the same, of others
/// `what_is_alike_is_compared_whoever_has_which_experts`; and the table at both ends of a pipeline.
#[test]
fn what_is_alike_along_any_axis_is_compared_there() {
    let folder = tempfile::tempdir().unwrap();
    let (gain, words) = ("model.norm.weight", "model.embed_tokens.weight");
    let experts = "model.layers.0.mlp.experts.down_proj.weight";
    let odd =
        |rank: usize, what: &str, ranks: usize| format!("ranks: rank {rank} has {what} other than most of the {ranks}");
    let (all, alike, ends) =
        ("parameters", "parameters that are alike along tensor", "a table of both ends of the pipeline");
    for (mesh, shard, name, harmed, says) in [
        ("tensor=2", Shard::None, gain, 1, odd(1, alike, 2)),
        ("data=2,tensor=2", Shard::None, gain, 3, odd(3, all, 2)),
        ("data=2,tensor=3", Shard::Parameters, gain, 4, odd(4, alike, 3)),
        ("data=2", Shard::None, experts, 1, odd(1, all, 2)),
        ("pipeline=2", Shard::None, words, 1, odd(1, ends, 2)),
    ] {
        let mesh: Mesh = mesh.parse().unwrap();
        let accumulate = mesh.pipeline as u32;
        let recipe = Recipe { mesh, shard, batch: 6, accumulate, ..recipe(folder.path(), "ranks") };
        std::fs::write(folder.path().join("config.json"), SIX).unwrap();
        let prepared = prepared(&recipe, folder.path());
        let told = ranks(&recipe, |world| {
            let gpu = common::gpu();
            let (trainer, ..) =
                block_on(Trainer::among(&gpu, &recipe, &prepared, &mut First, world, &mut |_| {})).unwrap();
            block_on(trainer.compare_peers()).unwrap();
            // Its last element, of which one bit flips.
            let (page, start) = trainer.layout().place(name).unwrap();
            let spec = trainer.layout().specs().iter().find(|spec| spec.name == name).unwrap();
            let (kept, last) = (trainer.layout().kept(page), start + spec.shape.elements() - 1);
            if world.rank() == harmed {
                assert!(kept.contains(&last), "{name} is elsewhere");
                let (state, at) = (format!("param.{page}"), 4 * (last - kept.start));
                let mut value = block_on(trainer.states.read(&state)).unwrap()[at..at + 4].to_vec();
                value[0] ^= 1;
                block_on(trainer.states.write(&state, at as u64, &value)).unwrap();
            }
            block_on(trainer.compare_peers()).unwrap_err().to_string()
        });
        assert_eq!(told, vec![says; mesh.ranks()], "{mesh}");
    }
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
    let calm = train(&of("calm", 9, mesh(4), Shard::Parameters), folder.path());
    train(&of("run", 3, mesh(4), Shard::Parameters), folder.path());
    let parts = folder.path().join("run/checkpoints/rank-3/step-3/manifest.json");
    assert!(parts.is_file(), "every rank has a folder of its own");
    let copied = folder.path().join("other");
    copy(&folder.path().join("run"), &copied);
    let same = go_on(&of("run", 9, mesh(4), Shard::Parameters), folder.path());
    assert!(
        same.pages == calm.pages && same.steps == calm.steps[3..],
        "four ranks go on otherwise than they would have"
    );
    let rings = Mesh { sequence: 2, ..Mesh::ONE };
    let layouts = [
        (4, mesh(2), Shard::Optimizer),
        (5, mesh(3), Shard::Gradients),
        (6, rings, Shard::Parameters),
        (7, mesh(1), Shard::None),
        (8, mesh(2), Shard::Parameters),
        (9, mesh(2), Shard::None),
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
    // A checkpoint in parts is exported as the folder that the run wrote.
    let exported = folder.path().join("exported");
    let ended = TrainedRun::open(&folder.path().join("run/checkpoints/step-9")).unwrap();
    ended.write_checkpoint(&exported, None, &folder.path().join("cache"), &mut |_: &Event| {}).unwrap();
    let [exported, written] =
        [exported, folder.path().join("run")].map(|folder| std::fs::read(folder.join("model.safetensors")).unwrap());
    assert!(exported == written, "the checkpoint holds another model");
    // A part that is damaged makes no checkpoint: the one before is taken, aloud.
    let part = folder.path().join("run/checkpoints/rank-2/step-9/manifest.json");
    std::fs::write(&part, "{}").unwrap();
    let mut said = Vec::new();
    let found = Resumption::find(&folder.path().join("run"), &mut |note| said.push(note)).unwrap();
    assert_eq!(found.step(), 6);
    assert!(said.len() == 1 && said[0].contains("step 9 is not used"), "{said:?}");
}
