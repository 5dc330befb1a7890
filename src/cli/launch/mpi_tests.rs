//! What becomes of processes, of whichever MPI this is, whose supervisor is gone: without danlu itself, which is not built for each.

use super::super::alive::{Watch, leave_with_supervisor};
use super::super::mpi::among;
use super::super::ranks::Patience;
use super::Layout;
use super::starter::Starter;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Where a rank says that it is there.
const FOLDER: &str = "DANLU_TEST_RANKS";

#[test]
fn processes_end_when_nobody_holds_their_input() {
    let Ok(starter) = Starter::mpirun() else {
        eprintln!("skipped: there is no mpirun here");
        return;
    };
    let place = tempfile::tempdir().unwrap();
    let words = starter.words(Layout { ranks: 2, nodes: 1, per_node: 2 });
    let words: Vec<String> = words.into_iter().flat_map(|(words, _)| words).collect();
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).arg(std::env::current_exe().unwrap());
    command.args(["cli::launch::mpi_tests::a_rank_that_waits", "--exact", "--ignored", "--nocapture"]);
    command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1").env(FOLDER, place.path());
    let watch = Watch::new(None);
    watch.tell(&mut command);
    let mut launcher = command.spawn().unwrap();
    watch.greet(&mut launcher);
    let began = Instant::now();
    let ranks = || std::fs::read_dir(place.path()).unwrap().map(|entry| entry.unwrap().file_name());
    while ranks().count() < 2 {
        assert!(began.elapsed() < Duration::from_secs(50) && launcher.try_wait().unwrap().is_none(), "no two ranks");
        std::thread::sleep(Duration::from_millis(20));
    }
    // As the system does where who started them was killed.
    drop(launcher.stdin.take());
    let began = Instant::now();
    let lives = |rank: std::ffi::OsString| {
        Command::new("kill").arg("-0").arg(rank).stderr(Stdio::null()).status().unwrap().success()
    };
    while launcher.try_wait().unwrap().is_none() || ranks().any(lives) {
        // The ranks themselves would wait for longer.
        assert!(began.elapsed() < Duration::from_secs(10), "{} and its ranks live on", words[0]);
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(!launcher.wait().unwrap().success());
}

#[test]
#[ignore = "one rank of `processes_end_when_nobody_holds_their_input`"]
fn a_rank_that_waits() {
    let waited = among(Patience::default(), |process| {
        if process.is_none_or(|process| process.rank() == 0) {
            leave_with_supervisor();
        }
        std::fs::write(PathBuf::from(std::env::var_os(FOLDER).unwrap()).join(std::process::id().to_string()), "")?;
        std::thread::sleep(Duration::from_secs(60));
        Ok(())
    });
    waited.unwrap();
}
