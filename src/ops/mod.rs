//! The operator library: one file an operator, and the table that lists them for tests and self-tests.

mod copy;
mod embedding;
mod embedding_grad;
mod matmul;
mod rms_norm;
mod rms_norm_grad;
mod rope;
pub mod table;
mod windows;

pub use copy::Copy;
pub use embedding::Embedding;
pub use embedding_grad::EmbeddingGrad;
pub use matmul::MatMul;
pub use rms_norm::RmsNorm;
pub use rms_norm_grad::{RmsNormGrad, RmsNormGradGain};
pub use rope::{Rope, rope_table};
