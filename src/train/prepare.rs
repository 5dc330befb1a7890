//! From a recipe to a model's configuration, a tokenizer and batches.

use super::{Base, Event, Observer, Recipe};
use crate::data::{
    Corpus, Encoder, Loader, LoaderOptions, LoaderSource, Overlong, RowLayout, SHARD_ENDING, Shard, ShardKind,
    Tokenizer,
};
use crate::error::{Error, Result};
use crate::model::{ModelConfig, find_config};
use std::path::{Path, PathBuf};
use std::sync::Arc;

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

/// Finds the configuration, reads the data, trains or opens the tokenizer, tokenises into shards under `cache`. Of a recipe
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
    for (asked, what) in [
        (recipe.lora.is_some(), "lora trains adapters of a model that is there already"),
        (recipe.dpo.is_some(), "dpo measures by the model that training begins with, and a fresh one knows nothing"),
    ] {
        if asked && base.is_none() {
            return Err(Error::Invalid(format!("{what}; name one as model in the recipe, or by --model")));
        }
    }
    let Some(base) = base else { return fresh(recipe, cache, observer) };
    let (config, tokenizer) = base.parts(recipe.seq)?;
    tokenizer.notes().iter().for_each(|note| observer.event(&Event::Note { text: note.clone() }));
    let mut config = config;
    route(&mut config, recipe, observer)?;
    let loader = prepare_for(recipe, &config, &tokenizer, cache, observer)?;
    tell_filled(&config, recipe, &loader, observer);
    Ok(Prepared { config, tokenizer, loader, base: Some(base) })
}

/// What is prepared for a model that begins from nothing.
fn fresh(recipe: &Recipe, cache: &Path, observer: &mut dyn Observer) -> Result<Prepared> {
    let mut config = find_config(&recipe.config)?;
    let opened = open(recipe)?;
    let tokenizer = match &recipe.tokenizer {
        Some(path) => {
            let tokenizer = Tokenizer::open(path)?;
            tokenizer.notes().iter().for_each(|note| observer.event(&Event::Note { text: note.clone() }));
            tokenizer
        }
        None => {
            let corpora = opened.iter().map(Opened::corpus).collect::<Result<Vec<_>>>()?;
            Tokenizer::cached(cache, &corpora, config.vocab_size)?
        }
    };
    adapt(&mut config, &tokenizer, recipe, observer)?;
    route(&mut config, recipe, observer)?;
    let loader = load(recipe, opened, &tokenizer, cache, observer)?;
    tell_filled(&config, recipe, &loader, observer);
    Ok(Prepared { config, tokenizer, loader, base: None })
}

/// The same for a model that is there, with its own tokenizer: `config` stays as it is. Where the recipe has `[dpo]`, rows 2n and
/// 2n + 1 of a batch are the better and the worse answer to one prompt, of which only the last answers are to be predicted.
///
/// # Errors
/// Those of each part; [`Error::Invalid`] for a tokenizer with ids that the model has no embedding for, and for sequences
/// longer than the model's positions.
pub fn prepare_for(
    recipe: &Recipe,
    config: &ModelConfig,
    tokenizer: &Tokenizer,
    cache: &Path,
    observer: &mut dyn Observer,
) -> Result<Loader> {
    check_for(recipe, config, tokenizer, observer)?;
    load(recipe, open(recipe)?, tokenizer, cache, observer)
}

/// Refuses what does not fit a model that is there.
fn check_for(recipe: &Recipe, config: &ModelConfig, tokenizer: &Tokenizer, observer: &mut dyn Observer) -> Result<()> {
    recipe.check()?;
    if tokenizer.vocab_size() > config.vocab_size {
        let (ours, theirs) = (config.vocab_size, tokenizer.vocab_size());
        return Err(Error::Invalid(format!(
            "the tokenizer does not match the model: it has {theirs} tokens, and the model embeds {ours}; give the tokenizer \
             that the model was trained with"
        )));
    }
    if recipe.seq > config.max_position_embeddings {
        let (seq, max) = (recipe.seq, config.max_position_embeddings);
        let text = format!("sequences of {seq} tokens exceed the {max} positions that the model was trained for");
        observer.event(&Event::Note { text });
    }
    Ok(())
}

/// One of the places that a recipe names.
enum Opened {
    Corpus(Corpus),
    /// Tokenised already, by `danlu tokenize`.
    Shard(PathBuf, Shard),
}

/// What a recipe names.
fn open(recipe: &Recipe) -> Result<Vec<Opened>> {
    let one = |path: &Path| match path.extension().is_some_and(|ending| ending == SHARD_ENDING) {
        true => {
            let shard = Shard::open(path)?;
            shard.verify()?;
            Ok(Opened::Shard(path.into(), shard))
        }
        false => Ok(Opened::Corpus(Corpus::open(path)?)),
    };
    match &recipe.data.0[..] {
        [] => Ok(vec![Opened::Corpus(Corpus::stories(recipe.seed, recipe.stories))]),
        sources => sources.iter().map(|source| one(&source.path)).collect(),
    }
}

impl Opened {
    /// Its text, for a tokenizer that is trained on it.
    fn corpus(&self) -> Result<&Corpus> {
        match self {
            Opened::Corpus(corpus) => Ok(corpus),
            Opened::Shard(path, _) => {
                Err(Error::file(path, "is tokenised already; give --tokenizer, with which it was made"))
            }
        }
    }

    /// Its tokens, from the cache, newly made, or as they are; and what they are in words.
    fn shard(
        self,
        recipe: &Recipe,
        tokenizer: &Tokenizer,
        cache: &Path,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(Shard, String)> {
        let corpus = match self {
            Opened::Corpus(corpus) => corpus,
            Opened::Shard(path, shard) if !shard.is_of(tokenizer.content_hash()) => {
                return Err(Error::file(path, "was made with another tokenizer; make it anew with `danlu tokenize`"));
            }
            Opened::Shard(_, shard) => {
                shard.check_losses(recipe.loss_on)?;
                let what = format!("{}, tokenised already", shard.told());
                return Ok((shard, what));
            }
        };
        let encoder = Encoder::new(tokenizer, &corpus, recipe.loss_on)?;
        let shard = Shard::cached(cache, &corpus, &encoder, progress)?;
        let what = encoder.told(&corpus, &shard);
        Ok((shard, what))
    }
}

/// Tokenises what a recipe names into shards, and says what it is.
fn load(
    recipe: &Recipe,
    opened: Vec<Opened>,
    tokenizer: &Tokenizer,
    cache: &Path,
    observer: &mut dyn Observer,
) -> Result<Loader> {
    let (mut sources, pairs) = (Vec::new(), recipe.dpo.is_some());
    for (i, opened) in opened.into_iter().enumerate() {
        let refuse = |message: &str| match recipe.data.0.get(i) {
            Some(source) => Err(Error::file(&source.path, message)),
            None => Err(Error::Invalid(format!("the data {message}"))),
        };
        let (shard, what) = opened.shard(recipe, tokenizer, cache, &mut |done, total| {
            observer.event(&Event::Tokenising { done, total });
        })?;
        let kind = shard.kind();
        match kind {
            ShardKind::Pairs if !pairs => {
                return refuse("holds preference pairs (chosen and rejected), which `danlu dpo` trains on");
            }
            ShardKind::Text | ShardKind::Examples if pairs => {
                return refuse("must hold preference pairs (chosen and rejected, see docs/data.md)");
            }
            _ => {}
        }
        let text = kind == ShardKind::Text;
        // Of running text alone the count of its tokens says all.
        match &recipe.data.0[..] {
            [_, _, ..] => observer.event(&Event::Note { text: format!("{}: {what}", recipe.data.0[i].path.display()) }),
            _ if !text => observer.event(&Event::Note { text: format!("data: {what}") }),
            _ => {}
        }
        if text && recipe.pack && shard.documents() < 2 {
            return refuse(
                "is one document, and packed are whole ones, of which some are held out: part documents by lines that hold \
                 only <|endoftext|>, or leave --pack off",
            );
        }
        let overlong = recipe.overlong.unwrap_or(if text { Overlong::Split } else { Overlong::Truncate });
        let layout = match recipe.pack {
            _ if pairs => RowLayout::Pairs,
            true => RowLayout::Packed(overlong),
            false if text => RowLayout::Windows,
            false => RowLayout::Padded(overlong),
        };
        let weight = recipe.data.0.get(i).map_or(1.0, |source| source.weight);
        sources.push(LoaderSource { shard: Arc::new(shard), layout, weight });
    }
    let layouts: Vec<RowLayout> = sources.iter().map(|source| source.layout).collect();
    let options = LoaderOptions {
        batch: recipe.sequences(),
        seq: recipe.seq,
        seed: recipe.seed,
        val_fraction: recipe.val_fraction,
        lengths: recipe.lengths,
        accumulate: recipe.accumulate as usize,
    };
    let loader = Loader::mixed(sources, options)?;
    // Ranks see what one device sees, in rows of one length: they are to give the bits of as many batches.
    let loader = if recipe.mesh.ranks() > 1 { loader.filled_up() } else { loader };
    for (counts, layout) in loader.counts().iter().zip(layouts) {
        counts.told(layout, recipe.seq).into_iter().for_each(|text| observer.event(&Event::Note { text }));
    }
    loader.told().into_iter().for_each(|text| observer.event(&Event::Note { text }));
    Ok(loader)
}

/// What fills rows up takes part in the losses of routers: says so where there are such rows.
fn tell_filled(config: &ModelConfig, recipe: &Recipe, loader: &Loader, observer: &mut dyn Observer) {
    let has_losses = config.experts.is_some_and(|experts| experts.balance > 0.0 || experts.z > 0.0);
    if has_losses && loader.is_padded() && !recipe.pack {
        let text = "rows are filled up, and what fills them counts in the losses of routers: packed rows (--pack) have little of it";
        observer.event(&Event::Note { text: text.into() });
    }
}

/// Puts a recipe's losses of routers in the place of the configuration's.
fn route(config: &mut ModelConfig, recipe: &Recipe, observer: &mut dyn Observer) -> Result<()> {
    let keys = [("router_aux_loss", recipe.router_aux_loss), ("router_z_loss", recipe.router_z_loss)];
    let given = keys.iter().find_map(|(key, value)| Some((key, (*value)?)));
    match (&mut config.experts, given) {
        (Some(experts), _) => {
            experts.balance = recipe.router_aux_loss.unwrap_or(experts.balance);
            experts.z = recipe.router_z_loss.unwrap_or(experts.z);
            if recipe.dpo.is_some() && (experts.balance > 0.0 || experts.z > 0.0) {
                (experts.balance, experts.z) = (0.0, 0.0);
                let text =
                    "preference pairs are trained on without losses of routers: those that are asked for are left out";
                observer.event(&Event::Note { text: text.into() });
            }
        }
        (None, Some((key, value))) => {
            let message = format!("{key} is {value}, and the model has no experts, so no router; leave it out");
            return Err(Error::Invalid(message));
        }
        (None, None) => {}
    }
    Ok(())
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

#[cfg(test)]
mod tests;
