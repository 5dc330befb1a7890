//! How fast steps go, and what of the device that is.

use super::{Event, Recipe, StepResult, Trainer};
use crate::compile::Plan;
use crate::model::ModelConfig;
use crate::run::{Class, Roofline};
use std::collections::VecDeque;
use std::time::Instant;

/// Steps over which speed is averaged.
const WINDOW: usize = 20;

/// Operations of the model by which a run trains on a token: of the forward pass, of the gradients of what goes through, and of
/// those of the weights, which a run of adapters computes of next to nothing.
pub fn flops_per_token(config: &ModelConfig, recipe: &Recipe) -> f64 {
    let passes = if recipe.lora.is_some() { 2.0 } else { 3.0 };
    passes * config.forward_flops_per_token(recipe.seq) as f64
}

/// What a step takes at least, by the measured roofline, and the best rate of products of its precision.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Seconds of a step.
    pub step_seconds: f64,
    /// Operations a second.
    pub flops_per_second: f64,
}

impl Pace {
    /// Of plans, each run so many times a step.
    pub fn of<'a>(roofline: &Roofline, plans: impl IntoIterator<Item = (&'a Plan, u32)>) -> Pace {
        let (mut step_seconds, mut class) = (0.0, None);
        for (plan, times) in plans {
            step_seconds += roofline.seconds(plan) * f64::from(times);
            class = class.max(plan.steps.iter().map(|s| Class::of(s.shader, &s.constants)).max());
        }
        Pace { step_seconds, flops_per_second: roofline.rate(class.unwrap_or(Class::F32)) }
    }
}

/// Speed over the last steps.
pub(super) struct Speed {
    began: Instant,
    /// When the last steps were done, and their tokens; the first of them may be the end of a pause.
    recent: VecDeque<(Instant, u64)>,
    limit: Option<Pace>,
    /// Operations of the model for a token.
    flops: f64,
}

impl Speed {
    pub(super) fn new(limit: Option<Pace>, flops: f64) -> Speed {
        let began = Instant::now();
        Speed { began, recent: VecDeque::from([(began, 0)]), limit, flops }
    }

    /// Forgets the last steps, after a pause that ends now.
    pub(super) fn pause(&mut self, now: Instant) {
        self.recent.clear();
        self.recent.push_back((now, 0));
    }

    /// Seconds and tokens of a step, over the last of them; one is done now.
    fn per_step(&mut self, now: Instant, tokens: u64) -> (f64, f64) {
        self.recent.push_back((now, tokens));
        if self.recent.len() > WINDOW {
            self.recent.pop_front();
        }
        let steps = (self.recent.len() - 1) as f64;
        let tokens: u64 = self.recent.iter().skip(1).map(|(_, tokens)| tokens).sum();
        (now.duration_since(self.recent[0].0).as_secs_f64() / steps, tokens as f64 / steps)
    }

    /// Seconds since the first step of this process.
    pub(super) fn seconds(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }

    /// What is told of a step that is done.
    pub(super) fn step(&mut self, result: StepResult, smoothed_loss: f64, trainer: &Trainer) -> Event {
        let (per_step, tokens) = self.per_step(Instant::now(), result.tokens);
        // Of shorter rows a step's limit is lower, by about as much.
        let share = tokens / trainer.tokens_per_step() as f64;
        let step = trainer.progress.step;
        let tokens_per_second = tokens / per_step;
        Event::Step {
            step,
            loss: result.loss,
            smoothed_loss,
            lr: trainer.rate(step - 1),
            grad_norm: result.grad_norm,
            update_norm: result.update_norm,
            loss_scale: result.loss_scale,
            skipped: Some(result.skipped),
            rewards: result.rewards,
            experts: result.experts,
            tokens: trainer.progress.tokens,
            tokens_per_second,
            roofline: self.limit.map(|limit| limit.step_seconds * share / per_step),
            mfu: self.limit.map(|limit| tokens_per_second * self.flops / limit.flops_per_second),
            data_wait: result.data_wait,
            idle: trainer.idle(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// By hand, of one layer: 2 operations for each weight that a token meets, and attention's, in 2 passes or 3.
    #[test]
    fn frozen_weights_have_no_gradient() {
        let config = crate::model::find_config("story-1m").unwrap();
        let full = Recipe { seq: 64, ..Recipe::default() };
        let adapters = Recipe { lora: Some(Default::default()), ..full.clone() };
        let forward = config.forward_flops_per_token(64) as f64;
        assert!(forward > 2.0 * config.parameters() as f64 * 0.9, "each weight is multiplied by");
        assert_eq!(
            [flops_per_token(&config, &full), flops_per_token(&config, &adapters)],
            [3.0 * forward, 2.0 * forward]
        );
        assert_eq!(flops_per_token(&config, &full), config.train_flops_per_token(64) as f64);
    }

    #[test]
    fn pauses_do_not_count() {
        let mut speed = Speed::new(None, 1.0);
        let at = |seconds: u64| speed.began + Duration::from_secs(seconds);
        let (first, second, ended, third, fourth) = (at(2), at(4), at(104), at(105), at(106));
        assert_eq!([speed.per_step(first, 8), speed.per_step(second, 4)], [(2.0, 8.0), (2.0, 6.0)]);
        speed.pause(ended);
        assert_eq!([speed.per_step(third, 8), speed.per_step(fourth, 8)], [(1.0, 8.0), (1.0, 8.0)]);
        let last: Vec<f64> = (1..=30).map(|i| speed.per_step(fourth + Duration::from_secs(3 * i), 8).0).collect();
        assert_eq!((last[0], last[29]), (5.0 / 3.0, 3.0));
    }
}
