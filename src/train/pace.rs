//! How fast steps go, and what of the device that is.

use super::{Event, StepResult, Trainer};
use crate::compile::Plan;
use crate::run::{Class, Roofline};
use std::collections::VecDeque;
use std::time::Instant;

/// Steps over which speed is averaged.
const WINDOW: usize = 20;

/// What a step takes at least, by the measured roofline, and the best rate of products of its precision.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Seconds of a step.
    pub step_seconds: f64,
    /// Operations a second.
    pub flops_per_second: f64,
}

impl Pace {
    /// Of a plan.
    pub fn of(roofline: &Roofline, plan: &Plan) -> Pace {
        let class = plan.steps.iter().map(|s| Class::of(s.shader, &s.constants)).max().unwrap_or(Class::F32);
        Pace { step_seconds: roofline.seconds(plan), flops_per_second: roofline.rate(class) }
    }
}

/// Speed over the last steps.
pub(super) struct Speed {
    began: Instant,
    done: u64,
    recent: VecDeque<Instant>,
    limit: Option<Pace>,
    /// Operations of the model for a token.
    flops: f64,
}

impl Speed {
    pub(super) fn new(limit: Option<Pace>, flops: f64) -> Speed {
        Speed { began: Instant::now(), done: 0, recent: VecDeque::new(), limit, flops }
    }

    /// Forgets the last steps, after a pause.
    pub(super) fn pause(&mut self) {
        self.recent.clear();
    }

    /// Seconds since the first step of this process.
    pub(super) fn seconds(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }

    /// What is told of a step that is done.
    pub(super) fn step(&mut self, result: StepResult, smoothed_loss: f64, trainer: &Trainer) -> Event {
        self.done += 1;
        self.recent.push_back(Instant::now());
        if self.recent.len() > WINDOW {
            self.recent.pop_front();
        }
        let span = self.recent.back().zip(self.recent.front()).map(|(b, a)| b.duration_since(*a).as_secs_f64());
        let per_step = match self.recent.len() {
            0 | 1 => self.seconds() / self.done as f64,
            n => span.unwrap_or(0.0) / (n - 1) as f64,
        };
        let step = trainer.progress.step;
        let tokens_per_second = trainer.tokens_per_step() as f64 / per_step;
        Event::Step {
            step,
            loss: result.loss,
            smoothed_loss,
            lr: trainer.rate(step - 1),
            grad_norm: result.grad_norm,
            loss_scale: result.loss_scale.map(|(scale, _)| scale),
            skipped: result.loss_scale.map(|(_, skipped)| skipped),
            tokens: trainer.tokens_per_step() * step,
            tokens_per_second,
            roofline: self.limit.map(|limit| limit.step_seconds / per_step),
            mfu: self.limit.map(|limit| tokens_per_second * self.flops / limit.flops_per_second),
            data_wait: trainer.data_wait(),
        }
    }
}
