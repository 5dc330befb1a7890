//! `--tune off|cached|full` from outside: what each measures, takes and leaves, and `danlu doctor --tuning`, which shows it.

use super::{Place, has_adapter, stderr, stdout};
use serde_json::Value;

/// `danlu train` with this mode and seed; the losses that it tells.
fn losses(place: &Place, mode: &str, out: &str) -> Vec<f64> {
    let line = format!(
        "train --config tiny.json --data text.txt --seq 16 --batch 2 --steps 3 --tune {mode} --log-format json --out {out}"
    );
    let said = stdout(&place.danlu(&line).assert().success());
    let events = said.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let losses: Vec<f64> = events.filter_map(|e| e["step"].get("loss").or(e.get("loss"))?.as_f64()).collect();
    assert!(losses.len() >= 3, "{said}");
    losses
}

/// What `danlu doctor --tuning` says.
fn evidence(place: &Place) -> Value {
    let said = stdout(&place.danlu("doctor --tuning --json").assert().success());
    serde_json::from_str(&said).unwrap_or_else(|e| panic!("{e}: {said}"))
}

fn rows(evidence: &Value) -> &Vec<Value> {
    evidence["here"]["rows"].as_array().unwrap()
}

#[test]
fn what_is_measured_depends_on_the_mode_and_is_shown() {
    if !has_adapter() {
        return;
    }
    let place = Place::new();
    let first = losses(&place, "off", "off");
    let cached = losses(&place, "cached", "cached");
    let before = evidence(&place);
    assert!(rows(&before).is_empty(), "neither measures anything: {before}");
    let full = losses(&place, "full", "full");
    let after = evidence(&place);
    // A table may ship for all that this model wants; each choice that was made tells of all its candidates.
    assert!(after["shipped"].as_u64().unwrap() > 0 || !rows(&after).is_empty(), "{after}");
    for row in rows(&after) {
        let candidates = row["candidates"].as_array().unwrap().len();
        assert!(candidates >= 2 && row["winner"].as_u64().unwrap() < candidates as u64, "{row}");
        let seconds = row["seconds"].as_array().unwrap();
        for (i, seconds) in seconds.iter().enumerate() {
            assert!(seconds.as_f64().is_some_and(|s| s > 0.0) || row["notes"][i].is_string(), "{row}");
        }
    }
    let text = stdout(&place.danlu("doctor --tuning").assert().success());
    assert!(text.contains(&format!("{} were made here", rows(&after).len())), "{text}");
    assert!(rows(&after).iter().all(|r| text.contains(r["class"].as_str().unwrap())), "{text}");
    // What was measured stays chosen: the same kernels, so the same bits; nothing is measured again. What a busy machine left
    // no time for may be measured later.
    let is_measured = |row: &&Value| !row["seconds"].as_array().unwrap().is_empty();
    for mode in ["full", "cached"] {
        let again = losses(&place, mode, &format!("{mode}-again"));
        let later = evidence(&place);
        assert!(rows(&after).iter().filter(is_measured).all(|row| rows(&later).contains(row)), "{mode}: {later}");
        if rows(&after).iter().all(|row| is_measured(&row)) {
            assert_eq!((again, rows(&later)), (full.clone(), rows(&after)), "{mode}");
        }
    }
    // Other kernels sum in other orders, and no more than that.
    for other in [&cached, &full] {
        assert!(first.iter().zip(other).all(|(a, b)| (a - b).abs() < 1e-3 * a.abs()), "{first:?} {other:?}");
    }
}

#[test]
fn unknown_modes_are_refused() {
    let said = stderr(&Place::new().danlu("train --tune twice").assert().code(2));
    assert!(said.contains("`twice` is none of off, cached, full"), "{said}");
}
