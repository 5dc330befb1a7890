//! From plain data to numbers on a device.

mod bind;
mod ceilings;
mod choices;
mod executor;
mod forecast;
mod kernel;
mod machine;
mod memory;
mod probe;
mod ranks;
mod recorder;
mod records;
mod roofline;
mod rounding;
mod states;
mod timing;
mod tuner;
mod watch;

pub use bind::{check_range, params_bytes, resolve};
pub use ceilings::{Class, ceiling_kernels};
pub use choices::{Choice, Choices};
pub use executor::{Executor, Outputs, Results, compile_all, compile_early, f32s};
pub use forecast::Forecast;
pub use kernel::{race_kernel, run_kernel, time_kernel};
pub use machine::{Ceiling, Machine};
pub use memory::{bytes_beside, check_memory, device_bytes};
pub use ranks::Talk;
pub use recorder::{DeviceSpan, Doing, HostSpan, Recorder, Run, StepInfo};
pub use records::{Barred, KernelId, Key, Records, Row, build};
pub use roofline::Roofline;
pub use rounding::misrounds;
pub use states::States;
pub use timing::Timing;
pub use tuner::{TuneMode, Tuner};
pub use watch::{Watch, overlap};
