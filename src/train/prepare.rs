//! From a recipe to a model's configuration, a tokenizer and batches.

use super::{Event, Observer, Recipe};
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
}

/// Finds the configuration, reads the data, trains or opens the tokenizer, tokenises into a shard under `cache`.
///
/// # Errors
/// Those of each part, in its own words.
pub fn prepare(recipe: &Recipe, cache: &Path, observer: &mut dyn Observer) -> Result<Prepared> {
    recipe.check()?;
    let mut config = find_config(&recipe.config)?;
    let corpus = match &recipe.data {
        Some(path) => Corpus::open(path)?,
        None => Corpus::stories(recipe.seed, recipe.stories),
    };
    let tokenizer = match &recipe.tokenizer {
        Some(path) => Tokenizer::open(path)?,
        None => Tokenizer::train(corpus.sample(TOKENIZER_SAMPLE)?.into_iter(), config.vocab_size)?,
    };
    adapt(&mut config, &tokenizer, recipe, observer)?;
    let shard = Shard::cached(cache, &corpus, &tokenizer, &mut |done, total| {
        observer.event(&Event::Tokenising { done, total });
    })?;
    let options =
        LoaderOptions { batch: recipe.batch, seq: recipe.seq, seed: recipe.seed, val_fraction: recipe.val_fraction };
    Ok(Prepared { config, tokenizer, loader: Loader::new(Arc::new(shard), options)? })
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
