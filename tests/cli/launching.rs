//! Runs of many ranks that are started, killed, told to end, and taken up by `danlu launch`.

use super::resuming::{losses, weights};
use super::{Place, has_adapter, stderr, stdout};
use danlu::base::Rng;
use danlu::train::RunLock;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub const TRAIN: &str = "--batch 4 --steps 40 --checkpoint-every 3 --log-format json";

/// What [`running`] asks for beside.
const STEADY: &str = "--recipe steady.toml --schedule constant";

/// The words of `danlu launch` for a run of the tiny model.
pub fn launch(place: &Place, flags: &str, run: &str) -> assert_cmd::Command {
    launch_of(place, flags, &format!("{TRAIN} --out {run}"))
}

/// The same of other flags for the run.
fn launch_of(place: &Place, flags: &str, train: &str) -> assert_cmd::Command {
    let train = place.train(train);
    let words: Vec<String> = train.get_args().map(|word| word.to_str().unwrap().to_string()).collect();
    let mut launched = place.danlu(&format!("launch {flags} -- {}", words.join(" ")));
    launched.timeout(Duration::from_secs(300));
    launched
}

fn start(place: &Place, command: &assert_cmd::Command) -> Child {
    place.process(command, [Stdio::piped(), Stdio::piped()])
}

/// A signal, if the process is still there.
fn signal(name: &str, process: u32) {
    let _ = Command::new("kill").args([name, &process.to_string()]).stderr(Stdio::null()).status();
}

/// The processes that this one started, and they, and so on, which train.
fn ranks_of(process: u32) -> Vec<u32> {
    let listed = Command::new("ps").args(["-A", "-o", "pid=,ppid=,comm="]).output().unwrap();
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let rows: Vec<(u32, u32, &str)> = listed
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?, words.next()?))
        })
        .collect();
    let mut found = vec![process];
    let mut at = 0;
    while at < found.len() {
        let of = found[at];
        found.extend(rows.iter().filter(|(_, parent, _)| *parent == of).map(|(child, ..)| *child));
        at += 1;
    }
    let trains = |p: &u32| rows.iter().any(|(pid, _, name)| pid == p && name.starts_with("danlu"));
    found.into_iter().skip(1).filter(trains).collect()
}

/// A run of so many steps that it does not end by itself, once it has a checkpoint; and its ranks.
fn running(place: &Place, flags: &str, run: &str) -> (Child, Vec<u32>) {
    // However many steps there are, the rate of each is one.
    place.write("steady.toml", "warmup = 1\n");
    let train = format!("{STEADY} --batch 4 --steps 100000 --checkpoint-every 3 --quiet --out {run}");
    let launched = start(place, &launch_of(place, flags, &train));
    let until = Instant::now() + Duration::from_secs(60);
    let has_one = || {
        let entries = fs::read_dir(place.path(run).join("checkpoints")).into_iter().flatten().flatten();
        let mut names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.any(|name| name.starts_with("step-") && !name.ends_with(".tmp"))
    };
    while !has_one() {
        assert!(Instant::now() < until, "{run} takes no checkpoint");
        std::thread::sleep(Duration::from_millis(20));
    }
    let ranks = ranks_of(launched.id());
    (launched, ranks)
}

/// Kills ranks at moments of every kind of a run's life until it has been so often that it was disturbed; whatever it was
/// when it ended, the bytes are those of the calm run. Ranks share out what `shard` says.
pub fn killed(place: &Place, flags: &str, run: &str, shard: &str, kills: usize) {
    let start_as = |flags: &str, run: &str| launch(place, flags, &format!("{run} --shard {shard}"));
    let seed = Rng::named(std::process::id().into(), run).next_u64();
    eprintln!("seed {seed}");
    let mut rng = Rng::new(seed, 0);
    // How long an undisturbed one takes.
    let began = Instant::now();
    start_as(flags, "timed").assert().success();
    let life = began.elapsed();
    assert_eq!(weights(place, "timed"), weights(place, "calm"));
    let mut done = 0;
    let mut round = 0;
    while done < kills {
        round += 1;
        assert!(round < 10 * kills, "runs end before they are killed");
        let run = format!("{run}-{round}");
        let began = Instant::now();
        let mut launched = start(place, &start_as(&format!("{flags} --restarts 99"), &run));
        while launched.try_wait().unwrap().is_none() {
            std::thread::sleep(life.mul_f64(0.9 * rng.below(1000) as f64 / 1000.0));
            let ranks = ranks_of(launched.id());
            if done < kills && !ranks.is_empty() && place.path(&run).join("recipe.toml").exists() {
                signal("-KILL", ranks[rng.below(ranks.len())]);
                done += 1;
            }
            assert!(began.elapsed() < Duration::from_secs(280), "{run} does not end");
        }
        let ended = launched.wait_with_output().unwrap();
        assert!(ended.status.success(), "{run}: {}", String::from_utf8_lossy(&ended.stderr));
        assert_eq!(weights(place, &run), weights(place, "calm"), "{run}");
        fs::remove_dir_all(place.path(&run)).unwrap();
    }
}

#[test]
fn ranks_that_are_killed_are_taken_up_and_change_no_byte() {
    if !has_adapter() {
        return;
    }
    let place = Place::new();
    place.train(&format!("{TRAIN} --mesh data=2 --out calm")).assert().success();
    killed(&place, "--with threads --ranks 2", "threads", "none", 3);
}

/// A process that is stopped is missed, and the run taken up.
pub fn stopped(place: &Place, flags: &str, run: &str, says: &str) {
    let mut launched =
        start(place, &launch(place, &format!("{flags} --restarts 2"), &format!("{run} --beat-timeout 3")));
    let mut stopped = None;
    while launched.try_wait().unwrap().is_none() {
        if stopped.is_none() && place.path(run).join("checkpoints").exists() {
            stopped = ranks_of(launched.id()).pop();
            stopped.into_iter().for_each(|rank| signal("-STOP", rank));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let ended = launched.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success() && stopped.is_some(), "{told}");
    assert!(told.contains(says) && told.contains("taken up after step "), "{told}");
    assert_eq!(weights(place, run), weights(place, "calm"));
}

#[test]
#[cfg(unix)]
fn a_process_that_is_stopped_is_missed_and_the_run_taken_up() {
    if !has_adapter() {
        return;
    }
    let place = Place::new();
    place.train(&format!("{TRAIN} --mesh data=2 --out calm")).assert().success();
    let says = "danlu launch: the ranks have given no sign of life for 3 s and are ended";
    stopped(&place, "--with threads --ranks 2", "stopped", says);
}

/// Two ranks that are told to end by who started them, and go on with the bytes of those that were not.
pub fn told_to_end(flags: &str) {
    let place = Place::new();
    place.train(&format!("{TRAIN} --mesh data=2 --out calm")).assert().success();
    let (said, code) = place.signalled(&launch(&place, flags, "told"), "-TERM");
    assert_eq!(code, Some(143), "{said}");
    assert!(said.contains("\"interrupted\":true"), "{said}");
    place.danlu(&format!("launch {flags} -- train --resume told --log-format json")).assert().success();
    assert_eq!(weights(&place, "told"), weights(&place, "calm"));
}

#[test]
fn what_is_told_to_end_saves_and_leaves_with_its_code() {
    if has_adapter() {
        told_to_end("--with threads --ranks 2");
    }
}

/// Four ranks of which one fails go on as two, the next number that deals the batch in equal parts: to the bit as far as they were
/// four, and then within the roundings of eight steps, for which the bar of twenty is drawn in tests/mesh.rs.
#[test]
fn a_run_that_goes_on_with_fewer_ranks_trains_the_same() {
    if !has_adapter() {
        return;
    }
    let place = Place::new();
    let (launched, ranks) = running(&place, "--with threads --ranks 4 --fewer --restarts 1", "fewer");
    ranks.into_iter().for_each(|rank| signal("-KILL", rank));
    let count = || fs::read_to_string(place.path("fewer/metrics.jsonl")).unwrap().matches("\"loss\":").count();
    // What is taken up is cut back to its checkpoint first.
    let (before, until) = (count(), Instant::now() + Duration::from_secs(120));
    while count() < before + 8 {
        assert!(Instant::now() < until, "it does not go on");
        std::thread::sleep(Duration::from_millis(20));
    }
    signal("-TERM", launched.id());
    let ended = launched.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(143), "{told}");
    let done = told.split_once("taken up after step ").and_then(|(_, rest)| rest.split_once(" by 2 threads (0 more"));
    let done: u64 = done.expect(&told).0.parse().unwrap();
    let calm = format!("{STEADY} --batch 4 --steps {} --mesh data=4 --quiet --out calm", done + 8);
    place.train(&calm).assert().success();
    let (all, calm) = (losses(&place, "fewer"), losses(&place, "calm"));
    assert_eq!(all[..done as usize], calm[..done as usize]);
    for (got, expected) in all.iter().zip(&calm).skip(done as usize) {
        // Where training went on for long before, the loss is small, and what roundings make of it is not.
        let bar = 2e-5 * expected.1.max(1.0);
        assert!(got.0 == expected.0 && (got.1 - expected.1).abs() <= bar, "{got:?} for {expected:?}");
    }
    assert_eq!(calm.len() as u64, done + 8);
}

/// Kills what started ranks: they do not live on without it.
#[cfg(unix)]
pub fn orphaned(place: &Place, flags: &str, run: &str, count: usize) {
    let (mut launched, ranks) = running(place, flags, run);
    assert_eq!(ranks.len(), count);
    signal("-KILL", launched.id());
    launched.wait().unwrap();
    let killed = Instant::now();
    while ranks.iter().any(|rank| lives(*rank)) {
        assert!(killed.elapsed() < Duration::from_secs(10), "{run}: ranks live on");
        std::thread::sleep(Duration::from_millis(50));
    }
    RunLock::take(&place.path(run)).unwrap();
}

/// Whether a process is there that has not ended.
#[cfg(unix)]
fn lives(process: u32) -> bool {
    let asked = Command::new("ps").args(["-o", "stat=", "-p", &process.to_string()]).output().unwrap();
    let state = String::from_utf8_lossy(&asked.stdout).trim().to_string();
    !state.is_empty() && !state.starts_with('Z')
}

#[test]
#[cfg(unix)]
fn ranks_do_not_outlive_what_started_them() {
    if !has_adapter() {
        return;
    }
    orphaned(&Place::new(), "--with threads --ranks 2", "orphans", 1);
}

/// A run that fails, and whose folder another one has meanwhile, is no more tried.
#[test]
#[cfg(unix)]
fn what_another_run_has_is_not_tried_again() {
    if !has_adapter() {
        return;
    }
    let place = Place::new();
    let (launched, ranks) = running(&place, "--with threads --ranks 2 --restarts 99", "taken");
    ranks.into_iter().for_each(|rank| signal("-KILL", rank));
    let _other = RunLock::take(&place.path("taken")).unwrap();
    let ended = launched.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&ended.stderr);
    let last = told.lines().last().unwrap_or_default();
    let by = format!("danlu: taken: another run writes there, process {}: wait for its end", std::process::id());
    assert!(!ended.status.success() && last.starts_with(&by), "{told}");
    assert!(told.matches("taken up after step").count() < 2, "{told}");
}

/// What ranks have left locked, as a machine that is gone does for a while, is waited for.
#[test]
#[cfg(target_os = "linux")]
fn a_lock_that_a_run_has_left_is_waited_for() {
    if !has_adapter() {
        return;
    }
    let place = Place::new();
    place.train(&format!("{TRAIN} --mesh data=2 --out calm")).assert().success();
    // With no attempt to lose, and before it looks.
    let mut launched = start(&place, &launch(&place, "--with threads --ranks 2 --restarts 1", "left"));
    let until = Instant::now() + Duration::from_secs(60);
    while !place.path("left/checkpoints").exists() {
        assert!(Instant::now() < until && launched.try_wait().unwrap().is_none(), "there is no checkpoint");
        std::thread::sleep(Duration::from_millis(10));
    }
    signal("-STOP", launched.id());
    ranks_of(launched.id()).into_iter().for_each(|rank| signal("-KILL", rank));
    let left = RunLock::take(&place.path("left")).unwrap();
    place.write("left/.lock", "1 elsewhere\n");
    signal("-CONT", launched.id());
    // Longer than anybody waits for one that is about to leave.
    std::thread::sleep(Duration::from_secs(8));
    drop(left);
    let ended = launched.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&ended.stderr);
    assert!(
        ended.status.success() && told.matches("what the ranks have left, which is waited for").count() == 1,
        "{told}"
    );
    assert_eq!(told.matches("taken up after step").count(), 1, "{told}");
    assert_eq!(weights(&place, "left"), weights(&place, "calm"));
}

/// Between a supervisor and its first rank may stand what hands no standard input on.
#[test]
fn who_was_never_greeted_does_not_leave_at_the_end_of_its_input() {
    if !has_adapter() {
        return;
    }
    let place = Place::new();
    let mut train = place.train("--batch 4 --steps 40 --out m --log-format json");
    train.env("DANLU_ALIVE", place.path("alive")).write_stdin("").assert().success();
    assert!(!weights(&place, "m").is_empty());
}

#[test]
fn what_fails_again_and_again_is_given_up() {
    if !has_adapter() {
        return;
    }
    let place = Place::new();
    // Nothing that could be taken up.
    let told = launch(&place, "--with threads --ranks 3", "never").assert().failure();
    let told = stderr(&told);
    assert!(told.contains("batch is 4, which 3 ranks cannot share in equal parts"), "{told}");
    assert!(
        told.contains("before there was anything in never to take up, the ranks failed with exit code 1"),
        "{told}"
    );
    let mut launched = start(&place, &launch(&place, "--with threads --ranks 2 --restarts 1", "often"));
    while launched.try_wait().unwrap().is_none() {
        if place.path("often/recipe.toml").exists() {
            ranks_of(launched.id()).into_iter().for_each(|rank| signal("-KILL", rank));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let ended = launched.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&ended.stderr);
    assert!(!ended.status.success());
    assert!(told.contains("the ranks were ended by signal 9; taken up after step "), "{told}");
    assert!(told.contains(" by 2 threads (0 more times at most)"), "{told}");
    assert!(told.contains("the ranks were ended by signal 9, 2 times in all; the run in often has done"), "{told}");
}

/// What ranks refuse before their first step they would refuse again; fewer of them may not.
#[test]
fn what_is_refused_twice_is_not_tried_again() {
    if !has_adapter() {
        return;
    }
    let place = Place::new();
    place.train("--batch 4 --schedule constant --checkpoint-every 1 --out m --quiet").assert().success();
    let of =
        |flags: &str| place.danlu(&format!("launch --with threads {flags} -- train --resume m --steps 4")).assert();
    // Four rows, which three ranks cannot share.
    let said = stderr(&of("--ranks 3").failure());
    assert_eq!(said.matches("batch is 4, which 3 ranks cannot share in equal parts").count(), 2, "{said}");
    assert!(said.contains("refused twice stands above: the run in m has done 3 steps"), "{said}");
    let said = stderr(&of("--ranks 3 --fewer").success());
    assert!(said.contains("taken up after step 3 by 2 threads"), "{said}");
    // A file that is not there may be there again.
    let text = fs::read(place.path("text.txt")).unwrap();
    fs::remove_file(place.path("text.txt")).unwrap();
    let of =
        |flags: &str| place.danlu(&format!("launch --with threads {flags} -- train --resume m --steps 5")).assert();
    let said = stderr(&of("--ranks 2 --restarts 2").failure());
    assert_eq!(said.matches("taken up after step").count(), 2, "{said}");
    assert!(said.contains(", 3 times in all; the run in m has done 4 steps"), "{said}");
    place.write("text.txt", text);
    of("--ranks 2").success();
}

/// A run that fails before it has begun takes up nothing that was in its folder before, whether that was given up or never of worth;
/// and what another process is at work on stays.
#[test]
fn a_run_that_never_begins_does_not_take_up_the_one_before_it() {
    if !has_adapter() {
        return;
    }
    let place = Place::new();
    place.train("--batch 4 --checkpoint-every 1 --out old --quiet").assert().success();
    place.write("kept.toml", fs::read(place.path("old/recipe.toml")).unwrap());
    // Four rows, which three ranks cannot share.
    let told = |flags: &str, out: &str| {
        let train =
            format!("train --config tiny.json --data text.txt --seq 16 --batch 4 --steps 3 --out {out} {flags}");
        stderr(&place.danlu(&format!("launch --with threads --ranks 3 --restarts 1 -- {train}")).assert().failure())
    };
    let before = place.names("old/checkpoints");
    assert!(!before.is_empty());
    {
        let _other = RunLock::take(&place.path("old")).unwrap();
        let said = told("--force", "old");
        assert!(said.contains(&format!("old: another run writes there, process {}", std::process::id())), "{said}");
    }
    let said = told("--force --lr=-1", "old");
    assert!(said.lines().count() == 1 && said.contains("lr"), "{said}");
    assert_eq!(place.names("old/checkpoints"), before, "given up for a run that cannot be");
    fs::create_dir(place.path("begun")).unwrap();
    place.write("begun/recipe.toml", fs::read(place.path("kept.toml")).unwrap());
    place.write("begun/.run", "0123456789abcdef");
    assert!(place.path("old/.run").exists());
    for (flags, out) in [("--force", "old"), ("", "begun")] {
        let said = told(flags, out);
        assert!(said.contains("batch is 4, which 3 ranks cannot share in equal parts"), "{said}");
        assert!(said.contains(&format!("before there was anything in {out} to take up")), "{said}");
        assert!(!said.contains("taken up after step"), "{said}");
        // Nor would neighbours' copies of it come back.
        assert!(!place.path(out).join("recipe.toml").exists() && !place.path(out).join(".run").exists());
    }
    assert!(place.names("old/checkpoints").iter().all(|name| !name.starts_with("step-")));
    // The recipe that it is to have is no other run's.
    place.write("begun/recipe.toml", fs::read(place.path("kept.toml")).unwrap());
    told("--recipe begun/recipe.toml", "begun");
    assert!(place.path("begun/recipe.toml").exists());
}

#[test]
fn what_would_be_started_is_explained() {
    let place = Place::new();
    let said = stdout(&launch(&place, "--with threads --ranks 2 --dry-run", "dry").assert().success());
    assert!(said.contains("danlu train --batch 4") && said.contains("--mesh data=2"), "{said}");
    assert!(said.contains("taken up from its last checkpoint in dry, 3 times at most"), "{said}");
    let said = stdout(&launch(&place, "--nodes 2 --ranks-per-node 4 --dry-run", "dry").assert().success());
    assert!(said.starts_with("#!/bin/bash") && said.contains("#SBATCH --ntasks-per-node=4"), "{said}");
    assert!(!place.path("dry").exists());
    // Without a number of ranks they are the mesh's; with another than the mesh's nothing is started.
    let said = stdout(&launch(&place, "--with threads --dry-run", "dry --mesh data=4").assert().success());
    assert!(said.contains("--mesh data=4"), "{said}");
    for (flags, part) in [
        ("--with threads --ranks 2", "2 ranks are to be started, and the mesh data=4 of --mesh is of 4"),
        ("--with threads --ranks 4 --time 1:00:00", "--time is asked of Slurm's queue; add --with slurm"),
        ("--with slurm --ranks 4 --time 5", "--time 5 is 300 s, and 300 s before its end the run is told to leave"),
        ("--with slurm --ranks 4 --time soon", "no time limit that Slurm takes"),
        ("--with slurm --ranks 4 --sbatch hello", "--sbatch is \"hello\"; it must be an option of sbatch on one line"),
        ("--with slurm --ranks 4 --save-ahead 0", "0 is not in 1..=65535"),
        #[cfg(not(feature = "mpi"))]
        ("--ranks 4", "4 processes are to be started, and this danlu was built without MPI"),
        #[cfg(not(feature = "mpi"))]
        (
            "--with slurm --ranks 4",
            "build it with `cargo build --release --features mpi`, or start them with --with threads",
        ),
    ] {
        let told = stderr(&launch(&place, flags, "dry --mesh data=4").assert().failure());
        assert!(told.contains(part), "{flags}: {told}");
    }
    let told = stderr(&place.danlu("launch -- plan").assert().failure());
    assert!(told.contains("danlu launch starts train, finetune and dpo, and not plan"), "{told}");
}
