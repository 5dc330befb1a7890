//! The device: the only room that names wgpu. Adapters, buffers, pipelines, submissions, timing, and what is lost.

mod adapter;
mod buffer;
mod device;
mod driver;
mod kept;
mod pipeline;
mod profile;
mod queue;
mod wait;
mod warm;
mod wide;

pub use adapter::{AdapterReport, Selector, host_memory, list};
pub use buffer::{Buffer, Range, Readback, Upload};
pub use device::Gpu;
pub use driver::in_driver;
pub use pipeline::{Access, BindGroup, Pipeline};
pub use profile::time;
pub use queue::{PassTimes, Submission, Ticket};
pub use warm::Compile;
pub use wide::widen;
