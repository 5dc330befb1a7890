//! The pipeline axis: ranks with some of the layers each compute what one device does, which takes the same micro-batches one
//! after another.

mod common;

use danlu::base::{Axis, Limits, Rng, TensorType};
use danlu::comm::{Groups, LocalComm};
use danlu::compile::{First, Plan, compile, compile_steps, optimise, recompute};
use danlu::graph::{Graph, Value};
use danlu::model::{Llama, ModelConfig, Stages};
use danlu::nn::{ParamLayout, ParamSpec};
use danlu::ops::{Along, IGNORE};
use danlu::optim::{HYPER, KEEP, MicroBatch, Optimizer, Rule};
use danlu::parallel::{Pipeline, Staged, Weight, sum_states};
use danlu::run::{Executor, States, f32s};
use pollster::block_on;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

const SEED: u64 = 3;
const ROWS: usize = 2;
const TIME: usize = 6;

fn config(family: &str, layers: usize) -> ModelConfig {
    let path = format!("{}/tests/goldens/families/{family}/config.json", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(Path::new(&path)).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
    json["num_hidden_layers"] = layers.into();
    json["tie_word_embeddings"] = false.into();
    json.as_object_mut().unwrap().remove("layer_types");
    ModelConfig::parse(&json.to_string(), Path::new(&path)).unwrap()
}

/// Norms are left alone: what one rank clips by depends on the order of a sum.
fn optimizer(rule: Rule) -> Optimizer {
    Optimizer { rule, max_norm: f64::INFINITY, ..Optimizer::default() }
}

fn layout(optimizer: &Optimizer, specs: Vec<ParamSpec>) -> ParamLayout {
    optimizer.layout(specs, 8 << 10).unwrap()
}

fn ty() -> TensorType {
    TensorType::u32([ROWS, TIME])
}

fn has(stages: &Stages, pipeline: Pipeline, name: &str, rank: usize) -> bool {
    stages.of(name).iter().any(|stage| pipeline.rank_of(*stage) == rank)
}

/// The graph of a step's micro-batches on a rank, that of the update, and what it has.
fn rank_graphs(
    config: &ModelConfig,
    optimizer: &Optimizer,
    pipeline: Pipeline,
    rank: usize,
) -> (Graph, Graph, ParamLayout) {
    let stages = config.stages(pipeline.stages()).unwrap();
    let (mut g, all) = (Graph::new(), ParamLayout::new(config.param_specs(), u64::from(u32::MAX)));
    let params = all.declare(&mut g).unwrap();
    let (tokens, targets) = (g.input("tokens", ty()), g.input("targets", ty()));
    let llama = Llama::new(config.clone());
    let both = llama.loss_and_count(&mut g, &params, tokens, targets, None).unwrap();
    both.iter().for_each(|v| g.output("", *v));
    let names: Vec<String> = all.specs().iter().map(|spec| spec.name.clone()).collect();
    let weight = |(value, name): (&Value, &String)| Weight { value: *value, stages: stages.of(name), is_trained: true };
    let weights: Vec<Weight> = params.views.iter().zip(&names).map(weight).collect();
    let specs = config.param_specs().into_iter().filter(|spec| has(&stages, pipeline, &spec.name, rank));
    let layout = layout(optimizer, specs.collect());
    let staged = Staged::cut(&g, &weights, pipeline).unwrap();
    let micro = MicroBatch { rows: ROWS, ..MicroBatch::default() };
    let step = optimizer.pipelined_step(staged, &layout, &layout, &names, rank, &micro).unwrap();
    let along = Along { axis: Axis::Pipeline, ranks: pipeline.ranks };
    let apply = sum_states(&optimizer.apply(&layout).unwrap(), along, &Optimizer::is_total).unwrap();
    (step, apply, layout)
}

fn batches(config: &ModelConfig, count: usize) -> Vec<[Vec<u32>; 2]> {
    let mut rng = Rng::new(SEED, 0);
    let mut words = || -> Vec<u32> { (0..ROWS * TIME).map(|_| rng.below(config.vocab_size) as u32).collect() };
    let mut batch = || {
        let (tokens, mut targets) = (words(), words());
        targets.iter_mut().step_by(5).for_each(|t| *t = IGNORE);
        [tokens, targets]
    };
    (0..count).map(|_| batch()).collect()
}

/// Losses of all steps, and the parameters in the end by name.
type Trained = (Vec<u32>, BTreeMap<String, Vec<f32>>);

fn plan(graph: &Graph) -> Plan {
    compile(graph, common::gpu().limits(), &mut First).unwrap()
}

/// The plan that takes the least memory, with activations of all micro-batches computed again.
fn small_plan(graph: &Graph) -> Plan {
    let (gpu, mut chooser) = (common::gpu(), First);
    let (steps, trade) = recompute(&optimise(graph, gpu.limits()).unwrap(), gpu.limits(), 0).unwrap();
    assert!(trade.reached < trade.before, "{trade:?}");
    compile_steps(&steps, gpu.limits(), &mut chooser).unwrap()
}

fn begin(states: &States, layout: &ParamLayout) {
    for (i, page) in layout.init(SEED).iter().enumerate() {
        block_on(states.write(&format!("param.{i}"), 0, bytemuck::cast_slice(page))).unwrap();
    }
}

fn parameters(states: &States, layout: &ParamLayout) -> BTreeMap<String, Vec<f32>> {
    let page = |i| bytemuck::pod_collect_to_vec(&block_on(states.read(&format!("param.{i}"))).unwrap());
    let pages: Vec<Vec<f32>> = (0..layout.pages().len()).map(page).collect();
    layout.tensors(&pages).map(|(spec, data)| (spec.name.clone(), data.to_vec())).collect()
}

/// One device, which takes so many batches for each step.
fn alone(config: &ModelConfig, optimizer: &Optimizer, steps: usize, each: usize) -> Trained {
    let (gpu, layout) = (common::gpu(), layout(optimizer, config.param_specs()));
    let mut g = Graph::new();
    let params = layout.declare(&mut g).unwrap();
    let (tokens, targets) = (g.input("tokens", ty()), g.input("targets", ty()));
    let both = Llama::new(config.clone()).loss_and_count(&mut g, &params, tokens, targets, None).unwrap();
    optimizer.accumulate_step(&mut g, &layout, &params, both, ROWS).unwrap();
    let mut states = States::new(&gpu);
    let mut train = block_on(Executor::new(&gpu, &plan(&g), &mut states)).unwrap();
    let apply = plan(&optimizer.apply(&layout).unwrap());
    let mut apply = block_on(Executor::new(&gpu, &apply, &mut states)).unwrap();
    begin(&states, &layout);
    let mut losses = Vec::new();
    for batches in batches(config, steps * each).chunks(each) {
        for (i, batch) in batches.iter().enumerate() {
            ["tokens", "targets"].iter().zip(batch).for_each(|(name, ids)| train.set(name, ids).unwrap());
            train.set(KEEP, &[f32::from(u8::from(i > 0))]).unwrap();
            block_on(train.run()).unwrap();
        }
        apply.set(HYPER, &optimizer.hyper(1e-2)).unwrap();
        losses.push(f32s(&block_on(apply.run()).unwrap(), "loss")[0].to_bits());
    }
    (losses, parameters(&states, &layout))
}

/// The same on a pipeline: what each rank saw.
fn piped(config: &ModelConfig, optimizer: &Optimizer, pipeline: Pipeline, steps: usize, small: bool) -> Vec<Trained> {
    let work = |rank: usize, comm: LocalComm| {
        let (gpu, groups) = (common::gpu(), Groups::of(Axis::Pipeline, Arc::new(comm)));
        let (step, apply, layout) = rank_graphs(config, optimizer, pipeline, rank);
        let mut states = States::new(&gpu);
        let step = if small { small_plan(&step) } else { plan(&step) };
        let mut train = block_on(Executor::new(&gpu, &step, &mut states)).unwrap();
        let mut apply = block_on(Executor::new(&gpu, &plan(&apply), &mut states)).unwrap();
        block_on(train.join_groups(groups.clone())).unwrap();
        block_on(apply.join_groups(groups)).unwrap();
        begin(&states, &layout);
        let mut losses = Vec::new();
        for batches in batches(config, steps * pipeline.batches).chunks(pipeline.batches) {
            for (i, batch) in batches.iter().enumerate() {
                for (name, ids) in ["tokens", "targets"].iter().zip(batch) {
                    train.set(&format!("{name}.{i}"), ids).unwrap();
                }
            }
            block_on(train.run()).unwrap();
            apply.set(HYPER, &optimizer.hyper(1e-2)).unwrap();
            losses.push(f32s(&block_on(apply.run()).unwrap(), "loss")[0].to_bits());
        }
        (losses, parameters(&states, &layout))
    };
    std::thread::scope(|scope| {
        let start = |(rank, comm)| scope.spawn(move || work(rank, comm));
        let threads: Vec<_> = LocalComm::group(pipeline.ranks, None).into_iter().enumerate().map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// What a pipeline computes of its micro-batches is what one device computes of them one after another, to the bit: where nothing
/// depends on a norm, and embedding and output are two; also where activations are computed again.
#[test]
fn ranks_with_layers_give_the_bits_of_one_device() {
    for (family, rule, ranks, each, batches) in [
        ("llama", Rule::AdamW, 2, 1, 3),
        ("qwen2", Rule::Muon, 4, 1, 2),
        ("qwen3", Rule::AdamW, 2, 2, 4),
        ("mixtral", Rule::Sgd, 2, 1, 2),
    ] {
        let (config, optimizer) = (config(family, 4), optimizer(rule));
        let pipeline = Pipeline { ranks, each, batches };
        let (losses, expected) = alone(&config, &optimizer, 3, batches);
        let mut seen: BTreeMap<String, Vec<f32>> = BTreeMap::new();
        for (rank, (theirs, own)) in piped(&config, &optimizer, pipeline, 3, family == "llama").into_iter().enumerate()
        {
            assert_eq!(theirs, losses, "{family}: losses that rank {rank} tells");
            seen.extend(own);
        }
        assert_eq!(seen.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
        for (name, data) in &expected {
            assert!(seen[name] == *data, "{family}: {name} differs");
        }
    }
}

/// Each micro-batch sends its residual stream over each boundary once, and the gradient of it back: 4·B·T·D bytes. For the update
/// two numbers and what clipping wants are summed.
#[test]
fn a_step_sends_what_the_textbook_says() {
    let limits = Limits::default();
    let config = config("llama", 4);
    let boundary = 4 * (ROWS * TIME * config.hidden_size) as u64;
    for (ranks, each, batches) in [(2, 1, 3), (4, 1, 2), (2, 2, 4)] {
        let pipeline = Pipeline { ranks, each, batches };
        for rank in 0..ranks {
            let (step, ..) = rank_graphs(&config, &optimizer(Rule::AdamW), pipeline, rank);
            let sent = compile(&step, &limits, &mut First).unwrap().sent()[&Axis::Pipeline];
            let ends = [rank == 0, rank + 1 == ranks].into_iter().filter(|end| *end).count();
            let crossings = (2 * each - ends) * batches;
            assert_eq!(sent.bytes, crossings as u64 * boundary, "rank {rank} of {pipeline:?}");
            assert_eq!(sent.meetings, 2 * crossings, "as often sent as received");
        }
    }
}

/// Bytes that are alive at the worst time.
fn peak(plan: &Plan) -> u64 {
    let alive = |step| plan.tenants.iter().filter(|t| t.first <= step && step <= t.last).map(|t| t.bytes).sum();
    (0..plan.steps.len()).map(alive).max().unwrap_or(0)
}

#[test]
fn what_waits_for_its_backward_pass_does_not_grow_with_the_micro_batches() {
    let (config, optimizer) = (config("llama", 4), optimizer(Rule::AdamW));
    for rank in 0..2 {
        let of = |batches| {
            let (step, ..) = rank_graphs(&config, &optimizer, Pipeline { ranks: 2, each: 1, batches }, rank);
            peak(&compile(&step, &Limits::default(), &mut First).unwrap())
        };
        assert_eq!(of(3), of(6), "rank {rank}");
    }
}
