//! Generation: the KV cache's plan, sampling, and the stream of tokens.

mod sample;

pub use sample::{Sampler, Sampling};
