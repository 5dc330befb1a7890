//! The tuner: what it remembers, what it refuses to believe, and that it keeps to its time; and a benchmark in which a case fails.

mod common;
#[path = "tuner/doubles.rs"]
mod doubles;
#[path = "tuner/proofs.rs"]
mod proofs;

use danlu::base::{AdapterId, Limits, TensorType};
use danlu::bench::{Case, Scope, Settings, measure};
use danlu::compile::{Chooser, settle};
use danlu::error::Error;
use danlu::gpu::Gpu;
use danlu::graph::{Graph, Io, Op};
use danlu::ops::{Attention, AttentionGrad, MatMul};
use danlu::run::{Choice, Choices, Key, Records, TuneMode, Tuner};
use doubles::{Double, Hungry};
use pollster::block_on;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

fn io(op: &dyn Op, inputs: &[TensorType]) -> Io {
    let refs: Vec<&TensorType> = inputs.iter().collect();
    Io { inputs: inputs.to_vec(), outputs: op.infer(&refs).unwrap() }
}

fn choose(tuner: &mut Tuner, op: &(impl Op + Clone), inputs: &[TensorType]) -> String {
    choose_of(tuner, Arc::new(op.clone()), inputs)
}

fn choose_of(tuner: &mut Tuner, op: Arc<dyn Op>, inputs: &[TensorType]) -> String {
    let io = io(&*op, inputs);
    let kernels = op.kernels(&io, gpu().limits());
    let i = block_on(settle(tuner, |chooser| Ok(chooser.choose(&op, &io, &kernels)))).unwrap();
    kernels[i].variant.clone()
}

fn gpu() -> &'static Gpu {
    static GPU: OnceLock<Gpu> = OnceLock::new();
    GPU.get_or_init(common::new_gpu)
}

fn tuner(mode: TuneMode, folder: &Path) -> Tuner {
    Tuner::new(gpu(), mode, Some(folder)).without_table()
}

const SIZE: usize = 1 << 20;

#[test]
fn a_wrong_kernel_is_barred_and_the_choice_is_remembered() {
    let folder = tempfile::tempdir().unwrap();
    let x = [TensorType::f32([SIZE])];
    let mut first = tuner(TuneMode::Full, folder.path());
    assert_eq!(choose(&mut first, &Double, &x), "fast");
    assert_eq!(first.measured(), 1);
    let barred = &first.records().barred;
    assert_eq!(barred.len(), 1);
    assert_eq!(barred[0].id.kernel, "map:wrong");
    assert!(barred[0].reason.contains("was expected"), "{}", barred[0].reason);
    let seconds = first.records().rows[0].seconds.clone();
    assert!(seconds.iter().all(|s| s.is_some_and(|s| s > 0.0)), "{seconds:?}");
    // The same class: sizes between two powers of two.
    assert_eq!(choose(&mut first, &Double, &[TensorType::f32([SIZE - 4])]), "fast");
    assert_eq!(first.measured(), 1);
    drop(first);
    for mode in [TuneMode::Full, TuneMode::Cached] {
        let mut again = tuner(mode, folder.path());
        assert_eq!(choose(&mut again, &Double, &x), "fast");
        assert_eq!((again.measured(), again.spent()), (0, Duration::ZERO));
    }
    // A barred kernel is not timed for other classes either.
    let mut more = tuner(TuneMode::Full, folder.path());
    assert_eq!(choose(&mut more, &Double, &[TensorType::f32([SIZE / 4])]), "fast");
    assert_eq!(more.records().rows[1].seconds[1], None);
    assert_eq!(choose(&mut tuner(TuneMode::Off, folder.path()), &Double, &x), "slow");
    let files: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(files, ["tuning.json"], "nothing half-written is left");
}

/// So small that dispatches are what counts: one of them, wrong, makes three look hopeless.
#[test]
fn a_wrong_kernel_keeps_no_other_out_of_the_race() {
    let mut tuner = Tuner::new(gpu(), TuneMode::Full, None).without_table();
    assert_eq!(choose(&mut tuner, &Double, &[TensorType::f32([1024])]), "fast", "{:?}", tuner.records());
}

#[test]
fn lack_of_memory_bars_no_kernel() {
    let folder = tempfile::tempdir().unwrap();
    let x = [TensorType::f32([SIZE])];
    let mut full = tuner(TuneMode::Full, folder.path());
    // There is none even for what is tried at last.
    assert_eq!(choose(&mut full, &Hungry { enough: 0 }, &x), "slow");
    let records = full.records();
    assert!(records.barred.is_empty() && records.proved.is_empty() && !records.rows[0].is_measured(), "{records:?}");
    assert_eq!(full.measured(), 0);
    drop(full);
    // Others have left a part of it: a smaller version is measured, and that is evidence.
    let mut later = tuner(TuneMode::Full, folder.path()).with_budget(Duration::MAX);
    assert_eq!(choose(&mut later, &Hungry { enough: 4 << 20 }, &x), "fast");
    let (row, barred) = (&later.records().rows[0], &later.records().barred);
    assert!(row.is_measured() && row.seconds.iter().all(Option::is_some), "{row:?}");
    assert!(barred.len() == 1 && barred[0].id.kernel == "map:wrong", "{barred:?}");
}

#[test]
fn a_wrong_kernel_is_not_taken_whoever_says_that_it_is_fast() {
    let x = [TensorType::f32([SIZE])];
    let id = gpu().report().id();
    let measured = {
        let folder = tempfile::tempdir().unwrap();
        let mut tuner = tuner(TuneMode::Full, folder.path());
        choose(&mut tuner, &Double, &x);
        tuner.records().clone()
    };
    assert_eq!(measured.rows[0].key.candidates[1].kernel, "map:wrong");
    let wrong = measured.rows[0].key.candidates[1].clone();
    for mode in [TuneMode::Full, TuneMode::Cached] {
        // A file that has it for the fastest, of this class and of a near one.
        for size in [SIZE, SIZE * 4] {
            let folder = tempfile::tempdir().unwrap();
            let mut lies = Records { barred: Vec::new(), proved: Vec::new(), ..measured.clone() };
            lies.rows[0].winner = 1;
            lies.save(folder.path()).unwrap();
            let mut tuner = tuner(mode, folder.path()).with_budget(Duration::ZERO);
            assert_eq!(choose(&mut tuner, &Double, &[TensorType::f32([size])]), "slow", "{mode:?} {size}");
            assert_eq!(tuner.records().barred[0].id, wrong);
        }
        // Under another driver it was right: that proves nothing here.
        let folder = tempfile::tempdir().unwrap();
        let mut other = Records { barred: Vec::new(), proved: vec![wrong.clone()], ..measured.clone() };
        other.adapter.driver += " of old";
        other.rows[0].winner = 1;
        other.save(folder.path()).unwrap();
        assert_ne!(choose(&mut tuner(mode, folder.path()), &Double, &x), "wrong", "{mode:?}");
        assert!(!Records::load(folder.path(), &id).proved.contains(&wrong));
    }
}

#[test]
fn choosing_waits_for_nothing_and_learning_does() {
    let folder = tempfile::tempdir().unwrap();
    let mut tuner = tuner(TuneMode::Full, folder.path());
    let (op, io): (Arc<dyn Op>, Io) = (Arc::new(Double), io(&Double, &[TensorType::f32([SIZE])]));
    let kernels = op.kernels(&io, gpu().limits());
    for _ in 0..3 {
        assert_eq!(tuner.choose(&op, &io, &kernels), 0);
    }
    assert_eq!((tuner.measured(), tuner.spent()), (0, Duration::ZERO));
    assert!(block_on(tuner.learn()), "another kernel is faster");
    assert_eq!(tuner.measured(), 1, "what was asked three times is measured once");
    assert_eq!(tuner.choose(&op, &io, &kernels), 2);
    assert!(!block_on(tuner.learn()), "there is nothing more to learn");
}

#[test]
fn the_evidence_of_a_choice_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    choose(&mut tuner(TuneMode::Full, folder.path()), &Double, &[TensorType::f32([SIZE])]);
    let id = gpu().report().id();
    let kept = Records::load(folder.path(), &id);
    assert_eq!((&kept.adapter, &kept.build), (&id, &danlu::run::build()));
    let machine = kept.machine.expect("the limits that forecasts rest on");
    assert!(machine.bytes_per_second > 1e8 && machine.workgroups >= 1.0 && !machine.ceilings.is_empty(), "{machine:?}");
    let row = &kept.rows[0];
    assert_eq!((row.seconds.len(), row.forecasts.len(), row.notes.len()), (3, 3, 3));
    for (i, seconds) in row.seconds.iter().enumerate() {
        assert!(row.forecasts[i] > 0.0 && seconds.is_some() != row.notes[i].is_some(), "{row:?}");
    }
}

#[test]
fn a_damaged_file_is_written_anew() {
    let x = [TensorType::f32([SIZE])];
    for damage in ["", "{\"format\":1,\"adapters\":[{\"ada", "{\"format\":99,\"adapters\":[]}", "\u{1}\u{2}"] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tuning.json");
        std::fs::write(&path, damage).unwrap();
        let mut one = tuner(TuneMode::Full, folder.path());
        assert_eq!(choose(&mut one, &Double, &x), "fast");
        one.save().unwrap();
        let mut two = tuner(TuneMode::Full, folder.path());
        assert_eq!(choose(&mut two, &Double, &x), "fast");
        assert_eq!(two.measured(), 0, "{damage:?}");
    }
}

#[test]
fn other_adapters_and_older_builds_stay_apart() {
    let folder = tempfile::tempdir().unwrap();
    let mut other = Records::new(danlu::base::AdapterId { name: "n".into(), driver: "d".into(), backend: "b".into() });
    other.save(folder.path()).unwrap();
    let mut mine = tuner(TuneMode::Full, folder.path());
    choose(&mut mine, &Double, &[TensorType::f32([SIZE])]);
    mine.save().unwrap();
    assert_eq!(Records::load(folder.path(), &other.adapter), other);
    let id = gpu().report().id();
    assert_eq!(Records::load(folder.path(), &id).rows.len(), 1);
    other = Records::load(folder.path(), &id);
    other.build = "0.0.1 of old".into();
    other.save(folder.path()).unwrap();
    assert_eq!(Records::load(folder.path(), &id).rows.len(), 0);
}

#[test]
fn the_budget_holds_and_the_nearest_class_decides() {
    let folder = tempfile::tempdir().unwrap();
    let mut none = tuner(TuneMode::Full, folder.path()).with_budget(Duration::ZERO);
    assert_eq!(choose(&mut none, &Double, &[TensorType::f32([SIZE])]), "slow");
    // It was proved all the same, and nothing else was tried.
    assert_eq!((none.measured(), none.records().proved.len(), none.records().barred.len()), (0, 1, 0));
    drop(none);
    let folder = tempfile::tempdir().unwrap();
    let mut full = tuner(TuneMode::Full, folder.path());
    choose(&mut full, &Double, &[TensorType::f32([SIZE])]);
    let mut spent = full.with_budget(Duration::ZERO);
    assert_eq!(choose(&mut spent, &Double, &[TensorType::f32([SIZE * 2])]), "fast");
    assert_eq!(spent.measured(), 1);
    // What was assumed stays for those that may not measure, so that runs repeat.
    drop(spent);
    let mut cached = tuner(TuneMode::Cached, folder.path());
    assert_eq!(choose(&mut cached, &Double, &[TensorType::f32([SIZE * 2])]), "fast");
    assert_eq!((cached.measured(), cached.spent()), (0, Duration::ZERO));
}

#[test]
fn what_was_assumed_is_measured_by_whoever_has_the_time() {
    let folder = tempfile::tempdir().unwrap();
    let x = [TensorType::f32([SIZE])];
    let mut none = tuner(TuneMode::Full, folder.path()).with_budget(Duration::ZERO);
    assert_eq!(choose(&mut none, &Double, &x), "slow", "nothing is known of anything near");
    assert!(!none.records().rows[0].is_measured());
    drop(none);
    // Still no time: it stays.
    let mut again = tuner(TuneMode::Full, folder.path()).with_budget(Duration::ZERO);
    assert_eq!((choose(&mut again, &Double, &x), again.records().rows.len()), ("slow".into(), 1));
    drop(again);
    let mut later = tuner(TuneMode::Full, folder.path());
    assert_eq!((choose(&mut later, &Double, &x), later.measured()), ("fast".into(), 1));
    drop(later);
    let kept = Records::load(folder.path(), &gpu().report().id()).rows;
    assert!(kept.len() == 1 && kept[0].is_measured(), "in the place of what was assumed: {kept:?}");
    let mut last = tuner(TuneMode::Full, folder.path());
    assert_eq!((choose(&mut last, &Double, &x), last.measured()), ("fast".into(), 0));
}

#[test]
fn two_processes_on_one_folder_lose_nothing_of_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let [x, y, z] = [SIZE, SIZE / 2, SIZE / 4].map(|n| [TensorType::f32([n])]);
    choose(&mut tuner(TuneMode::Full, folder.path()).with_budget(Duration::ZERO), &Double, &x);
    // Both start from what was only assumed. One measures that, and more.
    let mut one = tuner(TuneMode::Full, folder.path()).with_budget(Duration::ZERO);
    let mut two = tuner(TuneMode::Full, folder.path()).with_budget(Duration::MAX);
    assert_eq!((choose(&mut two, &Double, &x), choose(&mut two, &Double, &y)), ("fast".into(), "fast".into()));
    let known = two.records().clone();
    drop(two);
    // The other has something of its own to say, and ends last.
    choose(&mut one, &Double, &z);
    assert!(one.records().barred.is_empty());
    drop(one);
    let kept = Records::load(folder.path(), &gpu().report().id());
    assert_eq!(kept.rows.len(), 3);
    assert!(known.rows.iter().all(|row| row.is_measured() && kept.row(&row.key) == Some(row)), "{kept:?}");
    assert_eq!((&kept.proved, &kept.barred, &kept.machine), (&known.proved, &known.barred, &known.machine));
    assert!(!known.proved.is_empty() && !known.barred.is_empty());
    // Saved again, nothing changes.
    kept.save(folder.path()).unwrap();
    assert_eq!(Records::load(folder.path(), &kept.adapter), kept);
}

/// What the first start had no time to measure, it wrote down with the run: that computes on with the same kernels.
#[test]
fn a_run_that_is_taken_up_keeps_what_was_only_assumed() {
    let folder = tempfile::tempdir().unwrap();
    let (op, io): (Arc<dyn Op>, Io) = (Arc::new(Double), io(&Double, &[TensorType::f32([SIZE])]));
    let kernels = op.kernels(&io, gpu().limits());
    let choose = |tuner: &mut Tuner, known: &[Choice]| {
        let mut choices = Choices::new(known, tuner);
        let taken = block_on(settle(&mut choices, |chooser| Ok(chooser.choose(&op, &io, &kernels)))).unwrap();
        (kernels[taken].variant.clone(), choices.made())
    };
    let (slow, known) = choose(&mut tuner(TuneMode::Full, folder.path()).with_budget(Duration::ZERO), &[]);
    assert_eq!(slow, "slow");
    for measured in [0, 1] {
        let mut tuner = tuner(TuneMode::Full, folder.path());
        assert_eq!(choose(&mut tuner, &known), (slow.clone(), known.clone()), "a choice of the run's");
        assert_eq!((tuner.measured(), tuner.spent()), (0, Duration::ZERO));
        assert_eq!(usize::from(tuner.records().rows[0].is_measured()), measured);
        // Another run measures meanwhile.
        assert_eq!(choose(&mut tuner, &[]).0, "fast");
    }
}

#[test]
fn compiling_counts_apart_and_once() {
    let measure = || {
        let folder = tempfile::tempdir().unwrap();
        let (mut tuner, start) = (tuner(TuneMode::Full, folder.path()).with_budget(Duration::MAX), Instant::now());
        // A header that nothing else in this process has, so that its kernels are not there yet.
        let op = MatMul::new(true, true);
        choose(&mut tuner, &op, &[TensorType::f32([72, 88]), TensorType::f32([56, 72])]);
        assert_eq!(tuner.measured(), 1);
        let (spent, compiled) = (tuner.spent(), tuner.compiled());
        assert!(spent > Duration::ZERO && compiled > Duration::ZERO && spent + compiled <= start.elapsed());
        compiled
    };
    let (first, second) = (measure(), measure());
    assert!(second < first, "{second:?} after {first:?}");
}

#[test]
fn a_later_start_has_half_a_second_for_all_that_was_assumed() {
    let folder = tempfile::tempdir().unwrap();
    let sizes: Vec<_> = (0..12).map(|i| [TensorType::f32([SIZE >> i])]).collect();
    let mut none = tuner(TuneMode::Full, folder.path()).with_budget(Duration::ZERO);
    sizes.iter().for_each(|x| drop(choose(&mut none, &Double, x)));
    drop(none);
    let mut later = tuner(TuneMode::Full, folder.path());
    let mut longest = Duration::ZERO;
    for x in &sizes {
        let total = |tuner: &Tuner| tuner.spent() + tuner.compiled();
        let (before, measured) = (total(&later), later.measured());
        choose(&mut later, &Double, x);
        let took = total(&later) - before;
        // Nothing is begun beyond that time, and something within it.
        assert_eq!(later.measured() > measured, before < Duration::from_millis(500), "{before:?}");
        longest = longest.max(took);
    }
    println!("{:?} and {:?} of compiling, {longest:?} for one at most", later.spent(), later.compiled());
}

#[test]
fn a_folder_that_cannot_be_written_is_an_error_of_save_only() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let mut tuner = tuner(TuneMode::Full, &file.join("cache"));
    assert_eq!(choose(&mut tuner, &Double, &[TensorType::f32([SIZE])]), "fast");
    let error = tuner.save().unwrap_err().to_string();
    assert!(error.starts_with("cannot create"), "{error}");
}

#[test]
fn measuring_a_large_product_is_short() {
    let op = MatMul::linear();
    let mut spent = Duration::MAX;
    // Neighbours may take the processor away at any time: what counts is the best of some tries.
    for _ in 0..5 {
        let folder = tempfile::tempdir().unwrap();
        let mut tuner = tuner(TuneMode::Full, folder.path());
        choose(&mut tuner, &op, &[TensorType::f32([4, 2048, 4096]), TensorType::f32([16_384, 4096])]);
        assert_eq!(tuner.measured(), 1);
        // Each has the budget for itself.
        println!("{:?} and {:?} of compiling, rows {:?}", tuner.spent(), tuner.compiled(), tuner.records().rows);
        spent = spent.min(tuner.spent().max(tuner.compiled()));
        if spent < Duration::from_secs(3) {
            return;
        }
    }
    panic!("{spent:?}");
}

#[test]
fn the_table_that_ships_is_readable_and_covers_products_and_attention() {
    let gpu = gpu();
    if let Some(table) = Records::shipped(&gpu.report().id()) {
        let mut tuner = Tuner::new(gpu, TuneMode::Full, None);
        for (ta, tb) in [(false, false), (false, true), (true, false)] {
            let op = MatMul::new(ta, tb);
            choose(&mut tuner, &op, &[TensorType::f32([576, 576]), TensorType::f32([576, 576])]);
        }
        attention([256, 9, 3, 64]).into_iter().for_each(|(op, inputs)| drop(choose_of(&mut tuner, op, &inputs)));
        let hint = "candidates changed: run `cargo test --release --test tuner write_table -- --ignored`";
        assert!(tuner.measured() == 0 && !table.rows.is_empty(), "{hint}");
    }
}

/// Attention, forward and all of its gradient, of so many tokens, heads of queries and of keys, and their width.
fn attention([t, h, k, c]: [usize; 4]) -> [(Arc<dyn Op>, Vec<TensorType>); 2] {
    let (q, keys) = (TensorType::f32([1, t, h, c]), TensorType::f32([1, t, k, c]));
    let (stats, position) = (TensorType::f32([1, h, t, 2]), TensorType::u32([1]));
    let forward = vec![q.clone(), keys.clone(), keys.clone(), position.clone()];
    let gradient = AttentionGrad { whole: true, ..AttentionGrad::default() };
    let backward = vec![q.clone(), keys.clone(), keys, q, stats, position];
    [(Arc::new(Attention::default()), forward), (Arc::new(gradient), backward)]
}

/// Without the adapters: the candidates in the table are those that they are offered.
#[test]
fn tables_ship_for_the_software_adapters_and_are_of_today() {
    for (name, lanes) in [("llvmpipe (LLVM 19.1.7, 256 bits)", 8), ("SwiftShader Device (Subzero)", 4)] {
        let id = AdapterId { name: name.into(), driver: "any".into(), backend: "vulkan".into() };
        let table = Records::shipped(&id).unwrap_or_else(|| panic!("none for {name}"));
        assert!(table.rows.iter().all(|row| row.winner < row.key.candidates.len()), "{name}");
        let limits = Limits { is_cpu: true, min_subgroup: lanes, max_subgroup: lanes, ..Limits::default() };
        for (ta, tb) in [(false, false), (false, true), (true, false)] {
            let op = MatMul::new(ta, tb);
            let io = io(&op, &[TensorType::f32([576, 576]), TensorType::f32([576, 576])]);
            let key = Key::of(&op, &io, &op.kernels(&io, &limits));
            assert!(table.nearest(&key).is_some(), "{name}: write it anew, as CONTRIBUTING.md says: {key:?}");
        }
        // It has rows of attention where that has passes: lanes that hand nothing on to each other have none.
        for (op, inputs) in attention([256, 9, 3, 64]).into_iter().filter(|_| lanes >= 8) {
            let io = io(&*op, &inputs);
            let key = Key::of(&*op, &io, &op.kernels(&io, &limits));
            assert!(table.nearest(&key).is_some(), "{name}: write it anew, as CONTRIBUTING.md says: {key:?}");
        }
        assert!(Records::shipped(&AdapterId { backend: "gl".into(), ..id }).is_none());
    }
}

#[test]
fn roofline_is_remembered() {
    let folder = tempfile::tempdir().unwrap();
    let start = Instant::now();
    let mut first = tuner(TuneMode::Full, folder.path());
    let measured = block_on(first.roofline(false)).unwrap();
    assert_eq!(
        (first.spent(), first.compiled()),
        (Duration::ZERO, Duration::ZERO),
        "its products have their own budget"
    );
    drop(first);
    println!("{:?}: {measured:?}", start.elapsed());
    assert!(measured.bytes_per_second > 1e8 && measured.flops_per_second > 1e8, "{measured:?}");
    let start = Instant::now();
    assert_eq!(block_on(tuner(TuneMode::Cached, folder.path()).roofline(false)).unwrap(), measured);
    // Measured again, it can only rise; that takes of the time for what else a later start has to measure.
    let mut later = tuner(TuneMode::Full, folder.path());
    let again = block_on(later.roofline(false)).unwrap();
    let spent = later.spent();
    assert!(spent > Duration::ZERO);
    assert_eq!((block_on(later.roofline(false)).unwrap(), later.spent()), (again, spent), "once a process");
    assert!(again.bytes_per_second >= measured.bytes_per_second && again.flops_per_second >= measured.flops_per_second);
    println!("remembered: {:?}", start.elapsed());
}

#[test]
fn a_case_that_fails_is_said_and_the_others_are_measured() {
    let product = |_: &Limits| {
        let mut g = Graph::new();
        let a = g.state("a", TensorType::f32([64, 64]));
        let c = g.apply1(MatMul::new(false, false), &[a, a])?;
        g.output("c", c);
        Ok(g)
    };
    let broken = |_: &Limits| Err(Error::Graph("no such graph".into()));
    let cases = [Case::new("broken", Scope::Whole, broken), Case::new("whole", Scope::Whole, product)];
    let settings = Settings { quick: true, ..Settings::default() };
    let mut tuner = Tuner::new(gpu(), TuneMode::Cached, None);
    let report = block_on(measure(gpu(), &mut tuner, &cases, &settings, &mut |_| ())).unwrap();
    assert_eq!((report.entries.len(), &*report.entries[0].name), (1, "whole"));
    assert!(report.failed.len() == 1 && report.failed[0].contains("broken: "), "{:?}", report.failed);
    assert!(report.to_string().contains("failed: broken: "), "{report}");
}

/// What a file says is what was written, to the last bit of a float: serde_json rounds to the next but one unless told.
#[test]
fn json_keeps_floats_to_the_last_bit() {
    for value in [9318735446.606325_f64, 9318735446.606323, 23410407062.043972, 0.1, 1e-5, f64::MIN_POSITIVE] {
        let text = serde_json::to_string(&value).unwrap();
        assert_eq!(serde_json::from_str::<f64>(&text).unwrap(), value, "{text}");
    }
}

/// Measures the table that ships, for the adapter under test: `cargo test --release --test tuner write_table -- --ignored`.
#[test]
#[ignore = "writes src/run/tuned.json; run it on an otherwise idle machine"]
fn write_table() {
    let id = gpu().report().id();
    let mut tuner = Tuner::new(gpu(), TuneMode::Full, None).without_table().with_budget(Duration::MAX);
    for (ta, tb) in [(false, false), (false, true), (true, false)] {
        let op = MatMul::new(ta, tb);
        for m in [1, 64, 512] {
            for n in [64, 4096] {
                for k in [64, 2048] {
                    let shape = |rows, columns, turned: bool| {
                        TensorType::f32(if turned { [columns, rows] } else { [rows, columns] })
                    };
                    choose(&mut tuner, &op, &[shape(m, k, ta), shape(k, n, tb)]);
                }
            }
        }
    }
    for sizes in
        [[128, 9, 3, 64], [256, 9, 3, 64], [1024, 9, 3, 64], [1024, 9, 9, 64], [128, 4, 4, 32], [256, 4, 4, 32]]
    {
        attention(sizes).into_iter().for_each(|(op, inputs)| drop(choose_of(&mut tuner, op, &inputs)));
    }
    let name = id.name.split(" (").next().unwrap_or_default().to_string();
    let mut records = Records { proved: Vec::new(), ..tuner.records().clone() };
    records.adapter.name = name;
    // A driver writes its version into its device's name.
    records.machine = None;
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/run/tuned.json");
    std::fs::write(path, records.shipped_with()).unwrap();
}
