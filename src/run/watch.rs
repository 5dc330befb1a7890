//! When a device works: asked every fraction of a millisecond, from beside what is measured.

use crate::gpu::Gpu;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Between two questions.
const PAUSE: Duration = Duration::from_micros(300);

/// A thread that asks.
pub struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<[Instant; 2]>>,
}

impl Watch {
    /// Watches a device from now on.
    pub fn start(gpu: &Gpu) -> Watch {
        let (gpu, stop) = (gpu.clone(), Arc::new(AtomicBool::new(false)));
        let asked = stop.clone();
        let thread = std::thread::spawn(move || {
            let (mut spans, mut since) = (Vec::new(), None);
            // A device that is lost says so to whom it works for.
            while let (false, Ok(works)) = (asked.load(Ordering::Relaxed), gpu.is_working()) {
                match (works, since) {
                    (true, None) => since = Some(Instant::now()),
                    (false, Some(begin)) => {
                        spans.push([begin, Instant::now()]);
                        since = None;
                    }
                    _ => {}
                }
                std::thread::sleep(PAUSE);
            }
            spans.extend(since.map(|begin| [begin, Instant::now()]));
            spans
        });
        Watch { stop, thread }
    }

    /// When it worked, until now.
    pub fn stop(self) -> Vec<[Instant; 2]> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_default()
    }
}

/// Seconds that lie in spans of both kinds; those of the second do not overlap.
pub fn overlap(some: &[[Instant; 2]], others: &[[Instant; 2]]) -> f64 {
    let common = |a: &[Instant; 2], b: &[Instant; 2]| {
        let (begin, end) = (a[0].max(b[0]), a[1].min(b[1]));
        end.saturating_duration_since(begin).as_secs_f64()
    };
    some.iter().flat_map(|a| others.iter().map(move |b| common(a, b))).sum()
}
