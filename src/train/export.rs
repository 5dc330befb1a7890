//! A run, or one of its checkpoints, as something to hand on: its weights as a folder, and a model card that says what they
//! are.

use super::log::RECIPE;
use super::{About, Base, Metrics, Observer, Recipe, Resumption, Subject, Trained, prepare, read_metrics};
use crate::base::Limits;
use crate::data::tokenizer_files;
use crate::error::{Error, Result};
use crate::model::Llama;
use crate::nn::{PARAMETERS, ParamLayout, Runs};
use crate::optim::{EMA, Shard};
use crate::parallel::Mesh;
use crate::store::snapshot::{Layout, MANIFEST, Series, Snapshot, Written};
use crate::store::{ADAPTER_CONFIG, Checkpoint, FolderFile, TRAINED, save_folder, write_adapter};
use std::path::{Path, PathBuf};

/// A run that was trained here, as it stands on disk.
#[derive(Debug)]
pub struct TrainedRun {
    /// Its recipe.
    pub recipe: Recipe,
    /// The run's folder.
    pub folder: PathBuf,
    /// The checkpoint that is meant; without it, the model that the run ended with.
    pub snapshot: Option<Snapshot>,
    /// The step whose weights these are, where that was written down.
    pub step: Option<u64>,
    /// What the checkpoint that is meant says of the run, or what stands beside its model.
    pub about: Option<About>,
    /// What was measured, up to that step.
    pub metrics: Vec<Metrics>,
}

impl TrainedRun {
    /// Opens a run's folder, or that of a checkpoint in it.
    ///
    /// # Errors
    /// If it is neither, holds no model yet, or is damaged.
    pub fn open(path: &Path) -> Result<TrainedRun> {
        refuse_part(path)?;
        if path.join(MANIFEST).is_file() {
            let snapshot = Snapshot::open(path)?;
            snapshot.verify()?;
            let about = About::read(&snapshot)?;
            // RUN/checkpoints/step-N; one that was moved has no metrics.
            let absolute = path.canonicalize().map_err(|e| Error::io("open", path, e))?;
            let folder = absolute.parent().and_then(Path::parent).unwrap_or(&absolute).to_path_buf();
            let step = about.progress.step;
            let metrics = read_metrics(&folder)?.into_iter().filter(|m| m.step <= step).collect();
            return Ok(TrainedRun {
                recipe: about.recipe.clone(),
                folder,
                snapshot: Some(snapshot),
                step: Some(step),
                about: Some(about),
                metrics,
            });
        }
        let file = path.join(RECIPE);
        if !file.is_file() {
            let message =
                format!("is neither a run of danlu train, which holds a {RECIPE}, nor one of its checkpoints");
            return Err(Error::file(path, message));
        }
        let recipe = Recipe::open_run(&file)?;
        let written = if recipe.lora.is_some() { ADAPTER_CONFIG } else { "config.json" };
        if !path.join(written).is_file() {
            let message = "holds a run that wrote no model yet; go on with it by danlu train --resume, or name one of its \
                           checkpoints, checkpoints/step-N";
            return Err(Error::file(path, message));
        }
        let trained = Trained::read(path)?;
        let newest = Series::below(path).list().pop();
        let newest = newest.and_then(|(_, newest)| About::read(&Snapshot::open(&newest).ok()?).ok());
        check_model(path, &recipe, trained.as_ref(), newest.as_ref())?;
        let (step, about) = trained.map(|trained| (trained.step, trained.about)).unzip();
        let metrics = read_metrics(path)?.into_iter().filter(|m| step.is_none_or(|step| m.step <= step)).collect();
        let recipe = about.as_ref().map_or(recipe, |about: &About| about.recipe.clone());
        Ok(TrainedRun { recipe, folder: path.to_path_buf(), snapshot: None, step, about, metrics })
    }

    /// Writes the weights to a folder: those of a checkpoint, with configuration and tokenizer, or its adapters in PEFT's form.
    /// `base` is the model that the run began with, where it did; `cache` is for a tokenizer that must be trained again.
    ///
    /// # Errors
    /// If the checkpoint is of another model, its data are gone where they are wanted, or the folder cannot be written.
    pub fn write_checkpoint(
        &self,
        folder: &Path,
        base: Option<&Base>,
        cache: &Path,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        let Some(snapshot) = &self.snapshot else {
            return Err(Error::Invalid("the run's own folder holds what it ended with".into()));
        };
        let recipe = &self.recipe;
        if let Some(base) = base {
            self.check_base(base)?;
            let subject = self.subject(base.checkpoint.model(), Some(base))?;
            let pages = pages(snapshot, &subject.layout)?;
            if let (Some(lora), Some(config)) = (subject.lora(), &recipe.lora) {
                return write_adapter(
                    folder,
                    (lora, config),
                    (&base.name, base.checkpoint.config()),
                    &pages,
                    &[],
                    false,
                );
            }
            let files = base.tokenizer_files()?;
            return base.checkpoint.write_trained(folder, &subject.layout, &pages, &borrowed(&files), false);
        }
        let (config, files) = if self.folder.join("config.json").is_file() {
            let run = Checkpoint::open(&self.folder)?;
            (run.config().clone(), tokenizer_files(&run)?)
        } else {
            let prepared = prepare(recipe, cache, observer)?;
            self.about.as_ref().map_or(Ok(()), |about| about.check_content(&prepared))?;
            let files = prepared.tokenizer_files()?;
            (prepared.config, files)
        };
        let layout = self.subject(&Llama::new(config.clone()), None)?.layout;
        save_folder(folder, &config, &layout, &pages(snapshot, &layout)?, &borrowed(&files), false)
    }

    /// Refuses a base that is no longer what the run began with.
    fn check_base(&self, base: &Base) -> Result<()> {
        let hash = Some(format!("{:016x}", base.hash));
        if self.about.as_ref().is_none_or(|about| about.content.model == hash) {
            return Ok(());
        }
        Err(Error::Invalid(format!(
            "{} is no longer the model that the run began with; bring back what was there",
            base.name
        )))
    }

    /// What is trained, all of it; in pages as the checkpoint has them where it is one of a single rank that does not say: their
    /// largest is as good as the limit that they were made for.
    fn subject(&self, model: &Llama, base: Option<&Base>) -> Result<Subject> {
        let states = self.snapshot.iter().flat_map(|s| &s.manifest().states);
        let largest = states.filter(|s| s.name.starts_with("param.")).map(|s| s.bytes).max();
        let limits = Limits { max_buffer_bytes: largest.unwrap_or(0), ..Limits::default() };
        let recipe = Recipe { mesh: Mesh::ONE, shard: Shard::None, ..self.recipe.clone() };
        Subject::new(model, &recipe, base, &limits)
    }
}

/// Refuses the folder of one rank's part of checkpoints, `checkpoints/rank-R`, or of one in it, and says where the whole is.
fn refuse_part(path: &Path) -> Result<()> {
    let absolute = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    let rank = |folder: &Path| folder.file_name()?.to_str()?.strip_prefix("rank-")?.parse::<usize>().ok();
    let mut above = absolute.ancestors().take(2).filter(|f| f.parent().is_some_and(|p| p.ends_with("checkpoints")));
    let Some((folder, rank)) = above.find_map(|folder| Some((folder, rank(folder)?))) else { return Ok(()) };
    let whole = folder.parent().unwrap_or(folder);
    let step = absolute.strip_prefix(folder).ok().filter(|step| !step.as_os_str().is_empty());
    let whole = whole.join(step.unwrap_or(Path::new("step-N")));
    let message = format!(
        "is what rank {rank} alone wrote; name the whole checkpoint, which has all ranks' parts: {}",
        whole.display()
    );
    Err(Error::file(path, message))
}

/// Refuses a folder whose run has gone on beyond the model in it, or is another one: its card would tell of others' weights.
fn check_model(folder: &Path, recipe: &Recipe, trained: Option<&Trained>, newest: Option<&About>) -> Result<()> {
    let mut run = Resumption { recipe: recipe.clone(), from: None };
    let is_of = |about: &About| newest.is_none_or(|newest| newest.content == about.content);
    let done = newest.map(|newest| newest.progress.step);
    let what = match trained.map(|trained| &trained.about) {
        None if newest.is_none() => return Ok(()),
        None => format!("holds a model of which no {TRAINED} says what it is"),
        Some(about) if run.change(about.recipe.clone()).is_err() || !is_of(about) => {
            format!("holds the model of another run than its {RECIPE} is of")
        }
        Some(about) if done > Some(about.progress.step) => {
            format!("holds the model of step {}, and the run has gone on since", about.progress.step)
        }
        Some(_) => return Ok(()),
    };
    let checkpoint =
        done.map(|step| format!("name the checkpoint, {}, or ", Series::below(folder).step(step).display()));
    let (checkpoint, out) = (checkpoint.unwrap_or_default(), folder.display());
    let message = format!("{what}: {checkpoint}bring the run to its end by danlu train --resume {out}");
    Err(Error::file(folder, message))
}

/// Parameters of a checkpoint, whatever ranks wrote it, in a layout's pages.
fn pages(snapshot: &Snapshot, layout: &ParamLayout) -> Result<Vec<Vec<f32>>> {
    let written = Written::open(snapshot, &Layout::of(layout, Mesh::ONE))?;
    let mut pages = layout.zeros();
    // Where an average is kept, that is the model.
    let of = if written.has(EMA) { EMA } else { PARAMETERS };
    for (spec, data) in layout.tensors_mut(&mut pages) {
        let all = Runs { starts: vec![0], length: data.len() };
        data.copy_from_slice(&written.read(of, &spec.name, spec.shape.dims(), &all)?);
    }
    Ok(pages)
}

fn borrowed(files: &[(String, Vec<u8>)]) -> Vec<FolderFile<'_>> {
    files.iter().map(|(name, content)| FolderFile { name, content }).collect()
}
