//! The plans of a generator: one for each number of tokens that a run feeds at once, all made and weighed before anything
//! is allocated.

use super::Options;
use super::passes::sizes;
use crate::base::{DType, Limits, TensorType};
use crate::compile::{Chooser, First, Plan, compile, human_bytes, settle};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::graph::Graph;
use crate::model::Llama;
use crate::nn::Declare;
use crate::ops::TopK;
use crate::run::{States, Tuner, device_bytes};
use std::collections::BTreeMap;
use std::sync::Arc;

/// How many of the likeliest tokens are found on the device: with 128,000 logits a token, reading all of them back takes
/// half a megabyte.
const TOP: usize = 64;

/// By the number of tokens of each sequence.
pub(super) type Plans = BTreeMap<usize, Arc<Plan>>;

/// How many of the likeliest tokens a run of this model gives apart.
pub(super) fn top(model: &Llama) -> usize {
    TOP.min(model.config().vocab_size)
}

/// What is planned for, and where it must fit.
pub(super) struct Planner<'a> {
    pub limits: &'a Limits,
    /// The adapter's name.
    pub adapter: &'a str,
    pub model: &'a Llama,
    pub params: &'a dyn Declare,
    /// Bytes of the states that are there already, and their names.
    pub bytes: u64,
    pub there: &'a dyn Fn(&str) -> bool,
}

/// Plans all runs, with the kernels that are known to be fast. Refuses what is too big for the adapter: weights, caches and
/// all runs, less the states that are there already.
pub(super) async fn plans(
    gpu: &Gpu,
    model: &Llama,
    params: &dyn Declare,
    states: &States,
    options: &Options,
) -> Result<Plans> {
    let (limits, there) = (gpu.limits(), |name: &str| states.contains(name));
    let adapter = &gpu.report().name;
    let planner = Planner { limits, adapter, model, params, bytes: states.bytes(), there: &there };
    let mut tuner = Tuner::serving(gpu, options.tuning.as_deref());
    settle(&mut tuner, |chooser| planner.plans(options, chooser)).await
}

impl Planner<'_> {
    fn plans(&self, options: &Options, chooser: &mut dyn Chooser) -> Result<Plans> {
        self.check_binding(options)?;
        self.check_buffer(options)?;
        let plans = self.all(options, chooser)?;
        let Some(had) = self.limits.memory_bytes.map(|memory| memory.saturating_sub(self.bytes)) else {
            return Ok(plans);
        };
        let wanted = self.wanted(&plans);
        if wanted <= had {
            return Ok(plans);
        }
        let sizes = format!("{} of {} that are free", human_bytes(wanted), human_bytes(had));
        let what = format!("the model with a context of {} ({sizes})", sized(options));
        Err(Error::Memory { what, wanted, had, adapter: self.adapter.to_string(), advice: self.advice(options, had) })
    }

    /// Adapters bind no more than so much at a time, and a layer's cache is one buffer.
    fn check_binding(&self, options: &Options) -> Result<()> {
        let config = self.model.config();
        let layer = options.cache_bytes(config) / (2 * options.batch * config.num_hidden_layers.max(1)) as u64;
        let limit = self.limits.max_binding_bytes;
        if layer > limit {
            let (context, most) = (options.context, options.context as u64 * limit / layer.max(1));
            return Err(Error::Invalid(format!(
                "a context of {context} tokens in a {} cache is beyond what this adapter binds at a time, which is {most} \
                 tokens; choose a smaller context or a narrower cache",
                options.cache
            )));
        }
        Ok(())
    }

    /// Of all texts together it is one buffer, which has a limit of its own.
    fn check_buffer(&self, options: &Options) -> Result<()> {
        let wanted = options.cache_bytes(self.model.config()) / 2 / self.model.config().num_hidden_layers.max(1) as u64;
        let had = self.limits.max_buffer_bytes;
        if wanted <= had {
            return Ok(());
        }
        let sizes = format!("{} of {} that a buffer can have", human_bytes(wanted), human_bytes(had));
        let what = format!("a layer's keys for a context of {} ({sizes})", sized(options));
        let free = self.limits.memory_bytes.map_or(u64::MAX, |memory| memory.saturating_sub(self.bytes));
        Err(Error::Memory { what, wanted, had, adapter: self.adapter.to_string(), advice: self.advice(options, free) })
    }

    fn all(&self, options: &Options, chooser: &mut dyn Chooser) -> Result<Plans> {
        sizes(options.batch, options.context)
            .map(|time| {
                let graph = decode_graph(self.model, self.params, options, time)?;
                Ok((time, Arc::new(compile(&graph, self.limits, chooser)?)))
            })
            .collect()
    }

    fn wanted(&self, plans: &Plans) -> u64 {
        device_bytes(plans.values().map(|plan| &**plan), self.there)
    }

    /// What would fit: a shorter context, fewer texts, a narrower cache; else another model.
    fn advice(&self, options: &Options, had: u64) -> String {
        let fits = |options: &Options| self.all(options, &mut First).is_ok_and(|plans| self.wanted(&plans) <= had);
        let halves = std::iter::successors(Some(options.context / 2), |context| Some(context / 2));
        let mut shorter =
            halves.take_while(|&context| context > 0).map(|context| Options { context, ..options.clone() });
        let mut ways = Vec::new();
        if let Some(Options { context, .. }) = shorter.find(|options| fits(options)) {
            ways.push(format!("a context of {} fits: --context {context}", tokens(context)));
        }
        let halves = std::iter::successors(Some(options.batch / 2), |batch| Some(batch / 2));
        let mut fewer = halves.take_while(|&batch| batch > 0).map(|batch| Options { batch, ..options.clone() });
        match fewer.find(|options| fits(options)) {
            Some(Options { batch: 1, .. }) => ways.push("one text at a time fits: --batch 1".into()),
            Some(Options { batch, .. }) => ways.push(format!("{batch} texts at a time fit: --batch {batch}")),
            None => {}
        }
        if options.cache != DType::Q8_0 && fits(&Options { cache: DType::Q8_0, ..options.clone() }) {
            ways.push("a cache in q8_0 fits: --kv-cache q8".into());
        }
        if ways.is_empty() {
            return "not even a context of one token fits: choose a smaller or more quantised model".into();
        }
        ways.join("; ")
    }
}

fn tokens(count: usize) -> String {
    format!("{count} token{}", if count == 1 { "" } else { "s" })
}

/// A context and for how many texts it is.
fn sized(options: &Options) -> String {
    let texts = if options.batch == 1 { String::new() } else { format!(" for each of {} texts", options.batch) };
    format!("{}{texts}", tokens(options.context))
}

/// The graph of one run over the KV cache, which feeds `time` tokens of each sequence.
///
/// # Errors
/// If the parameters are not the model's.
pub fn decode_graph(model: &Llama, params: &dyn Declare, options: &Options, time: usize) -> Result<Graph> {
    let batch = options.batch;
    let mut g = Graph::new();
    let params = params.declare(&mut g)?;
    let ids = g.input("tokens", TensorType::u32([batch, time]));
    let position = g.input("position", TensorType::u32([batch]));
    let rows = g.input("rows", TensorType::u32([batch]));
    let caches = model.caches(&mut g, batch, options.context, options.cache);
    let logits = model.decode(&mut g, &params, ids, position, (time > 1).then_some(rows), &caches)?;
    let likeliest = g.apply(TopK { k: top(model) }, &[logits])?;
    g.output("logits", logits);
    g.output("top.values", likeliest[0]);
    g.output("top.ids", likeliest[1]);
    Ok(g)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::find_config;
    use crate::nn::ParamLayout;

    /// What a generator is refused for is what it would take with all of its runs, to the byte, and what the sentence
    /// offers fits.
    #[test]
    fn all_runs_are_weighed_and_the_sentence_says_what_fits() {
        let model = Llama::new(find_config("story-1m").unwrap());
        let layout = ParamLayout::new(model.param_specs(), 1 << 30);
        let with = |memory: Option<u64>, options: &Options| {
            let limits = Limits { memory_bytes: memory, ..Limits::default() };
            let (adapter, model, params, there) = ("a card", &model, &layout, &|_: &str| false);
            let planner = Planner { limits: &limits, adapter, model, params, bytes: 0, there };
            planner.plans(options, &mut First).map(|plans| (planner.wanted(&plans), plans))
        };
        let options = Options { batch: 3, ..128.into() };
        let (wanted, plans) = with(None, &options).unwrap();
        assert_eq!(plans.keys().copied().collect::<Vec<_>>(), [1, 8, 32, 128]);
        let one = plans[&1].totals().device_bytes();
        assert!(one < wanted, "the run of single tokens takes {one} bytes, all take {wanted}");
        with(Some(wanted), &options).unwrap();
        let said = |memory, options: &Options| with(Some(memory), options).map(drop).expect_err("refused").to_string();
        let message = said(wanted - 1, &options);
        let expected = format!(
            " wants {wanted} bytes and a card offers {}; a context of 64 tokens fits: --context 64; \
             one text at a time fits: --batch 1; a cache in q8_0 fits: --kv-cache q8",
            wanted - 1
        );
        assert!(message.starts_with("the model with a context of 128 tokens for each of 3 texts ("), "{message}");
        assert!(message.ends_with(&expected), "{message}");
        with(Some(wanted - 1), &Options { context: 64, ..options.clone() }).unwrap();
        // Of the shortest context, one text fits and three do not.
        let alone = with(None, &1.into()).unwrap().0;
        let short = Options { context: 1, ..options.clone() };
        assert!(said(alone, &short).contains("; one text at a time fits: --batch 1"), "{}", said(alone, &short));
        with(Some(wanted - 1), &Options { batch: 1, ..options.clone() }).unwrap();
        with(Some(wanted - 1), &Options { cache: DType::Q8_0, ..options.clone() }).unwrap();
        let nothing = "; not even a context of one token fits: choose a smaller or more quantised model";
        assert!(said(1000, &options).ends_with(nothing), "{}", said(1000, &options));
    }

    /// One buffer too large is said in the same words, and before any graph is made.
    #[test]
    fn a_cache_beyond_the_largest_buffer_is_refused_with_what_fits() {
        let model = Llama::new(find_config("story-1m").unwrap());
        let options = Options { batch: 3, ..128.into() };
        let layer = options.cache_bytes(model.config()) / 2 / model.config().num_hidden_layers as u64;
        let layout = ParamLayout::new(model.param_specs(), 1 << 30);
        let limits = Limits { max_buffer_bytes: layer - 1, ..Limits::default() };
        let planner =
            Planner { limits: &limits, adapter: "a card", model: &model, params: &layout, bytes: 0, there: &|_| false };
        let message = planner.check_buffer(&options).unwrap_err().to_string();
        assert!(message.starts_with("a layer's keys for a context of 128 tokens for each of 3 texts ("), "{message}");
        let wanted = format!(" that a buffer can have) wants {layer} bytes and a card offers {}; ", layer - 1);
        assert!(message.contains(&wanted), "{message}");
        planner.check_buffer(&Options { context: 127, ..options }).unwrap();
    }
}
