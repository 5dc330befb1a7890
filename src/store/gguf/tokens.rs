//! What GGUF files say of tokens, for whoever reads or writes them: their types, which of them are special, and the texts
//! by which ends are known where no key names them.

use super::metadata::NO_TOKEN;
use super::{Metadata, Value};
use crate::error::Result;

/// `tokenizer.ggml.token_type`.
#[allow(missing_docs)]
pub mod token_type {
    pub const NORMAL: i32 = 1;
    pub const UNKNOWN: i32 = 2;
    pub const CONTROL: i32 = 3;
    pub const USER_DEFINED: i32 = 4;
    pub const UNUSED: i32 = 5;
    pub const BYTE: i32 = 6;
}

/// Texts of special tokens that end a text or a turn, in every model that has them; the likeliest end of a text first.
pub const ENDS: [&str; 13] = [
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<end_of_turn>",
    "<|return|>",
    "<|END_OF_TURN_TOKEN|>",
    "<EOT>",
    "[EOT]",
];

/// Tokens that keys name, as `tokenizer.ggml.NAME_token_id`, and which one llama.cpp takes in a SentencePiece vocabulary
/// that names none.
const SPECIAL: [(&str, Option<u32>); 5] =
    [("bos", Some(1)), ("eos", Some(2)), ("unknown", Some(0)), ("eot", None), ("eom", None)];

/// Number of tokens that the file lists, and what the key of a special token says.
fn named(metadata: &Metadata, name: &str) -> Result<(usize, Option<f64>)> {
    let count = match metadata.get("tokenizer.ggml.tokens") {
        Some(Value::Array(tokens)) => tokens.count,
        _ => usize::MAX,
    };
    Ok((count, metadata.number(&format!("tokenizer.ggml.{name}_token_id"))?))
}

/// The token that a key names, or the one that stands in for it. As in llama.cpp, an id of no token is passed over; some
/// writers put −1 for a token that there is none of.
///
/// # Errors
/// If the key holds no number.
pub fn special_token(metadata: &Metadata, name: &str) -> Result<Option<u32>> {
    let sentence_piece = metadata.string("tokenizer.ggml.model")? == Some("llama");
    let (count, id) = named(metadata, name)?;
    let default = SPECIAL.iter().find(|(special, _)| *special == name).and_then(|(_, id)| *id);
    match id {
        Some(id) if id < 0.0 || id == f64::from(NO_TOKEN) => Ok(None),
        Some(id) if id < count as f64 => Ok(Some(id as u32)),
        _ => Ok(default.filter(|id| sentence_piece && (*id as usize) < count)),
    }
}

/// A sentence for every key that names a token which is not there.
///
/// # Errors
/// As [`special_token`].
pub fn passed_over(metadata: &Metadata) -> Result<Vec<String>> {
    let mut sentences = Vec::new();
    for (name, _) in SPECIAL {
        if let (count, Some(id)) = named(metadata, name)?
            && id >= count as f64
            && id != f64::from(NO_TOKEN)
        {
            let instead = match special_token(metadata, name)? {
                Some(id) => format!("token {id} is taken"),
                None => "it is passed over".to_string(),
            };
            let path = metadata.path().display();
            let key = format!("tokenizer.ggml.{name}_token_id");
            sentences.push(format!("{path}: {key} is {id}, and there are only {count} tokens; {instead}"));
        }
    }
    Ok(sentences)
}
