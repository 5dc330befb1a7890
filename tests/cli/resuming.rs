//! Runs that are killed, asked to stop, damaged, and taken up again: in the end the same bytes as if nothing had happened.

use super::{Place, has_adapter, stderr, stdout};
use danlu::base::Rng;
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

const FLAGS: &str = "--steps 60 --checkpoint-every 3 --log-format json";

/// Losses by step, as the metrics have them: each step once, in order.
pub fn losses(place: &Place, run: &str) -> Vec<(u64, f64)> {
    let text = fs::read_to_string(place.path(run).join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter_map(|m| Some((m["step"].as_u64()?, m["loss"].as_f64()?))).collect()
}

pub fn weights(place: &Place, run: &str) -> Vec<u8> {
    fs::read(place.path(run).join("model.safetensors")).unwrap()
}

fn checkpoints(place: &Place, run: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        fs::read_dir(place.path(run).join("checkpoints")).unwrap().map(|e| e.unwrap().path()).collect();
    found.sort_by_key(|p| p.file_name().unwrap().to_str().unwrap()[5..].parse::<u64>().unwrap_or(u64::MAX));
    found
}

/// A process of `danlu train` or of its resumption, told apart by whether there is anything to take up.
fn start(place: &Place, run: &str) -> std::process::Child {
    let resumed = place.path(run).join("recipe.toml").exists();
    let mut train = place.train(&format!("{FLAGS} --out {run}"));
    if resumed {
        train = place.danlu(&format!("train --resume {run} --log-format json --tune off"));
    }
    place.process(&train, [Stdio::null(), Stdio::piped()])
}

/// While a run writes to a folder no other does, however that is asked for; once it is killed, the folder is free.
#[test]
#[cfg(unix)]
fn a_folder_is_of_one_run_at_a_time() {
    if !has_adapter() {
        return;
    }
    let place = Place::new();
    // More steps than any machine takes until it is killed.
    let flags = "--steps 100000000 --checkpoint-every 2 --out m --log-format json";
    let mut run = place.process(&place.train(flags), [Stdio::null(), Stdio::null()]);
    while !place.path("m/checkpoints/step-2").is_dir() {
        assert!(run.try_wait().unwrap().is_none(), "it ended before it had a checkpoint");
        std::thread::sleep(Duration::from_millis(5));
    }
    let others = [place.train("--out m"), place.train("--out m --force"), place.danlu("train --resume m --tune off")];
    for mut other in others {
        let said = stderr(&other.assert().code(1));
        let by = format!("m: another run writes there, process {}: wait for its end, end it, or choose", run.id());
        assert!(said.contains(&by) && said.trim_end().lines().count() == 1, "{said}");
    }
    assert!(run.try_wait().unwrap().is_none(), "the run is disturbed");
    run.kill().unwrap();
    run.wait().unwrap();
    let (said, code) = place.signalled(&place.danlu("train --resume m --tune off --log-format json"), "-TERM");
    assert!(code == Some(143) && said.contains("\"event\":\"resumed\""), "{said}");
}

/// Processes are killed with no warning at moments of every kind, fifty times; at most one in five of them while a
/// checkpoint is being written, by looking for its temporary folder.
#[test]
#[cfg(unix)]
fn fifty_kills_change_no_byte() {
    if !has_adapter() {
        return;
    }
    let place = Place::new();
    place.train(&format!("{FLAGS} --out calm")).assert().success();
    let seed = Rng::named(std::process::id().into(), "kills").next_u64();
    eprintln!("seed {seed}");
    let (mut rng, mut kills, mut ends, mut amid) = (Rng::new(seed, 0), 0, 0, 0);
    // How long a process takes from its start to its first step, so that kills fall on all of its life.
    let began = Instant::now();
    assert!(start(&place, "timed").wait().unwrap().success());
    let life = began.elapsed();
    for round in 0.. {
        if kills >= 50 {
            break;
        }
        let run = format!("run-{ends}");
        let mut process = start(&place, &run);
        let (begun, until) = (Instant::now(), life.mul_f64(0.1 + 0.9 * rng.uniform()));
        let writing = round % 3 == 0;
        let is_writing = || {
            let all = fs::read_dir(place.path(&run).join("checkpoints")).into_iter().flatten().flatten();
            all.filter(|e| e.file_name().to_string_lossy().ends_with(".tmp")).count() > 0
        };
        let ended = loop {
            if let Some(status) = process.try_wait().unwrap() {
                break Some(status);
            }
            if (writing && is_writing()) || begun.elapsed() > until {
                amid += u64::from(is_writing());
                process.kill().unwrap();
                process.wait().unwrap();
                kills += 1;
                break None;
            }
            std::thread::sleep(Duration::from_micros(if writing { 50 } else { 1000 }));
        };
        if let Some(status) = ended {
            let mut said = String::new();
            std::io::Read::read_to_string(&mut process.stderr.take().unwrap(), &mut said).unwrap();
            assert!(status.success(), "{run}, seed {seed}: {said}");
            assert!(weights(&place, &run) == weights(&place, "calm"), "{run} differs, seed {seed}");
            assert_eq!(losses(&place, &run), losses(&place, "calm"), "{run}, seed {seed}");
            ends += 1;
        }
    }
    // The last one to its end, however often it was killed.
    let run = format!("run-{ends}");
    assert!(start(&place, &run).wait().unwrap().success(), "seed {seed}");
    assert!(weights(&place, &run) == weights(&place, "calm"), "{run} differs, seed {seed}");
    assert_eq!(losses(&place, &run), losses(&place, "calm"), "{run}, seed {seed}");
    eprintln!("{kills} kills, {amid} of them amid a checkpoint, {} runs to their end", ends + 1);
    assert!(amid > 0);
}

#[test]
fn a_damaged_checkpoint_is_passed_over_aloud() {
    if !has_adapter() {
        return;
    }
    let place = Place::new();
    place.train("--steps 12 --checkpoint-every 4 --out calm").assert().success();
    place.train("--steps 12 --checkpoint-every 4 --out hurt").assert().success();
    // Of those between, one may be left out where the disk is slow.
    let mut kept = checkpoints(&place, "hurt");
    let newest = kept.pop().unwrap();
    assert!(newest.ends_with("step-12"));
    let before = kept.pop().unwrap().file_name().unwrap().to_str().unwrap().replace("step-", "step ");
    let shard = newest.join("states-00001-of-00001.safetensors");
    let mut bytes = fs::read(&shard).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    fs::write(&shard, bytes).unwrap();
    fs::remove_file(place.path("hurt/model.safetensors")).unwrap();
    let said = stderr(&place.danlu("train --resume hurt --tune off").assert().success());
    assert!(
        said.contains("note        the checkpoint of step 12 is not used: ") && said.contains("is damaged"),
        "{said}"
    );
    assert!(said.contains(&format!("resumed     hurt after {before}")), "{said}");
    assert!(weights(&place, "hurt") == weights(&place, "calm"));
    assert_eq!(losses(&place, "hurt"), losses(&place, "calm"));
}

#[test]
#[cfg(unix)]
fn sigterm_saves_and_leaves_with_its_code() {
    if !has_adapter() {
        return;
    }
    let place = Place::new();
    place.train("--steps 1000 --checkpoint-every 0 --out calm --quiet").assert().success();
    // A checkpoint only because it is asked to end.
    let train = place.train("--steps 1000 --checkpoint-every 999 --out m --log-format json");
    let (said, code) = place.signalled(&train, "-TERM");
    assert_eq!(code, Some(143), "{said}");
    assert!(said.contains("\"event\":\"checkpoint\"") && said.contains("\"interrupted\":true"), "{said}");
    assert_eq!(checkpoints(&place, "m").len(), 1);
    let fresh = stderr(&place.train("--steps 1000 --out m").assert().code(1));
    assert!(fresh.contains("m holds a run with ") && fresh.contains("--resume m"), "{fresh}");
    // Nor is a run written over whose checkpoints cannot be read.
    let manifest = checkpoints(&place, "m")[0].join("manifest.json");
    let whole = fs::read(&manifest).unwrap();
    fs::write(&manifest, &whole[..whole.len() / 2]).unwrap();
    let torn = stderr(&place.train("--steps 1000 --out m").assert().code(1));
    assert!(torn.contains("m holds a run with checkpoints that cannot be read"), "{torn}");
    fs::write(&manifest, whole).unwrap();
    place.danlu("train --resume m --tune off --quiet").assert().success();
    assert!(weights(&place, "m") == weights(&place, "calm"));
}

/// What nohup starts outlives its terminal.
#[test]
#[cfg(target_os = "linux")]
fn a_hangup_that_is_ignored_ends_nothing() {
    if !has_adapter() {
        return;
    }
    let place = Place::new();
    let hung_up = |shell: &str, out: &str, steps: u32| {
        let train = place.train(&format!("--steps {steps} --out {out} --log-format json"));
        let mut sh = std::process::Command::new("sh");
        sh.args(["-c", shell, "sh", env!("CARGO_BIN_EXE_danlu")]).args(train.get_args());
        sh.current_dir(place.path(".")).env("DANLU_CACHE", place.path("cache"));
        let mut run = sh.stdout(std::process::Stdio::piped()).spawn().unwrap();
        let (mut said, mut lines) = (String::new(), BufReader::new(run.stdout.take().unwrap()));
        while !said.contains("\"event\":\"step\"") {
            assert!(lines.read_line(&mut said).unwrap() > 0, "{said}");
        }
        std::process::Command::new("kill").args(["-HUP", &run.id().to_string()]).status().unwrap();
        lines.read_to_string(&mut said).unwrap();
        (run.wait().unwrap().code(), losses(&place, out).len())
    };
    assert_eq!(hung_up("trap '' HUP; exec \"$@\"", "ignored", 200), (Some(0), 200));
    // Tests that nohup has started ignore it as well, and with them what they start.
    let endless = 100_000_000;
    let (code, steps) = hung_up("exec env --default-signal=HUP \"$@\"", "heard", endless);
    assert!(code == Some(129), "{code:?} after {steps} steps");
}

/// What a run, or somebody, has left in a folder is given up only where that is asked for.
#[test]
fn a_finished_run_is_not_written_over() {
    if !has_adapter() {
        return;
    }
    let place = Place::new();
    for (every, what) in [
        (1, "a run that has come to its end, with all 3 steps done"),
        (0, "the model of a run, which kept no checkpoint"),
    ] {
        let run = format!("m{every}");
        let flags = format!("--checkpoint-every {every} --quiet --out {run}");
        place.train(&flags).assert().success();
        let content = |name: &str| fs::read(place.path(&run).join(name)).unwrap();
        let all = || ["recipe.toml", "metrics.jsonl", "model.safetensors", "trained.json"].map(content);
        let (before, names) = (all(), place.names(&run));
        let said = stderr(&place.train(&format!("{flags} --seed 9")).assert().code(1));
        let expected = format!("danlu: {run} holds {what}: choose another --out, or write over it with --force\n");
        assert_eq!(said, expected);
        assert!(all() == before && place.names(&run) == names, "what was there has changed");
        let recipe = place.train(&format!("{flags} --seed 9 --print-recipe")).assert().success();
        assert!(stdout(&recipe).contains("seed = 9"), "who only asks is answered");
        let line = place.train(&format!("{flags} --seed 9"));
        let words: Vec<&str> = line.get_args().map(|word| word.to_str().unwrap()).collect();
        let launched = format!("launch --ranks 2 --with threads -- {}", words.join(" "));
        assert_eq!(stderr(&place.danlu(&launched).assert().code(1)), expected, "nor taken up in the other's place");
        place.train(&format!("{flags} --seed 9 --force")).assert().success();
        assert!(content("model.safetensors") != before[2]);
    }
    fs::create_dir(place.path("mine")).unwrap();
    place.write("mine/thesis.tex", "");
    let said = stderr(&place.train("--out mine").assert().code(1));
    assert!(said.contains("mine holds thesis.tex, which is no run's: choose another --out"), "{said}");
    assert_eq!(place.names("mine"), ["thesis.tex"]);
}

#[test]
fn a_resumed_run_keeps_its_recipe() {
    if !has_adapter() {
        return;
    }
    let place = Place::new();
    place.train("--steps 6 --out m").assert().success();
    let refused = |flags: &str, part: &str| {
        let said = stderr(&place.danlu(&format!("train --resume m --tune off {flags}")).assert().code(1));
        assert!(said.lines().count() == 1 && said.contains(part), "{part}: {said}");
    };
    refused("--lr 0.5", "lr is 0.004 in the run that is taken up, and would be 0.5: a resumed run keeps its recipe");
    refused("--seed 5", "seed is 1 in the run that is taken up");
    refused("--steps 9", "by this schedule the learning rate of the 6 steps that are done would have been another");
    refused("--steps 2", "steps would be 2, and 6 are done already");
    let said = stderr(&place.danlu("train --resume nowhere --tune off").assert().code(1));
    assert!(said.contains("nowhere: holds no run that could be taken up"), "{said}");
    // What changes nothing is taken; and a run that is complete is written again.
    let before = weights(&place, "m");
    fs::remove_file(place.path("m/model.safetensors")).unwrap();
    place.danlu("train --resume m --tune off --lr 0.004 --keep 1 --quiet").assert().success();
    assert!(weights(&place, "m") == before);
    let data = fs::read(place.path("text.txt")).unwrap();
    place.write("text.txt", [&data[..], b"And more.\n"].concat());
    let said = stderr(&place.danlu("train --resume m --tune off").assert().code(1));
    assert!(said.contains("is no longer what the run began with") || said.contains("are no longer what"), "{said}");
    fs::remove_file(place.path("text.txt")).unwrap();
    let said = stderr(&place.danlu("train --resume m --tune off").assert().code(1));
    assert!(said.contains("text.txt") && said.lines().count() == 1, "{said}");
}

/// A rate so high that no checkpoint comes before its end: what is said, and that nothing is left under a model's name.
#[test]
fn divergence_from_the_start_is_said() {
    if !has_adapter() {
        return;
    }
    let place = Place::new();
    place.write("r.toml", "lr = 1e30\nclip = 1e9\n");
    for (flags, part) in [("", "Nothing was saved."), ("--on-divergence stop", "No model was written.")] {
        let said = stderr(&place.train(&format!("--recipe r.toml --steps 8 --quiet --out n {flags}")).assert().code(1));
        assert!(said.contains("training diverged; try a lower --lr, or a longer warmup."), "{said}");
        assert!(said.contains(part) && place.model("n").is_empty(), "{said}");
    }
}

#[test]
fn patience_ends_a_run_with_its_best_model() {
    if !has_adapter() {
        return;
    }
    let place = Place::new();
    // Nothing is learnt at such a rate: validation does not move, and no later one is better.
    place.write("r.toml", "lr = 1e-30\neval_every = 2\npatience = 3\nweight_decay = 0.0\n");
    let said = stderr(&place.train("--recipe r.toml --steps 40 --out m").assert().success());
    assert!(
        said.contains("3 times in a row") && said.contains("the model that is written is that of step 2"),
        "{said}"
    );
    assert_eq!(losses(&place, "m").len(), 8);
    // One of the others, or it was said of each that the disk was too slow for it.
    let kept = checkpoints(&place, "m");
    let (best, last) = (&kept[0], &kept[kept.len() - 1]);
    assert!(best.ends_with("step-2") && last.ends_with("step-8"), "{kept:?}");
    let is_said = |step: u64| said.contains(&format!("the checkpoint of step {step} is left out"));
    assert!(kept.len() == 3 || kept.len() == 2 && [4, 6].into_iter().all(is_said), "{kept:?}: {said}");
    // It stays also where the recipe lets the best go.
    place.write(
        "p.toml",
        "lr = 1e-30\neval_every = 2\npatience = 3\nweight_decay = 0.0\n[checkpoint]\nbest = false\nkeep = 1\n",
    );
    let said = stderr(&place.train("--recipe p.toml --steps 40 --out p").assert().success());
    assert!(said.contains("the model that is written is that of step 2"), "{said}");
    // The best stays where nothing but its loss asks for it.
    place.write("all.toml", "lr = 1e-30\neval_every = 2\nweight_decay = 0.0\n");
    place.train("--recipe all.toml --steps 12 --out b --checkpoint-every 5 --quiet").assert().success();
    assert!(checkpoints(&place, "b")[0].ends_with("step-2"), "{:?}", checkpoints(&place, "b"));
    // Also where no checkpoint is due when it is best.
    let said = stderr(&place.train("--recipe r.toml --steps 40 --out n --checkpoint-every 7").assert().success());
    assert!(said.contains("the model that is written is that of step 2"), "{said}");
}
