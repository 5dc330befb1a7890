//! Generation: the KV cache's plan, sampling, and the stream of tokens.

mod generator;
mod sample;

pub use generator::{Finish, Generator};
pub use sample::{Sampler, Sampling};
