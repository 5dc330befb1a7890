//! Optimizers as graph nodes, and the learning rate over time.

mod adamw;
mod schedule;

pub use adamw::{HYPER, Optimizer};
pub use schedule::Schedule;
