//! `danlu plot`.

use crate::error::Error;
use crate::store::atomic::write_file;
use crate::train::{Axis, METRICS, Picture, curves, picture, read_metrics};
use anyhow::{Result, bail};
use clap::Args;
use std::path::PathBuf;

/// Pixels of a panel's height, unless told otherwise.
const PANEL: u32 = 360;

/// Flags of `danlu plot`.
#[derive(Debug, Args)]
#[command(after_long_help = metrics())]
pub struct PlotArgs {
    /// Folders of runs.
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// The picture: a name that ends in .svg or .png.
    #[arg(long, short, value_name = "FILE")]
    out: PathBuf,
    /// What is drawn, a panel each: names of `metrics.csv`'s columns.
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', default_value = "smoothed_loss,validation_loss")]
    metrics: Vec<String>,
    /// Over what: `step`, `tokens` or `hours`.
    #[arg(long, value_name = "step|tokens|hours", default_value = "step")]
    over: Axis,
    /// Values by their logarithm.
    #[arg(long)]
    log: bool,
    /// Pixels: width x height [default: 960 wide, 360 a panel].
    #[arg(long, value_name = "WxH", value_parser = size)]
    size: Option<(u32, u32)>,
}

/// What can be drawn, for the long help.
fn metrics() -> String {
    let lines: String = METRICS.iter().map(|m| format!("  {:<18} {}\n", m.name, m.what)).collect();
    format!("Metrics:\n{lines}")
}

fn size(text: &str) -> Result<(u32, u32), String> {
    let parsed = text.split_once('x').and_then(|(w, h)| Some((w.parse().ok()?, h.parse().ok()?)));
    let fits = |side: u32| (100..=10_000).contains(&side);
    parsed
        .filter(|(w, h)| fits(*w) && fits(*h))
        .ok_or_else(|| "it must be two numbers of pixels from 100 to 10000, such as 960x540".into())
}

/// Draws the curves of runs.
pub fn plot(args: PlotArgs) -> Result<()> {
    let form = match args.out.extension().and_then(|e| e.to_str()) {
        Some("svg") => Picture::Svg,
        Some("png") => Picture::Png,
        _ => bail!("{}: a picture's name must end in .svg or .png", args.out.display()),
    };
    let mut runs = Vec::new();
    for folder in &args.runs {
        let lines = read_metrics(folder)?;
        if lines.is_empty() {
            let what = if folder.is_dir() { "holds no metrics.jsonl with a line in it" } else { "no such folder" };
            return Err(Error::file(folder, format!("{what}; `danlu runs` lists runs")).into());
        }
        runs.push((folder.display().to_string(), lines));
    }
    let panels = curves(&runs, &args.metrics, args.over)?;
    let size = args.size.unwrap_or((960, PANEL * panels.len().clamp(1, 20) as u32));
    for panel in panels.iter().filter(|panel| panel.curves.is_empty()) {
        tell!("danlu: no run has {}", panel.title);
    }
    let drawn: Vec<_> = panels.into_iter().filter(|panel| !panel.curves.is_empty()).collect();
    write_file(&args.out, &picture(&drawn, args.over, args.log, size, form)?)?;
    say!("{}", args.out.display());
    Ok(())
}
