//! What ranks of the data axis share out, each keeping its part: moments, gradients, parameters.

use super::common;
use super::common::ranks::{mesh, prepared, ranks, recipe, train};
use danlu::base::{Axis, Bytes, Limits};
use danlu::bench::measure_hidden;
use danlu::compile::{Binding, BufferKind, BufferSpec, First, Meeting, Phase, Plan, Step};
use danlu::model::{Llama, ModelConfig, find_config};
use danlu::nn::ParamLayout;
use danlu::optim::{Rule, Shard};
use danlu::run::device_bytes;
use danlu::train::{Plans, Precision, Prepared, Recipe, Subject, Trainer, plans};
use pollster::block_on;
use std::collections::{BTreeMap, VecDeque};
use std::path::Path;

/// A model whose layers have pages of their own where ranks share them out.
pub const LAYERS: &str = r#"{"model_type": "llama", "vocab_size": 304, "hidden_size": 16, "intermediate_size": 32,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64,
    "tie_word_embeddings": true}"#;

/// Collectives that are in flight at most.
const IN_FLIGHT: usize = 4;

/// A recipe of that model on three ranks.
fn layers(folder: &Path, name: &str) -> Recipe {
    let recipe = Recipe { steps: 6, eval_every: Some(6), batch: 6, mesh: mesh(3), ..recipe(folder, name) };
    std::fs::write(folder.join("config.json"), LAYERS).unwrap();
    recipe
}

/// Bytes of a plan's states of this kind.
fn bytes_of(plan: &Plan, kind: &str) -> u64 {
    let of_kind = |b: &&BufferSpec| matches!(&b.kind, BufferKind::State(name) if name.starts_with(kind));
    plan.buffers.iter().filter(of_kind).map(|b| b.bytes).sum()
}

/// Each rank keeps one part in N of what is shared out, no more, in its plan and on the device; what it sends is what textbooks
/// allow: of every gradient and of every parameter the (N-1)/N that are others', and where parameters are shared out those of
/// matrices twice. Where nothing depends on the norm, whose sum is made in another order, all numbers are those of ranks that
/// keep everything, to the bit.
#[test]
fn what_is_shared_out_takes_its_part_and_changes_no_number() {
    let folder = tempfile::tempdir().unwrap();
    for rule in [Rule::AdamW, Rule::AdamW8bit, Rule::Sgd] {
        let whole = Recipe { optimizer: rule, clip: 0.0, ..layers(folder.path(), "whole") };
        let all = train(&whole, folder.path());
        let prepared = prepared(&whole, folder.path());
        let plan = |recipe: &Recipe| {
            let plans = plans(&prepared.config, recipe, None, &common::gpu().limits().clone(), &mut First).unwrap();
            (plans.train, plans.apply.unwrap())
        };
        let (plain, plain_apply) = plan(&whole);
        for shard in [Shard::Optimizer, Shard::Gradients, Shard::Parameters] {
            let shared = Recipe { shard, out: folder.path().join(shard.to_string()), ..whole.clone() };
            let own = train(&shared, folder.path());
            for (step, (all, own)) in all.steps.iter().zip(&own.steps).enumerate() {
                assert_eq!(all.0, own.0, "{rule:?}, {shard}: loss of step {step}");
                let [all, own] = [all.1, own.1].map(f32::from_bits);
                assert!((all - own).abs() <= 1e-5 * all, "{rule:?}, {shard}: norm of step {step}: {own}, not {all}");
            }
            for (all, own) in all.updates.iter().flatten().zip(own.updates.iter().map(|own| own.unwrap())) {
                assert!((all - own).abs() <= 1e-5 * all, "{rule:?}, {shard}: an update of norm {own}, not {all}");
            }
            assert!(all.pages == own.pages, "{rule:?}, {shard}: parameters differ");
            let ((batch, apply), layout) = (plan(&shared), layout_of(&shared, &prepared));
            let (pages, padding) = (4 * elements(&layout), 4 * 256 * 3 * layout.pages().len() as u64);
            for (kind, from) in [("param", Shard::Parameters), ("grad", Shard::Gradients), ("adam", Shard::Optimizer)] {
                let (has, had) = (bytes_of(&apply, kind), bytes_of(&plain_apply, kind));
                let most = if shard >= from { (had + padding).div_ceil(3) } else { had + padding };
                assert!(has <= most, "{rule:?}, {shard}: {has} bytes of {kind} where {most} will do");
                assert_eq!(bytes_of(&batch, kind), if kind == "adam" { 0 } else { has });
            }
            let sent = |plan: &Plan| plan.sent()[&Axis::Data].bytes;
            // Gains are gathered once and stay.
            let once = layout.pages().iter().filter(|p| p.groups.iter().all(|(group, _)| !group.decays()));
            let once: u64 = once.map(|page| 4 * page.elements as u64).sum();
            let least = if shard == Shard::Parameters { 3 * pages - once } else { 2 * pages } * 2 / 3;
            let all = sent(&batch) + sent(&apply);
            // And some words of norms and losses.
            assert!((least..least + 64).contains(&all), "{rule:?}, {shard}: {all} bytes sent, {least} must be");
            // Beside what a step takes of its own, never more than two neighbouring pages, and what stays.
            let two =
                layout.pages().windows(2).map(|two| 4 * (two[0].elements + two[1].elements) as u64).max().unwrap();
            let [arena, plain] = [&batch, &plain].map(|plan| plan.totals().arena_bytes);
            let more = if shard == Shard::Parameters { two + once } else { 0 };
            let gradient = 4 * layout.pages().iter().map(|page| page.elements as u64).max().unwrap();
            assert!(arena <= plain + more + 2 * gradient, "{shard}: {arena} bytes where {plain} are a step's own");
        }
    }
}

/// Of a published model, whose plan alone is looked at: with parameters shared out a rank has one part in N of its state, of each
/// page at most what fills it up beside, and while it computes the two neighbouring pages that are there at a time and the gradient of
/// one until it is scattered. The largest page is the table of words.
#[test]
fn smollm2_takes_one_part_in_n_of_its_state_and_a_layer() {
    let config = find_config("smollm2-135m").unwrap();
    let of = |ranks: usize, shard| {
        let recipe = Recipe { batch: ranks, seq: 32, mesh: mesh(ranks), shard, ..Recipe::default() };
        let plans = plans(&config, &recipe, None, &Limits::default(), &mut First).unwrap();
        let layout = Subject::new(&Llama::new(config.clone()), &recipe, None, &Limits::default()).unwrap().layout;
        (plans.train, plans.apply.unwrap(), layout)
    };
    let (plain, plain_apply, _) = of(2, Shard::None);
    let state = |plan: &Plan| ["param", "grad", "adam"].map(|kind| bytes_of(plan, kind)).iter().sum::<u64>();
    let whole = state(&plain_apply);
    assert!(whole > 4 * 4 * 134_000_000, "{whole} bytes are not the whole state");
    for ranks in [2, 4, 8] {
        let (train, apply, layout) = of(ranks, Shard::Parameters);
        let (has, padding) = (state(&apply), 4 * 4 * 256 * layout.pages().len() as u64);
        let least = whole / ranks as u64;
        assert!((least..=least + padding).contains(&has), "{ranks} ranks: {has} bytes of state, {least} are a part");
        let pages: Vec<u64> = layout.pages().iter().map(|page| 4 * page.elements as u64).collect();
        let most = pages.windows(2).map(|two| two[0] + two[1]).max().unwrap() + pages.iter().max().unwrap();
        let more = train.totals().arena_bytes.saturating_sub(plain.totals().arena_bytes);
        println!("{ranks} ranks: {has} bytes of {whole}, and {more} beside a step's own, of {most} at most");
        assert!(more <= most, "{ranks} ranks: {more} bytes beside a step's own where {most} will do");
    }
}

fn layout_of(recipe: &Recipe, prepared: &Prepared) -> ParamLayout {
    Subject::new(&Llama::new(prepared.config.clone()), recipe, None, common::gpu().limits()).unwrap().layout
}

fn elements(layout: &ParamLayout) -> u64 {
    layout.pages().iter().map(|page| page.elements as u64).sum()
}

/// A collective that began has its bytes to itself until it ends, in every plan of ranks: nobody writes what it reads, and
/// nobody touches what it brings. They end in the order in which they began, and none before somebody needs it, or one that began
/// after it, or as many are in flight as may be: so everything that can is computed meanwhile.
#[test]
fn nothing_touches_what_is_in_flight() {
    let folder = tempfile::tempdir().unwrap();
    let whole = layers(folder.path(), "whole");
    let prepared = prepared(&whole, folder.path());
    for (_, shard) in Shard::ALL {
        let recipe = Recipe { shard, ..whole.clone() };
        let plans = plans(&prepared.config, &recipe, None, &common::gpu().limits().clone(), &mut First).unwrap();
        let mut begun = 0;
        for plan in [&plans.train, plans.apply.as_ref().unwrap(), &plans.eval] {
            let (mut flights, mut ended) = (VecDeque::<&Meeting>::new(), Vec::<&Meeting>::new());
            for step in &plan.steps {
                let meeting = step.meeting.as_ref();
                if meeting.is_some_and(|m| m.phase == Phase::End) {
                    let flight = flights.pop_front().unwrap();
                    assert_eq!((&flight.read, &flight.written), (&meeting.unwrap().read, &meeting.unwrap().written));
                    ended.push(flight);
                    continue;
                }
                let touches = |flight: &Meeting| step.bindings().any(|own| touches(own, flight));
                for flight in &flights {
                    assert!(!touches(flight), "{shard}: {} while {flight:?} is in flight", step.name);
                }
                let is_full = meeting.is_some() && ended.len() == 1 && flights.len() + 1 == IN_FLIGHT;
                assert!(ended.last().is_none_or(|last| touches(last) || is_full), "{shard}: {} waits", step.name);
                ended.clear();
                flights.extend(meeting.filter(|m| m.phase == Phase::Begin));
                begun += usize::from(meeting.is_some_and(|m| m.phase == Phase::Begin));
            }
            assert!(flights.is_empty());
            let listed = plan.to_string();
            let begins = |step: &Step| step.meeting.as_ref().is_some_and(|m| m.phase == Phase::Begin);
            assert_eq!(listed.contains("begins "), plan.steps.iter().any(begins), "{listed}");
        }
        assert!(begun > 0, "{shard}: nothing is in flight");
    }
}

/// Whether a step that binds this must wait for a collective.
fn touches(own: &Binding, flight: &Meeting) -> bool {
    let overlaps = |other: &Binding| {
        own.buffer == other.buffer && own.offset < other.offset + other.bytes && other.offset < own.offset + own.bytes
    };
    flight.written.as_ref().is_some_and(overlaps) || own.written && flight.read.as_ref().is_some_and(overlaps)
}

/// The gradient of a table that is embedding and output is summed before any layer goes back, and of it no more in the end than the rows
/// of all ranks' tokens; not where these are a large part of the table, or a step has several batches, which are summed with the last.
#[test]
fn a_table_that_is_both_is_summed_before_the_layers() {
    let folder = tempfile::tempdir().unwrap();
    let one = layers(folder.path(), "tied");
    let config = prepared(&one, folder.path()).config;
    let begun = |recipe: &Recipe, config: &ModelConfig| {
        let plan = plans(config, recipe, None, &common::gpu().limits().clone(), &mut First).unwrap().train;
        let bytes =
            |step: &Step| step.meeting.as_ref().filter(|m| m.phase != Phase::End)?.read.as_ref().map(|b| b.bytes);
        let all: Vec<(usize, u64)> = plan.steps.iter().enumerate().filter_map(|(i, s)| Some((i, bytes(s)?))).collect();
        let back = plan.steps.iter().position(|step| step.name.contains("grad.layers.")).unwrap();
        (all, back)
    };
    let width = 16;
    let [table, rows] = [config.vocab_size, 6 * 12].map(|rows| 4 * rows as u64 * width);
    let (all, back) = begun(&one, &config);
    let places: Vec<usize> = all.iter().filter(|(_, bytes)| *bytes == table).map(|(at, _)| *at).collect();
    assert!(
        places.len() == 1 && places[0] < back,
        "the table is summed at {places:?}, and layers go back from {back} on"
    );
    assert_eq!(all.last().unwrap().1, rows);
    for other in [Recipe { batch: 9, ..one.clone() }, Recipe { accumulate: 2, ..one.clone() }] {
        let (all, _) = begun(&other, &config);
        assert_eq!(all.last().unwrap().1, table, "{} rows, {} batches", other.batch, other.accumulate);
    }
    // Ranks that have some of its words each, to the bit what one of them makes of as many batches, which are summed in the end.
    let of = |name: &str, mesh: &str, batch, accumulate| {
        let mesh = mesh.parse().unwrap();
        let recipe = Recipe { mesh, batch, accumulate, steps: 3, eval_every: Some(3), ..layers(folder.path(), name) };
        std::fs::write(folder.path().join("config.json"), LAYERS.replace("_value_heads\": 1", "_value_heads\": 2"))
            .unwrap();
        recipe
    };
    let (met, plain) = (of("met", "data=2,tensor=2", 2, 1), of("plain", "tensor=2", 1, 2));
    let (all, back) = begun(&met, &prepared(&met, folder.path()).config);
    assert!(
        all.iter().any(|(at, bytes)| *bytes == table / 2 && *at < back),
        "{all:?}, and layers go back from {back} on"
    );
    let [met, plain] = [met, plain].map(|recipe| train(&recipe, folder.path()));
    assert!(met.steps == plain.steps && met.pages == plain.pages, "the table's parts are summed otherwise");
}

/// Ranks talk while their devices compute.
#[test]
fn what_is_hidden_of_the_talk_is_measured() {
    let config = ModelConfig::parse(
        &LAYERS.replace("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 8"),
        Path::new("config.json"),
    );
    let gpus = [common::new_gpu(), common::new_gpu()];
    let hidden = measure_hidden(&gpus, &config.unwrap(), [2, 64], 5).unwrap();
    eprintln!("{hidden}");
    assert!(hidden.talking > 0.0 && hidden.hidden <= hidden.talking);
    // How much depends on what else the machine does; of so small a model it is little.
    assert!(hidden.hidden > 0.0, "{hidden}");
}

/// Sharing out goes with everything else: products in f16, activations that are computed again, several batches, moments of eight
/// bits, an average of the parameters; and what is on the device is what the plan says.
#[test]
fn sharing_out_goes_with_everything() {
    let folder = tempfile::tempdir().unwrap();
    let base = Recipe {
        precision: Precision::Mixed,
        accumulate: 2,
        optimizer: Rule::AdamW8bit,
        ema: 0.9,
        ..layers(folder.path(), "whole")
    };
    let all = train(&base, folder.path());
    let prepared = prepared(&base, folder.path());
    for shard in [Shard::Optimizer, Shard::Gradients, Shard::Parameters] {
        let recipe = Recipe { shard, out: folder.path().join(shard.to_string()), ..base.clone() };
        let limits = common::gpu().limits().clone();
        let first = plans(&prepared.config, &recipe, None, &limits, &mut First).unwrap();
        let bytes = |p: &Plans| device_bytes([&p.train, &p.eval].into_iter().chain(&p.apply), &|_| false);
        let within = |memory| {
            let recipe = Recipe { memory: Some(Bytes(memory)), ..recipe.clone() };
            let fitted = plans(&prepared.config, &recipe, None, &limits, &mut First).unwrap();
            (recipe, fitted)
        };
        // What cannot be is said with the least that can: of that all is kept to the byte.
        let (mut memory, least) = (bytes(&first) - first.train.totals().arena_bytes / 8, within(0).1);
        assert!(least.fit.as_ref().unwrap().check().is_err(), "{shard}: nothing was allowed");
        memory = memory.max(bytes(&least));
        assert!(memory < bytes(&first), "{shard}: nothing can be saved");
        let (recipe, fitted) = within(memory);
        fitted.fit.as_ref().unwrap().check().unwrap();
        assert!(!fitted.fit.as_ref().unwrap().trade.again.is_empty(), "{shard}: nothing is computed again");
        assert!(bytes(&fitted) <= memory, "{shard}: {} bytes where {memory} are allowed", bytes(&fitted));
        let own = train(&recipe, folder.path());
        for (step, (all, own)) in all.steps.iter().zip(&own.steps).enumerate() {
            let [all, own] = [all.0, own.0].map(f32::from_bits);
            // Codes of eight bits turn a rounding into a step of their own, a hundredth of a moment.
            assert!((all - own).abs() <= 1e-3 * all, "{shard}: loss of step {step}: {own}, not {all}");
        }
        assert!((all.validation - own.validation).abs() <= 1e-3 * all.validation, "{shard}: {}", own.validation);
        let allocated = ranks(&recipe, |world| {
            let gpu = common::gpu();
            let (trainer, ..) =
                block_on(Trainer::among(&gpu, &recipe, &prepared, &mut First, world, &mut |_| {})).unwrap();
            (trainer.device_bytes(), trainer.states.bytes())
        });
        let states = |p: &Plans| {
            let of = [&p.train, &p.eval].into_iter().chain(&p.apply).flat_map(|plan| &plan.buffers);
            let named: BTreeMap<String, u64> = of
                .filter_map(|b| match &b.kind {
                    BufferKind::State(name) => Some((name.clone(), b.bytes)),
                    _ => None,
                })
                .collect();
            named.into_values().sum::<u64>()
        };
        assert_eq!(allocated[0].0, bytes(&fitted), "{shard}");
        assert!(allocated.iter().all(|(_, of_states)| *of_states == states(&fitted)), "{shard}: {allocated:?}");
    }
}
