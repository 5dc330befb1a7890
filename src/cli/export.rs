//! `danlu export`: a run, or one of its checkpoints, as a Hugging Face folder with a model card, a GGUF file, or an adapter in
//! PEFT's form.

use super::convert::{ConvertArgs, dtype, write};
use super::{hub, paths};
use crate::base::{Bytes, DType};
use crate::error::Error;
use crate::store::atomic::{Staged, commit_all, create_folder, sweep, temporary};
use crate::store::{ADAPTER_CONFIG, ADAPTER_WEIGHTS, FolderFile};
use crate::train::{Base, Event, TrainedRun};
use anyhow::{Result, bail};
use clap::Args;
use std::path::{Path, PathBuf};

/// The model card's name.
const CARD: &str = "README.md";

/// Flags of `danlu export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// The folder of a run that has ended, or of one of its checkpoints, such as runs/model/checkpoints/step-700.
    #[arg(value_name = "RUN|CHECKPOINT")]
    from: PathBuf,
    /// What to write: a file whose name ends with .gguf, or else a folder: Hugging Face's, or an adapter's in PEFT's form
    /// where adapters were trained.
    #[arg(value_name = "OUT")]
    to: PathBuf,
    /// Where adapters were trained: write a folder with the model that they make, and not the adapters.
    #[arg(long)]
    merge: bool,
    /// The licence that the model card names, such as apache-2.0 [default: unknown].
    #[arg(long, value_name = "NAME")]
    licence: Option<String>,
    /// Dtype of the matrices, as of `danlu convert`.
    #[arg(long, value_name = "DTYPE", value_parser = dtype)]
    dtype: Option<DType>,
    /// Most bytes of one file of weights in a folder, as of `danlu convert`.
    #[arg(long, value_name = "SIZE")]
    shard_size: Option<Bytes>,
    /// Overwrite what is there.
    #[arg(long)]
    force: bool,
}

/// Exports, and says what was written.
pub fn export(args: ExportArgs) -> Result<()> {
    let run = TrainedRun::open(&args.from)?;
    let is_gguf = args.to.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
    let has_adapters = run.recipe.lora.is_some();
    if args.merge && !has_adapters {
        bail!(
            "--merge is for runs that trained adapters, and {} trained the whole model: leave it out",
            args.from.display()
        );
    }
    let adapter = has_adapters && !args.merge && !is_gguf;
    if adapter && (args.dtype.is_some() || args.shard_size.is_some()) {
        bail!("--dtype and --shard-size are of whole models: add --merge for the model that the adapter makes");
    }
    if is_gguf && args.licence.is_some() {
        bail!("--licence is for the model card, which lies in a folder: a GGUF file has none");
    }
    let base = match &run.recipe.model {
        Some(model) if has_adapters || run.snapshot.is_some() => {
            let path = hub::resolve(Path::new(model))?;
            Some((Base::open(&path, model)?, path))
        }
        _ => None,
    };
    sweep(&paths::cache(), &|name| name == "export");
    let staged = Temporary(temporary(&paths::cache().join("export"))?);
    let mut from = run.folder.clone();
    if run.snapshot.is_some() {
        let mut tell = |event: &Event| {
            if let Event::Note { text } = event {
                tell!("danlu: {text}");
            }
        };
        run.write_checkpoint(&staged.0, base.as_ref().map(|(base, _)| base), &paths::cache(), &mut tell)?;
        from.clone_from(&staged.0);
    }
    let name = args.to.file_stem().map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned());
    let card = run.card(&name, args.licence.as_deref(), adapter);
    let ExportArgs { to, dtype, shard_size, force, licence, .. } = args;
    match base {
        Some((base, _)) if adapter => hand_adapter(&base, &from, &to, &card, force)?,
        base => {
            let (model, adapter) = match base.filter(|_| has_adapters) {
                Some((_, path)) => (path, Some(from)),
                None => (from, None),
            };
            let more = [FolderFile { name: CARD, content: card.as_bytes() }];
            write(ConvertArgs { from: model, to, dtype, shard_size, force }, adapter.as_deref(), &more)?;
        }
    }
    if licence.is_none() && !is_gguf {
        tell!("danlu: the model card names no licence; say it with --licence");
    }
    Ok(())
}

/// An adapter, as it lies in a folder, with a card beside it.
fn hand_adapter(base: &Base, from: &Path, to: &Path, card: &str, force: bool) -> Result<()> {
    base.check_peft(from)?;
    let names = [ADAPTER_WEIGHTS, ADAPTER_CONFIG, CARD];
    if let Some(taken) = names.iter().map(|name| to.join(name)).find(|path| path.exists() && !force) {
        return Err(Error::file(taken, "is there already; give another name, or --force to overwrite it").into());
    }
    if from.canonicalize().ok() == to.canonicalize().ok() {
        return Err(Error::file(to, "is what is read; write to another place").into());
    }
    create_folder(to)?;
    let stage = |name: &str, content: &[u8]| {
        Staged::write(&to.join(name), content.len() as u64, |writer| writer.write_all(content))
    };
    let mut staged = vec![stage(CARD, card.as_bytes())?];
    for name in [ADAPTER_WEIGHTS, ADAPTER_CONFIG] {
        let path = from.join(name);
        staged.push(stage(name, &std::fs::read(&path).map_err(|e| Error::io("read", &path, e))?)?);
    }
    commit_all(staged)?;
    say!("{}: an adapter of {}, in PEFT's form", to.display(), base.name);
    Ok(())
}

/// A folder that goes when it is no longer wanted.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
