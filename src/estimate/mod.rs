//! What training will take before anything is loaded: bytes by kind, what fits, time, energy and money.

mod answer;
mod fits;
mod job;
mod machine_file;
mod network;
mod part;
mod ranks;
mod remedy;
mod scale;
mod search;
mod setup;
mod shards;
mod usage;

pub use crate::parallel::Mesh;
pub use answer::{Answer, Cost, Prices, Span, Time, human_time, significant};
pub use fits::Fits;
pub use job::{Job, Parameters, Planned};
pub use machine_file::MachineFile;
pub use network::{Group, Level, Network};
pub use part::{Part, Parts, Work};
pub use remedy::remedy;
pub use scale::{Messages, Prediction, REACHED, Reached, Seconds, predict};
pub use search::{Asked, Found, Loser, search};
pub use setup::{Rate, Recompute, Setup, Storage};
pub use shards::Params;
pub use usage::Usage;
