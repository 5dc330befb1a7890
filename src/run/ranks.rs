//! The steps of a plan at which ranks meet: bytes go to the host in pieces, are added up there, and come back. While a
//! piece is added, the next one is on its way.

use crate::comm::{Communicator, Element};
use crate::error::Result;
use crate::gpu::{Buffer, Gpu, Range, Readback, Upload};
use std::sync::Arc;
use std::time::Instant;

/// Bytes of a piece: large enough that a meeting costs little of its time, and a few of them no memory to speak of.
const PIECE: u64 = 8 << 20;

/// What a rank needs to meet the others.
pub(super) struct Ranks {
    comm: Arc<dyn Communicator>,
    down: [Readback; 2],
    up: [Upload; 2],
    piece: Vec<u8>,
    /// Seconds spent here, since they were last asked for.
    seconds: f64,
}

impl Ranks {
    /// `most`: bytes of the largest value that is summed.
    pub(super) async fn new(gpu: &Gpu, comm: Arc<dyn Communicator>, most: u64) -> Result<Ranks> {
        let piece = most.clamp(4, PIECE);
        let down = [gpu.readback(piece).await?, gpu.readback(piece).await?];
        let up = [gpu.upload(piece).await?, gpu.upload(piece).await?];
        Ok(Ranks { comm, down, up, piece: vec![0; piece as usize], seconds: 0.0 })
    }

    /// Replaces a range of f32 by its sum over all ranks; after everything that was submitted.
    pub(super) async fn all_reduce(&mut self, gpu: &Gpu, buffer: &Buffer, offset: u64, bytes: u64) -> Result<()> {
        let began = Instant::now();
        let piece = self.piece.len() as u64;
        let count = bytes.div_ceil(piece);
        let range = |i: u64| -> Range<'_> { buffer.range(offset + i * piece, piece.min(bytes - i * piece)) };
        for i in 0..=count {
            if i < count {
                let mut submission = gpu.submission();
                submission.copy_out(range(i), &self.down[i as usize % 2])?;
                submission.submit()?;
            }
            let Some(before) = i.checked_sub(1) else { continue };
            let (slot, range) = (before as usize % 2, range(before));
            let piece = &mut self.piece[..range.bytes as usize];
            self.down[slot].read(gpu, range.bytes, |bytes| piece.copy_from_slice(bytes)).await?;
            self.comm.all_reduce(piece, Element::F32)?;
            self.up[slot].fill(gpu, piece).await?;
            let mut submission = gpu.submission();
            submission.copy_in(&self.up[slot], 0, range)?;
            submission.submit()?;
        }
        self.seconds += began.elapsed().as_secs_f64();
        Ok(())
    }

    /// Seconds spent here since the last call.
    pub(super) fn take_seconds(&mut self) -> f64 {
        std::mem::take(&mut self.seconds)
    }
}
