//! Log-probabilities of given tokens, without reading logits back: of each token that counts, the device gives the largest
//! logit of its row, the sum of exponentials, and the token's own logit.

use crate::base::TensorType;
use crate::compile::{compile, settle};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::graph::Graph;
use crate::model::Llama;
use crate::nn::Declare;
use crate::ops::IGNORE;
use crate::run::{Executor, States, TuneMode, Tuner, check_memory, f32s};
use crate::store::{Checkpoint, Loaded};
use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

/// Sequences are filled up to a multiple of so many tokens, and rows of so many: few plans serve all lengths.
const TIME_STEP: usize = 16;
const ROW_STEP: usize = 64;

/// Runs that may be in flight.
const SLOTS: usize = 2;

/// Tokens of which those from `from` on are scored, each after all before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passage {
    /// The tokens.
    pub tokens: Vec<u32>,
    /// The first that is scored; at least 1.
    pub from: usize,
}

/// What the model says of one token after those before it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenScore {
    /// ln p of the token.
    pub log_prob: f64,
    /// True if no other token is likelier.
    pub greedy: bool,
}

/// The sizes of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sizes {
    batch: usize,
    time: usize,
    rows: usize,
}

/// Passages that run together, padded on the right: under a causal mask no token sees what comes after it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Batch {
    sizes: Sizes,
    passages: Vec<usize>,
}

/// A model that scores texts.
pub struct Scorer {
    gpu: Gpu,
    model: Llama,
    params: Arc<dyn Declare>,
    states: States,
    tuner: Tuner,
    batch_tokens: usize,
    run: Option<(Sizes, Executor)>,
}

impl Scorer {
    /// A model whose parameters lie in `states`. `batch_tokens` tokens run at once, if single passages are not longer.
    pub fn new(gpu: &Gpu, model: &Llama, params: Arc<dyn Declare>, states: States, batch_tokens: usize) -> Scorer {
        let tuner = Tuner::serving(gpu, None);
        let (gpu, model) = (gpu.clone(), model.clone());
        Scorer { gpu, model, params, states, tuner, batch_tokens, run: None }
    }

    /// Takes kernels as a tuner does that keeps its records in this folder ([`Tuner::serving`]).
    pub fn tuned(self, folder: Option<&Path>) -> Scorer {
        Scorer { tuner: Tuner::serving(&self.gpu, folder), ..self }
    }

    /// A model on disk; `progress` hears how far its weights have come.
    ///
    /// # Errors
    /// If the weights do not fit the configuration or cannot be read, or the adapter has no room.
    pub async fn load(
        gpu: &Gpu,
        checkpoint: &Checkpoint,
        batch_tokens: usize,
        progress: &mut dyn FnMut(Loaded),
    ) -> Result<Scorer> {
        let served = checkpoint.served(gpu.limits().max_buffer_bytes)?;
        let mut states = States::new(gpu);
        // Before anything is allocated: a short text says whether the weights have room.
        let sizes = Sizes { batch: 1, time: TIME_STEP, rows: ROW_STEP };
        let tuner = &mut Tuner::new(gpu, TuneMode::Off, None);
        check_memory(gpu, &[&plan(gpu, checkpoint.model(), &served, sizes, tuner).await?], &states)?;
        checkpoint.stream_served(&mut states, &served, progress).await?;
        Ok(Scorer::new(gpu, checkpoint.model(), Arc::new(served), states, batch_tokens))
    }

    /// The model.
    pub fn model(&self) -> &Llama {
        &self.model
    }

    /// The scores of each passage's tokens from [`Passage::from`] on. `progress` hears how many passages of how many are
    /// done.
    ///
    /// # Errors
    /// If a passage scores its first token or none, holds a token that the vocabulary does not, or is longer than the
    /// model's context (which the last token need not fit in); if the adapter has no room, or failed.
    pub async fn score(
        &mut self,
        passages: &[Passage],
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Vec<Vec<TokenScore>>> {
        passages.iter().try_for_each(|p| self.check(p))?;
        let mut scores = vec![Vec::new(); passages.len()];
        let mut pending: VecDeque<Batch> = VecDeque::new();
        let mut done = 0;
        let config = self.model.config().clone();
        let (most, alike) = (config.max_context(), |a, b| a == b || config.frequencies(a) == config.frequencies(b));
        for batch in batches(passages, self.batch_tokens, most, &alike) {
            let same = self.run.as_ref().is_some_and(|(sizes, _)| *sizes == batch.sizes);
            while !pending.is_empty() && (!same || pending.len() == SLOTS) {
                self.collect(&mut pending, passages, &mut scores, &mut done).await?;
                progress(done, passages.len());
            }
            if !same {
                // The old plan's memory first.
                self.run = None;
                let plan = plan(&self.gpu, &self.model, &*self.params, batch.sizes, &mut self.tuner).await?;
                let run = Executor::new(&self.gpu, &plan, &mut self.states).await?;
                self.run = Some((batch.sizes, run));
            }
            let (_, run) = self.run.as_mut().expect("made above");
            let [tokens, rows, targets] = inputs(passages, &batch);
            run.set("tokens", &tokens)?;
            run.set("rows", &rows)?;
            run.set("targets", &targets)?;
            run.submit().await?;
            pending.push_back(batch);
        }
        while !pending.is_empty() {
            self.collect(&mut pending, passages, &mut scores, &mut done).await?;
            progress(done, passages.len());
        }
        Ok(scores)
    }

    /// Takes the results of the oldest run.
    async fn collect(
        &mut self,
        pending: &mut VecDeque<Batch>,
        passages: &[Passage],
        scores: &mut [Vec<TokenScore>],
        done: &mut usize,
    ) -> Result<()> {
        let (batch, (_, run)) = (pending.pop_front().expect("asked for"), self.run.as_mut().expect("it made them"));
        let stats = f32s(&run.outputs().await?, "stats");
        let mut stats = stats.chunks_exact(3).map(|s| {
            let [largest, sum, own] = [s[0], s[1], s[2]].map(f64::from);
            TokenScore { log_prob: own - largest - sum.ln(), greedy: own >= largest }
        });
        for &p in &batch.passages {
            scores[p] = stats.by_ref().take(passages[p].tokens.len() - passages[p].from).collect();
            if let Some(token) = scores[p].iter().position(|s| !s.log_prob.is_finite()) {
                let at = passages[p].from + token;
                let message = format!("the model gives no number for token {at} of a text; its weights may be damaged");
                return Err(Error::Device(message));
            }
        }
        *done += batch.passages.len();
        Ok(())
    }

    fn check(&self, passage: &Passage) -> Result<()> {
        let (n, from, config) = (passage.tokens.len(), passage.from, self.model.config());
        let most = config.max_context();
        if from == 0 || from >= n || n > most + 1 {
            return Err(Error::Invalid(format!(
                "a text of {n} tokens that is scored from token {from} on cannot be: it begins to be scored at 1 or later, and \
                 before its last token there are at most {most} with this model"
            )));
        }
        config.check_tokens(&passage.tokens)
    }
}

/// Sorts passages by length and puts neighbours together, so that little is padding, but only such whose lengths are
/// `alike`, and padded to a length that is too: LongRoPE and dynamic scaling turn a text by its length.
fn batches(passages: &[Passage], batch_tokens: usize, most: usize, alike: &dyn Fn(usize, usize) -> bool) -> Vec<Batch> {
    // What the last token is scored by stands before it.
    let length = |p: usize| passages[p].tokens.len() - 1;
    let mut order: Vec<usize> = (0..passages.len()).collect();
    order.sort_by_key(|&p| std::cmp::Reverse(passages[p].tokens.len()));
    let mut batches: Vec<Batch> = Vec::new();
    let mut rest = &order[..];
    while let Some(&longest) = rest.first() {
        let own = length(longest);
        let time = Some(own.next_multiple_of(TIME_STEP).min(most)).filter(|&time| alike(time, own)).unwrap_or(own);
        let batch = (batch_tokens / time).clamp(1, order.len());
        let together = rest.iter().take(batch).take_while(|&&p| alike(length(p), own)).count();
        let (now, after) = rest.split_at(together);
        let scored: usize = now.iter().map(|&p| passages[p].tokens.len() - passages[p].from).sum();
        let sizes = Sizes { batch, time, rows: scored.next_multiple_of(ROW_STEP) };
        batches.push(Batch { sizes, passages: now.to_vec() });
        rest = after;
    }
    // Those of one length share one plan.
    for i in 0..batches.len() {
        let Sizes { batch, time, .. } = batches[i].sizes;
        let alike = batches.iter().filter(|b| b.sizes.batch == batch && b.sizes.time == time);
        batches[i].sizes.rows = alike.map(|b| b.sizes.rows).max().expect("itself");
    }
    batches
}

/// Tokens `[B,T]`, and for each score the row of the token before it and the token itself.
fn inputs(passages: &[Passage], batch: &Batch) -> [Vec<u32>; 3] {
    let Sizes { batch: b, time, rows: most } = batch.sizes;
    let (mut tokens, mut rows, mut targets) = (vec![0; b * time], Vec::new(), Vec::new());
    for (i, &p) in batch.passages.iter().enumerate() {
        let Passage { tokens: own, from } = &passages[p];
        tokens[i * time..][..own.len() - 1].copy_from_slice(&own[..own.len() - 1]);
        rows.extend((*from..own.len()).map(|t| (i * time + t - 1) as u32));
        targets.extend_from_slice(&own[*from..]);
    }
    rows.resize(most, 0);
    targets.resize(most, IGNORE);
    [tokens, rows, targets]
}

async fn plan(
    gpu: &Gpu,
    model: &Llama,
    params: &dyn Declare,
    sizes: Sizes,
    tuner: &mut Tuner,
) -> Result<crate::compile::Plan> {
    let mut g = Graph::new();
    let params = params.declare(&mut g)?;
    let tokens = g.input("tokens", TensorType::u32([sizes.batch, sizes.time]));
    let rows = g.input("rows", TensorType::u32([sizes.rows]));
    let targets = g.input("targets", TensorType::u32([sizes.rows]));
    let stats = model.score(&mut g, &params, tokens, rows, targets)?;
    g.output("stats", stats);
    settle(tuner, |chooser| compile(&g, gpu.limits(), chooser)).await
}

#[cfg(test)]
#[path = "score_tests.rs"]
mod tests;
