//! Text ↔ token ids: a byte-level BPE trained on the spot, or any Hugging Face `tokenizer.json`.

mod beside;
mod export;
mod gguf;
mod kept;
mod pre;
mod vocabulary;

use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, Tokenizer as Inner};

use super::hash::Hasher;
use crate::error::{Error, Result};
use crate::store::Checkpoint;
use crate::store::gguf::ENDS;
pub use gguf::tokenizer_files;
pub use vocabulary::Vocabulary;

/// The special token of tokenizers trained here: it begins a prompt and ends a document. In text files, a line of it parts
/// documents.
pub const END_OF_TEXT: &str = "<|endoftext|>";

/// A byte-level BPE holds every byte and the special token.
pub const SMALLEST_VOCAB: usize = 256 + 1;

/// Names of the beginning-of-text token where no tokenizer_config.json says one, the likeliest first. `<|endoftext|>` is
/// one only where a config says so.
const BOS_NAMES: [&str; 3] = ["<|begin_of_text|>", "<s>", "<bos>"];

/// Longest tokenizer.json that is believed; the largest published ones have some 35 MB.
const MOST_BYTES: u64 = 96 << 20;

/// A tokenizer and its special tokens.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: Inner,
    bos: Option<u32>,
    eos: Option<u32>,
    eot: Option<u32>,
    vocab_size: usize,
    adds_bos: bool,
    adds_eos: bool,
    notes: Vec<String>,
    config: Map<String, Value>,
    hash: u64,
}

/// What puts tokens before and after a text; nothing where there are none.
fn around_text(inner: &Inner, [before, after]: [Option<u32>; 2]) -> tokenizers::Result<Option<TemplateProcessing>> {
    if before.or(after).is_none() {
        return Ok(None);
    }
    let name = |id: u32| inner.id_to_token(id).unwrap_or_default();
    let place = |id: Option<u32>| id.map(|id| json!({"SpecialToken": {"id": name(id), "type_id": 0}}));
    let text = Some(json!({"Sequence": {"id": "A", "type_id": 0}}));
    let single: Vec<Value> = [place(before), text, place(after)].into_iter().flatten().collect();
    let token = |id: u32| (name(id), json!({"id": name(id), "ids": [id], "tokens": [name(id)]}));
    let tokens: Map<String, Value> = before.into_iter().chain(after).map(token).collect();
    // By way of its JSON: the builder parses its templates, and a token's name may look like part of one.
    let template = json!({"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": tokens});
    Ok(Some(serde_json::from_value(template)?))
}

impl Tokenizer {
    /// Trains a byte-level BPE (Sennrich et al., 2016; over bytes as in GPT-2) of `vocab_size` tokens at most: fewer where
    /// the texts do not hold enough pairs. The same texts in the same order give the same tokenizer.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a vocabulary that cannot even hold the 256 bytes.
    pub fn train<S: AsRef<str> + Send>(texts: impl Iterator<Item = S> + Send, vocab_size: usize) -> Result<Tokenizer> {
        if vocab_size < SMALLEST_VOCAB {
            let message = format!(
                "a vocabulary of {vocab_size} is too small to train a tokenizer for; bytes alone need {SMALLEST_VOCAB}: \
                 raise \"vocab_size\" in the configuration, or give --tokenizer"
            );
            return Err(Error::Invalid(message));
        }
        let failed = |error: tokenizers::Error| Error::Invalid(format!("training the tokenizer failed: {error}"));
        let trainer = BpeTrainer::builder()
            .show_progress(false)
            .vocab_size(vocab_size)
            .min_frequency(2)
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .special_tokens(vec![AddedToken::from(END_OF_TEXT, true)])
            .build();
        let mut inner = Inner::new(BPE::default());
        inner.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
        inner.with_decoder(Some(ByteLevel::new(false, true, true)));
        inner.train(&mut TrainerWrapper::from(trainer), texts).map_err(failed)?;
        let id = inner.token_to_id(END_OF_TEXT).expect("the trainer puts special tokens first");
        // A prompt begins where a document does: after the end of the one before.
        let template = TemplateProcessing::builder()
            .try_single(format!("{END_OF_TEXT} $A"))
            .map_err(|error| failed(error.into()))?
            .special_tokens(vec![(END_OF_TEXT, id)])
            .build()
            .map_err(|error| failed(error.into()))?;
        inner.with_post_processor(Some(template));
        Self::of_trained(inner).map_err(failed)
    }

    /// A tokenizer trained here, whose one special token both begins and ends.
    fn of_trained(inner: Inner) -> tokenizers::Result<Tokenizer> {
        let named = |key: &str| (key.to_string(), json!(END_OF_TEXT));
        Self::finish(inner, ["bos_token", "eos_token"].map(named).into_iter().collect())
    }

    /// Opens a `tokenizer.json`, or the folder it lies in, or a model's GGUF file. A `tokenizer_config.json` beside it names the special tokens;
    /// without one they are found by their usual names. Chat templates are read along.
    ///
    /// # Errors
    /// A sentence for a file that is missing or that is no tokenizer.
    pub fn open(path: impl AsRef<Path>) -> Result<Tokenizer> {
        let path = path.as_ref();
        if path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("gguf")) {
            return Tokenizer::of(&Checkpoint::open(path)?);
        }
        let file: PathBuf = if path.is_dir() { path.join("tokenizer.json") } else { path.to_path_buf() };
        if !file.is_file() {
            return Err(Error::file(
                file,
                "no such file; a tokenizer is a tokenizer.json, the folder that holds one, or a GGUF file",
            ));
        }
        let text = crate::base::read_text(&file, MOST_BYTES)?;
        let not_one = |error: String| Error::file(&file, format!("is not a tokenizer.json that can be used: {error}"));
        // The library panics on some JSON that is broken off, so that is found first.
        serde_json::from_str::<serde::de::IgnoredAny>(&text).map_err(|error| not_one(error.to_string()))?;
        let inner = Inner::from_bytes(&text).map_err(|error| not_one(error.to_string()))?;
        let config = beside::read_config(file.parent().unwrap_or(Path::new("")))?;
        Self::finish(inner, config).map_err(|error| not_one(error.to_string()))
    }

    fn finish(mut inner: Inner, config: Map<String, Value>) -> tokenizers::Result<Tokenizer> {
        // Padding and truncation belong to whoever batches: here they would change a document.
        inner.with_padding(None);
        inner.with_truncation(None)?;
        let named = |key: &str| {
            let value = config.get(key)?;
            inner.token_to_id(value.as_str().or_else(|| value.get("content")?.as_str())?)
        };
        // Only what is marked as special: Qwen's vocabulary holds "<s>" as ordinary text.
        let marked = inner.get_added_tokens_decoder();
        let special = |name: &str| inner.token_to_id(name).filter(|id| marked.get(id).is_some_and(|t| t.special));
        let usual = |names: &[&str]| names.iter().find_map(|name| special(name));
        let eos = named("eos_token").or_else(|| usual(&ENDS));
        let bos = named("bos_token").or_else(|| usual(&BOS_NAMES));
        let around = inner.encode("a", true)?;
        let mut adds_bos = bos.is_some() && around.get_ids().first().copied() == bos;
        let mut adds_eos = eos.is_some() && around.get_ids().last().copied() == eos;
        // Either of these keys takes the place of what tokenizer.json says, as in `transformers`: what is not named is not added.
        let said = ["add_bos_token", "add_eos_token"].map(|key| config.get(key).and_then(Value::as_bool));
        if said != [None; 2] {
            let [begins, ends] = said.map(|adds| adds == Some(true));
            // Whoever names none means none; older folders name it elsewhere, or leave it to their class.
            let meant =
                |key: &str, usual: Option<u32>| if config.get(key).is_some_and(Value::is_null) { None } else { usual };
            let added = [meant("bos_token", bos).filter(|_| begins), meant("eos_token", eos).filter(|_| ends)];
            let text = inner.encode("a", false)?;
            let wanted = added[0].into_iter().chain(text.get_ids().iter().copied()).chain(added[1]);
            if !wanted.eq(around.get_ids().iter().copied()) {
                let around = around_text(&inner, added)?;
                inner.with_post_processor(around);
            }
            [adds_bos, adds_eos] = added.map(|id| id.is_some());
        }
        let highest = inner.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1);
        let mut hasher = Hasher::new();
        hasher.update(inner.to_string(false)?.as_bytes());
        for id in [bos, eos] {
            hasher.update(&id.map_or(u64::MAX, u64::from).to_le_bytes());
        }
        let hash = hasher.finish();
        let notes = Vec::new();
        Ok(Tokenizer { inner, bos, eos, eot: None, vocab_size: highest, adds_bos, adds_eos, notes, config, hash })
    }

    /// How many rows an embedding needs: the highest id plus one.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The id that begins a text, where the tokenizer has one.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The id that ends a document, where the tokenizer has one.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// What its user should know of it: sentences about what its file says and what could not be followed.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// A hash of everything that decides which ids a text gets, for cache keys.
    pub fn content_hash(&self) -> u64 {
        self.hash
    }

    /// A text's ids, without special tokens around it.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the tokenizer's words; a byte-level tokenizer has no reason for any.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_with(text, false)
    }

    /// A prompt's ids: as the tokenizer itself begins a text (usually with the id of [`Tokenizer::bos`]), and never empty
    /// where there is such an id.
    ///
    /// # Errors
    /// Those of [`Tokenizer::encode`].
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = self.encode_with(text, true)?;
        if let (true, Some(first)) = (ids.is_empty(), self.bos.or(self.eos)) {
            ids.push(first);
        }
        Ok(ids)
    }

    fn encode_with(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        match self.inner.encode_fast(text, special) {
            Ok(encoding) => Ok(encoding.get_ids().to_vec()),
            Err(error) => Err(Error::Invalid(format!("the tokenizer cannot encode the text: {error}"))),
        }
    }

    /// A text's ids, without special tokens around it, each with the range of bytes that it stands for.
    ///
    /// # Errors
    /// Those of [`Tokenizer::encode`].
    pub fn encode_ranges(&self, text: &str) -> Result<Vec<(u32, Range<usize>)>> {
        match self.inner.encode(text, false) {
            Ok(encoding) => {
                let ranges = encoding.get_offsets().iter().map(|&(start, end)| start..end);
                Ok(encoding.get_ids().iter().copied().zip(ranges).collect())
            }
            Err(error) => Err(Error::Invalid(format!("the tokenizer cannot encode the text: {error}"))),
        }
    }

    /// The texts of all special tokens.
    pub fn special_texts(&self) -> Vec<String> {
        let marked = self.inner.get_added_tokens_decoder();
        let mut texts: Vec<String> = marked.into_values().filter(|t| t.special).map(|t| t.content).collect();
        texts.sort();
        texts
    }

    /// The id that goes before every document of a shard: only where the tokenizer puts one there and it is not already
    /// the one that ended the document before.
    pub(super) fn document_prefix(&self) -> Option<u32> {
        self.bos.filter(|_| self.adds_bos && self.bos != self.eos)
    }

    /// The text of ids, special tokens left out. Ids outside of the vocabulary have no text.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the tokenizer's words.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let text = self.inner.decode(ids, true);
        text.map_err(|error| Error::Invalid(format!("the tokenizer cannot decode the ids: {error}")))
    }

    /// The text of ids, special tokens written out.
    ///
    /// # Errors
    /// Those of [`Tokenizer::decode`].
    pub fn decode_all(&self, ids: &[u32]) -> Result<String> {
        let text = self.inner.decode(ids, false);
        text.map_err(|error| Error::Invalid(format!("the tokenizer cannot decode the ids: {error}")))
    }

    /// `tokenizer.json` and `tokenizer_config.json`, each name with its content, for a model folder that `transformers`
    /// (`AutoTokenizer`) and [`Tokenizer::open`] read. What a `tokenizer_config.json` said when this tokenizer was
    /// opened, it says again.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the tokenizer's words.
    pub fn files(&self, model_max_length: usize) -> Result<Vec<(String, Vec<u8>)>> {
        let text = self.inner.to_string(true).map_err(|error| Error::Invalid(format!("tokenizer: {error}")))?;
        let mut config = self.config.clone();
        config.entry("tokenizer_class").or_insert_with(|| json!("PreTrainedTokenizerFast"));
        config.entry("model_max_length").or_insert_with(|| json!(model_max_length));
        config.entry("clean_up_tokenization_spaces").or_insert_with(|| json!(false));
        for (key, id) in [("bos_token", self.bos), ("eos_token", self.eos)] {
            if let Some(token) = id.and_then(|id| self.inner.id_to_token(id)) {
                config.entry(key).or_insert_with(|| json!(token));
            }
        }
        let config = serde_json::to_string_pretty(&Value::Object(config)).expect("JSON values serialise");
        let named = |name: &str, text: String| (name.to_string(), format!("{text}\n").into_bytes());
        Ok(vec![named("tokenizer.json", text), named("tokenizer_config.json", config)])
    }
}

#[cfg(test)]
mod tests;
