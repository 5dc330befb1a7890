//! What a training run tells while it goes.

use super::{ExpertLoad, Rewards};
use crate::compile::Plan;
use crate::eval::Metric;
use serde::Serialize;
use std::path::PathBuf;

/// Sums over all that a step runs: each of its batches, and the update that follows several.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct StepTotals {
    /// Dispatches.
    pub dispatches: u64,
    /// Floating-point operations.
    pub flops: u64,
    /// Bytes read and written.
    pub traffic: u64,
    /// Bytes on the device in all, validation's among them: what the run allocates.
    pub device_bytes: u64,
}

impl StepTotals {
    /// Of plans, each run so many times a step, and the bytes that they take together.
    pub fn of<'a>(plans: impl IntoIterator<Item = (&'a Plan, u32)>, device_bytes: u64) -> StepTotals {
        let mut all = StepTotals { device_bytes, ..StepTotals::default() };
        for (plan, times) in plans {
            let (one, times) = (plan.totals(), u64::from(times));
            all.dispatches += one.dispatches as u64 * times;
            all.flops += one.flops * times;
            all.traffic += one.traffic * times;
        }
        all
    }
}

/// Something that happened. Serialised, each is one line of JSON with its kind under `event`.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// Something that the person should know.
    Note {
        /// One sentence.
        text: String,
    },
    /// Text is being tokenised.
    Tokenising {
        /// Bytes done.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// Weights of the model that training begins with are on their way to the device.
    Loading {
        /// Bytes done.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// The reference of preference pairs is being computed.
    Reference {
        /// Pairs done.
        done: u64,
        /// Pairs in all.
        total: u64,
    },
    /// Everything is planned and allocated.
    Ready {
        /// The adapter's name.
        adapter: String,
        /// Parameters of the model.
        parameters: u64,
        /// That are trained.
        trained: u64,
        /// Of these, those that this rank holds.
        held: u64,
        /// Tokens to train on.
        train_tokens: u64,
        /// Tokens held out.
        val_tokens: u64,
        /// What a step comes to.
        totals: StepTotals,
        /// Seconds that a step takes at least, by the measured roofline.
        step_limit: Option<f64>,
        /// All steps.
        steps: u64,
        /// Seconds in which the weights were drawn, or read, and written to the device.
        weights_seconds: f64,
    },
    /// A step is done.
    Step {
        /// Its number, from 1.
        step: u64,
        /// Mean cross entropy, in nats a token; of preference pairs, their mean loss.
        loss: f32,
        /// The same, smoothed over some fifty steps.
        smoothed_loss: f64,
        /// Learning rate.
        lr: f64,
        /// Global norm of the gradient, before clipping.
        grad_norm: f32,
        /// Norm of what the step added to the parameters; none where ranks hold parts of them.
        #[serde(skip_serializing_if = "Option::is_none")]
        update_norm: Option<f32>,
        /// Scale of the loss from here on, in mixed precision.
        #[serde(skip_serializing_if = "Option::is_none")]
        loss_scale: Option<f32>,
        /// Steps left out so far because a gradient overflowed or was an outlier.
        #[serde(skip_serializing_if = "Option::is_none")]
        skipped: Option<u64>,
        /// Of preference pairs.
        #[serde(skip_serializing_if = "Option::is_none")]
        rewards: Option<Rewards>,
        /// Where the model has experts.
        #[serde(skip_serializing_if = "Option::is_none")]
        experts: Option<ExpertLoad>,
        /// Tokens computed so far, those that fill up rows among them.
        tokens: u64,
        /// The same a second, over the last steps.
        tokens_per_second: f64,
        /// Share of the roofline's limit, over the last steps.
        roofline: Option<f64>,
        /// Operations of the model a second, as a share of the best matrix product measured.
        mfu: Option<f64>,
        /// Seconds that the batch was waited for.
        data_wait: f64,
        /// On a pipeline: the share of the step for which this rank waited for other stages.
        #[serde(skip_serializing_if = "Option::is_none")]
        idle: Option<f64>,
    },
    /// Loss on held-out data.
    Validation {
        /// After this many steps.
        step: u64,
        /// Mean cross entropy, in nats a token; of preference pairs, their mean loss.
        loss: f64,
        /// Of preference pairs.
        #[serde(skip_serializing_if = "Option::is_none")]
        rewards: Option<Rewards>,
    },
    /// How a step's slots fell on experts.
    Experts {
        /// The step.
        step: u64,
        /// Of each layer with experts, the share of each.
        shares: Vec<Vec<f32>>,
    },
    /// Figures of a task.
    Task {
        /// After this many steps.
        step: u64,
        /// The file's name, without its ending.
        task: String,
        /// Items scored.
        items: usize,
        /// The figures, as `danlu eval` has them.
        metrics: Vec<Metric>,
    },
    /// Text by the model.
    Sample {
        /// After this many steps.
        step: u64,
        /// Prompt and continuation.
        text: String,
    },
    /// A checkpoint lies on disk.
    Checkpoint {
        /// It is of the state after this many steps.
        step: u64,
        /// Its folder.
        folder: PathBuf,
        /// Bytes of its states.
        bytes: u64,
        /// Seconds for which training stood still.
        stall: f64,
        /// Seconds until it was on disk.
        seconds: f64,
    },
    /// The run goes on from a checkpoint.
    Resumed {
        /// It is of the state after this many steps.
        step: u64,
        /// The run's folder.
        folder: PathBuf,
    },
    /// The model lies on disk.
    Saved {
        /// After this many steps.
        step: u64,
        /// The folder.
        folder: PathBuf,
        /// Seconds since the first step.
        seconds: f64,
        /// True if the run was asked to stop.
        interrupted: bool,
        /// True if a checkpoint of it lies there, too, from which it can go on.
        resumable: bool,
        /// Where adapters lie there: the model that they are of.
        #[serde(skip_serializing_if = "Option::is_none")]
        base: Option<String>,
    },
}

/// Who is told.
pub trait Observer {
    /// Takes an event; must return soon, for the device waits.
    fn event(&mut self, event: &Event);
}

/// A closure will do.
impl<F: FnMut(&Event)> Observer for F {
    fn event(&mut self, event: &Event) {
        self(event);
    }
}
