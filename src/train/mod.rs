//! The training loop: steps, validation, samples, what is told about them, and what is saved.

mod base;
mod card;
mod checkpoints;
mod event;
mod export;
mod fit;
mod keeper;
mod log;
mod pace;
mod prepare;
mod recipe;
mod recovery;
mod resume;
mod save;
mod session;
mod trainer;

pub use base::{Base, Subject};
pub use checkpoints::{About, CheckpointOptions, Content, Progress};
pub use event::{Event, Observer};
pub use export::TrainedRun;
pub use fit::{Fit, Plans, plans};
pub use keeper::{Keeper, Kept};
pub use log::{EventFile, METRICS, Metric, Metrics, RECIPE, RunLog, crc32c, masked, read_metrics};
pub use pace::Pace;
pub use prepare::{Prepared, prepare, prepare_for, prepare_from, prepare_pairs};
pub use recipe::{Precision, Recipe};
pub use recovery::{OnDivergence, RecoveryOptions, Verdict};
pub use resume::{Resumption, unfinished};
pub use save::save;
pub use session::{Ending, run};
pub use trainer::{StepResult, Trainer, check_fits, fill, optimizer, schedule, train_graph, train_plan};
