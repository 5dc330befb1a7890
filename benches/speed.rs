//! The figures of docs/benchmarks.md that are Danlu's own: matmul, weights of every dtype and whole training steps, on
//! the adapter that `DANLU_ADAPTER` names or the automatic one. Items are floating-point operations: Gitem/s are GFLOP/s.

use danlu::base::{DType, Limits, TensorType};
use danlu::compile::{Plan, compile};
use danlu::gpu::{Gpu, Selector};
use danlu::graph::Graph;
use danlu::model::{ModelConfig, find_config};
use danlu::ops::MatMul;
use danlu::run::{Executor, States, TuneMode, Tuner};
use danlu::train::{Recipe, fill, optimizer, train_plan};
use divan::Bencher;
use divan::counter::ItemsCount;
use pollster::block_on;
use std::path::Path;
use std::sync::LazyLock;

static GPU: LazyLock<Gpu> = LazyLock::new(|| {
    let wanted = std::env::var("DANLU_ADAPTER").unwrap_or_default();
    block_on(Gpu::open(&Selector::from(wanted.as_str()))).expect("benchmarks need an adapter")
});

/// Times runs of what `plan` makes, from submission to the outputs on the host.
fn bench(bencher: Bencher, plan: impl FnOnce(&Limits, &mut Tuner) -> Plan) {
    bench_with(bencher, plan, |_, _| {});
}

/// The same after `fill`.
fn bench_with(
    bencher: Bencher,
    plan: impl FnOnce(&Limits, &mut Tuner) -> Plan,
    fill: impl FnOnce(&mut Executor, &States),
) {
    let mut tuner = Tuner::new(&GPU, TuneMode::Full, None);
    let plan = plan(GPU.limits(), &mut tuner);
    let mut states = States::new(&GPU);
    let mut executor = block_on(Executor::new(&GPU, &plan, &mut states)).unwrap();
    fill(&mut executor, &states);
    block_on(executor.run()).unwrap();
    bencher.counter(ItemsCount::new(plan.totals().flops)).bench_local(|| block_on(executor.run()).unwrap());
}

#[divan::bench(args = [512, 1024, 2048], max_time = 10)]
fn matmul(bencher: Bencher, n: usize) {
    bench(bencher, |limits, tuner| {
        let mut g = Graph::new();
        let (a, b) = (g.input("a", TensorType::f32([n, n])), g.input("b", TensorType::f32([n, n])));
        let c = g.apply1(MatMul { transpose_a: false, transpose_b: false }, &[a, b]).unwrap();
        // One number comes back, so that the transfer of the product is not part of the figure.
        let c = g.sum_to(c, &TensorType::f32([1])).unwrap();
        g.output("sum", c);
        compile(&g, limits, tuner).unwrap()
    });
}

/// Rows of x by a weight of `[1536,768]` in each dtype: decoding takes one row, prefill many.
#[divan::bench(args = DType::WEIGHTS, consts = [1, 4, 128], max_time = 2)]
fn linear<const M: usize>(bencher: Bencher, dtype: DType) {
    bench(bencher, |limits, tuner| {
        let mut g = Graph::new();
        let w = TensorType { shape: [1536, 768].into(), dtype };
        let (x, w) = (g.input("x", TensorType::f32([M, 768])), g.state("w", w));
        let y = g.apply1(MatMul::linear(), &[x, w]).unwrap();
        let y = g.sum_to(y, &TensorType::f32([1])).unwrap();
        g.output("sum", y);
        compile(&g, limits, tuner).unwrap()
    });
}

/// Training steps in f32: preset, sequences, tokens of each.
#[divan::bench(args = [("story-1m", 2, 128), ("story-1m", 8, 128), ("smollm2-135m", 1, 128)], max_time = 20, sample_size = 1)]
fn train_step(bencher: Bencher, (preset, batch, seq): (&str, usize, usize)) {
    bench(bencher, |limits, tuner| {
        let config = find_config(preset).unwrap();
        train_plan(&config, batch, seq, &optimizer(&Recipe::default()), limits, tuner).unwrap()
    });
}

/// Training steps of a model with eight experts, of which a token visits two, and of the one without that computes as much.
#[divan::bench(args = ["experts", "dense"], max_time = 20, sample_size = 1)]
fn experts_step(bencher: Bencher, kind: &str) {
    let config = serde_json::json!({
        "model_type": if kind == "dense" { "mistral" } else { "mixtral" },
        "vocab_size": 1024,
        "hidden_size": 256,
        "intermediate_size": if kind == "dense" { 1024 } else { 512 },
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "sliding_window": null,
    });
    let config = ModelConfig::parse(&config.to_string(), Path::new("config.json")).unwrap();
    let plan = |limits: &Limits, tuner: &mut Tuner| {
        train_plan(&config, 2, 128, &optimizer(&Recipe::default()), limits, tuner).unwrap()
    };
    bench_with(bencher, plan, |executor, states| block_on(fill(&config, executor, states)).unwrap());
}

fn main() {
    divan::main();
}
