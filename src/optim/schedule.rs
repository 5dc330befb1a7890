//! The learning rate over time: a linear warm-up, then one of several shapes, which may begin again.

use std::f64::consts::PI;

/// How the rate goes on after the warm-up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shape {
    /// It stays.
    Constant,
    /// It falls in a straight line.
    Linear,
    /// It falls by half a cosine (Loshchilov and Hutter, 2017).
    #[default]
    Cosine,
    /// It stays, and falls in a straight line in the end: warm-up, stable, decay (Hu et al., "MiniCPM", 2024, §4).
    Wsd,
}

impl std::str::FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "constant" => Ok(Shape::Constant),
            "linear" => Ok(Shape::Linear),
            "cosine" => Ok(Shape::Cosine),
            "wsd" => Ok(Shape::Wsd),
            _ => Err(format!("`{text}` is none of constant, linear, cosine, wsd")),
        }
    }
}

/// Learning rate by step.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Schedule {
    /// How it goes on after the warm-up.
    pub shape: Shape,
    /// The highest rate, reached in the last step of the warm-up.
    pub lr: f64,
    /// The rate that it falls to.
    pub min_lr: f64,
    /// Steps of the warm-up.
    pub warmup: u64,
    /// Steps in all. From here on the rate is `min_lr`, but for a constant one.
    pub total: u64,
    /// The last steps, in which [`Shape::Wsd`] falls.
    pub decay: u64,
    /// How often a falling rate begins again at the highest, after equal parts of the steps behind the warm-up
    /// (Loshchilov and Hutter's warm restarts).
    pub restarts: u64,
}

impl Schedule {
    /// Half a cosine after a warm-up.
    pub fn cosine(lr: f64, min_lr: f64, warmup: u64, total: u64) -> Schedule {
        Schedule { lr, min_lr, warmup, total, ..Schedule::default() }
    }

    /// What of it the steps are too few for, as a sentence.
    pub fn doubt(&self) -> Option<String> {
        let Schedule { shape, warmup, total, decay, restarts, .. } = *self;
        let after = total.saturating_sub(warmup);
        match () {
            () if warmup > total => Some(format!(
                "the rate rises for {warmup} steps, of which there are {total}: it never reaches lr; set `warmup` in a recipe"
            )),
            () if shape == Shape::Wsd && decay > after => Some(format!(
                "the rate falls for {decay} steps, and {after} are left after the warm-up: it begins below lr"
            )),
            () if restarts > 0 && restarts >= after => {
                Some(format!("the rate begins again {restarts} times, and {after} steps are left after the warm-up"))
            }
            () => None,
        }
    }

    /// The rate of `step`, the first being 0: lr·(step+1)/warmup while step < warmup, then min + (lr - min)·f(x), where x
    /// goes from 0 to 1 between the warm-up (or the last restart, or the steps of the decay) and the next (or the end),
    /// and f is 1, 1-x or (1 + cos πx)/2.
    pub fn rate(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.lr * (step + 1) as f64 / self.warmup as f64;
        }
        if self.shape == Shape::Constant {
            return self.lr;
        }
        if step >= self.total {
            return self.min_lr;
        }
        let (done, span) = (step - self.warmup, self.total - self.warmup);
        let cycles = u128::from(self.restarts) + 1;
        // In whole numbers, so that a restart is at the step it should be.
        let cycle = || ((u128::from(done) * cycles) % u128::from(span)) as f64 / span as f64;
        let share = match self.shape {
            Shape::Constant => 1.0,
            Shape::Linear => 1.0 - cycle(),
            Shape::Cosine => 0.5 * (1.0 + (PI * cycle()).cos()),
            Shape::Wsd => ((self.total - step) as f64 / self.decay.min(span).max(1) as f64).min(1.0),
        };
        self.min_lr + (self.lr - self.min_lr) * share
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// tests/goldens/schedules.py has the rates of PyTorch's and transformers' schedulers.
    #[test]
    fn rates_are_those_of_pytorch_and_transformers() {
        let text = include_str!("../../tests/goldens/schedules.json");
        let rows: Vec<serde_json::Value> = serde_json::from_str(text).unwrap();
        assert!(rows.len() > 10);
        for row in rows {
            let count = |key: &str| row[key].as_u64().unwrap();
            let schedule = Schedule {
                shape: row["shape"].as_str().unwrap().parse().unwrap(),
                lr: row["lr"].as_f64().unwrap(),
                min_lr: row["min_lr"].as_f64().unwrap(),
                warmup: count("warmup"),
                total: count("total"),
                decay: count("decay"),
                restarts: count("restarts"),
            };
            let rates = row["rates"].as_array().unwrap();
            assert!(rates.len() as u64 == schedule.total, "{schedule:?}");
            for (step, expected) in rates.iter().map(|r| r.as_f64().unwrap()).enumerate() {
                let rate = schedule.rate(step as u64);
                // Theirs are made by steps, each of which rounds a few times.
                let bar = 8.0 * f64::EPSILON * schedule.lr * (step + 1) as f64;
                assert!((rate - expected).abs() <= bar, "{schedule:?}, step {step}: {rate}, not {expected}");
            }
        }
    }

    #[test]
    fn degenerate_spans_stay_finite() {
        for shape in [Shape::Constant, Shape::Linear, Shape::Cosine, Shape::Wsd] {
            for (warmup, total, decay, restarts) in
                [(0, 0, 0, 0), (5, 5, 9, 2), (10, 5, 0, 0), (0, 1, 0, 7), (0, 9, 20, 30)]
            {
                let s = Schedule { shape, lr: 1.0, min_lr: 0.1, warmup, total, decay, restarts };
                assert!((0..20).all(|step| (0.1..=1.0).contains(&s.rate(step))), "{s:?}");
            }
        }
        let s = Schedule { decay: 3, ..Schedule::cosine(1.0, 0.0, 2, 10) };
        let ends: Vec<f64> = (7..12).map(|step| Schedule { shape: Shape::Wsd, ..s }.rate(step)).collect();
        assert_eq!(ends, [1.0, 2.0 / 3.0, 1.0 / 3.0, 0.0, 0.0]);
    }
}
