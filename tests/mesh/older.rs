//! Checkpoints of many ranks as they were written before parameters were laid out as they are now.

use super::common::ranks::{CONFIG, go_on, recipe, train};
use danlu::ops::AdamW8;
use danlu::optim::{Rule, Shape};
use danlu::store::snapshot::{Manifest, SHARD_BYTES, Series, Snapshot, SnapshotWriter};
use danlu::train::Recipe;
use std::path::Path;

/// Writes what two ranks wrote as older ones did: each parameter right behind the one before, whoever has what of either, so that a
/// block of moments may be of both.
fn crowd(run: &Path, step: u64) {
    let series = Series::of(run);
    for series in [series.part(1), series.part(0)] {
        let snapshot = Snapshot::open(&series.step(step)).unwrap();
        let mut manifest = Manifest { shards: Vec::new(), ..snapshot.manifest().clone() };
        let mut params: Vec<_> = manifest.layout.as_mut().unwrap().params.values_mut().collect();
        params.sort_by_key(|placed| (placed.page, placed.start));
        let (mut moves, mut end) = (Vec::new(), (0, 0));
        for placed in params {
            let elements = placed.shape.iter().product::<usize>() / (1 + placed.held.splits.len());
            let start = if end.0 == placed.page { end.1 } else { 0 };
            moves.push((placed.page, placed.start..placed.start + elements, start));
            (placed.start, end) = (start, (placed.page, (start + elements).next_multiple_of(64)));
        }
        let moved = |page: usize, values: &[f32]| {
            let mut to = vec![0.0; values.len()];
            for (_, from, start) in moves.iter().filter(|(of, ..)| *of == page) {
                to[*start..start + from.len()].copy_from_slice(&values[from.clone()]);
            }
            to
        };
        let read = |name: &str| {
            let size = manifest.states.iter().find(|state| state.name == name).unwrap();
            let mut bytes = vec![0; size.bytes as usize];
            snapshot.read(name, 0, &mut bytes).unwrap();
            bytes
        };
        let packed = |page: usize| {
            let [codes, scales] = ["adam_codes", "adam_scales"].map(|kind| read(&format!("{kind}.{page}")));
            let all = AdamW8::unpack(&bytemuck::pod_collect_to_vec(&codes), &bytemuck::pod_collect_to_vec(&scales));
            let [m, v, of_m, of_v] = all.map(|values| moved(page, &values));
            AdamW8::pack([&m, &of_m], [&v, &of_v])
        };
        assert!(!packed(0).2, "no block is of both");
        let of = |state: &str| match state.split_once('.').map(|(kind, page)| (kind, page.parse().unwrap())) {
            Some(("param", page)) => {
                bytemuck::cast_slice(&moved(page, &bytemuck::pod_collect_to_vec(&read(state)))).to_vec()
            }
            Some(("adam_codes", page)) => bytemuck::cast_slice(&packed(page).0).to_vec(),
            Some(("adam_scales", page)) => bytemuck::cast_slice(&packed(page).1).to_vec(),
            _ => read(state),
        };
        let states: Vec<Vec<u8>> = manifest.states.iter().map(|state| of(&state.name)).collect();
        std::fs::remove_dir_all(series.step(step)).unwrap();
        let mut writer = SnapshotWriter::new(series.folder(), manifest, SHARD_BYTES).unwrap();
        states.iter().for_each(|bytes| writer.push(bytes).unwrap());
        writer.finish().unwrap();
    }
}

/// Checkpoints whose blocks of moments are of parameters that ranks have alike and of such that they have not are taken up: every
/// parameter as it was, its moments rounded anew.
#[test]
fn moments_of_eight_bits_in_older_blocks_are_taken_up() {
    let folder = tempfile::tempdir().unwrap();
    // Heads that two ranks can share.
    let config = CONFIG.replace("_heads\": 1", "_heads\": 2");
    let of = |name: &str, steps| {
        let recipe = recipe(folder.path(), name);
        std::fs::write(folder.path().join("config.json"), &config).unwrap();
        Recipe {
            steps,
            warmup: Some(1),
            schedule: Shape::Constant,
            eval_every: Some(3),
            mesh: "tensor=2".parse().unwrap(),
            optimizer: Rule::AdamW8bit,
            ..recipe
        }
    };
    let calm = train(&of("calm", 6), folder.path());
    train(&of("run", 3), folder.path());
    crowd(&folder.path().join("run"), 3);
    let seen = go_on(&of("run", 6), folder.path()).steps;
    assert_eq!(seen[0], calm.steps[3], "parameters are others");
    for (step, (got, expected)) in seen.iter().zip(&calm.steps[3..]).enumerate() {
        let [got, expected] = [got, expected].map(|(loss, _)| f32::from_bits(*loss));
        assert!((got - expected).abs() <= 1e-3 * expected, "step {}: {got} where {expected} was expected", step + 4);
    }
}
