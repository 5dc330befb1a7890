//! From plain data to numbers on a device.

mod bind;
mod executor;
mod kernel;
mod states;

pub use bind::{check_range, params_bytes, resolve};
pub use executor::{Executor, Outputs, f32s};
pub use kernel::{run_kernel, time_kernel};
pub use states::States;
