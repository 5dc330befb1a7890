//! `danlu train --mesh`: ranks as threads of one process.

use super::resuming::{losses, weights};
use super::{Place, has_adapter, stderr, stdout};

/// The first rank alone prints and writes; what all of them make is what one makes of as many batches, and a run that stops on
/// four goes on with any other number.
#[test]
fn ranks_make_one_model_and_other_ranks_go_on_with_it() {
    if !has_adapter() {
        return;
    }
    let place = Place::new();
    let flags = "--schedule constant --steps 8 --checkpoint-every 2 --quiet";
    let done = place.train(&format!("{flags} --batch 4 --mesh data=2 --out two")).assert().success();
    assert_eq!((stdout(&done).as_str(), stderr(&done).as_str()), ("two\n", ""));
    place.train(&format!("{flags} --batch 2 --accumulate 2 --out one")).assert().success();
    assert!(weights(&place, "two") == weights(&place, "one"), "two ranks make another model");
    assert_eq!(losses(&place, "two"), losses(&place, "one"));

    let began = "--schedule constant --steps 2 --batch 4 --checkpoint-every 2 --quiet --mesh data=4 --out m";
    place.train(began).assert().success();
    for (steps, mesh) in [(4, 2), (6, 1), (8, 4)] {
        let line = format!("train --resume m --steps {steps} --mesh data={mesh} --tune off --quiet");
        place.danlu(&line).assert().success();
    }
    let (all, calm) = (losses(&place, "m"), losses(&place, "two"));
    assert_eq!(all.len(), 8);
    for (got, expected) in all.iter().zip(&calm) {
        // Roundings of eight steps: the bar of twenty is drawn in tests/mesh.rs, and is wider.
        assert!(got.0 == expected.0 && (got.1 - expected.1).abs() <= 2e-5 * expected.1, "{got:?} for {expected:?}");
    }
    // A model that several ranks made is one like any other.
    place.danlu("export m exported").assert().success();
    assert!(place.path("exported/model.safetensors").exists());
}

#[test]
#[cfg(unix)]
fn one_signal_stops_all_ranks() {
    if !has_adapter() {
        return;
    }
    let place = Place::new();
    let train = place.train("--steps 4000 --mesh data=2 --checkpoint-every 3999 --out m --log-format json");
    let (said, code) = place.signalled(&train, "-TERM");
    assert_eq!(code, Some(143), "{said}");
    assert_eq!(said.matches("\"event\":\"checkpoint\"").count(), 1, "{said}");
    let steps = losses(&place, "m").len();
    assert!(said.contains("\"interrupted\":true") && steps > 0 && steps < 4000);
}

#[test]
fn meshes_that_cannot_be_are_refused() {
    let place = Place::new();
    for (flags, part) in [
        ("--mesh data=3", "batch is 2, which 3 ranks cannot share in equal parts; choose a multiple of 3"),
        (
            "--mesh data=2 --update layer",
            "mesh is data=2, and ranks add up whole gradients; leave update = \"layer\" out",
        ),
        ("--mesh tensor=2 --optimizer muon", "mesh is tensor=2, and muon takes whole matrices"),
        (
            "--mesh data=2,pipeline=2",
            "mesh is data=2,pipeline=2; training is split over the data axis and the tensor axis only, as in data=4",
        ),
        (
            "--mesh data=2 --shard optimizer --optimizer muon",
            "shard is optimizer: muon takes whole matrices for its steps",
        ),
        (
            "--mesh data=2,tensor=2 --shard optimizer",
            "shard is optimizer, and mesh is data=2,tensor=2: ranks with parts of the parameters keep their moments whole",
        ),
    ] {
        let said = stderr(&place.train(&format!("{flags} --out o")).assert().code(1));
        assert!(said.lines().count() == 1 && said.contains(part), "{part}: {said}");
    }
    let said = stderr(&place.train("--mesh two --out o").assert().code(2));
    assert!(said.contains("mesh `two`: `two` has no =; write axes as in data=4,tensor=2"), "{said}");
    assert!(!place.path("o").exists());
}
