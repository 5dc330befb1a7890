//! Sizes and constants of a LLaMA, and the config.json that Hugging Face's `transformers` opens. Reading one, with all
//! that can be wrong in it, is in `parse.rs`.

use serde::Serialize;

/// A LLaMA's configuration; the names are those of Hugging Face's `LlamaConfig`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelConfig {
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
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
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
    /// H·C: width of all query heads together.
    pub fn query_size(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// K·C: width of all key heads together.
    pub fn key_value_size(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }

    /// Weights in all matrices of one layer.
    pub fn layer_matrix_parameters(&self) -> u64 {
        let attention = 2 * self.hidden_size * (self.query_size() + self.key_value_size());
        (attention + 3 * self.hidden_size * self.intermediate_size) as u64
    }

    /// Number of parameters; a tied output projection counts once.
    pub fn parameters(&self) -> u64 {
        let layer = self.layer_matrix_parameters() + 2 * self.hidden_size as u64;
        let tables = if self.tie_word_embeddings { 1 } else { 2 } * self.vocab_size * self.hidden_size;
        self.num_hidden_layers as u64 * layer + (tables + self.hidden_size) as u64
    }

    /// Floating-point operations of one trained token in a sequence of `seq`: six for every weight that is multiplied
    /// (Kaplan et al., 2020, §2.1), and the causal half of the two products of attention, forward once and backward
    /// twice.
    pub fn train_flops_per_token(&self, seq: usize) -> u64 {
        3 * self.forward_flops_per_token(seq)
    }

    /// Floating-point operations of the forward pass for one token in a sequence of `seq`.
    pub fn forward_flops_per_token(&self, seq: usize) -> u64 {
        let layers = self.num_hidden_layers as u64;
        let weights = layers * self.layer_matrix_parameters() + (self.vocab_size * self.hidden_size) as u64;
        2 * weights + layers * 2 * (self.query_size() as u64) * (seq as u64 + 1)
    }

    /// This configuration as a config.json for `transformers`. `rope_theta` stands both where version 5 looks for it
    /// and where version 4 does.
    pub fn to_json(&self) -> String {
        let eos = match self.eos_token_ids.as_slice() {
            [] => serde_json::Value::Null,
            [one] => (*one).into(),
            many => many.into(),
        };
        let json = serde_json::json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": self.max_position_embeddings,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "rope_parameters": {"rope_theta": self.rope_theta, "rope_type": "default"},
            "tie_word_embeddings": self.tie_word_embeddings,
            "hidden_act": "silu",
            "attention_bias": false,
            "mlp_bias": false,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": eos,
            "initializer_range": self.initializer_range,
            "torch_dtype": "float32",
        });
        serde_json::to_string_pretty(&json).expect("numbers, strings and lists always become JSON") + "\n"
    }

    /// The generation_config.json that goes with it.
    pub fn generation_json(&self) -> String {
        let json = serde_json::json!({
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_token_ids,
            "max_length": self.max_position_embeddings,
            "do_sample": true,
        });
        serde_json::to_string_pretty(&json).expect("numbers and lists always become JSON") + "\n"
    }
}
