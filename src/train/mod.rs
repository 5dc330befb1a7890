//! The training loop: steps, validation, samples, what is told about them, and what is saved.

mod event;
mod fit;
mod prepare;
mod recipe;
mod session;
mod trainer;

pub use event::{Event, Observer};
pub use fit::{Fit, Plans, plans};
pub use prepare::{Prepared, prepare};
pub use recipe::{Precision, Recipe};
pub use session::{run, save};
pub use trainer::{StepResult, Trainer, check_fits, fill, optimizer, train_graph, train_plan};
