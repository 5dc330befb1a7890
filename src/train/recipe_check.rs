//! Which recipes no run can use.

use super::Recipe;
use crate::data::{LossOn, Overlong};
use crate::error::{Error, Result};
use crate::model::DpoConfig;
use crate::nn::LoraConfig;
use crate::optim::Shape;

/// Most sequences of a step, and most tokens of a sequence.
const MOST: usize = 1 << 24;

impl Recipe {
    /// Refuses values that no run can use.
    ///
    /// # Errors
    /// A sentence that names the key, its value and what it may be.
    pub fn check(&self) -> Result<()> {
        let counts = [
            ("steps", self.steps),
            ("batch", self.batch as u64),
            ("seq", self.seq as u64),
            ("accumulate", u64::from(self.accumulate)),
            ("loss_scale_interval", u64::from(self.loss_scale_interval)),
            ("eval_limit", self.eval_limit as u64),
            ("lengths", self.lengths as u64),
            ("interleave", self.interleave as u64),
            ("val_sequences", self.val_sequences),
        ];
        for (key, value) in counts {
            if value == 0 {
                return Err(Error::Invalid(format!("{key} is 0; it must be at least 1")));
            }
        }
        // What TOML cannot say could not be written down, and the run not be taken up.
        let large = [
            ("seed", self.seed),
            ("steps", self.steps),
            ("stories", self.stories),
            ("warmup", self.warmup.unwrap_or(0)),
            ("decay_steps", self.decay_steps.unwrap_or(0)),
            ("restarts", self.restarts),
            ("eval_every", self.eval_every.unwrap_or(0)),
            ("val_sequences", self.val_sequences),
            ("patience", self.patience),
            ("compare_every", self.compare_every),
            ("checkpoint.every", self.checkpoint.every.unwrap_or(0)),
        ];
        for (key, value) in large {
            if i64::try_from(value).is_err() {
                return Err(Error::Invalid(format!("{key} is {value}; it must be at most {}", i64::MAX)));
            }
        }
        if self.eval_every == Some(0) {
            return Err(Error::Invalid(
                "eval_every is 0; it must be at least 1, and without it is a tenth of all steps".into(),
            ));
        }
        let sizes = [
            ("batch", self.batch),
            ("seq", self.seq),
            ("accumulate", self.accumulate as usize),
            ("interleave", self.interleave),
        ];
        for (key, value) in sizes {
            if value > MOST {
                return Err(Error::Invalid(format!("{key} is {value}; it must be at most {MOST}")));
            }
        }
        self.data.check()?;
        if self.data.is_empty() && self.stories == 0 {
            return Err(Error::Invalid("stories is 0 and no data is given; there is nothing to train on".into()));
        }
        let positive = [("lr", self.lr), ("epsilon", self.epsilon)];
        for (key, value) in positive {
            if !(value > 0.0 && value.is_finite()) {
                return Err(Error::Invalid(format!("{key} is {value}; it must be a number above 0")));
            }
        }
        let shares = [
            ("lr_floor", self.lr_floor),
            ("beta1", self.beta1),
            ("beta2", self.beta2),
            ("momentum", self.momentum),
            ("ema", self.ema),
        ];
        for (key, value) in shares {
            if !(0.0..=1.0).contains(&value) || (key != "lr_floor" && value >= 1.0) {
                let below = if key == "lr_floor" { "" } else { "below " };
                return Err(Error::Invalid(format!("{key} is {value}; it must lie from 0 to {below}1")));
            }
        }
        let routers = [("router_aux_loss", self.router_aux_loss), ("router_z_loss", self.router_z_loss)];
        let mut others = vec![("weight_decay", self.weight_decay), ("clip", self.clip)];
        for group in &self.groups {
            others.extend(group.lr.map(|lr| ("lr of a group", lr)));
            others.extend(group.weight_decay.map(|decay| ("weight_decay of a group", decay)));
        }
        others.extend(routers.into_iter().filter_map(|(key, value)| Some((key, value?))));
        for (key, value) in others {
            if !(value >= 0.0 && value.is_finite()) {
                return Err(Error::Invalid(format!("{key} is {value}; it must be 0 or above")));
            }
        }
        if self.restarts > 0 && ![Shape::Linear, Shape::Cosine].contains(&self.schedule) {
            let message = format!(
                "restarts is {}, and the schedule begins again only where it is linear or cosine",
                self.restarts
            );
            return Err(Error::Invalid(message));
        }
        if !(self.val_fraction > 0.0 && self.val_fraction < 1.0) {
            return Err(Error::Invalid(format!("val_fraction is {}; it must lie between 0 and 1", self.val_fraction)));
        }
        if let (Some(model), Some(tokenizer)) = (&self.model, &self.tokenizer) {
            let tokenizer = tokenizer.display();
            let message =
                format!("tokenizer is {tokenizer}, and the model {model} has its own; leave one of the two out");
            return Err(Error::Invalid(message));
        }
        self.check_mesh()?;
        self.lora.as_ref().map_or(Ok(()), LoraConfig::check)?;
        self.dpo.as_ref().map_or(Ok(()), DpoConfig::check)?;
        if self.dpo.is_some() && self.pack {
            return Err(Error::Invalid(
                "pack is true, and preference pairs have a row for each answer; leave it out".into(),
            ));
        }
        if self.dpo.is_some() && !matches!(self.overlong, None | Some(Overlong::Truncate)) {
            return Err(Error::Invalid(
                "overlong may only be \"truncate\" with preference pairs, which stay pairs; leave it out".into(),
            ));
        }
        if self.dpo.is_some() && self.loss_on == LossOn::All {
            return Err(Error::Invalid(
                "loss_on is \"all\", and of preference pairs the answers are compared; leave it out".into(),
            ));
        }
        super::optimizer(self).check_update(self.accumulate, self.lora.is_some())?;
        self.recovery.check()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_values_are_refused_by_name() {
        let message = Recipe { batch: 0, ..Recipe::default() }.check().unwrap_err().to_string();
        assert_eq!(message, "batch is 0; it must be at least 1");
        let message = Recipe { eval_every: Some(0), ..Recipe::default() }.check().unwrap_err().to_string();
        assert_eq!(message, "eval_every is 0; it must be at least 1, and without it is a tenth of all steps");
        let seed = |seed| Recipe { seed, ..Recipe::default() };
        let message = seed(1 << 63).check().unwrap_err().to_string();
        assert_eq!(message, "seed is 9223372036854775808; it must be at most 9223372036854775807");
        // What is let through can be written down.
        let most = seed(i64::MAX as u64);
        most.check().unwrap();
        assert_eq!(toml::from_str::<Recipe>(&most.to_toml()).unwrap(), most);
        let message = Recipe { lr: f64::NAN, ..Recipe::default() }.check().unwrap_err().to_string();
        assert_eq!(message, "lr is NaN; it must be a number above 0");
    }
}
