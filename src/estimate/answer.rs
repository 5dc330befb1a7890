//! What a run takes, as data and as a text.

use super::ranks::{meetings, sent};
use super::{Fits, Job, MachineFile, Mesh, Parameters, Planned, Usage};
use crate::base::{Axis, count};
use crate::compile::{Plan, human_bytes};
use crate::error::Result;
use crate::optim::Update;
use crate::train::flops_per_token;
use serde::Serialize;
use std::fmt;

/// How long a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Span {
    /// So many steps of the optimizer.
    Steps(u64),
    /// As many steps as see so many tokens.
    Tokens(u64),
}

/// What time costs.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Prices {
    /// An hour of the adapter.
    pub per_hour: Option<f64>,
    /// Watts while it computes.
    pub watts: Option<f64>,
}

/// How long it takes on a machine.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Time {
    /// The machine.
    pub machine: String,
    /// Seconds of a step, operators reaching of the roofline what they are known or assumed to.
    pub step: f64,
    /// Seconds of it where ranks meet.
    pub meetings: f64,
    /// Seconds of a step at least: every operator at the roofline.
    pub least: f64,
    /// Trained tokens per second.
    pub tokens_per_second: f64,
    /// The part of the machine's arithmetic that the model's own operations take (model FLOPs utilisation).
    pub mfu: f64,
    /// Adapters that are at work: one a rank, or one that all ranks share.
    pub adapters: usize,
}

/// What a whole run takes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Cost {
    /// Steps of the optimizer.
    pub steps: u64,
    /// Tokens seen.
    pub tokens: u64,
    /// Seconds, validation and checkpoints not among them.
    pub seconds: f64,
    /// In the currency of the price per hour.
    pub money: Option<f64>,
    /// Kilowatt-hours.
    pub energy: Option<f64>,
}

/// What is answered before anything is loaded.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Answer {
    /// Numbers of parameters.
    pub parameters: Parameters,
    /// Sequences of a batch, or preference pairs.
    pub batch: usize,
    /// Whether they are pairs, of two sequences each.
    pub pairs: bool,
    /// Tokens of a sequence.
    pub seq: usize,
    /// Batches of a step.
    pub accumulate: u32,
    /// Axes along which ranks share the step; of one rank of which all this is.
    pub mesh: Mesh,
    /// Bytes that a rank sends in a step along each.
    pub sent: Vec<(Axis, u64)>,
    /// Whether parameters change layer by layer, so that no gradients are kept.
    pub by_layer: bool,
    /// Floating-point operations of a batch, with what is computed again.
    pub flops: u64,
    /// Bytes of a step by kind.
    pub usage: Usage,
    /// Bytes of a step.
    pub step_bytes: u64,
    /// Bytes that validation adds.
    pub validation_bytes: u64,
    /// Bytes that rows of other lengths add at most, where there are some.
    pub shorter_bytes: u64,
    /// Bytes on the device in all: what a run allocates.
    pub device_bytes: u64,
    /// Bytes that computing activations again saves, and what it adds to a step's work, where a budget asks for it.
    pub recomputed: Option<(u64, f64)>,
    /// What fits, where memory was named.
    pub fits: Option<Fits>,
    /// Where a machine was named.
    pub time: Option<Time>,
    /// Where a machine and a span were named.
    pub cost: Option<Cost>,
}

impl Answer {
    /// From the plans of a job, what fits some memory, and the machine that time is asked of.
    ///
    /// # Errors
    /// As [`Job::parameters`].
    pub fn of(job: &Job, plans: &Planned, fits: Option<Fits>, machine: Option<&MachineFile>) -> Result<Answer> {
        let usage = Usage::of_step(&plans.train, plans.apply.as_ref());
        let traded = plans.fit.as_ref().map(|fit| &fit.trade).filter(|trade| !trade.again.is_empty());
        Ok(Answer {
            parameters: job.parameters()?,
            batch: job.recipe.batch,
            pairs: job.recipe.dpo.is_some(),
            seq: job.recipe.seq,
            accumulate: job.recipe.accumulate,
            mesh: job.recipe.mesh,
            sent: sent(&plans.train, plans.apply.as_ref(), job.recipe.runs().into()),
            by_layer: job.recipe.update == Update::Layer,
            flops: plans.train.totals().flops,
            usage,
            step_bytes: usage.total(),
            validation_bytes: plans.bytes() - usage.total() - plans.shorter,
            shorter_bytes: plans.shorter,
            device_bytes: plans.bytes(),
            recomputed: traded.map(|trade| (trade.before - trade.reached, plans.added())),
            fits,
            time: machine.map(|machine| time(job, plans, machine)),
            cost: None,
        })
    }

    /// The same with what a run of this length takes, where the time of a step is known.
    #[must_use]
    pub fn over(mut self, span: Span, prices: Prices) -> Answer {
        let sequences = self.batch * if self.pairs { 2 } else { 1 };
        let each = (sequences * self.seq) as u64 * u64::from(self.accumulate);
        let steps = match span {
            Span::Steps(steps) => steps,
            Span::Tokens(tokens) => tokens.div_ceil(each),
        };
        self.cost = self.time.as_ref().map(|time| {
            let seconds = time.step * steps as f64;
            let hours = time.adapters as f64 * seconds / 3600.0;
            Cost {
                steps,
                tokens: steps.saturating_mul(each),
                seconds,
                money: prices.per_hour.map(|price| price * hours),
                energy: prices.watts.map(|watts| watts * hours / 1000.0),
            }
        });
        self
    }
}

fn time(job: &Job, plans: &Planned, file: &MachineFile) -> Time {
    let mesh = job.recipe.mesh;
    let each = file.each_of(mesh.ranks());
    let machine = each.machine();
    let runs = f64::from(job.recipe.runs());
    let of_step =
        |seconds: &dyn Fn(&Plan) -> f64| runs * seconds(&plans.train) + plans.apply.as_ref().map_or(0.0, seconds);
    let meetings = of_step(&|plan| meetings(plan, mesh, &each));
    // Their bytes are counted there.
    let met = |plan: &Plan| plan.steps.iter().filter(|s| s.meeting.is_some()).map(|s| machine.expected(s)).sum::<f64>();
    // Of ranks on one processor those that work have what is left by those that wait.
    let bubble = job.recipe.pipeline().filter(|_| !file.shared).map_or(0.0, |pipeline| pipeline.bubble());
    let step = of_step(&|plan| machine.expected_plan(plan) - met(plan)) * (1.0 + bubble) + meetings;
    let tokens = (job.recipe.sequences() * job.recipe.seq) as f64 * f64::from(job.recipe.accumulate);
    let peak = machine.ceilings.iter().map(|c| c.arithmetic.max(c.matmul)).fold(0.0, f64::max);
    let model = flops_per_token(&job.config, &job.recipe) * tokens;
    Time {
        machine: file.name.clone(),
        step,
        meetings,
        least: of_step(&|plan| machine.predicted_plan(plan)),
        tokens_per_second: tokens / step,
        mfu: model / step / peak / mesh.ranks() as f64,
        adapters: file.adapters_of(mesh.ranks()),
    }
}

/// With three significant digits: a million tokens are cents of one machine and a fortune of another.
pub fn significant(value: f64) -> String {
    let digits = if value == 0.0 { 0.0 } else { 2.0 - value.abs().log10().floor() };
    format!("{value:.*}", digits.max(0.0) as usize)
}

/// Seconds as a person reads them, up to years.
pub fn human_time(seconds: f64) -> String {
    match seconds {
        s if s < 1.0 => format!("{:.3} s", s),
        s if s < 120.0 => format!("{s:.1} s"),
        s if s < 7200.0 => format!("{:.1} minutes", s / 60.0),
        s if s < 172_800.0 => format!("{:.1} hours", s / 3600.0),
        s if s < 63_072_000.0 => format!("{:.1} days", s / 86_400.0),
        s => format!("{:.1} years", s / 31_536_000.0),
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Parameters { model, trained } = self.parameters;
        let share = trained as f64 / model as f64 * 100.0;
        writeln!(f, "{:<14} {model:>16}, of which {trained} are trained ({share:.2} %)", "parameters")?;
        writeln!(f, "\n{:<14} {:>16}  bytes on the device, at the moment with most", "", "")?;
        for (name, bytes) in self.usage.kinds() {
            let now = human_bytes(bytes);
            let most = self.usage.most(name).map(human_bytes).filter(|most| *most != now);
            let most = most.map_or_else(String::new, |most| format!(", and {most} at another moment"));
            writeln!(f, "{name:<14} {bytes:>16}  {now}{most}")?;
        }
        writeln!(f, "{:<14} {:>16}  {}", "a step", self.step_bytes, human_bytes(self.step_bytes))?;
        let (more, all) = (self.validation_bytes, self.device_bytes);
        writeln!(f, "{:<14} {more:>16}  {}, beside it", "validation", human_bytes(more))?;
        if self.shorter_bytes > 0 {
            let bytes = self.shorter_bytes;
            writeln!(f, "{:<14} {bytes:>16}  {} at most", "shorter rows", human_bytes(bytes))?;
        }
        writeln!(f, "{:<14} {all:>16}  {}", "in all", human_bytes(all))?;
        if self.mesh.ranks() > 1 {
            writeln!(
                f,
                "\n{:<14} {:>16}  bytes that a rank sends in a step; all above is of one of {}",
                "", "", self.mesh
            )?;
            for (axis, bytes) in &self.sent {
                writeln!(f, "{:<14} {bytes:>16}  {}", axis.name(), human_bytes(*bytes))?;
            }
        }
        if self.by_layer {
            writeln!(f, "parameters change layer by layer, in the backward pass, and no gradients are kept")?;
        }
        if let Some((saved, added)) = self.recomputed {
            let (saved, added) = (human_bytes(saved), added * 100.0);
            writeln!(f, "recomputation saves {saved} of a step, and adds {added:.1} % to its work")?;
        }
        if let Some(fits) = &self.fits {
            let (memory, batch, seq) = (human_bytes(fits.memory), self.batch, self.seq);
            let each = if self.mesh.ranks() > 1 { " on each rank" } else { "" };
            writeln!(f, "\n{memory}{each} hold at most, validation with it")?;
            let again = |n: usize| format!(", with recomputation {n} or up to a sixteenth more");
            let (more, longer) = fits.recomputed.map_or_else(Default::default, |(b, t)| (again(b), again(t)));
            let what = if self.pairs { "pair" } else { "sequence" };
            let (several, all) = (if fits.batch == 1 { "" } else { "s" }, count(batch, what));
            writeln!(f, "{:>10} {what}{several} of {seq} tokens{more}", fits.batch)?;
            writeln!(f, "{:>10} tokens in each of {all}{longer}", fits.seq)?;
            if let Some(context) = fits.context {
                writeln!(f, "{:>10} the model's context of {context} tokens ends there, not the memory", "")?;
            }
            if self.device_bytes > fits.memory {
                writeln!(f, "this does not fit: --memory {memory} plans what would, computing activations again")?;
            }
        }
        if let Some(time) = &self.time {
            let (step, least) = (human_time(time.step), human_time(time.least));
            writeln!(f, "\non {}", time.machine)?;
            writeln!(f, "a step         {step}, and at the roofline {least}; {:.3} Tflop", self.flops as f64 / 1e12)?;
            if self.mesh.ranks() > 1 {
                let share = time.meetings / time.step * 100.0;
                writeln!(f, "meetings       {}, {share:.1} % of it", human_time(time.meetings))?;
            }
            writeln!(f, "tokens         {:.1} a second; MFU {:.1} %", time.tokens_per_second, time.mfu * 100.0)?;
        }
        if let Some(cost) = &self.cost {
            let Cost { steps, tokens, .. } = cost;
            let steps = count(*steps as usize, "step");
            writeln!(f, "the run        {}: {steps}, {tokens} tokens", human_time(cost.seconds))?;
            let has_tokens = *tokens > 0;
            if let Some(money) = cost.money.filter(|_| has_tokens) {
                let million = money / (*tokens as f64 / 1e6);
                writeln!(f, "price          {}, {} a million tokens", significant(money), significant(million))?;
            }
            if let Some(energy) = cost.energy.filter(|_| has_tokens) {
                let million = energy / (*tokens as f64 / 1e6);
                writeln!(f, "energy         {} kWh, {} a million tokens", significant(energy), significant(million))?;
            }
        }
        Ok(())
    }
}
