//! How fast kernels and whole steps are against what the device can do: what is measured, the report, its comparison with
//! an earlier one, and its pictures. The measuring itself is in `run`.

mod attention;
mod case;
mod comm;
mod compare;
mod hidden;
mod measure;
mod profile;
mod report;
mod suite;
mod svg;
mod trace;

pub use attention::{fused_attention, mixed_attention, unfused_attention};
pub use case::{Case, Scope};
#[cfg(feature = "mpi")]
pub use comm::measure_mpi;
pub use comm::{CommFigure, CommReport, measure_comm};
pub use compare::{Comparison, Move, Verdict, compare};
pub use hidden::{Hidden, measure_hidden, measure_hidden_among};
pub use measure::{Settings, measure, probe};
pub use profile::{HostRow, Profile, ProfileRow};
pub use report::{Entry, Report, kept_path};
pub use suite::suite;
pub use svg::roofline_svg;
pub use trace::trace_json;
