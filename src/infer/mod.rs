//! Generation: the KV cache's plan, sampling, and the stream of tokens; and how likely given tokens are.

mod conversation;
mod generator;
mod growing;
mod options;
mod passes;
mod plans;
mod sample;
mod sampling;
mod score;
mod stop;
mod suggested;

pub use conversation::{Answer, Conversation};
pub use generator::Generator;
pub use growing::Growing;
pub use options::{Finish, News, Options, Overflow, Request};
pub use plans::decode_graph;
pub use sample::Sampler;
pub use sampling::Sampling;
pub use score::{Passage, Scorer, TokenScore};
pub use stop::Stops;
pub use suggested::Suggested;
