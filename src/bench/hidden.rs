//! How much of the time in which ranks talk about gradients is hidden behind the backward pass.

use crate::comm::{Communicator, LocalComm};
use crate::compile::First;
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::model::ModelConfig;
use crate::optim::KEEP;
use crate::parallel::Mesh;
use crate::run::{Executor, States, Watch, overlap};
use crate::train::{Recipe, World, fill, optimizer, plans};
use pollster::block_on;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

/// What was measured, of the rank that hid least.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Hidden {
    /// Ranks, with a device handle each.
    pub ranks: usize,
    /// Sequences of each, and tokens of a sequence.
    pub batch: [usize; 2],
    /// Seconds of a step without its update: the median.
    pub seconds: f64,
    /// Seconds in which ranks talked in it.
    pub talking: f64,
    /// Those of them in which the device computed.
    pub hidden: f64,
    /// Bytes that a rank sends in it.
    pub sent: u64,
}

impl Hidden {
    /// Part of the talk that is hidden.
    pub fn share(&self) -> f64 {
        self.hidden / self.talking.max(1e-9)
    }
}

/// Measures steps of a model's shape on these devices, each of which computes `batch` sequences of so many tokens: ranks as threads.
///
/// # Errors
/// If a device has no room, or fails.
pub fn measure_hidden(gpus: &[Gpu], config: &ModelConfig, batch: [usize; 2], steps: usize) -> Result<Hidden> {
    let rank = |(gpu, comm): (&Gpu, LocalComm)| measure_hidden_among(gpu, Arc::new(comm), config, batch, steps);
    let told: Vec<Result<Hidden>> = std::thread::scope(|scope| {
        let start = |of| scope.spawn(move || rank(of));
        let threads: Vec<_> = gpus.iter().zip(LocalComm::group(gpus.len(), None)).map(start).collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        joined.map(|told| told.unwrap_or_else(|_| Err(Error::Rank("a rank panicked".into())))).collect()
    });
    // What one of them failed of says more than that others found it gone.
    let cause = told.iter().position(|told| told.as_ref().is_err_and(|e| !e.is_heard()));
    let all = match cause {
        Some(i) => return told.into_iter().nth(i).expect("it is there"),
        None => told.into_iter().collect::<Result<Vec<_>>>()?,
    };
    all.into_iter().next().ok_or_else(|| Error::Invalid("no ranks".into()))
}

/// The same as one of the ranks of any engine, on its device; all of them call this, and are told of the one that hid least.
///
/// # Errors
/// As [`measure_hidden`]; those of the communicator.
pub fn measure_hidden_among(
    gpu: &Gpu,
    comm: Arc<dyn Communicator>,
    config: &ModelConfig,
    batch: [usize; 2],
    steps: usize,
) -> Result<Hidden> {
    // What is said of the figures is no part of them.
    let world = World::of(Arc::from(comm.split(0, comm.rank() as u32)?));
    let own = block_on(rank(gpu, comm, config, batch, steps))?;
    let shares = world.gather(own.share().to_bits())?.into_iter().map(f64::from_bits);
    let least = shares.enumerate().min_by(|a, b| a.1.total_cmp(&b.1)).map_or(0, |(rank, _)| rank);
    world.told_by(least, (world.rank() == least).then_some(Ok(own)))
}

async fn rank(
    gpu: &Gpu,
    comm: Arc<dyn Communicator>,
    config: &ModelConfig,
    batch: [usize; 2],
    steps: usize,
) -> Result<Hidden> {
    let ranks = comm.size();
    let mesh = Mesh { data: ranks, ..Mesh::ONE };
    let recipe = Recipe { mesh, batch: ranks * batch[0], seq: batch[1], ..Recipe::default() };
    let plan = plans(config, &recipe, None, gpu.limits(), &mut First)?.train;
    let mut states = States::new(gpu);
    let mut executor = Executor::new(gpu, &plan, &mut states).await?;
    executor.join(comm).await?;
    fill(config, &optimizer(&recipe), &mut executor, &mut states).await?;
    executor.set(KEEP, &[0.0f32])?;
    // The first run makes room.
    executor.run().await?;
    let mut runs = Vec::new();
    for _ in 0..steps.max(1) {
        let (watch, began) = (Watch::start(gpu), Instant::now());
        executor.run().await?;
        let (seconds, busy, talks) = (began.elapsed().as_secs_f64(), watch.stop(), executor.talks());
        let talking: f64 = talks.iter().map(|[begin, end]| (*end - *begin).as_secs_f64()).sum();
        let sent = plan.sent().values().map(|sent| sent.bytes).sum();
        runs.push(Hidden { ranks, batch, seconds, talking, hidden: overlap(talks, &busy), sent });
    }
    runs.sort_by(|a, b| a.share().total_cmp(&b.share()));
    Ok(runs.swap_remove(runs.len() / 2))
}

impl fmt::Display for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Hidden { ranks, batch: [rows, seq], seconds, talking, sent, .. } = self;
        write!(
            f,
            "gradients of {ranks} ranks of {rows}x{seq} tokens: {} sent by each, {talking:.3} s of talk in a batch of \
             {seconds:.2} s, {:.1} % of it while the device computes",
            crate::compile::human_bytes(*sent),
            100.0 * self.share()
        )
    }
}
