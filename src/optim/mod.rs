//! Optimizers as graph nodes, and the learning rate over time.

mod schedule;

pub use schedule::Schedule;
