//! What ranks share out that hold parts of a model: each part those who hold the same of it.

use super::common;
use super::common::ranks::{Seen, copy, go_on, layout_of, prepared, ranks, recipe, spread, train};
use super::experts::{EXPERTS, experts};
use super::shared::LAYERS;
use danlu::base::Axis;
use danlu::compile::{BufferKind, BufferSpec, First, Plan};
use danlu::model::Llama;
use danlu::nn::ParamLayout;
use danlu::optim::{Rule, Shape, Shard};
use danlu::run::device_bytes;
use danlu::store::load_folder;
use danlu::train::{Event, Plans, Precision, Prepared, Recipe, Subject, TrainedRun, Trainer, plans_of_rank};
use pollster::block_on;
use std::collections::BTreeMap;
use std::path::Path;

/// Writes a model whose parts end with whole blocks of 256 elements, so that no page has some of two layers.
fn write(folder: &Path, config: &str) {
    let words = |config: &str, from: &str| config.replace(&format!("\"vocab_size\": {from}"), "\"vocab_size\": 320");
    std::fs::write(folder.join("config.json"), words(&words(config, "304"), "300")).unwrap();
}

/// A recipe of a model of two layers whose heads two ranks can share; its embedding is its output projection, or not.
fn dense(folder: &Path, name: &str, tied: bool) -> Recipe {
    let recipe = recipe(folder, name);
    let config = LAYERS.replace("\"num_key_value_heads\": 1", "\"num_key_value_heads\": 2");
    let tie = |tied: bool| format!("\"tie_word_embeddings\": {tied}");
    write(folder, &config.replace(&tie(true), &tie(tied)));
    recipe
}

/// One of a model with experts.
fn with_experts(folder: &Path, name: &str) -> Recipe {
    let recipe = experts(folder, name);
    write(folder, EXPERTS);
    recipe
}

/// One whose layers or heads two ranks can share, too; its table of words is the output's where it is `tied`.
fn with_experts_in_layers(folder: &Path, tied: bool) -> Recipe {
    let recipe = experts(folder, "whole");
    let config = EXPERTS.replace("_layers\": 1", "_layers\": 2").replace("_value_heads\": 1", "_value_heads\": 2");
    write(folder, &config.replace("\"tie_word_embeddings\": true", &format!("\"tie_word_embeddings\": {tied}")));
    recipe
}

fn plans_of(rank: usize, recipe: &Recipe, prepared: &Prepared) -> Plans {
    plans_of_rank(rank, &prepared.config, recipe, None, &common::gpu().limits().clone(), &mut First).unwrap()
}

fn layout_on(rank: usize, recipe: &Recipe, prepared: &Prepared) -> ParamLayout {
    let model = Llama::new(prepared.config.clone());
    Subject::of_rank(rank, &model, recipe, None, common::gpu().limits()).unwrap().layout
}

/// Bytes of a plan's states of this kind.
fn bytes_of(plan: &Plan, kind: &str) -> u64 {
    let of_kind = |b: &&BufferSpec| matches!(&b.kind, BufferKind::State(name) if name.starts_with(kind));
    plan.buffers.iter().filter(of_kind).map(|b| b.bytes).sum()
}

/// Bytes that gradients and parameters send along each axis on which ranks lie that hold the same.
fn sent(plans: &Plans) -> BTreeMap<Axis, u64> {
    let mut all = BTreeMap::new();
    for step in [&plans.train].into_iter().chain(&plans.apply).flat_map(|plan| &plan.steps) {
        let is_page = step.name.starts_with("ranks.") && !step.name.starts_with("ranks.sum.");
        let meeting = step.meeting.as_ref().filter(|m| is_page && m.phase != danlu::compile::Phase::End);
        if let Some(meeting) = meeting.filter(|m| [Axis::Data, Axis::Replica].contains(&m.axis)) {
            *all.entry(meeting.axis).or_default() += meeting.sent;
        }
    }
    all
}

/// Of each page a rank keeps its part among those who hold the same, no more, in its plan and on its device; what it sends is what
/// textbooks allow; and where nothing depends on the norm, no number is another than of ranks that keep everything, to the bit.
fn check(whole: &Recipe, shards: &[Shard], folder: &Path) {
    let (all, prepared, mesh) = (train(whole, folder), prepared(whole, folder), whole.mesh);
    for &shard in shards {
        let shared = Recipe { shard, out: folder.join("shared"), ..whole.clone() };
        let own = train(&shared, folder);
        for (step, (all, own)) in all.steps.iter().zip(&own.steps).enumerate() {
            assert_eq!(all.0, own.0, "{mesh}, {shard}: loss of step {step}");
            let [all, own] = [all.1, own.1].map(f32::from_bits);
            // Squares are summed in another order, of some thousand elements.
            assert!((all - own).abs() <= 1e-5 * all, "{mesh}, {shard}: norm of step {step}: {own}, not {all}");
        }
        // Pages of the whole model, as they lie on one device.
        assert!(all.pages.len() == own.pages.len() && all.pages == own.pages, "{mesh}, {shard}: parameters differ");
        assert_eq!(all.validation, own.validation, "{mesh}, {shard}");
        let allocated = ranks(&shared, |world| {
            let gpu = common::gpu();
            let (trainer, ..) =
                block_on(Trainer::among(&gpu, &shared, &prepared, &mut First, world, &mut |_| {})).unwrap();
            trainer.device_bytes()
        });
        for (rank, allocated) in allocated.into_iter().enumerate() {
            let (plans, layout) = (plans_of(rank, &shared, &prepared), layout_on(rank, &shared, &prepared));
            let foretold = device_bytes([&plans.train, &plans.eval].into_iter().chain(&plans.apply), &|_| false);
            assert_eq!(allocated, foretold, "{mesh}, {shard}: on rank {rank}");
            let plain = layout_on(rank, whole, &prepared);
            let elements = |layout: &ParamLayout| layout.pages().iter().map(|page| page.elements).sum::<usize>();
            // A page is filled up to as many blocks as it has sharers; none is cut so that it would waste more.
            let padding = layout.pages().len() * (256 * mesh.replicas() - 1);
            assert!(elements(&layout) <= elements(&plain) + padding, "{mesh}: pages grow");
            let sharers = |page: usize| mesh.peers(rank, layout.pages()[page].is_of_experts()).along;
            let part = |from: Shard, page: usize| {
                let parts = if shard >= from { sharers(page).ranks } else { 1 };
                4 * (layout.pages()[page].elements / parts) as u64
            };
            let apply = plans.apply.as_ref().unwrap();
            for (kind, from, each) in
                [("param", Shard::Parameters, 1), ("grad", Shard::Gradients, 1), ("adam", Shard::Optimizer, 2)]
            {
                let most: u64 = (0..layout.pages().len()).map(|page| each * part(from, page)).sum();
                let has = bytes_of(apply, kind);
                let fits = if whole.optimizer == Rule::AdamW { has == most } else { has <= most };
                assert!(fits, "{mesh}, {shard}: {has} bytes of {kind} where {most} will do");
            }
            let mut least: BTreeMap<Axis, u64> = BTreeMap::new();
            for (i, page) in layout.pages().iter().enumerate().filter(|(i, _)| sharers(*i).ranks > 1) {
                // Gradients scattered and parameters gathered, those of matrices before either pass.
                let is_matrix = page.groups.iter().any(|(group, _)| group.decays());
                let times = if shard == Shard::Parameters && is_matrix { 3 } else { 2 };
                let along = sharers(i);
                let others = 4 * (page.elements - page.elements / along.ranks) as u64;
                *least.entry(along.axis).or_default() += times * others;
            }
            assert_eq!(sent(&plans), least, "{mesh}, {shard}: bytes that rank {rank} sends");
        }
    }
}

/// Ranks with parts of matrices, with layers, and with experts of their own share out what they hold.
#[test]
fn what_each_place_holds_is_shared_out_and_no_number_changes() {
    let folder = tempfile::tempdir().unwrap();
    let short = |mesh: &str, recipe: Recipe| Recipe {
        mesh: mesh.parse().unwrap(),
        clip: 0.0,
        steps: 3,
        eval_every: Some(3),
        ..recipe
    };
    let all = [Shard::Optimizer, Shard::Gradients, Shard::Parameters];
    let of = |tied| dense(folder.path(), "whole", tied);
    check(&short("data=2,tensor=2", of(true)), &all, folder.path());
    let several = Recipe { accumulate: 2, batch: 2, ..of(true) };
    let more = Recipe { optimizer: Rule::AdamW8bit, ema: 0.9, precision: Precision::Mixed, ..several };
    check(&short("data=2,tensor=2", more), &all[..1], folder.path());
    // One table at both ends of a pipeline would be summed in another order.
    let several = Recipe { accumulate: 2, batch: 2, ..of(false) };
    check(&short("data=2,pipeline=2", several), &all[..1], folder.path());
    let of = || with_experts(folder.path(), "whole");
    check(&short("data=4,expert=2", of()), &all, folder.path());
    // Nobody holds the same experts as another.
    check(&short("data=2,expert=2", of()), &all[2..], folder.path());
    check(&short("data=2,tensor=2,expert=2", with_experts_in_layers(folder.path(), true)), &all[2..], folder.path());
    let several = Recipe { accumulate: 2, batch: 2, ..with_experts_in_layers(folder.path(), false) };
    check(&short("data=2,pipeline=2,expert=2", several), &all[..1], folder.path());
}

/// Losses of twenty steps, whose gradients are clipped by the norm of all parts, and the parameters after them, are those of one
/// device within its roundings; and the same layout twice gives the same bits.
#[test]
fn ranks_that_share_out_their_parts_train_what_one_device_trains() {
    let folder = tempfile::tempdir().unwrap();
    let own = |name: &str| dense(folder.path(), name, true);
    let other = |name: &str| with_experts(folder.path(), name);
    let rows = [
        ("data=2,tensor=2", 4, 1, Shard::Gradients),
        ("data=2,tensor=2", 2, 2, Shard::Parameters),
        ("data=2,pipeline=2", 2, 2, Shard::Optimizer),
        ("data=2,tensor=2,pipeline=2", 2, 2, Shard::Optimizer),
    ];
    compare(&own, &rows, folder.path());
    let rows = [("data=4,expert=2", 4, 1, Shard::Parameters), ("data=2,expert=2,sequence=2", 4, 1, Shard::Gradients)];
    compare(&other, &rows, folder.path());
}

fn compare(own: &dyn Fn(&str) -> Recipe, rows: &[(&str, usize, u32, Shard)], folder: &Path) {
    let one = own("one");
    let prepared = prepared(&one, folder);
    let layout = layout_of(&one, &prepared);
    let mut spread = spread(&one, &prepared, &layout);
    for &(mesh, batch, accumulate, shard) in rows {
        let recipe = Recipe { mesh: mesh.parse().unwrap(), batch, accumulate, shard, ..own("shared") };
        let seen = train(&recipe, folder);
        seen.check(&mut spread, &layout);
        let written = load_folder(&recipe.out, &prepared.config, &layout).unwrap();
        assert!(written == seen.pages, "{mesh}, {shard}: another model lies in the folder");
        let again = Recipe { out: folder.join("again"), ..recipe };
        assert!(train(&again, folder) == seen, "{mesh}, {shard}: another run gives other bits");
    }
    eprintln!("worst: {:?}", spread.worst);
}

/// Each rank writes the stretches of what it shares out. The same ranks go on as if nothing had happened; one device and other
/// meshes, sharing or not, within roundings of one device's steps; and any checkpoint is exported whole.
fn read_by_others(own: &dyn Fn(&str) -> Recipe, first: (&str, Shard), others: &[(&str, Shard)], folder: &Path) {
    let steps = 2 + others.len() as u64;
    let of = |name: &str, steps, (mesh, shard): (&str, Shard)| Recipe {
        steps,
        mesh: mesh.parse().unwrap(),
        shard,
        schedule: Shape::Constant,
        warmup: Some(1),
        eval_every: Some(1),
        ..own(name)
    };
    let calm = train(&of("calm", steps, first), folder);
    train(&of("run", 2, first), folder);
    copy(&folder.join("run"), &folder.join("other"));
    let same = go_on(&of("run", steps, first), folder);
    assert!(same.pages == calm.pages && same.steps == calm.steps[2..], "the same ranks go on otherwise");
    let one = of("one", steps, ("data=1", Shard::None));
    let one = Recipe { batch: one.batch * one.accumulate as usize, accumulate: 1, ..one };
    let prepared = prepared(&one, folder);
    let layout = layout_of(&one, &prepared);
    let mut spread = spread(&one, &prepared, &layout);
    let mut all = Seen { steps: calm.steps[..2].to_vec(), ..calm };
    for (step, &place) in (3..).zip(others) {
        let seen = go_on(&of("other", step, place), folder);
        all = Seen { steps: [all.steps, seen.steps].concat(), pages: seen.pages, ..all };
        let snapshot = TrainedRun::open(&folder.join(format!("other/checkpoints/step-{step}"))).unwrap();
        let exported = folder.join(format!("exported-{step}"));
        snapshot.write_checkpoint(&exported, None, &folder.join("cache"), &mut |_: &Event| {}).unwrap();
        let written = load_folder(&exported, &prepared.config, &layout).unwrap();
        assert!(written == all.pages, "{place:?}: what is exported differs");
    }
    all.check(&mut spread, &layout);
    eprintln!("worst: {:?}", spread.worst);
}

#[test]
fn what_ranks_that_share_out_their_parts_wrote_any_mesh_reads() {
    let folder = tempfile::tempdir().unwrap();
    let own = |name: &str| Recipe { batch: 2, accumulate: 2, ..dense(folder.path(), name, true) };
    let others = [
        ("data=1", Shard::None),
        ("data=2,pipeline=2", Shard::Optimizer),
        ("data=2", Shard::Parameters),
        ("data=2,pipeline=2", Shard::Optimizer),
        ("data=2,tensor=2", Shard::Gradients),
        ("pipeline=2", Shard::Optimizer),
    ];
    read_by_others(&own, ("data=2,tensor=2", Shard::Parameters), &others, folder.path());
}

#[test]
fn what_ranks_that_share_out_their_experts_wrote_any_mesh_reads() {
    let folder = tempfile::tempdir().unwrap();
    let own = |name: &str| with_experts(folder.path(), name);
    let others = [
        ("data=1", Shard::None),
        ("data=4,expert=2", Shard::Optimizer),
        ("data=2,expert=2", Shard::Parameters),
        ("data=4", Shard::Gradients),
    ];
    read_by_others(&own, ("data=4,expert=2", Shard::Parameters), &others, folder.path());
}

/// Ranks read their parts of a model that training begins with, as far as they keep them.
#[test]
fn parts_of_a_model_that_is_gone_on_with_are_shared_out() {
    let folder = tempfile::tempdir().unwrap();
    let base = Recipe { steps: 1, eval_every: Some(1), ..dense(folder.path(), "base", true) };
    train(&base, folder.path());
    let of = |name: &str, shard| Recipe {
        model: Some(base.out.to_str().unwrap().into()),
        mesh: "data=2,tensor=2".parse().unwrap(),
        steps: 2,
        eval_every: Some(2),
        clip: 0.0,
        shard,
        ..dense(folder.path(), name, true)
    };
    let [whole, shared] = [("whole", Shard::None), ("shared", Shard::Parameters)]
        .map(|(name, shard)| train(&of(name, shard), folder.path()));
    assert!(whole.pages == shared.pages, "parameters differ");
}
