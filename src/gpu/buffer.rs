//! Device memory, and the slots through which bytes travel to and from it.

use super::Gpu;
use super::device::describe;
use super::driver::driver;
use super::queue::Ticket;
use super::wait::Promise;
use crate::error::{Error, Result};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

/// Most bytes in flight between host and device in one step of a transfer.
const STAGING: usize = 16 << 20;

/// Device memory; zero when made. Clones share it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Buffer {
    pub(super) raw: wgpu::Buffer,
}

/// A range of a buffer, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Range<'a> {
    /// The buffer.
    pub buffer: &'a Buffer,
    /// First byte.
    pub offset: u64,
    /// Number of bytes; a multiple of 4.
    pub bytes: u64,
}

impl Buffer {
    /// Its size in bytes.
    pub fn bytes(&self) -> u64 {
        self.raw.size()
    }

    /// All of it.
    pub fn whole(&self) -> Range<'_> {
        self.range(0, self.bytes())
    }

    /// A part of it.
    pub fn range(&self, offset: u64, bytes: u64) -> Range<'_> {
        Range { buffer: self, offset, bytes }
    }

    fn check(&self, offset: u64, bytes: u64) -> Result<()> {
        let fits = offset.checked_add(bytes).is_some_and(|end| end <= self.bytes());
        if fits && offset.is_multiple_of(4) && bytes.is_multiple_of(4) {
            return Ok(());
        }
        let has = self.bytes();
        Err(Error::Device(format!("{bytes} bytes at {offset} are not words within a buffer of {has} bytes")))
    }
}

impl Gpu {
    /// Memory for tensors: zeroed, bindable as storage, and copyable both ways.
    ///
    /// # Errors
    /// [`Error::Memory`] if the device has not that much left or allows no buffer of this size.
    pub async fn storage(&self, label: &str, bytes: u64) -> Result<Buffer> {
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        self.create(label, bytes, usage).await
    }

    /// Memory for `Params`: zeroed, bindable as uniform, writable.
    ///
    /// # Errors
    /// As [`Gpu::storage`].
    pub async fn uniform(&self, label: &str, bytes: u64) -> Result<Buffer> {
        self.create(label, bytes, wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST).await
    }

    pub(super) async fn create(&self, label: &str, bytes: u64, usage: wgpu::BufferUsages) -> Result<Buffer> {
        self.check()?;
        let size = bytes.max(4).next_multiple_of(4);
        let memory = |had: u64, advice: &str| Error::Memory {
            what: label.to_string(),
            wanted: size,
            had,
            adapter: self.report().name.clone(),
            advice: advice.to_string(),
        };
        let max = self.limits().max_buffer_bytes;
        if size > max {
            return Err(memory(max, "that is its largest buffer: make the model or the batch smaller"));
        }
        let descriptor = wgpu::BufferDescriptor { label: Some(label), size, usage, mapped_at_creation: false };
        match self.scoped(|| self.device().create_buffer(&descriptor)).await {
            Ok(raw) => Ok(Buffer { raw }),
            Err(wgpu::Error::OutOfMemory { .. }) => {
                Err(memory(0, "its memory is full: make the batch smaller or close other programs that use it"))
            }
            Err(e) => Err(Error::Device(format!("{label}, {size} bytes: {}", describe(&e)))),
        }
    }

    /// Writes bytes (whole words) at an offset, before any later submission. What was written since the last one is waited for
    /// once that is much, so that staging memory stays bounded, in however many pieces it comes.
    ///
    /// # Errors
    /// [`Error::Device`] if the range does not fit, or the device is lost.
    pub async fn write(&self, buffer: &Buffer, offset: u64, bytes: &[u8]) -> Result<()> {
        self.check()?;
        buffer.check(offset, bytes.len() as u64)?;
        for (i, piece) in bytes.chunks(STAGING).enumerate() {
            self.queue().write_buffer(&buffer.raw, offset + (i * STAGING) as u64, piece);
            if self.staged().fetch_add(piece.len(), Ordering::Relaxed) + piece.len() >= STAGING {
                self.staged().store(0, Ordering::Relaxed);
                self.queue().submit([]);
                self.finish().await?;
            }
        }
        self.check()
    }

    /// Reads a range (whole words), after all that was submitted before.
    ///
    /// # Errors
    /// As [`Gpu::write`].
    pub async fn read(&self, range: Range<'_>) -> Result<Vec<u8>> {
        range.buffer.check(range.offset, range.bytes)?;
        let mut out = Vec::with_capacity(range.bytes as usize);
        if range.bytes == 0 {
            return Ok(out);
        }
        let slot = self.readback(range.bytes.min(STAGING as u64)).await?;
        let mut at = 0;
        while at < range.bytes {
            let piece = (range.bytes - at).min(STAGING as u64);
            let mut submission = self.submission();
            submission.copy_out(range.buffer.range(range.offset + at, piece), &slot)?;
            submission.submit()?;
            slot.read(self, piece, |bytes| out.extend_from_slice(bytes)).await?;
            at += piece;
        }
        Ok(out)
    }

    /// Waits until everything submitted so far is done.
    ///
    /// # Errors
    /// [`Error::Device`] if the device failed on the way.
    pub async fn finish(&self) -> Result<()> {
        let done = Promise::new();
        let callback = done.callback();
        self.queue().on_submitted_work_done(move || callback(()));
        self.drive(None)?;
        done.get().await;
        self.check()
    }

    /// A slot through which results reach the host; keep it and use it again.
    ///
    /// # Errors
    /// As [`Gpu::storage`].
    pub async fn readback(&self, bytes: u64) -> Result<Readback> {
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        let buffer = self.create("readback", bytes, usage).await?;
        Ok(Readback { buffer, last: Ticket::cell(), mapped: Promise::new() })
    }

    /// A slot through which data reach the device; keep it and use it again.
    ///
    /// # Errors
    /// As [`Gpu::storage`].
    pub async fn upload(&self, bytes: u64) -> Result<Upload> {
        let usage = wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::COPY_SRC;
        let buffer = self.create("upload", bytes, usage).await?;
        Ok(Upload { buffer, last: Ticket::cell(), mapped: Promise::new() })
    }

    async fn map(
        &self,
        slot: &Buffer,
        mode: wgpu::MapMode,
        bytes: u64,
        last: &TicketCell,
        mapped: &Mapped,
    ) -> Result<()> {
        slot.check(0, bytes)?;
        self.check()?;
        let callback = mapped.callback();
        driver(|| slot.raw.map_async(mode, 0..bytes, callback));
        let until = last.lock().unwrap_or_else(|e| e.into_inner()).clone();
        self.drive(until)?;
        mapped.get().await.map_err(|e| self.fault().unwrap_or_else(|| Error::Device(e.to_string())))
    }
}

/// The submission that used a slot last.
pub(super) type TicketCell = Arc<Mutex<Option<wgpu::SubmissionIndex>>>;

/// How the mapping of a slot went.
type Mapped = Promise<Result<(), wgpu::BufferAsyncError>>;

/// Host-visible memory that [`super::Submission::copy_out`] fills.
#[derive(Debug)]
pub struct Readback {
    pub(super) buffer: Buffer,
    pub(super) last: TicketCell,
    mapped: Mapped,
}

impl Readback {
    /// Its size in bytes.
    pub fn bytes(&self) -> u64 {
        self.buffer.bytes()
    }

    /// Waits for the submission that filled the slot, and hands its first `bytes` bytes to `f`.
    ///
    /// # Errors
    /// [`Error::Device`] if the device failed on the way.
    pub async fn read<T>(&self, gpu: &Gpu, bytes: u64, f: impl FnOnce(&[u8]) -> T) -> Result<T> {
        gpu.map(&self.buffer, wgpu::MapMode::Read, bytes, &self.last, &self.mapped).await?;
        let result = {
            let view = driver(|| self.buffer.raw.get_mapped_range(0..bytes));
            let view = view.map_err(|e| Error::Device(e.to_string()))?;
            let result = f(&view);
            driver(|| drop(view));
            result
        };
        driver(|| self.buffer.raw.unmap());
        Ok(result)
    }
}

/// Host-visible memory that [`super::Submission::copy_in`] copies from.
#[derive(Debug)]
pub struct Upload {
    pub(super) buffer: Buffer,
    pub(super) last: TicketCell,
    mapped: Mapped,
}

impl Upload {
    /// Its size in bytes.
    pub fn bytes(&self) -> u64 {
        self.buffer.bytes()
    }

    /// Waits for the submission that used the slot last, and puts `bytes` (whole words) at its start.
    ///
    /// # Errors
    /// [`Error::Device`] if they do not fit, or the device failed.
    pub async fn fill(&self, gpu: &Gpu, bytes: &[u8]) -> Result<()> {
        let len = bytes.len() as u64;
        gpu.map(&self.buffer, wgpu::MapMode::Write, len, &self.last, &self.mapped).await?;
        let view = driver(|| self.buffer.raw.get_mapped_range_mut(0..len));
        let mut view = view.map_err(|e| Error::Device(e.to_string()))?;
        view.copy_from_slice(bytes);
        driver(|| drop(view));
        driver(|| self.buffer.raw.unmap());
        Ok(())
    }
}
