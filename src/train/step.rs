//! What a step is told, by its recipe, and what it tells.

use super::graphs::REWARDS;
use super::load::Load;
use super::preferring::Rewards;
use super::{ExpertLoad, GroupOptions, Precision, Recipe};
use crate::compile::{BufferKind, BufferSpec, Plan};
use crate::optim::{JUDGE, LossScaling, Optimizer, Rule, Schedule, Settings, UPDATE_NORM, Update};
use crate::run::Results;

/// What a step reports.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepResult {
    /// Mean cross entropy in nats a token; of preference pairs, their mean loss.
    pub loss: f32,
    /// Global norm of the gradient before clipping.
    pub grad_norm: f32,
    /// Norm of what the step added to the parameters; none where ranks hold parts of them.
    pub update_norm: Option<f32>,
    /// Where the loss is scaled: the next step's scale.
    pub loss_scale: Option<f32>,
    /// Steps left out so far because a gradient overflowed or was an outlier.
    pub skipped: u64,
    /// Whether this one was.
    pub left_out: bool,
    /// Of preference pairs.
    pub rewards: Option<Rewards>,
    /// Where the model has experts.
    pub experts: Option<ExpertLoad>,
    /// Tokens that were computed, those that fill up rows among them.
    pub tokens: u64,
    /// Seconds that its batches were waited for.
    pub data_wait: f64,
}

impl StepResult {
    /// Of a model whose experts' counts lie so.
    pub(super) fn with(load: Option<Load>) -> impl FnOnce(Results<'_>) -> Self {
        move |results| StepResult { experts: load.and_then(|load| load.read(&results)), ..StepResult::of(results) }
    }

    pub(super) fn of(results: Results<'_>) -> Self {
        let first = |name| results.first(name).unwrap_or(f32::NAN);
        let judged = |index| results.element(JUDGE, index);
        StepResult {
            loss: first("loss"),
            grad_norm: first("grad_norm"),
            update_norm: results.first(UPDATE_NORM),
            // Without scaling it stays 0.
            loss_scale: judged(0).filter(|scale| *scale > 0.0),
            skipped: judged(2).map_or(0, |n| n as u64),
            left_out: judged(7).is_some_and(|flag| flag > 0.0),
            rewards: Rewards::of(&results, REWARDS),
            experts: None,
            tokens: 0,
            data_wait: 0.0,
        }
    }
}

/// The optimizer of a recipe.
pub fn optimizer(recipe: &Recipe) -> Optimizer {
    let own = |group: &GroupOptions| Settings {
        params: group.params.clone(),
        rate: group.lr.map_or(1.0, |lr| lr / recipe.lr),
        weight_decay: group.weight_decay,
    };
    Optimizer {
        rule: recipe.optimizer,
        beta1: recipe.beta1,
        beta2: recipe.beta2,
        epsilon: recipe.epsilon,
        momentum: recipe.momentum,
        nesterov: recipe.momentum > 0.0,
        weight_decay: recipe.weight_decay,
        max_norm: if recipe.clip > 0.0 { recipe.clip } else { f64::INFINITY },
        outlier: recipe.recovery.outlier,
        loss_scaling: (recipe.precision == Precision::Mixed)
            .then(|| LossScaling { interval: recipe.loss_scale_interval, ..LossScaling::default() }),
        copies: copies(recipe),
        ema: recipe.ema,
        settings: recipe.groups.iter().map(own).collect(),
        update: recipe.update,
    }
}

/// Whether a run keeps copies in f16 of its weights, where these lie so that it can.
fn copies(recipe: &Recipe) -> bool {
    recipe.weight_copies && without_copies(recipe).is_none()
}

/// Why a run has no copies in f16 of its weights whatever they are, and what would change that.
fn without_copies(recipe: &Recipe) -> Option<[&'static str; 2]> {
    match () {
        () if recipe.lora.is_some() => Some(["adapters are trained, which are small", "train the whole model"]),
        () if recipe.update == Update::Layer => Some(["update is layer, which is to save memory", "set --update step"]),
        () if recipe.precision != Precision::Mixed => {
            Some(["precision is f32, whose products read weights as they are", "set --precision mixed"])
        }
        () => None,
    }
}

/// What is said to who asked for such copies, where the plan of the step has none: one sentence.
pub fn unheard_copies(recipe: &Recipe, plan: &Plan) -> Option<String> {
    let is_copy = |buffer: &BufferSpec| matches!(&buffer.kind, BufferKind::State(name) if Optimizer::is_copy(name));
    if plan.buffers.iter().any(is_copy) {
        return None;
    }
    let [why, way] = without_copies(recipe).unwrap_or_else(|| match recipe.shards() {
        1 if recipe.optimizer == Rule::AdamW8bit => {
            ["moments of eight bits leave no binding for copies where a page has gaps", "set --optimizer adamw"]
        }
        1 => ["no matrix lies in this model's pages where a copy could be bound", "take another model"],
        _ => ["ranks share out what they update", "set --shard none"],
    });
    Some(format!("weight_copies comes to nothing: {why}, and no weight is kept in f16 as well; {way}, or leave it out"))
}

/// The schedule of a recipe.
pub fn schedule(recipe: &Recipe) -> Schedule {
    Schedule {
        shape: recipe.schedule,
        lr: recipe.lr,
        min_lr: recipe.lr * recipe.lr_floor,
        warmup: recipe.warmup_steps(),
        total: recipe.steps,
        decay: recipe.decay_steps(),
        restarts: recipe.restarts,
    }
}
