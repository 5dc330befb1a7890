//! Generation: the KV cache's plan, sampling, and the stream of tokens.

mod generator;
mod sample;
mod score;

pub use generator::{Finish, Generator};
pub use sample::{Sampler, Sampling};
pub use score::{Passage, Scorer, TokenScore};
