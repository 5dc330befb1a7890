//! Generation: the KV cache's plan, sampling, and the stream of tokens; and how likely given tokens are.

mod generator;
mod options;
mod passes;
mod sample;
mod sampling;
mod score;
mod stop;

pub use generator::Generator;
pub use options::{Finish, Options, Overflow, Request};
pub use sample::Sampler;
pub use sampling::Sampling;
pub use score::{Passage, Scorer, TokenScore};
pub use stop::Stops;
