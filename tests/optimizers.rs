//! Optimizers and what surrounds them: Muon and SGD against PyTorch's goldens, batches that are added up against one large
//! batch, parameters with settings of their own, outliers, averages; and a run that is taken up is the run that never stopped.

mod common;

use common::golden::{Golden, Step, TEN_STEPS, interpret, loss_and_gradients};
use common::spread::Spread;
use common::tiny_run::{self, begin};
use danlu::base::{Array, TensorType};
use danlu::compile::{First, compile};
use danlu::gpu::Gpu;
use danlu::graph::Graph;
use danlu::model::Llama;
use danlu::nn::Group;
use danlu::ops::{AdamW8, Part};
use danlu::optim::{HYPER, JUDGE, KEEP, LossScaling, Optimizer, Rule, Settings, Update};
use danlu::run::{Executor, States, f32s};
use danlu::store::snapshot::Series;
use danlu::train::{
    Event, GroupOptions, Precision, Prepared, Recipe, Resumption, Trainer, optimizer, plans, read_metrics, run,
};
use pollster::block_on;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

fn golden() -> Golden {
    Golden::open("gqa")
}

/// Ten steps of torch.optim.Muon and torch.optim.SGD in float64 (tests/goldens/optimizers.py).
#[test]
fn ten_steps_of_muon_and_sgd() {
    let golden = golden();
    let text = include_str!("goldens/optimizers.json");
    let expected: serde_json::Value = serde_json::from_str(text).unwrap();
    let numbers =
        |row: &serde_json::Value| -> Vec<f64> { row.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect() };
    let batches = golden.batches("adamw.batches");
    for (name, rule, momentum) in [("muon", Rule::Muon, 0.95), ("sgd", Rule::Sgd, 0.0), ("momentum", Rule::Sgd, 0.95)] {
        let optimizer = Optimizer { rule, momentum, nesterov: momentum > 0.0, ..Optimizer::default() };
        let specs = Llama::new(golden.config.clone()).param_specs();
        let layout = optimizer.layout(specs, 8 << 10).unwrap();
        let mut graph = Graph::new();
        let params = layout.declare(&mut graph).unwrap();
        let ids = batches[0].0.ty.clone();
        let (tokens, targets) = (graph.input("tokens", ids.clone()), graph.input("targets", ids));
        let llama = Llama::new(golden.config.clone());
        let loss = llama.loss(&mut graph, &params, tokens, targets, None).unwrap();
        optimizer.train_step(&mut graph, &layout, &params, loss).unwrap();
        let sources = sources(&golden, &layout, &graph);
        let got = Step { graph, params }.train_from(sources, &layout, &TEN_STEPS, &batches, None);
        let row = &expected[name];
        let close = |what: &str, got: &[f64], expected: Vec<f64>| {
            let largest = expected.iter().fold(0.0f64, |m, x| m.max(x.abs()));
            // Ours has f32's hyper-parameters, of which a step rounds a few; the rest is f64 on both sides.
            let bar = 32.0 * f64::from(f32::EPSILON) * largest;
            assert_eq!(got.len(), expected.len());
            let far = got.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(far <= bar, "{name} {what}: {far:e} apart, the bar is {bar:e}");
        };
        close("losses", &got["losses"], numbers(&row["losses"]));
        close("grad_norms", &got["grad_norms"], numbers(&row["grad_norms"]));
        for (param, values) in row["final"].as_object().unwrap() {
            close(param, &got[&format!("final.{param}")], numbers(values));
        }
    }
}

/// Ten steps on a device against bitsandbytes' maps and quantisation (tests/goldens/adamw8.py).
#[test]
fn ten_steps_of_adamw_in_eight_bits() {
    let text = include_str!("goldens/adamw8.json");
    let golden: std::collections::HashMap<String, Vec<f64>> = serde_json::from_str(text).unwrap();
    let f32s_of = |name: &str| -> Vec<f32> { golden[name].iter().map(|&x| x as f32).collect() };
    assert!(
        AdamW8::codes() == [f32s_of("signed"), f32s_of("unsigned")].concat(),
        "the maps are bitsandbytes' to the bit"
    );
    let n = golden["first"].len();
    let parts = vec![Part { end: n, rate: 1.0, decay: 0.1 }];
    let op = AdamW8 { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, start: 0, parts, copied: None };
    let mut g = Graph::new();
    let p = g.state("p", TensorType::f32([n]));
    let (moments, scales) = (g.state("m", AdamW8::codes_type(n)), g.state("s", AdamW8::scales_type(n)));
    let (gradient, told) = (g.input("g", TensorType::f32([n])), g.input("told", TensorType::f32([4])));
    let codes = bytemuck::cast_slice(&AdamW8::codes()).to_vec();
    let codes = g.constant("codes", TensorType::f32([512]), codes);
    g.apply(op, &[p, moments, scales, gradient, codes, told]).unwrap();
    let gpu = common::gpu();
    let mut states = States::new(&gpu);
    let mut run = block_on(Executor::new(&gpu, &compile(&g, gpu.limits(), &mut First).unwrap(), &mut states)).unwrap();
    block_on(states.write("p", 0, bytemuck::cast_slice(&f32s_of("first")))).unwrap();
    for (t, gradient) in (1..).zip(f32s_of("gradients").chunks(n)) {
        run.set("g", gradient).unwrap();
        let correction = |beta: f64| (1.0 / (1.0 - beta.powi(t))) as f32;
        run.set("told", &[0.01, correction(0.9), correction(0.95), 1.0]).unwrap();
        block_on(run.run()).unwrap();
    }
    let read = |name: &str| block_on(states.read(name)).unwrap();
    let words: Vec<u32> = bytemuck::pod_collect_to_vec(&read("m"));
    let byte = |i: usize, at: usize| f64::from((words[i / 2] >> (16 * (i % 2) + 8 * at)) & 255);
    let (m, v): (Vec<f64>, Vec<f64>) = (0..n).map(|i| (byte(i, 0), byte(i, 1))).unzip();
    // A number that lies between two codes goes to either by its last bit: none of these does.
    let differ = |got: &[f64], name: &str| -> Vec<(usize, f64, f64)> {
        let pairs = got.iter().zip(&golden[name]).enumerate();
        pairs.filter(|(_, (a, b))| a != b).map(|(i, (a, b))| (i, *a, *b)).collect()
    };
    let off = [differ(&m, "m"), differ(&v, "v")];
    assert!(off.iter().all(Vec::is_empty), "of {n}: {off:?}");
    let close = |what: &str, got: &[f32], expected: &[f64]| {
        for (i, (a, b)) in got.iter().zip(expected).enumerate() {
            // Ten steps of a dozen roundings each.
            let bar = 120.0 * f64::from(f32::EPSILON) * b.abs().max(0.1);
            assert!((f64::from(*a) - b).abs() <= bar, "{what}[{i}]: {a}, bitsandbytes has {b}");
        }
    };
    close("p", &bytemuck::pod_collect_to_vec(&read("p")), &golden["p"]);
    let scales: Vec<f32> = bytemuck::pod_collect_to_vec(&read("s"));
    let of = |at: usize| scales.iter().skip(at).step_by(2).copied().collect::<Vec<f32>>();
    close("m_max", &of(0), &golden["m_max"]);
    close("v_max", &of(1), &golden["v_max"]);
}

/// The golden's weights in another layout, and zeros for every other state.
fn sources(golden: &Golden, layout: &danlu::nn::ParamLayout, graph: &Graph) -> common::golden::Sources {
    let mut sources = common::golden::Sources::new();
    for node in graph.nodes().iter().filter(|n| matches!(n.kind, danlu::graph::Kind::State)) {
        sources.insert(
            node.name.clone(),
            Array::new(node.outputs[0].clone(), vec![0.0; node.outputs[0].shape.elements()]),
        );
    }
    for (i, page) in pages(golden, layout).iter().enumerate() {
        let data = page.iter().map(|&x| f64::from(x)).collect();
        sources.insert(format!("param.{i}"), Array::new(TensorType::f32([page.len()]), data));
    }
    sources
}

/// The golden's weights in another layout.
fn pages(golden: &Golden, layout: &danlu::nn::ParamLayout) -> Vec<Vec<f32>> {
    let mut pages = layout.zeros();
    for (spec, data) in layout.tensors_mut(&mut pages) {
        data.copy_from_slice(golden.layout.tensor(&golden.pages, &spec.name).unwrap());
    }
    pages
}

/// Gradients of three batches, in which unlike numbers of targets count and of which one has shorter rows, added up on a device:
/// those of the one large batch, within its bars; and so are its loss, its norm and the step that is clipped by it.
#[test]
fn batches_that_are_added_up_are_one_large_batch() {
    let (gpu, golden) = (common::gpu(), golden());
    let large = TensorType::u32([3, 11]);
    let mut tokens: Vec<u32> = Vec::new();
    let mut targets: Vec<u32> = Vec::new();
    for (i, (x, y)) in golden.batches("adamw.batches").iter().take(3).enumerate() {
        tokens.extend(x.data[..11].iter().map(|&t| t as u32));
        // 11, 7 and 2 of them count.
        let counted = [0..11, 0..7, 9..11][i].clone();
        targets.extend(
            y.data[..11]
                .iter()
                .enumerate()
                .map(|(k, &t)| if counted.contains(&k) { t as u32 } else { danlu::ops::IGNORE }),
        );
    }
    let (graph, ..) = loss_and_gradients(&golden, &large, false);
    let array = |ids: &[u32]| Array::new(large.clone(), ids.iter().map(|&t| f64::from(t)).collect());
    let mut feed = golden.states();
    feed.extend([("tokens".to_string(), array(&tokens)), ("targets".to_string(), array(&targets))]);
    let mut spread = Spread::new(|noise| interpret(&graph, &feed, noise));

    let sgd = Optimizer { rule: Rule::Sgd, momentum: 0.0, weight_decay: 0.0, max_norm: 0.5, ..Optimizer::default() };
    let mut results = Vec::new();
    for loss_scaling in [None, Some(LossScaling::default())] {
        let optimizer = Optimizer { loss_scaling, ..sgd.clone() };
        let mut states = States::new(&gpu);
        let mut executor = |seq: usize| {
            let graph = batch_graph(&golden, &optimizer, &TensorType::u32([1, seq]));
            let plan = compile(&graph, gpu.limits(), &mut First).unwrap();
            (seq, block_on(Executor::new(&gpu, &plan, &mut states)).unwrap())
        };
        let mut batches = [executor(11), executor(7)];
        let apply = compile(&optimizer.apply(&golden.layout).unwrap(), gpu.limits(), &mut First).unwrap();
        let mut apply = block_on(Executor::new(&gpu, &apply, &mut states)).unwrap();
        for (i, page) in golden.pages.iter().enumerate() {
            block_on(states.write(&format!("param.{i}"), 0, bytemuck::cast_slice(page))).unwrap();
            // What the step before left is not added to.
            let nan = vec![f32::NAN; page.len()];
            block_on(states.write(&format!("grad.{i}"), 0, bytemuck::cast_slice(&nan))).unwrap();
        }
        let scale = loss_scaling.map_or(1.0, |scaling| scaling.first);
        block_on(states.write(JUDGE, 0, bytemuck::bytes_of(&if scale == 1.0 { 0.0 } else { scale }))).unwrap();
        for i in 0..3 {
            let (seq, batch) = &mut batches[usize::from(i == 1)];
            batch.set("tokens", &tokens[11 * i..][..*seq]).unwrap();
            batch.set("targets", &targets[11 * i..][..*seq]).unwrap();
            batch.set(KEEP, &[f32::from(u8::from(i > 0))]).unwrap();
            block_on(batch.run()).unwrap();
        }
        let read = |name: &str| -> Vec<f32> { bytemuck::pod_collect_to_vec(&block_on(states.read(name)).unwrap()) };
        let all = |name: &str| -> Vec<Vec<f32>> {
            (0..golden.layout.pages().len()).map(|i| read(&format!("{name}.{i}"))).collect()
        };
        let (gradients, weight) = (all("grad"), read("sum.weight")[0]);
        assert!((weight - 20.0 / 1024.0).abs() < 1e-6, "{weight}");
        for (spec, data) in golden.layout.tensors(&gradients) {
            let name = format!("grad.{}", spec.name);
            let got: Vec<f64> = data.iter().map(|&x| f64::from(x) / f64::from(scale) / f64::from(weight)).collect();
            let exact = spread.exact[&name].clone();
            spread.check(&name, &got, &exact, 0.0);
        }
        apply.set(HYPER, &optimizer.hyper(1.0)).unwrap();
        let outputs = block_on(apply.run()).unwrap();
        let exact = spread.exact["loss"].clone();
        spread.check("loss", &[f64::from(f32s(&outputs, "loss")[0])], &exact, 0.0);
        let gradient = |name: &str| &spread.exact[&format!("grad.{name}")];
        let squares = golden.layout.specs().iter().flat_map(|s| gradient(&s.name)).map(|g| g * g).sum::<f64>();
        let norm = f64::from(f32s(&outputs, "grad_norm")[0]);
        assert!((norm / squares.sqrt() - 1.0).abs() < 1e-5 && norm > 1.0, "{norm}, {}", squares.sqrt());
        let after = all("param");
        let step = golden.layout.tensors(&golden.pages).zip(golden.layout.tensors(&after));
        let moved: f64 = step
            .flat_map(|((_, a), (_, b))| a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).collect::<Vec<_>>())
            .sum();
        // Differences of parameters near 1 are known to some 1e-7 each, of some twenty thousand.
        assert!((moved.sqrt() - 0.5).abs() < 1e-4, "the step is clipped: {}", moved.sqrt());
        results.push(after);
    }
    assert!(results[0] == results[1], "a power of two rounds nothing");
    println!("worst {:.3} of its bar, {}", spread.worst.0, spread.worst.1);
}

fn batch_graph(golden: &Golden, optimizer: &Optimizer, ids: &TensorType) -> Graph {
    let mut g = Graph::new();
    let params = golden.layout.declare(&mut g).unwrap();
    let (tokens, targets) = (g.input("tokens", ids.clone()), g.input("targets", ids.clone()));
    let llama = Llama::new(golden.config.clone());
    let parts = llama.loss_and_count(&mut g, &params, tokens, targets, None).unwrap();
    optimizer.accumulate_step(&mut g, &golden.layout, &params, parts, ids.shape.dims()[0]).unwrap();
    g
}

fn recipe(folder: &Path, name: &str) -> Recipe {
    let tiny = tiny_run::recipe(folder, name);
    let mut recipe = Recipe { steps: 6, seq: 24, eval_every: Some(3), ..tiny };
    recipe.checkpoint.every = Some(3);
    recipe
}

fn go(gpu: &Gpu, recipe: &Recipe, (prepared, trainer): &mut (Prepared, Trainer), stop_after: u64) {
    let stop = AtomicBool::new(false);
    let mut hear = |event: &Event| {
        if let Event::Step { step, .. } = event {
            stop.fetch_or(*step >= stop_after, Ordering::Relaxed);
        }
    };
    block_on(run(gpu, recipe, prepared, trainer, None, &stop, &mut hear)).unwrap();
}

/// Every optimizer, with several batches a step and an average of the parameters: taken up from a checkpoint, a run gives the
/// bytes of the one that never stopped; what is written is the average.
#[test]
fn what_is_taken_up_gives_the_same_bytes() {
    let (gpu, folder) = (common::gpu(), tempfile::tempdir().unwrap());
    let own = GroupOptions { params: "embed_tokens.weight".into(), lr: Some(1e-3), weight_decay: Some(0.0) };
    let (step, layer) = (Update::Step, Update::Layer);
    for (rule, accumulate, ema, precision, update) in [
        (Rule::AdamW, 3, 0.9, Precision::Mixed, step),
        (Rule::Muon, 1, 0.0, Precision::F32, step),
        (Rule::Sgd, 2, 0.5, Precision::Mixed, step),
        (Rule::AdamW8bit, 1, 0.0, Precision::F32, step),
        (Rule::AdamW8bit, 1, 0.5, Precision::Mixed, layer),
    ] {
        let of = |name: &str| Recipe {
            optimizer: rule,
            accumulate,
            ema,
            precision,
            update,
            groups: vec![own.clone()],
            ..recipe(folder.path(), &format!("{name}-{rule:?}-{update:?}"))
        };
        let whole = of("whole");
        let mut made = begin(&gpu, &whole, folder.path());
        go(&gpu, &whole, &mut made, u64::MAX);
        assert_eq!(made.1.tokens_per_step(), 48 * u64::from(accumulate));
        assert_eq!(made.1.position().1.step, 6 * u64::from(accumulate), "batches read");
        let weights = |recipe: &Recipe| std::fs::read(recipe.out.join("model.safetensors")).unwrap();
        let (shown, raw) =
            (block_on(made.1.shown.read("param.0")).unwrap(), block_on(made.1.states.read("param.0")).unwrap());
        assert_eq!(shown != raw, ema > 0.0);
        let written = danlu::store::load_folder(&whole.out, &made.0.config, made.1.layout()).unwrap();
        assert!(written == block_on(made.1.pages()).unwrap());

        let broken = of("broken");
        go(&gpu, &broken, &mut begin(&gpu, &broken, folder.path()), 3);
        let resumption = Resumption::find(&broken.out, &mut |text| panic!("{text}")).unwrap();
        assert!((3..6).contains(&resumption.step()), "{}", resumption.step());
        let mut made = begin(&gpu, &resumption.recipe, folder.path());
        block_on(resumption.restore(&mut made.1, &made.0)).unwrap();
        go(&gpu, &resumption.recipe, &mut made, u64::MAX);
        assert!(weights(&broken) == weights(&whole), "{rule:?}");
        let losses = |recipe: &Recipe| -> Vec<_> {
            read_metrics(&recipe.out)
                .unwrap()
                .iter()
                .filter_map(|m| Some((m.step, m.loss?.to_bits(), m.tokens?.to_bits())))
                .collect()
        };
        assert_eq!(losses(&broken), losses(&whole));
        // Sums of gradients are of no use between steps, and copies follow from the parameters.
        let (_, newest) = Series::of(&broken.out).list().pop().unwrap();
        let snapshot = danlu::store::snapshot::Snapshot::open(&newest).unwrap();
        assert!(
            snapshot.manifest().states.iter().all(|s| !["grad.", "half."].iter().any(|name| s.name.starts_with(name))),
            "{:?}",
            snapshot.manifest().states
        );
    }
}

/// A step whose gradient is far larger than those before it changes nothing but the count, and the next goes on; too many of
/// them in a row lead back to a checkpoint.
#[test]
fn outliers_are_left_out_and_counted() {
    let (gpu, folder) = (common::gpu(), tempfile::tempdir().unwrap());
    let mut recipe = recipe(folder.path(), "outliers");
    recipe.recovery.outlier = 4.0;
    let (_, mut trainer) = begin(&gpu, &recipe, folder.path());
    let step = |trainer: &mut Trainer| {
        block_on(trainer.submit()).unwrap();
        block_on(trainer.result()).unwrap()
    };
    let judge = |trainer: &Trainer| -> Vec<f32> {
        bytemuck::pod_collect_to_vec(&block_on(trainer.states.read(JUDGE)).unwrap())
    };
    let all =
        |trainer: &Trainer| ["param.0", "adam_m.0", "adam_v.0"].map(|s| block_on(trainer.states.read(s)).unwrap());
    let first = step(&mut trainer);
    assert!(!first.left_out && first.skipped == 0 && first.loss_scale.is_none());
    // As if fifty steps of a tenth of this norm had counted.
    let state = [0.0, 0.0, 0.0, 0.5, 0.5, 4.0 * first.grad_norm, 40.0, 0.0];
    block_on(trainer.states.write(JUDGE, 0, bytemuck::cast_slice(&state))).unwrap();
    let before = all(&trainer);
    let result = step(&mut trainer);
    assert!(result.left_out && result.skipped == 1 && result.loss.is_finite() && result.grad_norm.is_finite());
    assert_eq!(result.update_norm, Some(0.0));
    assert!(all(&trainer) == before, "parameters or moments moved");
    assert_eq!(judge(&trainer)[3..7], state[3..7]);
    // With a mean of the usual size it counts again.
    let state = [0.0, 0.0, 1.0, 0.5, 0.5, 40.0 * first.grad_norm, 40.0, 1.0];
    block_on(trainer.states.write(JUDGE, 0, bytemuck::cast_slice(&state))).unwrap();
    let result = step(&mut trainer);
    assert!(!result.left_out && result.skipped == 1 && all(&trainer) != before);
}

/// The norm of an update is how far the parameters moved: whatever the rule, of one batch or two, all at once or by layers, of
/// adapters, strict or mixed.
#[test]
fn update_norms_are_how_far_parameters_moved() {
    let (gpu, folder) = (common::gpu(), tempfile::tempdir().unwrap());
    let plain = recipe(folder.path(), "moved");
    let of = |optimizer: Rule| Recipe { optimizer, ..plain.clone() };
    let layer = Recipe { update: Update::Layer, ..of(Rule::AdamW8bit) };
    let mixed = Recipe { precision: Precision::Mixed, accumulate: 2, ..of(Rule::AdamW) };
    for recipe in [mixed, layer, of(Rule::AdamW8bit), of(Rule::Muon), of(Rule::Sgd)] {
        let (_, mut trainer) = begin(&gpu, &recipe, folder.path());
        let mut before = block_on(trainer.pages()).unwrap();
        for step in 0..3 {
            block_on(trainer.submit()).unwrap();
            let norm = f64::from(block_on(trainer.result()).unwrap().update_norm.unwrap());
            let after = block_on(trainer.pages()).unwrap();
            let elements = || before.iter().flatten().zip(after.iter().flatten());
            let moved = elements().map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum::<f64>().sqrt();
            // Differences are exact or rounded once; what a root takes of sums of so many squares is half their error.
            let bar = 8.0 * f64::from(f32::EPSILON) * (elements().count() as f64).sqrt() * moved;
            let what = (recipe.optimizer, recipe.update, recipe.accumulate);
            assert!(moved > 0.0 && (norm - moved).abs() <= bar, "{what:?}, step {step}: {norm}, moved {moved}");
            before = after;
        }
    }
}

/// Settings reach the parameters that they name and no others, and a name that none has is an error.
#[test]
fn groups_have_rates_of_their_own() {
    let (gpu, folder) = (common::gpu(), tempfile::tempdir().unwrap());
    let still = GroupOptions { params: "model.layers.1.mlp*".into(), lr: Some(0.0), weight_decay: None };
    let recipe = Recipe { groups: vec![still], ..recipe(folder.path(), "groups") };
    let (_, mut trainer) = begin(&gpu, &recipe, folder.path());
    let fresh = trainer.layout().init(recipe.seed);
    block_on(trainer.submit()).unwrap();
    block_on(trainer.result()).unwrap();
    let after = block_on(trainer.pages()).unwrap();
    for ((spec, a), (_, b)) in trainer.layout().tensors(&fresh).zip(trainer.layout().tensors(&after)) {
        assert_eq!(a == b, spec.name.starts_with("model.layers.1.mlp"), "{}", spec.name);
    }
    let groups = |of: &Optimizer| {
        let layout = of.layout(trainer.model.param_specs(), 1 << 30).unwrap();
        layout.pages().iter().flat_map(|p| p.groups.iter().map(|(g, _)| *g)).collect::<Vec<Group>>()
    };
    assert_eq!(groups(&Optimizer::default()).len(), 2, "decayed, and not");
    assert_eq!(groups(&Optimizer { rule: Rule::Muon, ..Optimizer::default() }).len(), 3, "matrices, embedding, gains");
    let settings = vec![Settings { params: "q_prj.weight".into(), rate: 1.0, weight_decay: None }];
    let error =
        Optimizer { settings, ..Optimizer::default() }.layout(trainer.model.param_specs(), 1 << 30).unwrap_err();
    assert!(
        error.to_string().starts_with("a group is for the parameters `q_prj.weight`, and none of that name is trained"),
        "{error}"
    );
}

/// What a plan says of a mode is what is allocated for it.
#[test]
fn every_mode_is_planned_to_the_byte() {
    let (gpu, folder) = (common::gpu(), tempfile::tempdir().unwrap());
    let (strict, mixed) = (Precision::F32, Precision::Mixed);
    for (rule, accumulate, ema, precision, moments) in [
        (Rule::AdamW, 1, 0.0, strict, 2),
        (Rule::AdamW, 4, 0.9, strict, 4),
        (Rule::Sgd, 1, 0.0, strict, 1),
        (Rule::Sgd, 2, 0.0, strict, 2),
        (Rule::AdamW, 1, 0.0, mixed, 2),
        (Rule::Sgd, 2, 0.0, mixed, 2),
    ] {
        let recipe = Recipe { optimizer: rule, accumulate, ema, precision, ..recipe(folder.path(), "plan") };
        let (prepared, trainer) = begin(&gpu, &recipe, folder.path());
        let plans = plans(&prepared.config, &recipe, None, gpu.limits(), &mut First).unwrap();
        let all: Vec<_> = [&plans.train, &plans.eval].into_iter().chain(&plans.apply).collect();
        assert_eq!(danlu::run::device_bytes(all, &|_| false), trainer.device_bytes());
        let page = 4 * trainer.layout().pages()[0].elements as u64;
        let copied = optimizer(&recipe).copied(trainer.layout(), 0).map_or(0, |copied| 2 * copied.len() as u64);
        assert_eq!(copied > 0, precision == mixed);
        let small = trainer.states.bytes() - (1 + moments) * page - copied;
        assert!(small < 4096, "{rule:?} {accumulate}: {small} bytes beside {moments} pages");
    }
}
