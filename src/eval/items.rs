//! Items to be scored, from JSONL in the forms of HellaSwag (Zellers et al., 2019), ARC (Clark et al., 2018) and LAMBADA
//! (Paperno et al., 2016), turned into contexts and continuations as lm-evaluation-harness's tasks `hellaswag`,
//! `arc_easy` and `lambada_openai` do.

use crate::error::{Error, Result};
use serde::Serialize;
use serde_json::{Map, Value};
use std::fmt;
use std::io::{BufRead, Read};
use std::path::Path;

/// Longest line that is believed, a thousand times any published one.
const LONGEST: u64 = 16 << 20;

/// What kind of item a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// `ctx_a`, `ctx_b`, `activity_label`, `endings`, `label`.
    HellaSwag,
    /// `question`, `choices` with `text` and `label`, `answerKey`.
    Arc,
    /// `text` whose last word is to be found, or `context` and `continuation`.
    Lambada,
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Form::HellaSwag => "HellaSwag",
            Form::Arc => "ARC",
            Form::Lambada => "LAMBADA",
        })
    }
}

/// One question: what may follow a context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// What stands before.
    pub context: String,
    /// What may stand after; one for a cloze.
    pub choices: Vec<String>,
    /// What is put between the two.
    pub delimiter: &'static str,
    /// The right one of the choices.
    pub gold: usize,
    /// Its line in the file, from 1.
    pub line: usize,
    /// True if the choice is the last word cut off a `text`: any JSONL of texts can be read so.
    pub cut: bool,
}

/// Reads a file of items, or the first `limit` of it; all have the form of the first.
///
/// # Errors
/// A sentence with file and line for what cannot be read, is of none of the forms, or lacks its answer.
pub fn read_items(file: &Path, limit: Option<usize>) -> Result<(Form, Vec<Item>)> {
    let open = std::fs::File::open(file).map_err(|e| Error::io("read", file, e))?;
    let mut reader = std::io::BufReader::new(open);
    let mut form = None;
    let mut items = Vec::new();
    for i in 0.. {
        if limit.is_some_and(|limit| items.len() >= limit) {
            break;
        }
        let wrong = |what: String| Error::file(file, format!("line {}: {what}", i + 1));
        let mut line = String::new();
        let read = reader.by_ref().take(LONGEST + 1).read_line(&mut line);
        if read.map_err(|e| wrong(format!("cannot be read ({e})")))? == 0 {
            break;
        }
        if line.len() as u64 > LONGEST {
            return Err(wrong(format!("is longer than {LONGEST} bytes, which no item is")));
        }
        if line.trim().is_empty() {
            continue;
        }
        let object: Map<String, Value> =
            serde_json::from_str(&line).map_err(|e| wrong(format!("is not a JSON object ({e})")))?;
        let its = *form.get_or_insert(form_of(&object).map_err(wrong)?);
        items.push(Item {
            line: i + 1,
            ..item(its, &object).map_err(|e| wrong(format!("{e}, as {its} items have it")))?
        });
    }
    match form {
        Some(form) => Ok((form, items)),
        None => Err(Error::file(file, "holds no items; one JSON object a line is expected")),
    }
}

fn form_of(object: &Map<String, Value>) -> Result<Form, String> {
    let has = |keys: &[&str]| keys.iter().all(|k| object.contains_key(*k));
    if has(&["endings", "ctx_a"]) {
        Ok(Form::HellaSwag)
    } else if has(&["question", "choices", "answerKey"]) {
        Ok(Form::Arc)
    } else if has(&["context", "continuation"]) || has(&["text"]) {
        Ok(Form::Lambada)
    } else {
        let keys: Vec<&str> = object.keys().map(String::as_str).take(12).collect();
        Err(format!(
            "has the keys {}, which is no form that is known: HellaSwag has ctx_a, ctx_b, activity_label, endings and label; \
             ARC question, choices and answerKey; LAMBADA text, or context and continuation",
            keys.join(", ")
        ))
    }
}

fn item(form: Form, object: &Map<String, Value>) -> Result<Item, String> {
    let text = |key: &str| object.get(key).and_then(Value::as_str).ok_or(format!("has no text under {key:?}"));
    let texts = |value: Option<&Value>, key: &str| -> Result<Vec<String>, String> {
        let list = value.and_then(Value::as_array).filter(|l| !l.is_empty());
        let list = list.ok_or(format!("has no list of texts under {key:?}"))?;
        list.iter().map(|v| v.as_str().map(String::from).ok_or(format!("has no list of texts under {key:?}"))).collect()
    };
    let item = |context: String, choices: Vec<String>, delimiter, gold: usize| {
        let fits = gold < choices.len() && choices.iter().all(|c| !c.is_empty());
        let item = Item { context, choices, delimiter, gold, line: 0, cut: false };
        fits.then_some(item).ok_or(format!("has an empty choice, or no choice number {gold}"))
    };
    match form {
        Form::HellaSwag => {
            let (a, b) = (text("ctx_a")?, capitalize(text("ctx_b")?));
            let query = preprocess(&format!("{}: {a} {b}", text("activity_label")?));
            let endings = texts(object.get("endings"), "endings")?.iter().map(|e| preprocess(e)).collect();
            let label = object.get("label");
            let number = label.and_then(|l| l.as_u64().or_else(|| l.as_str()?.parse().ok()));
            item(query, endings, " ", number.ok_or("has no number under \"label\"")? as usize)
        }
        Form::Arc => {
            let part = |key: &str| {
                texts(object.get("choices").and_then(|choices| choices.get(key)), &format!("choices.{key}"))
            };
            let (choices, labels, key) = (part("text")?, part("label")?, text("answerKey")?);
            if labels.len() != choices.len() {
                return Err(format!("has {} texts and {} labels under \"choices\"", choices.len(), labels.len()));
            }
            let gold = labels.iter().position(|l| l == key).ok_or(format!("has no choice labelled {key:?}"))?;
            item(format!("Question: {}\nAnswer:", text("question")?), choices, " ", gold)
        }
        Form::Lambada if object.contains_key("continuation") => {
            let (context, word) = (text("context")?, text("continuation")?);
            let apart = context.ends_with(char::is_whitespace) || word.starts_with(char::is_whitespace);
            item(context.into(), vec![word.into()], if apart { "" } else { " " }, 0)
        }
        Form::Lambada => {
            let (context, word) = text("text")?.rsplit_once(' ').ok_or("has fewer than two words under \"text\"")?;
            Ok(Item { cut: true, ..item(context.into(), vec![word.into()], " ", 0)? })
        }
    }
}

/// Python's `str.capitalize`: the first letter large, all others small.
fn capitalize(text: &str) -> String {
    let mut chars = text.chars();
    chars
        .next()
        .map_or(String::new(), |first| first.to_uppercase().chain(chars.as_str().to_lowercase().chars()).collect())
}

/// What the harness does to HellaSwag's texts, whose WikiHow part carries marks in brackets.
fn preprocess(text: &str) -> String {
    let text = text.trim().replace(" [title]", ". ");
    let mut out = String::new();
    let mut rest = text.as_str();
    while let Some(open) = rest.find('[') {
        let close = rest[open..].find(['\n', ']']).filter(|&i| rest[open + i..].starts_with(']'));
        let end = close.map_or(open + 1, |i| open + i + 1);
        out.push_str(&rest[..if close.is_some() { open } else { end }]);
        rest = &rest[end..];
    }
    out.push_str(rest);
    out.replace("  ", " ")
}

#[cfg(test)]
#[path = "items_tests.rs"]
mod tests;
