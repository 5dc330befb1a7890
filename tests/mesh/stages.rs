//! Ranks that have some of the layers each.

use super::common::ranks::{CONFIG, Seen, copy, go_on, layout_of, prepared, recipe, spread, train};
use danlu::optim::{Rule, Shape};
use danlu::train::{Precision, Recipe, read_metrics};
use std::path::Path;

/// The model of so many layers, whose heads two ranks can share.
fn write(folder: &Path, layers: usize, tied: bool) {
    let heads = CONFIG.replace("\"num_key_value_heads\": 1", "\"num_key_value_heads\": 2");
    let config = heads.replace("\"num_hidden_layers\": 1", &format!("\"num_hidden_layers\": {layers}"));
    let tie = |tied: bool| format!("\"tie_word_embeddings\": {tied}");
    std::fs::write(folder.join("config.json"), config.replace(&tie(true), &tie(tied))).unwrap();
}

/// Losses of twenty steps and the parameters after them where each rank has some of the layers, of which the first and the last
/// share the table; with stages interleaved, with the data axis, with the tensor axis, with both on eight ranks, and with rows in parts.
#[test]
fn ranks_with_layers_train_what_one_device_trains() {
    let folder = tempfile::tempdir().unwrap();
    let own = |name: &str| {
        let recipe = Recipe { batch: 1, accumulate: 4, ..recipe(folder.path(), name) };
        write(folder.path(), 4, true);
        recipe
    };
    let one = Recipe { batch: 4, accumulate: 1, ..own("one") };
    let prepared = prepared(&one, folder.path());
    let layout = layout_of(&one, &prepared);
    let mut spread = spread(&one, &prepared, &layout);
    for (name, mesh, batch, accumulate, interleave) in [
        ("two", "pipeline=2", 1, 4, 1),
        ("four", "pipeline=4", 2, 2, 1),
        ("interleaved", "pipeline=2", 1, 4, 2),
        ("with data", "data=2,pipeline=2", 2, 2, 1),
        ("with parts", "tensor=2,pipeline=2", 2, 2, 1),
        ("all three", "data=2,tensor=2,pipeline=2", 2, 2, 2),
        ("with rings", "pipeline=2,sequence=2", 1, 4, 1),
    ] {
        let mesh = mesh.parse().unwrap();
        let recipe = Recipe { mesh, batch, accumulate, interleave, ..own(name) };
        let seen = train(&recipe, folder.path());
        seen.check(&mut spread, &layout);
        let written = danlu::store::load_folder(&recipe.out, &prepared.config, &layout).unwrap();
        assert!(written == seen.pages, "{name}: another model lies in the folder");
        if name == "interleaved" {
            let again = Recipe { out: folder.path().join("again"), ..recipe };
            assert!(train(&again, folder.path()) == seen, "{name}: another run gives other bits");
        }
    }
    eprintln!("worst: {:?}", spread.worst);
}

/// What a pipeline trains is what one device trains on the same batches one after another, to the bit: in mixed precision, of
/// packed rows, with an average. Embedding and output are two, and nothing is clipped: norms are summed in another order.
#[test]
fn a_pipeline_gives_the_bits_of_its_micro_batches() {
    let folder = tempfile::tempdir().unwrap();
    let of = |name: &str, mesh: &str| {
        let (mesh, recipe) = (mesh.parse().unwrap(), recipe(folder.path(), name));
        write(folder.path(), 2, false);
        let (precision, pack, clip, ema) = (Precision::Mixed, true, 0.0, 0.9);
        Recipe { mesh, precision, pack, clip, ema, batch: 2, accumulate: 3, steps: 4, eval_every: Some(4), ..recipe }
    };
    let [alone, piped] = [of("alone", "data=1"), of("piped", "pipeline=2")].map(|recipe| train(&recipe, folder.path()));
    // The bubble is told with every step: a part of it, for which the first rank waits; without a pipeline there is none.
    let idle = |name: &str| -> Vec<Option<f64>> {
        let lines = read_metrics(&folder.path().join(name)).unwrap();
        lines.iter().filter(|line| line.loss.is_some()).map(|line| line.idle).collect()
    };
    assert_eq!(idle("alone"), [None; 4]);
    let waited = idle("piped");
    let is_part = |idle: &Option<f64>| idle.is_some_and(|idle| 0.0 < idle && idle < 1.0);
    assert!(waited.len() == 4 && waited.iter().all(is_part), "{waited:?}");
    let losses = |seen: &Seen| -> Vec<u32> { seen.steps.iter().map(|(loss, _)| *loss).collect() };
    assert_eq!(losses(&piped), losses(&alone));
    assert!(piped.pages == alone.pages, "parameters differ");
    assert!((piped.validation - alone.validation).abs() <= 1e-6 * alone.validation);
    // Blocks of eight bits are of a rank's own pages, and their codes turn a rounding into a step of their own, a hundredth of a moment.
    let eight = |name: &str, mesh: &str| Recipe { optimizer: Rule::AdamW8bit, ..of(name, mesh) };
    let [alone, piped] =
        [eight("alone", "data=1"), eight("piped", "pipeline=2")].map(|recipe| train(&recipe, folder.path()));
    for (got, expected) in losses(&piped).into_iter().zip(losses(&alone)) {
        let [got, expected] = [got, expected].map(f32::from_bits);
        assert!((got - expected).abs() <= 1e-3 * expected, "{got} where one device has {expected}");
    }
}

/// Each rank writes the parameters and moments of its layers. The same ranks go on as if nothing had happened; one device, other
/// pipelines and other axes within roundings of one device's eight steps.
#[test]
fn what_stages_wrote_any_mesh_reads() {
    let folder = tempfile::tempdir().unwrap();
    let of = |name: &str, steps, mesh: &str, interleave| {
        let recipe = recipe(folder.path(), name);
        write(folder.path(), 4, true);
        let (mesh, schedule) = (mesh.parse().unwrap(), Shape::Constant);
        let (warmup, eval_every) = (Some(1), Some(2));
        Recipe { steps, mesh, interleave, schedule, warmup, eval_every, batch: 2, accumulate: 2, ..recipe }
    };
    let calm = train(&of("calm", 8, "pipeline=2", 1), folder.path());
    train(&of("run", 2, "pipeline=2", 1), folder.path());
    copy(&folder.path().join("run"), &folder.path().join("other"));
    let same = go_on(&of("run", 8, "pipeline=2", 1), folder.path());
    assert!(same.pages == calm.pages && same.steps == calm.steps[2..], "the same ranks go on otherwise");
    let one = Recipe { batch: 4, accumulate: 1, ..of("one", 8, "data=1", 1) };
    let prepared = prepared(&one, folder.path());
    let layout = layout_of(&one, &prepared);
    let mut spread = spread(&one, &prepared, &layout);
    let mut all = Seen { steps: calm.steps[..2].to_vec(), ..calm };
    for (steps, mesh, interleave) in
        [(4, "data=1", 1), (5, "pipeline=4", 1), (7, "data=2,pipeline=2", 2), (8, "tensor=2", 1)]
    {
        let seen = go_on(&of("other", steps, mesh, interleave), folder.path());
        all.steps.extend(seen.steps);
        all.pages = seen.pages;
    }
    all.check(&mut spread, &layout);
    eprintln!("worst: {:?}", spread.worst);
}
