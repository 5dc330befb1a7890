//! From text and examples to batches: corpora, tokenizers, chat templates, tokenised shards, and loaders whose position can
//! be saved.
//!
//! ```text
//! Corpus ──units──▶ Encoder (Tokenizer, ChatTemplate) ──tokens, marks──▶ Shard (a file) ──rows──▶ Loader
//!                                                       Loader ──▶ Prefetch (a thread) ──▶ Batch [B, T]
//! ```

pub mod hash;

mod batch;
mod corpus;
mod encoder;
mod form;
mod lengths;
mod loader;
mod mix;
mod pack;
mod passages;
mod prefetch;
mod rows;
mod shard;
mod sources;
mod story;
mod stream;
mod template;
mod tokenizer;

pub use batch::{Batch, IGNORE};
pub use corpus::{Corpus, Piece, Record, Unit, Units};
pub use encoder::{Encoded, Encoder, LossOn};
pub use form::{Chat, Example, Form};
pub use lengths::longest_lengths;
pub use loader::{Loader, LoaderOptions, LoaderSource, LoaderState};
pub use pack::Bins;
pub use prefetch::Prefetch;
pub use rows::{Overlong, RowCounts, RowLayout};
pub use shard::{MASKED, SHARD_ENDING, Shard, ShardKind};
pub use sources::{DataSource, DataSources};
pub use story::StoryGrammar;
pub use stream::StreamDecoder;
pub use template::{ChatTemplate, Json, Message, RenderOptions, Rendered};
pub use tokenizer::{END_OF_TEXT, SMALLEST_VOCAB, Tokenizer, Vocabulary, tokenizer_files};
