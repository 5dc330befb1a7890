//! What attention takes with scores in registers, in passes, and unfused, forward and backward, by processor time, each in turn:
//! `cargo run --release --example attention_time -- TOKENS ROUNDS`, 1,024 and 6 if left out. Reads `/proc`, so Linux only. Passes are a
//! CPU's: on a GPU its last candidate stands there.

use danlu::bench::{fused_attention, unfused_attention};
use danlu::compile::{Chooser, compile};
use danlu::gpu::{Gpu, Selector};
use danlu::graph::{Io, Kernel, Op};
use danlu::run::{Executor, States};
use std::error::Error;
use std::sync::Arc;

/// Runs of each in a round.
const RUNS: usize = 5;

/// Attention's last candidate, which is the one in passes, or its first; of all else the first.
struct Pick(bool);

impl Chooser for Pick {
    fn choose(&mut self, op: &Arc<dyn Op>, _: &Io, kernels: &[Kernel]) -> usize {
        if self.0 && op.name().starts_with("attention") { kernels.len() - 1 } else { 0 }
    }
}

/// Seconds of all this process's threads so far.
fn processor() -> Result<f64, Box<dyn Error>> {
    let text = std::fs::read_to_string("/proc/self/stat")?;
    let after_name = text.rsplit(')').next().unwrap_or_default();
    let ticks = after_name.split_whitespace().skip(11).take(2).map(str::parse::<f64>);
    Ok(ticks.sum::<Result<f64, _>>()? / 100.0)
}

async fn time(seq: usize, rounds: usize) -> Result<(), Box<dyn Error>> {
    let gpu = Gpu::open(&Selector::default()).await?;
    let all = [
        ("in registers", fused_attention(seq)?, false),
        ("in passes", fused_attention(seq)?, true),
        ("unfused", unfused_attention(seq)?, false),
    ];
    let mut executors = Vec::new();
    for (name, graph, last) in all {
        let plan = compile(&graph, gpu.limits(), &mut Pick(last))?;
        println!("{name:12} {:6.1} MB on the device", plan.totals().device_bytes() as f64 / 1e6);
        // What is computed of zeros takes as long as anything.
        let mut executor = Executor::new(&gpu, &plan, &mut States::new(&gpu)).await?;
        executor.run().await?;
        executors.push((name, executor));
    }
    for _ in 0..rounds {
        for (name, executor) in &mut executors {
            let start = processor()?;
            for _ in 0..RUNS {
                executor.run().await?;
            }
            println!("{name:12} {:6.1} ms of processor time a run", (processor()? - start) / RUNS as f64 * 1e3);
        }
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let numbers = std::env::args().skip(1).map(|text| text.parse()).collect::<Result<Vec<usize>, _>>()?;
    let number = |i: usize, otherwise| numbers.get(i).copied().unwrap_or(otherwise);
    pollster::block_on(time(number(0, 1024), number(1, 6)))
}
