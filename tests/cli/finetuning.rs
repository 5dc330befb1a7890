//! Models that are there already and go on: all of them, or adapters beside them; killed and taken up again; and what is
//! refused.

use super::resuming::{losses, weights};
use super::{Place, has_adapter, stderr, stdout};
use crate::shared::shared;
use danlu::store::Checkpoint;
use danlu::store::snapshot::Series;
use serde_json::Value;
use std::fs;
use std::process::Stdio;

/// Stories to train on, and others, of which the model's loss is told.
fn stories(place: &Place) -> Option<()> {
    let text = fs::read_to_string(shared("text/tinystories_dev_75pct.txt")?).unwrap();
    let mut documents = text.split_inclusive("<|endoftext|>\n");
    place.write("stories.txt", documents.by_ref().take(120).collect::<String>());
    place.write("others.txt", documents.take(12).collect::<String>());
    Some(())
}

/// Of a token of other stories.
fn nats(place: &Place, model: &str) -> f64 {
    let said = stdout(&place.danlu(&format!("eval --model {model} --text others.txt --json")).assert().success());
    let report: Value = serde_json::from_str(&said).unwrap();
    report["nats"].as_f64().unwrap() / report["tokens"].as_f64().unwrap()
}

/// A model of a quarter of a million parameters that others trained on a million stories still learns something from a
/// hundred, in every way to train it: its loss on stories that it has not seen falls.
#[test]
fn a_published_model_goes_on() {
    let Some(models) = shared("models/stories260K/derived").filter(|_| has_adapter()) else { return };
    let place = Place::new();
    stories(&place).unwrap();
    let folder = models.join("hf-f32").display().to_string();
    let quantised = models.join("stories260K-q8_0.gguf").display().to_string();
    let flags = "--data stories.txt --seq 256 --batch 2 --steps 24 --tune off --quiet --checkpoint-every 0";
    let before = nats(&place, &folder);

    place.danlu(&format!("train --model {folder} {flags} --lr 3e-4 --out whole")).assert().success();
    let whole = nats(&place, "whole");
    assert!(whole < before - 0.005, "{before} before, {whole} after");
    // What is written is the same model with other weights.
    let config = |model: &str| {
        let text = fs::read_to_string(std::path::Path::new(model).join("config.json")).unwrap();
        serde_json::from_str::<Value>(&text).unwrap()
    };
    assert_eq!(config(place.path("whole").to_str().unwrap()), config(&folder));
    let tokenizer = |model: &str| fs::read(std::path::Path::new(model).join("tokenizer.json")).unwrap();
    assert!(tokenizer(place.path("whole").to_str().unwrap()) == tokenizer(&folder));

    for (name, model, more) in [
        ("lora", &folder, ""),
        ("dora", &quantised, "--dora --lora-rank 4 --lora-targets q_proj,v_proj,gate_proj"),
        ("qlora", &folder, "--base-dtype nf4 --lora-dropout 0.05"),
    ] {
        let line = format!("finetune --model {model} {flags} --lr 5e-3 {more} --out {name}");
        place.danlu(&line).assert().success();
        assert_eq!(place.model(name), ["adapter_config.json", "adapter_model.safetensors"]);
        let (own, adapted) = (nats(&place, model), nats(&place, &format!("{model} --lora {name}")));
        assert!(adapted < own - 0.005, "{name}: {own} before, {adapted} after");
    }
    let text = fs::read_to_string(place.path("dora/adapter_config.json")).unwrap();
    let said: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(said["base_model_name_or_path"], quantised);
    assert_eq!(said["target_modules"], serde_json::json!(["gate_proj", "q_proj", "v_proj"]));
    assert_eq!((said["r"].as_u64(), said["use_dora"].as_bool()), (Some(4), Some(true)));
}

/// Adapters in mixed precision over weights of any dtype: the first loss, of adapters that change nothing yet, is that of the strict
/// run but for the roundings of its products to f16, and what is learnt lowers the loss on other stories as much.
#[test]
fn adapters_are_trained_in_mixed_precision_over_any_base() {
    let Some(models) = shared("models/stories260K/derived").filter(|_| has_adapter()) else { return };
    let place = Place::new();
    stories(&place).unwrap();
    let folder = models.join("hf-f32").display().to_string();
    let before = nats(&place, &folder);
    let flags = "--data stories.txt --seq 128 --batch 2 --steps 12 --lr 1e-3 --tune off --quiet --checkpoint-every 0";
    for base in ["f32", "bf16", "nf4"] {
        let run = |precision: &str| {
            let (out, lora) = (format!("{base}-{precision}"), format!("--base-dtype {base} --precision {precision}"));
            place.danlu(&format!("finetune --model {folder} {flags} {lora} --out {out}")).assert().success();
            let text = fs::read_to_string(place.path(&out).join("metrics.jsonl")).unwrap();
            let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
            let steps: Vec<Value> = lines.filter(|m| m["loss"].is_number()).collect();
            assert_eq!(steps.len(), 12, "{out}");
            assert!(steps.iter().all(|m| m["loss_scale"].is_number() == (precision == "mixed")), "{out}");
            assert_eq!(steps[11]["skipped"].as_u64().unwrap_or(0), 0, "{out}");
            steps[0]["loss"].as_f64().unwrap()
        };
        let (strict, mixed) = (run("f32"), run("mixed"));
        // c = 16 of f16's roundings (docs/numerics.md), of a loss that is a mean over 256 tokens.
        assert!(
            mixed != strict && (mixed - strict).abs() <= 16.0 * 2f64.powi(-11) * strict,
            "{base}: {mixed}, {strict}"
        );
        let after = nats(&place, &format!("{folder} --lora {base}-mixed"));
        assert!(after < before - 0.005, "{base}: {before} before, {after} after");
    }
}

/// A place with a model to begin with.
fn begun() -> Option<Place> {
    has_adapter().then(|| {
        let place = Place::new();
        place.train("--out m --quiet --checkpoint-every 0").assert().success();
        place
    })
}

const ADAPTERS: &str = "--lora-rank 4 --dora --lora-dropout 0.2 --base-dtype q8_0 --lr 1e-2";

/// Of adapters only adapters are kept; what is taken up ends as if it had never stopped, dropout and all.
#[test]
fn a_killed_run_of_adapters_ends_with_the_same_bytes() {
    let Some(place) = begun() else { return };
    let line = |out: &str| {
        format!(
            "finetune --model m --data text.txt --seq 16 --batch 2 --steps 40 --checkpoint-every 2 --keep 99 {ADAPTERS} --out {out} \
             --tune off --log-format json"
        )
    };
    place.danlu(&line("calm")).assert().success();
    let adapter = |run: &str| fs::read(place.path(run).join("adapter_model.safetensors")).unwrap();
    for kill in 0..3 {
        let run = format!("killed-{kill}");
        let mut process = place.process(&place.danlu(&line(&run)), [Stdio::null(), Stdio::null()]);
        // On a busy machine a checkpoint may be left out, since the one before is still being written.
        let newest = || Series::of(&place.path(&run)).list().last().map_or(0, |(step, _)| *step);
        while newest() < 2 + 4 * kill {
            assert!(process.try_wait().unwrap().is_none(), "{run} ended before it was killed");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        process.kill().unwrap();
        process.wait().unwrap();
        assert!(!place.path(&run).join("adapter_model.safetensors").exists(), "{run} was too fast");
        let said = stderr(&place.danlu(&format!("finetune --resume {run} --tune off")).assert().success());
        assert!(said.contains("resumed     ") && said.contains(&format!(" --model m --lora {run} ")), "{said}");
        assert!(adapter(&run) == adapter("calm"), "{run}");
        assert_eq!(losses(&place, &run), losses(&place, "calm"), "{run}");
    }
    let base: u64 = Checkpoint::open(&place.path("m")).unwrap().model().config().parameters();
    let states = place.path("calm/checkpoints/step-40/states-00001-of-00001.safetensors");
    let (kept, trained) = (fs::metadata(states).unwrap().len(), adapter("calm").len() as u64);
    assert!(kept < 4 * base && kept > 2 * trained, "{kept} bytes are kept, of adapters of {trained}");
}

/// A model of which all is trained is taken up as one from scratch is, and begins where the other was.
#[test]
fn a_whole_model_goes_on_and_is_taken_up() {
    let Some(place) = begun() else { return };
    let line = |more: &str| format!("train --model m --data text.txt --seq 16 --batch 2 --tune off --quiet {more}");
    // With next to no rate it is the model that it was.
    place.danlu(&line("--steps 1 --lr 1e-30 --out same")).assert().success();
    assert!(weights(&place, "same") == weights(&place, "m"));
    place.danlu(&line("--steps 9 --checkpoint-every 3 --out calm")).assert().success();
    place.danlu(&line("--steps 9 --checkpoint-every 3 --out hurt")).assert().success();
    fs::remove_dir_all(place.path("hurt/checkpoints/step-9")).unwrap();
    fs::remove_file(place.path("hurt/model.safetensors")).unwrap();
    place.danlu("train --resume hurt --tune off --quiet").assert().success();
    assert!(weights(&place, "hurt") == weights(&place, "calm"));
    // Another model in the place of the one that the run began with is no longer that run.
    fs::remove_dir_all(place.path("hurt/checkpoints/step-9")).unwrap();
    fs::copy(place.path("calm/model.safetensors"), place.path("m/model.safetensors")).unwrap();
    let said = stderr(&place.danlu("train --resume hurt --tune off").assert().code(1));
    assert!(said.contains("the model that training began with is no longer what the run began with"), "{said}");
}

#[test]
fn recipes_say_what_flags_say() {
    let Some(place) = begun() else { return };
    let common = "model = \"m\"\ndata = \"text.txt\"\nseq = 16\nsteps = 2\n";
    place.write("full.toml", common);
    place.write("lora.toml", format!("{common}[lora]\nrank = 2\ntargets = [\"o_proj\"]\n"));
    let run = |line: &str, out: &str| {
        place.danlu(&format!("finetune {line} --out {out} --tune off --quiet")).assert().success();
        let recipe = danlu::train::Recipe::open(place.path(out).join("recipe.toml")).unwrap();
        (place.model(out).len(), recipe.lr, recipe.weight_decay, recipe.lora.map(|l| (l.rank, l.alpha, l.targets)))
    };
    let lora = Some((2, 32.0, vec!["o_proj".to_string()]));
    assert_eq!(run("--recipe lora.toml", "a"), (2, 2e-4, 0.0, lora.clone()));
    assert_eq!(run("--recipe full.toml", "b"), (5, 2e-5, 0.0, None));
    assert_eq!(run("--recipe lora.toml --full", "c"), (5, 2e-5, 0.0, None));
    let flags = "--model m --data text.txt --seq 16 --steps 2 --lora-rank 2 --lora-targets o_proj";
    assert_eq!(run(flags, "d"), (2, 2e-4, 0.0, lora));
    let adapter = |run: &str| fs::read(place.path(run).join("adapter_model.safetensors")).unwrap();
    assert!(adapter("a") == adapter("d"));

    // Groups and optimizers are of what is trained, be it adapters.
    let lora = "[lora]\nrank = 2\ntargets = [\"o_proj\"]\n";
    let group = |params: &str| format!("{common}{lora}[[groups]]\nparams = \"{params}\"\nlr = 0.0\n");
    place.write("still.toml", group("lora_A.weight"));
    run("--recipe still.toml", "e");
    run("--recipe lora.toml --optimizer muon", "f");
    run("--recipe lora.toml --lr 1e-30", "g");
    let matrix = |run: &str, side: &str| {
        let bytes = adapter(run);
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let name = format!("base_model.model.model.layers.0.self_attn.o_proj.lora_{side}.weight");
        file.tensor(&name).unwrap().data().to_vec()
    };
    assert!(matrix("e", "A") == matrix("g", "A") && matrix("e", "B") != matrix("g", "B"));
    assert!(matrix("a", "A") != matrix("g", "A") && matrix("f", "B") != matrix("a", "B"));
    place.write("nobody.toml", group("embed_tokens.weight"));
    let said = stderr(&place.danlu("finetune --recipe nobody.toml --out x --tune off").assert().failure());
    assert!(
        said.contains("a group is for the parameters `embed_tokens.weight`, and none of that name is trained"),
        "{said}"
    );
}

#[test]
fn what_cannot_go_on_is_refused() {
    let Some(place) = begun() else { return };
    let refused = |line: &str, part: &str| {
        let said = stderr(&place.danlu(&format!("{line} --out x --tune off")).assert().failure());
        assert!(said.contains(part), "{line}: {said}");
        assert!(!place.path("x").exists(), "{line}");
    };
    refused("finetune --data text.txt", "danlu finetune goes on with a model that is there: name it by --model");
    refused("finetune --model m", "danlu finetune wants data of yours: name them by --data");
    refused("train --lora-rank 4 --data text.txt", "lora trains adapters of a model that is there already");
    refused("train --model m --config tiny.json", "cannot be used with");
    refused("train --model gone --data text.txt", "gone: no such file or folder, and no name on a hub");
    let finetune = |more: &str| format!("finetune --model m --data text.txt --seq 16 {more}");
    refused(&finetune("--lora-rank 0"), "lora.rank is 0; it must lie from 1 to 65536");
    refused(&finetune("--lora-dropout 1"), "lora.dropout is 1; it must lie from 0 to below 1");
    refused(&finetune("--lora-targets lm_head"), "lora.targets names lm_head, and no layer");
    refused(&finetune("--base-dtype int3"), "`int3` is none of keep, f32, f16, bf16, q8_0, nf4");
    refused(&finetune("--full --lora-rank 4"), "cannot be used with");
    refused("finetune --model m --data text.txt --seq 64", "seq is 64, and m was made for texts of up to 32 tokens");
}
