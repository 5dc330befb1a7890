//! Work for the device: dispatches and copies, recorded in order and submitted together.

use super::buffer::TicketCell;
use super::driver::driver;
use super::wait::Promise;
use super::{BindGroup, Buffer, Gpu, Pipeline, Range, Readback, Upload};
use crate::error::{Error, Result};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

/// A submission under way.
#[derive(Debug, Clone)]
pub struct Ticket {
    index: wgpu::SubmissionIndex,
}

impl Ticket {
    pub(super) fn cell() -> TicketCell {
        Arc::new(Mutex::new(None))
    }

    /// Waits until the submission is done.
    ///
    /// # Errors
    /// [`Error::Device`] if the device failed on the way.
    pub async fn wait(&self, gpu: &Gpu) -> Result<()> {
        let done = Promise::new();
        let callback = done.callback();
        gpu.queue().on_submitted_work_done(move || callback(()));
        if cfg!(target_arch = "wasm32") {
            done.get().await;
            return gpu.check();
        }
        // Natively the index is exact, where the callback would also wait for later submissions.
        gpu.drive(Some(self.index.clone()))
    }
}

/// Records dispatches and copies. Consecutive dispatches share one compute pass: a pass costs some 35 µs, a dispatch 2.
/// The device sees to it that each one sees what those before it wrote.
pub struct Submission {
    // Declared before the encoder, so that a pass left open is dropped first.
    pass: Option<wgpu::ComputePass<'static>>,
    encoder: wgpu::CommandEncoder,
    gpu: Gpu,
    cells: Cells,
    times: Option<Times>,
}

/// The slots that a submission uses, each once; for as few as a run of a plan has, nothing is allocated.
#[derive(Default)]
struct Cells {
    few: [Option<TicketCell>; 4],
    more: Vec<TicketCell>,
}

impl Cells {
    fn push(&mut self, cell: &TicketCell) {
        if self.iter().any(|there| Arc::ptr_eq(there, cell)) {
            return;
        }
        match self.few.iter_mut().find(|c| c.is_none()) {
            Some(free) => *free = Some(cell.clone()),
            None => self.more.push(cell.clone()),
        }
    }

    fn iter(&self) -> impl Iterator<Item = &TicketCell> {
        self.few.iter().flatten().chain(&self.more)
    }
}

struct Times {
    queries: wgpu::QuerySet,
    passes: u32,
    capacity: u32,
    resolved: Buffer,
    slot: Readback,
}

/// When the passes of a submission began and ended.
#[derive(Debug)]
pub struct PassTimes {
    slot: Readback,
    passes: u32,
    period: f64,
}

impl PassTimes {
    /// Begin and end of each pass in seconds, by the device's clock.
    ///
    /// # Errors
    /// [`Error::Device`] if the device failed on the way.
    pub async fn read(&self, gpu: &Gpu) -> Result<Vec<(f64, f64)>> {
        if self.passes == 0 {
            return Ok(Vec::new());
        }
        let convert = |bytes: &[u8]| {
            let ticks: Vec<f64> = bytes
                .chunks_exact(8)
                .map(|b| u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]) as f64 * self.period)
                .collect();
            ticks.chunks_exact(2).map(|t| (t[0], t[1])).collect()
        };
        self.slot.read(gpu, u64::from(self.passes) * 16, convert).await
    }
}

impl Gpu {
    /// Begins to record.
    pub fn submission(&self) -> Submission {
        let encoder = driver(|| self.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default()));
        Submission { pass: None, encoder, gpu: self.clone(), cells: Cells::default(), times: None }
    }

    /// Begins to record, with the times of up to `passes` passes (at most 2,048); `None` where the device has no clock.
    ///
    /// # Errors
    /// As [`Gpu::storage`].
    pub async fn timed_submission(&self, passes: u32) -> Result<Option<Submission>> {
        if !self.has_timestamps() {
            return Ok(None);
        }
        let capacity = passes.clamp(1, 2048);
        let descriptor = wgpu::QuerySetDescriptor { label: None, ty: wgpu::QueryType::Timestamp, count: capacity * 2 };
        let bytes = u64::from(capacity) * 16;
        let queries = self.device().create_query_set(&descriptor);
        let usage = wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC;
        let resolved = self.create("timestamps", bytes, usage).await?;
        let slot = self.readback(bytes).await?;
        let mut submission = self.submission();
        submission.times = Some(Times { queries, passes: 0, capacity, resolved, slot });
        Ok(Some(submission))
    }
}

impl Submission {
    /// Runs a pipeline over workgroups in x, y and z.
    pub fn dispatch(&mut self, pipeline: &Pipeline, group: &BindGroup, workgroups: [u32; 3]) {
        let (encoder, times) = (&mut self.encoder, &mut self.times);
        let pass = self.pass.get_or_insert_with(|| {
            let timestamp_writes = times.as_mut().filter(|t| t.passes < t.capacity).map(|t| {
                t.passes += 1;
                wgpu::ComputePassTimestampWrites {
                    query_set: &t.queries,
                    beginning_of_pass_write_index: Some(t.passes * 2 - 2),
                    end_of_pass_write_index: Some(t.passes * 2 - 1),
                }
            });
            let descriptor = wgpu::ComputePassDescriptor { label: None, timestamp_writes };
            driver(|| encoder.begin_compute_pass(&descriptor).forget_lifetime())
        });
        driver(|| {
            pass.set_pipeline(&pipeline.raw);
            pass.set_bind_group(0, &group.raw, &[]);
            pass.dispatch_workgroups(workgroups[0], workgroups[1], workgroups[2]);
        });
    }

    /// Ends the pass under way: the next dispatch begins another, with times of its own.
    pub fn split(&mut self) {
        driver(|| self.pass = None);
    }

    fn copy_raw(&mut self, from: Range<'_>, to: &Buffer, offset: u64) -> Result<()> {
        let fits = |buffer: &Buffer, offset: u64| offset + from.bytes <= buffer.bytes() && offset.is_multiple_of(4);
        if !(fits(from.buffer, from.offset) && fits(to, offset) && from.bytes.is_multiple_of(4)) {
            return Err(Error::Device(format!(
                "a copy of {} bytes from {} to {offset} does not fit",
                from.bytes, from.offset
            )));
        }
        self.split();
        driver(|| self.encoder.copy_buffer_to_buffer(&from.buffer.raw, from.offset, &to.raw, offset, from.bytes));
        Ok(())
    }

    /// Copies between two buffers, or two places of one that do not overlap.
    ///
    /// # Errors
    /// [`Error::Device`] if a range does not fit or is not whole words.
    pub fn copy(&mut self, from: Range<'_>, to: &Buffer, offset: u64) -> Result<()> {
        self.copy_raw(from, to, offset)
    }

    /// Fills a range with zeros.
    pub fn clear(&mut self, range: Range<'_>) {
        self.split();
        self.encoder.clear_buffer(&range.buffer.raw, range.offset, Some(range.bytes));
    }

    /// Copies to the start of a slot that the host reads.
    ///
    /// # Errors
    /// As [`Submission::copy`].
    pub fn copy_out(&mut self, from: Range<'_>, slot: &Readback) -> Result<()> {
        self.copy_out_at(from, slot, 0)
    }

    /// Copies to some place in a slot that the host reads.
    ///
    /// # Errors
    /// As [`Submission::copy`].
    pub fn copy_out_at(&mut self, from: Range<'_>, slot: &Readback, offset: u64) -> Result<()> {
        self.cells.push(&slot.last);
        self.copy_raw(from, &slot.buffer, offset)
    }

    /// Copies `bytes` bytes from `offset` in a slot that the host has filled.
    ///
    /// # Errors
    /// As [`Submission::copy`].
    pub fn copy_in(&mut self, slot: &Upload, offset: u64, to: Range<'_>) -> Result<()> {
        self.cells.push(&slot.last);
        self.copy_raw(slot.buffer.range(offset, to.bytes), to.buffer, to.offset)
    }

    /// Hands the work to the device.
    ///
    /// # Errors
    /// [`Error::Device`] if the device is lost or refuses the work.
    pub fn submit(self) -> Result<Ticket> {
        Ok(self.submit_timed()?.0)
    }

    /// [`Submission::submit`], with the times of the passes where the submission records them.
    ///
    /// # Errors
    /// As [`Submission::submit`].
    pub fn submit_timed(mut self) -> Result<(Ticket, Option<PassTimes>)> {
        self.split();
        let times = self.times.take().map(|t| {
            if t.passes > 0 {
                self.encoder.resolve_query_set(&t.queries, 0..t.passes * 2, &t.resolved.raw, 0);
                let bytes = u64::from(t.passes) * 16;
                self.encoder.copy_buffer_to_buffer(&t.resolved.raw, 0, &t.slot.buffer.raw, 0, bytes);
                self.cells.push(&t.slot.last);
            }
            let period = f64::from(self.gpu.queue().get_timestamp_period()) * 1e-9;
            PassTimes { slot: t.slot, passes: t.passes, period }
        });
        self.gpu.check()?;
        let (gpu, encoder) = (self.gpu, self.encoder);
        gpu.staged().store(0, Ordering::Relaxed);
        let index = gpu.handing_over(|| driver(|| gpu.queue().submit([encoder.finish()])));
        for cell in self.cells.iter() {
            *cell.lock().unwrap_or_else(|e| e.into_inner()) = Some(index.clone());
        }
        gpu.check()?;
        Ok((Ticket { index }, times))
    }
}
