//! `danlu bench`.

#[cfg(feature = "mpi")]
use super::mpi::Process;
use super::mpi::among;
use super::ranks::Patience;
use super::{AdapterArgs, paths};
use crate::bench::{
    CommReport, Hidden, Report, Settings, compare, kept_path, measure, measure_comm, measure_hidden, roofline_svg,
    suite,
};
#[cfg(feature = "mpi")]
use crate::bench::{measure_hidden_among, measure_mpi};
use crate::error::Error;
use crate::gpu::{Gpu, Selector, list};
use crate::model::{ModelConfig, find_config};
use crate::run::{TuneMode, Tuner};
use crate::store::atomic::{create_folder, write_file};
use anyhow::{Result, bail};
use clap::Args;
use indicatif::ProgressBar;
use pollster::block_on;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Steps of which one is told, when it is measured how much is hidden.
const STEPS: usize = 3;

/// Flags of `danlu bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Only what has this in its name, such as `matmul`, `decode q4_0` or `train step`; `comm`: what ranks exchange.
    #[arg(value_name = "NAME")]
    filter: Option<String>,
    /// Smaller shapes and fewer runs: a minute on two cores.
    #[arg(long)]
    quick: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Also draw the roofline there.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Compare with what this folder keeps of the adapter; exit code 1 if something got slower beyond the noise.
    #[arg(long, value_name = "FOLDER")]
    kept: Option<PathBuf>,
    /// Write what was found to the folder of --kept.
    #[arg(long, requires = "kept", conflicts_with = "filter")]
    keep: bool,
    /// Changes up to this part are not worth a word.
    #[arg(long, requires = "kept", value_name = "PART", default_value_t = 0.25, value_parser = part)]
    threshold: f64,
    /// With `comm`: ranks, as threads of this process; under `mpirun` (and built with MPI) its processes are the ranks.
    #[arg(long, value_name = "N", default_value_t = 4, requires = "filter")]
    ranks: usize,
    #[command(flatten)]
    adapter: AdapterArgs,
}

fn part(text: &str) -> Result<f64, String> {
    let value = text.parse().ok().filter(|v: &f64| *v >= 0.0 && v.is_finite());
    value.ok_or_else(|| format!("`{text}` is no number from 0 up, such as 0.25 for a quarter"))
}

/// Measures, prints and compares.
pub async fn bench(args: BenchArgs) -> Result<()> {
    if args.filter.as_deref() == Some("comm") {
        if args.kept.is_some() || args.svg.is_some() {
            bail!(
                "--kept and --svg are of kernels and steps: `danlu bench comm` has no figures that are kept or drawn"
            );
        }
        let Some(report) = comm(&args)? else { return Ok(()) };
        if args.json {
            say!("{}", serde_json::to_string(&report)?);
        } else {
            say!("{report}");
        }
        return Ok(());
    }
    let gpu = Gpu::open(&args.adapter.selector()).await?;
    let kept = args.kept.as_deref().map(|folder| kept_path(folder, &gpu.report().id()));
    // What cannot be read is said before a quarter of an hour is spent.
    let before = match &kept {
        Some(path) if path.exists() => Some(Report::read(path)?),
        _ => None,
    };
    // What is compared with others is measured with the best kernels there are, however long it takes to find them.
    let mut tuner = Tuner::new(&gpu, TuneMode::Full, Some(&paths::cache())).with_budget(Duration::MAX);
    let cases = suite(gpu.limits(), args.quick)?;
    let bar = ProgressBar::new_spinner();
    let mut show = |name: &str| {
        bar.set_message(name.to_string());
        bar.tick();
    };
    let mut settings = Settings { quick: args.quick, filter: args.filter.iter().cloned().collect() };
    let mut report = measure(&gpu, &mut tuner, &cases, &settings, &mut show).await?;
    if let Some(before) = &before {
        // What looks slower is measured once more: a neighbour's minute is no regression.
        settings.filter = compare(before, &report, args.threshold).slower();
        if !settings.filter.is_empty() {
            report.take_better(measure(&gpu, &mut tuner, &cases, &settings, &mut show).await?);
        }
    }
    bar.finish_and_clear();
    if args.json {
        say!("{}", report.to_json());
    } else {
        say!("{report}");
    }
    if let Some(file) = &args.svg {
        write(file, &roofline_svg(&report))?;
    }
    if !report.failed.is_empty() {
        bail!(Error::Invalid(format!(
            "could not be measured, so nothing is kept or compared: {}",
            report.failed.join("; ")
        )));
    }
    if matches!(args.filter.as_deref(), None | Some("train")) {
        // From some of the kernels alone nothing is learned of the others.
        tuner.keep_learned(&report.machine);
    }
    conclude(&args, &report, before.as_ref(), kept.as_deref())
}

/// What ranks exchange, and how much of it they hide: the processes that a launcher started, or threads. Nothing on ranks that are
/// not to speak.
fn comm(args: &BenchArgs) -> Result<Option<CommReport>> {
    among(Patience::default(), |process| match process {
        None => {
            let mut report = measure_comm(args.ranks, args.quick)?;
            report.hidden = told(block_on(hidden(args)));
            Ok(Some(report))
        }
        #[cfg(feature = "mpi")]
        Some(process) => {
            let mut report = measure_mpi(process.mpi(), args.quick)?;
            report.hidden = hidden_among(args, process)?;
            Ok(Some(report).filter(|_| process.rank() == 0))
        }
        #[cfg(not(feature = "mpi"))]
        Some(process) => match *process {},
    })
}

/// The model and the rows of each rank by which what is hidden is measured: SmolLM2's shape, or a small one.
fn measured(args: &BenchArgs) -> Result<(ModelConfig, [usize; 2])> {
    let (model, batch) = if args.quick { ("story-4m", [4, 128]) } else { ("smollm2-135m", [1, 128]) };
    Ok((find_config(model)?, batch))
}

/// What was found, or why it was not.
fn told<T>(found: Result<T>) -> Option<T> {
    found.inspect_err(|error| tell!("how much is hidden was not measured: {error}")).ok()
}

/// How much of the talk of two ranks about gradients their devices hide.
async fn hidden(args: &BenchArgs) -> Result<Hidden> {
    let mut gpus = Vec::new();
    for number in args.adapter.selector().spread(&list().await, 2, true)? {
        gpus.push(Gpu::open(&Selector::Number(number)).await?);
    }
    let (config, batch) = measured(args)?;
    Ok(measure_hidden(&gpus, &config, batch, STEPS)?)
}

/// The same of all processes, each on an adapter of its machine; where one has none, nobody measures.
#[cfg(feature = "mpi")]
fn hidden_among(args: &BenchArgs, process: &Process) -> Result<Option<Hidden>> {
    let open = || -> Result<Gpu> {
        let (place, near) = process.local();
        let numbers = args.adapter.selector().spread(&block_on(list()), near, true)?;
        Ok(block_on(Gpu::open(&Selector::Number(numbers[place])))?)
    };
    let gpu = told(open());
    let world = process.world();
    let (Some(comm), false) = (world.comm().cloned(), world.any(gpu.is_none())?) else { return Ok(None) };
    let (config, batch) = measured(args)?;
    let gpu = gpu.expect("all have one");
    Ok(Some(measure_hidden_among(&gpu, comm, &config, batch, STEPS)?))
}

/// Says what moved, keeps what is to be kept, and fails if something got slower.
fn conclude(args: &BenchArgs, report: &Report, before: Option<&Report>, kept: Option<&Path>) -> Result<()> {
    let Some(path) = kept else { return Ok(()) };
    if args.keep {
        write(path, &report.to_json())?;
        tell!("kept in {}", path.display());
        return Ok(());
    }
    let Some(before) = before else {
        tell!("nothing is kept of this adapter; --keep writes {}", path.display());
        return Ok(());
    };
    let mut comparison = compare(before, report, args.threshold);
    if args.quick || args.filter.is_some() {
        // What nobody asked for is not missed.
        comparison.gone.clear();
    }
    tell!("{}", comparison.to_string().trim_end());
    match comparison.slower().len() {
        0 => Ok(()),
        n => bail!(Error::Invalid(format!(
            "{n} of {} figures got slower; if that is meant, --keep",
            comparison.moves.len()
        ))),
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    if let Some(folder) = path.parent().filter(|f| !f.as_os_str().is_empty()) {
        create_folder(folder)?;
    }
    Ok(write_file(path, text.as_bytes())?)
}
