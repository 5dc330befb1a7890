//! From text to batches: corpora, tokenizers, tokenised shards, and loaders whose position can be saved.
//!
//! ```text
//! Corpus ──pieces──▶ Tokenizer ──tokens──▶ Shard (memory-mapped) ──windows──▶ Loader ──▶ [B, T] inputs, targets
//! ```

pub mod hash;

mod corpus;
mod loader;
mod mapped;
mod shard;
mod story;
mod stream;
mod template;
mod tokenizer;

pub use corpus::{Corpus, Piece, Pieces};
pub use loader::{Loader, LoaderOptions, LoaderState};
pub use shard::Shard;
pub use story::StoryGrammar;
pub use stream::StreamDecoder;
pub use template::{ChatTemplate, Json, Message, RenderOptions, Rendered};
pub use tokenizer::{END_OF_TEXT, SMALLEST_VOCAB, Tokenizer, Vocabulary, tokenizer_files};
