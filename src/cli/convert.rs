//! `danlu convert`: GGUF ↔ Hugging Face folders, other dtypes, quantisation.

use super::{hub, signals, text};
use crate::base::quantise::ENCODED;
use crate::base::{Bytes, DType};
use crate::compile::human_bytes;
use crate::data::{self, Tokenizer};
use crate::error::Error;
use crate::store::gguf::Metadata;
use crate::store::{Checkpoint, FolderFile, Origin, SHARD_BYTES, TEMPLATES_FOLDER, TOKENIZER_FILES, atomic};
use crate::train::RunLock;
use anyhow::Result;
use clap::Args;
use std::path::{Path, PathBuf};

/// Flags of `danlu convert`.
#[derive(Debug, Args)]
pub struct ConvertArgs {
    /// Model folder or GGUF file to read, or a name on the hub: org/model, with @revision and :file.gguf where wanted.
    #[arg(value_name = "IN")]
    pub(super) from: PathBuf,
    /// What to write: a file whose name ends with .gguf, or else a Hugging Face folder.
    #[arg(value_name = "OUT")]
    pub(super) to: PathBuf,
    /// Dtype of the matrices: f32, f16, bf16, and in GGUF files q8_0, q4_0, q4_1. Without it they keep theirs, but that
    /// quantised ones become f32 in a folder. Norms and biases of a GGUF file are f32; a quantised one's embedding and
    /// output are q8_0.
    #[arg(long, value_name = "DTYPE", value_parser = dtype)]
    pub(super) dtype: Option<DType>,
    /// Most bytes of one file of weights in a folder, such as 5GB, 500MB or 2GiB; a larger model lies in several
    /// [default: 5GB].
    #[arg(long, value_name = "SIZE")]
    pub(super) shard_size: Option<Bytes>,
    /// Overwrite what is there.
    #[arg(long)]
    pub(super) force: bool,
}

pub(super) fn dtype(name: &str) -> Result<DType, String> {
    let known = ENCODED.map(DType::name);
    let found = ENCODED.into_iter().find(|d| d.name() == name.to_lowercase());
    found.ok_or_else(|| format!("choose one of {}", known.join(", ")))
}

/// Flags of `danlu merge`.
#[derive(Debug, Args)]
pub struct MergeArgs {
    /// The model that the adapter is of: a folder, a GGUF file or a name on the hub.
    #[arg(long, value_name = "PATH|NAME")]
    model: PathBuf,
    /// The adapter, in PEFT's form: the folder with adapter_config.json.
    #[arg(long, value_name = "FOLDER")]
    adapter: PathBuf,
    /// What to write: a file whose name ends with .gguf, or else a Hugging Face folder.
    #[arg(long, value_name = "OUT")]
    out: PathBuf,
    /// Dtype of the matrices, as of `danlu convert`.
    #[arg(long, value_name = "DTYPE", value_parser = dtype)]
    dtype: Option<DType>,
    /// Overwrite what is there.
    #[arg(long)]
    force: bool,
}

/// Writes the model that an adapter makes of another.
pub fn merge(args: MergeArgs) -> Result<()> {
    let MergeArgs { model, adapter, out, dtype, force } = args;
    write(ConvertArgs { from: model, to: out, dtype, shard_size: None, force }, Some(&adapter), &[])
}

/// Converts, and says what was written.
pub fn convert(args: ConvertArgs) -> Result<()> {
    write(args, None, &[])
}

/// Writes a model, or what an adapter makes of it; `more` are further files of a folder.
pub(super) fn write(args: ConvertArgs, adapter: Option<&Path>, more: &[FolderFile]) -> Result<()> {
    let to_gguf = args.to.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
    if to_gguf && args.to.is_dir() {
        return Err(Error::file(&args.to, "is a folder, where a file is to be written; give another name").into());
    }
    if !to_gguf && args.to.exists() && !args.to.is_dir() {
        let message = "is a file, where a folder is to be written; give another name, or one that ends with .gguf";
        return Err(Error::file(&args.to, message).into());
    }
    if to_gguf && args.shard_size.is_some() {
        return Err(Error::Invalid("--shard-size is for folders: a GGUF file is written whole".into()).into());
    }
    let more_taken = more.iter().map(|file| args.to.join(file.name)).find(|path| !to_gguf && path.exists());
    if let Some(taken) = taken(&args.to, to_gguf).or(more_taken).filter(|_| !args.force) {
        return Err(Error::file(taken, "is there already; give another name, or --force to overwrite it").into());
    }
    let mut checkpoint = Checkpoint::open(&hub::resolve(&args.from)?)?;
    if let Some(adapter) = adapter {
        checkpoint = checkpoint.merge(adapter)?;
    }
    refuse_itself(&checkpoint, &args.to)?;
    if adapter.is_some_and(|adapter| {
        adapter.canonicalize().is_ok_and(|adapter| args.to.canonicalize().is_ok_and(|to| to == adapter))
    }) {
        return Err(Error::file(&args.to, "is the adapter that is read; write to another place").into());
    }
    if !to_gguf {
        RunLock::check(&args.to)?;
    }
    leave_on_signal(&args.to)?;
    let written = if to_gguf {
        let vocabulary = vocabulary(&checkpoint)?;
        checkpoint.write_gguf(&args.to, args.dtype, &vocabulary)?
    } else {
        let files = tokenizer_files(&checkpoint)?;
        let files: Vec<FolderFile> = files
            .iter()
            .map(|(name, content)| FolderFile { name: name.as_str(), content: content.as_slice() })
            .chain(more.iter().copied())
            .collect();
        checkpoint.write_folder(
            &args.to,
            args.dtype,
            args.shard_size.map_or(SHARD_BYTES, |Bytes(bytes)| bytes),
            &files,
        )?
    };
    written.lost.iter().for_each(|what| tell!("danlu: {what}"));
    let dtypes: Vec<String> = written.dtypes.iter().map(|(dtype, n)| format!("{n} {dtype}")).collect();
    let files = if written.files > 1 { format!(" in {} files", written.files) } else { String::new() };
    say!("{}: {}{files}, tensors: {}", args.to.display(), human_bytes(written.bytes), dtypes.join(", "));
    Ok(())
}

/// A file that is there and would be overwritten, or read along with what is written: of a folder any that models have.
fn taken(to: &Path, to_gguf: bool) -> Option<PathBuf> {
    if to_gguf {
        return Some(to.to_path_buf()).filter(|file| file.exists());
    }
    let model = |name: &str| {
        ["config.json", "generation_config.json", TEMPLATES_FOLDER].contains(&name)
            || TOKENIZER_FILES.contains(&name)
            || name.ends_with(".safetensors")
            || name.ends_with(".safetensors.index.json")
    };
    let names = std::fs::read_dir(to).into_iter().flatten().flatten().map(|entry| entry.file_name());
    names.filter(|name| name.to_str().is_some_and(model)).min().map(|name| to.join(name))
}

/// Ctrl-C leaves nothing half-written.
fn leave_on_signal(to: &Path) -> Result<()> {
    let (to, new) = (to.to_path_buf(), !to.exists());
    signals::listen(move |code| {
        atomic::abandon();
        if new {
            // Goes where it is an empty folder.
            let _ = std::fs::remove_dir(&to);
        }
        tell!("danlu: stopped: nothing was written to {}", to.display());
        std::process::exit(code);
    })
}

/// What is mapped must not be written over.
fn refuse_itself(checkpoint: &Checkpoint, to: &Path) -> Result<()> {
    let Ok(to) = to.canonicalize() else { return Ok(()) };
    for file in checkpoint.tensors().files() {
        let file = file.canonicalize()?;
        if file == to || file.parent() == Some(&to) && !to.is_file() {
            return Err(Error::file(to, "is what is read; write to another place").into());
        }
    }
    Ok(())
}

/// The vocabulary's keys, which a GGUF file has already.
fn vocabulary(checkpoint: &Checkpoint) -> Result<Metadata> {
    let Origin::Folder(folder) = checkpoint.origin() else { return Ok(Metadata::default()) };
    if !folder.join("tokenizer.json").is_file() {
        tell!("danlu: {} holds no tokenizer.json; the GGUF file will hold no vocabulary", folder.display());
        return Ok(Metadata::default());
    }
    Ok(Tokenizer::open(folder)?.gguf_keys(checkpoint.config().vocab_size)?)
}

/// Files of the tokenizer; what is to be said of it is told.
fn tokenizer_files(checkpoint: &Checkpoint) -> Result<Vec<(String, Vec<u8>)>> {
    if let Origin::Gguf(metadata) = checkpoint.origin() {
        match metadata.get("tokenizer.ggml.tokens") {
            None => tell!("danlu: the file holds no vocabulary; the folder will hold no tokenizer"),
            Some(_) => drop(text::tokenizer(checkpoint)?),
        }
    }
    Ok(data::tokenizer_files(checkpoint)?)
}
