//! Commands around a run: a recipe by questions, the recipe that flags come to, lists and pictures of runs, and what
//! shells and manuals know.

use super::{Place, chosen, exists, has_adapter, stderr, stdout};
use std::fs;

#[test]
fn a_recipe_is_written_and_taken() {
    let place = Place::new();
    place.danlu("init --yes r.toml").assert().success().stdout("");
    let text = fs::read_to_string(place.path("r.toml")).unwrap();
    assert!(text.contains("\nsteps = 700 ") && text.contains("# optimizer steps") && text.contains("\n[checkpoint]\n"));
    let said = stderr(&place.danlu("init --yes r.toml").assert().code(1));
    assert_eq!(said, "danlu: r.toml is there already; name another file, or write over it with --force\n");
    place.danlu("init --yes --force r.toml").assert().success();
    let said = stderr(&place.danlu("init").write_stdin("").assert().code(1));
    assert_eq!(said, "danlu: there is no terminal to ask on; take the defaults with --yes\n");
    let printed = |line: &str| stdout(&place.danlu(line).assert().success().stderr(""));
    assert_eq!(printed("train --recipe r.toml --print-recipe"), printed("train --print-recipe"));
    assert!(!exists(place.path("runs")), "nothing was to be trained");
}

#[test]
fn the_resolved_recipe_is_printed_and_kept() {
    let place = Place::new();
    let printed = stdout(&place.train("--lr 0.5 --print-recipe --out o").assert().success().stderr(""));
    for line in ["lr = 0.5", "steps = 3", "warmup = 1", "eval_every = 1", "tune = \"off\"", "out = \"o\"", "[recovery]"]
    {
        assert!(printed.lines().any(|l| l == line), "{line}: {printed}");
    }
    if !has_adapter() {
        return;
    }
    place.train("--lr 0.5 --out o --quiet").assert().success();
    let kept = fs::read_to_string(place.path("o/recipe.toml")).unwrap();
    let without_adapter =
        |text: &str| text.lines().filter(|l| !l.starts_with("adapter")).collect::<Vec<_>>().join("\n");
    assert_eq!(without_adapter(kept.trim_end()), without_adapter(printed.trim_end()));
}

/// What is told of a step is all of it: each of its batches, the update that follows them, and the bytes of the whole run.
#[test]
fn a_step_of_several_batches_is_told_whole() {
    if !has_adapter() {
        return;
    }
    let place = Place::new();
    let totals = |batches: u64| {
        let line = format!("--accumulate {batches} --steps 1 --out m{batches} --log-format json");
        let said = stdout(&place.train(&line).assert().success());
        let ready = said.lines().find(|line| line.contains("\"event\":\"ready\"")).unwrap_or_else(|| panic!("{said}"));
        serde_json::from_str::<serde_json::Value>(ready).unwrap()["totals"].clone()
    };
    let (two, three) = (totals(2), totals(3));
    let line = format!("plan --config m2/config.json --batch 2 --seq 16 --accumulate 2 --json --adapter {}", chosen());
    let plan: serde_json::Value = serde_json::from_str(&stdout(&place.danlu(&line).assert().success())).unwrap();
    for key in ["dispatches", "flops", "traffic"] {
        let of = |totals: &serde_json::Value| totals[key].as_u64().unwrap();
        let batch = of(&plan["totals"]);
        assert_eq!(of(&three) - of(&two), batch, "{key}");
        assert!(batch > 0 && of(&two) > 2 * batch, "{key}: the update is missing in {two}");
    }
    assert_eq!(two["device_bytes"], plan["answer"]["device_bytes"]);
    let said = stderr(&place.train("--accumulate 2 --steps 1 --out text").assert().success());
    let told = format!("\nstep        {} dispatches, ", two["dispatches"]);
    assert!(said.contains(&told), "{told}: {said}");
}

/// Copies of weights that are asked for and not kept; of those that nobody asked for nothing is said.
#[test]
fn copies_that_come_to_nothing_are_told() {
    let place = Place::new();
    let plan =
        |flags: &str| stdout(&place.danlu(&format!("plan --config story-1m --seq 16 {flags}")).assert().success());
    let with = plan("--precision mixed --weight-copies");
    assert!(with == plan("--precision mixed") && with != plan("--precision mixed --weight-copies false"), "{with}");
    plan("--weight-copies false");
    if !has_adapter() {
        return;
    }
    let told = |flags: &str| stderr(&place.train(&format!("--steps 1 --out m --force {flags}")).assert().success());
    let said = told("--weight-copies");
    assert_eq!(said.matches("\nnote        weight_copies comes to nothing: precision is f32, ").count(), 1, "{said}");
    assert!(!told("").contains("weight_copies") && !told("--weight-copies false").contains("comes to nothing"));
}

/// What a machine's shaders compute in decides what a mixed step stores; of no machine in particular that is said.
#[test]
fn mixed_plans_are_for_shaders_with_f16_where_the_machine_has_it() {
    let place = Place::new();
    let plan = |flags: &str| {
        stdout(&place.danlu(&format!("plan --config story-1m --batch 4 --seq 64 {flags}")).assert().success())
    };
    let is_open = |said: &str| said.contains("this plan is for an adapter whose shaders have no f16");
    assert!(is_open(&plan("--precision mixed")) && !is_open(&plan("")) && !is_open(&plan("--machine h200")));
    let bytes = |flags: &str| {
        let said = plan(&format!("--json {flags}"));
        let plan: serde_json::Value = serde_json::from_str(&said).unwrap();
        assert!(!is_open(&said));
        plan["totals"]["traffic"].as_u64().unwrap()
    };
    let (without, with) = (bytes("--precision mixed --machine cpu"), bytes("--precision mixed --machine h200"));
    assert!(with < without && bytes("--precision mixed") == without, "{with} of {without} bytes");
    assert_eq!(bytes("--machine cpu"), bytes("--machine h200"));
}

#[test]
fn runs_are_listed_and_drawn() {
    let place = Place::new();
    let said = stderr(&place.danlu("runs").assert().code(1));
    assert_eq!(said, "danlu: runs: no such folder; `danlu train --out FOLDER` makes one\n");
    let said = stderr(&place.danlu("runs text.txt").assert().code(1));
    assert_eq!(said, "danlu: text.txt: is a file; name the folder of a run, or one with runs in it\n");
    if !has_adapter() {
        return;
    }
    place.train("--out runs/slow --lr 0.001 --quiet").assert().success();
    place.train("--out runs/more/fast --lr 0.01 --steps 4 --quiet").assert().success();
    let table = stdout(&place.danlu("runs").assert().success());
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows.len(), 3, "{table}");
    assert_eq!(rows[0].last(), Some(&"lr"), "{table}");
    assert_eq!((&rows[1][..2], rows[1].last()), (&["more/fast", "4/4"][..], Some(&"0.01")), "{table}");
    assert_eq!((&rows[2][..2], rows[2].last()), (&["slow", "3/3"][..], Some(&"0.001")), "{table}");
    let json = stdout(&place.danlu("runs runs/slow --json").assert().success());
    let run: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert!(run["step"] == 3 && run["model"] == true && run["best"][0].as_f64().unwrap() > 0.0, "{json}");
    assert!(run["recipe"]["checkpoint.keep"] == "2", "{json}");

    let plot = |line: &str| place.danlu(&format!("plot {line}"));
    assert_eq!(stdout(&plot("runs/slow runs/more/fast -o a.svg").assert().success()), "a.svg\n");
    let svg = fs::read_to_string(place.path("a.svg")).unwrap();
    for part in ["smoothed_loss: ", "validation_loss: ", "runs/slow", "runs/more/fast"] {
        assert!(svg.contains(part), "{part}: {svg}");
    }
    plot("runs/slow -o a.png --metrics loss,lr,tokens_per_second --over tokens --size 640x480").assert().success();
    assert!(fs::read(place.path("a.png")).unwrap().starts_with(b"\x89PNG\r\n\x1a\n"));
    for (line, part) in [
        ("runs/slow -o a.gif", "a.gif: a picture's name must end in .svg or .png"),
        ("gone -o a.svg", "gone: no such folder; `danlu runs` lists runs"),
        ("runs -o a.svg", "runs: holds no metrics.jsonl with a line in it; `danlu runs` lists runs"),
        ("runs/slow -o a.svg --metrics los", "there is no metric los; there are loss, smoothed_loss"),
        ("runs/slow -o no/a.svg", "cannot write into no "),
    ] {
        let said = stderr(&plot(line).assert().code(1));
        assert!(said.lines().count() == 1 && said.contains(part), "{part}: {said}");
    }
}

#[test]
fn shells_and_manuals_know_every_command() {
    let place = Place::new();
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = stdout(&place.danlu(&format!("completions {shell}")).assert().success().stderr(""));
        for word in ["train", "generate", "print-recipe", "temperature"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    place.danlu("completions csh").assert().code(2);
    assert!(stdout(&place.danlu("man").assert().success()).contains(".TH danlu 1"));
    let listed = stdout(&place.danlu("man pages").assert().success());
    let help = stdout(&place.danlu("--help").assert().success());
    let commands = help.lines().skip_while(|l| *l != "Commands:").skip(1).take_while(|l| !l.is_empty());
    let mut pages: Vec<String> = commands
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next().filter(|word| !word.is_empty()))
        .filter(|command| *command != "help")
        .map(|command| format!("danlu-{command}.1"))
        .chain(["danlu.1".into()])
        .collect();
    pages.sort();
    assert!(pages.len() > 10 && listed.lines().count() == pages.len(), "{listed}");
    assert_eq!(place.names("pages"), pages);
    let page = fs::read_to_string(place.path("pages/danlu-train.1")).unwrap();
    assert!(page.contains("print\\-recipe") && page.contains("Optimizer steps"), "{page}");
}

/// By its own reader, where that is installed.
#[test]
fn tensorboard_opens_the_event_file() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/check_tensorboard.py");
    let read = |folder: &str| std::process::Command::new("python3").args([script, folder]).output();
    match read(".") {
        Ok(run) if run.status.code() != Some(3) => {}
        _ => {
            // Past the test's own capture of what it prints.
            let said = "SKIPPED: python3 cannot import tensorboard here (pip install tensorboard): event files are not opened\n";
            return drop(std::io::Write::write_all(&mut std::io::stderr(), said.as_bytes()));
        }
    }
    if !has_adapter() {
        return;
    }
    let place = Place::new();
    place.train("--out m --steps 5 --quiet").assert().success();
    super::preferring::pairs(&place);
    let pairs = "dpo --model m --data pairs.jsonl --out p --seq 24 --batch 2 --steps 2 --tune off --quiet";
    place.danlu(pairs).assert().success();
    // Those of runs of other kinds: in mixed precision, with experts, on a pipeline.
    let others = ["loss_scale", "skipped", "expert_busiest", "expert_idle", "expert_dropped", "idle"];
    let mut all_told = std::collections::BTreeSet::from(others);
    for name in ["m", "p"] {
        let run = read(place.path(name).to_str().unwrap()).unwrap();
        assert!(run.status.success(), "{run:?}");
        let found: serde_json::Value = serde_json::from_slice(&run.stdout).unwrap();
        // The same numbers as in metrics.jsonl, as far as an f32 holds them.
        let lines = fs::read_to_string(place.path(name).join("metrics.jsonl")).unwrap();
        let lines: Vec<serde_json::Value> = lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        for metric in danlu::train::METRICS {
            // Of preference pairs, figures lie together.
            let value = |line: &serde_json::Value| match metric.name.split_once("reward_") {
                Some((of, name)) => line[format!("{of}rewards")][name].as_f64(),
                None => line[metric.name].as_f64(),
            };
            let told = lines.iter().filter_map(|l| Some((l["step"].as_u64()?, value(l)? as f32)));
            let told: Vec<(u64, f32)> = told.collect();
            let read = found["scalars"][metric.tag].as_array().map_or(&[][..], Vec::as_slice);
            let read: Vec<(u64, f32)> =
                read.iter().map(|e| (e[0].as_u64().unwrap(), e[1].as_f64().unwrap() as f32)).collect();
            assert_eq!(read, told, "{name}: {}", metric.tag);
            if !told.is_empty() {
                all_told.insert(metric.name);
            }
        }
        let samples: Vec<_> = lines.iter().filter_map(|l| l["sample"].as_str()).collect();
        let texts: Vec<_> = found["texts"].as_array().unwrap().iter().map(|t| t[2].as_str().unwrap()).collect();
        assert!(!texts.is_empty() && texts == samples, "{name}: {texts:?}");
    }
    let never: Vec<_> = danlu::train::METRICS.iter().map(|m| m.name).filter(|name| !all_told.contains(name)).collect();
    assert!(never.is_empty(), "{never:?} are never told");
}

#[test]
fn tasks_and_several_samples_are_told_on_the_way() {
    let place = Place::new();
    place.write("words.jsonl", "{\"text\": \"The cat sat on the mat\"}\n".repeat(3));
    place.write("r.toml", "prompt = \"A dog\"\nprompts = [\"The cat\", \"A red\"]\neval_limit = 2\n");
    let said = stderr(&place.train("--eval-tasks gone.jsonl --out m").assert().code(1));
    assert!(said.contains("cannot read gone.jsonl") && !exists(place.path("m")), "{said}");
    if !has_adapter() {
        return;
    }
    let line = "--recipe r.toml --eval-tasks words.jsonl --out m --steps 2 --log-format json";
    let said = stdout(&place.train(line).assert().success());
    let events: Vec<serde_json::Value> = said.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let of = |kind: &str| events.iter().filter(|e| e["event"] == kind).collect::<Vec<_>>();
    assert!(of("ready")[0]["weights_seconds"].as_f64().is_some_and(|seconds| seconds > 0.0), "{said}");
    let tasks = of("task");
    assert_eq!(tasks.len(), 2, "{said}");
    assert!(tasks[1]["step"] == 2 && tasks[1]["task"] == "words" && tasks[1]["items"] == 2, "{said}");
    assert!(tasks[1]["metrics"][1]["name"] == "perplexity", "{said}");
    let texts: Vec<&str> = of("sample").iter().map(|e| e["text"].as_str().unwrap()).collect();
    let begins = ["A dog", "The cat", "A red", "A dog", "The cat", "A red"];
    assert!(texts.len() == 6 && texts.iter().zip(begins).all(|(text, begin)| text.starts_with(begin)), "{texts:?}");
    // What was told is what the model that was saved scores.
    let eval = "eval --model m --items words.jsonl --limit 2 --json";
    let scored: serde_json::Value = serde_json::from_str(&stdout(&place.danlu(eval).assert().success())).unwrap();
    let lines = fs::read_to_string(place.path("m/metrics.jsonl")).unwrap();
    let last: serde_json::Value =
        lines.lines().rev().find(|l| l.contains("words.perplexity")).map(|l| serde_json::from_str(l).unwrap()).unwrap();
    let (told, wanted) = (&last["tasks"]["words.perplexity"], &scored["metrics"][1]["value"]);
    let (told, wanted) = (told.as_f64().unwrap(), wanted.as_f64().unwrap());
    assert!((told / wanted - 1.0).abs() < 1e-3, "{told} {wanted}");
}

/// Which only the first validation finds, after a tenth of the run.
#[test]
fn a_task_that_cannot_be_asked_ends_no_run() {
    if !has_adapter() {
        return;
    }
    let place = Place::new();
    let long = "word ".repeat(200);
    place.write("long.jsonl", serde_json::json!({"context": "The", "continuation": long}).to_string());
    let said = stderr(&place.train("--eval-tasks long.jsonl --out m --steps 2 --eval-every 1").assert().success());
    assert_eq!(said.matches("tasks are left out from here on: ").count(), 1, "{said}");
    assert!(said.contains("long.jsonl: line 1: ") && said.contains("alone fills the model's context"), "{said}");
    assert_eq!(said.matches("┌ sample").count(), 2, "{said}");
}
