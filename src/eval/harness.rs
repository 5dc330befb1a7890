//! Items scored as lm-evaluation-harness does: the log-probability of each choice after its context, without generating
//! anything.

use super::items::{Form, Item};
use crate::base::Rng;
use crate::data::Tokenizer;
use crate::error::{Error, Result};
use crate::infer::{Passage, Scorer};
use serde::Serialize;
use std::path::Path;

/// A file of items, and how they are asked.
#[derive(Debug, Clone, Copy)]
pub struct Task<'a> {
    /// Where the items are from, for errors.
    pub file: &'a Path,
    /// Their form.
    pub form: Form,
    /// The items.
    pub items: &'a [Item],
    /// Scores only this many of them, the first ones; the others may still stand before those.
    pub limit: Option<usize>,
    /// How many other items, with their answers, stand before each.
    pub shots: usize,
    /// Which they are is drawn from this.
    pub seed: u64,
}

/// One figure.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Metric {
    /// The harness's name for it.
    pub name: &'static str,
    /// Its value.
    pub value: f64,
    /// Its standard error; none for a single item.
    pub stderr: Option<f64>,
}

/// What came out.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The items' form.
    pub form: Form,
    /// How many.
    pub items: usize,
    /// Items before each.
    pub shots: usize,
    /// Items whose beginning did not fit into the model's context.
    pub truncated: usize,
    /// The figures.
    pub metrics: Vec<Metric>,
}

/// Scores a task. `progress` hears how many choices of how many are done.
///
/// For choices: `acc`, the share of items whose right choice has the largest log-probability; `acc_norm`, the same for
/// log-probabilities divided by the choice's length in characters; `acc_bytes`, in UTF-8 bytes. For a cloze: `acc`, the
/// share whose every token is the likeliest, and `perplexity`, exp of the mean of -ln p of the whole word.
///
/// # Errors
/// If there are too few items for the shots, a choice cannot be told from its context, or the device failed.
pub async fn evaluate(
    scorer: &mut Scorer,
    tokenizer: &Tokenizer,
    task: &Task<'_>,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Report> {
    if task.shots >= task.items.len() {
        let (items, shots) = (task.items.len(), task.shots);
        return Err(Error::file(task.file, format!("has {items} items, too few to put {shots} others before each")));
    }
    let most = scorer.model().config().max_context();
    let (mut passages, mut truncated) = (Vec::new(), 0);
    let scored = &task.items[..task.limit.map_or(task.items.len(), |n| n.min(task.items.len()))];
    for (i, item) in scored.iter().enumerate() {
        let context = task.prompt(i);
        let mut cut = false;
        for choice in &item.choices {
            let wrong = |what| Error::file(task.file, format!("line {}: {what}", item.line));
            let encoded = encode_pair(tokenizer, &context, &format!("{}{choice}", item.delimiter));
            let (mut tokens, from) = encoded?.ok_or_else(|| {
                wrong(format!(
                    "the choice {choice:?} has no token of its own after its context, so it cannot be scored"
                ))
            })?;
            let extra = tokens.len().saturating_sub(most + 1);
            if extra >= from {
                return Err(wrong(format!("the choice {choice:?} alone fills the model's context of {most} tokens")));
            }
            cut |= extra > 0;
            passages.push(Passage { tokens: tokens.split_off(extra), from: from - extra });
        }
        truncated += usize::from(cut);
    }
    let scores = scorer.score(&passages, progress).await?;
    let mut scores = scores.iter().map(|tokens| Choice {
        log_prob: tokens.iter().map(|t| t.log_prob).sum(),
        greedy: tokens.iter().all(|t| t.greedy),
    });
    let answers: Vec<Vec<Choice>> =
        scored.iter().map(|item| scores.by_ref().take(item.choices.len()).collect()).collect();
    let metrics = if task.form == Form::Lambada { cloze(&answers) } else { multiple_choice(scored, &answers) };
    Ok(Report { form: task.form, items: scored.len(), shots: task.shots, truncated, metrics })
}

/// What the model says of one choice.
#[derive(Debug, Clone, Copy)]
struct Choice {
    log_prob: f64,
    greedy: bool,
}

impl Task<'_> {
    /// What stands before the choices of item `i`.
    fn prompt(&self, i: usize) -> String {
        let mut others: Vec<usize> = (0..self.items.len()).filter(|&other| other != i).collect();
        let mut rng = Rng::new(self.seed, i as u64);
        let mut prompt = String::new();
        for _ in 0..self.shots {
            let shot = &self.items[others.swap_remove(rng.below(others.len()))];
            prompt += &format!("{}{}{}\n\n", shot.context, shot.delimiter, shot.choices[shot.gold]);
        }
        prompt + &self.items[i].context
    }
}

/// The tokens of context and continuation, encoded as one text, and where the continuation begins: at the number of
/// tokens that the context has by itself. White space at the context's end goes to the continuation, where tokenizers
/// want it. None if nothing is left of the continuation.
fn encode_pair(tokenizer: &Tokenizer, context: &str, continuation: &str) -> Result<Option<(Vec<u32>, usize)>> {
    let (tokens, from) = if context.is_empty() {
        let mut tokens: Vec<u32> = tokenizer.bos().or(tokenizer.eos()).into_iter().collect();
        let own = tokenizer.encode(continuation)?;
        // It is not said twice.
        tokens.retain(|first| own.first() != Some(first));
        tokens.extend(own);
        (tokens, 1)
    } else {
        (
            tokenizer.encode_prompt(&format!("{context}{continuation}"))?,
            tokenizer.encode_prompt(context.trim_end())?.len(),
        )
    };
    Ok((0 < from && from < tokens.len()).then_some((tokens, from)))
}

fn multiple_choice(items: &[Item], answers: &[Vec<Choice>]) -> Vec<Metric> {
    let share = |name, length: &dyn Fn(&str) -> f64| {
        let right = items.iter().zip(answers).map(|(item, choices)| {
            let values = choices.iter().zip(&item.choices).map(|(c, text)| c.log_prob / length(text));
            // The first of equals, as numpy's argmax.
            let best = values.enumerate().fold((0, f64::NEG_INFINITY), |a, b| if b.1 > a.1 { b } else { a }).0;
            f64::from(u8::from(best == item.gold))
        });
        mean_of(name, &right.collect::<Vec<_>>())
    };
    vec![
        share("acc", &|_| 1.0),
        share("acc_norm", &|text| text.chars().count() as f64),
        share("acc_bytes", &|text| text.len() as f64),
    ]
}

fn cloze(answers: &[Vec<Choice>]) -> Vec<Metric> {
    let each = |value: &dyn Fn(&Choice) -> f64| answers.iter().flatten().map(value).collect::<Vec<_>>();
    let acc = mean_of("acc", &each(&|c| f64::from(u8::from(c.greedy))));
    let nats = mean_of("", &each(&|c| -c.log_prob));
    let value = nats.value.exp();
    // The harness draws samples for this error; the slope of exp gives the same to first order, and no chance in it.
    vec![acc, Metric { name: "perplexity", value, stderr: nats.stderr.map(|e| e * value) }]
}

fn mean_of(name: &'static str, values: &[f64]) -> Metric {
    Metric { name, value: values.iter().sum::<f64>() / values.len() as f64, stderr: standard_error(values) }
}

/// Standard error of the mean, from the sample's deviation; none for fewer than two.
pub(super) fn standard_error(values: &[f64]) -> Option<f64> {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0);
    (values.len() > 1).then(|| (variance / n).sqrt())
}

#[cfg(test)]
#[path = "harness_tests.rs"]
mod tests;
