//! The plans of training, within the memory that there is: where activations do not fit, some are computed again.

use super::graphs::{Rows, Work, graph};
use super::{Base, Recipe, Subject, optimizer};
use crate::base::{Axis, Bytes, Limits};
use crate::compile::{Chooser, Plan, Trade, compile, compile_steps, human_bytes, optimise, recompute};
use crate::error::{Error, Result};
use crate::graph::Kind;
use crate::model::{Llama, ModelConfig};
use crate::nn::Declare;
use crate::ops::Along;
use crate::optim::Optimizer;
use crate::parallel::sum_states;
use crate::run::device_bytes;

/// What a training run computes.
#[derive(Debug)]
pub struct Plans {
    /// A step, or one of several batches of one.
    pub train: Plan,
    /// The update that follows several batches, or those of several ranks.
    pub apply: Option<Plan>,
    /// Validation.
    pub eval: Plan,
    /// How they were made to fit, where the memory is limited or known.
    pub fit: Option<Fit>,
}

/// How training was made to fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fit {
    /// Bytes allowed: by the recipe, or by the adapter.
    pub allowed: u64,
    /// Bytes that validation, and an update after several batches, take of them beside a step.
    pub beside: u64,
    /// What a step trades for the rest.
    pub trade: Trade,
    /// Operations of a step, without what is computed again.
    pub flops: u64,
    asked: bool,
}

impl Fit {
    /// Says aloud what is traded, if anything is.
    pub fn note(&self) -> Option<String> {
        let Trade { before, reached, again, .. } = &self.trade;
        if again.is_empty() {
            return None;
        }
        let copies: usize = again.iter().map(|a| a.copies).sum();
        Some(format!(
            "with every activation kept, training would take {}, and {} {}: {copies} operations of the forward pass are \
             repeated in the backward pass, which adds {} to a step's work and leaves {}",
            human_bytes(before + self.beside),
            human_bytes(self.allowed),
            if self.asked { "are allowed" } else { "are free" },
            self.added(),
            human_bytes(reached + self.beside),
        ))
    }

    /// Work that is done twice as a share of a step's.
    pub fn added(&self) -> String {
        format!("{:.1} %", self.trade.flops() as f64 / self.flops.max(1) as f64 * 100.0)
    }

    /// Refuses what was asked for and cannot be. What the adapter has is checked where memory is allocated.
    ///
    /// # Errors
    /// A sentence with the smallest number of bytes that would do.
    pub fn check(&self) -> Result<()> {
        let least = self.trade.reached + self.beside;
        if !self.asked || least <= self.allowed {
            return Ok(());
        }
        Err(Error::Invalid(format!(
            "training takes at least {} ({least} bytes), with all activations recomputed where that helps, and {} ({} bytes) \
             are allowed; allow more, or choose a smaller model, --batch or --seq",
            human_bytes(least),
            human_bytes(self.allowed),
            self.allowed
        )))
    }
}

/// Plans a step and validation for the memory that the recipe allows, or else that the adapter is known to have. What does
/// not fit even so is planned as small as possible: [`Fit::check`] and `run::check_memory` refuse it. Where adapters are
/// trained, `base` is what they are of; without it, a model in bf16.
///
/// # Errors
/// If a tensor fits no buffer of an adapter with these limits, or has no kernel there.
pub fn plans(
    config: &ModelConfig,
    recipe: &Recipe,
    base: Option<&Base>,
    limits: &Limits,
    chooser: &mut dyn Chooser,
) -> Result<Plans> {
    plans_of(0, config, recipe, base, limits, chooser)
}

/// Those of a rank of the recipe's mesh.
///
/// # Errors
/// As [`plans`].
pub fn plans_of(
    rank: usize,
    config: &ModelConfig,
    recipe: &Recipe,
    base: Option<&Base>,
    limits: &Limits,
    chooser: &mut dyn Chooser,
) -> Result<Plans> {
    let model = Llama::new(config.clone());
    let subject = Subject::of_rank(rank, &model, recipe, base, limits)?;
    let optimizer = optimizer(recipe);
    let ranks = recipe.mesh.replicas();
    let (rows, several) = (Rows::of(recipe, rank), recipe.accumulate > 1 || ranks > 1);
    let (o, layout) = (&optimizer, &subject.layout);
    let step = || Work::step(o, layout, config, rows, limits);
    let work = if several { Work::Batch(o, layout) } else { step() };
    let graph_of = |params: &dyn Declare, work| graph(&model, params, rows, work);
    let graph = graph_of(&subject, work)?;
    let mut steps = optimise(&graph, limits)?;
    let eval = compile(&graph_of(&*subject.whole(), Work::Validation)?, limits, chooser)?;
    let apply = || {
        if recipe.shards() > 1 {
            return optimizer.apply_shared(layout, Along { axis: Axis::Data, ranks }, recipe.mesh.replica(rank));
        }
        let graph = optimizer.apply(layout)?;
        Ok(if ranks > 1 { sum_states(&graph, ranks, &Optimizer::is_sum)? } else { graph })
    };
    let apply = several.then(|| compile(&apply()?, limits, chooser)).transpose()?;
    let asked = recipe.memory.map(|Bytes(bytes)| bytes);
    let mut traded = None;
    if let Some(allowed) = asked.into_iter().chain(limits.memory_bytes).min() {
        let shared = |name: &str| graph.nodes().iter().any(|n| matches!(n.kind, Kind::State) && n.name == name);
        let beside = device_bytes([&eval].into_iter().chain(&apply), &shared);
        let (fitted, trade) = recompute(&steps, limits, allowed.saturating_sub(beside))?;
        steps = fitted;
        traded = Some((allowed, beside, trade));
    }
    let train = compile_steps(&steps, limits, chooser)?;
    let fit = traded.map(|(allowed, beside, trade)| {
        let flops = train.totals().flops - trade.flops();
        Fit { allowed, beside, trade, flops, asked: asked == Some(allowed) }
    });
    Ok(Plans { train, apply, eval, fit })
}
