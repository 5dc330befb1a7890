//! What a device can do at most, each limit measured by itself: what the roofline is drawn from.

use super::Timing;
use super::ceilings::{Class, arithmetic, width};
use super::kernel::{Prepared, filled};
use super::roofline::{self, Roofline};
use super::timing::mean;
use crate::base::TensorType;
use crate::compile::{Plan, Step};
use crate::error::Result;
use crate::gpu::{Gpu, Submission};
use crate::graph::{Io, Op};
use crate::ops::Copy;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Instant;

/// Dispatches of which the cost of one is the mean.
const DISPATCHES: usize = 512;
/// Submissions of which the cost of one is the mean.
const SUBMISSIONS: usize = 32;

/// A rate of arithmetic in one class of precision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ceiling {
    /// What is multiplied, and how.
    pub class: Class,
    /// Floating-point operations per second of multiply-adds on registers, without memory.
    pub arithmetic: f64,
    /// Floating-point operations per second of the best matrix product that we have; 0 where it was not measured.
    pub matmul: f64,
}

/// The measured limits of a device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Bytes read and written by a large copy, per second.
    pub bytes_per_second: f64,
    /// Rates of arithmetic, f32 first.
    pub ceilings: Vec<Ceiling>,
    /// Seconds that a small dispatch takes among others in one pass.
    pub dispatch_seconds: f64,
    /// Seconds that a small dispatch takes in a pass of its own; 0 where it was not measured, as the next.
    pub pass_seconds: f64,
    /// Seconds from handing over a submission of one small dispatch to hearing that it is done.
    pub submission_seconds: f64,
    /// Workgroups that are computed at the same time at full rate; 0 where it was not measured.
    #[serde(default)]
    pub workgroups: f64,
    /// The share of what [`Machine::predicted`] allows for that kernels of an operator reach, measured or assumed; under
    /// [`Machine::REST`] that of all others. Nothing means all of it.
    #[serde(default)]
    pub reached: BTreeMap<String, f64>,
    /// Of operators, and of a class of arithmetic beyond f32 as `matmul f16`, how long steps of several sizes took: pairs of the seconds that [`Machine::predicted`] says and of those
    /// measured, the short ones first. Small steps reach another share of the roof than large ones.
    #[serde(default)]
    pub taken: BTreeMap<String, Vec<(f64, f64)>>,
}

/// Steps whose predictions are within this factor count as of one size.
const ALIKE: f64 = 2.0;

impl Machine {
    /// The name in [`Machine::reached`] that stands for every operator without an entry of its own.
    pub const REST: &str = "rest";

    /// Measures what `roofline` does not say yet.
    ///
    /// # Errors
    /// If the device fails.
    pub async fn measure(gpu: &Gpu, roofline: Roofline) -> Result<Machine> {
        let mut machine = Machine::on(gpu, roofline.bytes_per_second).await?;
        machine.ceilings[0].matmul = roofline.flops_per_second;
        let tiny = tiny(gpu).await?;
        machine.pass_seconds = dispatch(gpu, &tiny, true).await?;
        let mut waits = Vec::new();
        for _ in 0..SUBMISSIONS {
            let mut submission = gpu.submission();
            tiny.record(&mut submission);
            let start = Instant::now();
            submission.submit()?.wait(gpu).await?;
            waits.push(start.elapsed().as_secs_f64());
        }
        machine.submission_seconds = Timing::of(waits).median;
        Ok(machine)
    }

    /// What forecasts want, and no more: bandwidth, arithmetic and the cost of a dispatch. Products are not measured: their
    /// kernels are what is to be chosen.
    ///
    /// # Errors
    /// If the device fails.
    pub async fn bare(gpu: &Gpu) -> Result<Machine> {
        Machine::on(gpu, roofline::copy(gpu).await?).await
    }

    async fn on(gpu: &Gpu, bytes_per_second: f64) -> Result<Machine> {
        let mut ceilings = Vec::new();
        for class in Class::all(gpu.limits()) {
            ceilings.push(Ceiling { class, arithmetic: arithmetic(gpu, class).await?, matmul: 0.0 });
        }
        let workgroups = width(gpu, ceilings[0].arithmetic).await?;
        let dispatch_seconds = dispatch(gpu, &tiny(gpu).await?, false).await?;
        let (pass_seconds, submission_seconds) = (0.0, 0.0);
        let (reached, taken) = (BTreeMap::new(), BTreeMap::new());
        Ok(Machine {
            bytes_per_second,
            ceilings,
            dispatch_seconds,
            pass_seconds,
            submission_seconds,
            workgroups,
            reached,
            taken,
        })
    }

    /// The same with the best product of every class beyond f32.
    ///
    /// # Errors
    /// If the device fails.
    pub async fn with_products(mut self, gpu: &Gpu) -> Result<Machine> {
        for ceiling in self.ceilings.iter_mut().filter(|c| c.class != Class::F32) {
            ceiling.matmul = roofline::product(gpu, ceiling.class).await?;
        }
        Ok(self)
    }

    /// The better of two measurements, each limit for itself: whatever else a machine does only makes them worse.
    pub fn best(&self, other: &Machine) -> Machine {
        let ceilings = self.ceilings.iter().map(|a| {
            let b = other.ceilings.iter().find(|b| b.class == a.class).unwrap_or(a);
            let (arithmetic, matmul) = (a.arithmetic.max(b.arithmetic), a.matmul.max(b.matmul));
            Ceiling { class: a.class, arithmetic, matmul }
        });
        Machine {
            bytes_per_second: self.bytes_per_second.max(other.bytes_per_second),
            ceilings: ceilings.collect(),
            dispatch_seconds: self.dispatch_seconds.min(other.dispatch_seconds),
            pass_seconds: self.pass_seconds.min(other.pass_seconds),
            submission_seconds: self.submission_seconds.min(other.submission_seconds),
            workgroups: self.workgroups.max(other.workgroups),
            reached: self.reached.clone(),
            taken: self.taken.iter().map(|(op, mine)| (op.clone(), shorter(mine, other.taken.get(op)))).collect(),
        }
    }

    /// Floating-point operations a second of a class at most: of arithmetic alone or of a product, whichever is faster.
    /// `None` where that class was not measured.
    pub fn rate(&self, class: Class) -> Option<f64> {
        self.ceilings.iter().find(|c| c.class == class).map(|c| c.arithmetic.max(c.matmul))
    }

    /// The roof over kernels of f32 and of f16: its arithmetic is the device's own, so that a product that gets slower is seen.
    pub fn roofline(&self) -> Roofline {
        let flops_per_second = self.rate(Class::F32).unwrap_or(0.0);
        let half = [Class::F16, Class::Cooperative].into_iter().filter_map(|class| self.rate(class));
        let half_flops_per_second = half.fold(0.0, f64::max);
        Roofline { bytes_per_second: self.bytes_per_second, flops_per_second, half_flops_per_second }
    }

    /// Seconds that a step takes if it reaches the roof and its dispatches cost what small ones do.
    pub fn predicted(&self, step: &Step) -> f64 {
        self.roofline().step_seconds(step).max(self.dispatch_seconds * step.dispatches.len() as f64)
    }

    /// The same of a whole plan, with the way to the device and back.
    pub fn predicted_plan(&self, plan: &Plan) -> f64 {
        self.submission_seconds + plan.steps.iter().map(|s| self.predicted(s)).sum::<f64>()
    }

    /// Learns from kernels that were timed what each operator reaches: steps and their seconds. Operators of which no step
    /// was timed are taken to reach what all together do.
    pub fn learn<'a>(&mut self, timed: impl IntoIterator<Item = (&'a Step, f64)>) {
        let mut sums: BTreeMap<&str, (f64, f64)> = BTreeMap::new();
        let mut all: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
        for (step, seconds) in timed {
            all.entry(kind(step)).or_default().push((self.predicted(step), seconds));
            for name in [step.op, Machine::REST] {
                let sum = sums.entry(name).or_default();
                *sum = (sum.0 + self.predicted(step), sum.1 + seconds);
            }
        }
        let share = |(name, (limit, seconds)): (&str, (f64, f64))| (name.to_string(), limit / seconds);
        self.reached = sums.into_iter().map(share).collect();
        self.taken = all.into_iter().map(|(op, pairs)| (op, by_size(pairs))).collect();
    }

    /// Seconds that a step takes if it reaches of the roof what steps of its operator do that are about as large, or else what
    /// its operator does.
    pub fn expected(&self, step: &Step) -> f64 {
        if let Some(pairs) = self.taken.get(&kind(step)).filter(|pairs| !pairs.is_empty()) {
            return between(pairs, self.predicted(step));
        }
        let reached = self.reached.get(step.op).or_else(|| self.reached.get(Machine::REST));
        self.predicted(step) / reached.filter(|r| **r > 0.0).unwrap_or(&1.0)
    }

    /// The same of a whole plan, with the way to the device and back.
    pub fn expected_plan(&self, plan: &Plan) -> f64 {
        self.submission_seconds + plan.steps.iter().map(|s| self.expected(s)).sum::<f64>()
    }
}

/// What steps are compared as in [`Machine::taken`].
fn kind(step: &Step) -> String {
    match Class::of(step.shader, &step.constants) {
        Class::F32 => step.op.into(),
        class => format!("{} {}", step.op, class.name()),
    }
}

/// Pairs in order of the first, those that are alike as their sums' mean.
fn by_size(mut pairs: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    pairs.sort_by(|a, b| a.0.total_cmp(&b.0));
    let alike = pairs.chunk_by({
        let mut first = None;
        move |a, b| {
            let begins = *first.get_or_insert(a.0);
            let same = b.0 <= ALIKE * begins;
            if !same {
                first = Some(b.0);
            }
            same
        }
    });
    let mean = |group: &[(f64, f64)]| {
        let (x, y) = group.iter().fold((0.0, 0.0), |sum, pair| (sum.0 + pair.0, sum.1 + pair.1));
        (x / group.len() as f64, y / group.len() as f64)
    };
    alike.map(mean).collect()
}

/// The shorter of two times that were taken of the same sizes; sizes are told by their predictions, which a better machine moves
/// all alike.
fn shorter(mine: &[(f64, f64)], other: Option<&Vec<(f64, f64)>>) -> Vec<(f64, f64)> {
    let Some(other) = other.filter(|other| other.len() == mine.len()) else { return mine.to_vec() };
    mine.iter().zip(other).map(|(a, b)| (a.0.min(b.0), a.1.min(b.1))).collect()
}

/// What belongs to `x` by pairs in ascending order: between two of them by a power law, outside in proportion.
fn between(pairs: &[(f64, f64)], x: f64) -> f64 {
    let (first, last) = (pairs[0], pairs[pairs.len() - 1]);
    let after = pairs.partition_point(|pair| pair.0 <= x);
    match pairs.get(after) {
        None => last.1 * x / last.0,
        Some(_) if after == 0 => first.1 * x / first.0,
        Some(&(b, upper)) => {
            let (a, lower) = pairs[after - 1];
            lower * (upper / lower).powf((x / a).ln() / (b / a).ln())
        }
    }
}

/// A dispatch that does nothing to speak of.
async fn tiny(gpu: &Gpu) -> Result<Prepared> {
    let io = io(1);
    filled(gpu, &Copy.kernels(&io, gpu.limits())[0], &io).await
}

/// Seconds of one of many such, with `split` each in a pass of its own.
async fn dispatch(gpu: &Gpu, tiny: &Prepared, split: bool) -> Result<f64> {
    let record = |s: &mut Submission| {
        tiny.record(s);
        if split {
            s.split();
        }
    };
    let mut best = f64::INFINITY;
    for _ in 0..3 {
        best = best.min(mean(gpu, DISPATCHES, record).await?);
    }
    Ok(best)
}

fn io(elements: usize) -> Io {
    let ty = TensorType::f32([elements]);
    Io { inputs: vec![ty.clone()], outputs: vec![ty] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_expected_to_take_what_those_of_their_size_took() {
        let pairs = by_size(vec![(8.0, 16.0), (1.0, 10.0), (1.5, 12.0), (8.0, 20.0), (100.0, 150.0)]);
        assert_eq!(pairs, [(1.25, 11.0), (8.0, 18.0), (100.0, 150.0)]);
        let close =
            |x: f64, y: f64| assert!((between(&pairs, x) / y - 1.0).abs() < 1e-12, "{x}: {}", between(&pairs, x));
        close(8.0, 18.0);
        close(0.125, 1.1);
        close(1000.0, 1500.0);
        // In the middle of the logarithms.
        close((8.0f64 * 100.0).sqrt(), (18.0f64 * 150.0).sqrt());
    }
}
