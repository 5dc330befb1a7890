//! The operator library: one file an operator, and the table that lists them for tests and self-tests.

mod adamw;
mod attention;
mod attention_delta;
mod attention_grad;
mod cache_write;
mod copy;
mod cross_entropy;
mod embedding;
mod embedding_grad;
mod gaps;
mod linear_cross_entropy;
mod matmul;
mod rms_norm;
mod rms_norm_grad;
mod rope;
mod sum_squares;
pub mod table;
mod table_training;
mod windows;

pub use adamw::AdamW;
pub use attention::{Attention, Mask};
pub use attention_delta::AttentionDelta;
pub use attention_grad::{AttentionGradKeyValue, AttentionGradQuery};
pub use cache_write::CacheWrite;
pub use copy::Copy;
pub use cross_entropy::{CrossEntropyGrad, CrossEntropyLoss, CrossEntropyUpdate, IGNORE};
pub use embedding::Embedding;
pub use embedding_grad::EmbeddingGrad;
pub use gaps::gap_table;
pub use linear_cross_entropy::{LinearCrossEntropy, LinearCrossEntropyGrad};
pub use matmul::MatMul;
pub use rms_norm::RmsNorm;
pub use rms_norm_grad::{RmsNormGrad, RmsNormGradGain};
pub use rope::{Rope, rope_table};
pub use sum_squares::{GlobalNorm, SumParts, SumSquares};
