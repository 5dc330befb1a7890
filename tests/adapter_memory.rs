//! What a plan asks of the adapter's memory is what it takes; more than there is, where that is known, is refused before
//! anything is allocated.

mod common;

use common::golden::{Golden, Step};
use danlu::base::TensorType;
use danlu::compile::{BufferKind, First, compile};
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

/// The device's own allocator is asked: every buffer of the plan is there once and no other, each with the bytes that the
/// plan says, give or take what the allocator rounds up.
#[test]
fn the_allocator_has_handed_out_what_the_plan_says() {
    const ROUNDING: u64 = 64 << 10;
    let gpu = common::new_gpu();
    if gpu.allocations().is_none() {
        eprintln!("SKIPPED: {} does not count its memory", gpu.report().name);
        return;
    }
    let golden = Golden::open("curve");
    let step = Step::new(&golden, &golden.batches("batches")[0].0.ty);
    let plan = compile(&step.graph, gpu.limits(), &mut First).unwrap();
    let mut states = States::new(&gpu);
    let run = block_on(Executor::new(&gpu, &plan, &mut states)).unwrap();
    assert_eq!(run.allocated_bytes(), plan.totals().device_bytes());

    let mut left = gpu.allocations().unwrap();
    for (i, buffer) in plan.buffers.iter().enumerate() {
        let label = match &buffer.kind {
            BufferKind::State(name) => name.clone(),
            _ => format!("buffer {i}"),
        };
        let at = left.iter().position(|(name, _)| *name == label).unwrap_or_else(|| panic!("no {label}"));
        let (_, bytes) = left.swap_remove(at);
        assert!((buffer.bytes..buffer.bytes + ROUNDING).contains(&bytes), "{label}: {bytes} for {}", buffer.bytes);
    }
    // Beside the plan's buffers: the small ones through which inputs, outputs and parameters of kernels travel.
    let small = |name: &str| ["params", "upload", "readback"].contains(&name) || name.starts_with("(wgpu internal)");
    left.retain(|(name, _)| !small(name));
    assert!(left.is_empty(), "{left:?}");
}
