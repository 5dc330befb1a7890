//! What is answered before anything is loaded, against what a run then takes.

mod common;
#[path = "estimate/meshes.rs"]
mod meshes;

use danlu::base::{Bytes, Limits};
use danlu::bench::{Case, Settings, measure, suite};
use danlu::comm::LocalComm;
use danlu::compile::{BufferKind, First, Plan};
use danlu::estimate::{
    Answer, Asked, Fits, Job, MachineFile, Mesh, Params, Parts, Prices, Rate, Recompute, Setup, Span, Storage, Usage,
    predict, remedy, search,
};
use danlu::model::{DpoConfig, find_config};
use danlu::nn::{BaseDtype, LoraConfig};
use danlu::optim::Shard;
use danlu::run::{Executor, Machine, States, TuneMode, Tuner};
use danlu::train::{
    Event, Precision, Prepared, Recipe, Trainer, World, fill, flops_per_token, optimizer, prepare, run,
};
use pollster::block_on;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

fn job(preset: &str, batch: usize, seq: usize, base: Option<BaseDtype>) -> Job {
    let lora = base.map(|base_dtype| LoraConfig { rank: 4, base_dtype, ..LoraConfig::default() });
    Job {
        config: find_config(preset).unwrap(),
        recipe: Recipe { batch, seq, lora, ..Recipe::default() },
        base: None,
        lengths: 1,
    }
}

/// Bytes of the states whose names begin so.
fn states(plan: &Plan, prefix: &str) -> u64 {
    let of = |kind: &BufferKind| matches!(kind, BufferKind::State(name) if name.starts_with(prefix));
    plan.buffers.iter().filter(|b| of(&b.kind)).map(|b| b.bytes).sum()
}

#[test]
fn bytes_are_those_that_a_run_allocates() {
    let gpu = common::gpu();
    let limits = Limits { memory_bytes: None, ..gpu.limits().clone() };
    let ways =
        [(None, false), (Some(BaseDtype::Keep), false), (Some(BaseDtype::Nf4), false), (Some(BaseDtype::Nf4), true)];
    for (base, pairs) in ways {
        let mut job = job("story-1m", if pairs { 1 } else { 2 }, 64, base);
        job.recipe.dpo = pairs.then(DpoConfig::default);
        let plans = job.plans(&limits, &mut First).unwrap();
        let answer = Answer::of(&job, &plans, None, None).unwrap();
        let mut shared = States::new(&gpu);
        let train = block_on(Executor::new(&gpu, &plans.train, &mut shared)).unwrap();
        let eval = block_on(Executor::new(&gpu, &plans.eval, &mut shared)).unwrap();
        assert_eq!(train.allocated_bytes(), answer.step_bytes, "{base:?}");
        let twice = plans.eval.totals().state_bytes;
        assert_eq!(train.allocated_bytes() + eval.allocated_bytes() - twice, answer.device_bytes, "{base:?}");

        let Usage { weights, gradients, moments, activations, .. } = answer.usage;
        assert_eq!(answer.usage.total(), plans.train.totals().device_bytes(), "{base:?}");
        assert_eq!(
            moments,
            2 * states(&plans.train, "param.") + states(&plans.train, "judge"),
            "{base:?}: both moments of all that is trained"
        );
        assert_eq!(weights + moments, plans.train.totals().state_bytes, "{base:?}");
        // Most is alive in the middle of the step, when not all gradients are begun.
        let page = states(&plans.train, "param.");
        assert!(gradients < page + 64, "{base:?}: {gradients} of {page}");
        // Each layer keeps at least its input, the gate, up and the queries.
        let (rows, c) = (2 * 64, &job.config);
        let least = 4 * rows * c.num_hidden_layers * (2 * c.hidden_size + 2 * c.intermediate_size);
        assert!(base.is_none() || activations > least as u64, "{activations} of {least}");
    }
}

/// Where activations are few, most is alive when the update reads the gradients: all of them.
#[test]
fn gradients_are_as_many_as_parameters() {
    let limits = Limits { max_buffer_bytes: Limits::COUNTABLE_BYTES, ..Limits::default() };
    for accumulate in [1, 4] {
        let mut job = job("story-1m", 1, 4, None);
        job.recipe.accumulate = accumulate;
        let plans = job.plans(&limits, &mut First).unwrap();
        let (usage, page) = (Answer::of(&job, &plans, None, None).unwrap().usage, states(&plans.train, "param."));
        assert!((page..page + 64).contains(&usage.gradients) || accumulate > 1, "{} of {page}", usage.gradients);
        assert!(usage.gradients >= page, "{} of {page}, {accumulate} batches", usage.gradients);
        // Most activations have been used up then; before, each layer's input, gate, up and queries were there.
        let c = &job.config;
        let least = 4 * 4 * c.num_hidden_layers * (2 * c.hidden_size + 2 * c.intermediate_size);
        assert!(usage.most_activations >= least as u64, "{} of {least}", usage.most_activations);
        assert!(usage.activations < usage.most_activations || accumulate > 1, "{}", usage.activations);
        assert!(usage.most_gradients >= usage.gradients);
    }
}

#[test]
fn what_fits_fits_and_one_more_does_not() {
    let limits = Limits { max_buffer_bytes: Limits::COUNTABLE_BYTES, ..Limits::default() };
    for base in [None, Some(BaseDtype::Nf4)] {
        let job = job("story-1m", 1, 64, base);
        let memory = Bytes(40 << 20);
        let fits = Fits::find(&job, &limits, memory, true).unwrap();
        let bytes = |batch, seq, memory| job.sized(batch, seq, memory).bytes(&limits).unwrap();
        assert!(bytes(fits.batch, 64, None) <= memory.0 && bytes(fits.batch + 1, 64, None) > memory.0, "{fits:?}");
        let longest = fits.seq == job.config.max_context();
        assert_eq!(fits.context, longest.then_some(fits.seq), "{fits:?}");
        assert!(bytes(1, fits.seq, None) <= memory.0, "{fits:?}");
        assert!(longest || bytes(1, fits.seq + 64, None) > memory.0, "{fits:?}");
        let (batch, seq) = fits.recomputed.unwrap();
        assert!(batch >= fits.batch && seq >= fits.seq && batch > 0, "{fits:?}");
        assert!(bytes(batch, 64, Some(memory)) <= memory.0 && bytes(1, seq, Some(memory)) <= memory.0, "{fits:?}");
    }
    let much = Fits::find(&job("story-1m", 1, 64, None), &limits, Bytes(80 << 30), false).unwrap();
    assert_eq!((much.seq, much.context), (256, Some(256)), "the model's context binds, and no memory does");
    let nothing = Fits::find(&job("story-1m", 1, 64, None), &limits, Bytes(1 << 20), true).unwrap();
    assert_eq!((nothing.batch, nothing.seq, nothing.recomputed), (0, 0, Some((0, 0))));
}

#[test]
fn runs_cost_their_time() {
    let limits = Limits { max_buffer_bytes: Limits::COUNTABLE_BYTES, ..Limits::default() };
    let job = job("story-1m", 2, 64, None);
    let machine = MachineFile::find("h100").unwrap();
    let plans = job.plans(&limits, &mut First).unwrap();
    let answer = Answer::of(&job, &plans, None, Some(&machine)).unwrap();
    let prices = Prices { per_hour: Some(2.0), watts: Some(500.0) };
    let time = answer.time.clone().unwrap();
    assert!(time.least <= time.step && time.mfu > 0.0 && time.mfu < 1.0, "{time:?}");
    let cost = answer.over(Span::Tokens(1000), prices).cost.unwrap();
    assert_eq!((cost.steps, cost.tokens), (8, 1024));
    let hours = 8.0 * time.step / 3600.0;
    let close = |x: Option<f64>, y: f64| assert!((x.unwrap() - y).abs() < 1e-9 * y, "{x:?} {y}");
    close(Some(cost.seconds), 3600.0 * hours);
    close(cost.money, 2.0 * hours);
    close(cost.energy, 0.5 * hours);
    // What is at work is paid for: two adapters, or one that two ranks share.
    let two = Job { recipe: Recipe { mesh: "data=2".parse().unwrap(), ..job.recipe.clone() }, ..job };
    let plans = two.plans(&limits, &mut First).unwrap();
    for (shared, adapters) in [(false, 2.0), (true, 1.0)] {
        let machine = MachineFile { shared, ..machine.clone() };
        let answer = Answer::of(&two, &plans, None, Some(&machine)).unwrap();
        let hours = adapters * 8.0 * answer.time.clone().unwrap().step / 3600.0;
        let cost = answer.over(Span::Tokens(1000), prices).cost.unwrap();
        close(cost.money, 2.0 * hours);
        close(cost.energy, 0.5 * hours);
    }
}

fn is_close(expected: f64, seconds: f64) -> bool {
    (expected / seconds).ln().abs() <= 1.3f64.ln()
}

/// How often times are taken at most.
const ROUNDS: usize = 8;

/// A machine that learned from one model's kernels knows within 30 % how long another's step takes. Neighbours may take the
/// processor away at any time, which only makes both longer: both are taken again, each at its best, until they say the same.
#[test]
fn time_is_about_what_a_step_takes() {
    let gpu = common::gpu();
    let mut tuner = Tuner::new(&gpu, TuneMode::Off, None);
    let cases = suite(gpu.limits(), true).unwrap();
    let cases: Vec<Case> = cases.into_iter().filter(|c| c.name.starts_with("train small")).collect();
    let settings = Settings { quick: true, ..Settings::default() };
    let job = job("story-1m", 4, 64, None);
    let plans = job.plans(&Limits { memory_bytes: None, ..gpu.limits().clone() }, &mut First).unwrap();
    let mut states = States::new(&gpu);
    let mut executor = block_on(Executor::new(&gpu, &plans.train, &mut states)).unwrap();
    block_on(fill(&job.config, &optimizer(&job.recipe), &mut executor, &mut states)).unwrap();
    let mut seconds = f64::INFINITY;
    let mut best: Option<Machine> = None;
    let mut expected = 0.0;
    for _ in 0..ROUNDS {
        for _ in 0..4 {
            let start = Instant::now();
            block_on(executor.run()).unwrap();
            seconds = seconds.min(start.elapsed().as_secs_f64());
        }
        let report = block_on(measure(&gpu, &mut tuner, &cases, &settings, &mut |_| ())).unwrap();
        let machine = best.map_or(report.machine.clone(), |best| best.best(&report.machine));
        let time =
            Answer::of(&job, &plans, None, Some(&MachineFile::of("here", &machine, None))).unwrap().time.unwrap();
        assert!(time.least <= 1.3 * seconds, "the roofline is {} s, and a step took {seconds} s", time.least);
        (expected, best) = (time.step, Some(machine));
        eprintln!("a step is expected to take {expected:.4} s and took {seconds:.4} s");
        if is_close(expected, seconds) {
            break;
        }
    }
    assert!(is_close(expected, seconds), "a step was expected to take {expected} s and took {seconds} s at best");
    let machine = MachineFile::of("here", &best.unwrap(), None);
    let machine = MachineFile { shared: gpu.limits().is_cpu, ..machine };
    for ranks in [1, 2, 4] {
        ranks_take_about_what_is_expected(gpu.limits(), &machine, ranks);
    }
}

/// The same of steps that ranks share, as threads. docs/scaling.md has the figures of a quiet machine.
fn ranks_take_about_what_is_expected(limits: &Limits, machine: &MachineFile, ranks: usize) {
    let mut job = job("story-1m", 4, 64, None);
    let folder = tempfile::tempdir().unwrap();
    let (mesh, out) = (Mesh { data: ranks, ..Mesh::ONE }, folder.path().join("run"));
    let recipe = Recipe { mesh, out, steps: 24, stories: 300, eval_every: Some(24), val_sequences: 4, ..job.recipe };
    let prepared = prepare(&recipe, &folder.path().join("cache"), &mut |_: &Event| {}).unwrap();
    job = Job { config: prepared.config.clone(), recipe, base: None, lengths: 1 };
    let plans = job.plans(&Limits { memory_bytes: None, ..limits.clone() }, &mut First).unwrap();
    let answer = Answer::of(&job, &plans, None, Some(machine)).unwrap();
    let (sent, expected) = (answer.sent.clone(), answer.time.unwrap().step);
    let parameters: u64 = states(plans.apply.as_ref().unwrap_or(&plans.train), "param.");
    let least = 2 * (ranks as u64 - 1) * parameters / ranks as u64;
    // The table is embedding and output: of all ranks' tokens its rows are summed once more.
    let rows = (4 * 64 * prepared.config.hidden_size * 4) as u64;
    let least = least + 2 * (ranks as u64 - 1) * rows / ranks as u64;
    // Gradients as the textbook has them; beside them a few sums.
    assert!((least..least + 1024).contains(&sent.first().map_or(0, |(_, bytes)| *bytes)), "{sent:?} for {least}");
    let mut seconds = f64::INFINITY;
    for _ in 0..3 {
        seconds = seconds.min(step_of_ranks(&job.recipe, &prepared));
        eprintln!("a step of {ranks} ranks was expected to take {expected:.4} s and took {seconds:.4} s");
        if seconds < 3.0 * expected {
            break;
        }
    }
    assert!((1.0 / 3.0..3.0).contains(&(expected / seconds)), "{ranks} ranks: {expected} and {seconds}");
}

/// Seconds of a step of a run, of those in a row that were least disturbed.
fn step_of_ranks(recipe: &Recipe, prepared: &Prepared) -> f64 {
    let rank = |comm: LocalComm| {
        let world = World::of(Arc::new(comm));
        let gpu = common::gpu();
        let (mut trainer, ..) =
            block_on(Trainer::among(&gpu, recipe, prepared, &mut First, &world, &mut |_| {})).unwrap();
        let mut ends = Vec::new();
        let mut observer = |event: &Event| {
            if matches!(event, Event::Step { .. }) {
                ends.push(Instant::now());
            }
        };
        block_on(run(&gpu, recipe, prepared, &mut trainer, None, &AtomicBool::new(false), &mut observer)).unwrap();
        // Those of the end wait for the last checkpoint.
        let rows = ends[2..ends.len() - 2].windows(5);
        rows.map(|row| (row[4] - row[0]).as_secs_f64() / 4.0).fold(f64::INFINITY, f64::min)
    };
    std::thread::scope(|scope| {
        let start = |comm| scope.spawn(move || rank(comm));
        let threads: Vec<_> = LocalComm::group(recipe.mesh.ranks(), None).into_iter().map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).fold(0.0, f64::max)
    })
}

/// A published figure, and how it was reached.
struct Published {
    machine: &'static str,
    model: &'static str,
    mesh: &'static str,
    /// Sequences of a step, tokens of a sequence, sequences of a micro-batch, stages of a pipeline rank.
    sizes: [usize; 4],
    zero: u8,
    recompute: Recompute,
    products: Rate,
    /// Tokens a second and rank, or Tflop/s a rank of the model's own operations.
    figure: Figure,
    /// How far off the prediction may be.
    bar: f64,
}

enum Figure {
    Tokens(f64),
    Tflops(f64),
}

/// docs/scaling.md names the sources.
const PUBLISHED: [Published; 18] = {
    use Figure::*;
    use Rate::*;
    use Recompute::*;
    const fn row(
        (machine, model): (&'static str, &'static str),
        mesh: &'static str,
        sizes: [usize; 4],
        zero: u8,
        (recompute, products): (Recompute, Rate),
        figure: Figure,
        bar: f64,
    ) -> Published {
        Published { machine, model, mesh, sizes, zero, recompute, products, figure, bar }
    }
    let (b8, b70, b405) = ("llama-3.1-8b", "llama-3.1-70b", "llama-3.1-405b");
    let meta = "h100-500w";
    [
        row((meta, b8), "data=8", [16, 8192, 2, 1], 3, (Selective, F16), Tokens(5762.0), 0.25),
        row((meta, b8), "data=8", [16, 8192, 2, 1], 3, (Selective, F16), Tokens(6667.0), 0.25),
        row((meta, b8), "data=8", [16, 8192, 2, 1], 3, (Selective, F8), Tokens(8532.0), 0.25),
        row((meta, b8), "data=128", [256, 8192, 2, 1], 3, (Selective, F16), Tokens(6514.0), 0.25),
        row((meta, b8), "data=128", [256, 8192, 2, 1], 3, (Selective, F8), Tokens(8380.0), 0.25),
        row((meta, b8), "data=8", [8, 32768, 1, 1], 3, (Full, F8), Tokens(3890.0), 0.25),
        row((meta, b8), "data=4,sequence=2", [4, 65_536, 1, 1], 3, (Full, F8), Tokens(2540.0), 0.25),
        row((meta, b8), "data=2,sequence=4", [2, 131_072, 1, 1], 3, (Full, F8), Tokens(1071.0), 0.6),
        row((meta, b8), "sequence=8", [1, 262_144, 1, 1], 3, (Full, F8), Tokens(548.0), 0.6),
        row((meta, b8), "data=8,tensor=8", [96, 8192, 12, 1], 3, (Selective, F16), Tokens(4378.0), 0.25),
        row((meta, b70), "data=32,tensor=8", [512, 8192, 16, 1], 3, (Full, F16), Tokens(597.3), 0.25),
        row((meta, b70), "data=32,tensor=8", [512, 8192, 16, 1], 3, (Full, F8), Tokens(829.0), 0.25),
        row((meta, b405), "data=8,tensor=8,pipeline=8", [256, 8192, 4, 1], 2, (Full, F8), Tokens(100.0), 0.25),
        row((meta, b405), "data=8,tensor=8,pipeline=8", [256, 8192, 4, 2], 2, (Full, F8), Tokens(128.0), 0.25),
        row(("h200", b8), "data=32", [64, 8192, 2, 1], 3, (Selective, F8), Tokens(10_938.0), 0.25),
        row(("h100", b405), "data=64,tensor=8,pipeline=16", [2048, 8192, 1, 7], 2, (None, F16), Tflops(430.0), 0.25),
        row(("h100", b405), "data=128,tensor=8,pipeline=16", [2048, 8192, 1, 7], 2, (None, F16), Tflops(400.0), 0.25),
        row(("a100", "llama-65b"), "data=256,tensor=8", [2048, 2048, 8, 1], 3, (Selective, F16), Tokens(380.0), 0.25),
    ]
};

#[test]
fn published_figures_are_reproduced() {
    let mut off = Vec::new();
    for p in PUBLISHED {
        let (config, machine) = (find_config(p.model).unwrap(), MachineFile::find(p.machine).unwrap());
        let mesh: Mesh = p.mesh.parse().unwrap();
        let [batch, seq, micro_batch, interleave] = p.sizes;
        let setup = Setup {
            batch,
            seq,
            micro_batch,
            interleave,
            shard: Shard::ALL[p.zero as usize].1,
            recompute: p.recompute,
            storage: Storage::BF16,
            products: p.products,
        };
        let parts = Parts::of(&config, [micro_batch, seq / mesh.sequence, seq], mesh.tensor).unwrap();
        let params = Params::of(&config, mesh);
        let predicted = predict(&config, &parts, &params, mesh, setup, &machine).unwrap();
        let flops = config.train_flops_per_token(seq) as f64;
        let published = match p.figure {
            Figure::Tokens(tokens) => tokens,
            Figure::Tflops(tflops) => tflops * 1e12 / flops,
        };
        let error = predicted.tokens_per_rank / published - 1.0;
        let line = format!(
            "| {} | {} | {mesh} | {batch}×{seq} | {:?} | {:?} | {published:.0} | {:.0} | {:+.0} % | {:.0} GB |",
            p.model,
            p.machine,
            p.recompute,
            p.products,
            predicted.tokens_per_rank,
            error * 100.0,
            predicted.usage.total() as f64 / 1e9
        );
        eprintln!("{line}");
        if error.abs() > p.bar {
            off.push(line);
        }
    }
    assert!(off.is_empty(), "{off:#?}");
}

/// 64 sequences of 4096 tokens, nothing sharded and nothing computed again.
const SETUP: Setup = Setup {
    batch: 64,
    seq: 4096,
    micro_batch: 1,
    interleave: 1,
    shard: Shard::None,
    recompute: Recompute::None,
    storage: Storage::BF16,
    products: Rate::F16,
};

/// The textbook's volumes, of a model whose numbers are small enough to be written down.
#[test]
fn messages_are_those_of_the_textbook() {
    let config = find_config("llama-3.1-8b").unwrap();
    let machine = MachineFile::find("h100").unwrap();
    let setup = SETUP;
    let of = |mesh: &str, setup: Setup| {
        let mesh: Mesh = mesh.parse().unwrap();
        let parts = Parts::of(&config, [1, 4096 / mesh.sequence, 4096], mesh.tensor).unwrap();
        predict(&config, &parts, &Params::of(&config, mesh), mesh, setup, &machine).unwrap()
    };
    let close = |x: f64, y: f64| assert!((x - y).abs() <= 1e-9 * y, "{x} {y}");
    let n = config.parameters() as f64;
    // All-reduce: 2 (n - 1) / n of the gradients; scattered and gathered: as much of gradients and of weights; weights anew
    // twice with each of 8 micro-batches.
    close(of("data=8", setup).messages.data, 2.0 * 7.0 / 8.0 * 4.0 * n);
    close(of("data=8", Setup { shard: Shard::Gradients, ..setup }).messages.data, 7.0 / 8.0 * (4.0 + 2.0) * n);
    close(of("data=8", Setup { shard: Shard::Parameters, ..setup }).messages.data, 7.0 / 8.0 * (4.0 + 16.0 * 2.0) * n);
    // Eight gathers or scatters a layer of what 64 sequences make, 3 of 4 parts of it.
    let wide = 64.0 * 4096.0 * 4096.0 * 2.0;
    close(of("tensor=4", setup).messages.tensor, 32.0 * 8.0 * 3.0 / 4.0 * wide);
    close(of("pipeline=4", setup).messages.pipeline, 2.0 * wide);
    // Keys and values of the own quarter go three hops forward, and with their gradients backward.
    let keys = 64.0 * 1024.0 * 2.0 * 1024.0 * 2.0;
    close(of("sequence=4", setup).messages.sequence, 32.0 * 3.0 * 3.0 * keys);
    let alone = of("data=1", setup).messages;
    assert_eq!((alone.data, alone.tensor, alone.pipeline, alone.expert, alone.sequence), (0.0, 0.0, 0.0, 0.0, 0.0));
    // Moments are a sixty-fourth of what they were, and of weights one layer comes while another works.
    let sharded = of("data=64", Setup { shard: Shard::Parameters, ..setup }).usage;
    let whole = of("data=64", setup).usage;
    assert!(whole.moments.abs_diff(64 * sharded.moments) < 64, "{sharded:?} {whole:?}");
    assert!(sharded.weights < whole.weights / 16, "{sharded:?} {whole:?}");
}

#[test]
fn the_best_mesh_fits_and_nothing_that_fits_is_faster() {
    let config = find_config("mixtral-8x7b").unwrap();
    let machine = MachineFile::find("h200").unwrap();
    let (setup, recipe) = (SETUP, Recipe::default());
    let found = search(&config, &recipe, setup, Asked::default(), 16, &machine).unwrap();
    let best = found.best.unwrap();
    assert!(best.mesh.ranks() == 16 && best.usage.total() <= machine.memory.unwrap().0, "{best:?}");
    let seconds = best.seconds.total();
    assert!(found.losers.iter().all(|l| l.seconds.is_none_or(|s| s >= seconds) && l.mesh != best.mesh));
    assert!(found.losers.iter().any(|l| l.why.contains(" % slower, most of it ")));
    // On ranks with less memory than the state takes of each, meshes are out for that, and the reason says so.
    let small = MachineFile { memory: Some(Bytes(40_000_000_000)), ..machine.clone() };
    let out = search(&config, &recipe, setup, Asked::default(), 16, &small).unwrap().losers;
    assert!(out.iter().any(|l| l.seconds.is_none() && l.why.contains(" GiB at least, ")), "{out:?}");
    let again = Asked { mesh: Some(best.mesh), shard: Some(best.setup.shard), ..Asked::default() };
    assert_eq!(search(&config, &recipe, setup, again, 16, &machine).unwrap().best.unwrap(), best);
    let impossible = Asked { mesh: Some("tensor=3".parse().unwrap()), ..Asked::default() };
    let said = search(&config, &recipe, setup, impossible, 3, &machine).unwrap_err().to_string();
    assert!(said.contains("the mesh has tensor=3, and the model has 32 query heads"), "{said}");
}

/// What is said to fit does: fewer sequences where activations take most, and where parameters do, ways that take less.
#[test]
fn what_does_not_fit_is_told_what_would() {
    let limits = Limits { max_buffer_bytes: Limits::COUNTABLE_BYTES, ..Limits::default() };
    let least = |job: &Job, change: &dyn Fn(&mut Recipe)| {
        let mut job = job.sized(job.recipe.batch, job.recipe.seq, Some(Bytes(1)));
        change(&mut job.recipe);
        job.bytes(&limits).unwrap()
    };
    let of = |job: &Job, memory: u64, model: Option<&str>| {
        let mut job = job.clone();
        job.recipe.model = model.map(Into::into);
        remedy(&job, &limits, Bytes(memory))
    };
    // What is found with one budget is the least of it, and with another it may be a little less.
    let below = |bytes: u64| bytes * 9 / 10;
    let long = job("story-1m", 8, 256, None);
    let (whole, four) = (least(&long, &|_| ()), least(&long, &|r| r.batch = 4));
    assert!(of(&long, whole, None).is_none() && four < below(whole));
    let said = of(&long, below(whole), None).unwrap();
    assert!(said.contains(": --batch 4 --seq 256 as it is"), "{said}");
    assert!(!of(&long, below(four), None).unwrap().contains("--batch 4"));

    // Fewer sequences in the way that takes least, where neither alone is enough: as little as both take fits.
    let small = |r: &mut Recipe| {
        (r.optimizer, r.update) = (danlu::optim::Rule::AdamW8bit, danlu::optim::Update::Layer);
        r.batch = 1;
    };
    let both = least(&long, &small);
    let said = of(&long, both, None).unwrap();
    assert!(said.contains(": --optimizer adamw8bit --update layer --accumulate 1 with --batch 1 --seq 256"), "{said}");

    let short = job("story-1m", 1, 64, None);
    let eight = least(&short, &|r| r.optimizer = danlu::optim::Rule::AdamW8bit);
    let said = of(&short, eight, Some("a model")).unwrap();
    assert!(said.contains(": --optimizer adamw8bit at the sizes asked for; or --lora-rank 16, which"), "{said}");
    // Where that takes too much as well, the next is told.
    let said = of(&short, below(eight), Some("a model")).unwrap();
    assert!(
        said.contains(": --optimizer adamw8bit --update layer --accumulate 1 at the sizes asked for; or"),
        "{said}"
    );
    // Of what keeps copies of weights both together.
    let mut mixed = short.clone();
    mixed.recipe.precision = Precision::Mixed;
    let both = least(&mixed, &|r| {
        r.optimizer = danlu::optim::Rule::AdamW8bit;
        r.weight_copies = false;
    });
    let said = of(&mixed, both, None).unwrap();
    assert!(said.ends_with(": --optimizer adamw8bit --weight-copies false at the sizes asked for"), "{said}");
    let said = of(&short, 1000, Some("a model")).unwrap();
    assert!(said.starts_with("nothing fits 1000 B: one sequence of 64 tokens, --base-dtype nf4, adapters"), "{said}");
    let said = of(&short, 1000, None).unwrap();
    assert!(said.contains("64 tokens, --optimizer adamw8bit --update layer"), "no model, no adapters: {said}");
}

/// A run of adapters computes no gradients of the weights that stay: two passes of three, in a plan as in a run
/// (`train::flops_per_token`), so that the same step in the same time is less of the machine's peak.
#[test]
fn operations_of_adapters_are_those_of_two_passes() {
    let machine = MachineFile::find("h100").unwrap();
    let model = |base: Option<BaseDtype>| {
        let job = job("story-1m", 2, 128, base);
        let limits = Limits { max_buffer_bytes: Limits::COUNTABLE_BYTES, ..Limits::default() };
        let plans = job.plans(&limits, &mut First).unwrap();
        let time = Answer::of(&job, &plans, None, Some(&machine)).unwrap().time.unwrap();
        (time.mfu / time.tokens_per_second, flops_per_token(&job.config, &job.recipe))
    };
    let ((full, told), (adapters, told_of_adapters)) = (model(None), model(Some(BaseDtype::Bf16)));
    assert!((adapters / full * 1.5 - 1.0).abs() < 1e-12, "{adapters} {full}");
    assert_eq!(told_of_adapters * 1.5, told);
}
