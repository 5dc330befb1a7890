//! The parameters of a model: their names and shapes, and where a family's own files keep them. Names are those of
//! Hugging Face's LLaMA, also where a family packs several parameters into one tensor.

use super::{ExpertRule, Experts, ModelConfig, Norms, QkNorm, Source};
use crate::nn::{Init, ParamSpec};
use std::collections::BTreeMap;
use std::ops::Range;

/// The embedding `[V,D]`.
pub const EMBEDDING: &str = "model.embed_tokens.weight";
/// The output projection `[V,D]`, where it is not the embedding.
pub const OUTPUT: &str = "lm_head.weight";
/// The gain `[D]` of the last norm.
pub(super) const NORM: &str = "model.norm.weight";
/// The router of a layer's experts.
const ROUTER: &str = "mlp.gate.weight";
/// What Mixtral calls its block of experts.
const MIXTRAL: &str = "block_sparse_moe.";

impl ModelConfig {
    /// The parameters under their canonical names. Matrices are decayed and drawn from a normal distribution with the
    /// configuration's deviation, as `transformers` does; gains are one, biases zero.
    pub fn param_specs(&self) -> Vec<ParamSpec> {
        let (d, v) = (self.hidden_size, self.vocab_size);
        let mut specs = vec![self.matrix(EMBEDDING.into(), v, d)];
        for layer in 0..self.num_hidden_layers {
            let first = specs.len();
            self.attention_specs(&mut specs);
            specs.push(gain(self.norm_names()[1], d));
            match self.experts.filter(|_| self.layers[layer].sparse) {
                Some(experts) => self.expert_specs(&mut specs, &experts),
                None => self.mlp_specs(&mut specs),
            }
            for spec in &mut specs[first..] {
                spec.name = format!("model.layers.{layer}.{}", spec.name);
            }
        }
        specs.push(gain(NORM, d));
        if !self.tie_word_embeddings {
            specs.push(self.matrix(OUTPUT.into(), v, d));
        }
        specs
    }

    /// Names of the gains `[D]` of one layer's two norms.
    pub(super) fn norm_names(&self) -> [&'static str; 2] {
        match self.norms() {
            Norms::Before => ["input_layernorm.weight", "post_attention_layernorm.weight"],
            Norms::After => ["post_attention_layernorm.weight", "post_feedforward_layernorm.weight"],
        }
    }

    fn attention_specs(&self, specs: &mut Vec<ParamSpec>) {
        let (d, c, q, k) = (self.hidden_size, self.head_dim, self.query_size(), self.key_value_size());
        specs.push(gain(self.norm_names()[0], d));
        self.linear(specs, "self_attn.q_proj", [q, d], self.biases.qkv);
        self.linear(specs, "self_attn.k_proj", [k, d], self.biases.qkv);
        self.linear(specs, "self_attn.v_proj", [k, d], self.biases.qkv);
        self.linear(specs, "self_attn.o_proj", [d, q], self.biases.output);
        let widths = match self.qk_norm() {
            QkNorm::Never => return,
            QkNorm::Head => [c, c],
            QkNorm::Full => [q, k],
        };
        specs.push(gain("self_attn.q_norm.weight", widths[0]));
        specs.push(gain("self_attn.k_norm.weight", widths[1]));
    }

    fn mlp_specs(&self, specs: &mut Vec<ParamSpec>) {
        let (d, f) = (self.hidden_size, self.intermediate_size);
        self.linear(specs, "mlp.gate_proj", [f, d], self.biases.mlp);
        self.linear(specs, "mlp.up_proj", [f, d], self.biases.mlp);
        self.linear(specs, "mlp.down_proj", [d, f], self.biases.mlp);
    }

    /// The router `[E,D]`, and the matrices of all experts in one, `[E,F,D]` or `[E,D,F]`.
    fn expert_specs(&self, specs: &mut Vec<ParamSpec>, experts: &Experts) {
        let (d, e, f) = (self.hidden_size, experts.count, experts.intermediate_size);
        specs.push(self.matrix(ROUTER.into(), e, d));
        for (name, rows, columns) in [("gate_proj", f, d), ("up_proj", f, d), ("down_proj", d, f)] {
            let name = format!("mlp.experts.{name}.weight");
            specs.push(ParamSpec { shape: [e, rows, columns].into(), ..self.matrix(name, rows, columns) });
        }
    }

    fn linear(&self, specs: &mut Vec<ParamSpec>, name: &str, [rows, columns]: [usize; 2], bias: bool) {
        specs.push(self.matrix(format!("{name}.weight"), rows, columns));
        if bias {
            specs.push(ParamSpec {
                name: format!("{name}.bias"),
                shape: [rows].into(),
                decay: false,
                init: Init::Zeros,
            });
        }
    }

    fn matrix(&self, name: String, rows: usize, columns: usize) -> ParamSpec {
        ParamSpec { name, shape: [rows, columns].into(), decay: true, init: Init::Normal(self.initializer_range) }
    }

    /// Where a parameter lies in files of this model's family: pieces that are its rows in order.
    pub fn sources(&self, name: &str) -> Vec<Source> {
        self.expert_sources(name)
            .or_else(|| self.packed_source(name).map(|source| vec![source]))
            .unwrap_or_else(|| vec![Source::whole(name)])
    }

    /// One tensor an expert, and the router.
    fn expert_sources(&self, name: &str) -> Option<Vec<Source>> {
        let experts = self.experts?;
        let (layer, rest) = split_layer(name)?;
        let mixtral = self.family.experts == ExpertRule::Mixtral;
        if rest == ROUTER {
            return Some(vec![Source::whole(if mixtral {
                format!("{layer}{MIXTRAL}gate.weight")
            } else {
                name.into()
            })]);
        }
        let part = rest.strip_prefix("mlp.experts.")?;
        let own = |expert| match part {
            _ if !mixtral => format!("{layer}mlp.experts.{expert}.{part}"),
            "gate_proj.weight" => format!("{layer}{MIXTRAL}experts.{expert}.w1.weight"),
            "up_proj.weight" => format!("{layer}{MIXTRAL}experts.{expert}.w3.weight"),
            _ => format!("{layer}{MIXTRAL}experts.{expert}.w2.weight"),
        };
        Some((0..experts.count).map(|expert| Source::whole(own(expert))).collect())
    }

    /// Where a folder keeps a parameter of a layer's experts that `transformers` 5 wrote in its own form: all experts
    /// stacked, gate and up of each in one.
    pub fn stacked_sources(&self, name: &str) -> Option<Vec<Source>> {
        let experts = self.experts?;
        let (layer, rest) = split_layer(name)?;
        let f = experts.intermediate_size;
        let halves = |first: usize| {
            let part = |expert| 2 * f * expert + first..2 * f * expert + first + f;
            let tensor = format!("{layer}mlp.experts.gate_up_proj");
            (0..experts.count).map(|expert| Source::rows(tensor.clone(), part(expert))).collect()
        };
        match rest {
            ROUTER => Some(vec![Source::whole(name)]),
            "mlp.experts.gate_proj.weight" => Some(halves(0)),
            "mlp.experts.up_proj.weight" => Some(halves(f)),
            "mlp.experts.down_proj.weight" => Some(vec![Source::whole(format!("{layer}mlp.experts.down_proj"))]),
            _ => None,
        }
    }

    /// The linear layers that this family's files pack into one, by its name: each part, in their order, with the rows that it is.
    pub fn packed_layers(&self) -> BTreeMap<String, Vec<(String, Range<usize>)>> {
        let mut layers: BTreeMap<String, Vec<(String, Range<usize>)>> = BTreeMap::new();
        for spec in self.param_specs() {
            let source = self.packed_source(&spec.name).filter(|_| spec.shape.rank() == 2);
            let rows =
                source.and_then(|source| Some((source.tensor.strip_suffix(".weight")?.to_string(), source.rows?)));
            if let (Some((layer, rows)), Some(part)) = (rows, spec.name.strip_suffix(".weight")) {
                layers.entry(layer).or_default().push((part.into(), rows));
            }
        }
        layers.values_mut().for_each(|parts| parts.sort_by_key(|(_, rows)| rows.start));
        layers
    }

    /// The rows of a packed tensor that are this parameter.
    fn packed_source(&self, name: &str) -> Option<Source> {
        // "model.layers.7." + "self_attn.q_proj" + "." + "weight"
        let (layer, rest) = split_layer(name)?;
        let (part, kind) = rest.rsplit_once('.')?;
        let packed = self.family.packed.iter().find(|packed| packed.parts.contains(&part))?;
        let before = packed.parts.iter().take_while(|p| **p != part).map(|p| self.rows(p)).sum::<usize>();
        let tensor = format!("{layer}{}.{kind}", packed.stored);
        Some(Source::rows(tensor, before..before + self.rows(part)))
    }

    /// Rows of a linear layer that some family packs.
    fn rows(&self, part: &str) -> usize {
        match part {
            "self_attn.q_proj" => self.query_size(),
            "self_attn.k_proj" | "self_attn.v_proj" => self.key_value_size(),
            _ => self.intermediate_size,
        }
    }
}

fn gain(name: &str, width: usize) -> ParamSpec {
    ParamSpec { name: name.into(), shape: [width].into(), decay: false, init: Init::Ones }
}

/// The number of the layer that a parameter is of.
pub(super) fn layer_of(name: &str) -> Option<usize> {
    split_layer(name)?.0.strip_prefix("model.layers.")?.trim_end_matches('.').parse().ok()
}

/// `model.layers.7.rest` as `model.layers.7.` and `rest`.
fn split_layer(name: &str) -> Option<(&str, &str)> {
    let rest = name.strip_prefix("model.layers.")?;
    let dot = rest.find('.')?;
    Some(name.split_at(name.len() - rest.len() + dot + 1))
}
