//! Runs of the model over a KV cache, planned for a few numbers of tokens at a time.
//!
//! B sequences, T tokens of each in one run, V vocabulary. Every run feeds up to T tokens of every sequence, each at the
//! sequence's own position; those that have fewer, or none, are filled up on the right. What the filling leaves in the
//! cache stands behind the sequence's end, where later tokens overwrite it before anything reads it.

use super::Options;
use super::plans::{Plans, top};
use crate::error::Result;
use crate::gpu::Gpu;
use crate::model::Llama;
use crate::run::{Executor, Recorder, Results, States};
use std::collections::BTreeMap;

/// Numbers of tokens that there are runs for. All are planned at once; each is made when it is first needed.
const SIZES: [usize; 4] = [1, 8, 32, LARGEST];
/// Most tokens of a sequence in one run.
pub(super) const LARGEST: usize = 128;
/// Tokens of all sequences in one run at most, unless it is one of each: what a run needs beside the cache stays small.
const MOST_TOKENS: usize = 1024;

/// What may follow, of each sequence: one of the two, in memory that is used again for every token.
#[derive(Default)]
pub(super) struct Likely {
    /// Logits of all tokens, `[B,V]`.
    pub(super) all: Vec<f32>,
    /// The likeliest tokens, descending: logits and ids.
    pub(super) few: Vec<(f32, u32)>,
}

impl Likely {
    fn take(&mut self, results: &Results<'_>) {
        self.all.clear();
        self.all.extend(results.words("logits").map(f32::from_le_bytes));
        self.few.clear();
        let ids = results.words("top.ids").map(u32::from_le_bytes);
        self.few.extend(results.words("top.values").map(f32::from_le_bytes).zip(ids));
    }
}

/// What a run is fed, in memory that is used again for every token.
#[derive(Default)]
struct Fed {
    /// `[B,T]`.
    tokens: Vec<u32>,
    /// Where each sequence's last token stands in them.
    rows: Vec<u32>,
    /// Where each sequence's first token stands in its text.
    positions: Vec<u32>,
}

impl Fed {
    fn fill(&mut self, texts: &[Vec<u32>], pending: &[Vec<u32>], time: usize) {
        let Fed { tokens, rows, positions } = self;
        tokens.clear();
        rows.clear();
        positions.clear();
        tokens.resize(pending.len() * time, 0);
        for (b, new) in pending.iter().enumerate() {
            let count = new.len().min(time);
            tokens[b * time..b * time + count].copy_from_slice(&new[..count]);
            rows.push((b * time + count.max(1) - 1) as u32);
        }
        positions.extend(texts.iter().map(|text| text.len() as u32));
    }
}

/// The runs of one model.
pub(super) struct Passes {
    gpu: Gpu,
    model: Llama,
    states: States,
    options: Options,
    plans: Plans,
    runs: BTreeMap<usize, Executor>,
    recorder: Option<Recorder>,
    /// What each sequence's cache holds.
    texts: Vec<Vec<u32>>,
    input: Fed,
    fed: u64,
    /// How many of the likeliest tokens each run gives apart.
    top: usize,
}

impl Passes {
    /// Over what [`plans`] gave for the same.
    pub(super) async fn new(
        gpu: &Gpu,
        model: &Llama,
        states: States,
        options: Options,
        plans: Plans,
    ) -> Result<Passes> {
        let texts = (0..options.batch).map(|_| Vec::with_capacity(options.context)).collect();
        let (top, input) = (top(model), Fed::default());
        let (gpu, model) = (gpu.clone(), model.clone());
        let (runs, recorder) = (BTreeMap::new(), None);
        let mut passes = Passes { gpu, model, states, options, plans, runs, recorder, texts, input, fed: 0, top };
        passes.make(1).await?;
        Ok(passes)
    }

    /// From now on tells `recorder` of every run.
    pub(super) fn record(&mut self, recorder: Option<&Recorder>) {
        self.recorder = recorder.cloned();
        for (&time, run) in &mut self.runs {
            run.record(recorder, &plan_name(time));
        }
    }

    pub(super) fn model(&self) -> &Llama {
        &self.model
    }

    pub(super) fn options(&self) -> &Options {
        &self.options
    }

    pub(super) fn text(&self, sequence: usize) -> &[u32] {
        &self.texts[sequence]
    }

    /// Tokens fed so far, fillings left out.
    pub(super) fn fed(&self) -> u64 {
        self.fed
    }

    /// Forgets what a sequence holds beyond its first `length` tokens.
    pub(super) fn truncate(&mut self, sequence: usize, length: usize) {
        self.texts[sequence].truncate(length);
    }

    /// Makes a sequence hold the beginning of `text`, as much as it holds already, but not all; gives what is left to
    /// feed.
    pub(super) fn begin(&mut self, sequence: usize, text: &[u32]) -> Result<Vec<u32>> {
        self.options.check_prompt(text, self.model.config())?;
        let text = if text.len() <= self.options.context { text.to_vec() } else { self.options.shifted(text) };
        let common = self.common(sequence, &text);
        self.truncate(sequence, common);
        Ok(text[common..].to_vec())
    }

    /// How much of a text a sequence holds; not all, since its last token must be fed to know what follows.
    pub(super) fn common(&self, sequence: usize, text: &[u32]) -> usize {
        let same = self.texts[sequence].iter().zip(text).take_while(|(a, b)| a == b).count();
        same.min(text.len().saturating_sub(1))
    }

    /// Feeds the first of each sequence's pending tokens, as many as one run takes, and removes them. If that was the last
    /// of a sequence's, `likely` then holds what may follow, and the answer is true; rows of sequences that are not at their end
    /// say nothing. Of the logits no more are read back than the `needs` likeliest, where that is known and few. Once the run
    /// of this size is made, nothing is allocated.
    ///
    /// # Errors
    /// If a sequence would hold more than the context, or the device fails.
    pub(super) async fn feed(
        &mut self,
        pending: &mut [Vec<u32>],
        needs: Option<usize>,
        likely: &mut Likely,
    ) -> Result<bool> {
        let (batch, context) = (self.options.batch, self.options.context);
        for (text, new) in self.texts.iter().zip(pending.iter()) {
            if text.len() + new.len() > context {
                return Err(self.options.too_long(text.len() + new.len(), self.model.config()));
            }
        }
        let time = size(pending.iter().map(Vec::len).max().unwrap_or(0), batch, context);
        let wanted = pending.iter().any(|new| (1..=time).contains(&new.len()));
        self.make(time).await?;
        self.input.fill(&self.texts, pending, time);
        let run = self.runs.get_mut(&time).expect("made above");
        run.set("tokens", &self.input.tokens)?;
        run.set("position", &self.input.positions)?;
        run.set("rows", &self.input.rows)?;
        let few = needs.is_some_and(|needs| needs <= self.top);
        let names: &[&str] = match (wanted, few) {
            (false, _) => &[],
            (true, true) => &["top.values", "top.ids"],
            (true, false) => &["logits"],
        };
        run.run_for(names, |results| likely.take(&results)).await?;
        for (text, new) in self.texts.iter_mut().zip(pending) {
            let count = new.len().min(time);
            text.extend(new.drain(..count));
            self.fed += count as u64;
        }
        Ok(wanted)
    }

    /// Makes the run of so many tokens, if it is not there.
    async fn make(&mut self, time: usize) -> Result<()> {
        if !self.runs.contains_key(&time) {
            let mut run = Executor::new(&self.gpu, &self.plans[&time], &mut self.states).await?;
            run.record(self.recorder.as_ref(), &plan_name(time));
            self.runs.insert(time, run);
        }
        Ok(())
    }
}

/// The numbers of tokens that there are runs for, ascending.
pub(super) fn sizes(batch: usize, context: usize) -> impl Iterator<Item = usize> {
    SIZES.into_iter().filter(move |&size| size == 1 || size * batch <= MOST_TOKENS && size <= context)
}

/// Tokens of the next run where `pending` are left, none longer than the context: all of them if that wastes less than
/// half of it, else as many whole ones as there are.
fn size(pending: usize, batch: usize, context: usize) -> usize {
    let below = sizes(batch, context).filter(|&size| size <= pending).max().unwrap_or(1);
    match sizes(batch, context).find(|&size| size >= pending) {
        // Below eight, one run costs little more than one token does.
        Some(above) if 2 * pending > above || pending < 8 => above,
        _ => below,
    }
}

/// What recordings call the run of `time` tokens.
fn plan_name(time: usize) -> String {
    if time == 1 { "decode".into() } else { format!("prefill of {time}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_takes_few_runs() {
        let sizes = |mut pending: usize, batch: usize, context: usize| {
            let mut taken = Vec::new();
            while pending > 0 {
                let size = size(pending, batch, context);
                taken.push(size);
                pending -= size.min(pending);
            }
            taken
        };
        assert_eq!(sizes(1, 1, 1000), [1]);
        assert_eq!(sizes(5, 1, 1000), [8]);
        assert_eq!(sizes(544, 1, 1000), [128, 128, 128, 128, 32]);
        assert_eq!(sizes(50, 1, 1000), [32, 32]);
        assert_eq!(sizes(43, 1, 1000), [32, 8, 8]);
        assert_eq!(sizes(100, 1, 1000), [128]);
        assert_eq!(sizes(200, 30, 1000), [32, 32, 32, 32, 32, 32, 8]);
        assert_eq!(sizes(3, 2000, 1000), [1, 1, 1]);
        assert_eq!(sizes(5, 1, 6), [1; 5]);
        assert_eq!(sizes(20, 1, 20), [8, 8, 8]);
    }
}
