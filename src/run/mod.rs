//! From plain data to numbers on a device.

mod bind;
mod kernel;

pub use bind::{check_range, params_bytes, resolve};
pub use kernel::{run_kernel, time_kernel};
