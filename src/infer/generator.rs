//! A model that continues text: the prompt goes in by chunks, then one token at a time, over a KV cache.

use super::{Sampler, Sampling};
use crate::base::TensorType;
use crate::compile::{First, Plan, compile};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::graph::Graph;
use crate::model::Llama;
use crate::nn::Declare;
use crate::run::{Executor, States, check_memory, f32s};
use crate::store::{Checkpoint, Loaded};
use std::path::Path;
use std::sync::Arc;

/// Tokens of one prefill run.
const CHUNK: usize = 32;

/// Why a text ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// The model said so.
    EndOfText,
    /// As many tokens as were asked for.
    Length,
    /// The KV cache is full.
    ContextFull,
    /// The receiver of the tokens wanted no more.
    Stopped,
}

/// One sequence over a KV cache.
pub struct Generator {
    gpu: Gpu,
    model: Llama,
    params: Arc<dyn Declare>,
    states: States,
    single: Executor,
    chunk: Option<Executor>,
    context: usize,
    position: usize,
}

impl Generator {
    /// Refuses a model that is too big for the adapter, before anything is allocated or read.
    ///
    /// # Errors
    /// [`Error::Memory`] with the bytes of parameters, caches and scratch.
    fn check(gpu: &Gpu, model: &Llama, params: &dyn Declare, context: usize) -> Result<()> {
        let context = context.clamp(1, model.config().max_context());
        check_memory(gpu, &[&plan(gpu, model, params, context, 1)?], &States::new(gpu))
    }

    /// Plans decoding for texts of up to `context` tokens. `states` holds the parameters; the caches join them.
    ///
    /// # Errors
    /// If the adapter has no room, or refuses a kernel.
    pub async fn new(
        gpu: &Gpu,
        model: &Llama,
        params: Arc<dyn Declare>,
        mut states: States,
        context: usize,
    ) -> Result<Self> {
        let context = context.clamp(1, model.config().max_context());
        let single = executor(gpu, model, &*params, &mut states, context, 1).await?;
        let (gpu, model) = (gpu.clone(), model.clone());
        Ok(Generator { gpu, model, params, states, single, chunk: None, context, position: 0 })
    }

    /// A model on disk, for texts of up to `context` tokens; `progress` hears how far its weights have come.
    ///
    /// # Errors
    /// If the weights do not fit the configuration or cannot be read, the adapter has no room, or it refuses a kernel.
    pub async fn load(
        gpu: &Gpu,
        checkpoint: &Checkpoint,
        context: usize,
        progress: &mut dyn FnMut(Loaded),
    ) -> Result<Generator> {
        let (model, frozen) = (checkpoint.model(), checkpoint.frozen()?);
        Generator::check(gpu, model, &frozen, context)?;
        let mut states = States::new(gpu);
        checkpoint.stream(&mut states, &frozen, progress).await?;
        Generator::new(gpu, model, Arc::new(frozen), states, context).await
    }

    /// A Hugging Face folder or a GGUF file, for texts of up to `context` tokens.
    ///
    /// # Errors
    /// As [`Checkpoint::open`] and [`Generator::load`].
    pub async fn open(gpu: &Gpu, path: &Path, context: usize) -> Result<Generator> {
        Generator::load(gpu, &Checkpoint::open(path)?, context, &mut |_| {}).await
    }

    /// Tokens that the cache can hold.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Forgets the text so far.
    pub fn reset(&mut self) {
        self.position = 0;
    }

    /// Appends tokens to the text and gives the logits of what may follow, one a vocabulary entry.
    ///
    /// # Errors
    /// If there are no tokens, more than the cache holds, or the device failed.
    pub async fn feed(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        if tokens.is_empty() {
            return Err(Error::Invalid("the prompt is empty; give at least one token".into()));
        }
        if self.position + tokens.len() > self.context {
            let (n, context) = (self.position + tokens.len(), self.context);
            return Err(Error::Invalid(format!(
                "the text has {n} tokens and the model's context holds {context}; shorten the prompt"
            )));
        }
        let mut logits = Vec::new();
        let mut rest = tokens;
        while !rest.is_empty() {
            let whole = rest.len() >= CHUNK;
            let (now, after) = rest.split_at(if whole { CHUNK } else { 1 });
            if whole && self.chunk.is_none() {
                let (gpu, states) = (self.gpu.clone(), &mut self.states);
                self.chunk = Some(executor(&gpu, &self.model, &*self.params, states, self.context, CHUNK).await?);
            }
            let run = if whole { self.chunk.as_mut().expect("made above") } else { &mut self.single };
            run.set("tokens", now)?;
            run.set("position", &[self.position as u32])?;
            logits = f32s(&run.run().await?, "logits");
            self.position += now.len();
            rest = after;
        }
        Ok(logits)
    }

    /// Continues the text by `prompt` and then by up to `count` tokens, each handed to `receive`, until that says to stop.
    /// The last token handed out is not part of the text yet: to go on later, begin the next prompt with it.
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
        sampling.check()?;
        let mut sampler = Sampler::new(sampling.clone());
        let mut logits = self.feed(prompt).await?;
        for left in (0..count).rev() {
            let token = sampler.pick(&logits)?;
            if self.model.config().eos_token_ids.contains(&token) {
                return Ok(Finish::EndOfText);
            }
            if !receive(token)? {
                return Ok(Finish::Stopped);
            }
            if left == 0 {
                break;
            }
            if self.position == self.context {
                return Ok(Finish::ContextFull);
            }
            logits = self.feed(&[token]).await?;
        }
        Ok(Finish::Length)
    }
}

async fn executor(
    gpu: &Gpu,
    model: &Llama,
    params: &dyn Declare,
    states: &mut States,
    context: usize,
    tokens: usize,
) -> Result<Executor> {
    Executor::new(gpu, &plan(gpu, model, params, context, tokens)?, states).await
}

/// The plan that decodes `tokens` tokens at a time.
fn plan(gpu: &Gpu, model: &Llama, params: &dyn Declare, context: usize, tokens: usize) -> Result<Plan> {
    let mut g = Graph::new();
    let params = params.declare(&mut g)?;
    let ids = g.input("tokens", TensorType::u32([1, tokens]));
    let position = g.input("position", TensorType::u32([1]));
    let caches = model.caches(&mut g, 1, context);
    let last = g.constant("last", TensorType::u32([1]), (tokens as u32 - 1).to_le_bytes().to_vec());
    let rows = (tokens > 1).then_some(last);
    let logits = model.decode(&mut g, &params, ids, position, rows, &caches)?;
    g.output("logits", logits);
    compile(&g, gpu.limits(), &mut First)
}
