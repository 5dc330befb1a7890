//! `danlu dpo`: pairs of answers, whose reference is computed once, and runs that are killed and taken up.

use super::resuming::losses;
use super::shared::shared;
use super::{Place, has_adapter, stderr, stdout};
use danlu::store::Checkpoint;
use danlu::store::snapshot::Series;
use serde_json::{Value, json};
use std::fs;
use std::process::Stdio;

/// Pairs of which the better answer is always of one kind.
pub fn pairs(place: &Place) {
    let pair = |i: usize| {
        let (who, what) = (["cat", "dog", "mat"][i % 3], ["saw", "ran", "sat"][i / 3 % 3]);
        let (chosen, rejected) = (format!("The {who} {what} on the mat."), format!("red {what} house {who} to"));
        json!({"prompt": format!("A {who}:"), "chosen": chosen, "rejected": rejected}).to_string() + "\n"
    };
    place.write("pairs.jsonl", (0..27).map(pair).collect::<String>());
}

/// A place with a model and pairs.
fn begun() -> Option<Place> {
    has_adapter().then(|| {
        let place = Place::new();
        place.train("--out m --quiet --checkpoint-every 0").assert().success();
        pairs(&place);
        place
    })
}

/// The lines of a run's metrics.
fn metrics(place: &Place, run: &str) -> Vec<Value> {
    let text = fs::read_to_string(place.path(run).join("metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// What every validation of a run said of its pairs.
fn validations(place: &Place, run: &str, name: &str) -> Vec<f64> {
    metrics(place, run).iter().filter_map(|m| m["validation_rewards"][name].as_f64()).collect()
}

#[test]
fn the_better_answers_are_preferred_and_their_reference_is_computed_once() {
    let Some(place) = begun() else { return };
    let line = "dpo --model m --data pairs.jsonl --seq 24 --batch 2 --lr 2e-2 --lora-rank 4 --steps 30 --tune off";
    let said = stderr(&place.danlu(&format!("{line} --out calm")).assert().success());
    for part in ["27 pairs in preference form", "the reference, by the model that training begins with, was computed"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(said.contains("100 % of pairs right, rewards "), "{said}");
    let model = said.lines().find(|line| line.starts_with("model ")).unwrap();
    let base = Checkpoint::open(&place.path("m")).unwrap().model().config().parameters();
    let counts: Vec<u64> = model.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    assert!(model.ends_with(" trained") && counts[0] == base && counts[1] < counts[0], "{model}");
    // Nothing of what it counts is counted twice.
    assert!(said.contains("27 pairs in 54 rows of 24 tokens"), "{said}");
    assert_eq!(place.model("calm"), ["adapter_config.json", "adapter_model.safetensors"]);
    // Of pairs that are as likely before and after, the loss is ln 2.
    let lines = metrics(&place, "calm");
    assert!((lines[0]["loss"].as_f64().unwrap() - 2f64.ln()).abs() < 1e-5, "{}", lines[0]);
    let last = |run: &str, name: &str| *validations(&place, run, name).last().unwrap();
    assert!(lines.iter().filter_map(|m| m["validation_loss"].as_f64()).next_back().unwrap() < 0.95 * 2f64.ln());
    assert_eq!(last("calm", "accuracy"), 1.0);
    assert!((last("calm", "margin") - (last("calm", "chosen") - last("calm", "rejected"))).abs() < 1e-9);
    assert!(lines.iter().all(|m| m["perplexity"].is_null()), "the loss of pairs is none of tokens");

    // A second run reads the reference, and an equal one is equal to the bit; it is of this model in this dtype alone.
    let again = |more: &str, part: &str| {
        let said = stderr(&place.danlu(&format!("{line} {more}")).assert().success());
        assert!(said.contains(part), "{more}: {said}");
    };
    again("--out again", "is read from");
    let adapter = |run: &str| fs::read(place.path(run).join("adapter_model.safetensors")).unwrap();
    assert!(adapter("again") == adapter("calm"));
    // A larger β holds the model nearer to the reference, and so do labels that are not believed.
    again("--out near --beta 5", "is read from");
    assert!(last("near", "margin") / 5.0 < last("calm", "margin") / 0.1);
    again("--out unsure --label-smoothing 0.4 --accumulate 2", "is read from");
    for loss in ["ipo", "hinge"] {
        again(&format!("--out {loss} --loss {loss}"), "is read from");
        assert!(last(loss, "margin") > 0.01, "{loss}");
    }
    // Fresh adapters change nothing: (0 - 1/2β)², and 1.
    let first = |run: &str| metrics(&place, run)[0]["loss"].as_f64().unwrap();
    assert!((first("ipo") - 25.0).abs() < 1e-3 && (first("hinge") - 1.0).abs() < 1e-5);
    again("--out mixed --precision mixed", "is read from");
    assert!(last("mixed", "margin") > 0.1);
    again("--out four --base-dtype nf4", "was computed");
    again("--out dora --dora", "was computed");

    // What there is to see runs by.
    let listed = stdout(&place.danlu("runs .").assert().success());
    assert!(listed.contains("pairs right") && listed.contains("100 %") && listed.contains("dpo.beta"), "{listed}");
    let plot = "plot calm near -o p.svg --metrics reward_margin,validation_reward_accuracy";
    place.danlu(plot).assert().success();
    assert!(fs::read_to_string(place.path("p.svg")).unwrap().contains("reward_margin"));
    let csv = fs::read_to_string(place.path("calm/metrics.csv")).unwrap();
    assert!(csv.lines().next().unwrap().contains(",reward_chosen,reward_rejected,reward_margin,reward_accuracy,"));
    place.danlu("export calm out --licence mit").assert().success();
    let card = fs::read_to_string(place.path("out/README.md")).unwrap();
    assert!(card.contains("DPO's loss with beta 0.1.") && card.contains("| pairs right |"), "{card}");
}

/// Killed at any point, of adapters or of the whole model, with the reference there or gone: the same bytes.
#[test]
fn a_killed_run_of_pairs_ends_with_the_same_bytes() {
    let Some(place) = begun() else { return };
    for (kind, more, file) in [
        ("lora", "--lora-rank 4 --lora-dropout 0.2 --accumulate 2", "adapter_model.safetensors"),
        ("full", "--full", "model.safetensors"),
    ] {
        let line = |out: &str| {
            format!(
                "dpo --model m --data pairs.jsonl --seq 24 --batch 2 --lr 1e-3 --steps 30 --checkpoint-every 2 --keep 99 \
                 --out {out} --tune off --log-format json {more}"
            )
        };
        let (calm, hurt) = (format!("{kind}-calm"), format!("{kind}-hurt"));
        place.danlu(&line(&calm)).assert().success();
        let mut process = place.process(&place.danlu(&line(&hurt)), [Stdio::null(), Stdio::null()]);
        while Series::of(&place.path(&hurt)).list().len() < 3 {
            assert!(process.try_wait().unwrap().is_none(), "{hurt} ended before it was killed");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        process.kill().unwrap();
        process.wait().unwrap();
        assert!(!place.path(&hurt).join(file).exists(), "{hurt} was too fast");
        let gone = kind == "full";
        let ends = |name: &String| name.ends_with(".reference");
        place.names("cache").iter().filter(|name| gone && ends(name)).for_each(|name| {
            fs::remove_file(place.path("cache").join(name)).unwrap();
        });
        let said = stderr(&place.danlu(&format!("dpo --resume {hurt} --tune off")).assert().success());
        assert!(said.contains(if gone { "was computed" } else { "is read from" }), "{said}");
        assert!(said.contains("resumed     "), "{said}");
        let bytes = |run: &str| fs::read(place.path(run).join(file)).unwrap();
        assert!(bytes(&hurt) == bytes(&calm), "{kind}");
        assert_eq!(losses(&place, &hurt), losses(&place, &calm), "{kind}");
        let rewards = |run: &str| -> Vec<Value> {
            metrics(&place, run).into_iter().filter(|m| m["loss"].is_number()).map(|m| m["rewards"].clone()).collect()
        };
        assert_eq!(rewards(&hurt), rewards(&calm), "{kind}");
    }
    let said = stderr(&place.danlu("dpo --resume lora-hurt --beta 0.3").assert().failure());
    assert!(said.contains("dpo.beta is 0.1 in the run that is taken up, and would be 0.3"), "{said}");
    place.train("--out examples --quiet --steps 1 --checkpoint-every 1").assert().success();
    // Flags that the run has no use for are not passed over.
    for (line, part) in [
        ("finetune --resume lora-hurt", "is one of preference pairs: go on with it by danlu dpo --resume"),
        ("dpo --full --resume lora-hurt", "trains adapters: leave --full out"),
        ("dpo --resume examples", "is one of examples, not pairs"),
        (
            "dpo --resume m",
            "m: holds the model of a run, which kept no checkpoint to go on from; begin anew by m/recipe.toml",
        ),
    ] {
        let said = stderr(&place.danlu(line).assert().failure());
        assert!(said.lines().count() == 1 && said.contains(part), "{line}: {said}");
    }
}

/// A published model learns which of two ways a story goes on; of pairs that it has not seen more are right than before.
#[test]
fn a_published_model_learns_what_is_preferred() {
    let Some(models) = shared("models/stories260K/derived").filter(|_| has_adapter()) else { return };
    let place = Place::new();
    // Names that the model has no opinion of: nothing but the pairs says that Tim is preferred to Tom.
    let begin = ["One day", "Once upon a time", "In the park", "At home", "In the morning", "It was hot and"];
    let what = ["found a ball", "was sad", "saw a cat", "had a toy", "went to play", "was happy"];
    let pair = |i: usize| {
        let (begin, what) = (begin[i % 6], what[i / 6 % 6]);
        let [chosen, rejected] = ["Tim", "Tom"].map(|who| format!(" {who} {what}."));
        json!({"prompt": begin, "chosen": chosen, "rejected": rejected}).to_string() + "\n"
    };
    place.write("names.jsonl", (0..36).map(pair).collect::<String>());
    let model = models.join("hf-f32").display().to_string();
    let flags = format!("--model {model} --data names.jsonl --seq 48 --batch 2 --steps 24 --tune off --quiet");
    for (name, more) in [("full", "--full --lr 2e-3"), ("lora", "--lr 1e-2"), ("qlora", "--lr 1e-2 --base-dtype nf4")] {
        place.danlu(&format!("dpo {flags} --checkpoint-every 0 {more} --out {name}")).assert().success();
        let (margin, right) = (validations(&place, name, "margin"), validations(&place, name, "accuracy"));
        let (first, last) = (margin[0], margin[margin.len() - 1]);
        assert!(last > first + 0.1 && last > 0.2, "{name}: {margin:?}");
        assert_eq!(right.last(), Some(&1.0), "{name}: {right:?}");
    }
}

#[test]
fn what_is_no_pair_is_refused() {
    let Some(place) = begun() else { return };
    let refused = |line: &str, part: &str| {
        let said = stderr(&place.danlu(&format!("{line} --out x --tune off")).assert().failure());
        assert!(said.contains(part), "{line}: {said}");
        assert!(!place.path("x").exists(), "{line}");
    };
    refused("dpo --data pairs.jsonl", "danlu dpo goes on with a model that is there: name it by --model");
    refused("dpo --model m", "danlu dpo wants data of yours: name them by --data");
    let dpo = |more: &str| format!("dpo --model m --seq 24 {more}");
    refused(&dpo("--data pairs.jsonl --beta 0"), "dpo.beta is 0; it must be a number above 0");
    refused(
        &dpo("--data pairs.jsonl --label-smoothing 0.5"),
        "dpo.label_smoothing is 0.5; it must lie from 0 to below 0.5",
    );
    refused(&dpo("--data pairs.jsonl --loss ipo --label-smoothing 0.1"), "only the loss sigmoid has it");
    refused(&dpo("--data pairs.jsonl --pack"), "pack is true, and preference pairs have a row for each answer");
    refused(&dpo("--data pairs.jsonl --overlong drop"), "overlong may only be \"truncate\" with preference pairs");
    refused(&dpo("--data pairs.jsonl --loss-on all"), "of preference pairs the answers are compared");
    refused(&dpo("--data text.txt"), "text.txt: must hold preference pairs (chosen and rejected");
    place.write("half.jsonl", "{\"prompt\": \"A\", \"chosen\": \"b\", \"rejected\": \"\"}\n".repeat(3));
    refused(&dpo("--data half.jsonl"), "half.jsonl:1: has an empty answer");
    place.write("r.toml", "data = \"pairs.jsonl\"\nconfig = \"tiny.json\"\n[dpo]\nbeta = 0.2\n");
    refused("train --recipe r.toml", "dpo measures by the model that training begins with");
    refused("finetune --model m --data pairs.jsonl --seq 24", "holds preference pairs (chosen and rejected)");
}
