//! Compiled pipelines on disk: what a driver gives is found again by the next device, numbers are the same with and without,
//! and a folder that cannot be used is said.

mod common;

use danlu::base::TensorType;
use danlu::compile::{First, compile};
use danlu::gpu::{Gpu, Selector};
use danlu::graph::{Graph, Map};
use danlu::run::{Executor, States, f32s};
use pollster::block_on;
use std::path::Path;

/// Runs a small plan on a device that keeps its pipelines in `folder`; gives the bytes that it found, and a result.
fn run(gpu: &Gpu, folder: &Path) -> (usize, Vec<f32>) {
    let found = gpu.keep_pipelines(folder).unwrap();
    assert_eq!(gpu.keep_pipelines(folder).unwrap(), 0, "once is enough");
    let mut g = Graph::new();
    let x = g.input("x", TensorType::f32([3, 64]));
    let y = g.apply1(Map::scale(2.0), &[x]).unwrap();
    let sum = g.sum_to(y, &TensorType::f32([64])).unwrap();
    g.output("sum", sum);
    let plan = compile(&g, gpu.limits(), &mut First).unwrap();
    let mut run = block_on(Executor::new(gpu, &plan, &mut States::new(gpu))).unwrap();
    run.set("x", &[1.5f32; 192]).unwrap();
    let sum = f32s(&block_on(run.run()).unwrap(), "sum");
    gpu.save_pipelines().unwrap();
    (found, sum)
}

#[test]
fn pipelines_are_found_again() {
    let folder = tempfile::tempdir().unwrap();
    let open = || {
        let number = common::gpu().report().number;
        block_on(Gpu::open(&Selector::Number(number))).unwrap()
    };
    let (found, first) = run(&open(), folder.path());
    assert_eq!(found, 0);
    let files: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|f| f.unwrap().path()).collect();
    let (found, second) = run(&open(), folder.path());
    assert_eq!(first, [9.0; 64]);
    assert_eq!(first, second);
    let Some(file) = files.first() else {
        // This driver gives nothing, and nothing is kept.
        assert_eq!(found, 0);
        eprintln!("SKIPPED: {} hands out no pipelines", common::gpu().report().name);
        return;
    };
    assert!(files.len() == 1 && found > 0, "{files:?}");
    // Another driver's, by the first line that names it, are not taken.
    let mut bytes = std::fs::read(file).unwrap();
    bytes[20] ^= 1;
    std::fs::write(file, bytes).unwrap();
    assert_eq!(run(&open(), folder.path()), (0, first));
}
