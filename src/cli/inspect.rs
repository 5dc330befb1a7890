//! `danlu inspect`: what a model on disk is, without loading it.

use super::hub;
use crate::base::count;
use crate::compile::human_bytes;
use crate::store::gguf::{Array, Metadata, Value};
use crate::store::{Checkpoint, Origin, Tensors};
use anyhow::Result;
use clap::Args;
use serde_json::{Map, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Elements of an array that are shown.
const SHOWN: usize = 4;
/// Characters of a text that are shown.
const LONGEST: usize = 72;

/// Flags of `danlu inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// Model folder, GGUF file, or name on the hub: org/model, with @revision and :file.gguf where wanted.
    #[arg(value_name = "PATH|NAME")]
    path: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Prints configuration, metadata, tensors and totals.
pub fn inspect(args: InspectArgs) -> Result<()> {
    let checkpoint = Checkpoint::open(&hub::resolve(&args.path)?)?;
    let metadata = match checkpoint.origin() {
        Origin::Gguf(metadata) => Some(metadata),
        Origin::Folder(_) => None,
    };
    if args.json {
        say!("{}", serde_json::to_string_pretty(&describe(&checkpoint, metadata))?);
        return Ok(());
    }
    say!("{}", checkpoint.tensors().path().display());
    say!("{}", parts(checkpoint.tensors()));
    say!("{}", config(&checkpoint));
    if let Some(metadata) = metadata {
        say!("\nmetadata");
        for (key, value) in metadata.iter() {
            say!("  {key} = {}", shorten(value));
        }
    }
    if let Some(absent) = no_vocabulary(&checkpoint) {
        say!("\n{absent}");
    }
    say!("\n{}", table(checkpoint.tensors()));
    // Said last, so that all of the above is seen though the weights be another model's.
    let frozen = checkpoint.frozen()?;
    say!("on the device: {}", human_bytes(frozen.bytes()));
    Ok(())
}

/// The files of a model that lies in several, a line each.
fn parts(tensors: &Tensors) -> String {
    let files: Vec<&Path> = tensors.files().collect();
    if files.len() < 2 {
        return String::new();
    }
    let part = |file: &&Path| {
        let (name, held) = (file.file_name().unwrap_or_default(), tensors.iter().filter(|t| t.file == *file));
        let (tensors, bytes) = held.fold((0, 0), |(n, b), t| (n + 1, b + t.bytes.len() as u64));
        format!("  {}: {}, {}\n", name.to_string_lossy(), count(tensors, "tensor"), human_bytes(bytes))
    };
    format!("in {} files\n{}", files.len(), files.iter().map(part).collect::<String>())
}

/// A line for a model that comes without what turns text into tokens.
fn no_vocabulary(checkpoint: &Checkpoint) -> Option<String> {
    let (there, what) = match checkpoint.origin() {
        Origin::Gguf(metadata) => (metadata.get("tokenizer.ggml.tokens").is_some(), "tokenizer.ggml.tokens"),
        Origin::Folder(folder) => (folder.join("tokenizer.json").is_file(), "tokenizer.json"),
    };
    (!there).then(|| format!("no vocabulary: there is no {what}; text cannot be read or written with this model alone"))
}

/// The configuration in a few lines.
fn config(checkpoint: &Checkpoint) -> String {
    let c = checkpoint.config();
    let mut lines = vec![
        format!("{} parameters, family {} ({})", c.parameters(), c.family.name, c.family.models),
        format!(
            "{} of width {}, {} and {} of {}, feed-forward {}",
            count(c.num_hidden_layers, "layer"),
            c.hidden_size,
            count(c.num_attention_heads, "query head"),
            count(c.num_key_value_heads, "key head"),
            c.head_dim,
            c.intermediate_size
        ),
        format!(
            "vocabulary {}{}, context {}",
            c.vocab_size,
            if c.tie_word_embeddings { " (tied)" } else { "" },
            c.max_position_embeddings
        ),
        format!("rotary base {}, norm epsilon {:e}", c.rope.theta, c.rms_norm_eps),
        ends(c.bos_token_id, &c.eos_token_ids),
    ];
    if let Some(experts) = c.experts {
        lines.push(format!("{} experts, {} a token", experts.count, experts.per_token));
    }
    lines.join("\n")
}

/// Which tokens begin and end a text.
fn ends(begin: Option<u32>, ends: &[u32]) -> String {
    let begin = begin.map_or("no token".into(), |id| format!("token {id}"));
    let ends = match ends {
        [] => "with none: as many tokens are written as are asked for".into(),
        [end] => format!("with {end}"),
        [ends @ .., last] => {
            let ends: Vec<String> = ends.iter().map(u32::to_string).collect();
            format!("with {} or {last}", ends.join(", "))
        }
    };
    format!("a text begins with {begin} and ends {ends}")
}

/// All tensors, and sums by dtype.
fn table(tensors: &Tensors) -> String {
    let width = tensors.iter().map(|t| t.name.len()).max().unwrap_or(0).max(6);
    let mut text = format!("{:<width$}  {:<6} {:>14}  shape\n", "tensor", "dtype", "bytes");
    for t in tensors.iter() {
        text += &format!("{:<width$}  {:<6} {:>14}  {}\n", t.name, t.dtype_name(), t.bytes.len(), t.shape);
    }
    for (dtype, (n, bytes)) in sums(tensors) {
        text += &format!("\n{} of {dtype}: {}", count(n, "tensor"), human_bytes(bytes));
    }
    let (n, bytes) = total(tensors);
    text + &format!("\n{} in all: {} ({bytes} bytes)", count(n, "tensor"), human_bytes(bytes))
}

fn sums(tensors: &Tensors) -> BTreeMap<String, (usize, u64)> {
    let mut sums: BTreeMap<String, (usize, u64)> = BTreeMap::new();
    for t in tensors.iter() {
        let sum = sums.entry(t.dtype_name().to_string()).or_default();
        *sum = (sum.0 + 1, sum.1 + t.bytes.len() as u64);
    }
    sums
}

fn total(tensors: &Tensors) -> (usize, u64) {
    sums(tensors).values().fold((0, 0), |(n, b), (count, bytes)| (n + count, b + bytes))
}

/// A value in one line.
fn shorten(value: &Value) -> String {
    let text = |text: &str| {
        let short: String = text.chars().take(LONGEST).collect();
        format!("{short:?}{}", if short.len() < text.len() { "…" } else { "" })
    };
    match value {
        Value::Int(x, _) => x.to_string(),
        Value::Float(x, _) => format!("{}", *x as f32),
        Value::Bool(x) => x.to_string(),
        Value::String(x) => text(x),
        Value::Array(array) => {
            let texts = array.texts().map(|t| t.take(SHOWN).map(text).collect::<Vec<_>>());
            let shown = texts.or_else(|| Some(array.numbers()?.take(SHOWN).map(|x| x.to_string()).collect()));
            let more = if array.count > SHOWN { ", …" } else { "" };
            format!("{} of {:?}: [{}{more}]", array.count, array.kind, shown.unwrap_or_default().join(", "))
        }
    }
}

fn describe(checkpoint: &Checkpoint, metadata: Option<&Metadata>) -> serde_json::Value {
    let tensors: Vec<_> = checkpoint
        .tensors()
        .iter()
        .map(|t| {
            json!({"name": t.name, "dtype": t.dtype_name(), "shape": t.shape.dims(), "bytes": t.bytes.len(),
                   "file": t.file, "offset": t.offset})
        })
        .collect();
    let (count, bytes) = total(checkpoint.tensors());
    let entries = metadata.map(|m| m.iter().map(|(k, v)| (k.to_string(), value_json(v))).collect::<Map<_, _>>());
    json!({
        "path": checkpoint.tensors().path(),
        "files": checkpoint.tensors().files().collect::<Vec<_>>(),
        "vocabulary": no_vocabulary(checkpoint).is_none(),
        "config": checkpoint.config(),
        "parameters": checkpoint.config().parameters(),
        "metadata": entries,
        "tensors": tensors,
        "totals": {"tensors": count, "bytes": bytes, "by_dtype": sums(checkpoint.tensors())},
    })
}

/// A value as JSON; of a long array, how many there are and the first few.
fn value_json(value: &Value) -> serde_json::Value {
    match value {
        Value::Int(x, _) => json!(*x as i64),
        Value::Float(x, _) => json!(x),
        Value::Bool(x) => json!(x),
        Value::String(x) => json!(x),
        Value::Array(array) => json!({"count": array.count, "first": first(array)}),
    }
}

fn first(array: &Array) -> serde_json::Value {
    let texts = array.texts().map(|t| t.take(SHOWN).map(|t| json!(t)).collect());
    let numbers = || array.numbers().map(|n| n.take(SHOWN).map(|x| json!(x)).collect());
    serde_json::Value::Array(texts.or_else(numbers).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    #[test]
    fn ends_are_said_in_words() {
        assert_eq!(super::ends(Some(1), &[2]), "a text begins with token 1 and ends with 2");
        assert_eq!(super::ends(Some(1), &[2, 7, 9]), "a text begins with token 1 and ends with 2, 7 or 9");
        let none = "a text begins with no token and ends with none: as many tokens are written as are asked for";
        assert_eq!(super::ends(None, &[]), none);
    }
}
