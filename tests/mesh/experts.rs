//! Ranks of which each holds some of the experts.

use super::common;
use super::common::ranks::{Seen, copy, go_on, layout_of, prepared, ranks, recipe, spread, train};
use danlu::compile::First;
use danlu::optim::Shape;
use danlu::train::{Recipe, Trainer, read_metrics, run};
use pollster::block_on;
use std::path::Path;
use std::sync::atomic::AtomicBool;

pub const EXPERTS: &str = r#"{"model_type": "mixtral", "vocab_size": 300, "hidden_size": 16, "intermediate_size": 8,
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64,
    "num_local_experts": 4, "num_experts_per_tok": 2, "output_router_logits": true, "router_aux_loss_coef": 0.05,
    "tie_word_embeddings": true}"#;

/// A recipe of that model.
pub fn experts(folder: &Path, name: &str) -> Recipe {
    let recipe = Recipe { router_z_loss: Some(0.01), ..recipe(folder, name) };
    std::fs::write(folder.join("config.json"), EXPERTS).unwrap();
    recipe
}

/// Twenty steps of ranks that hold other experts each, and rows of their own: with the balance of the whole batch in the loss. What finds
/// no room is told.
#[test]
fn ranks_with_experts_of_their_own_train_what_one_device_trains() {
    let folder = tempfile::tempdir().unwrap();
    let own = |name: &str| experts(folder.path(), name);
    let one = own("one");
    let prepared = prepared(&one, folder.path());
    let layout = layout_of(&one, &prepared);
    let mut spread = spread(&one, &prepared, &layout);
    // The balance of two batches is not that of both: these are compared with two batches of one device.
    let several = train(&Recipe { batch: 2, accumulate: 2, ..own("one of two") }, folder.path());
    for (name, mesh, batch, accumulate) in
        [("two", "data=2,expert=2", 4, 1), ("four", "data=4,expert=2", 4, 1), ("several", "data=2,expert=2", 2, 2)]
    {
        let recipe = Recipe { mesh: mesh.parse().unwrap(), batch, accumulate, ..own(name) };
        let seen = train(&recipe, folder.path());
        if accumulate == 1 {
            seen.check(&mut spread, &layout);
        } else {
            for ((spec, got), (_, wanted)) in layout.tensors(&seen.pages).zip(layout.tensors(&several.pages)) {
                let [got, wanted] = [got, wanted].map(|x| x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>());
                spread.check(&format!("final.{}", spec.name), &got, &wanted, 0.0);
            }
        }
        if name == "four" {
            let again = Recipe { out: folder.path().join("again"), ..recipe };
            assert!(train(&again, folder.path()) == seen, "{name}: another run gives other bits");
        }
    }
    eprintln!("worst: {:?}", spread.worst);
    let short = Recipe { steps: 2, eval_every: Some(2), mesh: "data=2,expert=2".parse().unwrap(), ..own("short") };
    for (capacity, drops) in [(None, false), (Some(0.5), true)] {
        let recipe = Recipe { expert_capacity: capacity, ..short.clone() };
        train(&recipe, folder.path());
        let lines = read_metrics(&recipe.out).unwrap();
        let loads: Vec<_> = lines.iter().filter_map(|line| line.experts).collect();
        assert!(loads.len() == 2 && loads.iter().all(|load| load.busiest >= 1.0), "{loads:?}");
        assert!(loads.iter().all(|load| (load.dropped > 0) == drops), "{loads:?}");
        let shares = lines.iter().find_map(|line| line.expert_shares.clone()).unwrap();
        assert!(shares.len() == 1 && (shares[0].iter().sum::<f32>() - 1.0).abs() < 1e-6, "{shares:?}");
    }
}

/// Each rank writes its experts, and one of them all else. The same ranks go on as if nothing had happened; one device and other
/// meshes within roundings of one device's eight steps.
#[test]
fn what_ranks_with_experts_wrote_any_mesh_reads() {
    let folder = tempfile::tempdir().unwrap();
    let of = |name: &str, steps, mesh: &str| Recipe {
        steps,
        mesh: mesh.parse().unwrap(),
        schedule: Shape::Constant,
        warmup: Some(1),
        eval_every: Some(2),
        ..experts(folder.path(), name)
    };
    let calm = train(&of("calm", 8, "data=2,expert=2"), folder.path());
    train(&of("run", 2, "data=2,expert=2"), folder.path());
    copy(&folder.path().join("run"), &folder.path().join("other"));
    let same = go_on(&of("run", 8, "data=2,expert=2"), folder.path());
    assert!(same.pages == calm.pages && same.steps == calm.steps[2..], "the same ranks go on otherwise");
    let one = of("one", 8, "data=1");
    let prepared = prepared(&one, folder.path());
    let layout = layout_of(&one, &prepared);
    let mut spread = spread(&one, &prepared, &layout);
    let mut all = Seen { steps: calm.steps[..2].to_vec(), ..calm };
    for (steps, mesh) in [(4, "data=1"), (5, "data=4,expert=2"), (7, "data=2"), (8, "data=4,expert=4")] {
        let seen = go_on(&of("other", steps, mesh), folder.path());
        all.steps.extend(seen.steps);
        all.pages = seen.pages;
    }
    all.check(&mut spread, &layout);
    eprintln!("worst: {:?}", spread.worst);
}

/// The same where a pipeline has the layers, and the ranks of a stage the experts of its own.
#[test]
fn ranks_with_layers_share_the_experts_of_these() {
    let folder = tempfile::tempdir().unwrap();
    let own = |name: &str, mesh: &str| {
        let recipe = Recipe { mesh: mesh.parse().unwrap(), batch: 2, accumulate: 2, ..experts(folder.path(), name) };
        let config = EXPERTS.replace("\"num_hidden_layers\": 1", "\"num_hidden_layers\": 2");
        std::fs::write(folder.path().join("config.json"), config).unwrap();
        recipe
    };
    let one = own("one", "data=1");
    let prepared = prepared(&one, folder.path());
    let layout = layout_of(&one, &prepared);
    let mut spread = spread(&one, &prepared, &layout);
    let wanted = train(&one, folder.path());
    let recipe = own("stages", "data=2,expert=2,pipeline=2");
    let seen = train(&recipe, folder.path());
    for ((spec, got), (_, wanted)) in layout.tensors(&seen.pages).zip(layout.tensors(&wanted.pages)) {
        let [got, wanted] = [got, wanted].map(|x| x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>());
        spread.check(&format!("final.{}", spec.name), &got, &wanted, 0.0);
    }
    let again = Recipe { out: folder.path().join("again"), ..recipe };
    assert!(train(&again, folder.path()) == seen, "another run gives other bits");
    eprintln!("worst: {:?}", spread.worst);
}

/// Ranks with other experts each have all else alike, which is compared over all of them; experts are with those who have the same.
#[test]
fn what_is_alike_is_compared_whoever_has_which_experts() {
    let folder = tempfile::tempdir().unwrap();
    // Of two who hold the same the first one's counts.
    for (mesh, batch, is_of_experts, says) in [
        ("data=2,expert=2", 2, false, "rank 1 has parameters other than most of the 2"),
        ("data=4,expert=2", 4, true, "rank 3 has experts other than most of the 2"),
    ] {
        let recipe = Recipe { batch, mesh: mesh.parse().unwrap(), ..experts(folder.path(), mesh) };
        let prepared = prepared(&recipe, folder.path());
        let told = ranks(&recipe, |world| {
            let gpu = common::gpu();
            let (mut trainer, ..) =
                block_on(Trainer::among(&gpu, &recipe, &prepared, &mut First, world, &mut |_| {})).unwrap();
            let page = trainer.layout().pages().iter().position(|page| page.is_of_experts() == is_of_experts).unwrap();
            if world.rank() == 1 {
                block_on(trainer.states.write(&format!("param.{page}"), 64, &[0, 0, 0, 64])).unwrap();
            }
            let stop = AtomicBool::new(false);
            block_on(run(&gpu, &recipe, &prepared, &mut trainer, None, &stop, &mut |_: &_| {})).unwrap_err().to_string()
        });
        assert_eq!(told, vec![format!("ranks: {says}, after step 0"); batch], "{mesh}");
    }
}
