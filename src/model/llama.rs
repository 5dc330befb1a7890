//! LLaMA (Touvron et al., 2023) as a graph for one device. Legend: B batch, T time, S positions of the cache, D model
//! width, H query heads, K kv heads, C head width, F feed-forward width, V vocabulary.

use super::{ModelConfig, Source};
use crate::base::TensorType;
use crate::error::Result;
use crate::graph::{Graph, Value};
use crate::nn::{
    AttentionWeights, Heads, Init, KvCache, MlpWeights, ParamSpec, Params, Positions, attention, linear, mlp, rms_norm,
};
use crate::ops::{Embedding, LinearCrossEntropy};

const EMBEDDING: &str = "model.embed_tokens.weight";
const OUTPUT: &str = "lm_head.weight";

/// A LLaMA: what parameters it has, and what it computes.
#[derive(Debug, Clone, PartialEq)]
pub struct Llama {
    config: ModelConfig,
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

    /// Its parameters under Hugging Face's names. Matrices are decayed and drawn from a normal distribution with the
    /// configuration's deviation, as `transformers` does; gains are one.
    pub fn param_specs(&self) -> Vec<ParamSpec> {
        let c = &self.config;
        let std = c.initializer_range;
        let matrix = |name: String, rows: usize, columns: usize| ParamSpec {
            name,
            shape: [rows, columns].into(),
            decay: true,
            init: Init::Normal(std),
        };
        let gain = |name: String| ParamSpec { name, shape: [c.hidden_size].into(), decay: false, init: Init::Ones };
        let (d, f) = (c.hidden_size, c.intermediate_size);
        let mut specs = vec![matrix(EMBEDDING.into(), c.vocab_size, d)];
        for layer in 0..c.num_hidden_layers {
            let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
            specs.extend([
                gain(name("input_layernorm")),
                matrix(name("self_attn.q_proj"), c.query_size(), d),
                matrix(name("self_attn.k_proj"), c.key_value_size(), d),
                matrix(name("self_attn.v_proj"), c.key_value_size(), d),
                matrix(name("self_attn.o_proj"), d, c.query_size()),
                gain(name("post_attention_layernorm")),
                matrix(name("mlp.gate_proj"), f, d),
                matrix(name("mlp.up_proj"), f, d),
                matrix(name("mlp.down_proj"), d, f),
            ]);
        }
        specs.push(gain("model.norm.weight".into()));
        if !c.tie_word_embeddings {
            specs.push(matrix(OUTPUT.into(), c.vocab_size, d));
        }
        specs
    }

    /// Where a Hugging Face folder of this family keeps a parameter of [`Llama::param_specs`].
    pub fn sources(&self, name: &str) -> Vec<Source> {
        vec![Source::whole(name)]
    }

    /// Mean cross-entropy, in nats, of tokens u32 `[B,T]` against targets u32 `[B,T]` (each the token that follows, or
    /// [`crate::ops::IGNORE`]): `[1]`. Logits never exist whole.
    ///
    /// # Errors
    /// If a shape does not fit.
    pub fn loss(&self, g: &mut Graph, params: &Params, tokens: Value, targets: Value) -> Result<Value> {
        let rows = g.ty(tokens).shape.elements();
        let x = self.hidden_from_start(g, params, tokens)?;
        let chunk = LinearCrossEntropy::chunk_for(rows);
        let weight = self.output_weight(params)?;
        g.scope("output", |g| Ok(g.apply(LinearCrossEntropy { chunk }, &[x, weight, targets])?[0]))
    }

    /// Logits `[B,T,V]` of tokens u32 `[B,T]`, whole: for tests and short texts.
    ///
    /// # Errors
    /// If a shape does not fit.
    pub fn logits(&self, g: &mut Graph, params: &Params, tokens: Value) -> Result<Value> {
        let x = self.hidden_from_start(g, params, tokens)?;
        let weight = self.output_weight(params)?;
        g.scope("output", |g| linear(g, x, weight))
    }

    /// Declares the caches of one graph: states `cache.k.<layer>` and `cache.v.<layer>`, each `[B,S,K,C]`.
    pub fn caches(&self, g: &mut Graph, batch: usize, positions: usize) -> Vec<KvCache> {
        let c = &self.config;
        let ty = TensorType::f32([batch, positions, c.num_key_value_heads, c.head_dim]);
        let cache = |layer: usize| KvCache {
            keys: g.state(&format!("cache.k.{layer}"), ty.clone()),
            values: g.state(&format!("cache.v.{layer}"), ty.clone()),
        };
        (0..c.num_hidden_layers).map(cache).collect()
    }

    /// Logits `[N,V]` of some of the tokens u32 `[B,T]`, which stand at `first` (u32 `[1]`) and after it; keys and
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
        let x = self.hidden(g, params, tokens, first, positions, Some(caches))?;
        let weight = self.output_weight(params)?;
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
    fn output_weight(&self, params: &Params) -> Result<Value> {
        params.get(if self.config.tie_word_embeddings { EMBEDDING } else { OUTPUT })
    }

    fn hidden_from_start(&self, g: &mut Graph, params: &Params, tokens: Value) -> Result<Value> {
        let first = g.constant("position", TensorType::u32([1]), 0u32.to_le_bytes().to_vec());
        let time = g.ty(tokens).shape.last();
        self.hidden(g, params, tokens, first, time, None)
    }

    /// The residual stream after the last norm, `[B,T,D]`.
    fn hidden(
        &self,
        g: &mut Graph,
        params: &Params,
        tokens: Value,
        first: Value,
        positions: usize,
        caches: Option<&[KvCache]>,
    ) -> Result<Value> {
        let c = &self.config;
        let at = Positions::new(g, c.rope_theta, c.head_dim, positions, first);
        let mut x = g.apply1(Embedding, &[params.get(EMBEDDING)?, tokens])?;
        for layer in 0..c.num_hidden_layers {
            let cache = caches.map(|caches| caches[layer]);
            x = g.scope(format!("layers.{layer}"), |g| self.layer(g, params, layer, x, at, cache))?;
        }
        g.scope("norm", |g| rms_norm(g, x, params.get("model.norm.weight")?, c.rms_norm_eps))
    }

    fn layer(
        &self,
        g: &mut Graph,
        params: &Params,
        layer: usize,
        x: Value,
        at: Positions,
        cache: Option<KvCache>,
    ) -> Result<Value> {
        let c = &self.config;
        let weight = |part: &str| params.get(&format!("model.layers.{layer}.{part}.weight"));
        let heads = Heads { queries: c.num_attention_heads, keys: c.num_key_value_heads, width: c.head_dim };
        let attention_weights = AttentionWeights {
            q: weight("self_attn.q_proj")?,
            k: weight("self_attn.k_proj")?,
            v: weight("self_attn.v_proj")?,
            o: weight("self_attn.o_proj")?,
        };
        let mlp_weights =
            MlpWeights { gate: weight("mlp.gate_proj")?, up: weight("mlp.up_proj")?, down: weight("mlp.down_proj")? };
        let x = g.scope("attention", |g| {
            let y = rms_norm(g, x, weight("input_layernorm")?, c.rms_norm_eps)?;
            let y = attention(g, y, &attention_weights, heads, at, cache)?;
            g.add(x, y)
        })?;
        g.scope("mlp", |g| {
            let y = rms_norm(g, x, weight("post_attention_layernorm")?, c.rms_norm_eps)?;
            let y = mlp(g, y, &mlp_weights)?;
            g.add(x, y)
        })
    }
}

#[cfg(test)]
#[path = "llama_tests.rs"]
mod tests;
