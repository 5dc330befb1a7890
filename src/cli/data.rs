//! `danlu data` and `danlu tokenize`: examples as a model will see them, and shards of tokens that runs can share.

use super::{hub, paths};
use crate::base::count;
use crate::compile::human_bytes;
use crate::data::{
    Corpus, Encoder, Loader, LoaderOptions, LoaderSource, LossOn, MASKED, Overlong, RowLayout, SHARD_ENDING, Shard,
    ShardKind, Tokenizer,
};
use crate::store::HubPart;
use crate::train::Recipe;
use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use std::fmt::Write;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Data, and who reads them.
#[derive(Debug, Args)]
struct Source {
    /// Text, examples (JSONL, JSON, Parquet; .gz and .zst too) or a folder of them.
    data: PathBuf,
    /// The model's tokenizer: a tokenizer.json, a folder or GGUF file with one, or a name on the hub.
    #[arg(long, alias = "model", value_name = "FILE|FOLDER|NAME")]
    tokenizer: PathBuf,
    /// Which tokens of a conversation are to be predicted [default: assistant; of a shard, those it was made for].
    #[arg(long, value_name = "assistant|all")]
    loss_on: Option<LossOn>,
}

/// Flags of `danlu data`.
#[derive(Debug, Args)]
pub struct DataArgs {
    #[command(flatten)]
    source: Source,
    /// Tokens of one row, for what is said of rows.
    #[arg(long, default_value_t = 1024)]
    seq: usize,
    /// What becomes of documents longer than a row.
    #[arg(long, value_name = "truncate|drop|split", default_value = "truncate")]
    overlong: Overlong,
    /// How many examples to show.
    #[arg(long, value_name = "COUNT", default_value_t = 3)]
    examples: u64,
    /// Colours; without them what is to be predicted stands in ⟦ ⟧.
    #[arg(long, value_enum, default_value_t)]
    color: Color,
}

/// When to use colours.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Color {
    /// On a terminal, unless NO_COLOR is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// Flags of `danlu tokenize`.
#[derive(Debug, Args)]
pub struct TokenizeArgs {
    #[command(flatten)]
    source: Source,
    /// The shard's file, ending in .tokens [default: beside the data; of data on a hub here].
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Overwrite what is there.
    #[arg(long)]
    force: bool,
}

impl Color {
    fn is_on(self) -> bool {
        match self {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none(),
        }
    }
}

/// The tokenizer of a file, a folder or a model.
fn tokenizer(argument: &Path) -> Result<Tokenizer> {
    let path = hub::resolve_part(argument, HubPart::Tokenizer)?;
    let tokenizer = Tokenizer::open(path)?;
    tokenizer.notes().iter().for_each(|note| tell!("danlu: {note}"));
    Ok(tokenizer)
}

/// A bar of bytes of the data.
fn bar() -> impl FnMut(u64, u64) {
    let bar = ProgressBar::new(0);
    let template = "tokenising {bar:32} {bytes}/{total_bytes} {bytes_per_sec}";
    bar.set_style(ProgressStyle::with_template(template).expect("a valid template"));
    move |done, total| {
        bar.set_length(total);
        bar.set_position(done);
        if done >= total {
            bar.finish_and_clear();
        }
    }
}

/// Writes a shard.
pub fn tokenize(args: TokenizeArgs) -> Result<()> {
    let out = args.out.unwrap_or_else(|| {
        let data = &args.source.data;
        let name = data.file_name().unwrap_or_default().to_string_lossy();
        let file = format!("{}.{SHARD_ENDING}", name.replace(':', "-"));
        // Of data on a hub nothing lies beside them here.
        if hub::data_name(data).is_some() { PathBuf::from(file) } else { data.with_file_name(file) }
    });
    if out.extension().is_none_or(|ending| ending != SHARD_ENDING) {
        bail!("{}: a shard's name ends in .{SHARD_ENDING}, by which `danlu train --data` knows it", out.display());
    }
    if out.exists() && !args.force {
        bail!("{}: is there already; give another name by --out, or --force to overwrite it", out.display());
    }
    paths::try_file(&out)?;
    let tokenizer = tokenizer(&args.source.tokenizer)?;
    let corpus = Corpus::open(hub::resolve_data(&args.source.data)?)?;
    let encoder = Encoder::new(&tokenizer, &corpus, args.source.loss_on.unwrap_or_default())?;
    let began = Instant::now();
    let shard = Shard::build(&out, &corpus, &encoder, &mut bar())?;
    let seconds = began.elapsed().as_secs_f64();
    if !corpus.is_text() {
        say!("data: {}", encoder.told(&corpus, &shard));
    }
    say!(
        "{}: {} in {}, checksum {:016x}; {:.1} s, {}/s",
        out.display(),
        count(shard.len() as usize, "token"),
        count(shard.documents() as usize, "document"),
        shard.checksum(),
        seconds,
        human_bytes((corpus.bytes() as f64 / seconds) as u64)
    );
    Ok(())
}

/// Shows the first examples, and how long all are.
pub fn data(args: DataArgs) -> Result<()> {
    let tokenizer = tokenizer(&args.source.tokenizer)?;
    let shard = if args.source.data.extension().is_some_and(|ending| ending == SHARD_ENDING) {
        let shard = Shard::open(&args.source.data)?;
        if !shard.is_of(tokenizer.content_hash()) {
            bail!(
                "{}: was made with another tokenizer than {}",
                args.source.data.display(),
                args.source.tokenizer.display()
            );
        }
        args.source.loss_on.map_or(Ok(()), |wanted| shard.check_losses(wanted))?;
        shard.verify()?;
        shard
    } else {
        let corpus = Corpus::open(hub::resolve_data(&args.source.data)?)?;
        let encoder = Encoder::new(&tokenizer, &corpus, args.source.loss_on.unwrap_or_default())?;
        let shard = Shard::cached(paths::cache(), &corpus, &encoder, &mut bar())?;
        if !corpus.is_text() {
            say!("data: {}", encoder.told(&corpus, &shard));
        }
        shard
    };
    let color = args.color.is_on();
    let pairs = shard.kind() == ShardKind::Pairs;
    for index in 0..args.examples.saturating_mul(if pairs { 2 } else { 1 }).min(shard.documents()) {
        let range = shard.document(index)?;
        // A book is not shown whole.
        let len = (range.end - range.start).min((args.seq as u64).saturating_mul(4));
        let mut tokens = vec![0; len as usize];
        shard.read_marked(range.start, &mut tokens)?;
        let predicted = tokens.iter().filter(|token| **token & MASKED == 0).count();
        let which = match (pairs, index % 2) {
            (false, _) => format!("example {}", index + 1),
            (true, 0) => format!("pair {} · chosen", index / 2 + 1),
            (true, _) => format!("pair {} · rejected", index / 2 + 1),
        };
        let title = format!("{which} · {} · {predicted} to be predicted", count(tokens.len(), "token"));
        say!(
            "\n{}\n{}",
            if color { format!("\x1b[1m{title}\x1b[0m") } else { title },
            shown(&tokenizer, &tokens, color)?
        );
    }
    let lengths: Vec<u64> =
        (0..shard.documents()).map(|i| shard.document(i).map(|d| d.end - d.start)).collect::<Result<_, _>>()?;
    say!("\n{}", histogram(&lengths));
    rows(&args, shard)
}

/// Tokens as text, those apart that are to be predicted.
fn shown(tokenizer: &Tokenizer, tokens: &[u32], color: bool) -> Result<String> {
    let mut text = String::new();
    for run in tokens.chunk_by(|a, b| (a & MASKED) == (b & MASKED)) {
        let ids: Vec<u32> = run.iter().map(|token| token & !MASKED).collect();
        let part = tokenizer.decode_all(&ids)?;
        match (run[0] & MASKED == 0, color) {
            (true, true) => write!(text, "\x1b[32m{part}\x1b[0m")?,
            (true, false) => write!(text, "⟦{part}⟧")?,
            (false, true) => write!(text, "\x1b[2m{part}\x1b[0m")?,
            (false, false) => text += &part,
        }
    }
    Ok(text)
}

/// Lengths by powers of two, with a bar for each.
fn histogram(lengths: &[u64]) -> String {
    let mut sorted = lengths.to_vec();
    sorted.sort_unstable();
    let Some(&longest) = sorted.last() else { return "no documents".into() };
    let at = |share: f64| sorted[((sorted.len() - 1) as f64 * share).round() as usize];
    let all: u64 = sorted.iter().sum();
    let mut out = format!(
        "{} in {}; half have up to {}, 95 % up to {}, the longest {longest}\n",
        count(all as usize, "token"),
        count(sorted.len(), "document"),
        at(0.5),
        at(0.95)
    );
    let bucket = |len: u64| (u64::BITS - len.leading_zeros()).max(5);
    let buckets: Vec<(u32, usize)> =
        sorted.chunk_by(|a, b| bucket(*a) == bucket(*b)).map(|run| (bucket(run[0]), run.len())).collect();
    let most = buckets.iter().map(|(_, n)| *n).max().unwrap_or(1);
    for (bits, n) in buckets {
        let from = if bits == 5 { 0 } else { 1u64 << (bits - 1) };
        let width = (n * 40).div_ceil(most);
        out += &format!("{from:>9} to {:<9} {n:>9} {}\n", (1u64 << bits) - 1, "█".repeat(width));
    }
    out.trim_end().to_string()
}

/// What becomes of the documents in rows, packed and alone.
fn rows(args: &DataArgs, shard: Shard) -> Result<()> {
    let shard = Arc::new(shard);
    let overlong = args.overlong;
    let layouts: &[(&str, RowLayout)] = match shard.kind() {
        ShardKind::Pairs => &[("pairs: ", RowLayout::Pairs)],
        ShardKind::Text => &[("in windows: ", RowLayout::Windows), ("packed: ", RowLayout::Packed(overlong))],
        _ => &[("packed: ", RowLayout::Packed(overlong)), ("one a row: ", RowLayout::Padded(overlong))],
    };
    for (name, layout) in layouts {
        let source = LoaderSource { shard: shard.clone(), layout: *layout, weight: 1.0 };
        let lengths = Recipe::default().lengths;
        let options = LoaderOptions { batch: 2, seq: args.seq, lengths, ..LoaderOptions::default() };
        match Loader::mixed(vec![source], options) {
            Ok(loader) => {
                let mut told = loader.counts()[0].told(*layout, args.seq);
                if *layout == RowLayout::Windows {
                    let (train, val) = (loader.rows_per_epoch(), loader.val_rows());
                    told.push(format!("{train} of {} tokens to train on, {val} held out", args.seq));
                }
                told.into_iter().chain(loader.told()).for_each(|text| say!("{name}{text}"));
            }
            Err(error) => tell!("danlu: {name}{error}"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::histogram;

    /// The longest bar is forty wide, the others in proportion, and none is empty; what is shorter than 32 is one of them.
    #[test]
    fn lengths_have_bars_in_proportion() {
        let lengths = [vec![100; 3], vec![3; 30], vec![41; 120], vec![1; 30], vec![5000]].concat();
        let lines = [
            format!("        0 to 31               60 {}", "█".repeat(20)),
            format!("       32 to 63              120 {}", "█".repeat(40)),
            format!("       64 to 127               3 {}", "█"),
            format!("     4096 to 8191              1 {}", "█"),
        ];
        let said = histogram(&lengths);
        let said: Vec<&str> = said.lines().collect();
        assert_eq!(said[0], "10340 tokens in 184 documents; half have up to 41, 95 % up to 41, the longest 5000");
        assert_eq!(said[1..], lines);
        assert_eq!(histogram(&[]), "no documents");
    }
}
