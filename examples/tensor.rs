//! A tensor computation: build a graph, differentiate it, print its plan, run it.
//!
//!     cargo run --release --example tensor

use danlu::base::{Rng, TensorType};
use danlu::compile::{First, compile};
use danlu::gpu::{Gpu, Selector};
use danlu::graph::{Graph, Map, gradients};
use danlu::ops::MatMul;
use danlu::run::{Executor, States, f32s};

fn main() -> anyhow::Result<()> {
    pollster::block_on(run())
}

/// loss = mean of (x · w - y)², and its gradient towards w, by hand-sized matrices.
async fn run() -> anyhow::Result<()> {
    let (rows, inner, columns) = (64, 32, 16);
    let mut g = Graph::new();
    let x = g.input("x", TensorType::f32([rows, inner]));
    let w = g.input("w", TensorType::f32([inner, columns]));
    let y = g.input("y", TensorType::f32([rows, columns]));
    let product = g.apply1(MatMul::new(false, false), &[x, w])?;
    let minus_y = g.apply1(Map::scale(-1.0), &[y])?;
    let error = g.add(product, minus_y)?;
    let square = g.mul(error, error)?;
    let mean = g.apply1(Map::scale(1.0 / (rows * columns) as f32), &[square])?;
    let loss = g.sum_to(mean, &TensorType::f32([1]))?;
    let dw = gradients(&mut g, loss, &[w])?[0];
    g.output("loss", loss);
    g.output("dw", dw);

    let gpu = Gpu::open(&Selector::Automatic).await?;
    println!("{}\n", gpu.report().line());
    let plan = compile(&g, gpu.limits(), &mut First)?;
    println!("{plan}\n");

    let draw = |name: &str, n: usize| {
        let mut rng = Rng::named(1, name);
        (0..n).map(|_| rng.normal() as f32).collect::<Vec<_>>()
    };
    let (x, y) = (draw("x", rows * inner), draw("y", rows * columns));
    let mut w = vec![0.0; inner * columns];
    let mut executor = Executor::new(&gpu, &plan, &mut States::new(&gpu)).await?;
    executor.set("x", &x)?;
    executor.set("y", &y)?;
    for step in 0..=100 {
        executor.set("w", &w)?;
        let outputs = executor.run().await?;
        if step % 20 == 0 {
            println!("step {step:>3}: loss {:.4}", f32s(&outputs, "loss")[0]);
        }
        w.iter_mut().zip(f32s(&outputs, "dw")).for_each(|(w, dw)| *w -= 2.0 * dw);
    }
    Ok(())
}
