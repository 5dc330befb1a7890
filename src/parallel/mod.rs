//! Graphs for one device → graphs for one rank of many: values that ranks must agree on get a collective behind them. The
//! model's code knows nothing of it.

mod data;
mod expert;
mod gather;
mod gradients;
mod mesh;
mod placement;
mod schedule;
mod sequence;
mod stages;
mod tensor;
mod tied;

pub use data::{Tie, scatter_states, sum_states, sum_ties};
pub use expert::{ExpertAxis, OfRank};
pub use gather::{Stay, gather_ahead};
pub use gradients::{Sums, meet_gradients};
pub use mesh::{Mesh, Peers, text as mesh_text};
pub use placement::Placement;
pub use schedule::{Pass, Pipeline, Turn};
pub use sequence::SequenceAxis;
pub use stages::{Reader, Staged, Weight};
pub use tensor::{Given, TensorAxis};
pub use tied::meet_tied;
