//! `danlu runs`.

use crate::error::Error;
use crate::train::{RunSummary, find_runs};
use anyhow::Result;
use clap::{Args, ValueEnum};
use std::collections::BTreeSet;
use std::io::IsTerminal;
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
    /// Show every key in which recipes differ, also where a line of the terminal has no room for all.
    #[arg(long)]
    all: bool,
}

/// Lists the runs of a folder, with the keys in which their recipes differ.
pub fn runs(args: RunsArgs) -> Result<()> {
    if args.folder.is_file() {
        return Err(Error::file(&args.folder, "is a file; name the folder of a run, or one with runs in it").into());
    }
    let mut runs = find_runs(&args.folder)?;
    if runs.is_empty() {
        let what = if args.folder.is_dir() { "holds no run" } else { "no such folder" };
        return Err(Error::file(&args.folder, format!("{what}; `danlu train --out FOLDER` makes one")).into());
    }
    runs.iter().flat_map(|run| &run.damaged).for_each(|text| tell!("danlu: {text}"));
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
    let (lines, hidden) = table(&runs, &args.folder, now, columns().filter(|_| !args.all));
    lines.iter().for_each(|line| say!("{line}"));
    if !hidden.is_empty() {
        let (count, keys) = (hidden.len(), hidden.join(", "));
        tell!("recipes also differ in {count} keys for which there is no room here, and which --all shows: {keys}");
    }
    Ok(())
}

/// Characters of a line of the terminal that is printed on; nothing where that goes elsewhere.
fn columns() -> Option<usize> {
    std::io::stdout().is_terminal().then_some(())?;
    rustyline::DefaultEditor::new().ok()?.dimensions().map(|(columns, _)| columns.into())
}

/// The table's lines, and the keys that are not in it because lines of so many characters have no room for them.
fn table(runs: &[RunSummary], folder: &Path, now: f64, columns: Option<usize>) -> (Vec<String>, Vec<String>) {
    let mut rows =
        vec![["run", "steps", "loss", "best val", "perplexity", "at", "tok/s", "written"].map(String::from).to_vec()];
    let pairs = runs.iter().any(|run| run.accuracy.is_some());
    rows[0].extend(pairs.then(|| "pairs right".into()));
    let experts = runs.iter().any(|run| run.experts.is_some());
    rows[0].extend(["busiest expert", "dropped"].iter().filter(|_| experts).map(|head| head.to_string()));
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
        rows.push(row);
    }
    let cell = |run: &RunSummary, key: &String| or_dash(run.recipe.get(key).map(|v| v.trim_matches('"').to_string()));
    let keys = RunSummary::differing(runs).into_iter();
    let keys: Vec<_> = keys.map(|key| (runs.iter().map(|run| cell(run, &key)).collect::<Vec<_>>(), key)).collect();
    let taken = aligned(&rows)[0].chars().count();
    let shown = fitting(&keys, columns.map(|columns| columns.saturating_sub(taken)));
    let mut hidden = Vec::new();
    for ((cells, key), shown) in keys.into_iter().zip(shown) {
        match shown {
            true => rows.iter_mut().zip(std::iter::once(key).chain(cells)).for_each(|(row, cell)| row.push(cell)),
            false => hidden.push(key),
        }
    }
    (aligned(&rows), hidden)
}

/// Which columns, by their cells and head, have room in so many characters, with two before each: those that tell most runs
/// apart come first.
fn fitting(columns: &[(Vec<String>, String)], room: Option<usize>) -> Vec<bool> {
    let Some(mut room) = room else { return vec![true; columns.len()] };
    let kinds = |column: usize| columns[column].0.iter().collect::<BTreeSet<_>>().len();
    let mut order: Vec<usize> = (0..columns.len()).collect();
    order.sort_by_key(|&column| std::cmp::Reverse(kinds(column)));
    let mut shown = vec![false; columns.len()];
    for column in order {
        let (cells, head) = &columns[column];
        let width = 2 + cells.iter().chain([head]).map(|cell| cell.chars().count()).max().unwrap_or(0);
        shown[column] = width <= room;
        room -= if width <= room { width } else { 0 };
    }
    shown
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
    fn columns_that_tell_most_runs_apart_come_first() {
        let column = |cells: [&str; 3], head: &str| (cells.map(String::from).to_vec(), head.to_string());
        let columns =
            [column(["1", "1", "2"], "seed"), column(["1e-3", "2e-3", "3e-3"], "lr"), column(["a", "a", "b"], "x")];
        for (room, shown) in [
            (2, [false; 3]),
            (5, [false, false, true]),
            (6, [false, true, false]),
            (9, [false, true, true]),
            (12, [true, true, false]),
        ] {
            assert_eq!(fitting(&columns, Some(room)), shown, "{room}");
        }
        assert_eq!(fitting(&columns, None), [true; 3]);
    }

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
            damaged: Vec::new(),
        };
        let runs = [run("a", "0.5", Some((1.0, 20))), run("long/name", "0.25", None)];
        let (lines, hidden) = table(&runs, Path::new("runs"), 1060.0, None);
        assert_eq!((lines[0].len(), hidden.len()), (73, 0));
        // Where lines have no room for a key it is named beside the table.
        let narrow = |columns| table(&runs, Path::new("runs"), 1060.0, Some(columns));
        assert_eq!(narrow(73), (lines.clone(), hidden));
        assert_eq!(narrow(72).1, ["lr"]);
        assert!(narrow(1).0.iter().zip(&lines).all(|(narrow, line)| line.starts_with(narrow)));
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
