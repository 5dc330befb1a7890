//! Compiling before anything runs, on as many threads as there are. Not needed for right numbers, only for an early
//! first step.

use super::{Access, Buffer, Gpu, Pipeline, Selector};
use crate::error::Result;
use pollster::block_on;
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
    shaders: Vec<&'a Compile>,
    next: AtomicUsize,
    done: AtomicUsize,
    stop: &'a AtomicBool,
}

impl Gpu {
    /// Compiles those shaders that this device has not compiled yet, longest first, and gives the number of those that
    /// went well. What fails here fails again, and is reported, where it is needed. Where the driver turns out to be
    /// slow, up to `threads` threads share the work. Once `stop` is set, no further shader is begun.
    ///
    /// Most drivers compile when a pipeline is made. Those that compute on the CPU compile at a pipeline's first
    /// dispatch, in the one thread that serves a device's queue: there each thread has a device of its own, dispatches
    /// nothing (no workgroups), and this device finds the result in the driver's cache on disk. Where that is switched
    /// off, this device compiles the others' part again, as it would have without them.
    pub fn compile_early(&self, shaders: &[Compile], threads: usize, stop: &AtomicBool) -> usize {
        let mut new: Vec<&Compile> = shaders.iter().filter(|s| !self.pipelines().contains_key(&s.text)).collect();
        new.sort_by_key(|s| std::cmp::Reverse(s.text.len()));
        let mut helpers = threads.min(new.len()).saturating_sub(1);
        let queue = Queue { shaders: new, next: AtomicUsize::new(0), done: AtomicUsize::new(0), stop };
        std::thread::scope(|scope| {
            queue.work(self, || {
                for _ in 0..std::mem::take(&mut helpers) {
                    scope.spawn(|| match self.limits().is_cpu {
                        true => self.sibling().into_iter().for_each(|gpu| queue.work(&gpu, || {})),
                        false => queue.work(self, || {}),
                    });
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

impl Queue<'_> {
    /// Compiles what nobody has taken yet; calls `slow` whenever the driver was.
    fn work(&self, gpu: &Gpu, mut slow: impl FnMut()) {
        let mut nothing = None;
        while let Some(shader) = self.shaders.get(self.next.fetch_add(1, Ordering::Relaxed)) {
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            let started = Instant::now();
            match block_on(compile(gpu, shader, &mut nothing)) {
                Ok(()) => _ = self.done.fetch_add(1, Ordering::Relaxed),
                Err(_) if gpu.check().is_err() => return,
                Err(_) => {}
            }
            if started.elapsed() > SLOW {
                slow();
            }
        }
        if nothing.take().is_some() {
            // Gives the buffers back; a device that fails here says so at its next call.
            let _ = block_on(gpu.finish());
        }
    }
}

async fn compile(gpu: &Gpu, shader: &Compile, nothing: &mut Option<Nothing>) -> Result<()> {
    let pipeline = gpu.pipeline(&shader.label, &shader.text, &shader.bindings).await?;
    if !gpu.limits().is_cpu {
        return Ok(());
    }
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
