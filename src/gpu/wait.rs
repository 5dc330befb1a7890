//! Futures for wgpu's callbacks, and the one place that waits natively.

use super::Gpu;
use super::driver::driver;
use crate::error::{Error, Result};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};

struct State<T> {
    value: Option<T>,
    waker: Option<Waker>,
}

/// A value that a callback will bring. May be used again once it was brought.
pub(super) struct Promise<T>(Arc<Mutex<State<T>>>);

impl<T> std::fmt::Debug for Promise<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Promise")
    }
}

impl<T: Send + 'static> Promise<T> {
    pub(super) fn new() -> Self {
        Promise(Arc::new(Mutex::new(State { value: None, waker: None })))
    }

    /// The callback that keeps it; what an earlier one brought is forgotten.
    pub(super) fn callback(&self) -> impl FnOnce(T) + Send + use<T> {
        self.0.lock().unwrap_or_else(|e| e.into_inner()).value = None;
        let keep = self.0.clone();
        move |value| {
            let mut state = keep.lock().unwrap_or_else(|e| e.into_inner());
            state.value = Some(value);
            if let Some(waker) = state.waker.take() {
                waker.wake();
            }
        }
    }

    pub(super) async fn get(&self) -> T {
        std::future::poll_fn(|context| {
            let mut state = self.0.lock().unwrap_or_else(|e| e.into_inner());
            state.waker = Some(context.waker().clone());
            state.value.take().map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }
}

impl Gpu {
    /// Whether the device has done all that was submitted.
    ///
    /// # Errors
    /// [`Error::Device`] if it failed.
    pub fn is_idle(&self) -> Result<bool> {
        let polled = driver(|| self.device().poll(wgpu::PollType::Poll));
        let status = polled.map_err(|e| self.fault().unwrap_or_else(|| Error::Device(e.to_string())))?;
        Ok(status.is_queue_empty())
    }

    /// Whether the device works on what was submitted, or a thread hands something over to it: a device that computes on the CPU may
    /// do all of it on that thread, and lets nobody ask in the meantime.
    ///
    /// # Errors
    /// As [`Gpu::is_idle`].
    pub fn is_working(&self) -> Result<bool> {
        Ok(self.threads_handing_over().load(Ordering::Relaxed) > 0 || !self.is_idle()?)
    }

    /// Calls what hands over a submission.
    pub(super) fn handing_over<T>(&self, call: impl FnOnce() -> T) -> T {
        self.threads_handing_over().fetch_add(1, Ordering::Relaxed);
        let done = call();
        self.threads_handing_over().fetch_sub(1, Ordering::Relaxed);
        done
    }

    /// Drives the device until a submission (the latest where `None`) is done.
    ///
    /// Natively, wgpu makes progress only while some thread polls it: this is the one place where the library does.
    /// It holds the calling thread, as compiling and the tuner's measurements do. In a browser the event loop polls and this returns
    /// at once; the callers then wait in their futures.
    pub(super) fn drive(&self, until: Option<wgpu::SubmissionIndex>) -> Result<()> {
        #[cfg(not(target_arch = "wasm32"))]
        driver(|| self.device().poll(wgpu::PollType::Wait { submission_index: until, timeout: None }))
            .map_err(|e| self.fault().unwrap_or_else(|| Error::Device(e.to_string())))?;
        #[cfg(target_arch = "wasm32")]
        let _ = until;
        self.check()
    }
}
