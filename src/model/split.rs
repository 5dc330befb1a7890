//! What of a model's parameters a rank of a mesh has, and the graph of its loss. The model itself is not asked
//! (`parallel/tensor.rs` takes its graph apart).

use super::sequence::Says;
use super::specs::{EMBEDDING, OUTPUT};
use super::{Llama, ModelConfig, QkNorm, Said};
use crate::base::{Axis, Shape};
use crate::error::{Error, Result};
use crate::graph::{Graph, Value};
use crate::nn::{Declare, Held, ParamSpec, Params, Parts};
use crate::ops::Along;
use crate::parallel::{ExpertAxis, Given, Mesh, OfRank, Placement, SequenceAxis, TensorAxis};
use std::collections::HashMap;

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
    /// divided, all of them. Along the expert axis: of experts its own, which are whole along the tensor axis.
    ///
    /// # Errors
    /// A sentence, if heads, feed-forward or experts cannot be divided, or heads are not alike.
    pub fn parts(&self, mesh: Mesh, rank: usize) -> Result<Parts> {
        self.interleaved_parts(mesh, 1, rank)
    }

    /// The same where each rank of the pipeline axis has so many stages ([`ModelConfig::stages`]): of a layer the ranks of its stage
    /// have something, of embedding and output those of the ends.
    ///
    /// # Errors
    /// As [`ModelConfig::parts`] and [`ModelConfig::stages`].
    pub fn interleaved_parts(&self, mesh: Mesh, each: usize, rank: usize) -> Result<Parts> {
        self.check_mesh(mesh, each)?;
        let stages = (mesh.pipeline > 1).then(|| self.stages(mesh.pipeline * each)).transpose()?;
        let words = self.vocab_size.is_multiple_of(mesh.tensor);
        let held = |spec: &ParamSpec| {
            let dim = dim(&spec.name).filter(|_| words || (spec.name != EMBEDDING && spec.name != OUTPUT));
            let held = match dim {
                _ if spec.is_expert() && mesh.expert > 1 => Held::default().split(0, Axis::Expert),
                Some(dim) if mesh.tensor > 1 => Held::default().split(dim, Axis::Tensor),
                _ => Held::default(),
            };
            match &stages {
                Some(stages) => held.at(stages.of(&spec.name).into_iter().map(|stage| stage % mesh.pipeline)),
                None => held,
            }
        };
        Ok(Parts::new(self.param_specs(), mesh, rank, held))
    }

    /// Refuses a mesh over which this model cannot be split, each rank of whose pipeline axis has so many stages. Without a list of
    /// parameters: the planner asks of every mesh that it tries.
    ///
    /// # Errors
    /// A sentence with the axis, and what cannot be divided.
    pub fn check_mesh(&self, mesh: Mesh, each: usize) -> Result<()> {
        self.check_tensor(mesh.tensor)?;
        self.check_experts(mesh.expert)?;
        if mesh.sequence > 1 && self.family.alibi {
            return Err(Error::Invalid(format!(
                "the mesh has sequence={}, and the model's heads see distances by slopes of their own (ALiBi); leave that axis out",
                mesh.sequence
            )));
        }
        if mesh.pipeline > 1 { self.check_stages(mesh.pipeline * each) } else { Ok(()) }
    }

    fn check_experts(&self, n: usize) -> Result<()> {
        let count = self.experts.map_or(0, |experts| experts.count);
        if n == 1 || (count > 0 && count.is_multiple_of(n)) {
            return Ok(());
        }
        Err(Error::Invalid(match count {
            0 => format!("the mesh has expert={n}, and the model has no experts; leave that axis out"),
            _ => format!(
                "the mesh has expert={n}, and the model has {count} experts, which {n} ranks cannot share in equal parts; choose \
                 another size for that axis"
            ),
        }))
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

/// What of the work one rank does.
#[derive(Debug, Clone, Copy)]
pub struct Share {
    /// The mesh that it is of.
    pub mesh: Mesh,
    /// Which tokens of each row it has, if not all.
    pub sequence: Option<SequenceAxis>,
    /// Of experts in parts: [`ExpertAxis::capacity`].
    pub capacity: Option<f64>,
}

/// A graph of a loss that a pass takes apart: its parameters, in which nothing is computed, and its inputs.
struct Whole {
    graph: Graph,
    params: Params,
    inputs: Vec<Value>,
}

impl Whole {
    /// Over parameters that `declare` declares, with inputs as `g` has them.
    fn new(g: &Graph, inputs: &[Value], declare: impl FnOnce(&mut Graph) -> Result<Params>) -> Result<Whole> {
        let mut graph = Graph::new();
        let params = declare(&mut graph)?;
        let input = |own: &Value| graph.input(&g.node(own.node).name, g.ty(*own).clone());
        let inputs = inputs.iter().map(input).collect();
        Ok(Whole { graph, params, inputs })
    }

    /// What a pass is given of it: parameters and inputs in another graph, and what they hold of these.
    fn given(
        &self,
        params: &Params,
        inputs: &[Value],
        placement: impl Fn(&str, &Shape) -> Placement,
    ) -> Result<Vec<Given>> {
        let named: HashMap<String, Value> = params.named().into_iter().collect();
        let param = |(name, whole): (String, Value)| {
            let own = *named.get(&name).ok_or_else(|| Error::Graph(format!("this rank has no {name}")))?;
            Ok(Given { whole, own, placement: placement(&name, &self.graph.ty(whole).shape) })
        };
        let input = |(&whole, &own): (&Value, &Value)| Ok(Given { whole, own, placement: Placement::Same });
        self.params.named().into_iter().map(param).chain(self.inputs.iter().zip(inputs).map(input)).collect()
    }
}

impl Llama {
    /// [`Llama::said`] as one rank computes it, of its rows and with the parameters that `own` has declared, which `params` are. Along
    /// the tensor axis it is the same on all ranks, and between blocks each has a part of the tokens, where they can be divided; along
    /// the sequence axis it is of the tokens u32 `[B,T/N]` that the rank has of each row, and of what is counted there, and `starts` are
    /// those of [`SequenceAxis::cut_starts`].
    ///
    /// # Errors
    /// If a shape does not fit, or an operator cannot be split.
    pub fn said_by_rank(
        &self,
        g: &mut Graph,
        params: &Params,
        own: &dyn Declare,
        share: Share,
        of: [Value; 2],
        starts: Option<Value>,
    ) -> Result<Said> {
        let mut said = None;
        let inputs: Vec<Value> = of.into_iter().chain(starts).collect();
        let OfRank { outputs, dropped } =
            self.by_rank(g, params, own, share, &inputs, &mut |g, params, [tokens, targets], starts| {
                let of_rows = said.insert(self.said(g, params, tokens, targets, starts)?);
                Ok(of_rows.values_mut().map(|value| *value).collect())
            })?;
        let mut said: Said = said.expect("said above");
        said.values_mut().zip(outputs).for_each(|(own, value)| *own = value);
        Ok(Said { dropped, ..said })
    }

    /// [`Llama::log_probs`] of these tokens, `[B,T]` or `[B,T/N]`, as of [`Llama::said_by_rank`].
    ///
    /// # Errors
    /// If a shape does not fit, or an operator cannot be split.
    pub fn log_probs_by_rank(
        &self,
        g: &mut Graph,
        params: &Params,
        own: &dyn Declare,
        share: Share,
        of: [Value; 2],
        starts: Option<Value>,
    ) -> Result<Value> {
        let inputs: Vec<Value> = of.into_iter().chain(starts).collect();
        let said = self.by_rank(g, params, own, share, &inputs, &mut |g, params, [tokens, targets], starts| {
            Ok(vec![self.log_probs(g, params, tokens, targets, starts)?])
        })?;
        Ok(said.outputs[0])
    }

    /// What `says` makes of whole parameters and rows, as one rank computes it of its inputs: tokens, targets, and perhaps where
    /// documents begin.
    fn by_rank(
        &self,
        g: &mut Graph,
        params: &Params,
        own: &dyn Declare,
        share: Share,
        inputs: &[Value],
        says: Says,
    ) -> Result<OfRank> {
        let Share { mesh, sequence, capacity } = share;
        let by_experts =
            self.config().experts.is_some_and(|e| mesh.expert > 1 || (mesh.replicas() > 1 && e.balance + e.z > 0.0));
        let parts = own.parts().filter(|_| mesh.tensor > 1);
        if !by_experts && parts.is_none() {
            let (of, starts) = apart(inputs);
            let outputs = Llama::of_tokens(g, params, &|g| own.declare(g), sequence, of, starts, says)?;
            return Ok(OfRank { outputs, dropped: Vec::new() });
        }
        let declare = |graph: &mut Graph| own.declare_whole(graph);
        let mut whole = Whole::new(g, inputs, declare)?;
        let (of, starts) = apart(&whole.inputs);
        let said = Llama::of_tokens(&mut whole.graph, &whole.params, &declare, sequence, of, starts, says)?;
        said.iter().for_each(|value| whole.graph.output("", *value));
        let place = |axis| {
            move |name: &str, shape: &Shape| own.held(name).map_or(Placement::Same, |held| held.placement(shape, axis))
        };
        let mut dropped = 0;
        if by_experts {
            let axis = ExpertAxis { data: mesh.replicas(), experts: mesh.expert, capacity };
            let Some(before) = parts.and_then(|_| own.only(&[Axis::Expert])) else {
                return axis.apply(&whole.graph, g, &whole.given(params, inputs, place(Axis::Expert))?);
            };
            // What ranks of the tensor axis take apart has experts in parts already.
            let mut next = Whole::new(g, inputs, |graph| before.declare(graph))?;
            let given = whole.given(&next.params, &next.inputs, place(Axis::Expert))?;
            let said = axis.apply(&whole.graph, &mut next.graph, &given)?;
            said.outputs.iter().chain(&said.dropped).for_each(|value| next.graph.output("", *value));
            dropped = said.dropped.len();
            whole = next;
        }
        let along = Along { axis: Axis::Tensor, ranks: mesh.tensor };
        let embedding = own.held(EMBEDDING).and_then(|held| held.dim(along.axis));
        let split_tokens =
            embedding.is_some() && self.config().experts.is_none() && g.dims(inputs[0])[1].is_multiple_of(along.ranks);
        let rank = parts.map_or(0, |parts| mesh.place(parts.rank, along.axis));
        let given = whole.given(params, inputs, place(Axis::Tensor))?;
        let mut outputs = TensorAxis { along, rank, split_tokens }.apply(&whole.graph, g, &given)?;
        let dropped = outputs.split_off(outputs.len() - dropped);
        Ok(OfRank { outputs, dropped })
    }
}

/// Tokens and targets, and where documents begin.
fn apart(inputs: &[Value]) -> ([Value; 2], Option<Value>) {
    ([inputs[0], inputs[1]], inputs.get(2).copied())
}

impl Said {
    /// All that is said of rows, in one order.
    fn values_mut(&mut self) -> impl Iterator<Item = &mut Value> {
        let own = [&mut self.loss, &mut self.cross_entropy, &mut self.count];
        own.into_iter().chain(&mut self.counts)
    }
}
