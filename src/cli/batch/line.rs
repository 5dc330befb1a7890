//! Lines of a batch file: what each asks for, or what is wrong with it.

use crate::cli::generate::GenerateArgs;
use crate::data::Tokenizer;
use crate::infer::{Request, Sampling};
use anyhow::{Result, anyhow, bail};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// What the settings are: their names, and what each should be.
const FIELDS: [(&str, &str); 13] = [
    ("prompt", "a text"),
    ("id", "anything"),
    ("tokens", WHOLE),
    ("temperature", NUMBER),
    ("top_k", WHOLE),
    ("top_p", NUMBER),
    ("min_p", NUMBER),
    ("repetition_penalty", NUMBER),
    ("presence_penalty", NUMBER),
    ("frequency_penalty", NUMBER),
    ("logit_bias", "an object of token numbers and what is added, such as {\"42\": -1.5}"),
    ("seed", WHOLE),
    ("stop", "a text or a list of texts, none of them empty"),
];
const WHOLE: &str = "a whole number from 0 up";
const NUMBER: &str = "a number";

/// A line with something on it.
pub(super) struct Line {
    /// From 1.
    pub number: usize,
    /// What the line calls itself.
    pub id: Option<Value>,
    pub entry: Result<Entry>,
}

/// A line that was understood.
pub(super) struct Entry {
    pub prompt: String,
    pub stops: Vec<String>,
    pub request: Request,
}

/// What lines leave out, and what they must fit.
pub(super) struct Defaults<'a> {
    pub args: &'a GenerateArgs,
    pub sampling: &'a Sampling,
    pub tokenizer: &'a Tokenizer,
    pub vocabulary: usize,
}

impl Defaults<'_> {
    /// Reads a line, or says what is wrong with it.
    pub(super) fn read(&self, number: usize, text: &str) -> Line {
        match object(text) {
            Ok(mut fields) => {
                let id = fields.remove("id").filter(|id| !id.is_null());
                Line { number, id, entry: self.entry(fields) }
            }
            Err(error) => Line { number, id: None, entry: Err(error) },
        }
    }

    fn entry(&self, mut fields: Map<String, Value>) -> Result<Entry> {
        let (f, flags) = (&mut fields, self.sampling);
        let Some(prompt) = take::<String>(f, "prompt")? else { bail!("there is no \"prompt\", the text to continue") };
        let sampling = Sampling {
            temperature: take(f, "temperature")?.unwrap_or(flags.temperature),
            top_k: take(f, "top_k")?.unwrap_or(flags.top_k),
            top_p: take(f, "top_p")?.unwrap_or(flags.top_p),
            min_p: take(f, "min_p")?.unwrap_or(flags.min_p),
            repetition_penalty: take(f, "repetition_penalty")?.unwrap_or(flags.repetition_penalty),
            presence_penalty: take(f, "presence_penalty")?.unwrap_or(flags.presence_penalty),
            frequency_penalty: take(f, "frequency_penalty")?.unwrap_or(flags.frequency_penalty),
            logit_bias: take(f, "logit_bias")?.unwrap_or_else(|| flags.logit_bias.clone()),
            seed: take(f, "seed")?.unwrap_or(flags.seed),
        };
        let count = take(f, "tokens")?.unwrap_or(self.args.tokens);
        if let Some(one) = f.get_mut("stop").filter(|stop| stop.is_string()) {
            *one = Value::Array(vec![one.take()]);
        }
        let stops = take::<Vec<String>>(f, "stop")?.unwrap_or_else(|| self.args.stop.clone());
        if stops.iter().any(String::is_empty) {
            return Err(wrong("stop", "empty"));
        }
        if let Some(name) = fields.keys().next() {
            let names = FIELDS.map(|(name, _)| format!("\"{name}\"")).join(", ");
            bail!("\"{name}\" is no setting; there are {names}");
        }
        sampling.check_for(self.vocabulary)?;
        let request = Request { prompt: self.tokenizer.encode_prompt(&prompt)?, count, sampling };
        Ok(Entry { prompt, stops, request })
    }
}

fn object(text: &str) -> Result<Map<String, Value>> {
    let value: Value = serde_json::from_str(text).map_err(|e| {
        // Of the place only the column: the line is ours to count.
        let said = e.to_string();
        anyhow!("is no JSON: {}, at column {}", said.split(" at line ").next().unwrap_or(&said), e.column())
    })?;
    match value {
        Value::Object(fields) => Ok(fields),
        _ => bail!("is no object such as {{\"prompt\": \"One day\"}}"),
    }
}

/// Takes a field out, if it is there.
fn take<T: DeserializeOwned>(fields: &mut Map<String, Value>, name: &'static str) -> Result<Option<T>> {
    let Some(value) = fields.remove(name).filter(|value| !value.is_null()) else { return Ok(None) };
    let said = value.to_string();
    serde_json::from_value(value).map(Some).map_err(|_| wrong(name, &said))
}

fn wrong(name: &str, said: &str) -> anyhow::Error {
    let what = FIELDS.iter().find(|(field, _)| *field == name).map_or("", |(_, what)| what);
    anyhow!("\"{name}\" is {said}; it should be {what}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_field_is_named_with_what_it_should_be() {
        let said = |text: &str| {
            let mut fields = object(text).map_err(|e| e.to_string())?;
            take::<usize>(&mut fields, "tokens").map_err(|e| e.to_string())
        };
        assert_eq!(said("{\"tokens\": 3}"), Ok(Some(3)));
        assert_eq!(said("{\"tokens\": null}"), Ok(None));
        for (text, message) in [
            ("{\"tokens\": -1}", "\"tokens\" is -1; it should be a whole number from 0 up"),
            ("{\"tokens\": \"x\"}", "\"tokens\" is \"x\"; it should be a whole number from 0 up"),
            ("[3]", "is no object such as {\"prompt\": \"One day\"}"),
            ("{\"tokens\"", "is no JSON: EOF while parsing an object, at column 9"),
        ] {
            assert_eq!(said(text).unwrap_err(), message);
        }
        let mut fields = object("{\"logit_bias\": {\"42\": -1.5}}").unwrap();
        let bias: std::collections::BTreeMap<u32, f32> = take(&mut fields, "logit_bias").unwrap().unwrap();
        assert_eq!(bias, [(42, -1.5)].into());
    }
}
