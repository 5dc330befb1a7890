//! The way of one kernel from plain data to the device: results, guards, refusals, and a device that is lost.

mod common;

use common::interpret::Interpreter;
use danlu::base::{Array, DType, Limits, Rng, TensorType, Tolerance, packed};
use danlu::compile::{First, compile};
use danlu::gpu::{Gpu, Selector};
use danlu::graph::{Graph, Io, Map, Op, SumRows};
use danlu::ops::MatMul;
use danlu::run::{Executor, States, run_kernel, time_kernel};
use pollster::block_on;
use std::collections::HashMap;

fn random(ty: &TensorType, seed: u64) -> Array {
    let mut rng = Rng::new(seed, 0);
    Array::new(ty.clone(), (0..ty.shape.elements()).map(|_| f64::from(rng.normal() as f32)).collect())
}

fn io(op: &dyn Op, inputs: &[TensorType]) -> Io {
    let refs: Vec<&TensorType> = inputs.iter().collect();
    Io { inputs: inputs.to_vec(), outputs: op.infer(&refs).unwrap() }
}

fn check(gpu: &Gpu, limits: &Limits, op: &dyn Op, inputs: &[TensorType]) {
    let io = io(op, inputs);
    let arrays: Vec<Array> = io.inputs.iter().enumerate().map(|(i, t)| random(t, i as u64 + 1)).collect();
    let expected = op.reference(&arrays);
    for kernel in op.kernels(&io, limits) {
        common::check_kernel(&kernel, &Limits::default());
        let got = block_on(run_kernel(gpu, &kernel, &io, &arrays, &op.writes())).unwrap();
        for (y, r) in got.iter().zip(&expected) {
            op.tolerance(&io).check(y, r).unwrap_or_else(|e| panic!("{op:?} {}: {e}", kernel.variant));
        }
    }
}

fn sum(rows: usize, columns: usize, per_part: usize) -> (SumRows, TensorType) {
    let shape = [rows.div_ceil(per_part), columns].into();
    (SumRows { shape, rows_per_part: per_part }, TensorType::f32([rows, columns]))
}

#[test]
fn maps_and_sums_at_odd_sizes() {
    let gpu = common::gpu();
    for n in [1, 3, 63, 64, 65, 1000, 4097] {
        let (x, bias) = (TensorType::f32([n, 7]), TensorType::f32([7]));
        check(&gpu, gpu.limits(), &Map::add(), &[x.clone(), bias]);
        check(&gpu, gpu.limits(), &Map::swiglu(), &[x.clone(), x]);
        for columns in [1, 5, 64, 130] {
            let (op, x) = sum(n, columns, 17);
            check(&gpu, gpu.limits(), &op, &[x]);
        }
    }
}

#[test]
fn windows_cover_a_tensor_beyond_one_binding() {
    let limits = Limits { max_binding_bytes: 4096, ..Limits::default() };
    let gpu = common::gpu();
    let x = TensorType::f32([3, 1777]);
    let kernels = Map::mul().kernels(&io(&Map::mul(), &[x.clone(), x.clone()]), &limits);
    assert!(kernels[0].dispatches.len() > 4);
    check(&gpu, &limits, &Map::mul(), &[x.clone(), x]);
}

#[test]
fn webgpu_defaults_suffice() {
    let limits = Limits::default();
    let gpu = block_on(Gpu::open_with_limits(&Selector::Automatic, &limits)).unwrap();
    assert_eq!(gpu.limits().max_binding_bytes, limits.max_binding_bytes);
    assert_eq!(gpu.limits().max_invocations, limits.max_invocations);
    let x = TensorType::f32([100, 33]);
    check(&gpu, &limits, &Map::scale(0.5), &[x]);
}

#[test]
fn kernels_that_do_not_fit_are_refused() {
    let gpu = common::gpu();
    let x = TensorType::f32([10, 10]);
    let io = io(&Map::add(), &[x.clone(), x.clone()]);
    let arrays = [random(&x, 1), random(&x, 2)];
    let good = Map::add().kernels(&io, gpu.limits()).remove(0);
    let refuse = |change: &dyn Fn(&mut danlu::graph::Kernel), part: &str| {
        let mut kernel = good.clone();
        change(&mut kernel);
        let error = block_on(run_kernel(&gpu, &kernel, &io, &arrays, &[])).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    };
    refuse(&|k| k.dispatches[0].params.clear(), "does not set field `start`");
    refuse(&|k| k.dispatches[0].params.push(("more", 1u32.into())), "sets `more`, which Params does not have");
    refuse(&|k| k.dispatches[0].params[0].1 = 1.0f32.into(), "`start` of Params is U32");
    refuse(&|k| drop(k.dispatches[0].bindings.remove(0)), "does not bind `y`");
    refuse(&|k| k.dispatches[0].bindings[0].name = "z".into(), "does not bind `y`");
    refuse(&|k| k.dispatches[0].bindings[0].bytes += 4, "is bound to 404 bytes at 0");
    refuse(&|k| k.hooks.clear(), "nothing was given for `#hook map`");
    // More elements than there are: the guard behind the output is hit.
    refuse(&|k| k.dispatches[0].params[1].1 = 26u32.into(), "wrote outside output 0, f32[10,10]: at byte 400");
}

#[test]
fn unwritten_outputs_are_nan() {
    let gpu = common::gpu();
    let x = TensorType::f32([100]);
    let io = io(&Map::scale(2.0), std::slice::from_ref(&x));
    let mut kernel = Map::scale(2.0).kernels(&io, gpu.limits()).remove(0);
    kernel.dispatches[0].params[1].1 = 15u32.into(); // items of four
    let y = block_on(run_kernel(&gpu, &kernel, &io, &[random(&x, 3)], &[])).unwrap().remove(0);
    assert!(y.data[..60].iter().all(|v| v.is_finite()) && y.data[60..].iter().all(|v| v.is_nan()));
}

#[test]
fn timing_grows_with_the_work() {
    let gpu = common::gpu();
    let seconds = |n: usize| {
        let (op, x) = sum(n, 256, n);
        let io = io(&op, &[x]);
        block_on(time_kernel(&gpu, &op.kernels(&io, gpu.limits())[0], &io, 3)).unwrap()
    };
    let (small, large) = (seconds(64), seconds(64 * 256));
    assert!(small > 0.0 && large > 8.0 * small, "{small} s for 1, {large} s for 256 times the rows");
}

#[test]
fn transfers_beyond_the_staging_size() {
    let gpu = common::gpu();
    let bytes: Vec<u8> = (0..(40 << 20) + 12).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    block_on(async {
        let buffer = gpu.storage("large", bytes.len() as u64 + 8).await.unwrap();
        gpu.write(&buffer, 4, &bytes).await.unwrap();
        assert!(gpu.read(buffer.range(4, bytes.len() as u64)).await.unwrap() == bytes);
        assert_eq!(gpu.read(buffer.range(bytes.len() as u64 + 4, 4)).await.unwrap(), [0; 4]);
        assert!(gpu.write(&buffer, 8, &bytes[..bytes.len() - 2]).await.is_err());
        let (up, down) = (gpu.upload(64).await.unwrap(), gpu.readback(64).await.unwrap());
        for round in 0..3u8 {
            up.fill(&gpu, &[round; 64]).await.unwrap();
            let mut submission = gpu.submission();
            submission.copy_in(&up, 0, buffer.range(256, 64)).unwrap();
            submission.copy_out(buffer.range(256, 64), &down).unwrap();
            submission.submit().unwrap();
            assert_eq!(down.read(&gpu, 64, |b| b.to_vec()).await.unwrap(), [round; 64]);
        }
    });
}

#[test]
fn too_much_memory_and_a_lost_device_are_errors() {
    let gpu = common::gpu();
    let error = block_on(gpu.storage("moments", 1 << 50)).unwrap_err().to_string();
    assert!(error.starts_with("moments wants 1125899906842624 bytes"), "{error}");
    assert!(gpu.check().is_ok());
    let buffer = block_on(gpu.storage("x", 64)).unwrap();
    gpu.destroy();
    assert!(matches!(block_on(gpu.read(buffer.whole())), Err(danlu::error::Error::Device(_))));
    assert!(matches!(block_on(gpu.storage("y", 64)), Err(danlu::error::Error::Device(_))));
}

#[test]
fn pipelines_are_made_on_several_threads_and_shared() {
    let gpu = common::gpu();
    let source =
        |n: u32| danlu::shader::assemble("sum_rows", &[("COLUMNS", n), ("SHARES", 1), ("LOADS", 4)], &[]).unwrap();
    let make = &|n: u32| {
        let source = source(n);
        block_on(gpu.pipeline("sum_rows", &source.text, &source.layout())).unwrap()
    };
    let made: Vec<_> = std::thread::scope(|s| {
        let threads: Vec<_> = [32, 64, 128, 32].map(|n| s.spawn(move || make(n))).into();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert!(std::sync::Arc::ptr_eq(&made[0], &make(32)) && std::sync::Arc::ptr_eq(&made[0], &made[3]));
    assert!(!std::sync::Arc::ptr_eq(&made[0], &made[1]));
}

/// Epilogues and prologues are fused to products with packed weights as to others: x/2 · Wᵀ + r, by few rows and many.
#[test]
fn packed_products_have_hooks() {
    let gpu = common::gpu();
    let w = TensorType { shape: [70, 96].into(), dtype: DType::Q4_1 };
    for rows in [1, 20] {
        let mut g = Graph::new();
        let (x, r) = (TensorType::f32([rows, 96]), TensorType::f32([rows, 70]));
        let sources = [("x", &x), ("w", &w), ("r", &r)];
        let [x, w, r] = sources.map(|(name, ty)| g.input(name, ty.clone()));
        let half = g.apply1(Map::scale(0.5), &[x]).unwrap();
        let product = g.apply1(MatMul::linear(), &[half, w]).unwrap();
        let y = g.add(product, r).unwrap();
        g.output("y", y);
        let plan = compile(&g, gpu.limits(), &mut First).unwrap();
        let hooks: Vec<&str> = plan.steps.iter().flat_map(|s| &s.hooks).map(|h| h.name).collect();
        assert_eq!((plan.steps.len(), hooks.len()), (1, 2), "{hooks:?}");
        let mut run = block_on(Executor::new(&gpu, &plan, &mut States::new(&gpu))).unwrap();
        let mut arrays = HashMap::new();
        for (i, (name, ty)) in sources.into_iter().enumerate() {
            let mut rng = Rng::new(7, i as u64);
            let bytes = packed::random(ty.dtype, ty.shape.elements(), &mut rng);
            run.set(name, &bytes).unwrap();
            arrays.insert(name.to_string(), Array::from_bytes(ty.clone(), &bytes));
        }
        let got = Array::from_bytes(g.ty(y).clone(), &block_on(run.run()).unwrap()["y"]);
        let expected = Interpreter::run(&g, &arrays).get(y).clone();
        Tolerance::f32(96).check(&got, &expected).unwrap_or_else(|e| panic!("{rows} rows: {e}"));
    }
}
