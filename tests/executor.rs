//! Plans at work: what a run computes, keeps and reads back.

use danlu::base::{Limits, TensorType};
use danlu::bench::suite;
use danlu::compile::{First, compile};
use danlu::gpu::{Compile, Gpu, Selector};
use danlu::graph::{Concat, Graph, Map};
use danlu::optim::JUDGE;
use danlu::run::{Executor, States, compile_early, f32s};
use std::sync::atomic::AtomicBool;

#[test]
fn a_graph_runs_twice_with_other_inputs() {
    pollster::block_on(async {
        let gpu = Gpu::open(&Selector::default()).await.unwrap();
        let mut g = Graph::new();
        let x = g.input("x", TensorType::f32([3, 64]));
        let bias = g.constant("bias", TensorType::f32([64]), bytemuck::cast_slice(&[0.5f32; 64]).to_vec());
        let y = g.add(x, bias).unwrap();
        let z = g.apply1(Map::scale(2.0), &[y]).unwrap();
        let sum = g.sum_to(y, &TensorType::f32([64])).unwrap();
        let both = g.apply1(Concat { starts: vec![0, 192], elements: 256 }, &[z, sum]).unwrap();
        g.output("both", both);
        g.output("y", y);
        let plan = compile(&g, gpu.limits(), &mut First).unwrap();
        let mut states = States::new(&gpu);
        let mut run = Executor::new(&gpu, &plan, &mut states).await.unwrap();
        assert_eq!(run.allocated_bytes(), plan.totals().device_bytes());
        for k in 0..3 {
            let x: Vec<f32> = (0..192).map(|i| (i + k) as f32).collect();
            run.set("x", &x).unwrap();
            let out = run.run().await.unwrap();
            let (both, y) = (f32s(&out, "both"), f32s(&out, "y"));
            for i in 0..192 {
                assert_eq!(y[i], x[i] + 0.5);
                assert_eq!(both[i], 2.0 * y[i]);
            }
            for i in 0..64 {
                assert_eq!(both[192 + i], y[i] + y[64 + i] + y[128 + i]);
            }
        }
    });
}

#[test]
fn limits_are_respected_in_the_plan() {
    let mut g = Graph::new();
    let x = g.input("x", TensorType::f32([1 << 26]));
    let y = g.apply1(Map::scale(2.0), &[x]).unwrap();
    g.output("y", y);
    let message = compile(&g, &Limits { max_buffer_bytes: 1 << 20, ..Limits::default() }, &mut First).unwrap_err();
    assert!(message.to_string().contains("wants 268435456 bytes"), "{message}");
    let plan = compile(&g, &Limits::default(), &mut First).unwrap();
    assert_eq!(plan.steps[0].dispatches.len(), 2);
}

#[test]
fn compiling_early_changes_nothing_and_passes_over_what_does_not_compile() {
    pollster::block_on(async {
        let gpu = Gpu::open(&Selector::default()).await.unwrap();
        let mut g = Graph::new();
        let x = g.input("x", TensorType::f32([3, 64]));
        let y = g.apply1(Map::scale(2.0), &[x]).unwrap();
        let sum = g.sum_to(y, &TensorType::f32([64])).unwrap();
        g.output("sum", sum);
        let plan = compile(&g, gpu.limits(), &mut First).unwrap();
        let early = |stop| compile_early(&gpu, [&plan], &AtomicBool::new(stop));
        assert_eq!((early(true), early(false), early(false)), (0, plan.steps.len(), 0));
        let mut run = Executor::new(&gpu, &plan, &mut States::new(&gpu)).await.unwrap();
        run.set("x", &[1.5f32; 192]).unwrap();
        assert_eq!(f32s(&run.run().await.unwrap(), "sum"), [9.0; 64]);
        let shader = |text: &str| Compile { label: "t".into(), text: text.into(), bindings: Vec::new() };
        let shaders = [shader("@compute @workgroup_size(1) fn main() {}"), shader("fn main() { undefined(); }")];
        assert_eq!(gpu.compile_early(&shaders, 2, &AtomicBool::new(false)), 1);
        assert!(gpu.allocations().is_none_or(|all| all.iter().all(|(name, _)| name != "nothing")));
        gpu.check().unwrap();
    });
}

/// What a benchmark's training step in mixed precision begins with has it count: one that is left out is not what training costs.
#[test]
fn a_training_step_of_the_bench_counts() {
    pollster::block_on(async {
        let gpu = Gpu::open(&Selector::default()).await.unwrap();
        let cases = suite(gpu.limits(), true).unwrap();
        let case = cases.iter().find(|case| case.name.starts_with("train step story-1m mixed")).unwrap();
        let graph = case.graph(gpu.limits()).unwrap();
        let plan = compile(&graph, gpu.limits(), &mut First).unwrap();
        let mut states = States::new(&gpu);
        let mut run = Executor::new(&gpu, &plan, &mut states).await.unwrap();
        case.fill(&graph, &states, &mut run).await.unwrap();
        let judge = f32s(&run.run().await.unwrap(), JUDGE);
        // Good steps since the scale changed, and how many were left out.
        assert_eq!(judge[1..3], [1.0, 0.0], "{judge:?}");
    });
}
