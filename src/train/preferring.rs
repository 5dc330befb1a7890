//! Training on preference pairs: the rewards of their answers, and their reference, that is what the model that training began
//! with says of each answer: computed once, and kept in a file that later runs on the same model and data read.

use super::graphs::ANSWERS;
use super::{Content, Event, Observer, Prepared, Recipe, Trainer};
use crate::data::{Batch, IGNORE, hash::Hasher, hash::hash};
use crate::error::{Error, Result};
use crate::run::Results;
use crate::store::atomic::{create_folder, write_file};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// What training has made of preference pairs: means over them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Rewards {
    /// Reward of the better answers: β times how much more likely they are than by the reference, in nats.
    pub chosen: f64,
    /// Of the worse ones.
    pub rejected: f64,
    /// The better ones' less the worse ones'.
    pub margin: f64,
    /// The share of pairs whose better answer has the higher reward.
    pub accuracy: f64,
}

impl Rewards {
    /// Of a run's output of this name, if it was one of pairs.
    pub(super) fn of(results: &Results<'_>, name: &str) -> Option<Rewards> {
        let pair = |n: usize| Some([results.element(name, 2 * n)?, results.element(name, 2 * n + 1)?].map(f64::from));
        Rewards::mean((0..).map_while(pair).map(|[chosen, rejected]| {
            let accuracy = if chosen > rejected { 1.0 } else { 0.0 };
            Rewards { chosen, rejected, margin: chosen - rejected, accuracy }
        }))
    }

    /// Whether all are numbers.
    pub fn is_finite(&self) -> bool {
        [self.chosen, self.rejected, self.margin, self.accuracy].iter().all(|x| x.is_finite())
    }

    /// Their mean, each counting as much; none of none.
    pub(super) fn mean(of: impl IntoIterator<Item = Rewards>) -> Option<Rewards> {
        let (mut sum, mut count) = (Rewards::default(), 0.0);
        for one in of {
            sum.chosen += one.chosen;
            sum.rejected += one.rejected;
            sum.margin += one.margin;
            sum.accuracy += one.accuracy;
            count += 1.0;
        }
        let Rewards { chosen, rejected, margin, accuracy } = sum;
        (count > 0.0).then(|| Rewards {
            chosen: chosen / count,
            rejected: rejected / count,
            margin: margin / count,
            accuracy: accuracy / count,
        })
    }
}

const MAGIC: &[u8; 8] = b"DANLUREF";
/// Magic, identity, number of entries, checksum of what follows: an entry each of a hash and an f32.
const HEADER: usize = 32;
const ENTRY: usize = 12;
/// What was computed is written at least so often.
const KEPT_EVERY: Duration = Duration::from_secs(60);

/// Of answers after their prompts, by a hash of both, log π by the model that training began with.
#[derive(Debug, Clone, PartialEq)]
pub struct References {
    path: PathBuf,
    identity: u64,
    answers: BTreeMap<u64, f32>,
}

impl References {
    /// Those in a folder that were found of this model, on this adapter, for these data; a sentence where the file is damaged, which
    /// then counts for nothing.
    pub fn open(folder: &Path, identity: u64) -> (References, Option<String>) {
        let path = folder.join(format!("{identity:016x}.reference"));
        let (answers, note) = match std::fs::read(&path) {
            Err(_) => (BTreeMap::new(), None),
            Ok(bytes) => match decode(&bytes, identity) {
                Some(answers) => (answers, None),
                None => {
                    let text = format!("{} is damaged: what it held is computed again", path.display());
                    (BTreeMap::new(), Some(text))
                }
            },
        };
        (References { path, identity, answers }, note)
    }

    /// How many answers are known.
    pub fn len(&self) -> usize {
        self.answers.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.answers.is_empty()
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether every answer of a batch is known.
    pub fn know(&self, batch: &Batch) -> bool {
        keys(batch).all(|key| self.answers.contains_key(&key))
    }

    /// Takes what was found of a batch's answers; what was known stays.
    pub fn put(&mut self, batch: &Batch, answers: &[f32]) {
        for (key, answer) in keys(batch).zip(answers) {
            self.answers.entry(key).or_insert(*answer);
        }
    }

    /// Of each row of a batch.
    ///
    /// # Errors
    /// If one is not known, which would be a bug.
    pub fn of(&self, batch: &Batch) -> Result<Vec<f32>> {
        let unknown = || Error::Graph("an answer has no reference".into());
        keys(batch).map(|key| self.answers.get(&key).copied().ok_or_else(unknown)).collect()
    }

    /// Writes the file.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn save(&self) -> Result<()> {
        let mut entries = Vec::with_capacity(self.answers.len() * ENTRY);
        for (key, answer) in &self.answers {
            entries.extend(key.to_le_bytes());
            entries.extend(answer.to_le_bytes());
        }
        let words = [self.identity, self.answers.len() as u64, hash(&entries)].map(u64::to_le_bytes);
        create_folder(self.path.parent().unwrap_or(Path::new("")))?;
        write_file(&self.path, &[&MAGIC[..], words.as_flattened(), &entries].concat())
    }
}

fn decode(bytes: &[u8], identity: u64) -> Option<BTreeMap<u64, f32>> {
    let (header, entries) = bytes.split_at_checked(HEADER)?;
    let word = |at: usize| header[at..].first_chunk().map(|word| u64::from_le_bytes(*word));
    let count = (entries.len() / ENTRY) as u64;
    let whole = header.starts_with(MAGIC) && entries.len() % ENTRY == 0 && word(8)? == identity && word(16)? == count;
    if !whole || word(24)? != hash(entries) {
        return None;
    }
    let entry =
        |bytes: &[u8]| Some((u64::from_le_bytes(*bytes.first_chunk()?), f32::from_le_bytes(*bytes.last_chunk()?)));
    entries.chunks_exact(ENTRY).map(entry).collect()
}

/// A hash of each row of a batch: of its text and of which of that is the answer, and not of what fills it up.
fn keys(batch: &Batch) -> impl Iterator<Item = u64> + '_ {
    batch.tokens.chunks_exact(batch.seq).zip(batch.targets.chunks_exact(batch.seq)).map(|(tokens, targets)| {
        let end = targets.iter().rposition(|target| *target != IGNORE).map_or(0, |last| last + 1);
        let mut hasher = Hasher::new();
        hasher.update(bytemuck::cast_slice(&tokens[..end]));
        hasher.update(bytemuck::cast_slice(&targets[..end]));
        hasher.finish()
    })
}

impl Trainer {
    /// Where preference pairs are trained on: finds what the model says now of all those that training and validation will see,
    /// which from here on is their reference, as far as a file in `folder` does not hold it. To be called before the first step,
    /// and before [`Trainer::restore`]. If `stop` is set meanwhile, what was found is kept and training cannot begin.
    ///
    /// # Errors
    /// If the device failed, the model gives no number, or the file cannot be written.
    pub async fn take_reference(
        &mut self,
        recipe: &Recipe,
        prepared: &Prepared,
        folder: &Path,
        stop: &AtomicBool,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        if recipe.dpo.is_none() {
            return Ok(());
        }
        // Whatever the numbers of a pass depend on, so that a run that is taken up finds the same again, cached or not.
        let base = recipe.lora.as_ref().map(|lora| (lora.base_dtype.to_string(), lora.dora));
        // Ranks that hold parts of something find it only together, each for a file of its own.
        let world = self.world().clone();
        let shape = (recipe.batch, recipe.seq, recipe.lengths, recipe.mesh, recipe.shard, world.rank());
        let about = (Content::of(prepared), base, shape, self.states.gpu().report().id(), crate::run::build());
        let identity = hash(serde_json::to_string(&about).expect("plain data").as_bytes());
        let (mut references, damaged) = References::open(folder, identity);
        damaged.into_iter().for_each(|text| observer.event(&Event::Note { text }));
        let loader = self.loader.loader().clone();
        let (mut batch, mut computed) = (loader.empty_batch(), 0);
        // One epoch has all pairs; of several sources each has its own, and who fills a part of the batches gets others in the next.
        let batches = recipe.steps * u64::from(recipe.accumulate);
        let is_all = loader.counts().len() == 1 && batch.rows() == loader.options().batch;
        let batches = if is_all { batches.min(loader.batches_per_epoch()) } else { batches };
        let (count, pairs) = (self.val_batches(recipe.val_sequences), recipe.batch as u64);
        let (began, mut kept) = (Instant::now(), Instant::now());
        for index in 0..batches + count {
            if world.any(stop.load(Ordering::Relaxed))? {
                break;
            }
            match index.checked_sub(batches) {
                None => loader.batch(index, &mut batch)?,
                Some(index) => loader.val_batch(index, count, &mut batch)?,
            }
            if world.any(!references.know(&batch))? {
                references.put(&batch, &self.answers(&batch).await?);
                computed += pairs;
                if kept.elapsed() > KEPT_EVERY {
                    references.save()?;
                    kept = Instant::now();
                }
            }
            if computed > 0 {
                observer.event(&Event::Reference { done: (index + 1) * pairs, total: (batches + count) * pairs });
            }
        }
        let file = references.path().display();
        let text = if computed > 0 {
            references.save()?;
            let seconds = began.elapsed().as_secs_f64();
            format!(
                "the reference, by the model that training begins with, was computed in {seconds:.1} s; it is kept in {file}"
            )
        } else {
            format!("the reference, by the model that training begins with, is read from {file}")
        };
        observer.event(&Event::Note { text });
        self.references = Some(references);
        Ok(())
    }

    /// The mean of what each rank has of its own pairs, of which all who have some have as many; where there are pairs, all of them
    /// call this together.
    pub(super) fn over_ranks(&self, own: Option<Rewards>) -> Result<Option<Rewards>> {
        let world = self.world();
        if self.references.is_none() || world.size() == 1 {
            return Ok(own);
        }
        let count = world.sum(f64::from(u8::from(own.is_some())))?;
        let own = own.unwrap_or_default();
        let mean = |of: f64| Ok::<f64, Error>(world.sum(of)? / count);
        let (chosen, rejected) = (mean(own.chosen)?, mean(own.rejected)?);
        Ok(Some(Rewards { chosen, rejected, margin: mean(own.margin)?, accuracy: mean(own.accuracy)? }))
    }

    /// The log-probability of each answer of a batch, by the model as it is.
    async fn answers(&mut self, batch: &Batch) -> Result<Vec<f32>> {
        // What it is compared with does not matter here.
        let eval = self.eval(batch)?;
        eval.submit().await?;
        let rows = batch.rows();
        let answer = |results: &Results<'_>, row| results.element(ANSWERS, row).unwrap_or(f32::NAN);
        let answers: Vec<f32> = eval.read(|results| (0..rows).map(|row| answer(&results, row)).collect()).await?;
        if answers.iter().any(|answer| !answer.is_finite()) {
            let message =
                "the model that training begins with gives no number for an answer, so that there is no reference";
            return Err(Error::Invalid(message.into()));
        }
        Ok(answers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_kept_to_the_bit_whatever_fills_up_rows() {
        let folder = tempfile::tempdir().unwrap();
        let open = |identity| References::open(folder.path(), identity);
        let mut batch = Batch::new(2, 4);
        batch.tokens = vec![1, 2, 3, 0, 1, 2, 4, 5];
        batch.targets = vec![IGNORE, 3, 9, IGNORE, IGNORE, 4, 5, 9];
        let (mut references, note) = open(7);
        assert!(note.is_none() && references.is_empty() && !references.know(&batch) && references.of(&batch).is_err());
        let answers = [-17.123_457, -1.0e-30];
        references.put(&batch, &answers);
        references.save().unwrap();
        assert_eq!(open(7), (references.clone(), None));
        assert_eq!(references.of(&batch).unwrap(), answers);
        // The same texts in longer rows.
        let mut longer = Batch::new(2, 6);
        longer.tokens = vec![1, 2, 3, 0, 0, 0, 1, 2, 4, 5, 0, 0];
        longer.targets = vec![IGNORE, 3, 9, IGNORE, IGNORE, IGNORE, IGNORE, 4, 5, 9, IGNORE, IGNORE];
        assert_eq!(references.of(&longer).unwrap(), answers);
        longer.targets[8] = IGNORE;
        assert!(!references.know(&longer), "another part is the answer");
        assert!(open(8).0.is_empty(), "of another model");
        // Any damage makes it nothing, aloud.
        let whole = std::fs::read(references.path()).unwrap();
        for at in 0..whole.len() {
            let mut hurt = whole.clone();
            hurt[at] ^= 0x10;
            std::fs::write(references.path(), &hurt).unwrap();
            let (found, note) = open(7);
            assert!(found.is_empty() && note.unwrap().contains("is damaged"), "byte {at}");
        }
        std::fs::write(references.path(), &whole[..whole.len() - 1]).unwrap();
        assert!(open(7).0.is_empty());
    }

    #[test]
    fn rewards_are_means() {
        let one = Rewards { chosen: 1.0, rejected: 3.0, margin: -2.0, accuracy: 0.0 };
        let other = Rewards { chosen: 2.0, rejected: 1.0, margin: 1.0, accuracy: 1.0 };
        let mean = Rewards { chosen: 1.5, rejected: 2.0, margin: -0.5, accuracy: 0.5 };
        assert_eq!(Rewards::mean([one, other]), Some(mean));
        assert_eq!(Rewards::mean([]), None);
    }
}
