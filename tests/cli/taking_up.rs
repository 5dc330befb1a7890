//! Runs that there is nothing to take up of: one that is complete, and one whose checkpoints are all damaged.

use super::{Place, chosen, has_adapter, stderr, stdout};
use danlu::estimate::MachineFile;
use danlu::run::{Machine, Records};
use serde_json::Value;
use std::fs;

#[test]
fn what_cannot_be_gone_on_with_is_said() {
    if !has_adapter() {
        return;
    }
    let place = Place::new();
    place.train("--checkpoint-every 1 --out m --quiet").assert().success();
    let weights = || fs::read(place.path("m/model.safetensors")).unwrap();
    let before = weights();
    let resume = || stderr(&place.danlu("train --resume m --tune off").assert().success());
    let said = resume();
    assert!(said.contains("complete already: all 3 steps were done before, and none was added\n"), "{said}");
    assert!(!said.contains("last step: \n") && weights() == before, "{said}");
    for name in place.names("m/checkpoints") {
        place.write(&format!("m/checkpoints/{name}/manifest.json"), "{");
    }
    // What is there stays for who may mend it, and is not begun over.
    let said = stderr(&place.danlu("train --resume m --tune off").assert().code(1));
    for part in [
        "m: holds no checkpoint that can be used; the checkpoint of step 3 is not used: ",
        "or begin anew: danlu train --recipe",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(place.names("m/checkpoints").len() > 1 && weights() == before);
    place.danlu("train --recipe m/recipe.toml --out m --force --tune off").assert().success();
    assert!(weights() == before);
}

/// A checkpoint, and an adapter, in the place of a model or of an adapter in PEFT's form.
#[test]
fn checkpoints_and_adapters_say_what_they_are() {
    if !has_adapter() {
        return;
    }
    let place = Place::new();
    place.train("--out m --checkpoint-every 0 --quiet").assert().success();
    let flags = "--data text.txt --seq 16 --steps 2 --checkpoint-every 1 --tune off --quiet";
    place.danlu(&format!("finetune --model m {flags} --lora-rank 4 --out a")).assert().success();
    for (line, part) in [
        (
            "generate --model m --lora a/checkpoints/step-2 --prompt a",
            "a/checkpoints/step-2: is a checkpoint of a run and no adapter in PEFT's form: write one from it with `danlu export`",
        ),
        (
            "inspect a/checkpoints/step-2",
            "is a checkpoint of a run and no model folder: write the model of it with `danlu export`",
        ),
        ("inspect a", "a: is an adapter and no model: "),
        ("finetune --model a --data text.txt --out b", "a: is an adapter and no model: "),
        (
            "finetune --model m --data text.txt --lora-rank 65536 --out b",
            "lora.rank is 65536, and no layer that gets an adapter has a smaller side of more than 16",
        ),
    ] {
        let said = stderr(&place.danlu(line).assert().code(1));
        assert!(said.contains(part), "{part}: {said}");
    }
    // A recipe that goes on with a model has no configuration of its own.
    let recipe = fs::read_to_string(place.path("a/recipe.toml")).unwrap();
    assert!(recipe.starts_with("model = \"m\"\n") && !recipe.contains("config ="), "{recipe}");
    // Any JSONL of texts can be taken for items.
    place.write("any.jsonl", "{\"text\": \"The cat sat on the mat\"}\n");
    let said = stderr(&place.danlu("eval --model m --items any.jsonl").assert().success());
    assert!(
        said.contains("danlu: any.jsonl: by its field \"text\" it is taken for LAMBADA's, and the last word"),
        "{said}"
    );
}

/// Of a run whose files are damaged `danlu runs` says so.
#[test]
fn damaged_runs_are_told() {
    let place = Place::new();
    fs::create_dir_all(place.path("runs/a")).unwrap();
    place.write("runs/a/recipe.toml", "steps = \n");
    place.write("runs/a/metrics.jsonl", "garbage");
    let said = stderr(&place.danlu("runs").assert().success());
    for part in [
        "danlu: runs/a/metrics.jsonl: is damaged: 1 line that is no measurement, the first at 1\n",
        "danlu: runs/a/recipe.toml: ",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
}

/// What memory would hold, and what binds where that is not the memory.
#[test]
fn plans_say_which_limit_binds() {
    let place = Place::new();
    let done = place.danlu("plan --config story-1m --machine h100").assert().success();
    let said = stdout(&done);
    assert!(said.contains("       256 tokens in each of 2 sequences\n"), "{said}");
    assert!(said.contains("the model's context of 256 tokens ends there, not the memory\n"), "{said}");
}

/// Of an adapter that is named the time is what is remembered of it: nothing at first, after a run its roofline, and after a
/// benchmark what kernels reach of that.
#[test]
fn plans_take_an_adapter_s_time_from_what_was_measured() {
    if !has_adapter() {
        return;
    }
    let (place, adapter) = (Place::new(), chosen());
    let line = format!("plan --config tiny.json --batch 2 --seq 16 --adapter {adapter}");
    let said = stdout(&place.danlu(&line).assert().success());
    let measure = format!("danlu bench train --adapter {adapter}");
    assert!(said.contains(&format!("is not known yet: {measure} measures it")) && !said.contains("\non "), "{said}");
    let said = stderr(&place.danlu(&format!("{line} --steps 10")).assert().code(1));
    assert!(said.starts_with("danlu: --steps asks for the time of a run") && said.contains(&measure), "{said}");
    let report = pollster::block_on(danlu::gpu::list()).swap_remove(adapter);
    place.train("--out m --quiet").assert().success();
    let said = stdout(&place.danlu(&line).assert().success());
    assert!(said.contains(&format!("\non {}\n", report.name)) && said.contains(&measure), "{said}");
    let answer = || -> Value {
        let done = place.danlu(&format!("{line} --steps 10 --json")).assert().success();
        serde_json::from_str::<Value>(&stdout(&done)).unwrap()["answer"].clone()
    };
    let at_the_roofline = answer();
    let seconds = |answer: &Value| answer["time"]["step"].as_f64().unwrap();
    assert_eq!(at_the_roofline["cost"]["seconds"], 10.0 * seconds(&at_the_roofline));
    // As a benchmark would learn it: kernels reach half of the roofline, and the way to the device takes what it did.
    let mut records = Records::load(&place.path("cache"), &report.id());
    let file = MachineFile::remembered(&records, report.limits.is_cpu).unwrap();
    assert_eq!(file.shared, report.limits.is_cpu);
    let machine = Machine { reached: [(Machine::REST.to_string(), 0.5)].into(), ..file.machine() };
    let twice = 2.0 * seconds(&at_the_roofline) - machine.submission_seconds;
    records.learned = Some(machine);
    records.save(&place.path("cache")).unwrap();
    let learned = answer();
    assert!((seconds(&learned) / twice - 1.0).abs() < 1e-9, "{learned} after {at_the_roofline}");
    assert!(!stdout(&place.danlu(&line).assert().success()).contains("danlu bench"));
}
