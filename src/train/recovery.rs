//! `[recovery]` of a recipe: what is done when training diverges; and when it has.

use super::StepResult;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// What is done when training diverges.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnDivergence {
    /// Go back to the last good checkpoint and on from there with a lower rate.
    #[default]
    Rollback,
    /// Stop with an error.
    Stop,
}

impl std::str::FromStr for OnDivergence {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "rollback" => Ok(OnDivergence::Rollback),
            "stop" => Ok(OnDivergence::Stop),
            _ => Err(format!("`{text}` is none of rollback, stop")),
        }
    }
}

/// What is done when training diverges.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RecoveryOptions {
    /// Back to a checkpoint, or stop.
    pub on_divergence: OnDivergence,
    /// A step is left out whose gradient's norm is more than so many times the running mean, once fifty have counted; 0 for
    /// none. One whose norm is no number always is.
    pub outlier: f64,
    /// So many steps in a row that were left out are a divergence; a step that was not left out and gave no number always is.
    pub skipped: u64,
    /// The learning rate is multiplied by this with each rollback.
    pub rate: f64,
    /// So many rollbacks at most in all of a run, however many processes it takes: each lowers the rate for good, and a run that
    /// needs more has a fault that a still lower rate does not mend.
    pub most: u32,
}

impl Default for RecoveryOptions {
    fn default() -> Self {
        RecoveryOptions { on_divergence: OnDivergence::Rollback, outlier: 0.0, skipped: 20, rate: 0.5, most: 4 }
    }
}

impl RecoveryOptions {
    /// Refuses values that no run can use.
    ///
    /// # Errors
    /// A sentence that names the key, its value and what it may be.
    pub fn check(&self) -> Result<()> {
        if !(self.rate > 0.0 && self.rate <= 1.0) {
            let message = format!("recovery.rate is {}; it must be above 0 and at most 1", self.rate);
            return Err(Error::Invalid(message));
        }
        if self.outlier != 0.0 && !(self.outlier > 1.0 && self.outlier.is_finite()) {
            let message = format!("recovery.outlier is {}; it must be above 1, or 0 for none", self.outlier);
            return Err(Error::Invalid(message));
        }
        if self.skipped == 0 {
            return Err(Error::Invalid("recovery.skipped is 0; it must be at least 1".into()));
        }
        Ok(())
    }
}

/// How a step went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It changed the parameters.
    Taken,
    /// The device left it out and changed nothing.
    LeftOut,
    /// The parameters are no numbers any more.
    Diverged,
}

impl Verdict {
    /// Of a step's result.
    pub fn of(result: &StepResult) -> Verdict {
        // An overflow of scaled gradients is answered by a smaller scale, as long as there is one.
        let has_scale = result.loss_scale.is_none_or(|scale| scale >= 1.0 || result.grad_norm.is_finite());
        match () {
            () if !has_scale => Verdict::Diverged,
            // Whatever one batch gave, the parameters did not take it; if they are at fault, so is the next step.
            () if result.left_out => Verdict::LeftOut,
            // Parameters that change by layers have taken it.
            () if !result.loss.is_finite() || !result.grad_norm.is_finite() => Verdict::Diverged,
            () => Verdict::Taken,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_that_was_left_out_is_no_divergence_while_there_is_a_scale() {
        let of = |loss, grad_norm, loss_scale, left_out| {
            Verdict::of(&StepResult {
                loss,
                grad_norm,
                update_norm: None,
                loss_scale,
                skipped: 0,
                left_out,
                rewards: None,
                experts: None,
                tokens: 0,
                data_wait: 0.0,
            })
        };
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        assert_eq!(of(2.0, 1.0, None, false), Verdict::Taken);
        assert_eq!(of(2.0, inf, None, true), Verdict::LeftOut);
        assert_eq!(of(2.0, 900.0, None, true), Verdict::LeftOut);
        assert_eq!(of(nan, 1.0, None, false), Verdict::Diverged);
        assert_eq!(of(2.0, inf, None, false), Verdict::Diverged);
        assert_eq!(of(nan, nan, None, true), Verdict::LeftOut);
        assert_eq!(of(2.0, inf, Some(4.0), true), Verdict::LeftOut);
        assert_eq!(of(2.0, 900.0, Some(0.5), true), Verdict::LeftOut);
        assert_eq!(of(2.0, nan, Some(0.5), true), Verdict::Diverged);
        assert_eq!(of(nan, nan, Some(4.0), true), Verdict::LeftOut);
    }
}
