//! Scores of a model: perplexity of a text, and multiple choice and cloze items as lm-evaluation-harness scores them
//! (Gao et al., <https://github.com/EleutherAI/lm-evaluation-harness>).

mod harness;
mod items;
mod perplexity;

pub use harness::{Metric, Report, Task, evaluate};
pub use items::{Form, Item, read_items};
pub use perplexity::{Perplexity, Windows, perplexity};
