//! Optimizers as graph nodes, scaling of the loss, and the learning rate over time.

mod adamw;
mod loss_scaling;
mod schedule;

pub use adamw::{HYPER, Optimizer};
pub use loss_scaling::{LossScaling, SCALER};
pub use schedule::Schedule;
