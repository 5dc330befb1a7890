//! `danlu profile`, and what `danlu plan --measure` and `danlu train --profile` share with it.

use super::text::{self, Watch};
use super::{AdapterArgs, hub, paths};
use crate::base::count;
use crate::bench::{Profile, trace_json};
use crate::compile::{Plan, human_bytes, settle};
use crate::error::Error;
use crate::gpu::Gpu;
use crate::infer::{Options, Sampling};
use crate::model::{ModelConfig, find_config};
use crate::optim::Optimizer;
use crate::run::{Class, Executor, Recorder, Roofline, Run, States, TuneMode, Tuner};
use crate::store::Checkpoint;
use crate::store::atomic::write_file;
use crate::train::{Precision, Recipe, fill, optimizer, train_plan};
use anyhow::Result;
use clap::Args;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Flags of `danlu profile`.
#[derive(Debug, Args)]
pub struct ProfileArgs {
    /// Profile training steps of this preset, config.json, or folder that holds one.
    #[arg(long, value_name = "PRESET|FILE", default_value = "story-1m")]
    config: String,
    /// Sequences of one step.
    #[arg(long, default_value_t = 8)]
    batch: usize,
    /// Tokens of one sequence.
    #[arg(long, default_value_t = 128)]
    seq: usize,
    /// What products of linear layers are computed in.
    #[arg(long, value_name = "f32|mixed", default_value = "f32")]
    precision: Precision,
    /// Training steps to record.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=1000))]
    steps: u64,
    /// Profile generation with this model, and not training: a folder, a GGUF file or a hub name.
    #[arg(long, value_name = "PATH|NAME", requires = "prompt", conflicts_with_all = ["config", "batch", "seq", "precision", "steps"])]
    model: Option<PathBuf>,
    /// What the model reads first.
    #[arg(long, requires = "model", conflicts_with_all = ["config", "batch", "seq", "precision", "steps"], allow_hyphen_values = true)]
    prompt: Option<String>,
    /// Tokens that it then writes.
    #[arg(long, requires = "model", default_value_t = 16, value_parser = clap::value_parser!(u64).range(1..))]
    tokens: u64,
    /// Also write a trace, which ui.perfetto.dev opens.
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    adapter: AdapterArgs,
}

/// What was recorded, and what it is measured by.
pub(super) struct Recorded {
    pub(super) runs: Vec<Run>,
    pub(super) roofline: Roofline,
    /// Seconds of the same without a recorder, and what it was.
    pub(super) undisturbed: (String, f64),
}

/// Records and prints.
pub async fn profile(args: ProfileArgs) -> Result<()> {
    // Bad arguments are refused before a device is opened.
    args.trace.as_deref().map_or(Ok(()), paths::try_file)?;
    let training = match args.model {
        Some(_) => None,
        None => {
            let recipe = Recipe { batch: args.batch, seq: args.seq, precision: args.precision, ..Recipe::default() };
            recipe.check()?;
            Some((recipe, find_config(&args.config)?))
        }
    };
    let checkpoint =
        args.model.as_ref().map(|m| Ok::<_, anyhow::Error>(Checkpoint::open(&hub::resolve(m)?)?)).transpose()?;
    let gpu = Gpu::open(&args.adapter.selector()).await?;
    let mut tuner = Tuner::new(&gpu, TuneMode::Full, Some(&paths::cache()));
    let (recorded, bytes) = match (&training, &checkpoint) {
        (Some((recipe, config)), _) => {
            let optimizer = optimizer(recipe);
            let plan = settle(&mut tuner, |chooser| {
                train_plan(config, args.batch, args.seq, &optimizer, gpu.limits(), chooser)
            })
            .await?;
            let recorded = training_steps(&gpu, &mut tuner, (config, &optimizer), &plan, args.steps).await?;
            (recorded, Some(plan.totals().device_bytes()))
        }
        (None, Some(checkpoint)) => (generation(&gpu, &mut tuner, checkpoint, &args).await?, None),
        (None, None) => unreachable!("training unless there is a model"),
    };
    report(&gpu, &recorded, bytes, args.json)?;
    args.trace.as_deref().map_or(Ok(()), |file| write_trace(&gpu, &recorded.runs, file))
}

/// Runs a plan of training on fresh parameters, as training does: while one step is computed, the next is encoded.
pub(super) async fn training_steps(
    gpu: &Gpu,
    tuner: &mut Tuner,
    (config, optimizer): (&ModelConfig, &Optimizer),
    plan: &Plan,
    steps: u64,
) -> Result<Recorded> {
    let mut roofline = Roofline::measure(gpu, tuner).await?;
    if plan.steps.iter().any(|s| Class::of(s.shader, &s.constants) != Class::F32) {
        roofline = roofline.with_half(gpu, tuner).await?;
    }
    let mut states = States::new(gpu);
    let mut executor = Executor::new(gpu, plan, &mut states).await?;
    fill(config, optimizer, &mut executor, &mut states).await?;
    // The first run also pays for page faults and the driver's lazy work.
    executor.run().await?;
    let start = Instant::now();
    executor.run().await?;
    let undisturbed = ("step".to_string(), start.elapsed().as_secs_f64());
    let recorder = Recorder::default();
    executor.record(Some(&recorder), "train step");
    executor.submit().await?;
    for _ in 1..steps {
        executor.submit().await?;
        executor.outputs().await?;
    }
    executor.outputs().await?;
    Ok(Recorded { runs: recorder.take(), roofline, undisturbed })
}

/// Reads a prompt and writes some tokens, after doing the same once without a recorder.
async fn generation(gpu: &Gpu, tuner: &mut Tuner, checkpoint: &Checkpoint, args: &ProfileArgs) -> Result<Recorded> {
    let roofline = Roofline::measure(gpu, tuner).await?;
    let tokenizer = text::tokenizer(checkpoint)?;
    let prompt = tokenizer.encode_prompt(args.prompt.as_deref().unwrap_or_default())?;
    let wanted = usize::try_from(args.tokens)?;
    let most = checkpoint.config().max_context();
    if prompt.len() > most {
        let message = format!("the prompt has {} and the model holds {most}; shorten it", count(prompt.len(), "token"));
        return Err(Error::Invalid(message).into());
    }
    let context = prompt.len().saturating_add(wanted).min(most);
    let options = Options::from(context);
    options.check_prompt(&prompt, checkpoint.config())?;
    let mut generator = super::generate::load(gpu, checkpoint, options).await?;
    // An end of the text would be the end of the measurement.
    let logit_bias = checkpoint.config().eos_token_ids.iter().map(|&id| (id, -1e9)).collect();
    let greedy = Sampling { temperature: 0.0, logit_bias, ..Sampling::default() };
    // The first runs make what is needed, the second are timed, the third recorded.
    let (mut seconds, mut written) = (0.0, 0);
    let recorder = Recorder::default();
    for round in 0..3 {
        generator.reset();
        generator.record((round == 2).then_some(&recorder));
        let watch = Watch::start();
        written = 0;
        let count_them = |_| {
            written += 1;
            Ok(true)
        };
        generator.generate(&prompt, wanted, &greedy, count_them).await?;
        if round == 1 {
            seconds = watch.seconds();
        }
    }
    let full =
        if written < wanted { format!(", where the context of {context} tokens was full,") } else { String::new() };
    let what = format!("prompt of {} and {written} more{full}", count(prompt.len(), "token"));
    Ok(Recorded { runs: recorder.take(), roofline, undisturbed: (what, seconds) })
}

fn report(gpu: &Gpu, recorded: &Recorded, bytes: Option<u64>, json: bool) -> Result<()> {
    let profiles = Profile::of(&recorded.runs, &recorded.roofline);
    let (what, seconds) = &recorded.undisturbed;
    if json {
        let value = json!({"adapter": gpu.report().id(), "roofline": recorded.roofline, "profiles": profiles,
            "undisturbed": {"what": what, "seconds": seconds}, "device_bytes": bytes});
        say!("{}", serde_json::to_string_pretty(&value)?);
        return Ok(());
    }
    profiles.iter().for_each(|profile| say!("{profile}"));
    say!("without the recorder: one {what} in {seconds:.4} s");
    if let Some(bytes) = bytes {
        say!("on the device: {} ({bytes} bytes)", human_bytes(bytes));
    }
    Ok(())
}

/// Writes the runs in Chrome's form.
pub(super) fn write_trace(gpu: &Gpu, runs: &[Run], file: &Path) -> Result<()> {
    write_file(file, trace_json(&gpu.report().name, runs).as_bytes())?;
    tell!("trace in {}; open it at https://ui.perfetto.dev", file.display());
    Ok(())
}

/// What `danlu train --profile` says at the end: the table, and the trace in the file.
pub(super) fn conclude(gpu: &Gpu, recorder: &Recorder, roofline: &Roofline, file: &Path) -> Result<()> {
    let runs = recorder.take();
    if runs.is_empty() {
        let message = "no step was recorded for --profile: it takes those after the first";
        return Err(Error::Invalid(message.into()).into());
    }
    Profile::of(&runs, roofline).iter().for_each(|profile| tell!("{profile}"));
    write_trace(gpu, &runs, file)
}
