//! `danlu generate` with prompts from everywhere, several at a time, and the ends of texts.

use super::runs::trained;
use super::{Place, stderr, stdout};
use serde_json::Value;
use std::fs;
use std::time::{Duration, Instant};

fn text(place: &Place, flags: &str) -> String {
    stdout(&place.danlu(&format!("generate --model m {flags}")).assert().success())
}

fn json(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

#[test]
fn prompts_come_from_flags_files_and_standard_input() {
    let Some(place) = trained("m") else { return };
    place.write("prompt.txt", "The cat");
    let expected = text(&place, "--prompt-file prompt.txt --tokens 8");
    assert!(expected.starts_with("The cat"), "{expected}");
    for flags in ["--prompt -", "--prompt-file -"] {
        let done = place.danlu(&format!("generate --model m {flags} --tokens 8")).write_stdin("The cat").assert();
        assert_eq!(stdout(&done.success()), expected, "{flags}");
    }
    let said = stderr(&place.danlu("generate --model m --prompt-file gone.txt").assert().code(1));
    assert!(said.contains("cannot read gone.txt: No such file"), "{said}");
    let said = stderr(&place.danlu("generate --model m").assert().code(2));
    assert!(said.contains("--prompt <PROMPT>|--prompt-file <FILE>|--batch-file <FILE>"), "{said}");
    place.danlu("generate --model m --prompt a --prompt-file prompt.txt").assert().code(2);
    place.write("prompt.txt", "\u{feff}The cat");
    assert_eq!(text(&place, "--prompt-file prompt.txt --tokens 8"), expected, "a mark of the encoding is no text");
    for flags in ["--out x", "--batch 2", "--stop=", "--context 0"] {
        place.danlu(&format!("generate --model m --prompt a {flags}")).assert().code(2).stdout("");
    }
    place.danlu("generate --model m --batch-file prompt.txt --batch 0").assert().code(2);
    for flag in ["--tokens -1", "--top-k -1", "--tokens x"] {
        let said = stderr(&place.danlu(&format!("generate --model m --prompt a {flag}")).assert().code(2));
        assert!(said.contains("it must be a whole number from 0 up"), "{said}");
    }
}

#[test]
fn the_demo_takes_its_beginning_either_way() {
    let Some(place) = trained("m") else { return };
    let demo = |words: &[&str]| {
        let mut demo = assert_cmd::Command::new(env!("CARGO_BIN_EXE_demo"));
        demo.current_dir(place.folder.path()).env("DANLU_CACHE", place.path("cache")).args(words);
        demo.args(["--model", "m", "--tokens", "5"]);
        if let Ok(adapter) = std::env::var("DANLU_ADAPTER") {
            demo.args(["--adapter", &adapter]);
        }
        stdout(&demo.assert().success())
    };
    let told = demo(&["The cat"]);
    assert!(told.starts_with("The cat"), "{told}");
    assert_eq!(demo(&["--prompt", "The cat"]), told);
}

#[test]
fn settings_act_and_json_tells_all() {
    let Some(place) = trained("m") else { return };
    let flags = "--prompt The --tokens 9 --temperature 0 --json";
    let tell = |more: &str| json(&text(&place, &format!("{flags} {more}"))).pop().unwrap();
    let plain = tell("");
    assert_eq!((&plain["finish"], &plain["tokens"]), (&"length".into(), &9.into()));
    assert!(
        plain["prompt"] == "The" && plain["prompt_tokens"].as_u64() > Some(0) && plain["seconds"].as_f64() > Some(0.0)
    );
    let said = plain["text"].as_str().unwrap();
    // A string from the middle ends the text before it.
    let at = said.char_indices().nth(said.chars().count() / 2).unwrap().0;
    let stop = said[at..].split_whitespace().next().unwrap_or("x");
    let stopped = tell(&format!("--stop {stop}"));
    assert_eq!((&stopped["finish"], &stopped["text"]), (&"stop".into(), &said[..said.find(stop).unwrap()].into()));
    // A bias that outweighs everything says the same token always.
    let biased = tell("--logit-bias 40=1000");
    let one = biased["text"].as_str().unwrap().chars().next().unwrap();
    assert!(biased["text"].as_str().unwrap().chars().all(|c| c == one), "{biased}");
    assert_ne!(tell("--repetition-penalty 50")["text"], plain["text"]);
    // The model has 32 positions; a shifted text goes on beyond them.
    let full = json(&text(&place, "--prompt The --tokens 60 --temperature 0 --json")).pop().unwrap();
    assert_eq!(full["finish"], "context_full");
    let on = json(&text(&place, "--prompt The --tokens 60 --temperature 0 --json --context-full shift")).pop().unwrap();
    assert_eq!((&on["finish"], &on["tokens"]), (&"length".into(), &60.into()));
    // A context that was asked for is not the model's.
    let small = stderr(&place.danlu("generate --model m --prompt The --tokens 60 --context 9").assert().success());
    assert!(small.contains("danlu: the context of 9 tokens is full: raise --context (up to 32)\n"), "{small}");
    // Of a prompt that is too long, what is computed is counted.
    let long = place.danlu("generate --model m --prompt-file - --tokens 1 --json --context 99 --context-full shift");
    let done = { long }.write_stdin("The cat sat on the mat. ".repeat(20)).assert().success();
    assert_eq!(json(&stdout(&done))[0]["prompt_tokens"], 16);
    let said = stderr(&done);
    assert!(said.contains("--context 99 is more than the model was made for: lowered to 32"), "{said}");
    let cut = " tokens are more than the context: the first and the newest 15 are read\n";
    assert!(said.contains("danlu: the prompt's ") && said.contains(cut), "{said}");
    let done = place.danlu("generate --model m --prompt The --tokens 4 --kv-cache f16 --context 20").assert().success();
    let said = stderr(&done);
    assert!(said.contains("tok/s") && said.contains("KV cache of 20 tokens in f16: 640 B"), "{said}");
    for (flags, part) in [
        ("--min-p 2", "min-p 2 is not between 0 and 1"),
        ("--repetition-penalty 0", "repetition penalty 0 is not a number above 0"),
        ("--logit-bias x=1", "--logit-bias x=1 is not ID=BIAS"),
        ("--logit-bias 5=inf", "the bias of token 5 is inf, which is no finite number"),
        ("--logit-bias 4000000000=1", "a bias for token 4000000000: the model has "),
        ("--context 1", "the context holds 1; shorten the prompt, raise --context (up to 32), or give --context-full"),
        ("--kv-cache q8", "a q8_0 cache needs key heads whose widths sum up to a multiple of 32, not 8"),
    ] {
        // Nothing is echoed of a prompt that is refused.
        let done = place.danlu(&format!("generate --model m --prompt ab {flags}")).assert().code(1).stdout("");
        let said = stderr(&done);
        assert!(said.lines().count() == 1 && said.contains(part), "{flags}: {said}");
    }
}

#[test]
fn a_model_brings_its_own_settings_and_flags_go_before_them() {
    let Some(place) = trained("m") else { return };
    let run = |flags: &str| {
        let done = place.danlu(&format!("generate --model m --prompt The --tokens 12 {flags}")).assert().success();
        (stdout(&done), stderr(&done))
    };
    let flags = "--temperature 1.5 --top-k 7 --top-p 1 --min-p 0.01 --repetition-penalty 1.25";
    let (plain, (hot, said), greedy) = (run("").0, run(flags), run("--temperature 0").0);
    assert!(hot != plain && greedy != plain && !said.contains("generation_config.json"), "{said}");
    let suggests = |settings: &str| {
        place.write("m/generation_config.json", format!("{{\"bos_token_id\": 0, \"eos_token_id\": 0, {settings}}}"));
    };
    suggests(
        r#""do_sample": true, "temperature": 1.5, "top_k": 7, "top_p": 1.0, "min_p": 0.01, "repetition_penalty": 1.25"#,
    );
    let (text, said) = run("");
    assert_eq!(text, hot);
    let line = "danlu: by the model's generation_config.json: temperature 1.5, top-k 7, top-p 1.0, min-p 0.01, repetition \
        penalty 1.25\n";
    assert!(said.starts_with(line), "{said}");
    assert_eq!(run("--temperature 0 --repetition-penalty 1").0, greedy);
    let (text, said) = run("--temperature 0.8 --top-k 0 --top-p 0.95 --min-p 0 --repetition-penalty 1");
    assert!(text == plain && !said.contains("generation_config.json"), "{said}");
    assert!(!run("--json").1.contains("generation_config.json"));
    place.write("in.jsonl", r#"{"prompt": "The", "tokens": 12}"#);
    let done = place.danlu("generate --model m --batch-file in.jsonl").assert().success();
    assert_eq!(format!("The{}\n", json(&stdout(&done))[0]["text"].as_str().unwrap()), hot);
    let done = place.danlu("chat --model m").write_stdin("/set\n").assert().success();
    assert!(stdout(&done).starts_with("temperature 1.5, top-k 7, top-p 1, min-p 0.01, "), "{}", stdout(&done));
    assert!(stderr(&done).contains("by the model's generation_config.json: temperature 1.5, "), "{}", stderr(&done));
    suggests(r#""do_sample": false, "temperature": 1.5"#);
    assert_eq!(run("").0, greedy);
    assert_eq!(run("--temperature 0.8").0, plain);
    suggests(r#""temperature": 0.8, "eos_token_id": "x""#);
    let said = run("").1;
    let part =
        "danlu: of the model's generation_config.json, this is ignored: eos_token_id is \"x\", and token ids are";
    assert!(said.contains(part), "{said}");
    suggests(r#""temperature": -1, "top_k": "many""#);
    let (text, said) = run("");
    let ignored = "danlu: of the model's generation_config.json, this is ignored: ";
    for what in ["temperature -1 is not a number from 0 up", "top-k is \"many\", which is no whole number from 0 up"] {
        assert!(said.contains(&format!("{ignored}{what}")), "{said}");
    }
    assert_eq!(text, plain);
}

#[test]
fn a_batch_keeps_its_order_and_names_the_lines_that_fail() {
    let Some(place) = trained("m") else { return };
    let long = "The cat sat on the mat. ".repeat(20);
    place.write(
        "in.jsonl",
        format!(
            "\u{feff}{}\n\n{}\n{}\n{}\n{}\n{}\n",
            r#"{"prompt": "The", "tokens": 9, "seed": 3, "id": "first"}"#,
            r#"{"prompt": "A dog", "tokens": 3, "temperature": 0}"#,
            r#"{"prompt": "The", "colour": "red", "id": 7}"#,
            r#"{"prompt": "The", "top_p": 7}"#,
            serde_json::json!({"prompt": long}),
            r#"{"prompt": "A", "tokens": 5, "temperature": 0, "stop": ["e", "a", "o", "i", "u", " "]}"#,
        ),
    );
    let done = place.danlu("generate --model m --batch-file in.jsonl --out out.jsonl --batch 2").assert().code(1);
    let said = stderr(&done);
    for part in [
        "in.jsonl, line 4: \"colour\" is no setting; there are \"prompt\", ",
        "in.jsonl, line 5: top-p 7 is not above 0 and at most 1",
        "tokens and the context holds 32; shorten the prompt",
        "danlu: 3 of 6 lines of in.jsonl failed",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(
        !said.contains("are read") && said.contains("danlu: 3 texts: "),
        "what is refused is neither read nor counted: {said}"
    );
    let results = json(&fs::read_to_string(place.path("out.jsonl")).unwrap());
    assert_eq!(results.iter().map(|r| r["line"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 3, 4, 5, 6, 7]);
    assert!(results[2..5].iter().all(|r| r["error"].is_string()), "{results:?}");
    assert_eq!(results[2]["id"], 7);
    assert!(results[0]["id"] == "first" && results[0]["tokens"] == 9 && results[1]["tokens"] == 3);
    // Each is the text that its prompt has alone.
    let first = text(&place, "--prompt The --tokens 9 --seed 3");
    assert_eq!(first.trim_end_matches('\n'), format!("The{}", results[0]["text"].as_str().unwrap()));
    let stdin = fs::read_to_string(place.path("in.jsonl")).unwrap().lines().next().unwrap().to_string();
    let done = place.danlu("generate --model m --batch-file -").write_stdin(stdin).assert().success();
    assert_eq!(json(&stdout(&done))[0]["text"], results[0]["text"]);
    let before = fs::read(place.path("in.jsonl")).unwrap();
    for (out, part) in [("in.jsonl", "--out in.jsonl is the batch file itself"), ("gone/x", "cannot write gone/x")] {
        let flags = format!("--batch-file in.jsonl --out {out}");
        // The model is not even looked for.
        let said = stderr(&place.danlu(&format!("generate --model gone {flags}")).assert().code(1));
        assert!(said.lines().count() == 1 && said.contains(part), "{said}");
    }
    assert_eq!(fs::read(place.path("in.jsonl")).unwrap(), before);
    // Hours of results are not written over by chance.
    let again = "generate --model m --batch-file in.jsonl --out out.jsonl";
    let said = stderr(&place.danlu(again).assert().code(1));
    assert!(said.contains("out.jsonl: is there already"), "{said}");
    assert_eq!(json(&fs::read_to_string(place.path("out.jsonl")).unwrap()), results);
    place.write("out.jsonl", "old");
    place.danlu(&format!("{again} --force")).assert().code(1);
    assert_eq!(json(&fs::read_to_string(place.path("out.jsonl")).unwrap()), results);
    let wrong = r#"{"prompt": "A", "stop": 3}"#;
    let said = stderr(&place.danlu("generate --model m --batch-file -").write_stdin(wrong).assert().code(1));
    let part = "standard input, line 1: \"stop\" is 3; it should be a text or a list of texts";
    assert!(said.contains(part), "{said}");
    place.write("empty.jsonl", "\n");
    let said = stderr(&place.danlu("generate --model m --batch-file empty.jsonl").assert().code(1));
    assert!(said.contains("empty.jsonl: holds no lines"), "{said}");
}

#[test]
#[cfg(unix)]
fn ctrl_c_leaves_the_finished_lines_of_a_batch() {
    use std::process::{Command, Stdio};
    let Some(place) = trained("m") else { return };
    let long = r#"{"prompt": "A", "tokens": 100000000}"#;
    place.write("in.jsonl", format!("{}\n{long}\n{}\n", r#"{"prompt": "A", "tokens": 1}"#, "{}"));
    let flags = "--model m --batch-file in.jsonl --out out.jsonl --context-full shift --logit-bias 40=1000";
    let command = place.danlu(&format!("generate {flags}"));
    let mut run = Command::new(env!("CARGO_BIN_EXE_danlu"))
        .args(command.get_args())
        .current_dir(place.folder.path())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = || fs::read_to_string(place.path("out.jsonl")).map_or(0, |text| text.lines().count());
    while lines() == 0 {
        assert_eq!(run.try_wait().unwrap(), None, "it ended");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(Command::new("kill").args(["-INT", &run.id().to_string()]).status().unwrap().success());
    let done = run.wait_with_output().unwrap();
    let said = String::from_utf8(done.stderr).unwrap();
    assert_eq!(done.status.code(), Some(130), "{said}");
    assert!(said.contains("stopped: the results of 2 of 3 lines are in out.jsonl"), "{said}");
    let results = json(&fs::read_to_string(place.path("out.jsonl")).unwrap());
    assert_eq!(results.iter().map(|r| r["line"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 3], "{results:?}");
}

/// A text that Ctrl-C stops is whole as far as it came, and says why it ends.
#[test]
#[cfg(unix)]
fn ctrl_c_ends_a_text_and_says_so() {
    use std::io::{BufRead, BufReader, Read};
    use std::process::{Command, Stdio};
    let Some(place) = trained("m") else { return };
    let mut begin = Duration::ZERO;
    for json_too in [false, true] {
        let flags = "--model m --prompt A --tokens 100000000 --context-full shift --logit-bias 40=1000";
        let command = place.danlu(&format!("generate {flags}{}", if json_too { " --json" } else { "" }));
        let mut run = Command::new(env!("CARGO_BIN_EXE_danlu"))
            .args(command.get_args())
            .current_dir(place.folder.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let began = Instant::now();
        let mut out = BufReader::new(run.stdout.take().unwrap());
        if json_too {
            // Nothing shows that the text has begun; a signal before that ends the program with a sentence of its own. The first
            // shows how long it takes here.
            std::thread::sleep(3 * begin + Duration::from_secs(1));
        } else {
            assert!(!out.fill_buf().unwrap().is_empty());
            begin = began.elapsed();
            std::thread::sleep(Duration::from_millis(300));
        }
        assert!(Command::new("kill").args(["-INT", &run.id().to_string()]).status().unwrap().success());
        let mut text = String::new();
        out.read_to_string(&mut text).unwrap();
        let done = run.wait_with_output().unwrap();
        let said = String::from_utf8(done.stderr).unwrap();
        assert_eq!(done.status.code(), Some(130), "{said}");
        if said.contains("stopped: no text was begun") {
            eprintln!("SKIPPED: the machine is too slow for what is to be stopped");
            continue;
        }
        assert!(said.contains("danlu: stopped\n") && said.contains("KV cache of "), "{said}");
        if json_too {
            assert_eq!(json(&text)[0]["finish"], "stopped");
        }
    }
}
