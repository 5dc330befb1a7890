//! From a recipe to a model's configuration, a tokenizer and batches.

use super::{Base, Event, Observer, Recipe};
use crate::data::{Corpus, Loader, LoaderOptions, Shard, Tokenizer};
use crate::error::{Error, Result};
use crate::model::{ModelConfig, find_config};
use std::path::Path;
use std::sync::Arc;

/// A tokenizer is trained on at most this much of the data, spread over all of it.
const TOKENIZER_SAMPLE: u64 = 16 << 20;

/// What a run works on.
pub struct Prepared {
    /// The model, with the tokenizer's vocabulary and special tokens.
    pub config: ModelConfig,
    /// Text ↔ tokens.
    pub tokenizer: Tokenizer,
    /// Batches.
    pub loader: Loader,
    /// The model that training begins with, where it is not a fresh one.
    pub base: Option<Arc<Base>>,
}

impl Prepared {
    /// The tokenizer's files, to be written beside the model: those of the model it came with are as they were.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn tokenizer_files(&self) -> Result<Vec<(String, Vec<u8>)>> {
        match &self.base {
            Some(base) => base.tokenizer_files(),
            None => self.tokenizer.files(self.config.max_position_embeddings),
        }
    }
}

/// Finds the configuration, reads the data, trains or opens the tokenizer, tokenises into a shard under `cache`. Of a recipe
/// that names a model, its folder or file is opened.
///
/// # Errors
/// Those of each part, in its own words.
pub fn prepare(recipe: &Recipe, cache: &Path, observer: &mut dyn Observer) -> Result<Prepared> {
    let base = recipe.model.as_deref().map(|model| Base::open(Path::new(model), model)).transpose()?;
    prepare_from(recipe, base.map(Arc::new), cache, observer)
}

/// The same, to go on with a model that is open already.
///
/// # Errors
/// Those of each part, in its own words.
pub fn prepare_from(
    recipe: &Recipe,
    base: Option<Arc<Base>>,
    cache: &Path,
    observer: &mut dyn Observer,
) -> Result<Prepared> {
    recipe.check()?;
    if recipe.lora.is_some() && base.is_none() {
        let message =
            "lora trains adapters of a model that is there already; name one as model in the recipe, or by --model";
        return Err(Error::Invalid(message.into()));
    }
    let corpus = match &recipe.data {
        Some(path) => Corpus::open(path)?,
        None => Corpus::stories(recipe.seed, recipe.stories),
    };
    let (config, tokenizer) = match &base {
        Some(base) => base.parts(recipe.seq)?,
        None => fresh(recipe, &corpus, observer)?,
    };
    tokenizer.notes().iter().for_each(|note| observer.event(&Event::Note { text: note.clone() }));
    let shard = Shard::cached(cache, &corpus, &tokenizer, &mut |done, total| {
        observer.event(&Event::Tokenising { done, total });
    })?;
    let options =
        LoaderOptions { batch: recipe.batch, seq: recipe.seq, seed: recipe.seed, val_fraction: recipe.val_fraction };
    Ok(Prepared { config, tokenizer, loader: Loader::new(Arc::new(shard), options)?, base })
}

/// The configuration and the tokenizer of a model that begins from nothing.
fn fresh(recipe: &Recipe, corpus: &Corpus, observer: &mut dyn Observer) -> Result<(ModelConfig, Tokenizer)> {
    let mut config = find_config(&recipe.config)?;
    let tokenizer = match &recipe.tokenizer {
        Some(path) => Tokenizer::open(path)?,
        None => Tokenizer::train(corpus.sample(TOKENIZER_SAMPLE)?.into_iter(), config.vocab_size)?,
    };
    adapt(&mut config, &tokenizer, recipe, observer)?;
    Ok((config, tokenizer))
}

/// A model trained from scratch takes its vocabulary from the tokenizer, and positions for the sequences it sees.
fn adapt(config: &mut ModelConfig, tokenizer: &Tokenizer, recipe: &Recipe, observer: &mut dyn Observer) -> Result<()> {
    let mut note = |text| observer.event(&Event::Note { text });
    if tokenizer.vocab_size() != config.vocab_size {
        let (ours, theirs) = (config.vocab_size, tokenizer.vocab_size());
        note(format!("the tokenizer has {theirs} tokens, the configuration {ours}: the model is built for {theirs}"));
        config.vocab_size = theirs;
    }
    if recipe.seq > config.max_position_embeddings {
        let (seq, max) = (recipe.seq, config.max_position_embeddings);
        note(format!("sequences of {seq} tokens exceed the configuration's {max} positions: raised to {seq}"));
        config.max_position_embeddings = seq;
    }
    let eos = tokenizer.eos().ok_or_else(|| {
        Error::Invalid("the tokenizer names no end-of-text token; documents could not be told apart".into())
    })?;
    config.bos_token_id = tokenizer.bos().or(Some(eos));
    config.eos_token_ids = vec![eos];
    Ok(())
}
