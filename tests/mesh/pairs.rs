//! Every axis of a mesh at two, and every two of them together: one model with experts on all of them.

use super::common;
use super::common::ranks::{STEPS, Seen, go_on, layout_of, prepared, ranks, recipe, spread, train};
use super::common::spread::Spread;
use danlu::base::{Axis, Bytes, Limits};
use danlu::compile::First;
use danlu::model::Llama;
use danlu::nn::{ParamLayout, ParamSpec};
use danlu::optim::{Shape, Update};
use danlu::parallel::Mesh;
use danlu::train::{ExpertLoad, Precision, Recipe, Subject, Trainer, plans_of_rank, read_metrics};
use pollster::block_on;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Two layers and two heads, of which each axis can have a part, with the losses of routers.
const EXPERTS: &str = r#"{"model_type": "mixtral", "vocab_size": 300, "hidden_size": 16, "intermediate_size": 8,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "num_local_experts": 4, "num_experts_per_tok": 2, "output_router_logits": true, "router_aux_loss_coef": 0.05,
    "tie_word_embeddings": true}"#;

/// A recipe of that model; on a pipeline of two micro-batches.
fn of(folder: &Path, name: &str, mesh: &str) -> Recipe {
    let recipe = Recipe { mesh: mesh.parse().unwrap(), router_z_loss: Some(0.01), ..recipe(folder, name) };
    std::fs::write(folder.join("config.json"), EXPERTS).unwrap();
    if recipe.mesh.pipeline > 1 { Recipe { batch: 2, accumulate: 2, ..recipe } } else { recipe }
}

/// The axes of a mesh that are no others: experts lie over the data axis, which has to be as large.
fn axes(mesh: Mesh) -> BTreeSet<Axis> {
    let wanted = |axis: &Axis| match axis {
        Axis::Data => mesh.data > mesh.expert,
        axis => mesh.size(*axis) > 1,
    };
    Axis::ALL.into_iter().filter(wanted).collect()
}

/// Losses of all steps and parameters after them, around those of one device that took as many batches, in its roundings.
fn check(seen: &Seen, of_one: &Seen, spread: &mut Spread, layout: &ParamLayout) {
    let losses =
        |seen: &Seen| -> Vec<f64> { seen.steps.iter().map(|(loss, _)| f64::from(f32::from_bits(*loss))).collect() };
    spread.check("losses", &losses(seen), &losses(of_one), 0.0);
    for ((spec, got), (_, wanted)) in layout.tensors(&seen.pages).zip(layout.tensors(&of_one.pages)) {
        let [got, wanted] = [got, wanted].map(|x| x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>());
        spread.check(&format!("final.{}", spec.name), &got, &wanted, 0.0);
    }
}

/// Where the last step's slots fell, layer by layer.
fn routed(recipe: &Recipe) -> Vec<Vec<f32>> {
    let lines = read_metrics(&recipe.out).unwrap();
    let last = lines.iter().rfind(|line| line.expert_shares.is_some()).unwrap();
    assert_eq!(last.step, STEPS, "told with the last validation");
    last.expert_shares.clone().unwrap()
}

/// Twenty steps on each: losses and final parameters within the roundings of one device's, every slot at the same expert in the
/// end, and the second time the same bits.
fn train_what_one_device_trains(meshes: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let one = of(folder.path(), "one", "data=1");
    let prepared = prepared(&one, folder.path());
    let layout = layout_of(&one, &prepared);
    let mut spread = spread(&one, &prepared, &layout);
    // The balance of two batches is not that of both: pipelines are compared with two batches of one device.
    let mut several = None;
    train(&one, folder.path());
    for mesh in meshes {
        let recipe = of(folder.path(), mesh, mesh);
        let seen = train(&recipe, folder.path());
        let alone = Recipe { batch: 2, accumulate: 2, ..of(folder.path(), "several", "data=1") };
        if recipe.mesh.pipeline == 1 {
            seen.check(&mut spread, &layout);
            assert_eq!(routed(&recipe), routed(&one), "{mesh}: slots fall on other experts");
        } else {
            let several = several.get_or_insert_with(|| train(&alone, folder.path()));
            check(&seen, several, &mut spread, &layout);
            assert_eq!(routed(&recipe), routed(&alone), "{mesh}: slots fall on other experts");
        }
        let again = Recipe { out: folder.path().join("again"), ..recipe };
        assert!(train(&again, folder.path()) == seen, "{mesh}: another run gives other bits");
        eprintln!("{mesh}: worst so far {:?}", spread.worst);
    }
}

const AXES: [&str; 5] = ["data=2", "tensor=2", "pipeline=2", "data=2,expert=2", "sequence=2"];
const PAIRS: [&str; 6] = [
    "data=2,tensor=2",
    "data=2,pipeline=2",
    "data=2,sequence=2",
    "tensor=2,pipeline=2",
    "tensor=2,sequence=2",
    "pipeline=2,sequence=2",
];
const WITH_EXPERTS: [&str; 4] =
    ["data=4,expert=2", "data=2,tensor=2,expert=2", "data=2,pipeline=2,expert=2", "data=2,expert=2,sequence=2"];

#[test]
fn every_axis_at_two_trains_what_one_device_trains() {
    train_what_one_device_trains(&AXES);
}

#[test]
fn every_pair_of_axes_at_four_trains_what_one_device_trains() {
    let all: Vec<Mesh> = AXES.iter().chain(&PAIRS).chain(&WITH_EXPERTS).map(|mesh| mesh.parse().unwrap()).collect();
    assert!(all[AXES.len()..].iter().all(|mesh| mesh.ranks() == 4));
    for first in Axis::ALL {
        for second in Axis::ALL {
            let both = BTreeSet::from([first, second]);
            assert!(all.iter().any(|mesh| axes(*mesh) == both), "{first} and {second} are trained nowhere together");
        }
    }
    train_what_one_device_trains(&PAIRS);
}

/// And a rank with half of each row's tokens sends half as much to experts.
#[test]
fn experts_with_every_other_axis_train_what_one_device_trains() {
    train_what_one_device_trains(&WITH_EXPERTS);
    let folder = tempfile::tempdir().unwrap();
    let config = prepared(&of(folder.path(), "one", "data=1"), folder.path()).config;
    let [whole, half] = ["data=2,expert=2", "data=2,expert=2,sequence=2"].map(|mesh| {
        let recipe = of(folder.path(), mesh, mesh);
        let plans = plans_of_rank(1, &config, &recipe, None, &Limits::default(), &mut First).unwrap();
        plans.train.sent()[&Axis::Expert]
    });
    assert_eq!((2 * half.bytes, half.meetings), (whole.bytes, whole.meetings));
}

/// What a first step tells of experts, whose routers all know the same yet.
fn told(recipe: &Recipe, folder: &Path) -> (ExpertLoad, Vec<Vec<f32>>) {
    train(recipe, folder);
    let lines = read_metrics(&recipe.out).unwrap();
    let shares = lines.iter().find_map(|line| line.expert_shares.clone()).unwrap();
    (lines.iter().find_map(|line| line.experts).unwrap(), shares)
}

/// How slots fall on experts is told alike whoever has layers, experts, rows or tokens.
#[test]
fn loads_of_experts_are_told_on_every_mesh() {
    let folder = tempfile::tempdir().unwrap();
    let first = |name: &str, mesh: &str| {
        let recipe = of(folder.path(), name, mesh);
        Recipe { steps: 1, eval_every: Some(1), ..recipe }
    };
    let (load, shares) = told(&first("one", "data=1"), folder.path());
    assert!(load.busiest > 1.0 && load.dropped == 0 && shares.len() == 2, "{load:?}");
    for mesh in AXES.iter().chain(&WITH_EXPERTS) {
        assert_eq!(told(&first(mesh, mesh), folder.path()), (load, shares.clone()), "{mesh}");
    }
    for mesh in ["data=2", "sequence=2"] {
        let recipe = Recipe { update: Update::Layer, ..first("layers", mesh) };
        assert_eq!(told(&recipe, folder.path()), (load, shares.clone()), "{mesh}, layer by layer");
    }
}

/// Slots that found no room are told on pipelines and where matrices are in parts, of the same rows as without, and where ranks have
/// tokens of their own.
#[test]
fn slots_without_room_are_told_on_every_mesh() {
    let folder = tempfile::tempdir().unwrap();
    let narrow = |name: &str, mesh: &str| {
        let recipe = of(folder.path(), name, mesh);
        let (steps, eval_every, expert_capacity) = (1, Some(1), Some(0.5));
        Recipe { steps, eval_every, expert_capacity, batch: 2, accumulate: 2, ..recipe }
    };
    let (flat, _) = told(&narrow("flat", "data=2,expert=2"), folder.path());
    let (piped, _) = told(&narrow("piped", "data=2,pipeline=2,expert=2"), folder.path());
    let (rings, _) = told(&narrow("rings", "data=2,expert=2,sequence=2"), folder.path());
    let (parts, _) = told(&narrow("parts", "data=2,tensor=2,expert=2"), folder.path());
    assert!(flat.dropped > 0 && rings.dropped > 0, "{flat:?}, {rings:?}");
    // The first layer's slots are the same; the second's follow from what the first has dropped.
    assert_eq!([piped, parts], [flat; 2]);
}

/// Ranks that share rows or tokens sum each layer's gradients before it changes, those that hold parts do so with theirs: with
/// clipping, which takes a pass of its own, and without. Each part of the words is more than are taken at a time.
#[test]
fn parameters_that_change_layer_by_layer_are_those_of_one_device() {
    let folder = tempfile::tempdir().unwrap();
    let meshes = ["data=2", "data=2,sequence=2", "tensor=2", "data=4,expert=2", "data=2,tensor=2,expert=2"];
    for (clip, meshes) in [(1.0, &meshes[..]), (0.0, &meshes[4..])] {
        let of = |name: &str, mesh: &str| {
            let recipe = Recipe { clip, steps: 6, eval_every: Some(6), ..of(folder.path(), name, mesh) };
            let config = EXPERTS.replace("\"vocab_size\": 300", "\"vocab_size\": 600");
            std::fs::write(folder.path().join("config.json"), config).unwrap();
            recipe
        };
        let one = of("one", "data=1");
        let prepared = prepared(&one, folder.path());
        let mut spread = spread(&one, &prepared, &layout_of(&one, &prepared));
        for mesh in meshes {
            let recipe = Recipe { update: Update::Layer, ..of(mesh, mesh) };
            let seen = train(&recipe, folder.path());
            seen.check(&mut spread, &layout_of(&recipe, &prepared));
            let again = Recipe { out: folder.path().join("again"), ..recipe };
            assert!(train(&again, folder.path()) == seen, "{mesh}, clip {clip}: another run gives other bits");
        }
        eprintln!("clip {clip}: worst {:?}", spread.worst);
    }
}

/// Mixed precision, an average, packed rows and several batches go with experts and tokens in parts, and a run that is killed goes on
/// as if nothing had happened; what is computed again changes no bit.
#[test]
fn whatever_else_a_recipe_asks_for_goes_with_experts_and_tokens_in_parts() {
    let folder = tempfile::tempdir().unwrap();
    let mesh = "data=2,expert=2,sequence=2";
    let own = |name: &str, mesh: &str| Recipe {
        steps: 4,
        warmup: Some(1),
        schedule: Shape::Constant,
        eval_every: Some(2),
        ..of(folder.path(), name, mesh)
    };
    let plain = own("plain", mesh);
    let ready = prepared(&plain, folder.path());
    let bytes = ranks(&plain, |world| {
        let gpu = common::gpu();
        let (trainer, ..) = block_on(Trainer::among(&gpu, &plain, &ready, &mut First, world, &mut |_| {})).unwrap();
        trainer.device_bytes()
    });
    let less = Recipe { memory: Some(Bytes(bytes[0] - 1)), ..own("less", mesh) };
    let [all, less] = [plain, less].map(|recipe| train(&recipe, folder.path()));
    assert!(all.steps == less.steps && all.pages == less.pages, "what is computed again is something else");
    let rich = |name: &str, mesh: &str| {
        let recipe = Recipe { precision: Precision::Mixed, ema: 0.9, pack: true, accumulate: 2, ..own(name, mesh) };
        // Batches of two rows each, whose balance is theirs.
        Recipe { batch: 2, ..recipe }
    };
    let calm = train(&rich("calm", mesh), folder.path());
    train(&Recipe { steps: 2, ..rich("killed", mesh) }, folder.path());
    let gone_on = go_on(&rich("killed", mesh), folder.path());
    assert!(gone_on.pages == calm.pages && gone_on.steps == calm.steps[2..], "other bits once taken up");
    let one = train(&rich("one", "data=1"), folder.path());
    for (step, (got, expected)) in calm.steps.iter().zip(&one.steps).enumerate() {
        let [got, expected] = [got, expected].map(|(loss, _)| f64::from(f32::from_bits(*loss)));
        // Sums of at most 16 products of factors that f16 rounds, each by 2^-11: what a token's loss may move by.
        let bar = 16.0 * 2f64.powi(-11) * expected;
        assert!((got - expected).abs() <= bar, "step {step}: {got} where one device has {expected}");
    }
}

/// Of two axes together each sends what it sends alone, of what the other leaves a rank: the textbooks' bytes, read from plans. Along
/// data (and sequences) sums of the gradients that a rank has; along tensor sums of the residual stream of its rows and layers, and
/// three numbers a row at the end; over a boundary that stream, once each way; around a ring keys and values of its heads and layers.
#[test]
fn each_axis_of_a_pair_sends_what_the_textbook_says() {
    let folder = tempfile::tempdir().unwrap();
    let base = recipe(folder.path(), "sent");
    let config = super::common::ranks::CONFIG
        .replace("_layers\": 1", "_layers\": 4")
        .replace("_value_heads\": 1", "_value_heads\": 2")
        .replace("embeddings\": true", "embeddings\": false");
    std::fs::write(folder.path().join("config.json"), config).unwrap();
    let config = prepared(&base, folder.path()).config;
    let (limits, d) = (Limits::default(), config.hidden_size as u64);
    for mesh in PAIRS {
        let mesh: Mesh = mesh.parse().unwrap();
        // Micro-batches of a pipeline are one plan, and so is one batch.
        let (batch, accumulate, clip) = (4, mesh.pipeline as u32, 0.0);
        let recipe = Recipe { mesh, batch, accumulate, clip, ..base.clone() };
        for rank in 0..mesh.ranks() {
            let plans = plans_of_rank(rank, &config, &recipe, None, &limits, &mut First).unwrap();
            let runs = u64::from(accumulate);
            let mut sent: BTreeMap<Axis, u64> = BTreeMap::new();
            for plan in [&plans.train].into_iter().chain(&plans.apply) {
                plan.sent().into_iter().for_each(|(axis, own)| *sent.entry(axis).or_default() += own.bytes);
            }
            // What is this rank's of rows, tokens, layers, and which ends of the model.
            let (rows, tokens) = ((batch / mesh.data) as u64, (recipe.seq / mesh.sequence) as u64);
            let layout = Subject::of_rank(rank, &Llama::new(config.clone()), &recipe, None, &limits).unwrap().layout;
            let is_layer = |spec: &&ParamSpec| spec.name.ends_with("input_layernorm.weight");
            let layers = layout.specs().iter().filter(is_layer).count() as u64;
            let stage = mesh.place(rank, Axis::Pipeline);
            let ends = [stage == 0, stage + 1 == mesh.pipeline];
            let [first, last] = ends.map(u64::from);
            let stream = 4 * rows * tokens * d;
            let sum = |bytes: u64, ranks: usize| 2 * bytes * (ranks as u64 - 1) / ranks as u64;
            let padded: usize = layout.pages().iter().map(|page| page.elements).sum();
            let gradients = |elements: u64| sum(4 * elements, mesh.replicas());
            let hops = mesh.sequence as u64 - 1;
            let keys = 2 * 4 * rows * tokens * (config.num_key_value_heads * config.head_dim / mesh.tensor) as u64;
            let end = 12 * rows * tokens * (mesh.tensor as u64 - 1);
            // With the gains of norms, where each has a part of the tokens.
            let sums =
                (4 * layers + first + last) * sum(stream, mesh.tensor) + (2 * layers + last) * sum(4 * d, mesh.tensor);
            let wanted = [
                (Axis::Data, gradients(layout.parameters()), gradients(padded as u64)),
                (Axis::Tensor, runs * (sums + last * end), 0),
                (Axis::Pipeline, runs * (2 - first - last) * stream / mesh.tensor as u64, 0),
                (Axis::Sequence, runs * layers * 3 * hops * keys, 0),
            ];
            let met: BTreeSet<Axis> = sent.keys().copied().collect();
            // Gradients of rows and of tokens are summed at once.
            let along = Some(Axis::Data).filter(|_| mesh.replicas() > 1);
            assert_eq!(met, axes(mesh).into_iter().chain(along).collect(), "{mesh}");
            // What fills up pages is summed with them.
            for (axis, least, more) in wanted.into_iter().filter(|(axis, ..)| met.contains(axis)) {
                let most = least.max(more);
                // And some words of norms, losses and counts.
                let is_least = (least..=most + 64).contains(&sent[&axis]);
                assert!(is_least, "{mesh}, rank {rank}, {axis}: {} bytes, and {least} will do", sent[&axis]);
            }
        }
    }
}
