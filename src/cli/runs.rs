//! `danlu runs`.

use crate::error::Error;
use crate::train::{RunSummary, find_runs};
use anyhow::Result;
use clap::{Args, ValueEnum};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// In which order runs are listed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Order {
    /// By name.
    #[default]
    Name,
    /// The lowest validation loss first.
    Best,
    /// The lowest smoothed loss first.
    Loss,
    /// What was written to last first.
    Time,
}

/// Flags of `danlu runs`.
#[derive(Debug, Args)]
pub struct RunsArgs {
    /// A folder with runs in it, or below it; or a run.
    #[arg(default_value = "runs")]
    folder: PathBuf,
    /// Order.
    #[arg(long, value_enum, default_value_t)]
    sort: Order,
    /// Print JSON: an object a run, with its whole recipe.
    #[arg(long)]
    json: bool,
}

/// Lists the runs of a folder, with the keys in which their recipes differ.
pub fn runs(args: RunsArgs) -> Result<()> {
    let mut runs = find_runs(&args.folder)?;
    if runs.is_empty() {
        let what = if args.folder.is_dir() { "holds no run" } else { "no such folder" };
        return Err(Error::file(&args.folder, format!("{what}; `danlu train --out FOLDER` makes one")).into());
    }
    let by = |get: fn(&RunSummary) -> Option<f64>| {
        move |a: &RunSummary, b: &RunSummary| get(a).unwrap_or(f64::MAX).total_cmp(&get(b).unwrap_or(f64::MAX))
    };
    match args.sort {
        Order::Name => {}
        Order::Best => runs.sort_by(by(|run| run.best.map(|(loss, _)| loss))),
        Order::Loss => runs.sort_by(by(|run| run.loss)),
        Order::Time => runs.sort_by(by(|run| Some(-run.wall))),
    }
    if args.json {
        for run in &runs {
            say!("{}", serde_json::to_string(run)?);
        }
        return Ok(());
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64());
    table(&runs, &args.folder, now).iter().for_each(|line| say!("{line}"));
    Ok(())
}

/// The table's lines.
fn table(runs: &[RunSummary], folder: &Path, now: f64) -> Vec<String> {
    let keys = RunSummary::differing(runs);
    let mut rows =
        vec![["run", "steps", "loss", "best val", "perplexity", "at", "tok/s", "written"].map(String::from).to_vec()];
    let pairs = runs.iter().any(|run| run.accuracy.is_some());
    rows[0].extend(pairs.then(|| "pairs right".into()));
    let experts = runs.iter().any(|run| run.experts.is_some());
    rows[0].extend(["busiest expert", "dropped"].iter().filter(|_| experts).map(|head| head.to_string()));
    rows[0].extend(keys.iter().cloned());
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".into());
    for run in runs {
        let name = run.folder.strip_prefix(folder).ok().filter(|p| p.components().next().is_some());
        let steps = run.steps.map_or(format!("{}", run.step), |steps| format!("{}/{steps}", run.step));
        let mut row = vec![
            name.unwrap_or(&run.folder).display().to_string(),
            steps,
            or_dash(run.loss.map(|x| format!("{x:.4}"))),
            or_dash(run.best.map(|(x, _)| format!("{x:.4}"))),
            // The loss of pairs is none of tokens.
            or_dash(run.best.filter(|_| run.accuracy.is_none()).map(|(x, _)| format!("{:.2}", x.exp()))),
            or_dash(run.best.map(|(_, step)| step.to_string())),
            or_dash(run.tokens_per_second.map(|x| format!("{x:.0}"))),
            or_dash((run.wall > 0.0).then(|| ago(now - run.wall))),
        ];
        row.extend(pairs.then(|| or_dash(run.accuracy.map(|x| format!("{:.0} %", 100.0 * x)))));
        if experts {
            row.push(or_dash(run.experts.map(|e| format!("{:.2}x", e.busiest))));
            row.push(or_dash(run.dropped.map(|n| n.to_string())));
        }
        row.extend(keys.iter().map(|key| or_dash(run.recipe.get(key).map(|v| v.trim_matches('"').to_string()))));
        rows.push(row);
    }
    aligned(&rows)
}

/// How long ago.
fn ago(seconds: f64) -> String {
    match seconds.max(0.0) {
        s if s < 120.0 => format!("{s:.0} s ago"),
        s if s < 7200.0 => format!("{:.0} min ago", s / 60.0),
        s if s < 172_800.0 => format!("{:.0} h ago", s / 3600.0),
        s => format!("{:.0} days ago", s / 86_400.0),
    }
}

/// Rows with columns below each other: the first on the left, all others on the right.
fn aligned(rows: &[Vec<String>]) -> Vec<String> {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..rows[0].len()).map(width).collect();
    let cell = |(column, text): (usize, &String)| match column {
        0 => format!("{text:<0$}", widths[0]),
        _ => format!("  {text:>0$}", widths[column]),
    };
    rows.iter().map(|row| row.iter().enumerate().map(cell).collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_shows_what_differs() {
        let run = |name: &str, lr: &str, best: Option<(f64, u64)>| RunSummary {
            folder: Path::new("runs").join(name),
            step: 30,
            steps: Some(40),
            model: true,
            loss: Some(1.25),
            best,
            accuracy: None,
            experts: None,
            dropped: None,
            tokens: None,
            tokens_per_second: Some(1234.4),
            device_bytes: None,
            skipped: None,
            wall: 1000.0,
            recipe: [("lr", lr), ("seq", "8"), ("out", name)].map(|(k, v)| (k.into(), v.into())).into(),
        };
        let lines =
            table(&[run("a", "0.5", Some((1.0, 20))), run("long/name", "0.25", None)], Path::new("runs"), 1060.0);
        assert_eq!(
            lines,
            [
                "run        steps    loss  best val  perplexity  at  tok/s   written    lr",
                "a          30/40  1.2500    1.0000        2.72  20   1234  60 s ago   0.5",
                "long/name  30/40  1.2500         -           -   -   1234  60 s ago  0.25",
            ]
        );
    }
}
