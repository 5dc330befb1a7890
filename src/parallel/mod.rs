//! Graphs for one device → graphs for one rank of many: values that ranks must agree on get a collective behind them. The
//! model's code knows nothing of it.

mod data;
mod mesh;
mod placement;
mod sequence;
mod tensor;

pub use data::sum_states;
pub use mesh::{Mesh, text as mesh_text};
pub use placement::Placement;
pub use sequence::SequenceAxis;
pub use tensor::{Given, TensorAxis};
