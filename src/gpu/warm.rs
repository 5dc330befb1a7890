//! Compiling before anything runs, on as many threads as there are. Not needed for right numbers, only for an early
//! first step.

use super::{Access, Buffer, Gpu, Pipeline, Selector};
use crate::error::Result;
use pollster::block_on;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// A driver that takes longer than this for one shader has not seen it before, and more of the kind will follow. What it has seen takes
/// some milliseconds, several times that where the machine has other things to do.
const SLOW: Duration = Duration::from_millis(100);

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

/// Shaders that several threads share out among themselves.
struct Queue<'a> {
    shaders: &'a [&'a Compile],
    next: AtomicUsize,
    done: AtomicUsize,
    stop: &'a AtomicBool,
}

impl Gpu {
    /// Compiles those shaders that this device has not compiled yet, longest first, on up to `threads` threads, and gives the
    /// number of those that went well. What fails here fails again, and is reported, where it is needed. Once `stop` is set, no
    /// further shader is begun.
    ///
    /// Most drivers compile when a pipeline is made. Those that compute on the CPU compile at a pipeline's first
    /// dispatch, in the one thread that serves a device's queue: there a dispatch of nothing (no workgroups) follows, and as soon
    /// as one turns out to be slow, threads with a device of their own share these, and this device finds the result in the
    /// driver's cache on disk. Where that is switched off, this device compiles the others' part again, as it would have without
    /// them.
    pub fn compile_early(&self, shaders: &[Compile], threads: usize, stop: &AtomicBool) -> usize {
        let mut new: Vec<&Compile> = shaders.iter().filter(|s| !self.pipelines().contains_key(&s.text)).collect();
        new.sort_by_key(|s| std::cmp::Reverse(s.text.len()));
        let mut helpers = threads.min(new.len()).saturating_sub(1);
        let queue = Queue::new(&new, stop);
        std::thread::scope(|scope| {
            // OpenGL has one context, which is locked while it compiles: who waits for that over some seconds panics.
            let beside = if self.report().backend == "gl" { 0 } else { helpers };
            (0..beside).for_each(|_| _ = scope.spawn(|| queue.make(self)));
            queue.make(self);
        });
        if !self.limits().is_cpu {
            return queue.done.into_inner();
        }
        let queue = Queue::new(&new, stop);
        std::thread::scope(|scope| {
            queue.dispatch(self, || {
                for _ in 0..std::mem::take(&mut helpers) {
                    scope.spawn(|| self.sibling().into_iter().for_each(|gpu| queue.dispatch(&gpu, || {})));
                }
            });
        });
        queue.done.into_inner()
    }

    /// Another device of the same adapter.
    fn sibling(&self) -> Result<Gpu> {
        block_on(Gpu::open(&Selector::Number(self.report().number)))
    }
}

impl<'a> Queue<'a> {
    fn new(shaders: &'a [&'a Compile], stop: &'a AtomicBool) -> Queue<'a> {
        Queue { shaders, next: AtomicUsize::new(0), done: AtomicUsize::new(0), stop }
    }

    /// What nobody has taken yet, unless it is to end; a device that fails here says so at its next call.
    fn take(&self, gpu: &Gpu) -> Option<&Compile> {
        let is_over = self.stop.load(Ordering::Relaxed) || gpu.check().is_err();
        self.shaders.get(self.next.fetch_add(1, Ordering::Relaxed)).copied().filter(|_| !is_over)
    }

    fn did(&self, result: &Result<()>) {
        self.done.fetch_add(usize::from(result.is_ok()), Ordering::Relaxed);
    }

    /// Makes pipelines.
    fn make(&self, gpu: &Gpu) {
        while let Some(shader) = self.take(gpu) {
            self.did(&block_on(pipeline(gpu, shader)).map(drop));
        }
    }

    /// Makes pipelines where they are not there, and dispatches nothing with them; calls `slow` whenever that was.
    fn dispatch(&self, gpu: &Gpu, mut slow: impl FnMut()) {
        let mut nothing = None;
        while let Some(shader) = self.take(gpu) {
            let started = Instant::now();
            self.did(&block_on(dispatch(gpu, shader, &mut nothing)));
            if started.elapsed() > SLOW {
                slow();
            }
        }
        if nothing.take().is_some() {
            // Gives the buffers back.
            let _ = block_on(gpu.finish());
        }
    }
}

async fn pipeline(gpu: &Gpu, shader: &Compile) -> Result<Arc<Pipeline>> {
    gpu.pipeline(&shader.label, &shader.text, &shader.bindings).await
}

async fn dispatch(gpu: &Gpu, shader: &Compile, nothing: &mut Option<Nothing>) -> Result<()> {
    let pipeline = pipeline(gpu, shader).await?;
    if nothing.is_none() {
        *nothing = Some(Nothing::new(gpu).await?);
    }
    let nothing = nothing.as_ref().expect("made above");
    nothing.dispatch(gpu, &pipeline, &shader.bindings).await
}

/// What a dispatch of no workgroups is bound to: a buffer an access, since none is bound both ways in one dispatch.
struct Nothing {
    uniform: Buffer,
    read: Buffer,
    written: Buffer,
}

impl Nothing {
    async fn new(gpu: &Gpu) -> Result<Nothing> {
        // Larger than any `Params`, and than an element of any binding.
        let (label, bytes) = ("nothing", 1024);
        let uniform = gpu.uniform(label, bytes).await?;
        Ok(Nothing { uniform, read: gpu.storage(label, bytes).await?, written: gpu.storage(label, bytes).await? })
    }

    async fn dispatch(&self, gpu: &Gpu, pipeline: &Pipeline, bindings: &[(u32, Access)]) -> Result<()> {
        let range = |access| match access {
            Access::Uniform => self.uniform.whole(),
            Access::Read => self.read.whole(),
            Access::ReadWrite => self.written.whole(),
        };
        let ranges: Vec<_> = bindings.iter().map(|&(index, access)| (index, range(access))).collect();
        let group = gpu.bind(pipeline, &ranges).await?;
        let mut submission = gpu.submission();
        submission.dispatch(pipeline, &group, [0; 3]);
        submission.submit()?.wait(gpu).await
    }
}
