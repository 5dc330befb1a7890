//! A model that continues texts: prompts go in by chunks, then one token at a time, over a KV cache that is planned in
//! advance.

use super::passes::{LARGEST, Likely, Passes};
use super::plans::plans;
use super::{Finish, News, Options, Overflow, Request, Sampler, Sampling};
use crate::base::DType;
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::model::Llama;
use crate::nn::Declare;
use crate::run::{Recorder, States};
use crate::store::{Checkpoint, Loaded};
use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

/// Sequences over a KV cache.
pub struct Generator {
    passes: Passes,
}

/// A text under way in one of the sequences.
struct Job {
    request: usize,
    sampler: Sampler,
    left: usize,
}

impl Generator {
    /// Plans decoding. `states` holds the parameters; the caches join them. Of a number alone, one text of up to so many
    /// tokens.
    ///
    /// # Errors
    /// If the adapter has no room, or refuses a kernel.
    pub async fn new(
        gpu: &Gpu,
        model: &Llama,
        params: Arc<dyn Declare>,
        states: States,
        options: impl Into<Options>,
    ) -> Result<Self> {
        let options = options.into().for_model(model.config());
        let plans = plans(gpu, model, &*params, &states, &options).await?;
        Ok(Generator { passes: Passes::new(gpu, model, states, options, plans).await? })
    }

    /// A model on disk; `progress` hears how far its weights have come. Refuses a model that is too big for the adapter
    /// before anything is allocated or read.
    ///
    /// # Errors
    /// If the weights do not fit the configuration or cannot be read, the adapter has no room, or it refuses a kernel.
    pub async fn load(
        gpu: &Gpu,
        checkpoint: &Checkpoint,
        options: impl Into<Options>,
        progress: &mut dyn FnMut(Loaded),
    ) -> Result<Generator> {
        let (model, served) = (checkpoint.model(), checkpoint.served(gpu.limits().max_buffer_bytes)?);
        let options = options.into().for_model(model.config());
        let mut states = States::new(gpu);
        let plans = plans(gpu, model, &served, &states, &options).await?;
        checkpoint.stream_served(&mut states, &served, progress).await?;
        Ok(Generator { passes: Passes::new(gpu, model, states, options, plans).await? })
    }

    /// A Hugging Face folder or a GGUF file.
    ///
    /// # Errors
    /// As [`Checkpoint::open`] and [`Generator::load`].
    pub async fn open(gpu: &Gpu, path: &Path, options: impl Into<Options>) -> Result<Generator> {
        Generator::load(gpu, &Checkpoint::open(path)?, options, &mut |_| {}).await
    }

    /// From now on tells `recorder` what every run does when; with `None` no longer.
    pub fn record(&mut self, recorder: Option<&Recorder>) {
        self.passes.record(recorder);
    }

    /// Tokens that the cache of one sequence can hold.
    pub fn context(&self) -> usize {
        self.passes.options().context
    }

    /// Sequences at a time.
    pub fn batch(&self) -> usize {
        self.passes.options().batch
    }

    /// Bytes of the KV cache, and its dtype.
    pub fn cache(&self) -> (u64, DType) {
        let options = self.passes.options();
        (options.cache_bytes(self.passes.model().config()), options.cache)
    }

    /// The tokens that the first sequence's cache holds: the text so far, but for the last token handed out.
    pub fn text(&self) -> &[u32] {
        self.passes.text(0)
    }

    /// Tokens that the model was fed so far: what was found in the cache is not among them.
    pub fn fed(&self) -> u64 {
        self.passes.fed()
    }

    /// How many tokens of a text the first sequence's cache holds: those that need not be fed again. Never all, since what
    /// follows the last one is asked for.
    pub fn held(&self, text: &[u32]) -> usize {
        self.passes.common(0, text)
    }

    /// How many of a prompt's tokens are computed where it is longer than the context: what a shift leaves of it. Without
    /// shifts such a prompt is refused, and none is.
    pub fn kept(&self, prompt: usize) -> usize {
        let context = self.context();
        match self.passes.options().overflow {
            _ if prompt <= context => prompt,
            Overflow::Shift => context / 2,
            Overflow::Stop => 0,
        }
    }

    /// Forgets all texts, as is necessary where weights changed.
    pub fn reset(&mut self) {
        (0..self.batch()).for_each(|sequence| self.passes.truncate(sequence, 0));
    }

    /// Forgets what follows the first `length` tokens of the first sequence.
    pub fn truncate(&mut self, length: usize) {
        self.passes.truncate(0, length);
    }

    /// Appends tokens to the text of the first sequence and gives the logits of what may follow, one a vocabulary entry.
    ///
    /// # Errors
    /// If there are no tokens, more than the cache holds, or the device failed.
    pub async fn feed(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        if tokens.is_empty() {
            return Err(Error::Invalid("the prompt is empty; give at least one token".into()));
        }
        self.passes.model().config().check_tokens(tokens)?;
        let mut pending = vec![Vec::new(); self.batch()];
        pending[0] = tokens.to_vec();
        let mut likely = Likely::default();
        while !pending[0].is_empty() {
            self.passes.feed(&mut pending, None, &mut likely).await?;
        }
        // Of the last run, which came to the end.
        let mut logits = likely.all;
        logits.truncate(self.passes.model().config().vocab_size);
        Ok(logits)
    }

    /// Makes the first sequence hold the beginning of a text, run by run, as long as `going` allows, so that a long one can
    /// be given up; what is left is one run for [`Generator::generate`]. False if it was given up.
    ///
    /// # Errors
    /// As [`Generator::feed`].
    pub async fn read(&mut self, text: &[u32], mut going: impl FnMut() -> bool) -> Result<bool> {
        let mut pending = vec![Vec::new(); self.batch()];
        pending[0] = self.passes.begin(0, text)?;
        while pending[0].len() > LARGEST {
            if !going() {
                return Ok(false);
            }
            self.passes.feed(&mut pending, None, &mut Likely::default()).await?;
        }
        Ok(going())
    }

    /// Continues a text, which `prompt` is the whole of, by up to `count` tokens, each handed to `receive`, until that says
    /// to stop. What the cache still holds of the prompt from an earlier call is not computed again.
    ///
    /// # Errors
    /// As [`Generator::feed`], and whatever `receive` fails with.
    pub async fn generate(
        &mut self,
        prompt: &[u32],
        count: usize,
        sampling: &Sampling,
        mut receive: impl FnMut(u32) -> Result<bool>,
    ) -> Result<Finish> {
        let request = Request { prompt: prompt.to_vec(), count, sampling: sampling.clone() };
        let mut finishes = self.generate_batch(&[request], |_, token| receive(token)).await?;
        finishes.pop().expect("one result a request")
    }

    /// Continues many texts, as many at a time as the generator was planned for: whenever one ends, the next begins in its
    /// place. A request that cannot be met, or whose logits stop being numbers, is an error of its own and does not touch the
    /// others. A text depends on its
    /// request alone, not on what else is in the batch, as far as the kernels' order of sums does not.
    ///
    /// # Errors
    /// If the device failed, and whatever `receive` fails with.
    pub async fn generate_batch(
        &mut self,
        requests: &[Request],
        mut receive: impl FnMut(usize, u32) -> Result<bool>,
    ) -> Result<Vec<Result<Finish>>> {
        let mut finishes: Vec<Option<Result<Finish>>> = requests.iter().map(|_| None).collect();
        let hear = |request: usize, news: News| match news {
            News::Token(token) => receive(request, token),
            News::End(finish) => {
                finishes[request] = Some(finish);
                Ok(true)
            }
        };
        self.generate_each(requests, hear).await?;
        Ok(finishes.into_iter().map(|finish| finish.expect("every request ends")).collect())
    }

    /// The same, hearing of each text's end when it comes; what is answered to that does not matter. Between one token and the
    /// next nothing is allocated here.
    ///
    /// # Errors
    /// As [`Generator::generate_batch`].
    pub async fn generate_each(
        &mut self,
        requests: &[Request],
        mut hear: impl FnMut(usize, News) -> Result<bool>,
    ) -> Result<()> {
        let mut waiting: VecDeque<usize> = (0..requests.len()).collect();
        let mut jobs: Vec<Option<Job>> = (0..self.batch()).map(|_| None).collect();
        let mut pending = vec![Vec::new(); self.batch()];
        let mut likely = Likely::default();
        loop {
            while let Some(&request) = waiting.front().filter(|_| jobs.iter().any(Option::is_none)) {
                waiting.pop_front();
                match self.begin(&jobs, &requests[request]) {
                    Ok((sequence, tokens)) => {
                        let Request { prompt, count, sampling } = &requests[request];
                        let sampler = Sampler::new(sampling.clone(), prompt).with_room((*count).min(self.context()));
                        jobs[sequence] = Some(Job { request, sampler, left: *count });
                        pending[sequence] = tokens;
                    }
                    Err(error) => {
                        hear(request, News::End(Err(error)))?;
                    }
                }
            }
            if jobs.iter().all(Option::is_none) {
                break;
            }
            let needs = jobs.iter().flatten().try_fold(0, |most, job| Some(job.sampler.needs()?.max(most)));
            if !self.passes.feed(&mut pending, needs, &mut likely).await? {
                continue;
            }
            for b in 0..jobs.len() {
                let Some(job) = jobs[b].as_mut().filter(|_| pending[b].is_empty()) else { continue };
                if let Some(finish) = self.next(job, b, &likely, &mut pending[b], &mut hear)? {
                    let request = job.request;
                    jobs[b] = None;
                    if finish.is_err() {
                        // Nothing is built on what such a text left in the cache.
                        self.passes.truncate(b, 0);
                    }
                    hear(request, News::End(finish))?;
                }
            }
        }
        Ok(())
    }

    /// Gives a request the free sequence that holds most of its text already, and says what is left to feed.
    fn begin(&mut self, jobs: &[Option<Job>], request: &Request) -> Result<(usize, Vec<u32>)> {
        request.sampling.check_for(self.passes.model().config().vocab_size)?;
        let free = (0..jobs.len()).filter(|&b| jobs[b].is_none());
        // Of equals the first.
        let common = |&b: &usize| (self.passes.common(b, &request.prompt), std::cmp::Reverse(b));
        let sequence = free.max_by_key(common).expect("the caller saw a free one");
        Ok((sequence, self.passes.begin(sequence, &request.prompt)?))
    }

    /// What follows from what is likely behind a text: it is pending then, or the text is at its end.
    fn next(
        &mut self,
        job: &mut Job,
        sequence: usize,
        likely: &Likely,
        pending: &mut Vec<u32>,
        hear: &mut impl FnMut(usize, News) -> Result<bool>,
    ) -> Result<Option<Result<Finish>>> {
        if job.left == 0 {
            return Ok(Some(Ok(Finish::Length)));
        }
        let row = |len: usize| sequence * len / self.batch()..(sequence + 1) * len / self.batch();
        let token = match &likely.few[..] {
            [] => job.sampler.pick(&likely.all[row(likely.all.len())]),
            few => job.sampler.pick_of(&few[row(few.len())]),
        };
        // One text that the model has no numbers for ends; the others go on.
        let token = match token {
            Ok(token) => token,
            Err(error) => return Ok(Some(Err(error))),
        };
        if self.passes.model().config().eos_token_ids.contains(&token) {
            return Ok(Some(Ok(Finish::EndOfText)));
        }
        if !hear(job.request, News::Token(token))? {
            return Ok(Some(Ok(Finish::Stopped)));
        }
        job.left -= 1;
        let text = self.passes.text(sequence);
        if job.left == 0 {
            return Ok(Some(Ok(Finish::Length)));
        }
        if text.len() == self.context() {
            if self.passes.options().overflow == Overflow::Stop || self.context() < 2 {
                return Ok(Some(Ok(Finish::ContextFull)));
            }
            pending.extend(self.passes.options().shifted(text));
            self.passes.truncate(sequence, 0);
        }
        pending.push(token);
        Ok(None)
    }
}
