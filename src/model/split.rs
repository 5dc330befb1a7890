//! What of a model's parameters a rank of a mesh has, and the graph of its loss. The model itself is not asked
//! (`parallel/tensor.rs` takes its graph apart).

use super::specs::{EMBEDDING, OUTPUT};
use super::{Llama, ModelConfig, QkNorm, Said};
use crate::base::{Axis, Shape};
use crate::error::{Error, Result};
use crate::graph::{Graph, Value};
use crate::nn::{Held, ParamLayout, ParamSpec, Params, Parts};
use crate::ops::Along;
use crate::parallel::{ExpertAxis, Given, Mesh, OfRank, Placement, TensorAxis};

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
        self.check_tensor(mesh.tensor)?;
        self.check_experts(mesh.expert)?;
        let words = self.vocab_size.is_multiple_of(mesh.tensor);
        let held = |spec: &ParamSpec| {
            if spec.is_expert() && mesh.expert > 1 {
                return Held::default().split(0, Axis::Expert);
            }
            let dim = dim(&spec.name).filter(|_| words || (spec.name != EMBEDDING && spec.name != OUTPUT));
            dim.filter(|_| mesh.tensor > 1).map_or(Held::default(), |dim| Held::default().split(dim, Axis::Tensor))
        };
        Ok(Parts::new(self.param_specs(), mesh, rank, held))
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
pub struct Share<'a> {
    /// The mesh that it is of.
    pub mesh: Mesh,
    /// What it has of the parameters, if not all.
    pub parts: Option<&'a Parts>,
    /// Of experts in parts: [`ExpertAxis::capacity`].
    pub capacity: Option<f64>,
}

/// The inputs of a loss: tokens, targets, and perhaps where documents start.
type Inputs = Vec<Value>;

/// A graph over these parameters, in which nothing is computed of them, with inputs as `g` has them.
fn declared(specs: Vec<ParamSpec>, g: &Graph, inputs: &[Value]) -> Result<(Graph, Params, Inputs)> {
    let mut whole = Graph::new();
    let params = ParamLayout::new(specs, u64::from(u32::MAX)).declare(&mut whole)?;
    let input = |own: &Value| whole.input(&g.node(own.node).name, g.ty(*own).clone());
    let inputs = inputs.iter().map(input).collect();
    Ok((whole, params, inputs))
}

/// Parameters and inputs of a graph, as a pass hands them to another.
fn given(
    whole: (&Graph, &Params, &[Value]),
    own: (&Params, &[Value]),
    names: &[ParamSpec],
    placement: impl Fn(&str, &Shape) -> Placement,
) -> Result<Vec<Given>> {
    let param = |spec: &ParamSpec| {
        let value = whole.1.get(&spec.name)?;
        let placement = placement(&spec.name, &whole.0.ty(value).shape);
        Ok(Given { whole: value, own: own.0.get(&spec.name)?, placement })
    };
    let inputs = whole.2.iter().zip(own.1).map(|(&whole, &own)| Ok(Given { whole, own, placement: Placement::Same }));
    names.iter().map(param).chain(inputs).collect()
}

impl Llama {
    /// [`Llama::said`] as one rank computes it, of its rows and with what it has of the parameters. Along the tensor axis it is the
    /// same on all ranks, and between blocks each has a part of the tokens, where they can be divided.
    ///
    /// # Errors
    /// If a shape does not fit, or an operator cannot be split.
    pub fn said_by_rank(
        &self,
        g: &mut Graph,
        params: &Params,
        share: Share,
        [tokens, targets]: [Value; 2],
        starts: Option<Value>,
    ) -> Result<Said> {
        let Share { mesh, parts, capacity } = share;
        let experts = self.config().experts.filter(|_| !params.frozen);
        let by_experts = experts.is_some_and(|e| mesh.expert > 1 || (mesh.data > 1 && e.balance + e.z > 0.0));
        let by_tensor = mesh.tensor > 1 && parts.is_some();
        if !by_experts && !by_tensor {
            return self.said(g, params, tokens, targets, starts);
        }
        let own: Inputs = [tokens, targets].into_iter().chain(starts).collect();
        let specs = self.param_specs();
        let (mut whole, all, inputs) = declared(specs.clone(), g, &own)?;
        let mut said = self.said(&mut whole, &all, inputs[0], inputs[1], inputs.get(2).copied())?;
        said.values().for_each(|value| whole.output("", *value));
        let place = |axis| {
            move |name: &str, shape: &Shape| parts.map_or(Placement::Same, |parts| parts.placement(name, shape, axis))
        };
        // What ranks of the tensor axis take apart has experts in parts already.
        let (mut middle, mut middle_params, mut middle_inputs) = (whole, all, inputs);
        if by_experts {
            let axis = ExpertAxis { data: mesh.data, experts: mesh.expert, capacity };
            let of = (&middle, &middle_params, middle_inputs.as_slice());
            if !by_tensor {
                let given = given(of, (params, &own), &specs, place(Axis::Expert))?;
                let OfRank { outputs, dropped } = axis.apply(&middle, g, &given)?;
                said.put(&outputs);
                return Ok(Said { dropped, ..said });
            }
            let in_parts = parts.map_or(specs.clone(), |parts| parts.only(&[Axis::Expert]).specs());
            let (mut next, next_params, next_inputs) = declared(in_parts, g, &own)?;
            let given = given(of, (&next_params, &next_inputs), &specs, place(Axis::Expert))?;
            let OfRank { outputs, dropped } = axis.apply(&middle, &mut next, &given)?;
            said.put(&outputs);
            said.dropped = dropped;
            said.values().for_each(|value| next.output("", *value));
            (middle, middle_params, middle_inputs) = (next, next_params, next_inputs);
        }
        let along = Along { axis: Axis::Tensor, ranks: mesh.tensor };
        let embedding = parts.and_then(|parts| parts.held(EMBEDDING).dim(along.axis));
        let split_tokens = embedding.is_some() && experts.is_none() && g.dims(tokens)[1].is_multiple_of(along.ranks);
        let rank = parts.map_or(0, |parts| mesh.place(parts.rank, along.axis));
        let given = given((&middle, &middle_params, &middle_inputs), (params, &own), &specs, place(Axis::Tensor))?;
        let outputs = TensorAxis { along, rank, split_tokens }.apply(&middle, g, &given)?;
        said.put(&outputs);
        Ok(said)
    }
}

impl Said {
    /// All of them, in one order.
    fn values(&self) -> impl Iterator<Item = &Value> {
        [&self.loss, &self.cross_entropy, &self.count].into_iter().chain(&self.counts).chain(&self.dropped)
    }

    /// Others in their place, in that order.
    fn put(&mut self, values: &[Value]) {
        let mut values = values.iter().copied();
        let own = [&mut self.loss, &mut self.cross_entropy, &mut self.count];
        let all = own.into_iter().chain(&mut self.counts).chain(&mut self.dropped);
        all.zip(&mut values).for_each(|(own, value)| *own = value);
    }
}
