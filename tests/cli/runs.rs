//! Commands that do what they say, and what happens to them on the way: a full disk, Ctrl-C, a reader that leaves.

use super::{Place, has_adapter, stderr, stdout};
use serde_json::Value;
use std::fs;
use std::process::Command as Process;

const FILES: [&str; 5] =
    ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];

/// A place with a model that was trained for three steps.
pub fn trained(out: &str) -> Option<Place> {
    let place = Place::new();
    has_adapter().then(|| {
        place.train(&format!("--out {out} --quiet")).assert().success();
        place
    })
}

#[test]
fn training_writes_a_folder_that_the_printed_command_runs() {
    if !has_adapter() {
        return;
    }
    let place = Place::new();
    let said = stderr(&place.train("--out my/model").assert().success());
    assert_eq!(place.model("my/model"), FILES);
    let command = said.lines().find(|l| l.contains(" generate --model ")).unwrap_or_else(|| panic!("{said}")).trim();
    assert!(command.ends_with("generate --model my/model --prompt \"One day\""), "{command}");
    let run = Process::new("sh").args(["-c", command]).current_dir(place.folder.path()).output().unwrap();
    assert!(run.status.success() && run.stdout.starts_with(b"One day"), "{run:?}");
}

#[test]
fn a_seed_gives_the_same_bytes_and_json_lines_tell_all() {
    if !has_adapter() {
        return;
    }
    let place = Place::new();
    let said = stdout(&place.train("--out a --log-format json").assert().success().stderr(""));
    let events: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |kind: &str| events.iter().filter(|e| e["event"] == kind).collect::<Vec<_>>();
    let steps = of("step");
    assert_eq!(steps.len(), 3);
    for key in ["step", "loss", "lr", "grad_norm", "tokens_per_second", "roofline"] {
        assert!(steps.iter().all(|e| e[key].as_f64().is_some_and(|x| x > 0.0)), "{key}: {said}");
    }
    assert!(of("ready").len() == 1 && !of("validation").is_empty() && !of("sample").is_empty(), "{said}");
    assert!(of("saved")[0]["folder"] == "a" && of("saved")[0]["interrupted"] == false);
    let quiet = place.train("--out b --quiet").assert().success().stderr("");
    assert_eq!(stdout(&quiet), "b\n");
    let bytes = |name: &str| fs::read(place.path(name).join("model.safetensors")).unwrap();
    assert!(bytes("a") == bytes("b"));
    place.train("--out c --quiet --seed 9").assert().success();
    assert!(bytes("a") != bytes("c"));
}

#[test]
fn flags_override_the_recipe() {
    if !has_adapter() {
        return;
    }
    let place = Place::new();
    place.write("r.toml", "steps = 5\nout = \"from_recipe\"\nseed = 4\nconfig = \"tiny.json\"\n");
    let said = stdout(&place.train("--recipe r.toml --steps 2 --log-format json").assert().success());
    assert_eq!(said.matches("\"event\":\"step\"").count(), 2);
    assert_eq!(place.model("from_recipe"), FILES);
}

#[test]
fn a_trained_model_is_evaluated() {
    let Some(place) = trained("m") else { return };
    place.write("items.jsonl", "{\"text\": \"The cat sat on the mat\"}\n".repeat(3));
    let line = "eval --model m --text text.txt --items items.jsonl --limit 2 --context 16 --batch-tokens 32";
    let said = stdout(&place.danlu(line).assert().success());
    let parts = [
        "text.txt: ",
        "16 tokens, moved by 8",
        " a token",
        "bits per byte",
        "items.jsonl: 2 items in the form of LAMBADA, 0 shots",
        "acc",
    ];
    for part in parts {
        assert!(said.contains(part), "{part}: {said}");
    }
    let said = stdout(&place.danlu(&format!("{line} --json")).assert().success());
    let lines: Vec<serde_json::Value> = said.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    assert!(lines[0]["perplexity"].as_f64().unwrap() > 1.0 && lines[0]["model"] == "m");
    assert!(lines[1]["form"] == "lambada" && lines[1]["metrics"][1]["name"] == "perplexity");
}

#[test]
fn generation_repeats_and_refuses() {
    let Some(place) = trained("m") else { return };
    let text =
        |flags: &str| stdout(&place.danlu(&format!("generate --model m --prompt The {flags}")).assert().success());
    assert_eq!(text("--tokens 12 --seed 3"), text("--tokens 12 --seed 3"));
    assert_eq!(text("--tokens 12 --temperature 0 --seed 3"), text("--tokens 12 --top-k 1 --seed 4"));
    assert!(text("--tokens 12").starts_with("The"));
    place.danlu("generate --model m --prompt= --tokens 2").assert().success();
    let refused = |line: &str, part: &str| {
        let said = stderr(&place.danlu(line).assert().code(1));
        assert!(said.lines().count() == 1 && said.contains(part), "{part}: {said}");
    };
    refused("generate --model m --prompt a --temperature -1", "temperature -1 is not a number from 0 up");
    refused("generate --model m --prompt a --top-p 1.5", "top-p 1.5 is not above 0 and at most 1");
    refused("generate --model gone --prompt a", "gone: no such file or folder, and no name on a hub");
    for (name, part) in [
        ("config.json", "it holds neither config.json nor a GGUF file"),
        ("tokenizer.json", "tokenizer.json: no such file"),
        ("model.safetensors", "holds neither model.safetensors nor"),
    ] {
        fs::rename(place.path("m").join(name), place.path("kept")).unwrap();
        refused("generate --model m --prompt a", part);
        fs::rename(place.path("kept"), place.path("m").join(name)).unwrap();
    }
    let config = fs::read_to_string(place.path("m/config.json")).unwrap();
    for (from, to, part) in [
        ("\"intermediate_size\": 32", "\"intermediate_size\": 64", "is [32,16] where config.json says [64,16]"),
        ("\"vocab_size\": 2", "\"vocab_size\": 1", "one of the two is another model's"),
    ] {
        assert!(config.contains(from), "{config}");
        place.write("m/config.json", config.replace(from, to));
        refused("generate --model m --prompt a", part);
    }
    place.write("m/config.json", &config);
    let weights = fs::read(place.path("m/model.safetensors")).unwrap();
    for length in [0, 3000, weights.len() - 4] {
        place.write("m/model.safetensors", &weights[..length]);
        let what = if length == 0 { "is empty, it has 0 bytes" } else { "is not a whole safetensors file" };
        refused("generate --model m --prompt a", &format!("model.safetensors: {what}"));
    }
}

/// The folder is a small file system of its own, in a namespace of the test's; where that is not allowed, the test in
/// `src/store/atomic.rs` must do.
#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_keeps_the_older_model() {
    let shell = |place: &Place, script: &str| {
        let mut shell = Process::new("unshare");
        shell
            .args(["-rm", "sh", "-c", script])
            .current_dir(place.folder.path())
            .env("DANLU_CACHE", place.path("cache"));
        shell.output()
    };
    let Some(place) = trained("m") else { return };
    let mount = "mkdir full && mount -t tmpfs -o size=80k tmpfs full";
    if !shell(&place, &format!("{mount}; umount full")).is_ok_and(|run| run.status.success()) {
        eprintln!("SKIPPED: no file system can be mounted here");
        return;
    }
    // Beside the older model there is no room for its parameters, or for these but not for all that belongs to them.
    for (size, full) in [
        ("72k", ["the disk is nearly full", " are free; nothing was written; free space there"]),
        ("80k", ["the disk is full", " bytes are wanted in full; nothing half-written was left"]),
    ] {
        let mut line = format!(
            "mount -t tmpfs -o size={size} tmpfs full && cp m/config.json m/*token*.json m/generation_config.json m/*.safetensors full && {}",
            env!("CARGO_BIN_EXE_danlu")
        );
        for word in place.train("--out full --quiet --force --seed 7").get_args() {
            line += &format!(" {}", word.to_str().unwrap());
        }
        let then = "cd full; ls *.json *.safetensors | sort; ls -A | grep tmp; cd ..; cmp full/model.safetensors m/model.safetensors";
        let run = shell(&place, &format!("{line}; echo code $?; {then}")).unwrap();
        let said = String::from_utf8(run.stderr).unwrap();
        assert!(said.lines().count() == 1 && full.iter().all(|part| said.contains(part)), "{said}");
        assert_eq!(String::from_utf8(run.stdout).unwrap(), format!("code 1\n{}\n", FILES.join("\n")));
    }
}

/// Ctrl-C is a request that is fulfilled: the model is saved, and the exit code says why the run ended.
#[test]
#[cfg(unix)]
fn ctrl_c_saves_and_leaves() {
    if !has_adapter() {
        return;
    }
    let place = Place::new();
    let train = place.train("--out m --log-format json --steps 1000000");
    let (said, code) = place.signalled(&train, "-INT");
    assert_eq!(code, Some(130));
    assert!(said.contains("\"interrupted\":true"), "{said}");
    assert_eq!(place.model("m"), FILES);
}

#[test]
#[cfg(unix)]
fn a_reader_that_leaves_stops_nothing() {
    let Some(place) = trained("m") else { return };
    let lines = [
        "generate --model m --prompt The --tokens 20",
        "plan",
        "plan --json",
        "train --config tiny.json --data text.txt --seq 16 --batch 2 --steps 3 --tune off --log-format json --out n",
        "train --config tiny.json --data text.txt --seq 16 --batch 2 --steps 3 --tune off --out o",
    ];
    for line in lines {
        let program = env!("CARGO_BIN_EXE_danlu");
        // Both streams are closed at the other end before a byte is read.
        let script = format!("({program} {line}; echo code $? >code) 2>&1 | true; cat code");
        let mut shell = Process::new("sh");
        shell.args(["-c", &script]).current_dir(place.folder.path()).env("DANLU_CACHE", place.path("cache"));
        assert_eq!(shell.output().unwrap().stdout, b"code 0\n", "{line}");
    }
    assert!(place.model("n") == FILES && place.model("o") == FILES);
}

/// `/dev/full` is Linux's: every write to it fails.
#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_behind_standard_output_is_said() {
    let place = Place::new();
    let tiny = concat!(env!("CARGO_MANIFEST_DIR"), "/models/tiny");
    let mut lines = vec!["plan".to_string(), "plan --json".to_string(), format!("inspect {tiny}")];
    if super::has_adapter() {
        lines.push(format!("generate --model {tiny} --prompt One --tokens 2"));
    }
    for line in lines {
        let mut command = Process::new(env!("CARGO_BIN_EXE_danlu"));
        command.args(line.split(' ')).current_dir(place.folder.path()).env("DANLU_CACHE", place.path("cache"));
        if let (Ok(adapter), true) = (std::env::var("DANLU_ADAPTER"), line.starts_with("generate")) {
            command.args(["--adapter", &adapter]);
        }
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let done = command.stdout(full).output().unwrap();
        let said = String::from_utf8(done.stderr).unwrap();
        assert!(done.status.code() == Some(1), "{line}: {said}");
        assert!(said.contains("danlu: cannot write to standard output: "), "{line}: {said}");
    }
}

#[test]
fn plans_are_text_and_json() {
    let place = Place::new();
    let danlu = |line: &str| place.danlu(line).assert().success().stderr("");
    let text = stdout(&danlu("plan --config tiny.json --batch 2 --seq 16 --list"));
    assert!(text.contains("attention") && text.contains("matmul"), "{text}");
    for kind in ["weights", "gradients", "moments", "activations", "workspace", "in all"] {
        assert!(text.contains(&format!("\n{kind} ")), "{kind}: {text}");
    }
    let plan: Value =
        serde_json::from_str(&stdout(&danlu("plan --config tiny.json --batch 2 --seq 16 --json"))).unwrap();
    let steps = plan["steps"].as_array().unwrap();
    assert_eq!(plan["totals"]["steps"], steps.len());
    let flops: u64 = steps.iter().map(|s| s["flops"].as_u64().unwrap()).sum();
    assert_eq!(plan["totals"]["flops"], flops);
    for key in ["shader", "variant", "bytes", "dispatches"] {
        assert!(steps.iter().all(|s| !s[key].is_null()), "{key}");
    }
    assert!(steps[0]["dispatches"][0]["bindings"][0]["offset"].is_u64());
    let device: u64 = plan["buffers"].as_array().unwrap().iter().map(|b| b["bytes"].as_u64().unwrap()).sum();
    let total = |key: &str| plan["totals"][key].as_u64().unwrap();
    assert_eq!(device, total("arena_bytes") + total("state_bytes") + total("other_bytes"));
}

/// What would say nothing is refused, and what could not be done is.
#[test]
fn flags_of_plans_that_come_to_nothing_are_refused() {
    let place = Place::new();
    for (flags, part) in [
        ("--mesh auto", "--mesh auto looks for the best mesh of many nodes: add --nodes and --machine, or write axes"),
        (
            "--tokens 1e9",
            "--tokens asks for the time of a run, which only a machine tells: add --machine, such as h100",
        ),
        ("--machine h100 --steps 0", "--steps is 0; a run has at least 1"),
        ("--price 2", "--price asks for the time of a run, which only a machine tells"),
        ("--machine h100 --price 2", "--price is of a whole run: say how long that is, by --steps or --tokens"),
        ("--shard optimizer", "shard is optimizer, and mesh is data=1: nobody is there to share with"),
        ("--lengths 0", "lengths is 0; it must be at least 1"),
        ("--precision mixed --weight-copies", "weight_copies comes to nothing: no matrix lies in this model's pages "),
        ("--weight-copies", "weight_copies comes to nothing: precision is f32, "),
        (
            "--precision mixed --lora-rank 4 --weight-copies true",
            "weight_copies comes to nothing: adapters are trained, ",
        ),
        (
            "--precision mixed --update layer --clip 0 --weight-copies",
            "weight_copies comes to nothing: update is layer, ",
        ),
        (
            "--precision mixed --mesh data=2 --shard optimizer --weight-copies",
            "weight_copies comes to nothing: ranks share out what they update",
        ),
        (
            "--lengths 4 --pack",
            "--lengths is 4, and rows that are packed, or those of several ranks, all have --seq tokens",
        ),
        ("--lengths 4 --mesh data=2", "--lengths is 4, and rows that are packed"),
    ] {
        let said = stderr(&place.danlu(&format!("plan --config tiny.json --seq 32 {flags}")).assert().code(1));
        assert!(said.lines().count() == 1 && said.contains(part), "{part}: {said}");
    }
}

/// Rows of several lengths take more than those of one, by what plans of their own bring with them.
#[test]
fn plans_count_rows_of_several_lengths() {
    let place = Place::new();
    let answer = |flags: &str| {
        let line = format!("plan --config tiny.json --batch 2 --seq 32 --json {flags}");
        let said = stdout(&place.danlu(&line).assert().success().stderr(""));
        let value: Value = serde_json::from_str(&said).unwrap();
        ["device_bytes", "shorter_bytes"].map(|key| value["answer"][key].as_u64().unwrap())
    };
    let ([one, none], [two, shorter]) = (answer(""), answer("--lengths 2"));
    // Tokens and targets of 2 rows of 16, at least.
    assert!(none == 0 && shorter >= 2 * 4 * 32 && two == one + shorter, "{one} {none} {two} {shorter}");
    assert_eq!(answer("--lengths 9"), [two, shorter], "32 tokens are two lengths");
    let said = stdout(&place.danlu("plan --config tiny.json --batch 2 --seq 32 --lengths 2").assert().success());
    assert!(said.contains("\nshorter rows ") && said.contains(" at most"), "{said}");
}

/// 28 GiB of parameters, more than one buffer counts.
#[test]
fn every_preset_can_be_planned() {
    let place = Place::new();
    for preset in ["story-1m", "story-4m", "smollm2-135m", "tinyllama-1.1b", "llama-3-8b"] {
        let plan = place.danlu(&format!("plan --config {preset} --batch 1 --seq 128")).assert().success().stderr("");
        assert!(stdout(&plan).contains("\nin all "), "{preset}");
    }
    // Sizes that no device here holds, and ways to train that need none.
    let large = place.danlu("plan --config llama-3.1-405b --batch 1 --seq 64 --machine h200 --tokens 1e9").assert();
    let said = stdout(&large.success().stderr(""));
    for part in ["405853388800", "on NVIDIA H200", "the run ", "price ", "energy "] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let adapters = "plan --config llama-3.2-1b --lora-rank 16 --base-dtype nf4 --batch 1 --seq 512 --json";
    let plan: Value = serde_json::from_str(&stdout(&place.danlu(adapters).assert().success().stderr(""))).unwrap();
    assert_eq!(plan["answer"]["parameters"]["trained"], 11_272_192);
    let fewer = stderr(&place.danlu("plan --machine abacus").assert().code(1));
    assert!(fewer.contains("machines: h100, h100-500w, h200, "), "{fewer}");
    let refused = stderr(&place.danlu("plan --batch 65536 --seq 512").assert().code(1));
    assert!(refused.lines().count() == 1 && refused.contains("a buffer of any adapter offers"), "{refused}");
}

/// Tokens of one machine beside those of another.
#[test]
fn machines_are_compared() {
    let place = Place::new();
    let asked = "plan --config smollm2-135m --batch 16 --seq 512 --machine h100,sunway";
    let said = stdout(&place.danlu(&format!("{asked} --nodes 1,8")).assert().success().stderr(""));
    let cells = |machine: &str| -> Vec<String> {
        let row = said.lines().find(|line| line.starts_with(machine)).unwrap_or_else(|| panic!("{machine}: {said}"));
        row[46..].split_whitespace().map(String::from).collect()
    };
    let (first, second) = (cells("NVIDIA H100"), cells("SW26010-Pro"));
    assert_eq!((first[0].as_str(), first[6].as_str(), second[0].as_str()), ("8", "1.00", "8"), "{said}");
    let number = |cell: &str| cell.parse::<f64>().unwrap();
    let ratio = number(&second[5]) / number(&first[5]);
    assert!((ratio - number(&second[6])).abs() < 0.02 * ratio, "{said}");
    // At the hour's price that is told a token of the second costs what one of the first does.
    let told = said.lines().find(|line| line.starts_with("SW26010-Pro") && line.contains("a token costs")).unwrap();
    let hour = number(told.split(" at ").nth(1).unwrap().split(' ').next().unwrap());
    let again = stdout(&place.danlu(&format!("{asked} --nodes 1,8 --json")).assert().success().stderr(""));
    let both: Value = serde_json::from_str(&again).unwrap();
    let rate = |i: usize| both[i]["found"]["best"]["tokens_per_rank"].as_f64().unwrap();
    assert!((hour - 2.5 * rate(1) / rate(0)).abs() < 2e-3, "{told}");
    // A run's steps are its tokens.
    let of_run = |span: &str| {
        let line = format!("plan --config smollm2-135m --batch 16 --seq 512 --machine h100 --nodes 1 {span}");
        stdout(&place.danlu(&line).assert().success().stderr(""))
    };
    assert_eq!(of_run("--steps 1000"), of_run("--tokens 8192000"));
    assert!(of_run("--steps 1000").contains("the run of 8.1920e6 tokens"));
    for (line, sentence) in [
        (format!("{asked} --nodes 1,2,3"), "--nodes gives 3 counts for 2 machines"),
        (asked.to_string(), "several are compared with --nodes only"),
    ] {
        let refused = stderr(&place.danlu(&line).assert().code(1));
        assert!(refused.lines().count() == 1 && refused.contains(sentence), "{refused}");
    }
}

#[test]
fn every_command_explains_itself() {
    let place = Place::new();
    let help = |line: &str| stdout(&place.danlu(line).assert().success().stderr(""));
    for (line, parts) in [
        ("--help", "train generate eval plan doctor"),
        (
            "eval --help",
            "--model --text --items --context --stride --limit --shots --seed --batch-tokens --json --adapter",
        ),
        (
            "train --help",
            "--config --data --tokenizer --recipe --steps --batch --seq --lr --seed --out --quiet --log-format",
        ),
        ("generate --help", "--model --prompt --tokens --temperature --top-k --top-p --seed --adapter"),
        (
            "plan --help",
            "--recipe --config --model --batch --seq --pack --memory --lora-rank --base-dtype --machine --price --json --adapter",
        ),
        ("doctor --help", "--adapter --json --every"),
    ] {
        let said = help(line);
        parts.split(' ').for_each(|part| assert!(said.contains(part), "{part}: {said}"));
    }
}

#[test]
fn a_budget_shows_its_trade() {
    let place = Place::new();
    let line = "plan --config tiny.json --batch 2 --seq 16";
    let plan = |flags: &str| stdout(&place.danlu(&format!("{line} --json{flags}")).assert().success());
    let least = place.danlu(&format!("{line} --budget 1kB")).assert().failure();
    let said = String::from_utf8(least.get_output().stderr.clone()).unwrap();
    let bytes = said.split(['(', ')']).nth(1).and_then(|b| b.strip_suffix(" bytes")).expect("the least");
    assert!(said.contains("training takes at least ") && said.contains("--batch or --seq"), "{said}");
    let kept: Value = serde_json::from_str(&plan("")).unwrap();
    let traded: Value = serde_json::from_str(&plan(&format!(" --budget {bytes}"))).unwrap();
    assert!(kept["trade"].is_null());
    let sum = |plan: &Value| ["arena_bytes", "state_bytes", "other_bytes"].map(|k| plan["totals"][k].as_u64().unwrap());
    let (before, after): (u64, u64) = (sum(&kept).iter().sum(), sum(&traded).iter().sum());
    assert!(traded["trade"]["before"] == before && traded["trade"]["reached"] == after && after < before);
    let text = stdout(&place.danlu(&format!("{line} --budget {bytes}")).assert().success());
    for part in ["with every activation kept", "layers.*.", " Gflop more", "reached"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    place.danlu(&format!("{line} --budget 6XB")).assert().failure();
}

/// A run for which memory is too small says what would fit it, and that does.
#[test]
fn a_run_that_does_not_fit_says_what_would() {
    if !has_adapter() {
        return;
    }
    let place = Place::new();
    let line = "--seq 64 --steps 1 --quiet --out run";
    let refused = |flags: &str| stderr(&place.train(&format!("{line} {flags}")).assert().failure());
    let least = refused("--batch 16 --memory 1kB");
    let bytes = least.split(['(', ')']).nth(1).and_then(|b| b.strip_suffix(" bytes")).expect("the least");
    assert!(least.contains("nothing fits "), "{least}");
    // The least is what was found, and with another budget a little less may be.
    let less = bytes.parse::<u64>().unwrap() * 4 / 5;
    let said = refused(&format!("--batch 16 --memory {less}"));
    let flags = said.split(": --batch ").nth(1).and_then(|rest| rest.split(" as it is").next()).expect("what fits");
    assert!(said.contains("training takes at least ") && flags == "8 --seq 64", "{said}");
    place.train(&format!("{line} --batch 8 --memory {less}")).assert().success();
}

/// However it shows: in a loss, or in a sample that cannot be written, where the loss of logits that are no numbers still is one.
#[test]
fn a_rate_far_too_high_is_told_as_that() {
    if !has_adapter() {
        return;
    }
    let place = Place::new();
    let line = "--seq 32 --steps 20 --eval-every 4 --checkpoint-every 0 --lr 1e9 --clip 0 --out x";
    let said = stderr(&place.train(line).assert().code(1));
    let last = said.lines().last().unwrap_or_default();
    assert!(last.contains("training diverged; try a lower --lr, or a longer warmup. Nothing was saved."), "{said}");
    assert!(!place.path("x/model.safetensors").exists());
}

/// A recipe's values are those of the plan, flags win, and a model on disk is planned by what its files hold.
#[test]
fn plans_take_recipes_and_models() {
    let place = Place::new();
    place.write("tiny.json", include_str!("../../models/tiny/config.json"));
    place.write("r.toml", "config = \"tiny.json\"\nbatch = 2\nseq = 16\noptimizer = \"adamw8bit\"\npack = true\n");
    let plan = |flags: &str| -> Value {
        serde_json::from_str(&stdout(&place.danlu(&format!("plan --json {flags}")).assert().success())).unwrap()
    };
    let by_flags = plan("--config tiny.json --batch 2 --seq 16 --optimizer adamw8bit --pack");
    assert_eq!(plan("--recipe r.toml"), by_flags);
    let one = plan("--recipe r.toml --batch 1 --pack false");
    assert_eq!((one["answer"]["batch"].as_u64(), one["answer"]["seq"].as_u64()), (Some(1), Some(16)));
    let starts = |plan: &Value| plan["inputs"].as_array().unwrap().iter().any(|input| input["name"] == "starts");
    assert!(starts(&by_flags) && !starts(&one));
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/models/tiny");
    place.write("l.toml", format!("model = {model:?}\nseq = 16\n[lora]\nrank = 4\n"));
    let adapters = plan("--recipe l.toml");
    let parameters = &adapters["answer"]["parameters"];
    assert!(parameters["trained"].as_u64() < parameters["model"].as_u64(), "{parameters}");
    let told = plan(&format!("--model {model} --batch 1 --seq 16 --lora-rank 4"));
    assert_eq!(told["answer"]["usage"], adapters["answer"]["usage"]);
    // The weights of the folder are f32; of a configuration alone those of a model in bf16 are assumed.
    let assumed = plan("--config tiny.json --batch 1 --seq 16 --lora-rank 4");
    let weights = |plan: &Value| plan["answer"]["usage"]["weights"].as_u64().unwrap();
    assert!(weights(&told) > weights(&assumed), "{} {}", weights(&told), weights(&assumed));
    let wrong = stderr(&place.danlu("plan --recipe gone.toml").assert().code(1));
    assert!(wrong.contains("gone.toml"), "{wrong}");
}
