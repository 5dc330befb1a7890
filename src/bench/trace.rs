//! Recorded runs in Chrome's trace form, which ui.perfetto.dev and chrome://tracing open: a track of the host and one of
//! the device. <https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU>

use crate::run::Run;
use serde_json::{Value, json};

const HOST: u32 = 1;
const DEVICE: u32 = 2;

/// The trace, as JSON text.
pub fn trace_json(adapter: &str, runs: &[Run]) -> String {
    let mut events = vec![
        json!({"ph": "M", "name": "process_name", "pid": 1, "args": {"name": "danlu"}}),
        json!({"ph": "M", "name": "thread_name", "pid": 1, "tid": HOST, "args": {"name": "host"}}),
        json!({"ph": "M", "name": "thread_name", "pid": 1, "tid": DEVICE, "args": {"name": format!("device: {adapter}")}}),
    ];
    let offset = offset(runs);
    let mut free = f64::NEG_INFINITY;
    for (number, run) in runs.iter().enumerate() {
        let args = json!({"run": number, "plan": &*run.plan});
        for span in &run.host {
            events.push(event(HOST, span.doing.name(), span.begin, span.end, args.clone()));
        }
        let offset = if run.device_clock { offset } else { 0.0 };
        let mut steps = Vec::new();
        for span in &run.device {
            // Passes that do not depend on each other may overlap, which a track cannot show.
            let begin = (span.begin + offset).max(free);
            let end = (span.end + offset).max(begin);
            free = end;
            let step = &run.steps[span.step];
            let args = json!({"op": step.op, "kernel": step.kernel, "flops": step.flops, "bytes": step.bytes,
                "dispatches": step.dispatches});
            steps.push((begin, end, event(DEVICE, &step.name, begin, end, args)));
        }
        if let (Some((begin, ..)), Some((_, end, _))) = (steps.first(), steps.last()) {
            events.push(event(DEVICE, &run.plan, *begin, *end, json!({"run": number})));
        }
        events.extend(steps.into_iter().map(|(.., event)| event));
    }
    json!({"displayTimeUnit": "ms", "traceEvents": events}).to_string()
}

/// What to add to the device's time for the host's. A run ends on the device before the host hears of it: of all runs the
/// shortest delay is taken for none.
fn offset(runs: &[Run]) -> f64 {
    let delay = |run: &Run| {
        let end = run.device.iter().map(|s| s.end).fold(f64::NEG_INFINITY, f64::max);
        let heard = run.host.iter().rev().find(|s| s.doing == crate::run::Doing::Wait)?;
        (run.device_clock && end.is_finite()).then_some(heard.end - end)
    };
    runs.iter().filter_map(delay).fold(f64::INFINITY, f64::min)
}

/// A span; the form counts in microseconds.
fn event(track: u32, name: &str, begin: f64, end: f64, args: Value) -> Value {
    json!({"ph": "X", "pid": 1, "tid": track, "name": name, "ts": begin * 1e6, "dur": (end - begin) * 1e6, "args": args})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::Profile;
    use crate::run::{Class, DeviceSpan, Doing, HostSpan, Roofline, StepInfo};

    /// Two runs, the second encoded while the first is under way; the device's clock began long before the host's.
    fn runs() -> Vec<Run> {
        let step = |name: &str, op, flops| StepInfo {
            name: name.into(),
            op,
            kernel: "s:v".into(),
            class: Class::F32,
            flops,
            bytes: 1000,
            dispatches: 1,
        };
        let steps: std::sync::Arc<[StepInfo]> = [step("a", "matmul", 1_000_000), step("b", "map", 10)].into();
        let host = |doing, begin, end| HostSpan { doing, begin, end };
        let device = |step, begin: f64, end: f64| DeviceSpan { step, begin: 5e4 + begin, end: 5e4 + end };
        let run = |host, device| Run { plan: "step".into(), steps: steps.clone(), host, device, device_clock: true };
        vec![
            run(
                vec![host(Doing::Encode, 0.0, 1.0), host(Doing::Submit, 1.0, 1.5), host(Doing::Wait, 3.0, 4.0)],
                vec![device(0, 0.0, 1.0), device(1, 0.5, 2.0)],
            ),
            run(
                vec![host(Doing::Encode, 1.5, 2.5), host(Doing::Submit, 2.5, 3.0), host(Doing::Wait, 4.0, 9.0)],
                vec![device(0, 3.0, 4.0), device(1, 4.0, 4.5)],
            ),
        ]
    }

    /// Spans of one track, in order of their begin, the longer first.
    fn spans(events: &[Value], track: u32) -> Vec<(f64, f64, String)> {
        let of_track = events.iter().filter(|e| e["ph"] == "X" && e["tid"] == track);
        let mut spans: Vec<_> = of_track
            .map(|e| {
                let at = e["ts"].as_f64().unwrap();
                (at, at + e["dur"].as_f64().unwrap(), e["name"].as_str().unwrap().to_string())
            })
            .collect();
        spans.sort_by(|a, b| a.0.total_cmp(&b.0).then(b.1.total_cmp(&a.1)));
        spans
    }

    #[test]
    fn events_nest() {
        let trace: Value = serde_json::from_str(&trace_json("x", &runs())).unwrap();
        let events = trace["traceEvents"].as_array().unwrap();
        for (track, count) in [(HOST, 6), (DEVICE, 6)] {
            let spans = spans(events, track);
            assert_eq!(spans.len(), count);
            let mut open: Vec<f64> = Vec::new();
            for (begin, end, name) in &spans {
                while open.last().is_some_and(|outer| outer <= begin) {
                    open.pop();
                }
                assert!(open.last().is_none_or(|outer| end <= outer), "{name} sticks out: {spans:?}");
                open.push(*end);
            }
        }
        // The first run was heard of at 4 s, 2 s by the device's clock; the second not before 4.5 + 2.
        let device = spans(events, DEVICE);
        assert!((device[0].0 - 2e6).abs() < 1.0 && device[0].2 == "step", "{device:?}");
    }

    #[test]
    fn sums_are_means_of_runs() {
        let roofline = Roofline { bytes_per_second: 1e6, flops_per_second: 1e6, half_flops_per_second: 2e6 };
        let profile = &Profile::of(&runs(), &roofline)[0];
        assert_eq!((profile.runs, profile.plan.as_str()), (2, "step"));
        let rows: Vec<_> = profile.rows.iter().map(|r| (r.op.as_str(), r.steps, r.seconds, r.limit)).collect();
        // Equals stand by their names.
        assert_eq!(rows, [("map", 1, 1.0, 1e-3), ("matmul", 1, 1.0, 1.0)]);
        // The first ends at 2, the second begins at 3.
        assert_eq!((profile.busy, profile.idle, profile.between), (2.0, 0.0, 1.0));
        assert_eq!(profile.host[Doing::Encode as usize].seconds, 1.0);
        assert!(profile.to_string().contains("matmul s:v"), "{profile}");
    }
}
