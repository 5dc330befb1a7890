//! Sizes, switches and constants of a model. Reading them from a config.json, with all that can be wrong in it, is in
//! `parse.rs`, writing them in `write.rs`.

use super::family::{Family, Norms, QkNorm};
use super::rope::{Frequencies, RopeConfig};
use crate::error::{Error, Result};
use serde::Serialize;

/// More parameters than any model has; with fewer, the bytes and operations that plans count stay within 64 bits.
pub const MOST_PARAMETERS: u64 = 1 << 44;

/// Which linear layers have biases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Biases {
    /// Those of queries, keys and values.
    pub qkv: bool,
    /// The one behind attention.
    pub output: bool,
    /// All three of the feed-forward block.
    pub mlp: bool,
}

/// Switches of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct LayerConfig {
    /// True where queries and keys are turned to their positions.
    pub rotary: bool,
    /// How many tokens a token sees at most, itself among them.
    pub window: Option<usize>,
    /// True where experts stand in place of the feed-forward block.
    pub sparse: bool,
}

/// The experts of the layers that have some.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Experts {
    /// How many there are.
    pub count: usize,
    /// How many a token visits.
    pub per_token: usize,
    /// Width inside each.
    pub intermediate_size: usize,
    /// True where the weights of those visited are made to sum to one.
    pub normalise: bool,
    /// How much of their balance (`nn::load_balancing_loss`) is part of the loss: `router_aux_loss_coef` where
    /// `output_router_logits` is set, as `transformers` has it, and else 0.
    pub balance: f64,
    /// How much of `nn::router_z_loss` is: `router_z_loss_coef`, and else 0.
    pub z: f64,
}

/// A model's configuration; the names of sizes are those of Hugging Face's `LlamaConfig`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelConfig {
    /// The row of the table that it belongs to.
    pub family: &'static Family,
    /// V: number of token ids.
    pub vocab_size: usize,
    /// D: width of the residual stream.
    pub hidden_size: usize,
    /// F: width inside the feed-forward block.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// H: query heads.
    pub num_attention_heads: usize,
    /// K: key and value heads; divides H.
    pub num_key_value_heads: usize,
    /// C: width of one head, a multiple of 4 up to 256. H·C need not be D.
    pub head_dim: usize,
    /// Longest sequence that the model is meant for.
    pub max_position_embeddings: usize,
    /// Added to the mean square before its root is taken.
    pub rms_norm_eps: f64,
    /// The rotary embedding.
    pub rope: RopeConfig,
    /// Switches of every layer.
    pub layers: Vec<LayerConfig>,
    /// Which linear layers have biases.
    pub biases: Biases,
    /// The experts, where layers are sparse.
    pub experts: Option<Experts>,
    /// True where the output projection is the embedding itself.
    pub tie_word_embeddings: bool,
    /// First token of every text, where the tokenizer has one.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a text.
    pub eos_token_ids: Vec<u32>,
    /// Standard deviation of fresh weights.
    pub initializer_range: f64,
}

impl ModelConfig {
    /// Refuses tokens that the model has no embedding for: the device would take zeros for them.
    ///
    /// # Errors
    /// A sentence that names the first of them.
    pub fn check_tokens(&self, tokens: &[u32]) -> Result<()> {
        match tokens.iter().find(|&&token| token as usize >= self.vocab_size) {
            None => Ok(()),
            Some(token) => Err(Error::Invalid(format!(
                "the text holds token {token}, and the model knows {}: tokenizer and model are not of one kind",
                self.vocab_size
            ))),
        }
    }

    /// H·C: width of all query heads together.
    pub fn query_size(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// K·C: width of all key heads together.
    pub fn key_value_size(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }

    /// Norm of queries and keys.
    pub fn qk_norm(&self) -> QkNorm {
        self.family.qk_norm
    }

    /// Where the norms of a layer stand.
    pub fn norms(&self) -> Norms {
        self.family.norms
    }

    /// Number of parameters; a tied output projection counts once. Of a configuration that was read it is at most
    /// [`MOST_PARAMETERS`].
    pub fn parameters(&self) -> u64 {
        u64::try_from(self.counted_parameters()).unwrap_or(u64::MAX)
    }

    /// The same for sizes of which nothing is known yet but that each is one that is believed.
    pub(super) fn counted_parameters(&self) -> u128 {
        self.param_specs().iter().map(|spec| spec.shape.elements() as u128).sum()
    }

    /// Rotary frequencies of plans for texts of up to `planned` tokens.
    pub fn frequencies(&self, planned: usize) -> Frequencies {
        self.rope.frequencies(planned, self.max_position_embeddings)
    }

    /// The same model with the rotary frequencies of texts of `length` tokens, however long those are that it sees: training has rows of
    /// several lengths, of which each would otherwise train another function of the same weights.
    #[must_use]
    pub fn turned_for(&self, length: usize) -> ModelConfig {
        ModelConfig { rope: self.rope.turned_for(length, self.max_position_embeddings), ..self.clone() }
    }

    /// Tokens of the longest text that the model is meant for: `max_position_embeddings`, or what scaled positions make
    /// of it.
    pub fn max_context(&self) -> usize {
        self.rope.max_context(self.max_position_embeddings)
    }

    /// Weights by which one token is multiplied in a layer.
    fn layer_matrix_parameters(&self, sparse: bool) -> u128 {
        let attention = 2 * self.hidden_size * (self.query_size() + self.key_value_size());
        let mlp = match self.experts.filter(|_| sparse) {
            Some(e) => self.hidden_size * (e.count + 3 * e.per_token * e.intermediate_size),
            None => 3 * self.hidden_size * self.intermediate_size,
        };
        (attention + mlp) as u128
    }

    /// Floating-point operations of one trained token in a sequence of `seq`: six for every weight that is multiplied
    /// (Kaplan et al., 2020, §2.1), and the causal half of the two products of attention, forward once and backward
    /// twice. 128 bits hold it for every sequence.
    pub fn train_flops_per_token(&self, seq: usize) -> u128 {
        3 * self.forward_flops_per_token(seq)
    }

    /// Floating-point operations of the forward pass for one token in a sequence of `seq`.
    pub fn forward_flops_per_token(&self, seq: usize) -> u128 {
        let output = (self.vocab_size * self.hidden_size) as u128;
        let layer = |layer: &LayerConfig| {
            // Pairs of query and key of the average token, twice: once for scores, once for values.
            let seen = layer.window.map_or(seq, |window| window.min(seq)) as u128;
            let pairs = 2 * seen - seen * seen.saturating_sub(1) / (seq as u128).max(1);
            2 * self.layer_matrix_parameters(layer.sparse) + 2 * (self.query_size() as u128) * pairs
        };
        2 * output + self.layers[..self.num_hidden_layers].iter().map(layer).sum::<u128>()
    }
}
