//! Several ranks, as threads with a device handle each: what plans sum over them.

mod common;

use danlu::base::{Axis, Rng, TensorType};
use danlu::comm::LocalComm;
use danlu::compile::{First, compile};
use danlu::graph::Graph;
use danlu::ops::{Along, SumSquares};
use danlu::parallel::sum_states;
use danlu::run::{Executor, States, f32s};
use pollster::block_on;
use std::sync::Arc;

/// More than one piece of what goes to the host at once, and no multiple of it.
const ELEMENTS: usize = (8 << 20) / 4 + 1001;

fn gradients(rank: usize) -> Vec<f32> {
    let mut rng = Rng::new(5, rank as u64);
    (0..ELEMENTS).map(|_| rng.below(2001) as f32 * 1e-3 - 1.0).collect()
}

/// A graph that reads two states, of which one is summed over ranks.
fn graph(ranks: usize) -> Graph {
    let mut g = Graph::new();
    for (name, elements) in [("grad.0", ELEMENTS), ("kept", 8)] {
        let state = g.state(name, TensorType::f32([elements]));
        let sum = g.apply1(SumSquares, &[state]).unwrap();
        g.output(name, sum);
    }
    sum_states(&g, Along { axis: Axis::Data, ranks }, &|name| name.starts_with("grad.")).unwrap()
}

#[test]
fn states_are_summed_over_ranks_and_the_same_on_each() {
    for ranks in [1, 3] {
        let mut wanted = gradients(0);
        for rank in 1..ranks {
            wanted.iter_mut().zip(gradients(rank)).for_each(|(sum, x)| *sum += x);
        }
        let run = |comm: LocalComm, rank: usize| {
            let gpu = common::gpu();
            let plan = compile(&graph(ranks), gpu.limits(), &mut First).unwrap();
            assert_eq!(plan.steps.iter().filter(|s| s.meeting.is_some()).count(), 1);
            assert_eq!(plan.written_states(), [("grad.0", 4 * ELEMENTS as u64)]);
            let mut states = States::new(&gpu);
            let mut executor = block_on(Executor::new(&gpu, &plan, &mut states)).unwrap();
            let alone = block_on(executor.run()).unwrap_err().to_string();
            assert!(alone.contains("the plan meets other ranks, and it was joined to none"), "{alone}");
            block_on(executor.join(Arc::new(comm))).unwrap();
            block_on(states.write("grad.0", 0, bytemuck::cast_slice(&gradients(rank)))).unwrap();
            block_on(states.write("kept", 0, bytemuck::cast_slice(&[rank as f32; 8]))).unwrap();
            let outputs = block_on(executor.run()).unwrap();
            let summed: Vec<f32> = bytemuck::pod_collect_to_vec(&block_on(states.read("grad.0")).unwrap());
            assert!(!executor.talks().is_empty());
            (summed, f32s(&outputs, "grad.0")[0], f32s(&outputs, "kept")[0])
        };
        let got: Vec<_> = std::thread::scope(|scope| {
            let start = |(rank, comm)| scope.spawn(move || run(comm, rank));
            let threads: Vec<_> = LocalComm::group(ranks, None).into_iter().enumerate().map(start).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        for (rank, (summed, squares, kept)) in got.iter().enumerate() {
            assert!(*summed == wanted, "rank {rank} of {ranks}");
            assert_eq!(*squares, got[0].1);
            assert_eq!(*kept, 8.0 * (rank * rank) as f32);
        }
    }
}

/// Ranks of which one failed in a run are not in step any more: the next run is refused, and reads nothing that is still in use.
#[test]
fn after_a_run_that_failed_none_is_begun() {
    let gpu = common::gpu();
    let plan = compile(&graph(2), gpu.limits(), &mut First).unwrap();
    let mut group = LocalComm::group(2, None);
    drop(group.pop());
    let mut states = States::new(&gpu);
    let mut executor = block_on(Executor::new(&gpu, &plan, &mut states)).unwrap();
    block_on(executor.join(Arc::new(group.remove(0)))).unwrap();
    let first = block_on(executor.run()).unwrap_err().to_string();
    assert!(first.contains("rank 1 has left"), "{first}");
    let second = block_on(executor.run()).unwrap_err().to_string();
    assert!(second.contains("a run failed while ranks met, which are not in step since"), "{second}");
}
