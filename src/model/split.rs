//! What of a model's parameters a rank of a mesh has, and the graph of its loss. The model itself is not asked
//! (`parallel/tensor.rs` takes its graph apart).

use super::specs::{EMBEDDING, OUTPUT};
use super::{Llama, ModelConfig, QkNorm};
use crate::base::Axis;
use crate::error::{Error, Result};
use crate::graph::{Graph, Value};
use crate::nn::{Held, ParamSpec, Params, Parts};
use crate::ops::Along;
use crate::parallel::{Given, Mesh, Placement, SequenceAxis, TensorAxis};

/// Layers of which each rank makes its own columns of the result: rows of the weight, and of the bias.
const COLUMNS: [&str; 5] = ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"];
/// Layers of which each rank takes its own columns of the input: columns of the weight; all have the bias.
const ROWS: [&str; 2] = ["o_proj", "down_proj"];

/// Which dim of a parameter is in parts along the tensor axis.
fn dim(name: &str) -> Option<usize> {
    if name == EMBEDDING || name == OUTPUT {
        return Some(0);
    }
    let (layer, kind) = name.rsplit_once('.')?;
    let layer = layer.rsplit('.').next()?;
    match kind {
        _ if name.contains(".experts.") => None,
        "weight" | "bias" if COLUMNS.contains(&layer) => Some(0),
        "weight" if ROWS.contains(&layer) => Some(1),
        _ => None,
    }
}

impl ModelConfig {
    /// What a rank of a mesh has of the model's parameters. Along the tensor axis: of queries, keys, values, gate and up its rows,
    /// of output and down its columns, of embedding and output projection its words; where the vocabulary cannot be
    /// divided, all of them. Experts are whole on all ranks.
    ///
    /// # Errors
    /// A sentence, if heads or feed-forward cannot be divided, or heads are not alike.
    pub fn parts(&self, mesh: Mesh, rank: usize) -> Result<Parts> {
        self.check_tensor(mesh.tensor)?;
        let words = self.vocab_size.is_multiple_of(mesh.tensor);
        let held = |spec: &ParamSpec| {
            let dim = dim(&spec.name).filter(|_| words || (spec.name != EMBEDDING && spec.name != OUTPUT));
            dim.filter(|_| mesh.tensor > 1).map_or(Held::default(), |dim| Held::default().split(dim, Axis::Tensor))
        };
        Ok(Parts::new(self.param_specs(), mesh, rank, held))
    }

    fn check_tensor(&self, n: usize) -> Result<()> {
        if n == 1 {
            return Ok(());
        }
        let wrong = |what: String| {
            Error::Invalid(format!("the mesh has tensor={n}, and {what}; choose another size for that axis"))
        };
        for (what, count) in [
            ("query heads", self.num_attention_heads),
            ("key and value heads", self.num_key_value_heads),
            ("columns of its feed-forward layers", self.intermediate_size),
        ] {
            if !count.is_multiple_of(n) {
                return Err(wrong(format!(
                    "the model has {count} {what}, which {n} ranks cannot share in equal parts"
                )));
            }
        }
        if self.family.alibi {
            return Err(wrong("the model's heads see distances by slopes of their own (ALiBi)".into()));
        }
        if self.qk_norm() == QkNorm::Full {
            return Err(wrong("the model norms its queries over all heads at once".into()));
        }
        Ok(())
    }
}

impl Llama {
    /// [`Llama::loss_and_count`] as one rank computes it, whose parameters are `parts` of the model's; the same on all ranks.
    /// Between blocks each rank has a part of the tokens, where they can be divided. Where the mesh has a
    /// sequence axis, the tokens are those of [`Llama::loss_of_tokens`].
    ///
    /// # Errors
    /// If a shape does not fit, or an operator cannot be split.
    pub fn loss_of_parts(
        &self,
        g: &mut Graph,
        params: &Params,
        parts: &Parts,
        [tokens, targets]: [Value; 2],
        starts: Option<Value>,
    ) -> Result<[Value; 2]> {
        let along = Along { axis: Axis::Tensor, ranks: parts.mesh.tensor };
        let mut whole = Graph::new();
        let layout = parts.whole_layout();
        let all = layout.declare(&mut whole)?;
        let mut given = Vec::new();
        for spec in layout.specs() {
            let (whole, own) = (all.get(&spec.name)?, params.get(&spec.name)?);
            given.push(Given { whole, own, placement: parts.placement(&spec.name, &spec.shape, along.axis) });
        }
        let mut input = |own: Value| {
            let at = whole.input(&g.node(own.node).name, g.ty(own).clone());
            given.push(Given { whole: at, own, placement: Placement::Same });
            at
        };
        let (tokens_, targets_, starts_) = (input(tokens), input(targets), starts.map(input));
        let sequence = SequenceAxis::of(parts.mesh, parts.rank);
        let both = self.loss_of_tokens(&mut whole, (&layout, &all), sequence, [tokens_, targets_], starts_)?;
        both.iter().for_each(|value| whole.output("", *value));
        let split_tokens = parts.held(EMBEDDING).dim(along.axis).is_some()
            && self.config().experts.is_none()
            && g.dims(tokens)[1].is_multiple_of(along.ranks);
        let axis = TensorAxis { along, rank: parts.mesh.place(parts.rank, along.axis), split_tokens };
        let outputs = axis.apply(&whole, g, &given)?;
        Ok([outputs[0], outputs[1]])
    }
}
