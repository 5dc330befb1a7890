//! A benchmark against one that was kept: what moved beyond the noise. Compared are parts of the roofline, each measured in
//! its own run, so that a machine that is slower altogether moves nothing.

use super::{Entry, Report};
use std::fmt;

/// What became of a figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is worse by more than the threshold, and no measurement of now reaches any of then.
    Slower,
    /// The same the other way round.
    Faster,
    /// Neither.
    Same,
}

/// One figure, then and now.
#[derive(Debug, Clone, PartialEq)]
pub struct Move {
    /// Its name.
    pub name: String,
    /// Part of the roofline then.
    pub before: f64,
    /// Part of the roofline now.
    pub now: f64,
    /// What became of it.
    pub verdict: Verdict,
}

/// All figures, then and now.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// Those that both have.
    pub moves: Vec<Move>,
    /// Names that only the new one has.
    pub new: Vec<String>,
    /// Names that only the kept one has.
    pub gone: Vec<String>,
    /// Changes up to this part are not worth a word.
    pub threshold: f64,
}

/// Compares by names.
pub fn compare(kept: &Report, now: &Report, threshold: f64) -> Comparison {
    let find = |report: &Report, name: &str| report.entries.iter().find(|e| e.name == name).cloned();
    let (mut moves, mut new) = (Vec::new(), Vec::new());
    for entry in &now.entries {
        match find(kept, &entry.name) {
            Some(before) => moves.push(step(&before, entry, threshold)),
            None => new.push(entry.name.clone()),
        }
    }
    let gone = kept.entries.iter().filter(|e| find(now, &e.name).is_none()).map(|e| e.name.clone()).collect();
    Comparison { moves, new, gone, threshold }
}

fn step(before: &Entry, now: &Entry, threshold: f64) -> Move {
    // The parts of the roofline that the best and the worst measurement reach.
    let range = |e: &Entry| (e.limit / e.seconds.high, e.limit / e.seconds.low);
    let ((before_low, before_high), (low, high)) = (range(before), range(now));
    let verdict = if high < before_low && now.fraction * (1.0 + threshold) < before.fraction {
        Verdict::Slower
    } else if low > before_high && now.fraction > before.fraction * (1.0 + threshold) {
        Verdict::Faster
    } else {
        Verdict::Same
    };
    Move { name: now.name.clone(), before: before.fraction, now: now.fraction, verdict }
}

impl Comparison {
    /// Names of what got slower.
    pub fn slower(&self) -> Vec<String> {
        self.moves.iter().filter(|m| m.verdict == Verdict::Slower).map(|m| m.name.clone()).collect()
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |verdict| self.moves.iter().filter(|m| m.verdict == verdict).count();
        let threshold = self.threshold * 100.0;
        writeln!(
            f,
            "against what was kept: {} slower, {} faster, {} within the noise or {threshold:.0} %; {} new, {} no longer measured",
            count(Verdict::Slower),
            count(Verdict::Faster),
            count(Verdict::Same),
            self.new.len(),
            self.gone.len()
        )?;
        for (word, verdict) in [("slower", Verdict::Slower), ("faster", Verdict::Faster)] {
            for m in self.moves.iter().filter(|m| m.verdict == verdict) {
                let (before, now, times) = (m.before * 100.0, m.now * 100.0, m.now / m.before);
                writeln!(
                    f,
                    "{word}  {}: {before:.1} % of the roofline then, {now:.1} % now: {times:.2} times the speed",
                    m.name
                )?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::base::AdapterId;
    use crate::run::{Ceiling, Class, Machine, Timing};

    /// A report of made-up entries: name, part of the roofline, and spread to both sides.
    pub(in super::super) fn report(entries: &[(&str, f64, f64)]) -> Report {
        let ceilings = vec![Ceiling { class: Class::F32, arithmetic: 2e11, matmul: 1e11 }];
        let machine = Machine {
            bytes_per_second: 1e10,
            ceilings,
            dispatch_seconds: 2e-6,
            pass_seconds: 4e-5,
            submission_seconds: 1e-4,
            workgroups: 8.0,
            reached: Default::default(),
            taken: Default::default(),
        };
        let id = AdapterId { name: "Made Up".into(), driver: "1".into(), backend: "vulkan".into() };
        let mut report = Report::new(id, true, machine);
        for &(name, fraction, spread) in entries {
            let median = 1e-3 / fraction;
            report.entries.push(Entry {
                name: name.into(),
                kernel: "map:vector".into(),
                class: Class::F32,
                flops: 1_000_000,
                bytes: 10_000_000,
                dispatches: 1,
                seconds: Timing { median, low: median * (1.0 - spread), high: median * (1.0 + spread) },
                limit: 1e-3,
                predicted: 1.1e-3,
                fraction,
                device_bytes: None,
                tokens_per_second: None,
            });
        }
        report
    }

    #[test]
    fn a_regression_is_found_and_noise_is_not_one() {
        let kept = report(&[
            ("a", 0.5, 0.05),
            ("b", 0.5, 0.05),
            ("c", 0.5, 0.05),
            ("d", 0.5, 0.8),
            ("e", 0.5, 0.0),
            ("f", 0.5, 0.1),
        ]);
        let now = report(&[
            ("a", 0.3, 0.05),  // 40 % slower, and apart
            ("b", 0.48, 0.01), // 4 %: below the threshold
            ("c", 0.8, 0.05),  // faster
            ("d", 0.3, 0.8),   // 40 % slower, but then it swung that much as well
            ("g", 0.1, 0.0),   // new
            ("f", 0.5, 0.1),
        ]);
        let c = compare(&kept, &now, 0.25);
        assert_eq!(c.slower(), ["a"]);
        let verdicts: Vec<_> = c.moves.iter().map(|m| m.verdict).collect();
        use Verdict::{Faster, Same, Slower};
        assert_eq!(verdicts, [Slower, Same, Faster, Same, Same]);
        assert_eq!((c.new.as_slice(), c.gone.as_slice()), (&["g".to_string()][..], &["e".to_string()][..]));
        let text = c.to_string();
        assert!(
            text.starts_with("against what was kept: 1 slower, 1 faster, 3 within the noise or 25 %; 1 new, 1 no"),
            "{text}"
        );
        assert!(text.contains("slower  a: 50.0 % of the roofline then, 30.0 % now: 0.60 times the speed"), "{text}");
    }

    #[test]
    fn a_machine_that_is_slower_altogether_moves_nothing() {
        let kept = report(&[("a", 0.5, 0.01)]);
        let mut now = kept.clone();
        // Twice the time, under a roof that is half as high.
        (now.entries[0].seconds, now.entries[0].limit) = (now.entries[0].seconds.scaled(2.0), 2e-3);
        assert!(compare(&kept, &now, 0.0).slower().is_empty());
        // The same against the old roof is slower.
        now.entries[0].limit = 1e-3;
        now.entries[0].fraction /= 2.0;
        assert_eq!(compare(&kept, &now, 0.25).slower(), ["a"]);
    }
}
