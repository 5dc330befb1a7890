//! Optimizers as graph nodes, scaling of the loss, and the learning rate over time.

mod copies;
mod judge;
mod layered;
mod muon;
mod norm;
mod optimizer;
mod pipelined;
mod rule;
mod schedule;
mod sharded;

pub use judge::{JUDGE, LossScaling};
pub use optimizer::{EMA, HYPER, KEEP, Optimizer, UPDATE_NORM};
pub use pipelined::{MicroBatch, Tally};
pub use rule::{Rule, Settings, Update};
pub use schedule::{Schedule, Shape};
pub use sharded::Shard;
