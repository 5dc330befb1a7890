//! What `danlu launch` makes of launchers that say other things than what became of their ranks.

use super::launching::{TRAIN, launch};
use super::resuming::weights;
use super::{Place, has_adapter, stderr, stdout};
use std::os::unix::fs::PermissionsExt;

/// Has a place find a script in place of Slurm's `srun`: the ranks' own command is "$@".
fn srun(place: &Place, script: &str) -> String {
    let skip = "while case \"$1\" in --*) true;; *) false;; esac; do shift; done";
    std::fs::create_dir_all(place.path("bin")).unwrap();
    place.write("bin/srun", format!("#!/bin/sh\n{skip}\n{script}\n"));
    std::fs::set_permissions(place.path("bin/srun"), std::fs::Permissions::from_mode(0o755)).unwrap();
    format!("{}:{}", place.path("bin").display(), std::env::var("PATH").unwrap_or_default())
}

/// An `srun` whose rank is killed, and one that starts none: both leave with exit code 0.
#[test]
fn a_launcher_whose_ranks_failed_is_not_believed() {
    if !has_adapter() {
        return;
    }
    let place = Place::new();
    place.train(&format!("{TRAIN} --out calm")).assert().success();
    let path = srun(
        &place,
        "[ ! -e once ] || exec \"$@\"
        touch once; \"$@\" & rank=$!
        until ls m/checkpoints/step-*/manifest.json >/dev/null 2>&1; do sleep 0.01; done
        kill -KILL $rank; wait $rank; exit 0",
    );
    let with = |flags: &str, run: &str| {
        let mut command = launch(&place, &format!("--with srun --ranks 1 {flags}"), run);
        command.env("PATH", &path);
        command
    };
    let how = "the ranks ended before the run did, though exit code 0 says that all went well";
    let told = stderr(&with("", "m").assert().success());
    assert_eq!(told.matches(&format!("{how}; taken up after step ")).count(), 1, "{told}");
    assert_eq!(weights(&place, "m"), weights(&place, "calm"));
    srun(&place, "exit 0");
    let told = stderr(&with("", "never").assert().failure());
    assert!(told.contains(&format!("before there was anything in never to take up, {how};")), "{told}");
    // Nor does the end of a run stand for that of what goes on with it.
    let mut further = place.danlu("launch --with srun --ranks 1 --restarts 0 -- train --resume m --steps 40");
    let told = stderr(&further.env("PATH", &path).assert().failure());
    assert!(told.contains(&format!("{how}, 1 time in all; the run in m has done 40 steps")), "{told}");
    // What is no run has no end.
    srun(&place, "exec \"$@\"");
    assert!(stdout(&with("", "none --print-recipe").assert().success()).contains("steps = 40"));
    // And where the run came to its end, what its launcher leaves with changes nothing.
    srun(&place, "\"$@\"; exit 7");
    let told = stderr(&with("", "late").assert().success());
    assert!(told.contains("the ranks failed with exit code 7, but the run in late came to its end"), "{told}");
    assert_eq!(weights(&place, "late"), weights(&place, "calm"));
}
