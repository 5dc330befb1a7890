//! What ways to train take by their plans, by kind, and what a run then allocates; and rows of several lengths within a memory.

mod common;

use common::tiny_run;
use danlu::base::{Bytes, Limits};
use danlu::compile::{BufferKind, First};
use danlu::data::DataSources;
use danlu::estimate::{Job, Usage};
use danlu::model::find_config;
use danlu::nn::{BaseDtype, LoraConfig};
use danlu::optim::{Rule, Update};
use danlu::run::{Executor, States};
use danlu::train::{Precision, Recipe, Trainer};
use pollster::block_on;
use std::collections::BTreeSet;

fn job(base: Option<BaseDtype>) -> Job {
    let lora = base.map(|base_dtype| LoraConfig { rank: 4, base_dtype, ..LoraConfig::default() });
    let recipe = Recipe { batch: 2, seq: 32, lora, ..Recipe::default() };
    Job { config: find_config("models/tiny/config.json").unwrap(), recipe, base: None, lengths: 1 }
}

/// By kind, whatever the way to train: what the plan calls weights and moments is what the device holds under those states' names,
/// and the rest is what it allocates beside them.
#[test]
fn bytes_of_every_way_are_those_that_a_run_allocates() {
    let gpu = common::gpu();
    let limits = Limits { memory_bytes: None, ..gpu.limits().clone() };
    let plain = job(None);
    let nf4 = job(Some(BaseDtype::Nf4));
    let way = |change: fn(Recipe) -> Recipe| plain.with(change(plain.recipe.clone()));
    let eight = |recipe| Recipe { optimizer: Rule::AdamW8bit, ..recipe };
    let ways = [
        ("adamw8bit", way(eight)),
        ("muon", way(|recipe| Recipe { optimizer: Rule::Muon, ema: 0.9, ..recipe })),
        ("sgd", way(|recipe| Recipe { optimizer: Rule::Sgd, accumulate: 2, ..recipe })),
        ("by layers", way(|recipe| Recipe { update: Update::Layer, optimizer: Rule::AdamW8bit, ..recipe })),
        ("packed", way(|recipe| Recipe { pack: true, ..recipe })),
        ("mixed", way(|recipe| Recipe { precision: Precision::Mixed, ..recipe })),
        ("qlora, packed and mixed", nf4.with(Recipe { pack: true, precision: Precision::Mixed, ..nf4.recipe.clone() })),
    ];
    for (name, job) in ways {
        let plans = job.plans(&limits, &mut First).unwrap();
        let usage = Usage::of(&plans.train);
        let mut shared = States::new(&gpu);
        let train = block_on(Executor::new(&gpu, &plans.train, &mut shared)).unwrap();
        let written: Vec<&str> = plans.train.written_states().into_iter().map(|(name, _)| name).collect();
        let [mut weights, mut moments, mut sums] = [0; 3];
        for (state, buffer) in plans.train.buffers.iter().filter_map(|b| match &b.kind {
            BufferKind::State(state) => Some((state.as_str(), shared.get(state).unwrap())),
            _ => None,
        }) {
            *match () {
                () if state.starts_with("grad.") => &mut sums,
                () if state.starts_with("param.") || state.starts_with("half.") => &mut weights,
                () if !written.contains(&state) => &mut weights,
                () => &mut moments,
            } += buffer.bytes();
        }
        assert_eq!((usage.weights, usage.moments), (weights, moments), "{name}");
        assert!(weights > 0 && moments > 0, "{name}");
        assert_eq!(usage.total(), train.allocated_bytes(), "{name}");
        let beside = usage.gradients + usage.activations + usage.workspace + usage.gaps + usage.inputs;
        assert_eq!(beside, sums + train.allocated_bytes() - shared.bytes(), "{name}");
        assert!(sums == 0 || usage.gradients >= sums, "{name}");
        let mut all = train.allocated_bytes();
        for plan in [&plans.eval].into_iter().chain(&plans.apply) {
            let before = shared.bytes();
            let beside = block_on(Executor::new(&gpu, plan, &mut shared)).unwrap();
            // Of its states only those that nobody had before are new.
            all += beside.allocated_bytes() - plan.totals().state_bytes + shared.bytes() - before;
        }
        assert_eq!(all, plans.bytes(), "{name}");
    }
}

/// Rows of several lengths have plans of their own, whose inputs count: all of them together keep to the memory.
#[test]
fn rows_of_several_lengths_keep_to_the_memory() {
    let (gpu, folder) = (common::gpu(), tempfile::tempdir().unwrap());
    let line = |i: usize| {
        let answer = "the cat sat on the mat ".repeat(1 + i * i % 7);
        format!("{{\"prompt\": \"say {i}\", \"completion\": \"{answer}\"}}\n")
    };
    let data = folder.path().join("rows.jsonl");
    std::fs::write(&data, (0..300).map(line).collect::<String>()).unwrap();
    let plain = tiny_run::recipe(folder.path(), "rows");
    let data = DataSources(vec![data.to_str().unwrap().parse().unwrap()]);
    let plain = Recipe { data, seq: 64, batch: 4, lengths: 4, ..plain };
    let (prepared, trainer) = tiny_run::begin(&gpu, &plain, folder.path());
    assert!(prepared.loader.lengths().len() > 2, "{:?}", prepared.loader.lengths());
    let whole = trainer.device_bytes();
    let mut kept = 0;
    for percent in (70..100).step_by(3) {
        let memory = Some(Bytes(whole * percent / 100));
        let recipe = Recipe { memory, ..plain.clone() };
        match block_on(Trainer::new(&gpu, &recipe, &prepared, &mut First)) {
            Ok((trainer, ..)) => {
                let bytes = trainer.device_bytes();
                assert!(bytes <= whole * percent / 100, "{bytes} of {whole}, of which {percent} % are allowed");
                kept += 1;
            }
            // There is a least that it takes.
            Err(error) => assert!(error.to_string().starts_with("training takes at least"), "{error}"),
        }
    }
    assert!(kept > 0);
    // Who does not know the rows plans for those that take most.
    let limits = Limits { memory_bytes: None, ..gpu.limits().clone() };
    let seq = *prepared.loader.lengths().last().unwrap();
    let planned = |lengths| {
        let job = Job { config: prepared.config.clone(), recipe: Recipe { seq, ..plain.clone() }, base: None, lengths };
        job.plans(&limits, &mut First).unwrap()
    };
    let (one, four) = (planned(1), planned(4));
    assert!(one.shorter == 0 && four.shorter > 0 && four.bytes() >= one.bytes() + four.shorter);
    assert!((one.bytes()..=four.bytes()).contains(&whole), "{whole} of {} to {}", one.bytes(), four.bytes());
}

/// The least that rows of several lengths take is one figure, whatever is allowed, and is enough.
#[test]
fn the_least_of_rows_of_several_lengths_is_one_figure() {
    let (limits, mut plain) = (Limits { memory_bytes: None, ..Limits::default() }, job(None));
    plain.config.num_hidden_layers = 2;
    let within = |memory| Job { lengths: 2, ..plain.sized(4, 128, memory) }.plans(&limits, &mut First).unwrap();
    let whole = within(None).bytes();
    let refused = |percent: u64| within(Some(Bytes(whole * percent / 100))).check().err().map(|e| e.to_string());
    let said: Vec<String> = [1, 60, 75, 83].into_iter().filter_map(refused).collect();
    let figure =
        |text: &String| text.split(['(', ')']).nth(1).unwrap().strip_suffix(" bytes").unwrap().parse().unwrap();
    let least: BTreeSet<u64> = said.iter().map(figure).collect();
    assert!(said.len() > 3 && least.len() == 1, "{said:#?}");
    let least = *least.first().unwrap();
    let plans = within(Some(Bytes(least)));
    plans.check().unwrap();
    assert!(plans.bytes() <= least && least < whole, "{} of {whole}", plans.bytes());
}
