//! LLaMA (Touvron et al., 2023) and its family as a graph for one device: what a row of the table (family.rs) switches on.
//! Legend: B batch, T time, S positions of the cache, D model width, H query heads, K kv heads, C head width, V vocabulary.

use super::specs::{EMBEDDING, NORM, OUTPUT};
use super::{ModelConfig, Norms, QkNorm, Source};
use crate::base::{DType, TensorType};
use crate::error::Result;
use crate::graph::{Concat, Graph, Map, Slice, Value};
use crate::nn::{
    AttentionKind, AttentionWeights, Heads, KvCache, Linear, MlpWeights, MoeKind, MoeWeights, ParamSpec, Params,
    Positions, Routing, attention, linear, load_balancing_loss, mlp, moe, rms_norm, router_z_loss,
};
use crate::ops::{CrossEntropyUpdate, Embedding, LinearCrossEntropy, LinearLogProbs, Mask, Operands};

/// A model of the family: what parameters it has, and what it computes.
#[derive(Debug, Clone, PartialEq)]
pub struct Llama {
    config: ModelConfig,
}

/// What a model says of a batch in training; all f32.
#[derive(Debug, Clone)]
pub struct Said {
    /// The mean cross entropy, in nats, with the losses that the configuration adds: `[1]`.
    pub loss: Value,
    /// Without them: `[1]`.
    pub cross_entropy: Value,
    /// How many targets count: `[1]`.
    pub count: Value,
    /// Of each layer with experts, how many slots fell on each: `[E]`.
    pub counts: Vec<Value>,
    /// And how many of them found no room on the rank that holds their expert, `[1]`; none where all experts are here.
    pub dropped: Vec<Value>,
}

impl Llama {
    /// A model of this configuration.
    pub fn new(config: ModelConfig) -> Self {
        Llama { config }
    }

    /// Its configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Its parameters: [`ModelConfig::param_specs`].
    pub fn param_specs(&self) -> Vec<ParamSpec> {
        self.config.param_specs()
    }

    /// Where a Hugging Face folder of this family keeps a parameter of [`Llama::param_specs`].
    pub fn sources(&self, name: &str) -> Vec<Source> {
        self.config.sources(name)
    }

    /// Mean cross-entropy, in nats, of tokens u32 `[B,T]` against targets u32 `[B,T]` (each the token that follows, or
    /// [`crate::ops::IGNORE`]): `[1]`. Logits never exist whole. Where the configuration says so, the experts' balance
    /// is part of it. Rows of several documents come with `starts` u32 `[B,T]`: for each token the index in its row at
    /// which its document begins; no token then sees another document, nor its position.
    ///
    /// # Errors
    /// If a shape does not fit.
    pub fn loss(
        &self,
        g: &mut Graph,
        params: &Params,
        tokens: Value,
        targets: Value,
        starts: Option<Value>,
    ) -> Result<Value> {
        Ok(self.loss_and_count(g, params, tokens, targets, starts)?[0])
    }

    /// [`Llama::loss`], and how many targets count: `[1]`.
    ///
    /// # Errors
    /// If a shape does not fit.
    pub fn loss_and_count(
        &self,
        g: &mut Graph,
        params: &Params,
        tokens: Value,
        targets: Value,
        starts: Option<Value>,
    ) -> Result<[Value; 2]> {
        let said = self.said(g, params, tokens, targets, starts)?;
        Ok([said.loss, said.count])
    }

    /// The same, with what the loss is made of.
    ///
    /// # Errors
    /// If a shape does not fit.
    pub fn said(
        &self,
        g: &mut Graph,
        params: &Params,
        tokens: Value,
        targets: Value,
        starts: Option<Value>,
    ) -> Result<Said> {
        let (x, routings) = self.hidden_from_start(g, params, tokens, starts)?;
        let weight = self.output_weight(g, params)?;
        let all = g.scope("output", |g| g.apply(LinearCrossEntropy::fitting(), &[x, weight, targets]))?;
        let (cross_entropy, count) = (all[0], all[2]);
        let mut loss = cross_entropy;
        let shares = self.config.experts.map_or([0.0; 2], |experts| [experts.balance, experts.z]);
        type OfRouters = fn(&mut Graph, &[Routing]) -> Result<Value>;
        let losses: [(&str, OfRouters); 2] = [("balance", load_balancing_loss), ("router_z", router_z_loss)];
        let losses = losses.into_iter().zip(shares);
        for ((name, of), share) in losses.filter(|(_, share)| *share > 0.0 && !routings.is_empty()) {
            loss = g.scope(name, |g| {
                let more = of(g, &routings)?;
                let more = g.apply1(Map::scale(share as f32), &[more])?;
                g.add(loss, more)
            })?;
        }
        let counts = routings.iter().map(|routing| routing.counts).collect();
        Ok(Said { loss, cross_entropy, count, counts, dropped: Vec::new() })
    }

    /// The log-probability of each target (u32 `[B,T]`), in nats: `[B,T]`, 0 where that is [`crate::ops::IGNORE`]. Logits never
    /// exist whole. `starts` as of [`Llama::loss`].
    ///
    /// # Errors
    /// If a shape does not fit.
    pub fn log_probs(
        &self,
        g: &mut Graph,
        params: &Params,
        tokens: Value,
        targets: Value,
        starts: Option<Value>,
    ) -> Result<Value> {
        let (x, _) = self.hidden_from_start(g, params, tokens, starts)?;
        let weight = self.output_weight(g, params)?;
        let op = LinearLogProbs { chunk: None, operands: Operands::F32 };
        g.scope("output", |g| Ok(g.apply(op, &[x, weight, targets])?[0]))
    }

    /// Logits `[B,T,V]` of tokens u32 `[B,T]`, whole: for tests and short texts.
    ///
    /// # Errors
    /// If a shape does not fit.
    pub fn logits(&self, g: &mut Graph, params: &Params, tokens: Value) -> Result<Value> {
        let (x, _) = self.hidden_from_start(g, params, tokens, None)?;
        let weight = self.output_weight(g, params)?;
        g.scope("output", |g| linear(g, x, weight))
    }

    /// What the model says of `targets` (u32 `[R]`), each after the token that `rows` (u32 `[R]`) points at, counted as
    /// b·T + t among tokens u32 `[B,T]`: f32 `[R,3]` of the largest logit, the sum of exp(logit - largest), and the
    /// target's logit. Logits exist for a few rows at a time only.
    ///
    /// # Errors
    /// If a shape does not fit.
    pub fn score(&self, g: &mut Graph, params: &Params, tokens: Value, rows: Value, targets: Value) -> Result<Value> {
        let (count, d) = (g.ty(tokens).shape.elements(), self.config.hidden_size);
        let (x, _) = self.hidden_from_start(g, params, tokens, None)?;
        let weight = self.output_weight(g, params)?;
        g.scope("output", |g| {
            let x = g.reshape(x, [count, d])?;
            let x = g.apply1(Embedding, &[x, rows])?;
            let rows = g.dims(x)[0];
            // By rows and not by words: a chunk of a packed weight would be a view into blocks.
            let chunk = ((16 << 20) / (4 * self.config.vocab_size) / 64 * 64).max(64);
            let (mut parts, mut starts) = (Vec::new(), Vec::new());
            for start in (0..rows).step_by(chunk) {
                let n = chunk.min(rows - start);
                let x = g.apply1(Slice { start: start * d, shape: [n, d].into() }, &[x])?;
                let targets = g.apply1(Slice { start, shape: [n].into() }, &[targets])?;
                let logits = linear(g, x, weight)?;
                parts.push(g.apply1(CrossEntropyUpdate { start: 0 }, &[logits, targets])?);
                starts.push(3 * start);
            }
            let stats = match parts[..] {
                [all] => all,
                _ => g.apply1(Concat { starts, elements: 3 * rows }, &parts)?,
            };
            g.reshape(stats, [rows, 3])
        })
    }

    /// Declares the caches of one graph: states `cache.k.<layer>` and `cache.v.<layer>`, each `[B,S,K,C]` of this
    /// dtype: f32, f16 or q8_0.
    pub fn caches(&self, g: &mut Graph, batch: usize, positions: usize, dtype: DType) -> Vec<KvCache> {
        let c = &self.config;
        let ty = TensorType { shape: [batch, positions, c.num_key_value_heads, c.head_dim].into(), dtype };
        let cache = |layer: usize| KvCache {
            keys: g.state(&format!("cache.k.{layer}"), ty.clone()),
            values: g.state(&format!("cache.v.{layer}"), ty.clone()),
        };
        (0..c.num_hidden_layers).map(cache).collect()
    }

    /// Logits `[N,V]` of some of the tokens u32 `[B,T]`, which stand at `first` (u32 `[1]` or `[B]`) and after it; keys and
    /// values of earlier ones lie in the caches, those of these are added. `rows` u32 `[N]` says which tokens, counted
    /// as b·T + t; without it, all B·T. Tokens that merely fill up T may follow the real ones: later tokens overwrite
    /// what they leave in the caches before anything reads it.
    ///
    /// # Errors
    /// If a shape does not fit.
    pub fn decode(
        &self,
        g: &mut Graph,
        params: &Params,
        tokens: Value,
        first: Value,
        rows: Option<Value>,
        caches: &[KvCache],
    ) -> Result<Value> {
        let positions = caches.first().map_or(1, |cache| g.dims(cache.keys)[1]);
        let (x, _) = self.hidden(g, params, tokens, first, positions, Some(caches))?;
        let weight = self.output_weight(g, params)?;
        let count = g.ty(tokens).shape.elements();
        g.scope("output", |g| {
            let mut x = g.reshape(x, [count, self.config.hidden_size])?;
            if let Some(rows) = rows {
                // Rows of a matrix by number: what an embedding does.
                x = g.apply1(Embedding, &[x, rows])?;
            }
            linear(g, x, weight)
        })
    }

    /// The matrix `[V,D]` that makes logits.
    fn output_weight(&self, g: &mut Graph, params: &Params) -> Result<Value> {
        let weight = params.get(if self.config.tie_word_embeddings { EMBEDDING } else { OUTPUT })?;
        // Trained rows change with every step. Frozen ones are scaled once, as they are loaded (`store::Checkpoint`), but
        // where the matrix is the embedding too.
        let scaled = params.frozen && !self.config.tie_word_embeddings;
        if !self.config.family.unit_head || scaled {
            return Ok(weight);
        }
        // A row of unit length is one of unit root mean square, over the root of its width. Rows of zeros stay zeros.
        let width = self.config.hidden_size;
        let gain = (width as f32).sqrt().recip().to_le_bytes().repeat(width);
        g.scope("output", |g| {
            let gain = g.constant("unit", TensorType::f32([width]), gain);
            rms_norm(g, weight, gain, 1e-24 / width as f64)
        })
    }

    fn hidden_from_start(
        &self,
        g: &mut Graph,
        params: &Params,
        tokens: Value,
        starts: Option<Value>,
    ) -> Result<(Value, Vec<Routing>)> {
        let zero = |g: &mut Graph| g.constant("position", TensorType::u32([1]), 0u32.to_le_bytes().to_vec());
        let first = starts.unwrap_or_else(|| zero(g));
        let time = g.ty(tokens).shape.last();
        self.hidden(g, params, tokens, first, time, None)
    }

    /// The residual stream after the last norm, `[B,T,D]`, and what the routers of layers with experts said.
    fn hidden(
        &self,
        g: &mut Graph,
        params: &Params,
        tokens: Value,
        first: Value,
        positions: usize,
        caches: Option<&[KvCache]>,
    ) -> Result<(Value, Vec<Routing>)> {
        let c = &self.config;
        let turn = c.frequencies(positions);
        let at = Positions::new(g, &turn.inverse, turn.attention, positions, first);
        let mut x = g.apply1(Embedding, &[params.get(EMBEDDING)?, tokens])?;
        let mut routings = Vec::new();
        for layer in 0..c.num_hidden_layers {
            let cache = caches.map(|caches| caches[layer]);
            let (y, routing) = g.scope(format!("layers.{layer}"), |g| self.layer(g, params, layer, x, at, cache))?;
            x = y;
            routings.extend(routing);
        }
        let x = g.scope("norm", |g| rms_norm(g, x, params.get(NORM)?, c.rms_norm_eps))?;
        Ok((x, routings))
    }

    fn layer(
        &self,
        g: &mut Graph,
        params: &Params,
        layer: usize,
        x: Value,
        at: Positions,
        cache: Option<KvCache>,
    ) -> Result<(Value, Option<Routing>)> {
        let c = &self.config;
        let own = Own { params, layer };
        let get = |part: &str| own.get(part);
        let [first, second] = c.norm_names();
        let x = g.scope("attention", |g| {
            let weights = self.attention_weights(own)?;
            let kind = AttentionKind {
                heads: Heads { queries: c.num_attention_heads, keys: c.num_key_value_heads, width: c.head_dim },
                mask: Mask { window: c.layers[layer].window, alibi: c.family.alibi },
                rotary: c.layers[layer].rotary,
                eps: c.rms_norm_eps,
            };
            self.residual(g, x, get(first)?, |g, x| attention(g, x, &weights, kind, at, cache))
        })?;
        g.scope("mlp", |g| {
            let mut routing = None;
            let experts = c.experts.filter(|_| c.layers[layer].sparse);
            let y = self.residual(g, x, get(second)?, |g, x| {
                let Some(experts) = experts else { return mlp(g, x, &self.mlp_weights(own)?) };
                let kind = MoeKind { choices: experts.per_token, normalise: experts.normalise };
                let (y, said) = moe(g, x, &moe_weights(own)?, kind)?;
                routing = Some(said);
                Ok(y)
            })?;
            Ok((y, routing))
        })
    }

    fn mlp_weights(&self, own: Own) -> Result<MlpWeights> {
        let biased = |name| own.linear(name, self.config.biases.mlp);
        Ok(MlpWeights { gate: biased("mlp.gate_proj")?, up: biased("mlp.up_proj")?, down: biased("mlp.down_proj")? })
    }

    fn attention_weights(&self, own: Own) -> Result<AttentionWeights> {
        let (biases, normed) = (self.config.biases, self.config.qk_norm() != QkNorm::Never);
        let gain = |name| normed.then(|| own.get(name)).transpose();
        Ok(AttentionWeights {
            q: own.linear("self_attn.q_proj", biases.qkv)?,
            k: own.linear("self_attn.k_proj", biases.qkv)?,
            v: own.linear("self_attn.v_proj", biases.qkv)?,
            o: own.linear("self_attn.o_proj", biases.output)?,
            q_norm: gain("self_attn.q_norm.weight")?,
            k_norm: gain("self_attn.k_norm.weight")?,
        })
    }

    /// x + block(norm(x)), or x + norm(block(x)).
    fn residual(
        &self,
        g: &mut Graph,
        x: Value,
        gain: Value,
        block: impl FnOnce(&mut Graph, Value) -> Result<Value>,
    ) -> Result<Value> {
        let eps = self.config.rms_norm_eps;
        let y = match self.config.norms() {
            Norms::Before => {
                let y = rms_norm(g, x, gain, eps)?;
                block(g, y)?
            }
            Norms::After => {
                let y = block(g, x)?;
                rms_norm(g, y, gain, eps)?
            }
        };
        g.add(x, y)
    }
}

/// The parameters of one layer.
#[derive(Clone, Copy)]
struct Own<'a> {
    params: &'a Params,
    layer: usize,
}

impl Own<'_> {
    fn name(&self, part: &str) -> String {
        format!("model.layers.{}.{part}", self.layer)
    }

    fn get(&self, part: &str) -> Result<Value> {
        self.params.get(&self.name(part))
    }

    fn linear(&self, part: &str, bias: bool) -> Result<Linear> {
        self.params.linear(&self.name(part), bias)
    }
}

/// The experts of a layer, each matrix for all of them.
fn moe_weights(own: Own) -> Result<MoeWeights> {
    Ok(MoeWeights {
        router: own.get("mlp.gate.weight")?,
        gate: own.get("mlp.experts.gate_proj.weight")?,
        up: own.get("mlp.experts.up_proj.weight")?,
        down: own.get("mlp.experts.down_proj.weight")?,
    })
}

#[cfg(test)]
#[path = "llama_tests.rs"]
mod tests;
