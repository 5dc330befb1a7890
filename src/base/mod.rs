//! Plain values that every room may use: shapes, dtypes, limits as data, axes of ranks, host arrays, random numbers,
//! tolerances.

mod array;
mod axis;
mod bytes;
mod files;
mod limits;
pub mod nf4;
#[cfg(test)]
mod nf4_tests;
pub mod packed;
#[cfg(test)]
mod packed_tests;
pub mod quantise;
mod rng;
mod tensor_type;
mod tolerance;
mod words;

pub use array::{Array, to_half};
pub use axis::Axis;
pub use bytes::Bytes;
pub use files::{read_at, read_bytes, read_given_text, read_optional_text, read_text};
pub use limits::{AdapterId, Limits};
pub use rng::Rng;
pub use tensor_type::{Block, DType, Shape, TensorType};
pub use tolerance::Tolerance;
pub use words::count;
