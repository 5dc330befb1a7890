//! What a kernel is held against before it is taken: the operator's reference, whatever is fused to it, and not another kernel.

use super::doubles::Misled;
use super::{SIZE, choose, choose_of, gpu, tuner};
use danlu::base::TensorType;
use danlu::compile::optimise;
use danlu::graph::{Graph, Map};
use danlu::ops::{MatMul, Operands};
use danlu::run::{TuneMode, Tuner};
use std::time::Duration;

/// It is what all others might be held against, and is not: it is barred, and they are not.
#[test]
fn a_wrong_first_kernel_is_barred_alone() {
    let folder = tempfile::tempdir().unwrap();
    let x = [TensorType::f32([SIZE])];
    let mut full = tuner(TuneMode::Full, folder.path());
    assert_eq!(choose(&mut full, &Misled, &x), "fast");
    // Where there is no time to measure, and nothing to go by, it is the first that is right.
    let mut hasty = Tuner::new(gpu(), TuneMode::Full, None).without_table().with_budget(Duration::ZERO);
    assert_eq!(choose(&mut hasty, &Misled, &x), "slow");
    for records in [full.records(), hasty.records()] {
        let barred: Vec<&str> = records.barred.iter().map(|b| b.id.kernel.as_str()).collect();
        assert_eq!(barred, ["map:wrong"]);
    }
}

/// What is computed of an operand before it is rounded to f16 may round to the neighbour of what the reference would have.
#[test]
fn what_is_fused_to_a_product_bars_none_of_its_kernels() {
    let mut graph = Graph::new();
    let (a, b) = (graph.input("a", TensorType::f32([1024, 576])), graph.input("b", TensorType::f32([576, 576])));
    let a = graph.apply1(Map::scale(0.3), &[a]).unwrap();
    let c = graph.apply1(MatMul::linear().with(Operands::F16), &[a, b]).unwrap();
    graph.output("c", c);
    let steps = optimise(&graph, gpu().limits()).unwrap();
    let fused: Vec<_> = steps.nodes().iter().filter_map(|node| node.op().map(|op| (op.clone(), node))).collect();
    let [(op, node)] = fused.as_slice() else { panic!("{fused:?}") };
    let inputs: Vec<TensorType> = node.inputs.iter().map(|&value| steps.ty(value).clone()).collect();
    let mut full = Tuner::new(gpu(), TuneMode::Full, None).without_table().with_budget(Duration::MAX);
    choose_of(&mut full, op.clone(), &inputs);
    assert!(!full.records().proved.is_empty() && full.records().barred.is_empty(), "{:?}", full.records().barred);
}
