//! What `danlu doctor --tuning` shows: which kernels were measured on an adapter, which were not and why, and which was taken.

use super::paths;
use crate::base::AdapterId;
use crate::run::{Records, Row};
use serde::Serialize;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// What is known of one adapter.
#[derive(Debug, Serialize)]
pub(super) struct Evidence {
    /// The file.
    file: PathBuf,
    /// What was learnt here, under this driver and these shaders.
    here: Records,
    /// What was learnt under others, and counts no more: driver, version and shaders, and how many choices.
    stale: Vec<(String, String, usize)>,
    /// Choices that ship for this adapter.
    shipped: usize,
}

impl Evidence {
    /// Reads what is kept of an adapter; never fails, as what cannot be read is no evidence.
    pub(super) fn of(adapter: &AdapterId) -> Evidence {
        Evidence::read(&paths::cache(), adapter)
    }

    fn read(folder: &Path, adapter: &AdapterId) -> Evidence {
        let here = Records::load(folder, adapter);
        let mine = |r: &Records| r.adapter.name == adapter.name && r.adapter.backend == adapter.backend;
        let all = Records::all(folder).into_iter().filter(mine);
        let others = all.filter(|r| (&r.adapter, &r.build) != (adapter, &here.build));
        let stale = others.map(|r| (r.adapter.driver, r.build, r.rows.len())).collect();
        let shipped = Records::shipped(adapter).map_or(0, |r| r.rows.len());
        Evidence { file: Records::file(folder), here, stale, shipped }
    }

    /// As text.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        let r = &self.here;
        let _ = writeln!(text, "\ntuning of {}, in {}", r.adapter.name, self.file.display());
        let _ = writeln!(text, "  driver {}, version and shaders {}", r.adapter.driver, r.build);
        for (driver, build, rows) in &self.stale {
            let _ =
                writeln!(text, "  {rows} choices under driver {driver}, version and shaders {build}, count no more");
        }
        let _ = writeln!(text, "  {} choices ship, {} were made here", self.shipped, r.rows.len());
        if let Some(m) = &r.machine {
            let rates = m.ceilings.iter().map(|c| format!(", {} {:.1} GFLOP/s", c.class.name(), c.arithmetic / 1e9));
            let rates: String = rates.collect();
            let (copy, dispatch, wide) = (m.bytes_per_second / 1e9, m.dispatch_seconds * 1e6, m.workgroups);
            let _ = writeln!(
                text,
                "  forecasts rest on: copy {copy:.1} GB/s{rates}, a dispatch {dispatch:.2} µs, {wide:.0} workgroups at a time"
            );
        }
        r.rows.iter().for_each(|row| choice(&mut text, row));
        let _ = writeln!(text, "  proved right: {}", r.proved.len());
        for b in &r.barred {
            let _ = writeln!(text, "  barred: {} ({}): {}", b.id.kernel, b.id.constants, b.reason);
        }
        text
    }
}

/// One class of sizes, its candidates in the operator's order, `*` before the one that is taken.
fn choice(text: &mut String, row: &Row) {
    let _ = writeln!(text, "  {} {}", row.key.op, row.key.class);
    for (i, id) in row.key.candidates.iter().enumerate() {
        let taken = if i == row.winner { '*' } else { ' ' };
        let seconds = row.seconds.get(i).copied().flatten();
        let note = row.notes.get(i).cloned().flatten();
        let what = match (seconds, note) {
            (Some(s), _) => format!("{:.1} µs", s * 1e6),
            (None, Some(note)) => note,
            (None, None) => "not measured: the nearest class decided".to_string(),
        };
        let least = row.forecasts.get(i).map_or(String::new(), |s| format!(", forecast {:.1} µs", s * 1e6));
        let _ = writeln!(text, "  {taken} {:<36} {what}{least}", id.kernel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::{KernelId, Key};

    #[test]
    fn every_candidate_is_told_of_with_its_reason() {
        let folder = tempfile::tempdir().unwrap();
        let adapter = |driver: &str| AdapterId { name: "Card".into(), driver: driver.into(), backend: "vulkan".into() };
        let id = |kernel: &str| KernelId { kernel: kernel.into(), constants: "A=1".into() };
        let key = Key { op: "matmul".into(), class: "64,64".into(), candidates: vec![id("a:1"), id("b:2"), id("c:3")] };
        let mut records = Records::new(adapter("2"));
        let notes = vec![None, Some("left out: takes 1 s at least".into()), None];
        let seconds = vec![Some(2e-3), None, Some(1e-3)];
        records.rows.push(Row { key: key.clone(), seconds, forecasts: vec![1e-3; 3], notes, winner: 2 });
        let nearest = Row { key, seconds: Vec::new(), forecasts: Vec::new(), notes: Vec::new(), winner: 0 };
        records.rows.push(nearest);
        records.barred.push(crate::run::Barred { id: id("d:4"), reason: "wrong".into() });
        records.save(folder.path()).unwrap();
        Records { adapter: adapter("1"), ..records.clone() }.save(folder.path()).unwrap();
        let evidence = Evidence::read(folder.path(), &adapter("2"));
        let text = evidence.text();
        for part in [
            "2 choices under driver 1, ",
            "  matmul 64,64\n    a:1                                  2000.0 µs, forecast 1000.0 µs\n",
            "    b:2                                  left out: takes 1 s at least, forecast 1000.0 µs\n",
            "  * c:3                                  1000.0 µs",
            "  * a:1                                  not measured: the nearest class decided\n",
            "barred: d:4 (A=1): wrong",
        ] {
            assert!(text.contains(part), "{part:?}: {text}");
        }
        // Another driver: nothing that was measured counts.
        let other = Evidence::read(folder.path(), &adapter("3"));
        assert!(other.here.rows.is_empty() && other.stale.len() == 2, "{other:?}");
    }
}
