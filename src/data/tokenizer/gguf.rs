//! A model's tokenizer, wherever the model keeps it: files beside the weights, or keys of a GGUF file.

use super::{Tokenizer, Vocabulary};
use crate::error::{Error, Result};
use crate::store::gguf::{Metadata, Value, passed_over, special_token};
use crate::store::{Checkpoint, Origin, TEMPLATES_FOLDER, TOKENIZER_FILES};
use std::path::PathBuf;

/// The key of the default chat template, and how those of others begin, which end with their names.
pub(super) const TEMPLATE: &str = "tokenizer.chat_template";
pub(super) const NAMED_TEMPLATE: &str = "tokenizer.chat_template.";

impl Vocabulary {
    /// The vocabulary that a GGUF file holds.
    ///
    /// # Errors
    /// If there is none, or a key holds another type than it should.
    pub fn from_metadata(metadata: &Metadata) -> Result<Vocabulary> {
        let key = |name: &str| format!("tokenizer.ggml.{name}");
        let Some(model) = metadata.string(&key("model"))? else {
            return Err(Error::file(metadata.path(), "holds no tokenizer: the key tokenizer.ggml.model is missing"));
        };
        let text = |name: &str| Ok::<_, Error>(metadata.string(&key(name))?.map(str::to_string));
        let texts = |name: &str| -> Result<Vec<String>> {
            Ok(metadata.strings(&key(name))?.unwrap_or_default().into_iter().map(str::to_string).collect())
        };
        let numbers = |name: &str| Ok::<_, Error>(metadata.numbers(&key(name))?.unwrap_or_default());
        let named = |(name, value): (&str, &Value)| match value {
            Value::String(template) => Some((name.strip_prefix(NAMED_TEMPLATE)?.to_string(), template.clone())),
            _ => None,
        };
        Ok(Vocabulary {
            model: model.to_string(),
            pre: text("pre")?,
            tokens: texts("tokens")?,
            scores: numbers("scores")?.into_iter().map(|score| score as f32).collect(),
            types: numbers("token_type")?.into_iter().map(|kind| kind as i32).collect(),
            merges: texts("merges")?,
            bos: special_token(metadata, "bos")?,
            eos: special_token(metadata, "eos")?,
            eot: special_token(metadata, "eot")?,
            unknown: special_token(metadata, "unknown")?,
            add_bos: metadata.flag(&key("add_bos_token"))?,
            add_eos: metadata.flag(&key("add_eos_token"))?,
            add_space_prefix: metadata.flag(&key("add_space_prefix"))?,
            special_strips_right: metadata.string("general.architecture")? == Some("phi3"),
            chat_template: metadata.string(TEMPLATE)?.map(str::to_string),
            named_templates: metadata.iter().filter_map(named).collect(),
        })
    }
}

impl Tokenizer {
    /// The tokenizer of a model on disk.
    ///
    /// # Errors
    /// If there is none, it cannot be used, or it has more tokens than the model.
    pub fn of(checkpoint: &Checkpoint) -> Result<Tokenizer> {
        let (tokenizer, file) = match checkpoint.origin() {
            Origin::Folder(folder) => (Tokenizer::open(folder)?, folder.join("tokenizer.json")),
            Origin::Gguf(metadata) => {
                let vocabulary = Vocabulary::from_metadata(metadata)?;
                let inside = |error: Error| Error::file(metadata.path(), error.to_string());
                let tokenizer = Tokenizer::from_vocabulary(vocabulary).map_err(inside)?;
                (Tokenizer { notes: passed_over(metadata)?, ..tokenizer }, metadata.path().to_path_buf())
            }
        };
        let (tokens, rows) = (tokenizer.vocab_size(), checkpoint.config().vocab_size);
        if tokens > rows {
            let message =
                format!("has {tokens} tokens, and the model's configuration {rows}: one of the two is another model's");
            return Err(Error::file(file, message));
        }
        Ok(tokenizer)
    }
}

/// Names and contents of the files by which a model's tokenizer and templates are known in a folder: a folder's as they are,
/// a GGUF file's as made from its vocabulary; none where there is no tokenizer.
///
/// # Errors
/// If they cannot be read, or the vocabulary cannot be used.
pub fn tokenizer_files(checkpoint: &Checkpoint) -> Result<Vec<(String, Vec<u8>)>> {
    let folder = match checkpoint.origin() {
        Origin::Gguf(metadata) if metadata.get("tokenizer.ggml.tokens").is_none() => return Ok(Vec::new()),
        Origin::Gguf(_) => return Tokenizer::of(checkpoint)?.files(checkpoint.config().max_position_embeddings),
        Origin::Folder(folder) => folder,
    };
    let mut names: Vec<String> = TOKENIZER_FILES.map(String::from).into();
    let more = std::fs::read_dir(folder.join(TEMPLATES_FOLDER)).into_iter().flatten().flatten();
    names.extend(more.map(|entry| format!("{TEMPLATES_FOLDER}/{}", entry.file_name().to_string_lossy())));
    let there = names.into_iter().map(|name| (folder.join(&name), name)).filter(|(path, _)| path.is_file());
    let read =
        |(path, name): (PathBuf, String)| Ok((name, std::fs::read(&path).map_err(|e| Error::io("read", &path, e))?));
    there.map(read).collect()
}
