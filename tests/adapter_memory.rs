//! A plan beyond the memory that the adapter shares with the host is refused before anything is allocated.

mod common;

use danlu::base::TensorType;
use danlu::compile::{First, compile};
use danlu::error::Error;
use danlu::graph::{Graph, Map};
use danlu::run::{Executor, States};
use pollster::block_on;

#[test]
fn a_plan_too_big_is_refused() {
    let gpu = common::gpu();
    let shared = ["cpu", "integrated"].contains(&gpu.report().device_type.as_str());
    let Some(memory) = gpu.limits().memory_bytes else {
        assert!(!shared || !cfg!(target_os = "linux"), "the host's memory is known on Linux");
        return;
    };
    let ty = TensorType::f32([32 << 20]);
    let mut g = Graph::new();
    for i in 0..=memory / ty.bytes() {
        let x = g.state(&format!("x{i}"), ty.clone());
        let y = g.apply1(Map::scale(2.0), &[x]).unwrap();
        g.output(&format!("y{i}"), y);
    }
    let plan = compile(&g, gpu.limits(), &mut First).unwrap();
    let mut states = States::new(&gpu);
    let error = block_on(Executor::new(&gpu, &plan, &mut states)).err().expect("more than there is");
    let Error::Memory { wanted, had, .. } = &error else { panic!("{error}") };
    assert!((*wanted, *had) == (plan.totals().device_bytes(), memory), "{error}");
    assert!(error.to_string().contains(" that are free"), "{error}");
    assert_eq!(states.bytes(), 0);
}
