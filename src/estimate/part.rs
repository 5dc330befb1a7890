//! What one layer, and all that is not a layer, costs a rank: read from plans of the model with one and with two layers,
//! with heads, widths and words as a tensor-parallel rank has them.

use super::{Mesh, Usage};
use crate::base::Limits;
use crate::compile::{First, Plan, Step};
use crate::error::{Error, Result};
use crate::model::{LayerConfig, ModelConfig};
use crate::optim::Optimizer;
use crate::train::train_plan;

/// Work of one pass.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Work {
    /// Operations of products with weights.
    pub products: f64,
    /// Bytes that these read and write.
    pub product_bytes: f64,
    /// Operations of attention.
    pub attention: f64,
    /// Bytes that all else reads and writes.
    pub bytes: f64,
    /// The same of values as wide as the residual stream, which sequence parallelism splits over the tensor axis.
    pub wide_bytes: f64,
}

/// Work of both passes, and what lies between them.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Part {
    /// The forward pass.
    pub forward: Work,
    /// The backward pass.
    pub backward: Work,
    /// Bytes that are kept from the first to the second.
    pub kept: f64,
    /// The same of values as wide as the residual stream.
    pub wide_kept: f64,
}

/// What a model is made of, as one rank computes it for one micro-batch; bytes are of f32.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Parts {
    /// One layer, the mean of all.
    pub layer: Part,
    /// Embedding, last norm, output and loss.
    pub ends: Part,
    /// How many layers there are.
    pub layers: usize,
}

impl Parts {
    /// Of micro-batches of `batch` sequences of which a rank has `seq` tokens and sees `span`, under `tensor` parts.
    ///
    /// # Errors
    /// If heads or widths cannot be split so, or the model cannot be planned.
    pub fn of(config: &ModelConfig, [batch, seq, span]: [usize; 3], tensor: usize) -> Result<Parts> {
        let limits = Limits { max_buffer_bytes: Limits::COUNTABLE_BYTES, ..Limits::default() };
        let limits = Limits { max_binding_bytes: limits.max_buffer_bytes, ..limits };
        let split = split(config, tensor)?;
        let measured = |layers: &[LayerConfig]| -> Result<Part> {
            let config = ModelConfig { num_hidden_layers: layers.len(), layers: layers.to_vec(), ..split.clone() };
            let plan = train_plan(&config, batch, seq, &Optimizer::default(), &limits, &mut First)?;
            Ok(part(&plan, (batch * seq * config.hidden_size) as u64))
        };
        // Layers may be of several kinds, with experts and without: their mean counts.
        let own = &config.layers[..config.num_hidden_layers];
        let mut kinds: Vec<LayerConfig> = Vec::new();
        for layer in own {
            if !kinds.contains(layer) {
                kinds.push(*layer);
            }
        }
        let share = |is: &dyn Fn(&LayerConfig) -> bool| {
            own.iter().filter(|&layer| is(layer)).count() as f64 / own.len().max(1) as f64
        };
        let (mut layer, mut ends) = (Part::default(), Part::default());
        for (i, kind) in kinds.iter().enumerate() {
            let (one, two) = (measured(&[*kind])?, measured(&[*kind; 2])?);
            let this = two.less(&one);
            if i == 0 {
                ends = one.less(&this);
            }
            layer = layer.plus(&this, share(&|layer| layer == kind));
        }
        // Whoever has a part of a sequence sees keys of all of it: causal halves make that the square of the parts.
        let longer = span as f64 / seq as f64;
        layer.forward.attention *= longer;
        layer.backward.attention *= longer;
        for work in [&mut ends.forward, &mut ends.backward] {
            // Attention belongs to layers. In how many chunks words come is a choice of the engine, and so is what of
            // them is read twice: the output's products count by their operations.
            (work.attention, work.product_bytes) = (0.0, 0.0);
        }
        let router = (2 * batch * seq * config.hidden_size) as f64;
        let routed = unplanned(config) * router * share(&|layer| layer.sparse);
        layer.forward.products += routed;
        layer.backward.products += 2.0 * routed;
        Ok(Parts { layer, ends, layers: config.num_hidden_layers })
    }
}

/// Experts that are planned with at most: what a token costs depends on how many it visits.
const PLANNED: usize = 64;

/// Experts beyond those, between which the router chooses all the same.
fn unplanned(config: &ModelConfig) -> f64 {
    config.experts.map_or(0, |e| e.count.saturating_sub(PLANNED)) as f64
}

/// The model as one of `tensor` ranks has it: its share of heads, of widths and of words.
fn split(config: &ModelConfig, tensor: usize) -> Result<ModelConfig> {
    config.check_mesh(Mesh { tensor, ..Mesh::ONE }, 1)?;
    let width = config.intermediate_size;
    if !width.is_multiple_of(4 * tensor) {
        let message =
            format!("a width of {width} cannot be planned in {tensor} tensor parts, which are no multiples of 4");
        return Err(Error::Invalid(message));
    }
    let mut split = config.clone();
    split.num_attention_heads = config.num_attention_heads / tensor;
    split.num_key_value_heads = config.num_key_value_heads / tensor;
    split.intermediate_size = config.intermediate_size / tensor;
    split.vocab_size = config.vocab_size.div_ceil(tensor);
    if let Some(experts) = &mut split.experts {
        experts.intermediate_size = (experts.intermediate_size / tensor / 4 * 4).max(4);
        // The loss of balance is a few numbers a token.
        (experts.balance, experts.z) = (0.0, 0.0);
        experts.count = experts.count.min(PLANNED);
    }
    Ok(split)
}

fn part(plan: &Plan, wide: u64) -> Part {
    let mut part = Part::default();
    // Sums over chunks of words: see above.
    let chunked = |s: &Step| s.op == "map" && s.name.contains(".linear_cross_entropy.");
    for step in plan.steps.iter().filter(|s| !s.name.starts_with("optimizer.") && !chunked(s)) {
        let backward = step.name.starts_with("grad.") || step.name.starts_with("again.");
        add(if backward { &mut part.backward } else { &mut part.forward }, step, wide);
    }
    for tenant in Usage::kept(plan) {
        *if tenant.bytes == 4 * wide { &mut part.wide_kept } else { &mut part.kept } += tenant.bytes as f64;
    }
    part
}

fn add(work: &mut Work, step: &Step, wide: u64) {
    let (flops, bytes) = (step.flops as f64, step.bytes as f64);
    match step.op {
        "matmul" | "norm_matmul" | "panel_matmul" | "expert_linear" | "expert_linear_grad" | "expert_grad" => {
            work.products += flops;
            work.product_bytes += bytes;
        }
        op if op.starts_with("attention") && op != "attention_delta" => work.attention += flops,
        _ if step.outputs.first().is_some_and(|ty| ty.shape.elements() as u64 == wide) => work.wide_bytes += bytes,
        _ => work.bytes += bytes,
    }
}

impl Part {
    fn plus(&self, other: &Part, times: f64) -> Part {
        Part {
            forward: self.forward.plus(&other.forward, times),
            backward: self.backward.plus(&other.backward, times),
            kept: self.kept + times * other.kept,
            wide_kept: self.wide_kept + times * other.wide_kept,
        }
    }

    fn less(&self, other: &Part) -> Part {
        Part {
            forward: self.forward.less(&other.forward),
            backward: self.backward.less(&other.backward),
            kept: (self.kept - other.kept).max(0.0),
            wide_kept: (self.wide_kept - other.wide_kept).max(0.0),
        }
    }
}

impl Work {
    fn plus(&self, other: &Work, times: f64) -> Work {
        Work {
            products: self.products + times * other.products,
            product_bytes: self.product_bytes + times * other.product_bytes,
            attention: self.attention + times * other.attention,
            bytes: self.bytes + times * other.bytes,
            wide_bytes: self.wide_bytes + times * other.wide_bytes,
        }
    }

    fn less(&self, other: &Work) -> Work {
        let less = |a: f64, b: f64| (a - b).max(0.0);
        Work {
            products: less(self.products, other.products),
            product_bytes: less(self.product_bytes, other.product_bytes),
            attention: less(self.attention, other.attention),
            bytes: less(self.bytes, other.bytes),
            wide_bytes: less(self.wide_bytes, other.wide_bytes),
        }
    }
}
