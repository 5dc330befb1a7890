//! What a candidate takes at least on a machine of known limits, and, by experience, what it will take: so that of many
//! candidates only those are measured that may win.

use super::ceilings::Class;
use super::machine::Machine;
use super::records::{Key, Row};
use crate::error::{Error, Result};
use crate::graph::{Cost, Kernel};
use std::fmt;

/// The model is trusted up to this factor: what looks slower than the best by more is not measured.
const MARGIN: f64 = 2.0;
/// So many classes of sizes must have been measured before a candidate's experience counts.
const EXPERIENCED: usize = 2;

/// Seconds that each of a machine's limits asks of a candidate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Forecast {
    /// For its arithmetic, at the rate of its class and with as many workgroups as it has.
    pub arithmetic: f64,
    /// For the bytes of its operands.
    pub traffic: f64,
    /// For its dispatches.
    pub launches: f64,
}

impl Forecast {
    /// Of a candidate for a node that costs this much.
    pub fn of(kernel: &Kernel, cost: Cost, machine: &Machine) -> Forecast {
        let groups = |w: &[u32; 3]| w.iter().map(|&n| f64::from(n)).product::<f64>();
        let arithmetic = |(stage, flops): (&Kernel, u64)| {
            let all: f64 = stage.dispatches.iter().map(|d| groups(&d.workgroups)).sum();
            // A dispatch of fewer workgroups than the machine computes at a time leaves the rest of it idle.
            let paid: f64 = stage.dispatches.iter().map(|d| groups(&d.workgroups).max(machine.workgroups)).sum();
            let class = Class::of(stage.shader, &stage.constants);
            // Operands of f16 may be widened and then cost what f32 does; of matrices nothing is known before they are measured.
            let rate = machine.rate(class).or_else(|| machine.rate(Class::F32).filter(|_| class == Class::F16));
            rate.map_or(0.0, |rate| flops as f64 / rate * paid / all.max(1.0))
        };
        let told: u64 = kernel.stages().map(|stage| stage.flops).sum();
        let shares = kernel.shares(told.max(cost.flops));
        Forecast {
            arithmetic: kernel.stages().zip(shares).map(arithmetic).sum(),
            traffic: kernel.traffic(cost.bytes).iter().sum::<u64>() as f64 / machine.bytes_per_second,
            launches: machine.dispatch_seconds * kernel.stages().map(|s| s.dispatches.len()).sum::<usize>() as f64,
        }
    }

    /// The longest of them: a good machine does all at the same time.
    pub fn seconds(&self) -> f64 {
        self.arithmetic.max(self.traffic).max(self.launches)
    }
}

/// Seconds as a person reads them, in reasons.
struct Seconds(f64);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            s if s >= 1.0 => write!(f, "{s:.2} s"),
            s if s >= 1e-3 => write!(f, "{:.2} ms", s * 1e3),
            s => write!(f, "{:.2} µs", s * 1e6),
        }
    }
}

/// For each candidate of a key the part of its forecast that it reached at best in other classes, where there are enough.
pub(super) fn experience(key: &Key, rows: &[Row]) -> Vec<Option<f64>> {
    let of = |kernel: &str| {
        let mut reached = Vec::new();
        for row in rows.iter().filter(|row| row.key.op == key.op) {
            for (i, id) in row.key.candidates.iter().enumerate().filter(|(_, id)| id.kernel == kernel) {
                if let (Some(&Some(seconds)), Some(&forecast)) = (row.seconds.get(i), row.forecasts.get(i)) {
                    debug_assert!(id.kernel == kernel);
                    reached.push(forecast / seconds);
                }
            }
        }
        (reached.len() >= EXPERIENCED).then(|| reached.into_iter().fold(0.0, f64::max))
    };
    key.candidates.iter().map(|id| of(&id.kernel)).collect()
}

/// What came of a race.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Race {
    /// Seconds of each candidate that was measured.
    pub(super) seconds: Vec<Option<f64>>,
    /// Why each of the others was not.
    pub(super) notes: Vec<Option<String>>,
    /// Candidates that could not be run.
    pub(super) failed: Vec<usize>,
    /// Whether memory was lacking for some, which says nothing about them: they are not among those that failed.
    pub(super) is_short: bool,
}

/// Has candidates measured, the most promising first, as long as they may win. `reached` is their [`experience`], `barred`
/// those that are out already; `measure` is told the best time so far.
pub(super) async fn race(
    forecasts: &[f64],
    reached: &[Option<f64>],
    barred: &[bool],
    mut measure: impl AsyncFnMut(usize, Option<f64>) -> Result<f64>,
) -> Race {
    let n = forecasts.len();
    let mut race = Race { seconds: vec![None; n], notes: vec![None; n], failed: Vec::new(), is_short: false };
    let expected = |i: usize| forecasts[i] / reached[i].unwrap_or(1.0);
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&a, &b| expected(a).total_cmp(&expected(b)).then(a.cmp(&b)));
    let mut best: Option<f64> = None;
    // What the model takes for impossible and yet was seen is no limit: then caches hold the operands, say.
    let mut credit = 1.0_f64;
    for i in order {
        if barred[i] {
            race.notes[i] = Some("barred".into());
            continue;
        }
        if let Some(best) = best {
            race.notes[i] = hopeless(forecasts[i] / credit, reached[i], best);
        }
        if race.notes[i].is_some() {
            continue;
        }
        match measure(i, best).await {
            Ok(seconds) => {
                race.seconds[i] = Some(seconds);
                best = Some(best.map_or(seconds, |b| b.min(seconds)));
                credit = credit.max(forecasts[i] / seconds);
            }
            Err(error) => {
                race.notes[i] = Some(error.to_string());
                match error {
                    Error::Memory { .. } => race.is_short = true,
                    _ => race.failed.push(i),
                }
            }
        }
    }
    race
}

/// Why a candidate that takes at least `least` seconds, and elsewhere reached this part of such limits, need not be measured
/// where another took `best`.
fn hopeless(least: f64, reached: Option<f64>, best: f64) -> Option<String> {
    if least > MARGIN * best {
        return Some(format!("left out: takes {} at least, and another took {}", Seconds(least), Seconds(best)));
    }
    let (part, expected) = reached.map(|part| (part, least / part)).filter(|(_, s)| *s > MARGIN * best)?;
    let percent = part * 100.0;
    Some(format!(
        "left out: would take {} at the {percent:.1} % of the limits that it reaches at best, and another took {}",
        Seconds(expected),
        Seconds(best)
    ))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::base::{AdapterId, Limits, TensorType};
    use crate::graph::{Io, Op};
    use crate::ops::{MatMul, Operands};
    use crate::run::{Ceiling, KernelId, Records};
    use pollster::block_on;

    /// A made-up device: 10 TFLOP/s of f32, ten times as much of matrices, 1 TB/s, 100 workgroups at a time.
    pub(in crate::run) fn machine() -> Machine {
        let ceiling = |class, arithmetic| Ceiling { class, arithmetic, matmul: 0.0 };
        Machine {
            bytes_per_second: 1e12,
            ceilings: vec![ceiling(Class::F32, 1e13), ceiling(Class::Cooperative, 1e14)],
            dispatch_seconds: 2e-6,
            pass_seconds: 1e-5,
            submission_seconds: 1e-4,
            workgroups: 100.0,
            reached: Default::default(),
            taken: Default::default(),
        }
    }

    pub(in crate::run) fn limits() -> Limits {
        let (has_f16, cooperative) = (true, vec![16]);
        let (min_subgroup, max_subgroup) = (32, 32);
        let (max_binding_bytes, max_shared_bytes) = (1 << 30, 48 << 10);
        Limits {
            has_f16,
            cooperative,
            min_subgroup,
            max_subgroup,
            max_binding_bytes,
            max_shared_bytes,
            ..Limits::default()
        }
    }

    /// Forecasts of all candidates of a product of f16 operands, by variant.
    fn product(m: usize, n: usize, k: usize) -> Vec<(String, Forecast)> {
        let op = MatMul::new(false, false).with(Operands::F16);
        let inputs = vec![TensorType::f32([m, k]), TensorType::f32([k, n])];
        let io = Io { outputs: op.infer(&[&inputs[0], &inputs[1]]).unwrap(), inputs };
        let forecast = |k: Kernel| (k.variant.clone(), Forecast::of(&k, op.cost(&io), &machine()));
        op.kernels(&io, &limits()).into_iter().map(forecast).collect()
    }

    fn of(all: &[(String, Forecast)], variant: &str) -> Forecast {
        let found = all.iter().find(|(v, _)| v.starts_with(variant));
        found.unwrap_or_else(|| panic!("{variant}: {all:?}")).1
    }

    #[test]
    fn a_forecast_is_the_longest_of_arithmetic_traffic_and_launches() {
        let all = product(4096, 4096, 4096);
        let flops = 2.0 * 4096_f64.powi(3);
        let (tile, matrices) = (of(&all, "tile_64x64_half"), of(&all, "coop_16"));
        assert!((tile.arithmetic / (flops / 1e13) - 1.0).abs() < 1e-9, "{tile:?}");
        assert!((matrices.arithmetic / (flops / 1e14) - 1.0).abs() < 1e-9, "the tier counts: {matrices:?}");
        assert!((tile.traffic - 3.0 * 4.0 * 4096.0 * 4096.0 / 1e12).abs() < 1e-12, "{tile:?}");
        assert_eq!((tile.launches, tile.seconds()), (2e-6, tile.arithmetic));
        // A thousandth of the work: bytes and a dispatch are what counts.
        let small = of(&product(64, 64, 64), "coop_16");
        assert_eq!(small.seconds(), small.launches);
    }

    #[test]
    fn tiles_over_the_edge_and_idle_processors_are_paid_for() {
        // One row: a tile of 64 rows computes 64 times what was asked.
        let thin = product(1, 64 * 100, 4096);
        let (wide, narrow) = (of(&thin, "tile_64x64_half"), of(&thin, "tile_32x32_half"));
        let flops = 2.0 * 6400.0 * 4096.0;
        assert!((wide.arithmetic / (64.0 * flops / 1e13) - 1.0).abs() < 1e-9, "{wide:?}");
        assert!((narrow.arithmetic / (32.0 * flops / 1e13) - 1.0).abs() < 1e-9, "{narrow:?}");
        // Four tiles of 64 on a hundred processors leave 96 of them idle; sixteen of 32 leave 84.
        let few = product(128, 128, 4096);
        let (wide, narrow) = (of(&few, "tile_64x64_half"), of(&few, "tile_32x32_half"));
        assert!((wide.arithmetic / narrow.arithmetic - 4.0).abs() < 1e-9, "{wide:?} {narrow:?}");
        // Where it is not known how many there are, all are busy.
        let op = MatMul::new(false, false);
        let inputs = vec![TensorType::f32([128, 4096]), TensorType::f32([4096, 128])];
        let io = Io { outputs: op.infer(&[&inputs[0], &inputs[1]]).unwrap(), inputs };
        let unknown = Machine { workgroups: 0.0, ..machine() };
        let kernels = op.kernels(&io, &limits());
        assert!(
            (Forecast::of(&kernels[0], op.cost(&io), &unknown).arithmetic - 2.0 * 128.0 * 128.0 * 4096.0 / 1e13) < 1e-9
        );
    }

    fn short() -> Error {
        let text = String::new;
        Error::Memory { what: "input".into(), wanted: 2, had: 1, adapter: text(), advice: text() }
    }

    /// A race between candidates that take so long; gives which were measured, in order, and the race. One that is not a number
    /// fails, and for one without end there is no memory.
    fn run(forecasts: &[f64], reached: &[Option<f64>], barred: &[bool], seconds: &[f64]) -> (Vec<usize>, Race) {
        let mut asked = Vec::new();
        let race = block_on(race(forecasts, reached, barred, async |i: usize, _: Option<f64>| {
            asked.push(i);
            match seconds[i] {
                s if s.is_nan() => Err(Error::Graph("does not compile".into())),
                s if s.is_infinite() => Err(short()),
                s => Ok(s),
            }
        }));
        (asked, race)
    }

    #[test]
    fn what_cannot_win_is_not_measured_and_the_reason_is_kept() {
        let (asked, race) = run(&[9e-3, 1e-3, 1.5e-3], &[None; 3], &[false; 3], &[1.0, 2e-3, 3e-3]);
        assert_eq!(asked, [1, 2], "the most promising first, and those not that cannot win");
        assert_eq!(race.seconds, [None, Some(2e-3), Some(3e-3)]);
        let note = race.notes[0].as_deref().unwrap();
        assert_eq!(note, "left out: takes 9.00 ms at least, and another took 2.00 ms");
        // By experience.
        let (asked, race) = run(&[1e-3, 1e-3], &[Some(0.5), Some(0.01)], &[false; 2], &[2e-3, 1e-6]);
        assert_eq!(asked, [0]);
        assert_eq!(
            race.notes[1].as_deref().unwrap(),
            "left out: would take 100.00 ms at the 1.0 % of the limits that it reaches at best, and another took 2.00 ms"
        );
    }

    #[test]
    fn a_model_that_is_wrong_excludes_nothing() {
        // Everything is ten times faster than the model has it, since caches hold the operands.
        let (asked, _) = run(&[1e-3, 1.5e-3], &[None; 2], &[false; 2], &[1e-4, 1e-5]);
        assert_eq!(asked, [0, 1]);
    }

    #[test]
    fn what_fails_or_is_barred_decides_nothing() {
        let (asked, race) = run(&[1e-3, 2e-3, 3e-3], &[None; 3], &[true, false, false], &[1e-9, f64::NAN, 5e-3]);
        assert_eq!(asked, [1, 2]);
        assert_eq!((race.seconds, race.failed), (vec![None, None, Some(5e-3)], vec![1]));
        assert_eq!(race.notes[1].as_deref(), Some("graph: does not compile"));
        assert!(!race.is_short);
    }

    #[test]
    fn what_memory_is_lacking_for_has_not_failed() {
        let (asked, race) = run(&[1e-3, 2e-3, 3e-3], &[None; 3], &[false; 3], &[f64::INFINITY, f64::NAN, 5e-3]);
        assert_eq!(asked, [0, 1, 2]);
        assert_eq!((race.seconds, race.failed, race.is_short), (vec![None, None, Some(5e-3)], vec![1], true));
        assert!(race.notes[0].is_some());
    }

    #[test]
    fn experience_is_the_best_that_a_kernel_reached() {
        let id = |kernel: &str| KernelId { kernel: kernel.into(), constants: String::new() };
        let key =
            |class: &str| Key { op: "matmul".into(), class: class.into(), candidates: vec![id("a:1"), id("b:1")] };
        let adapter = AdapterId { name: "n".into(), driver: "d".into(), backend: "b".into() };
        let mut records = Records::new(adapter);
        let row = |class: &str, seconds: [Option<f64>; 2]| Row {
            key: key(class),
            seconds: seconds.into(),
            forecasts: vec![1.0, 1.0],
            notes: Vec::new(),
            winner: 0,
        };
        records.rows.push(row("8", [Some(4.0), Some(10.0)]));
        assert_eq!(experience(&key("32"), &records.rows), [None, None], "one class is no experience");
        records.rows.push(row("16", [Some(2.0), None]));
        assert_eq!(experience(&key("32"), &records.rows), [Some(0.5), None]);
        // Rows of the table that ships have no forecasts.
        records.rows[0].forecasts.clear();
        assert_eq!(experience(&key("32"), &records.rows), [None, None]);
    }
}
