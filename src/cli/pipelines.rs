//! What a driver compiled for one command, for the next one: a convenience, of which only the log says where it fails.

use super::paths;
use crate::gpu::Gpu;

/// Takes what is there, and collects what is compiled from now on.
pub(super) fn take(gpu: &Gpu) {
    if let Err(error) = gpu.keep_pipelines(&paths::cache()) {
        tracing::warn!("shaders are compiled anew: {error}");
    }
}

/// Leaves it behind.
pub(super) fn leave(gpu: &Gpu) {
    if let Err(error) = gpu.save_pipelines() {
        tracing::warn!("compiled shaders were not kept: {error}");
    }
}
