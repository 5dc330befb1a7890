//! Settings of sampling that a model's makers suggest, as a generation_config.json writes them.

use super::Sampling;
use serde_json::{Map, Value};

/// Settings, and what of a generation_config.json went into them.
#[derive(Debug, Clone, PartialEq)]
pub struct Suggested {
    /// The settings.
    pub sampling: Sampling,
    /// What was taken, such as `top-k 20`.
    pub taken: Vec<String>,
    /// What cannot be, a sentence each.
    pub ignored: Vec<String>,
}

impl Sampling {
    /// These settings with those in their place that a generation_config.json names: `temperature`, `top_k`, `top_p`,
    /// `min_p`, `repetition_penalty`; a `do_sample` of false is a temperature of 0. Values that are none are left out.
    pub fn suggested(self, config: &Map<String, Value>) -> Suggested {
        let mut suggested = Suggested { sampling: self, taken: Vec::new(), ignored: Vec::new() };
        let get = |key: &str| config.get(key).filter(|value| !value.is_null());
        let greedy = match get("do_sample") {
            Some(Value::Bool(sample)) => !sample,
            Some(value) => {
                suggested.ignored.push(format!("do_sample is {value}, which is neither true nor false"));
                false
            }
            None => false,
        };
        let zero = Value::from(0);
        let temperature = if greedy { Some(&zero) } else { get("temperature") };
        suggested.take("temperature", temperature, |s, v| Some(Sampling { temperature: number(v)?, ..s }));
        suggested.take("top-k", get("top_k"), |s, v| Some(Sampling { top_k: v.as_u64()?.try_into().ok()?, ..s }));
        suggested.take("top-p", get("top_p"), |s, v| Some(Sampling { top_p: number(v)?, ..s }));
        suggested.take("min-p", get("min_p"), |s, v| Some(Sampling { min_p: number(v)?, ..s }));
        let penalty = get("repetition_penalty");
        suggested.take("repetition penalty", penalty, |s, v| Some(Sampling { repetition_penalty: number(v)?, ..s }));
        suggested
    }
}

fn number(value: &Value) -> Option<f32> {
    value.as_f64().map(|value| value as f32)
}

impl Suggested {
    /// Puts a value in its place, if it is one.
    fn take(&mut self, name: &str, value: Option<&Value>, put: impl Fn(Sampling, &Value) -> Option<Sampling>) {
        let Some(value) = value else { return };
        match put(self.sampling.clone(), value).map(|changed| changed.check().map(|()| changed)) {
            Some(Ok(changed)) => {
                self.sampling = changed;
                self.taken.push(format!("{name} {value}"));
            }
            Some(Err(error)) => self.ignored.push(error.to_string()),
            None => {
                let what = if name == "top-k" { "whole number from 0 up" } else { "number" };
                self.ignored.push(format!("{name} is {value}, which is no {what}"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn suggested(config: Value) -> Suggested {
        Sampling::default().suggested(config.as_object().unwrap())
    }

    #[test]
    fn what_is_suggested_is_taken_and_nothing_else() {
        let all = suggested(json!({"do_sample": true, "temperature": 0.6, "top_k": 20, "top_p": 1, "min_p": 0.1,
            "repetition_penalty": 1.05, "eos_token_id": 2}));
        let expected = Sampling {
            temperature: 0.6,
            top_k: 20,
            top_p: 1.0,
            min_p: 0.1,
            repetition_penalty: 1.05,
            ..Sampling::default()
        };
        assert_eq!(all.sampling, expected);
        assert_eq!(all.taken, ["temperature 0.6", "top-k 20", "top-p 1", "min-p 0.1", "repetition penalty 1.05"]);
        for silent in [json!({}), json!({"bos_token_id": 1, "do_sample": true, "temperature": null})] {
            let Suggested { sampling, taken, ignored } = suggested(silent);
            assert_eq!((sampling, taken.len(), ignored.len()), (Sampling::default(), 0, 0));
        }
    }

    #[test]
    fn who_does_not_draw_takes_the_likeliest() {
        let greedy = suggested(json!({"do_sample": false, "temperature": 0.6, "repetition_penalty": 1.1}));
        assert_eq!((greedy.sampling.temperature, greedy.sampling.repetition_penalty), (0.0, 1.1));
        assert_eq!(greedy.taken, ["temperature 0", "repetition penalty 1.1"]);
    }

    #[test]
    fn what_is_no_setting_is_said_and_the_others_hold() {
        let wrong = suggested(json!({"do_sample": 1, "temperature": "hot", "top_k": -1, "top_p": 0, "min_p": 0.25}));
        assert_eq!(wrong.sampling, Sampling { min_p: 0.25, ..Sampling::default() });
        assert_eq!(
            wrong.ignored,
            [
                "do_sample is 1, which is neither true nor false",
                "temperature is \"hot\", which is no number",
                "top-k is -1, which is no whole number from 0 up",
                "top-p 0 is not above 0 and at most 1",
            ]
        );
    }
}
