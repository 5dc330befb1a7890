//! `danlu doctor`: what adapters there are, how fast the chosen one is, whether it computes right, and what would help.

use super::advice::advice;
use super::tuning::Evidence;
use crate::compile::human_bytes;
use crate::gpu::{AdapterReport, Gpu, Selector, list};
use crate::graph::{Io, Kernel};
use crate::ops::table::{Case, table};
use crate::run::{Roofline, TuneMode, Tuner, compile_all, run_kernel};
use crate::shader::assemble;
use serde::Serialize;
use std::io::Write;

/// Parts of the names of features that concern compute shaders.
const MATTERS: [&str; 7] =
    ["SUBGROUP", "TIMESTAMP", "SHADER_F", "SHADER_I", "COOPERATIVE", "PIPELINE_CACHE", "MAPPABLE"];

/// Arguments of `danlu doctor`.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct DoctorArgs {
    /// The adapter to examine, by its number or a part of its name
    #[arg(long, value_name = "NAME|NUMBER")]
    pub adapter: Option<String>,
    /// Test every kernel that could be tuned in, not only the first of each operator: minutes on a CPU
    #[arg(long)]
    pub every: bool,
    /// Only show which kernels were measured on the adapter, which not and why, and which are taken
    #[arg(long, conflicts_with = "every")]
    pub tuning: bool,
    /// Print one JSON object and nothing else
    #[arg(long)]
    pub json: bool,
}

/// What was found.
#[derive(Debug, Serialize)]
struct Report {
    adapters: Vec<AdapterReport>,
    chosen: Option<usize>,
    why: String,
    roofline: Option<Roofline>,
    self_test: Option<SelfTest>,
    advice: Vec<String>,
    ok: bool,
}

/// Kernels of the operators' table on one adapter.
#[derive(Debug, Default, Serialize)]
struct SelfTest {
    rows: usize,
    kernels: usize,
    seconds: f64,
    failures: Vec<String>,
}

/// Examines the adapters and reports to `out`. True if there is an adapter and every kernel that was tested is right on it.
///
/// # Errors
/// If `out` cannot be written, or the device fails on the way.
pub async fn doctor(args: DoctorArgs, out: &mut impl Write) -> anyhow::Result<bool> {
    let adapters = list().await;
    if !args.json && !args.tuning {
        adapters.iter().try_for_each(|a| describe(a, out))?;
    }
    let selector = Selector::from(args.adapter.as_deref().unwrap_or_default());
    if args.tuning {
        let evidence = Evidence::of(&adapters[selector.choose(&adapters)?.0].id());
        match args.json {
            true => writeln!(out, "{}", serde_json::to_string_pretty(&evidence)?)?,
            false => write!(out, "{}", evidence.text().trim_start())?,
        }
        return Ok(true);
    }
    let mut report = Report {
        advice: advice(&adapters, None),
        adapters,
        chosen: None,
        why: String::new(),
        roofline: None,
        self_test: None,
        ok: false,
    };
    match selector.choose(&report.adapters) {
        Ok((number, why)) => {
            (report.chosen, report.why) = (Some(number), why);
            report.advice = advice(&report.adapters, Some(&report.adapters[number]));
            examine(&selector, &mut report, &args, out).await?;
        }
        Err(e) => {
            report.why = e.to_string();
            if !args.json {
                writeln!(out, "{e}")?;
            }
        }
    }
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?;
        return Ok(report.ok);
    }
    if !report.advice.is_empty() {
        writeln!(out, "\nwhat would help:")?;
        report.advice.iter().try_for_each(|a| writeln!(out, "- {a}"))?;
    }
    Ok(report.ok)
}

/// Opens the chosen adapter, measures and tests it.
async fn examine(
    selector: &Selector,
    report: &mut Report,
    args: &DoctorArgs,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let gpu = Gpu::open(selector).await?;
    if !args.json {
        writeln!(out, "\n{}", report.why)?;
    }
    let roofline = Tuner::new(&gpu, TuneMode::Full, None).roofline(false).await?;
    let test = self_test(&gpu, args.every).await?;
    if !args.json {
        let (copy, rate) = (roofline.bytes_per_second / 1e9, roofline.flops_per_second / 1e9);
        writeln!(out, "  copy bandwidth  {copy:.1} GB/s")?;
        writeln!(out, "  matmul rate     {rate:.1} GFLOP/s (f32)")?;
        test.failures.iter().try_for_each(|f| writeln!(out, "  wrong: {f}"))?;
        let right = test.kernels - test.failures.len();
        let (kernels, rows, seconds) = (test.kernels, test.rows, test.seconds);
        writeln!(out, "  self-test       {right} of {kernels} kernels right, {rows} rows, in {seconds:.1} s")?;
    }
    report.ok = test.failures.is_empty();
    (report.roofline, report.self_test) = (Some(roofline), Some(test));
    Ok(())
}

fn describe(a: &AdapterReport, out: &mut impl Write) -> std::io::Result<()> {
    let l = &a.limits;
    // The host's can be asked for what is free, a device's own only for what it has.
    let what = if ["cpu", "integrated"].contains(&a.device_type.as_str()) { "free" } else { "in all" };
    let memory = l.memory_bytes.map_or_else(|| "not known".to_string(), |b| format!("{} {what}", human_bytes(b)));
    writeln!(out, "adapter {}: {}", a.number, a.name)?;
    writeln!(out, "  type       {}, through {}", a.device_type, a.backend)?;
    writeln!(out, "  driver     {}", a.driver_line())?;
    writeln!(out, "  subgroups  {} to {} invocations", l.min_subgroup, l.max_subgroup)?;
    let matrices: Vec<String> = l.cooperative.iter().map(|n| format!("{n}×{n}")).collect();
    let f16 = match (l.has_f16, matrices.is_empty()) {
        (false, _) => "no".to_string(),
        (true, true) => "yes, no cooperative matrices".to_string(),
        (true, false) => format!("yes, cooperative matrices of {}", matrices.join(" and ")),
    };
    writeln!(out, "  f16        {f16}")?;
    writeln!(out, "  memory     {memory}")?;
    writeln!(
        out,
        "  buffers    {} at most, bindings {}, {} in a dispatch, aligned to {}",
        human_bytes(l.max_buffer_bytes),
        human_bytes(l.max_binding_bytes),
        l.max_storage_bindings,
        l.binding_alignment
    )?;
    writeln!(
        out,
        "  workgroups {} in a dimension, {} invocations, {} shared",
        l.max_workgroups,
        l.max_invocations,
        human_bytes(u64::from(l.max_shared_bytes))
    )?;
    // The others are about pictures; --json has them all.
    let matters = |f: &&String| MATTERS.iter().any(|m| f.contains(m));
    let features: Vec<String> = a.features.iter().filter(matters).map(|f| f.to_lowercase()).collect();
    writeln!(out, "  features   {}", features.join(" "))
}

/// Runs the first candidate of every row, which is what runs where nothing was measured, or `every` one, against the row's f64
/// reference. The tuner proves what it takes where there is a choice; where there is none, nobody else does.
async fn self_test(gpu: &Gpu, every: bool) -> anyhow::Result<SelfTest> {
    let start = std::time::Instant::now();
    let mut test = SelfTest::default();
    let mut rows: Vec<(Case, Io, Vec<Kernel>)> = Vec::new();
    for case in table() {
        let io = case.io().map_err(|e| anyhow::anyhow!("{}: {e}", case.label))?;
        let mut kernels = case.op.kernels(&io, gpu.limits());
        kernels.truncate(if every { kernels.len() } else { 1 });
        if !kernels.is_empty() {
            rows.push((case, io, kernels));
        }
    }
    // Compiling is most of the time. What fails here fails again below, where it is reported.
    let kernels = rows.iter().flat_map(|(_, _, kernels)| kernels);
    let sources = kernels.filter_map(|k| assemble(k.shader, &k.constants, &k.hooks).ok());
    compile_all(gpu, &sources.collect::<Vec<_>>());
    for (case, io, kernels) in &rows {
        let inputs = case.draw(1);
        let expected = case.op.reference(&inputs);
        let bar = case.op.tolerance(io);
        test.rows += 1;
        for kernel in kernels {
            test.kernels += 1;
            let checked = match run_kernel(gpu, kernel, io, &inputs, &case.op.writes()).await {
                Ok(got) => got.iter().zip(&expected).try_for_each(|(y, r)| bar.check(y, r)),
                Err(e) => Err(e.to_string()),
            };
            gpu.check()?;
            if let Err(e) = checked {
                test.failures.push(format!("{}, {}:{}: {e}", case.label, kernel.shader, kernel.variant));
            }
        }
    }
    test.seconds = start.elapsed().as_secs_f64();
    Ok(test)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pollster::block_on;

    fn run(args: DoctorArgs) -> (bool, String) {
        let mut out = Vec::new();
        let ok = block_on(doctor(args, &mut out)).unwrap();
        (ok, String::from_utf8(out).unwrap())
    }

    fn adapter() -> Option<String> {
        std::env::var("DANLU_ADAPTER").ok()
    }

    /// One after the other: the second finds in the driver's cache what the first compiled.
    #[test]
    fn kernels_are_right_and_said_to_be() {
        let args = DoctorArgs { adapter: adapter(), ..DoctorArgs::default() };
        let (ok, text) = run(args.clone());
        println!("{text}");
        assert!(ok, "{text}");
        for part in ["adapter 0: ", "  subgroups  ", " was taken: ", "copy bandwidth", "GFLOP/s", "kernels right"] {
            assert!(text.contains(part), "{part}: {text}");
        }

        let (ok, text) = run(DoctorArgs { json: true, ..args });
        let report: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert!(ok && report["ok"] == true);
        assert!(report["roofline"]["flops_per_second"].as_f64().unwrap() > 0.0);
        let (kernels, rows) = (report["self_test"]["kernels"].as_u64(), report["self_test"]["rows"].as_u64());
        assert!(kernels == rows && rows > Some(10), "{kernels:?} {rows:?}");
    }

    #[test]
    fn an_unknown_adapter_is_not_well() {
        let (ok, text) = run(DoctorArgs { adapter: Some("no such adapter".into()), ..DoctorArgs::default() });
        assert!(!ok && text.contains("no adapter fits name `no such adapter`; there are: 0: "), "{text}");
    }
}
