//! Measures cases on a device.

use super::suite::names;
use super::{Case, Entry, Report, Scope};
use crate::base::Limits;
use crate::compile::{Chooser, Plan, Step, compile, settle};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::run::{Class, Executor, Machine, Roofline, States, Timing, Tuner};
use std::collections::BTreeMap;
use std::time::Instant;

/// What to measure, and how long.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Less of everything.
    pub quick: bool,
    /// Only what has one of these in its name; without any, everything.
    pub filter: Vec<String>,
}

impl Settings {
    fn wants(&self, name: &str) -> bool {
        self.filter.is_empty() || self.filter.iter().any(|part| name.contains(part.as_str()))
    }

    fn runs(&self) -> usize {
        if self.quick { 3 } else { 5 }
    }
}

/// The limits of a device, measured now: what they were on another day does not count.
///
/// # Errors
/// If the device fails.
pub async fn probe(gpu: &Gpu, tuner: &mut Tuner) -> Result<Machine> {
    let roofline = Roofline::measure(gpu, tuner).await?;
    Machine::measure(gpu, roofline).await?.with_products(gpu).await
}

/// Measures the cases that the settings want; `progress` hears the name of each.
///
/// # Errors
/// If the filter fits nothing, or the device is lost. What is too big for the device is left out; what fails otherwise is
/// said in [`Report::failed`].
pub async fn measure(
    gpu: &Gpu,
    tuner: &mut Tuner,
    cases: &[Case],
    settings: &Settings,
    progress: &mut dyn FnMut(&str),
) -> Result<Report> {
    progress("the device's limits");
    let mut report = Report::new(gpu.report().id(), gpu.has_timestamps(), probe(gpu, tuner).await?);
    report.is_cpu = gpu.limits().is_cpu;
    let mut measured: Vec<(Entry, Work)> = Vec::new();
    for case in cases {
        match measure_case(gpu, tuner, case, settings, progress).await {
            Ok(entries) if entries.is_empty() => continue,
            Ok(entries) => measured.extend(entries),
            Err(e @ Error::Memory { .. }) => report.skipped.push(format!("{}: {e}", case.name)),
            // The device is well: the other cases can still be measured.
            Err(e) if gpu.check().is_ok() => report.failed.push(format!("{}: {e}", case.name)),
            Err(e) => return Err(e),
        }
        // A machine whose neighbours are busy now and then is taken at its best.
        report.machine = report.machine.best(&probe(gpu, tuner).await?);
    }
    if measured.is_empty() && report.skipped.is_empty() && report.failed.is_empty() {
        let (filter, known) = (settings.filter.join(", "), names(cases));
        return Err(Error::Invalid(format!("nothing that is measured has `{filter}` in its name; there are: {known}")));
    }
    // What training reaches: whole steps of any model are then expected to reach it too. Whatever else a machine does only
    // makes kernels slower.
    let timed = measured.iter().filter_map(|(entry, work)| match work {
        Work::Kernel(step) if entry.name.starts_with("train ") => Some((step.as_ref(), entry.seconds.low)),
        _ => None,
    });
    report.machine.learn(timed);
    for (mut entry, work) in measured {
        (entry.limit, entry.predicted) = work.seconds(&report.machine);
        entry.fraction = entry.limit / entry.seconds.median;
        report.entries.push(entry);
    }
    Ok(report)
}

/// What an entry's limits are computed from when the machine is known.
enum Work {
    Kernel(Box<Step>),
    Whole(Plan),
}

impl Work {
    fn seconds(&self, machine: &Machine) -> (f64, f64) {
        match self {
            Work::Kernel(step) => (machine.roofline().step_seconds(step), machine.predicted(step)),
            Work::Whole(plan) => (machine.roofline().seconds(plan), machine.predicted_plan(plan)),
        }
    }
}

async fn measure_case(
    gpu: &Gpu,
    chooser: &mut dyn Chooser,
    case: &Case,
    settings: &Settings,
    progress: &mut dyn FnMut(&str),
) -> Result<Vec<(Entry, Work)>> {
    let limits: &Limits = gpu.limits();
    if case.scope == Scope::Whole && !settings.wants(&case.name) {
        return Ok(Vec::new());
    }
    let graph = case.graph(limits)?;
    let plan = settle(chooser, |chooser| compile(&graph, limits, chooser)).await?;
    let kernels = if case.scope == Scope::Kernels { distinct(&case.name, &plan) } else { Vec::new() };
    let wanted = |(name, index): &(String, usize)| settings.wants(name) && case.wants(&plan.steps[*index]);
    let kernels: Vec<_> = kernels.into_iter().filter(wanted).collect();
    if case.scope == Scope::Kernels && kernels.is_empty() {
        return Ok(Vec::new());
    }
    progress(&case.name);
    let mut states = States::new(gpu);
    let mut executor = Executor::new(gpu, &plan, &mut states).await?;
    case.fill(&graph, &states, &mut executor).await?;
    // Kernels then find in their buffers what the ones before them make.
    executor.run().await?;
    if case.scope == Scope::Whole {
        let seconds = whole(&mut executor, settings).await?;
        return Ok(vec![(run_entry(case, &plan, seconds), Work::Whole(plan))]);
    }
    let mut entries = Vec::new();
    for (name, index) in kernels {
        progress(&name);
        let seconds = executor.time_step(index, settings.runs()).await?;
        let step = &plan.steps[index];
        entries.push((entry(name, step, seconds), Work::Kernel(Box::new(step.clone()))));
    }
    Ok(entries)
}

/// Whole runs, from the inputs on the host to the outputs there, for two seconds.
async fn whole(executor: &mut Executor, settings: &Settings) -> Result<Timing> {
    let mut seconds: Vec<f64> = Vec::new();
    let most = if settings.quick { 5 } else { 30 };
    while seconds.len() < 3 || seconds.len() < most && seconds.iter().sum::<f64>() < 2.0 {
        let start = Instant::now();
        executor.run().await?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    Ok(Timing::of(seconds))
}

fn entry(name: String, step: &Step, seconds: Timing) -> Entry {
    Entry {
        name,
        kernel: format!("{}:{}", step.shader, step.variant),
        class: Class::of(step.shader, &step.constants),
        flops: step.flops,
        bytes: step.bytes,
        dispatches: step.dispatches.len(),
        seconds,
        limit: 0.0,
        predicted: 0.0,
        fraction: 0.0,
        device_bytes: None,
        tokens_per_second: None,
    }
}

fn run_entry(case: &Case, plan: &Plan, seconds: Timing) -> Entry {
    let totals = plan.totals();
    Entry {
        name: case.name.clone(),
        kernel: String::new(),
        class: plan.steps.iter().map(|s| Class::of(s.shader, &s.constants)).max().unwrap_or(Class::F32),
        flops: totals.flops,
        bytes: totals.traffic,
        dispatches: totals.dispatches,
        seconds,
        limit: 0.0,
        predicted: 0.0,
        fraction: 0.0,
        device_bytes: Some(totals.device_bytes()),
        tokens_per_second: Some(case.tokens as f64 / seconds.median),
    }
}

/// The steps of a plan that differ in more than their place, with their names.
pub(super) fn distinct(case: &str, plan: &Plan) -> Vec<(String, usize)> {
    let mut seen = Vec::new();
    let mut names: BTreeMap<String, usize> = BTreeMap::new();
    let mut found = Vec::new();
    for (i, step) in plan.steps.iter().enumerate() {
        let key = (step.op, step.shader, &step.constants, &step.hooks, &step.inputs, &step.outputs);
        if seen.contains(&key) {
            continue;
        }
        seen.push(key);
        let parts = [step.op.to_string(), place(step), sizes(step)];
        let parts: Vec<String> = parts.into_iter().filter(|p| !p.is_empty()).collect();
        let name = format!("{case}: {}", parts.join(" "));
        let count = names.entry(name.clone()).or_default();
        *count += 1;
        found.push((if *count > 1 { format!("{name} #{count}") } else { name }, i));
    }
    found
}

/// Where in the model a step is, without what all names have.
fn place(step: &Step) -> String {
    let path = step.name.replace("layers.0.", "");
    let mut parts: Vec<&str> = path.split('.').filter(|part| *part != step.op && *part != "matmul").collect();
    // What a composite expands to, and what a gradient is made of, repeats its name.
    parts.dedup_by(|b, a| b.strip_prefix(*a).is_some_and(|rest| rest.is_empty() || rest == "_grad"));
    parts.join(".")
}

/// What a step works on: M×N×K of a product and which side is transposed, else the largest operand.
fn sizes(step: &Step) -> String {
    let flag = |name: &str| step.constants.iter().any(|&(n, value)| n == name && value == 1);
    let (Some(a), Some(b)) = (step.inputs.first(), step.inputs.get(1)) else {
        let all = step.inputs.iter().chain(&step.outputs);
        return all.map(ToString::to_string).next().unwrap_or_default();
    };
    if step.op == "matmul" {
        let (c, turned) = (&step.outputs[0].shape, flag("TA"));
        let k = if turned { a.shape.dims()[a.shape.rank() - 2] } else { a.shape.last() };
        let side = |on: bool| if on { 't' } else { 'n' };
        // A that is not f32 as well.
        let packed = [a, b].into_iter().filter(|ty| ty.dtype.is_packed());
        let dtype: String = packed.map(|ty| format!(" {}", ty.dtype)).collect();
        let half = if flag("HALF") { " f16" } else { "" };
        return format!("{}×{}×{k} {}{}{dtype}{half}", c.rows(), c.last(), side(turned), side(flag("TB")));
    }
    let all = step.inputs.iter().chain(&step.outputs);
    all.max_by_key(|ty| ty.bytes()).map(ToString::to_string).unwrap_or_default()
}
