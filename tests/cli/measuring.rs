//! `danlu bench`, `danlu profile` and `danlu train --profile`: what they print and write, and how they refuse.

use super::{Place, exists, has_adapter, stderr, stdout};
use serde_json::Value;

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

#[test]
fn a_benchmark_is_kept_and_compared_with() {
    if !has_adapter() {
        return;
    }
    let place = Place::new();
    let what = "bench --quick story-1m";
    let done = place.danlu(&format!("{what} --json --svg roof.svg")).assert().success();
    let report = json(&stdout(&done));
    assert!(report["machine"]["bytes_per_second"].as_f64().unwrap() > 1e8, "{report}");
    assert_eq!(report["machine"]["ceilings"][0]["class"], "f32");
    for key in ["dispatch_seconds", "pass_seconds", "submission_seconds"] {
        assert!(report["machine"][key].as_f64().unwrap() > 0.0, "{key}: {report}");
    }
    let entries = report["entries"].as_array().unwrap();
    let names: Vec<&str> = entries.iter().map(|e| e["name"].as_str().unwrap()).collect();
    assert!(names.len() == 3 && names[1].starts_with("train step story-1m mixed "), "{names:?}");
    let classes: Vec<_> = entries.iter().map(|e| e["class"].as_str().unwrap()).collect();
    assert!(classes[0] == "f32" && classes[1] != "f32" && classes[2] == "f32", "{classes:?}");
    for ceiling in report["machine"]["ceilings"].as_array().unwrap() {
        assert!(ceiling["arithmetic"].as_f64().unwrap() > 1e8, "{ceiling}");
    }
    for e in entries {
        let number = |key: &str| e[key].as_f64().unwrap();
        assert!((number("fraction") - number("limit") / e["seconds"]["median"].as_f64().unwrap()).abs() < 1e-9);
        assert!(number("device_bytes") > 1e6 && number("tokens_per_second") > 0.0 && number("predicted") > 0.0, "{e}");
    }
    let svg = std::fs::read_to_string(place.path("roof.svg")).unwrap();
    assert!(svg.starts_with("<svg ") && svg.matches("<title>").count() == 3 && svg.contains(">f16</text>"), "{svg}");

    // Nothing kept yet; then the whole is kept by hand, as --keep wants no filter.
    let none = place.danlu(&format!("{what} --kept kept")).assert().success();
    let said = stderr(&none);
    let path = said.split("--keep writes ").nth(1).unwrap_or_else(|| panic!("{said}")).trim();
    assert!(stdout(&none).contains("whole run") && !exists(place.path("kept")));
    // What then was a thousand times as fast is now slower; what was a thousand times as slow is faster.
    for (factor, code, part) in [(1e3, 1, "3 slower, 0 faster"), (1e-3, 0, "0 slower, 3 faster")] {
        let mut kept = report.clone();
        for e in kept["entries"].as_array_mut().unwrap() {
            for key in ["limit", "fraction"] {
                e[key] = (e[key].as_f64().unwrap() * factor).into();
            }
        }
        std::fs::create_dir_all(place.path("kept")).unwrap();
        place.write(path, kept.to_string());
        let said = stderr(&place.danlu(&format!("{what} --kept kept")).assert().code(code));
        assert!(said.contains(part), "{said}");
        assert_eq!(said.contains("danlu: 3 of 3 figures got slower; if that is meant, --keep"), code == 1, "{said}");
    }
    place.write(path, "{}");
    let said = stderr(&place.danlu(&format!("{what} --kept kept")).assert().code(1));
    assert!(said.contains("is no report of a benchmark") && said.contains("danlu bench --keep"), "{said}");
}

#[test]
fn a_kernel_is_found_by_its_name() {
    if !has_adapter() {
        return;
    }
    let place = Place::new();
    let text = stdout(&place.danlu("bench --quick cube:").assert().success());
    assert!(text.contains("cube: matmul 256×256×256 nn") && text.contains("of roof"), "{text}");
    assert!(!text.contains("whole run"), "{text}");
    let said = stderr(&place.danlu("bench --quick no-such-thing").assert().code(1));
    assert!(
        said.starts_with("danlu: nothing that is measured has `no-such-thing` in its name; there are: cube, "),
        "{said}"
    );
}

/// Spans of one track lie within each other or apart.
fn nested(events: &[Value], track: u64) -> usize {
    let mut spans: Vec<(f64, f64)> = events
        .iter()
        .filter(|e| e["ph"] == "X" && e["tid"] == track)
        .map(|e| (e["ts"].as_f64().unwrap(), e["ts"].as_f64().unwrap() + e["dur"].as_f64().unwrap()))
        .collect();
    spans.sort_by(|a, b| a.0.total_cmp(&b.0).then(b.1.total_cmp(&a.1)));
    let mut open: Vec<f64> = Vec::new();
    // The form's microseconds are floats of some 1e6: a nanosecond is what they may lose.
    let slack = 1e-3;
    for (begin, end) in &spans {
        open.retain(|outer| *outer > begin + slack);
        assert!(open.iter().all(|outer| *end <= outer + slack), "{begin} {end} {open:?}");
        open.push(*end);
    }
    spans.len()
}

fn trace(place: &Place, name: &str) -> (usize, usize) {
    let trace = json(&std::fs::read_to_string(place.path(name)).unwrap());
    let events = trace["traceEvents"].as_array().unwrap();
    (nested(events, 1), nested(events, 2))
}

#[test]
fn steps_are_profiled() {
    if !has_adapter() {
        return;
    }
    let place = Place::new();
    let line = "profile --config tiny.json --batch 2 --seq 16 --steps 2 --trace t.json";
    let text = stdout(&place.danlu(line).assert().success());
    for part in
        ["train step: mean of 2 runs", "matmul matmul_", "adamw ", "of roof", "host:   upload ", "on the device: "]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    let report = json(&stdout(&place.danlu(&format!("{line} --json")).assert().success()));
    // The plan for this adapter: another's may have other steps.
    let mut plan = place.danlu("plan --config tiny.json --batch 2 --seq 16 --json --adapter");
    let plan = json(&stdout(&plan.arg(report["adapter"]["name"].as_str().unwrap()).assert().success()));
    let steps = plan["totals"]["steps"].as_u64().unwrap() as usize;
    let (host, device) = trace(&place, "t.json");
    // Each run's upload, encode, submit, wait and readback; each run's steps, and the run around them.
    assert!(host >= 10 && device == 2 * (steps + 1), "{host} {device} {steps}");
    let rows = report["profiles"][0]["rows"].as_array().unwrap();
    let sum = |key: &str| rows.iter().map(|r| r[key].as_f64().unwrap()).sum::<f64>();
    assert_eq!(sum("steps") as usize, steps);
    assert_eq!(sum("flops") as u64, plan["totals"]["flops"]);
    assert!((sum("seconds") / report["profiles"][0]["busy"].as_f64().unwrap() - 1.0).abs() < 1e-6);
    // Of mixed precision with the roof of its products.
    let mixed = json(&stdout(&place.danlu(&format!("{line} --precision mixed --json")).assert().success()));
    let rows = mixed["profiles"][0]["rows"].as_array().unwrap();
    assert!(rows.iter().any(|r| r["kernel"].as_str().unwrap().contains("_half")), "{mixed}");
    assert!(mixed["roofline"]["half_flops_per_second"].as_f64().unwrap() > 0.0, "{mixed}");
    assert_eq!(report["roofline"]["half_flops_per_second"], 0.0);
    let measured =
        json(&stdout(&place.danlu("plan --config tiny.json --batch 2 --seq 16 --measure --json").assert().success()));
    assert!(measured["steps"].as_array().unwrap().iter().all(|s| s["seconds"].as_f64().is_some()), "{measured}");
}

#[test]
fn training_is_profiled_on_the_way() {
    if !has_adapter() {
        return;
    }
    let place = Place::new();
    let said = stderr(&place.train("--out o --quiet --profile t.json").assert().success());
    assert!(
        said.contains("train step: mean of 2 runs") && said.contains("open it at https://ui.perfetto.dev"),
        "{said}"
    );
    let (host, device) = trace(&place, "t.json");
    assert!(host >= 10 && device > 20, "{host} {device}");
}

#[test]
fn generation_is_profiled() {
    if !has_adapter() {
        return;
    }
    let place = Place::new();
    let tiny = concat!(env!("CARGO_MANIFEST_DIR"), "/models/tiny");
    let text = stdout(
        &place.danlu(&format!("profile --model {tiny} --prompt Once --tokens 3 --trace t.json")).assert().success(),
    );
    assert!(text.contains("decode: mean of ") && text.contains("without the recorder: one prompt of "), "{text}");
    assert!(text.contains(" tokens and 3 more in "), "{text}");
    // A context that ends the text earlier counts what there was.
    let text = stdout(&place.danlu(&format!("profile --model {tiny} --prompt Once --tokens 999")).assert().success());
    let (_, counted) = text.split_once("one prompt of ").unwrap();
    let (prompt, counted) = counted.split_once(" tokens and ").unwrap();
    let (written, rest) = counted.split_once(" more").unwrap();
    assert!(rest.starts_with(", where the context of 256 tokens was full, in "), "{text}");
    let all = [prompt, written].map(|n| n.parse::<usize>().unwrap()).iter().sum::<usize>();
    assert_eq!(all, 257, "the last token need not be fed: {text}");
    trace(&place, "t.json");
}

#[test]
fn arguments_are_refused() {
    let place = Place::new();
    for (line, part) in [
        ("bench --threshold x --kept k", "`x` is no number from 0 up, such as 0.25 for a quarter"),
        ("bench --threshold 0.5", "--kept <FOLDER>"),
        ("bench --keep", "--kept <FOLDER>"),
        ("bench matmul --kept k --keep", "cannot be used with"),
        ("profile --steps 0", "0 is not in 1..=1000"),
        ("profile --prompt x", "--model <PATH|NAME>"),
        ("profile --model x", "--prompt <PROMPT>"),
        ("profile --model x --prompt y --steps 2", "cannot be used with"),
        ("profile --config tiny.json --prompt y", "cannot be used with"),
    ] {
        let said = stderr(&place.danlu(line).assert().code(2));
        assert!(said.contains(part), "{line}: {said}");
    }
    for (line, part) in [
        ("profile --config nothing", "\"nothing\" is neither a preset nor a config.json"),
        ("profile --batch 0", "batch"),
        ("profile --trace gone/t.json", "cannot write gone/t.json"),
        ("profile --model nowhere --prompt x", "nowhere"),
    ] {
        let said = stderr(&place.danlu(line).assert().code(1));
        assert!(said.starts_with("danlu: ") && said.contains(part), "{line}: {said}");
    }
}

#[test]
fn what_ranks_exchange_is_measured() {
    let place = Place::new();
    let said = stdout(&place.danlu("bench comm --quick --ranks 3 --json").assert().success());
    let report: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(report["ranks"], 3);
    let figures = report["figures"].as_array().unwrap();
    let sums = ["all_reduce", "all_reduce f16", "all_reduce bf16", "reduce_scatter"];
    let moves = ["barrier", "broadcast", "all_gather", "all_to_all", "all_to_all_v", "send, receive"];
    for name in sums.into_iter().chain(moves) {
        let of = figures.iter().filter(|f| f["collective"] == name);
        assert_eq!(of.clone().count(), if name == "barrier" { 1 } else { 3 }, "{said}");
        assert!(of.clone().all(|f| f["seconds"].as_f64().unwrap() > 0.0), "{said}");
    }
    let table = stdout(&place.danlu("bench comm --quick --ranks 2").assert().success());
    assert!(table.contains("2 ranks") && table.lines().any(|l| l.starts_with("all_reduce")), "{table}");
    assert!(
        stderr(&place.danlu("bench comm --ranks 1").assert().code(1)).contains("1 ranks: there must be from 2 to 64")
    );
}
