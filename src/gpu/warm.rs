//! Compiling before anything runs, on as many threads as there are. Not needed for right numbers, only for an early
//! first step.

use super::{Access, Gpu, Pipeline, Selector};
use crate::error::Result;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A shader to be compiled, as [`Gpu::pipeline`] wants it.
#[derive(Debug, Clone)]
pub struct Compile {
    /// The shader's name.
    pub label: String,
    /// Its WGSL.
    pub text: String,
    /// What it binds.
    pub bindings: Vec<(u32, Access)>,
}

impl Gpu {
    /// Compiles shaders on `threads` threads, longest first, and gives the number of those that went well. What fails
    /// here fails again, and is reported, where it is needed.
    ///
    /// Most drivers compile when a pipeline is made. Those that compute on the CPU compile at a pipeline's first
    /// dispatch, in the one thread that serves a device's queue: there each thread has a device of its own, dispatches
    /// nothing (no workgroups), and this device finds the result in the driver's cache on disk. Where that is switched
    /// off, this device compiles the others' part again, as it would have without them.
    pub fn compile_early(&self, shaders: &[Compile], threads: usize) -> usize {
        let mut order: Vec<&Compile> = shaders.iter().collect();
        order.sort_by_key(|s| std::cmp::Reverse(s.text.len()));
        let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let work = |gpu: &Gpu| {
            while let Some(shader) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
                match pollster::block_on(gpu.compile_one(shader)) {
                    Ok(()) => _ = done.fetch_add(1, Ordering::Relaxed),
                    Err(_) if gpu.check().is_err() => break,
                    Err(_) => {}
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..threads.min(order.len()) {
                scope.spawn(|| match self.limits().is_cpu {
                    true => self.sibling().into_iter().for_each(|gpu| work(&gpu)),
                    false => work(self),
                });
            }
            work(self);
        });
        done.into_inner()
    }

    /// Another device of the same adapter.
    fn sibling(&self) -> Result<Gpu> {
        pollster::block_on(Gpu::open(&Selector::Number(self.report().number)))
    }

    async fn compile_one(&self, shader: &Compile) -> Result<()> {
        let pipeline = self.pipeline(&shader.label, &shader.text, &shader.bindings).await?;
        if self.limits().is_cpu { self.dispatch_nothing(&pipeline, &shader.bindings).await } else { Ok(()) }
    }

    async fn dispatch_nothing(&self, pipeline: &Arc<Pipeline>, bindings: &[(u32, Access)]) -> Result<()> {
        // A buffer an access, since no buffer is bound both ways in one dispatch; larger than any `Params`.
        let bytes = 1024;
        let uniform = self.uniform("early", bytes).await?;
        let (read, written) = (self.storage("early", bytes).await?, self.storage("early", bytes).await?);
        let range = |access| match access {
            Access::Uniform => uniform.whole(),
            Access::Read => read.whole(),
            Access::ReadWrite => written.whole(),
        };
        let ranges: Vec<_> = bindings.iter().map(|&(index, access)| (index, range(access))).collect();
        let group = self.bind(pipeline, &ranges).await?;
        let mut submission = self.submission();
        submission.dispatch(pipeline, &group, [0; 3]);
        submission.submit()?.wait(self).await
    }
}
