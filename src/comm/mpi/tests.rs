//! The tests of every engine on processes under `mpirun`, and what becomes of ranks that differ, hang, die or panic.
//!
//! Each test runs itself again as several ranks. Those are the tests that are ignored here.

use super::super::engine_tests::*;
use super::*;
use std::process::{Command, Output};
use std::time::Instant;

/// Runs an ignored test as so many ranks; what they said, unless there is no `mpirun` here.
fn under_mpirun(ranks: usize, test: &str) -> Option<Output> {
    let library = ::mpi::environment::library_version().unwrap_or_default();
    let (run, more): (_, &[&str]) = match library.contains("MPICH") {
        true => (["mpirun.mpich", "mpirun"], &[]),
        false => (["mpirun.openmpi", "mpirun"], &["--oversubscribe"]),
    };
    let found = run.iter().find(|name| Command::new(name).arg("--version").output().is_ok());
    let Some(found) = found else {
        eprintln!("skipped: there is no mpirun here");
        return None;
    };
    let mut command = Command::new(found);
    command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1").env("MPIEXEC_TIMEOUT", "100");
    command.args(["-n", &ranks.to_string()]).args(more).arg(std::env::current_exe().unwrap());
    let name = format!("comm::mpi::tests::{test}");
    command.args([&name, "--exact", "--ignored", "--nocapture", "--test-threads=1"]);
    Some(command.output().unwrap())
}

/// Runs an ignored test that must fail; what its ranks said in the end.
fn fails(ranks: usize, test: &str) -> Option<String> {
    let began = Instant::now();
    let output = under_mpirun(ranks, test)?;
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(!output.status.success(), "{test} must fail:\n{text}");
    // Ranks that hang do so for longer.
    assert!(began.elapsed() < Duration::from_secs(50), "{test} took {:?}:\n{text}", began.elapsed());
    Some(text)
}

fn says(text: &str, what: &str, times: usize) {
    assert!(text.matches(what).count() >= times, "not {times} times `{what}`:\n{text}");
}

fn start(patience: u64) -> MpiWorld {
    MpiWorld::start(Some(Duration::from_millis(patience)), None, |text| eprintln!("last words: {text}")).unwrap()
}

/// Prints what a call failed with, in one piece.
fn told(rank: usize, result: Result<()>) {
    let text = format!("told {rank}: {}\n", result.unwrap_err());
    std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes()).unwrap();
}

/// The first that ends after a fault ends the others, who may not have been heard yet.
fn linger() {
    std::thread::sleep(Duration::from_millis(1500));
}

#[test]
fn every_collective_on_processes() {
    let Some(output) = under_mpirun(5, "collectives") else { return };
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}");
    says(&text, "1 passed", 5);
}

#[test]
#[ignore = "one rank of `every_collective_on_processes`"]
fn collectives() {
    let world = start(60_000);
    let mut whole = world.comm();
    assert_eq!(whole.size(), 5);
    assert_eq!(world.local(), (whole.rank(), 5));
    assert!(!world.library().is_empty());
    // Pieces of which some messages are many, and as they are.
    for piece in [64, PIECE] {
        whole.piece = piece;
        for ranks in 1..=5 {
            let group = whole.split((whole.rank() < ranks) as u32, 0).unwrap();
            if whole.rank() < ranks {
                for seed in 0..6 {
                    let count = [0, 1, 3, 64, 699, 5000][seed as usize];
                    sums_are_those_of_plain_loops(&*group, count, ELEMENTS[seed as usize % 3], seed);
                    bytes_arrive_where_they_belong(
                        &*group,
                        [0, 1, 40, 255, 90, 200][seed as usize],
                        seed as usize,
                        seed,
                    );
                }
            }
        }
    }
    // Several stretches, and no multiple of one.
    sums_are_those_of_plain_loops(&whole, 5 * (300 << 10) + 77, Element::F16, 7);
    groups_are_those_of_colours_in_the_order_of_keys(&whole);
    // On two threads at once.
    let group: Arc<dyn Communicator> = Arc::from(whole.split(0, 0).unwrap());
    std::thread::scope(|scope| {
        scope.spawn(|| what_is_begun_goes_on(group));
        (0..20).for_each(|seed| sums_are_those_of_plain_loops(&whole, 1000, Element::F32, seed));
    });
    let (mine, mut sum) = (vec![whole.rank() as f32; 9], vec![0.0; 9]);
    whole.all_reduce_of_mpi(&mine, &mut sum).unwrap();
    assert_eq!(sum, [10.0; 9]);
}

#[test]
fn processes_that_differ_are_told_apart() {
    let Some(text) = fails(3, "one_calls_something_else") else { return };
    for rank in 0..3 {
        says(&text, &format!("told {rank}: ranks: rank 0 calls broadcast of 4, and rank 2 barrier of 0"), 2);
    }
    let Some(text) = fails(3, "one_sends_too_much") else { return };
    for rank in 0..3 {
        says(
            &text,
            &format!("told {rank}: ranks: on rank 0, what comes from a rank has 5 bytes where 4 are wanted"),
            1,
        );
    }
    let Some(text) = fails(2, "one_expects_too_little") else { return };
    says(&text, "told 0: ranks: on rank 0, what was sent has 3 bytes where 4 are wanted", 1);
    says(&text, "told 1: ranks: on rank 0, what was sent has 3 bytes where 4 are wanted", 1);
}

#[test]
#[ignore = "one rank of `processes_that_differ_are_told_apart`"]
fn one_calls_something_else() {
    let world = start(10_000);
    let comm = world.comm();
    let done = if comm.rank() == 2 { comm.barrier() } else { comm.broadcast(0, &mut [0; 4]) };
    told(comm.rank(), done);
    told(comm.rank(), comm.barrier());
    linger();
}

#[test]
#[ignore = "one rank of `processes_that_differ_are_told_apart`"]
fn one_sends_too_much() {
    let world = start(10_000);
    let comm = world.comm();
    let (mine, mut theirs) = ([0; 12], [0; 12]);
    let mut to = [0..4, 4..8, 8..12];
    if comm.rank() == 1 {
        to[0] = 0..5;
    }
    told(comm.rank(), comm.all_to_all_v(&mine, &to, &mut theirs, &[0..4, 4..8, 8..12]));
    linger();
}

#[test]
#[ignore = "one rank of `processes_that_differ_are_told_apart`"]
fn one_expects_too_little() {
    let world = start(10_000);
    let comm = world.comm();
    match comm.rank() {
        0 => told(0, comm.receive(1, &mut [0; 4])),
        _ => {
            comm.send(0, &[1, 2, 3]).unwrap();
            told(1, comm.receive(0, &mut [0; 1]));
        }
    }
    linger();
}

#[test]
fn nobody_waits_for_a_process_that_hangs_dies_or_panics() {
    let Some(text) = fails(3, "one_hangs") else { return };
    for rank in [0, 2] {
        let named = "ranks: rank 1 did nothing for 0.5 s, and the others wait for all_reduce";
        says(&text, &format!("told {rank}: {named}"), 1);
    }
    let Some(text) = fails(3, "two_wait_for_one_another") else { return };
    says(&text, "nothing moved for 0.5 s, rank ", 1);
    says(&text, "waits for what rank ", 2);
    let Some(text) = fails(3, "one_panics") else { return };
    says(&text, "told 0: ranks: rank 1 panicked", 1);
    // It is the launcher that notices a process which is gone, and ends the others.
    fails(3, "one_dies");
}

/// Signs of life are missed while nobody waits for anybody, and given by whoever computes for long.
#[test]
fn a_process_that_is_stopped_ends_all_and_one_that_computes_does_not() {
    let Some(text) = fails(3, "one_is_stopped") else { return };
    let named = "last words: ranks: rank 1 has given no sign of life for 1 s: its process is stopped, or its machine cannot be reached";
    says(&text, named, 1);
    let Some(text) = fails(3, "one_computes_for_ever") else { return };
    says(&text, "rank 1 did nothing for 2.5 s, though its process is alive, and the others wait for barrier", 2);
}

fn start_beating(patience: u64) -> MpiWorld {
    let last_words = |text: &str| eprintln!("last words: {text}");
    MpiWorld::start(Some(Duration::from_millis(patience)), Some(Duration::from_secs(1)), last_words).unwrap()
}

#[test]
#[ignore = "one rank of `a_process_that_is_stopped_ends_all_and_one_that_computes_does_not`"]
fn one_is_stopped() {
    let world = start_beating(60_000);
    let comm = world.comm();
    comm.barrier().unwrap();
    if comm.rank() == 1 {
        Command::new("kill").args(["-STOP", &std::process::id().to_string()]).status().unwrap();
    }
    std::thread::sleep(Duration::from_secs(60));
}

#[test]
#[ignore = "one rank of `a_process_that_is_stopped_ends_all_and_one_that_computes_does_not`"]
fn one_computes_for_ever() {
    let world = start_beating(2500);
    let comm = world.comm();
    // Longer than a silence may last.
    if comm.rank() == 2 {
        std::thread::sleep(Duration::from_millis(1800));
    }
    comm.barrier().unwrap();
    if comm.rank() == 1 {
        std::thread::sleep(Duration::from_secs(60));
    }
    told(comm.rank(), comm.barrier());
    linger();
}

#[test]
#[ignore = "one rank of `nobody_waits_for_a_process_that_hangs_dies_or_panics`"]
fn one_hangs() {
    let world = start(500);
    let comm = world.comm();
    let mut sum = [0; 4];
    comm.all_reduce(&mut sum, Element::F32).unwrap();
    if comm.rank() == 1 {
        std::thread::sleep(Duration::from_secs(60));
    }
    told(comm.rank(), comm.all_reduce(&mut sum, Element::F32));
    linger();
}

#[test]
#[ignore = "one rank of `nobody_waits_for_a_process_that_hangs_dies_or_panics`"]
fn two_wait_for_one_another() {
    let world = start(500);
    let comm = world.comm();
    told(comm.rank(), comm.receive((comm.rank() + 1) % 3, &mut [0]));
    linger();
}

#[test]
#[ignore = "one rank of `nobody_waits_for_a_process_that_hangs_dies_or_panics`"]
fn one_panics() {
    let world = start(10_000);
    let comm = world.comm();
    if comm.rank() == 1 {
        // It takes a moment until its words are heard.
        let _waits = Waits;
        let _comm = comm;
        panic!("as it must");
    }
    told(comm.rank(), comm.barrier());
    linger();
}

/// Is dropped last.
struct Waits;

impl Drop for Waits {
    fn drop(&mut self) {
        linger();
    }
}

#[test]
#[ignore = "one rank of `nobody_waits_for_a_process_that_hangs_dies_or_panics`"]
fn one_dies() {
    let world = start(60_000);
    let comm = world.comm();
    comm.barrier().unwrap();
    if comm.rank() == 1 {
        std::process::abort();
    }
    drop(comm.barrier());
}
