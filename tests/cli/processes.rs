//! Runs whose ranks are processes under `mpirun`, as `danlu launch` starts them: what they make is what threads make, whatever
//! becomes of them meanwhile.

use super::launching::{TRAIN, killed, orphaned, stopped, told_to_end};
use super::resuming::losses;
use super::{EXPERTS, Place, TINY, has_adapter, stderr};
use std::fs;
use std::process::Command;

/// One of four processes at a time; `DANLU_KILLS` says how often.
#[test]
fn one_of_four_processes_that_is_killed_changes_no_byte() {
    if !has_adapter() || !has_mpirun() {
        return;
    }
    let place = Place::new();
    place.train(&format!("{TRAIN} --mesh data=4 --shard parameters --out calm")).assert().success();
    let kills = std::env::var("DANLU_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(3);
    killed(&place, "--ranks 4", "processes", "parameters", kills);
}

/// Processes that stop on four, go on with two, three and one: the losses of an undisturbed run within the roundings of eight
/// steps, for which the bar of twenty is drawn in tests/mesh.rs.
#[test]
fn other_numbers_of_processes_go_on_and_those_that_differ_are_refused() {
    if !has_adapter() || !has_mpirun() {
        return;
    }
    let place = Place::new();
    let train = "--schedule constant --batch 12 --checkpoint-every 2 --quiet";
    place.train(&format!("{train} --steps 8 --mesh data=4 --out calm")).assert().success();
    let begun = place.train(&format!("{train} --steps 2 --out m"));
    let words: Vec<&str> = begun.get_args().map(|word| word.to_str().unwrap()).collect();
    place.danlu(&format!("launch --ranks 4 -- {}", words.join(" "))).assert().success();
    for (steps, ranks) in [(4, 2), (6, 3), (8, 1)] {
        let line = format!("launch --ranks {ranks} -- train --resume m --steps {steps} --tune off --quiet");
        place.danlu(&line).assert().success();
    }
    let (all, calm) = (losses(&place, "m"), losses(&place, "calm"));
    assert_eq!(all.len(), 8);
    for (got, expected) in all.iter().zip(&calm) {
        assert!(got.0 == expected.0 && (got.1 - expected.1).abs() <= 2e-5 * expected.1, "{got:?} for {expected:?}");
    }
    // One rank's rate is another.
    let mut mpirun = Command::new("mpirun");
    for (i, rate) in ["1e-3", "2e-3"].iter().enumerate() {
        let odd = place.train(&format!("--batch 2 --steps 2 --out odd --lr {rate}"));
        // Open MPI's mpirun takes `--tune off` for its own.
        let words: Vec<&str> = odd.get_args().map(|word| word.to_str().unwrap()).collect();
        let words = words.join(" ").replace("--tune off", "--tune=off");
        let line = format!("{}-n 1 {} {words}", if i > 0 { ": " } else { "" }, env!("CARGO_BIN_EXE_danlu"));
        mpirun.args(line.split_whitespace());
    }
    let said = mpirun.current_dir(place.path(".")).env("DANLU_CACHE", place.path("cache")).output().unwrap();
    let told = String::from_utf8_lossy(&said.stderr);
    assert!(!said.status.success() && told.contains("has a recipe other than most of the 2"), "{told}");
}

/// Ranks with parts of matrices, of the layers, of the tokens, and of the experts; with moments that four share out, whose parts
/// neighbours keep copies of; and with adapters: what processes make is what threads make, each byte of it.
#[test]
fn processes_make_the_bytes_of_threads_on_each_axis() {
    if !has_adapter() || !has_mpirun() {
        return;
    }
    let place = Place::new();
    let two = [("_hidden_layers\": 1", "_hidden_layers\": 2"), ("_value_heads\": 1", "_value_heads\": 2")];
    let two = two.iter().fold(TINY.to_string(), |config, (from, to)| {
        assert!(config.contains(from));
        config.replace(from, to)
    });
    place.write("two.json", two);
    place.write("experts.json", EXPERTS);
    let mut made = Vec::new();
    place.train("--config two.json --steps 1 --quiet --out base").assert().success();
    let shared = format!(
        "--config two.json --mesh data=2,tensor=2 --shard optimizer --neighbour-copies {}",
        place.path("copies").display()
    );
    for (axis, ranks, flags) in [
        ("tensor", 2, "--config two.json --mesh tensor=2"),
        ("pipeline", 2, "--config two.json --mesh pipeline=2 --accumulate 2"),
        ("sequence", 2, "--config two.json --mesh sequence=2"),
        ("expert", 2, "--config experts.json --mesh data=2,expert=2"),
        ("shared", 4, &shared),
        (
            "adapters",
            2,
            "finetune --model base --lora-rank 4 --data text.txt --seq 16 --batch 2 --tune off --mesh tensor=2",
        ),
    ] {
        let line = |out: &str| {
            let line = format!("{flags} --steps 4 --quiet --out {axis}-{out}");
            if axis == "adapters" { place.danlu(&line) } else { place.train(&line) }
        };
        line("threads").assert().success();
        let processes = line("processes");
        let words: Vec<&str> = processes.get_args().map(|word| word.to_str().unwrap()).collect();
        let launched =
            place.danlu(&format!("launch --ranks {ranks} --restarts 0 -- {}", words.join(" "))).assert().success();
        // Ranks by themselves would leave no log of a second one.
        assert!(place.path(&format!("{axis}-processes/ranks/rank-1.jsonl")).exists(), "{}", stderr(&launched));
        let file = if axis == "adapters" { "adapter_model.safetensors" } else { "model.safetensors" };
        let made_by = |out: &str| fs::read(place.path(&format!("{axis}-{out}")).join(file)).unwrap();
        let [threads, processes] = ["threads", "processes"].map(made_by);
        assert!(threads == processes, "{axis}: processes make another model than threads");
        made.push(threads);
    }
    assert!(made[0] != made[1], "other batches make the same model");
}

/// One of two processes.
#[test]
fn one_of_the_processes_that_is_stopped_is_missed_by_the_others() {
    if !has_adapter() || !has_mpirun() {
        return;
    }
    let place = Place::new();
    place.train(&format!("{TRAIN} --mesh data=2 --out calm")).assert().success();
    stopped(
        &place,
        "--ranks 2",
        "stopped",
        "has given no sign of life for 3 s: its process is stopped, or its machine",
    );
}

#[test]
fn processes_do_not_outlive_what_started_them() {
    if !has_adapter() || !has_mpirun() {
        return;
    }
    orphaned(&Place::new(), "--ranks 2", "orphans", 2);
}

/// Whether there is an mpirun, which root may use.
fn has_mpirun() -> bool {
    let has = Command::new("mpirun").arg("--version").output().is_ok();
    if !has {
        eprintln!("skipped: there is no mpirun here");
    }
    has
}

/// Told to end, the launcher tells mpirun, and that its processes.
#[test]
fn processes_that_are_told_to_end_save_and_leave_with_their_code() {
    if !has_adapter() || !has_mpirun() {
        return;
    }
    told_to_end("--ranks 2");
}

/// What processes exchange, and of their talk about gradients what they hide, as the one tells it that hides least.
#[test]
fn what_processes_exchange_and_hide_is_measured() {
    if !has_adapter() || !has_mpirun() {
        return;
    }
    let place = Place::new();
    let mut mpirun = Command::new("mpirun");
    mpirun.args(["-n", "2", env!("CARGO_BIN_EXE_danlu"), "bench", "comm", "--quick", "--json"]);
    let said = mpirun.current_dir(place.path(".")).output().unwrap();
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    let report: serde_json::Value = serde_json::from_slice(&said.stdout).unwrap();
    let hidden = |key: &str| report["hidden"][key].as_f64().unwrap();
    assert_eq!((&report["ranks"], hidden("ranks")), (&2.into(), 2.0));
    // Whether two cores hide anything of so little is theirs; tests/mesh/shared.rs asks for it where more is computed.
    assert!(0.0 < hidden("talking") && hidden("hidden") <= hidden("talking"), "{report}");
    assert!(report["engine"].as_str().unwrap().starts_with("processes of "), "{report}");
}
