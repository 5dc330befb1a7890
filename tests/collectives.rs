//! Collectives as operators: what each gives between devices, and that its gradient is the transpose of what it does.

mod common;

use danlu::base::{Axis, TensorType};
use danlu::comm::{Groups, LocalComm};
use danlu::compile::{First, Sent, compile};
use danlu::graph::{Graph, Map, Op, SumTo, gradients};
use danlu::ops::{AllGather, AllReduce, AllToAll, Along, Receive, ReduceScatter, Send, Shift, Spread};
use danlu::run::{Executor, States, f32s};
use pollster::block_on;
use std::sync::Arc;

const SEED: u64 = 11;

/// Small integers, so that sums are exact in any order.
fn numbers(dims: &[usize], stream: u64, rank: usize) -> Vec<f32> {
    let mut rng = danlu::base::Rng::new(SEED + stream, rank as u64);
    (0..dims.iter().product()).map(|_| rng.below(17) as f32 - 8.0).collect()
}

/// What every rank holds of x, and gives.
type All = Vec<Vec<f32>>;

/// Plain loops: from all ranks' values to all ranks' results.
type Loops = fn(&All, &[usize]) -> All;

fn sum(all: &All) -> Vec<f32> {
    (0..all[0].len()).map(|i| all.iter().map(|x| x[i]).sum()).collect()
}

/// `[B,P,C]` of all ranks to `[B,N·P,C]`.
fn gathered(all: &All, dims: &[usize]) -> Vec<f32> {
    let block = dims[1] * dims[2];
    (0..dims[0]).flat_map(|b| all.iter().flat_map(move |x| x[b * block..(b + 1) * block].to_vec())).collect()
}

/// `[B,N·P,C]` to each rank's `[B,P,C]`.
fn scattered(x: &[f32], dims: &[usize], ranks: usize) -> All {
    let part = dims[1] / ranks * dims[2];
    let own = |r: usize| (0..dims[0]).flat_map(|b| x[(b * ranks + r) * part..][..part].to_vec()).collect();
    (0..ranks).map(own).collect()
}

fn exchanged(all: &All, _: &[usize]) -> All {
    let part = all[0].len() / all.len();
    (0..all.len()).map(|r| all.iter().flat_map(|x| x[r * part..(r + 1) * part].to_vec()).collect()).collect()
}

/// Every rank's from the one before, or from the next.
fn shifted(all: &All, by: usize) -> All {
    (0..all.len()).map(|r| all[(r + by) % all.len()].clone()).collect()
}

fn along(ranks: usize) -> Along {
    Along { axis: Axis::Tensor, ranks }
}

/// An operator, the shape of its input, what it is by plain loops, and what its gradient is, with the shape of its output.
type Row = (Arc<dyn Op>, Vec<usize>, Loops, Vec<usize>, Loops);

/// What all rows give on each rank, y = op(x) and the gradient of Σ y·c towards x, and what the plan says that it sends.
fn run(rows: &[Row], ranks: usize) -> Vec<(Vec<[Vec<f32>; 2]>, Sent)> {
    let rank = |comm: LocalComm, rank: usize| {
        let (gpu, mut g) = (common::gpu(), Graph::new());
        for (i, (op, dims, _, out, _)) in rows.iter().enumerate() {
            let x = g.input(&format!("x{i}"), TensorType::f32(dims.clone()));
            let c = g.input(&format!("c{i}"), TensorType::f32(out.clone()));
            let y = g.apply_arc(op.clone(), &[x]).unwrap()[0];
            let product = g.apply1(Map::mul(), &[y, c]).unwrap();
            let loss = g.apply1(SumTo { shape: [1].into() }, &[product]).unwrap();
            let dx = gradients(&mut g, loss, &[x]).unwrap()[0];
            for (name, value) in [("y", y), ("dx", dx)] {
                let value = g.apply1(Map::scale(1.0), &[value]).unwrap();
                g.output(&format!("{name}{i}"), value);
            }
        }
        let plan = compile(&g, gpu.limits(), &mut First).unwrap();
        let mut executor = block_on(Executor::new(&gpu, &plan, &mut States::new(&gpu))).unwrap();
        block_on(executor.join_groups(Groups::of(Axis::Tensor, Arc::new(comm)))).unwrap();
        for (i, (_, dims, _, out, _)) in rows.iter().enumerate() {
            executor.set(&format!("x{i}"), &numbers(dims, 0, rank)).unwrap();
            executor.set(&format!("c{i}"), &numbers(out, 1, rank)).unwrap();
        }
        let outputs = block_on(executor.run()).unwrap();
        let both = |i| ["y", "dx"].map(|name| f32s(&outputs, &format!("{name}{i}")));
        ((0..rows.len()).map(both).collect(), plan.sent()[&Axis::Tensor])
    };
    std::thread::scope(|scope| {
        let start = |(r, comm)| scope.spawn(move || rank(comm, r));
        let threads: Vec<_> = LocalComm::group(ranks, None).into_iter().enumerate().map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn collectives_are_those_of_plain_loops_and_so_are_their_gradients() {
    let same: Loops = |all, _| all.clone();
    let total: Loops = |all, _| vec![sum(all); all.len()];
    let gather: Loops = |all, dims| vec![gathered(all, dims); all.len()];
    let scatter: Loops = |all, dims| scattered(&sum(all), dims, all.len());
    let (on, back): (Loops, Loops) = (|all, _| shifted(all, all.len() - 1), |all, _| shifted(all, 1));
    // Of the last, each part goes to the host in several pieces.
    for (ranks, [b, p, c]) in [(2, [5, 6, 7]), (3, [5, 6, 7]), (3, [1, 6, 128]), (2, [1, 1, 1_050_001])] {
        let (small, large, along) = (vec![b, p, c], vec![b, ranks * p, c], along(ranks));
        let whole = vec![ranks * p, b, c];
        let rows: Vec<Row> = vec![
            (Arc::new(AllReduce(along)), small.clone(), total, small.clone(), same),
            (Arc::new(Spread(along)), small.clone(), same, small.clone(), total),
            (Arc::new(AllGather { along, dim: 1 }), small.clone(), gather, large.clone(), scatter),
            (Arc::new(ReduceScatter { along, dim: 1 }), large, scatter, small.clone(), gather),
            (Arc::new(AllToAll(along)), whole.clone(), exchanged, whole, exchanged),
            (Arc::new(Shift { along, back: false }), small.clone(), on, small.clone(), back),
            (Arc::new(Shift { along, back: true }), small.clone(), back, small, on),
        ];
        let inputs = |dims: &[usize], stream| -> All { (0..ranks).map(|rank| numbers(dims, stream, rank)).collect() };
        let all: Vec<(All, All)> = rows
            .iter()
            .map(|(_, dims, forward, out, backward)| (forward(&inputs(dims, 0), dims), backward(&inputs(out, 1), out)))
            .collect();
        // Of one tensor's bytes each rank sends (N-1)/N to scatter or to gather it or to exchange its parts, and twice
        // that to sum it: 2 sums of a part, 4 gatherings or scatterings of the whole, 2 exchanges of the whole; 4 parts are shifted.
        let (n, bytes) = (ranks as u64, 4 * (b * p * c) as u64);
        let sent = 2 * (2 * bytes * (n - 1) / n) + 6 * bytes * (n - 1) + 4 * bytes;
        for (rank, (got, told)) in run(&rows, ranks).into_iter().enumerate() {
            assert_eq!(told, Sent { meetings: 12, bytes: sent });
            for ((row, [y, dx]), (wanted, gradient)) in rows.iter().zip(got).zip(&all) {
                assert!(y == wanted[rank], "{:?} of {:?}: rank {rank} of {ranks}", row.0, row.1);
                assert!(dx == gradient[rank], "gradient of {:?} of {:?}: rank {rank} of {ranks}", row.0, row.1);
            }
        }
    }
}

#[test]
fn what_is_sent_arrives_in_order() {
    const ELEMENTS: usize = (8 << 20) / 4 + 1001;
    let rank = |comm: LocalComm, rank: usize| {
        let gpu = common::gpu();
        let (mut g, along) = (Graph::new(), along(2));
        let types = [TensorType::f32([ELEMENTS]), TensorType::f32([3])];
        for (i, ty) in types.into_iter().enumerate() {
            if rank == 0 {
                let x = g.input(&format!("x{i}"), ty);
                g.apply(Send { along, to: 1 }, &[x]).unwrap();
            } else {
                let y = g.apply1(Receive { along, from: 0, ty }, &[]).unwrap();
                let twice = g.apply1(Map::scale(2.0), &[y]).unwrap();
                g.output(&format!("x{i}"), twice);
            }
        }
        let plan = compile(&g, gpu.limits(), &mut First).unwrap();
        let sent = plan.sent()[&Axis::Tensor];
        assert_eq!(sent, Sent { meetings: 2, bytes: if rank == 0 { 4 * (ELEMENTS as u64 + 3) } else { 0 } });
        assert!(plan.to_string().contains("along tensor"), "{plan}");
        let mut executor = block_on(Executor::new(&gpu, &plan, &mut States::new(&gpu))).unwrap();
        let other = Groups::of(Axis::Data, Arc::new(LocalComm::group(1, None).remove(0)));
        let said = block_on(executor.join_groups(other)).unwrap_err().to_string();
        assert!(said.contains("the plan meets other ranks along tensor, and it was joined to none there"), "{said}");
        let other = Groups::of(Axis::Tensor, Arc::new(LocalComm::group(1, None).remove(0)));
        let said = block_on(executor.join_groups(other)).unwrap_err().to_string();
        assert!(said.contains("the plan is for 2 ranks along tensor, and it was joined to 1"), "{said}");
        block_on(executor.join_groups(Groups::of(Axis::Tensor, Arc::new(comm)))).unwrap();
        let values = [numbers(&[ELEMENTS], 0, 0), numbers(&[3], 1, 0)];
        values.iter().enumerate().for_each(|(i, x)| executor.set(&format!("x{i}"), x).unwrap());
        let outputs = block_on(executor.run()).unwrap();
        for (i, x) in values.iter().enumerate().filter(|_| rank == 1) {
            assert!(f32s(&outputs, &format!("x{i}")) == x.iter().map(|x| 2.0 * x).collect::<Vec<_>>());
        }
    };
    std::thread::scope(|scope| {
        let mut comms = LocalComm::group(2, None);
        let (second, first) = (comms.pop().unwrap(), comms.pop().unwrap());
        scope.spawn(move || rank(second, 1));
        rank(first, 0);
    });
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let mut g = Graph::new();
    let x = g.input("x", TensorType::f32([3, 5]));
    for (op, part) in [
        (
            Arc::new(ReduceScatter { along: along(2), dim: 0 }) as Arc<dyn Op>,
            "a dim of 3 cannot be divided among 2 ranks",
        ),
        (Arc::new(AllToAll(along(2))), "a dim of 3 cannot be divided among 2 ranks"),
        (Arc::new(AllGather { along: along(2), dim: 2 }), "has no dim 2"),
        (Arc::new(Send { along: along(2), to: 2 }), "there is no rank 2"),
    ] {
        let said = g.apply_arc(op, &[x]).unwrap_err().to_string();
        assert!(said.contains(part), "{said}");
    }
    let x = g.input("tokens", TensorType::u32([4]));
    let said = g.apply(AllReduce(along(2)), &[x]).unwrap_err().to_string();
    assert!(said.contains("takes one value of f32, or of f16 in whole words"), "{said}");
}
