//! Where the time of recorded runs went: by operator and kernel on the device, and by what the host did meanwhile.

use super::report::human_seconds;
use crate::run::{Doing, Roofline, Run};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// An operator's kernel, all its steps together; sums are those of one run.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct ProfileRow {
    /// The operator.
    pub op: String,
    /// Shader and candidate.
    pub kernel: String,
    /// Steps.
    pub steps: usize,
    /// Seconds on the device.
    pub seconds: f64,
    /// Floating-point operations.
    pub flops: u64,
    /// Bytes read and written.
    pub bytes: u64,
    /// Seconds that they take at least.
    pub limit: f64,
}

/// What the host spent on one of its doings in one run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HostRow {
    /// What it did.
    pub doing: Doing,
    /// Seconds.
    pub seconds: f64,
}

/// The mean of several runs of one plan.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Profile {
    /// The plan's name.
    pub plan: String,
    /// Runs that were recorded.
    pub runs: usize,
    /// False where each step was waited for, since the device has no clock.
    pub device_clock: bool,
    /// By operator and kernel, the longest first.
    pub rows: Vec<ProfileRow>,
    /// By the host's doings.
    pub host: Vec<HostRow>,
    /// Seconds that the device worked.
    pub busy: f64,
    /// Seconds within a run, from its first step to its last, in which the device waited for work.
    pub idle: f64,
    /// Seconds that the device waited for such a run, from the end of the one before it, of whatever plan; zero where none was.
    pub between: f64,
}

impl Profile {
    /// One profile for each plan, in order of first appearance.
    pub fn of(runs: &[Run], roofline: &Roofline) -> Vec<Profile> {
        let mut plans: Vec<&str> = Vec::new();
        for run in runs {
            if !plans.contains(&&*run.plan) {
                plans.push(&run.plan);
            }
        }
        let of_plan = |plan: &str| {
            let of_it: Vec<&Run> = runs.iter().filter(|r| &*r.plan == plan).collect();
            let profile = Profile::of_plan(plan, &of_it, roofline);
            let waits =
                runs.windows(2).filter(|pair| &*pair[1].plan == plan && pair[0].device_clock == pair[1].device_clock);
            let waits = waits.map(|pair| (ends(&pair[1]).0 - ends(&pair[0]).1).max(0.0));
            let waits: Vec<f64> = waits.filter(|seconds| seconds.is_finite()).collect();
            Profile { between: waits.iter().sum::<f64>() / waits.len().max(1) as f64, ..profile }
        };
        plans.into_iter().map(of_plan).collect()
    }

    fn of_plan(plan: &str, runs: &[&Run], roofline: &Roofline) -> Profile {
        let mut sums: BTreeMap<(&str, &str), ProfileRow> = BTreeMap::new();
        let (mut busy, mut idle) = (0.0, 0.0);
        let mut host = [0.0; 5];
        let share = 1.0 / runs.len().max(1) as f64;
        for (n, run) in runs.iter().enumerate() {
            for span in &run.device {
                let step = &run.steps[span.step];
                let row = sums.entry((step.op, &step.kernel)).or_default();
                row.seconds += (span.end - span.begin) * share;
                if n == 0 {
                    (row.steps, row.flops, row.bytes) = (row.steps + 1, row.flops + step.flops, row.bytes + step.bytes);
                    row.limit += roofline.cost_seconds(step.class, step.flops, step.bytes);
                }
            }
            busy += run.busy() * share;
            let (begin, end) = ends(run);
            idle += (end - begin - run.busy()).max(0.0) * share;
            for span in &run.host {
                host[span.doing as usize] += (span.end - span.begin) * share;
            }
        }
        let named = |((op, kernel), row): ((&str, &str), ProfileRow)| ProfileRow {
            op: op.into(),
            kernel: kernel.into(),
            ..row
        };
        let mut rows: Vec<ProfileRow> = sums.into_iter().map(named).collect();
        rows.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        Profile {
            plan: plan.to_string(),
            runs: runs.len(),
            device_clock: runs.iter().all(|r| r.device_clock),
            rows,
            host: Doing::ALL.iter().zip(host).map(|(&doing, seconds)| HostRow { doing, seconds }).collect(),
            busy,
            idle,
            between: 0.0,
        }
    }
}

/// When a run's first step begins, and its last one ends.
fn ends(run: &Run) -> (f64, f64) {
    let begin = run.device.iter().map(|s| s.begin).fold(f64::INFINITY, f64::min);
    let end = run.device.iter().map(|s| s.end).fold(f64::NEG_INFINITY, f64::max);
    (begin, end)
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let clock = if self.device_clock { "the device's clock" } else { "the host's clock, each step waited for" };
        writeln!(f, "{}: mean of {} runs by {clock}", self.plan, self.runs)?;
        let name = |r: &ProfileRow| format!("{} {}", r.op, r.kernel);
        let width = self.rows.iter().map(|r| name(r).chars().count()).max().unwrap_or(0).max(16);
        writeln!(
            f,
            "{:<width$} {:>6} {:>10} {:>7} {:>9} {:>8} {:>8}",
            "operator, kernel", "steps", "ms", "share", "GFLOP/s", "GB/s", "of roof"
        )?;
        for r in &self.rows {
            let (ms, share, of_roof) = (r.seconds * 1e3, r.seconds / self.busy * 100.0, r.limit / r.seconds * 100.0);
            let (rate, bandwidth) = (r.flops as f64 / r.seconds / 1e9, r.bytes as f64 / r.seconds / 1e9);
            let name = name(r);
            writeln!(
                f,
                "{name:<width$} {:>6} {ms:>10.3} {share:>5.1} % {rate:>9.2} {bandwidth:>8.2} {of_roof:>6.1} %",
                r.steps
            )?;
        }
        let [busy, idle, between] = [self.busy, self.idle, self.between].map(human_seconds);
        writeln!(f, "device: {busy} at work, {idle} waiting within a run, {between} before it")?;
        let host: Vec<String> =
            self.host.iter().map(|r| format!("{} {}", r.doing.name(), human_seconds(r.seconds))).collect();
        writeln!(f, "host:   {}", host.join(", "))
    }
}
