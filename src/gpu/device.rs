//! An open device: what was asked of the adapter, and what happens when it fails.

use super::adapter::{self, AdapterReport, Selector};
use super::kept::Kept;
use super::pipeline::Pipeline;
use crate::base::Limits;
use crate::error::{Error, Result};
use std::collections::HashMap;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

/// An open device and its queue. Clones share it; every method takes `&self` and may be called from any thread.
#[derive(Clone)]
pub struct Gpu {
    inner: Arc<Inner>,
    limits: Arc<Limits>,
}

struct Inner {
    device: wgpu::Device,
    queue: wgpu::Queue,
    report: AdapterReport,
    chosen: String,
    /// The first error that no caller was there to receive; the device counts as lost from then on.
    fault: Arc<Mutex<Option<String>>>,
    pipelines: Mutex<HashMap<String, Arc<Pipeline>>>,
    kept: OnceLock<Kept>,
    /// Threads that hand a submission over just now.
    handing_over: AtomicUsize,
    /// Bytes that were written since the last submission, which wgpu holds until the next.
    staged: AtomicUsize,
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Gpu({})", self.inner.report.line())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

impl Gpu {
    /// Opens an adapter with all that it offers.
    ///
    /// # Errors
    /// [`Error::Adapter`] if none fits, or its driver refuses to open it.
    pub async fn open(selector: &Selector) -> Result<Gpu> {
        Gpu::open_as(selector, None).await
    }

    /// Opens an adapter with lower limits than it offers: what is found to work under WebGPU's defaults
    /// ([`Limits::default`]) works everywhere.
    ///
    /// # Errors
    /// As [`Gpu::open`]; also where the adapter offers less than `limits`.
    pub async fn open_with_limits(selector: &Selector, limits: &Limits) -> Result<Gpu> {
        Gpu::open_as(selector, Some(limits)).await
    }

    async fn open_as(selector: &Selector, restrict: Option<&Limits>) -> Result<Gpu> {
        let mut adapters = adapter::adapters().await;
        let reports: Vec<AdapterReport> = adapters.iter().map(|(_, r)| r.clone()).collect();
        let (number, chosen) = selector.choose(&reports)?;
        let (adapter, report) = adapters.swap_remove(number);
        let wanted = wgpu::Features::TIMESTAMP_QUERY
            | wgpu::Features::SUBGROUP
            | adapter::COOPERATIVE
            | wgpu::Features::SHADER_INT64
            | wgpu::Features::PIPELINE_CACHE;
        let required_limits = match restrict {
            None => adapter.limits(),
            Some(limits) => restricted(&adapter.limits(), limits),
        };
        // An adapter that is held to lower limits is held to what they say of f16 as well.
        let refused = restrict.map_or(wgpu::Features::empty(), |limits| {
            let none = wgpu::Features::empty();
            let f16 = if limits.has_f16 { none } else { adapter::COOPERATIVE };
            f16 | if limits.cooperative.is_empty() { wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX } else { none }
        });
        let required_features = adapter.features() & wanted & !refused;
        let experimental = required_features.contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX);
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("danlu"),
            required_features,
            // SAFETY: what the experiment may get wrong is a kernel's results, and those that use it are proved on the
            // adapter before they are trusted.
            experimental_features: if experimental {
                unsafe { wgpu::ExperimentalFeatures::enabled() }
            } else {
                wgpu::ExperimentalFeatures::disabled()
            },
            required_limits,
            // Plans take memory in few large buffers; small blocks only serve uniforms and staging.
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            ..Default::default()
        };
        let (device, queue) = adapter
            .request_device(&descriptor)
            .await
            .map_err(|e| Error::Adapter(format!("adapter {} cannot be opened: {e}", report.line())))?;
        let fault = Arc::new(Mutex::new(None));
        let keep = fault.clone();
        device.on_uncaptured_error(Arc::new(move |e| {
            lock(&keep).get_or_insert_with(|| describe(&e));
        }));
        let keep = fault.clone();
        device.set_device_lost_callback(move |reason, message| {
            if reason != wgpu::DeviceLostReason::Destroyed {
                lock(&keep).get_or_insert(format!("the device was lost: {message}"));
            }
        });
        let limits = Limits {
            memory_bytes: report.limits.memory_bytes,
            ..adapter::limits(&adapter, &device.limits(), device.features())
        };
        let pipelines = Mutex::new(HashMap::new());
        Ok(Gpu {
            limits: Arc::new(limits),
            inner: Arc::new(Inner {
                device,
                queue,
                report,
                chosen,
                fault,
                pipelines,
                kept: OnceLock::new(),
                handing_over: AtomicUsize::new(0),
                staged: AtomicUsize::new(0),
            }),
        })
    }

    /// What the adapter says of itself.
    pub fn report(&self) -> &AdapterReport {
        &self.inner.report
    }

    /// A sentence that says why this adapter was taken.
    pub fn chosen(&self) -> &str {
        &self.inner.chosen
    }

    /// What plans and kernels may use on this device.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The same device for somebody who keeps to lower limits, as where several share its memory.
    #[must_use]
    pub fn within(&self, limits: Limits) -> Gpu {
        Gpu { limits: Arc::new(limits), ..self.clone() }
    }

    /// True where the device can time itself.
    pub fn has_timestamps(&self) -> bool {
        self.inner.device.features().contains(wgpu::Features::TIMESTAMP_QUERY)
    }

    /// True where shaders may use subgroup operations.
    pub fn has_subgroups(&self) -> bool {
        self.inner.device.features().contains(wgpu::Features::SUBGROUP)
    }

    /// True where shaders may `enable f16`.
    pub fn has_f16(&self) -> bool {
        self.inner.device.features().contains(wgpu::Features::SHADER_F16)
    }

    /// True where storage is better read by 64 bits.
    pub(super) fn reads_wide(&self) -> bool {
        self.limits().is_cpu && self.inner.device.features().contains(wgpu::Features::SHADER_INT64)
    }

    /// Device memory in use: the label of each buffer and the bytes that its allocation takes, as the allocator counts them;
    /// nothing where the backend keeps no such count. Freed buffers leave with the next submission that is waited for.
    pub fn allocations(&self) -> Option<Vec<(String, u64)>> {
        let report = self.inner.device.generate_allocator_report()?;
        Some(report.allocations.into_iter().map(|a| (a.name, a.size)).collect())
    }

    /// Reports the error that came while nobody was listening, if any.
    ///
    /// # Errors
    /// [`Error::Device`] from the first failure on, for good: open the device anew.
    pub fn check(&self) -> Result<()> {
        self.fault().map_or(Ok(()), Err)
    }

    pub(super) fn fault(&self) -> Option<Error> {
        lock(&self.inner.fault).clone().map(Error::Device)
    }

    pub(super) fn device(&self) -> &wgpu::Device {
        &self.inner.device
    }

    pub(super) fn queue(&self) -> &wgpu::Queue {
        &self.inner.queue
    }

    pub(super) fn staged(&self) -> &AtomicUsize {
        &self.inner.staged
    }

    pub(super) fn threads_handing_over(&self) -> &AtomicUsize {
        &self.inner.handing_over
    }

    pub(super) fn kept(&self) -> &OnceLock<Kept> {
        &self.inner.kept
    }

    pub(super) fn pipelines(&self) -> MutexGuard<'_, HashMap<String, Arc<Pipeline>>> {
        lock(&self.inner.pipelines)
    }

    /// Runs `make` and hands on the error that the device found in it, of any kind.
    pub(super) async fn scoped<T>(&self, make: impl FnOnce() -> T) -> Result<T, wgpu::Error> {
        let filters = [wgpu::ErrorFilter::Internal, wgpu::ErrorFilter::OutOfMemory, wgpu::ErrorFilter::Validation];
        let scopes = filters.map(|f| self.device().push_error_scope(f));
        let made = make();
        // Popped at once, in reverse: scopes belong to this thread, and a future may wake on another one.
        let [internal, memory, validation] = scopes;
        let errors = (validation.pop(), memory.pop(), internal.pop());
        let first = errors.0.await.or(errors.1.await).or(errors.2.await);
        first.map_or(Ok(made), Err)
    }

    /// Destroys the device, as a lost one would be; for tests of what happens then.
    pub fn destroy(&self) {
        lock(&self.inner.fault).get_or_insert("the device was destroyed".into());
        self.inner.device.destroy();
    }
}

/// WebGPU's default limits with those of `limits` in their place, and no more than the adapter has elsewhere.
fn restricted(adapter: &wgpu::Limits, limits: &Limits) -> wgpu::Limits {
    let alignment = limits.binding_alignment as u32;
    wgpu::Limits {
        max_storage_buffer_binding_size: limits.max_binding_bytes,
        max_buffer_size: limits.max_buffer_bytes,
        min_storage_buffer_offset_alignment: alignment,
        min_uniform_buffer_offset_alignment: alignment,
        max_storage_buffers_per_shader_stage: limits.max_storage_bindings,
        max_compute_workgroups_per_dimension: limits.max_workgroups,
        max_compute_invocations_per_workgroup: limits.max_invocations,
        max_compute_workgroup_storage_size: limits.max_shared_bytes,
        ..wgpu::Limits::default().or_worse_values_from(adapter)
    }
}

/// An error of the device in one line.
pub(super) fn describe(error: &wgpu::Error) -> String {
    match error {
        wgpu::Error::OutOfMemory { .. } => "out of memory".into(),
        wgpu::Error::Validation { description, .. } => format!("a command was refused: {}", description.trim()),
        wgpu::Error::Internal { description, .. } => format!("the driver failed: {}", description.trim()),
    }
}
