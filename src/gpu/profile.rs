//! How long work takes on the device.

use super::{Gpu, Submission};
use crate::error::Result;

/// Seconds that the recorded work takes: by the device's clock where it has one, else from submission to completion by
/// the host's.
///
/// # Errors
/// Those of `record`, and [`crate::error::Error::Device`] if the device fails.
pub async fn time(gpu: &Gpu, record: impl FnOnce(&mut Submission) -> Result<()>) -> Result<f64> {
    let mut submission = gpu.timed_submission(2048).await?.unwrap_or_else(|| gpu.submission());
    record(&mut submission)?;
    gpu.finish().await?;
    let start = std::time::Instant::now();
    let (ticket, times) = submission.submit_timed()?;
    ticket.wait(gpu).await?;
    let wall = start.elapsed().as_secs_f64();
    let passes = match times {
        Some(times) => times.read(gpu).await?,
        None => Vec::new(),
    };
    match (passes.first(), passes.last()) {
        // A clock that stands still or runs backwards is no clock.
        (Some((begin, _)), Some((_, end))) if end > begin => Ok(end - begin),
        _ => Ok(wall),
    }
}
