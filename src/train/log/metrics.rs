//! One line of a run's metrics.

use super::JSONL;
use crate::error::{Error, Result};
use crate::train::{Event, ExpertLoad, Rewards};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

/// What was measured after a step, in the order in which a run tells it: not every line has every number.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs)] // `METRICS` says what they are.
pub struct Metrics {
    /// Steps done.
    pub step: u64,
    /// Seconds since 1970.
    pub wall: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub smoothed_loss: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation_loss: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub perplexity: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lr: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grad_norm: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub update_norm: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skipped: Option<f64>,
    /// Of preference pairs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rewards: Option<Rewards>,
    /// Of those that are held out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation_rewards: Option<Rewards>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub experts: Option<ExpertLoad>,
    /// Of each layer with experts, the share of the step's slots that fell on each.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expert_shares: Option<Vec<Vec<f32>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_second: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub roofline: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mfu: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_bytes: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_wait: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint_stall: Option<f64>,
    /// Figures of tasks, named `task.figure`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tasks: BTreeMap<String, f64>,
    /// What the model wrote.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sample: Option<String>,
}

/// A number of [`Metrics`]: its name there and in CSV, its tag in TensorBoard, what it is, and where it lies.
pub struct Metric {
    /// Name.
    pub name: &'static str,
    /// TensorBoard's tag.
    pub tag: &'static str,
    /// What it is, with its unit.
    pub what: &'static str,
    /// Its value in a line.
    pub get: fn(&Metrics) -> Option<f64>,
}

const fn reward(name: &'static str, tag: &'static str, what: &'static str, get: fn(&Metrics) -> Option<f64>) -> Metric {
    Metric { name, tag, what, get }
}

/// Every number that a run writes down.
pub const METRICS: &[Metric] = &[
    Metric { name: "loss", tag: "train/loss", what: "cross entropy of the step, nats a token", get: |m| m.loss },
    Metric {
        name: "smoothed_loss",
        tag: "train/smoothed_loss",
        what: "the same, smoothed over some fifty steps",
        get: |m| m.smoothed_loss,
    },
    Metric {
        name: "validation_loss",
        tag: "validation/loss",
        what: "cross entropy on held-out data, nats a token",
        get: |m| m.validation_loss,
    },
    Metric { name: "perplexity", tag: "validation/perplexity", what: "its exponential", get: |m| m.perplexity },
    Metric { name: "lr", tag: "train/learning_rate", what: "learning rate", get: |m| m.lr },
    Metric {
        name: "grad_norm",
        tag: "train/gradient_norm",
        what: "global norm of the gradient before clipping",
        get: |m| m.grad_norm,
    },
    Metric {
        name: "update_norm",
        tag: "train/update_norm",
        what: "norm of what the step added to the parameters",
        get: |m| m.update_norm,
    },
    Metric {
        name: "loss_scale",
        tag: "train/loss_scale",
        what: "scale of the loss, in mixed precision",
        get: |m| m.loss_scale,
    },
    Metric { name: "skipped", tag: "train/skipped_steps", what: "steps left out so far", get: |m| m.skipped },
    reward("reward_chosen", "train/reward_chosen", "of preference pairs, the better answers' reward", |m| {
        Some(m.rewards?.chosen)
    }),
    reward("reward_rejected", "train/reward_rejected", "the worse answers' reward", |m| Some(m.rewards?.rejected)),
    reward("reward_margin", "train/reward_margin", "by how much the better ones' is higher", |m| {
        Some(m.rewards?.margin)
    }),
    reward("reward_accuracy", "train/reward_accuracy", "share of pairs in which it is", |m| Some(m.rewards?.accuracy)),
    reward(
        "validation_reward_chosen",
        "validation/reward_chosen",
        "of held-out pairs, the better answers' reward",
        |m| Some(m.validation_rewards?.chosen),
    ),
    reward("validation_reward_rejected", "validation/reward_rejected", "the worse answers' reward", |m| {
        Some(m.validation_rewards?.rejected)
    }),
    reward("validation_reward_margin", "validation/reward_margin", "by how much the better ones' is higher", |m| {
        Some(m.validation_rewards?.margin)
    }),
    reward("validation_reward_accuracy", "validation/reward_accuracy", "share of held-out pairs in which it is", |m| {
        Some(m.validation_rewards?.accuracy)
    }),
    Metric {
        name: "expert_busiest",
        tag: "experts/busiest",
        what: "slots of the busiest expert of a layer over the mean, in the layer in which that is most",
        get: |m| Some(f64::from(m.experts?.busiest)),
    },
    Metric {
        name: "expert_idle",
        tag: "experts/idle",
        what: "experts that no slot fell on",
        get: |m| Some(f64::from(m.experts?.idle)),
    },
    Metric {
        name: "expert_dropped",
        tag: "experts/dropped",
        what: "slots that found no room",
        get: |m| Some(m.experts?.dropped as f64),
    },
    Metric {
        name: "tokens",
        tag: "progress/tokens",
        what: "tokens computed so far, those that fill up rows among them",
        get: |m| m.tokens,
    },
    Metric {
        name: "tokens_per_second",
        tag: "speed/tokens_per_second",
        what: "the same a second, over the last steps",
        get: |m| m.tokens_per_second,
    },
    Metric {
        name: "roofline",
        tag: "speed/roofline",
        what: "share of what the measured roofline allows",
        get: |m| m.roofline,
    },
    Metric {
        name: "mfu",
        tag: "speed/mfu",
        what: "model operations a second, as a share of the best matrix product measured",
        get: |m| m.mfu,
    },
    Metric {
        name: "device_bytes",
        tag: "memory/device_bytes",
        what: "bytes of tensors on the device",
        get: |m| m.device_bytes,
    },
    Metric {
        name: "data_wait",
        tag: "speed/data_wait",
        what: "seconds that the step's batch was waited for",
        get: |m| m.data_wait,
    },
    Metric {
        name: "idle",
        tag: "speed/idle",
        what: "share of the step for which the first rank waited for other stages of its pipeline",
        get: |m| m.idle,
    },
    Metric {
        name: "checkpoint_stall",
        tag: "speed/checkpoint_stall",
        what: "seconds that training stood still for a checkpoint",
        get: |m| m.checkpoint_stall,
    },
];

impl Metrics {
    /// What an event measures, if it does.
    pub fn of(event: &Event) -> Option<Metrics> {
        let some = |x: f32| Some(f64::from(x));
        Some(match event {
            Event::Step {
                step,
                loss,
                smoothed_loss,
                lr,
                grad_norm,
                update_norm,
                loss_scale,
                skipped,
                rewards,
                experts,
                tokens,
                tokens_per_second,
                roofline,
                mfu,
                data_wait,
                idle,
            } => Metrics {
                step: *step,
                loss: some(*loss),
                smoothed_loss: Some(*smoothed_loss),
                lr: Some(*lr),
                grad_norm: some(*grad_norm),
                update_norm: update_norm.and_then(some),
                loss_scale: loss_scale.and_then(some),
                skipped: skipped.map(|n| n as f64),
                rewards: rewards.filter(Rewards::is_finite),
                experts: *experts,
                tokens: Some(*tokens as f64),
                tokens_per_second: Some(*tokens_per_second),
                roofline: *roofline,
                mfu: *mfu,
                data_wait: Some(*data_wait),
                idle: *idle,
                ..Metrics::default()
            },
            Event::Validation { step, loss, rewards } => Metrics {
                step: *step,
                validation_loss: Some(*loss),
                // The loss of pairs is none of tokens.
                perplexity: rewards.is_none().then(|| loss.exp()),
                validation_rewards: rewards.filter(Rewards::is_finite),
                ..Metrics::default()
            },
            Event::Experts { step, shares } => {
                Metrics { step: *step, expert_shares: Some(shares.clone()), ..Metrics::default() }
            }
            Event::Task { step, task, metrics, .. } => {
                // What is no number JSON cannot say.
                let figures = metrics.iter().filter(|m| m.value.is_finite());
                let tasks = figures.map(|m| (format!("{task}.{}", m.name), m.value)).collect();
                Metrics { step: *step, tasks, ..Metrics::default() }
            }
            Event::Sample { step, text } => Metrics { step: *step, sample: Some(text.clone()), ..Metrics::default() },
            Event::Checkpoint { step, stall, .. } => {
                Metrics { step: *step, checkpoint_stall: Some(*stall), ..Metrics::default() }
            }
            _ => return None,
        })
    }

    /// Its line in `metrics.jsonl`.
    pub(super) fn line(&self) -> String {
        serde_json::to_string(self).expect("plain data") + "\n"
    }
}

/// The lines of a run's `metrics.jsonl`; none if there is no such file. A line that is not whole, as a process that was
/// killed leaves it, is passed over.
///
/// # Errors
/// If it cannot be read.
pub fn read_metrics(folder: &Path) -> Result<Vec<Metrics>> {
    Ok(read_whole_metrics(folder)?.0)
}

/// Whether a folder's file of metrics, of either name, is a run's: other programs call theirs so, too. One with nothing in it is.
pub fn are_metrics(folder: &Path, name: &str) -> bool {
    let path = folder.join(name);
    if std::fs::metadata(&path).is_ok_and(|about| about.len() == 0) {
        return true;
    }
    match name {
        JSONL => read_whole_metrics(folder).is_ok_and(|(lines, _)| lines.iter().any(|line| line.wall > 0.0)),
        _ => {
            let mut head = String::new();
            let read = std::fs::File::open(&path).map(|file| file.take(64).read_to_string(&mut head));
            read.is_ok() && head.starts_with(&format!("step,{},", METRICS[0].name))
        }
    }
}

/// The same, and the numbers of the lines that are none, from 1; but for a last one that has no end, in the midst of which the
/// run was ended.
///
/// # Errors
/// As [`read_metrics`].
pub fn read_whole_metrics(folder: &Path) -> Result<(Vec<Metrics>, Vec<usize>)> {
    let path = folder.join(JSONL);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(e) => return Err(Error::io("read", &path, e)),
    };
    let (mut lines, mut damaged) = (Vec::new(), Vec::new());
    for (at, line) in bytes.split_inclusive(|&byte| byte == b'\n').enumerate() {
        match serde_json::from_slice(line) {
            Ok(metrics) => lines.push(metrics),
            Err(_) if line.starts_with(b"{") && !line.ends_with(b"\n") => {}
            Err(_) => damaged.push(at + 1),
        }
    }
    Ok((lines, damaged))
}
