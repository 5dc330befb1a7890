//! What a training step takes on many ranks: bytes of each, messages along each axis, and time by the roofline and by
//! Hockney's model of the network. One model of efficiency for all machines and all rows of docs/scaling.md: [`REACHED`].
//! Legend: W parameters of a rank, n a group's size.

use super::machine_file::MachineFile;
use super::network::{Group, Network};
use super::part::{Parts, Work};
use super::setup::{Rate, Recompute, Setup};
use super::shards::Params;
use super::{Mesh, Usage};
use crate::base::{Axis, count};
use crate::error::{Error, Result};
use crate::model::ModelConfig;
use crate::optim::Shard;
use crate::train::Recipe;
use serde::Serialize;

/// What is reached of a machine's published rates, on every machine alike: of products with weights, of attention, of bytes
/// of memory, of bytes of the network.
pub const REACHED: Reached = Reached { products: 0.6, attention: 0.4, memory: 0.8, network: 0.8 };

/// Shares of published rates.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Reached {
    /// Of the operations of products with weights.
    pub products: f64,
    /// Of the operations of attention.
    pub attention: f64,
    /// Of the bytes of memory.
    pub memory: f64,
    /// Of the bytes of the network.
    pub network: f64,
}

/// Seconds of a step by what they are for; together they are the step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Seconds {
    /// Both passes, once.
    pub compute: f64,
    /// What is computed again.
    pub recompute: f64,
    /// Messages of the tensor axis, which nothing hides.
    pub tensor: f64,
    /// Messages of the expert axis, which nothing hides.
    pub expert: f64,
    /// Messages of the sequence axis, beyond the attention that hides them.
    pub sequence: f64,
    /// Pipeline ranks waiting for the first and the last micro-batches, and for messages between them.
    pub pipeline: f64,
    /// Messages of the data axis, beyond the passes that hide them.
    pub data: f64,
    /// The optimizer.
    pub optimizer: f64,
}

impl Seconds {
    /// Names and seconds.
    pub fn parts(&self) -> [(&'static str, f64); 8] {
        [
            ("compute", self.compute),
            ("recomputation", self.recompute),
            ("tensor messages", self.tensor),
            ("expert messages", self.expert),
            ("sequence messages", self.sequence),
            ("pipeline bubble", self.pipeline),
            ("data messages", self.data),
            ("optimizer", self.optimizer),
        ]
    }

    /// The step.
    pub fn total(&self) -> f64 {
        self.parts().iter().map(|(_, seconds)| seconds).sum()
    }
}

/// Bytes that a rank sends in a step along each axis.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Messages {
    /// Gradients, and weights where these are sharded.
    pub data: f64,
    /// Activations and their gradients, gathered and scattered.
    pub tensor: f64,
    /// Activations and their gradients, to the next and the one before.
    pub pipeline: f64,
    /// Tokens to experts and back.
    pub expert: f64,
    /// Keys, values and their gradients, around the ring.
    pub sequence: f64,
}

/// What is predicted.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Prediction {
    /// The axes.
    pub mesh: Mesh,
    /// The rest of how it is done.
    pub setup: Setup,
    /// Bytes of the rank with most.
    pub usage: Usage,
    /// Bytes that it sends.
    pub messages: Messages,
    /// Seconds.
    pub seconds: Seconds,
    /// Tokens per second and rank.
    pub tokens_per_rank: f64,
    /// The part of the rate for products that the model's own operations are (model FLOPs utilisation).
    pub mfu: f64,
}

/// Predicts a step. `parts` are those of the model for this micro-batch, sequence part and tensor axis, `params` those of the
/// mesh.
///
/// # Errors
/// If the batch, the layers or the experts cannot be split so.
pub fn predict(
    config: &ModelConfig,
    parts: &Parts,
    params: &Params,
    mesh: Mesh,
    setup: Setup,
    machine: &MachineFile,
) -> Result<Prediction> {
    let micro_batches = check(config, mesh, setup)?;
    let rates = Rates::of(machine, setup);
    let network = Network { levels: &machine.levels, reached: REACHED.network };
    let group = |axis: Axis| {
        let (_, size, stride) = mesh.strides().into_iter().find(|(a, ..)| *a == axis).expect("an axis");
        Group { size, stride }
    };
    let shape = Shape::of(config, mesh, setup);
    let (again, rest_again) = setup.recompute.shares();

    // One layer and one micro-batch.
    let forward = rates.seconds(&parts.layer.forward, mesh.tensor);
    let backward = rates.seconds(&parts.layer.backward, mesh.tensor);
    let repeated = rates.repeated(&parts.layer.forward, mesh.tensor, again, rest_again);
    let passes = 2.0 + again;
    let wide = shape.wide * setup.storage.activations;
    // Two gathers and two scatters each way (Korthikanti et al., 2022).
    let tensor = passes * 4.0 * network.gather(group(Axis::Tensor), wide);
    let sparse = config.layers[..config.num_hidden_layers].iter().filter(|l| l.sparse).count() as f64;
    let sent_to_experts = shape.routed * setup.storage.activations;
    let expert = passes * 2.0 * network.all_to_all(group(Axis::Expert), sent_to_experts);
    // Keys and values go around once forward, and with their gradients backward (Liu et al., 2023).
    let ring_bytes = shape.keys * setup.storage.activations;
    let rounds = (mesh.sequence - 1) as f64;
    let ring = rounds * network.send(group(Axis::Sequence), ring_bytes);
    let hidden = |attention: f64| (ring - attention).max(0.0);
    let attention = rates.attention(parts.layer.forward.attention);
    let backward_attention = rates.attention(parts.layer.backward.attention);
    let sequence = (1.0 + again) * hidden(attention) + (2.0 * ring - backward_attention).max(0.0);

    // One micro-batch on the slowest pipeline rank.
    let layers = config.num_hidden_layers as f64;
    let ends = rates.seconds(&parts.ends.forward, mesh.tensor) + rates.seconds(&parts.ends.backward, mesh.tensor);
    let share = layers / mesh.pipeline as f64;
    let compute = (share * (forward + backward) + ends / mesh.pipeline as f64).max(share.ceil() * (forward + backward));
    let experts_here = sparse / mesh.pipeline as f64;
    let m = micro_batches as f64;
    let mut seconds = Seconds {
        compute: m * compute,
        recompute: m * share * repeated,
        tensor: m * share * tensor,
        expert: m * experts_here * expert,
        sequence: m * share * sequence,
        ..Seconds::default()
    };
    let busy = seconds.total();
    let (p, v) = (mesh.pipeline as f64, setup.interleave as f64);
    let boundary = network.send(group(Axis::Pipeline), wide / mesh.tensor as f64);
    seconds.pipeline = busy / m * (p - 1.0) / v + 2.0 * (p - 1.0) * v * boundary;

    // The data axis: what is reduced hides behind the last backward pass, what is gathered behind the passes that want it.
    let (data, messages) = shape.data(config, params, mesh, setup, &network, m);
    let last_backward = share * (backward + repeated + tensor / 2.0);
    let first_forward = share * (forward + tensor / 2.0);
    let layer_of = |seconds: f64| seconds / share.max(1.0);
    seconds.data = if setup.shard >= Shard::Parameters {
        // Weights come anew with every micro-batch, twice; the first layer's before anything hides them.
        let gathered = (data.gather - first_forward).max(0.0) + (data.gather - last_backward).max(0.0);
        let scattered = (data.scatter - (last_backward - data.gather).max(0.0)).max(0.0);
        m * gathered + scattered + layer_of(data.gather) + layer_of(data.scatter)
    } else {
        let gathered = (data.gather - first_forward).max(0.0) + layer_of(data.gather);
        (data.scatter - last_backward).max(0.0) + layer_of(data.scatter) + gathered
    };
    // Reads gradient, both moments and parameter, writes all but the first: f32.
    let shard = if setup.shard >= Shard::Optimizer { params.sharded(mesh) } else { params.total() };
    seconds.optimizer = 28.0 * shard / rates.memory;

    let step = seconds.total();
    let tokens = (setup.batch * setup.seq) as f64;
    let model = config.train_flops_per_token(setup.seq) as f64 * tokens;
    let ranks = mesh.ranks() as f64;
    let attention_again = passes + rounds.min(1.0);
    let messages = Messages {
        data: messages,
        tensor: m * share * passes * 4.0 * wide * part_of(mesh.tensor),
        pipeline: if mesh.pipeline > 1 { m * 2.0 * v * wide / mesh.tensor as f64 } else { 0.0 },
        expert: m * experts_here * passes * 2.0 * sent_to_experts * part_of(mesh.expert),
        sequence: m * share * attention_again * rounds * ring_bytes,
    };
    Ok(Prediction {
        mesh,
        setup,
        usage: shape.usage(parts, params, mesh, setup, micro_batches),
        messages,
        seconds,
        tokens_per_rank: tokens / step / ranks,
        mfu: model / step / ranks / rates.peak,
    })
}

/// (n - 1) / n.
pub(super) fn part_of(n: usize) -> f64 {
    1.0 - 1.0 / n as f64
}

/// Refuses what cannot be split so; gives the number of micro-batches. What others have run and Danlu would not is predicted all
/// the same: gradients shared out on a pipeline, say.
fn check(config: &ModelConfig, mesh: Mesh, setup: Setup) -> Result<usize> {
    let (each, batch) = (mesh.data * setup.micro_batch, setup.batch);
    if batch == 0 || !batch.is_multiple_of(each) {
        return Err(Error::Invalid(format!(
            "the mesh {mesh} wants a multiple of {} a step, a micro-batch on every data rank",
            count(each, "sequence")
        )));
    }
    setup.over(&Recipe::default(), mesh).check_split(config)?;
    Ok(batch / each)
}

/// Rates of one rank, as reached.
struct Rates {
    products: f64,
    attention: f64,
    memory: f64,
    /// As published.
    peak: f64,
    /// Bytes of activations by those of f32.
    narrow: f64,
    is_8_bit: bool,
}

impl Rates {
    fn of(machine: &MachineFile, setup: Setup) -> Rates {
        let rate = |class: &str| machine.flops.get(class).copied();
        let f32 = rate("f32").unwrap_or(0.0);
        let f16 = rate("f16").unwrap_or(f32).max(f32);
        let (products, attention) = match setup.products {
            Rate::F32 => (f32, f32),
            Rate::F16 => (f16, f16),
            Rate::F8 => (rate("f8").unwrap_or(f16).max(f16), f16),
        };
        Rates {
            products: products * REACHED.products,
            attention: attention * REACHED.attention,
            memory: machine.bytes_per_second * REACHED.memory,
            peak: products,
            narrow: setup.storage.activations / 4.0,
            is_8_bit: setup.products == Rate::F8,
        }
    }

    fn attention(&self, operations: f64) -> f64 {
        operations / self.attention
    }

    fn products(&self, work: &Work) -> f64 {
        let bytes = work.product_bytes * self.narrow;
        // To be rounded to 8 bits, operands are read and written once more: three bytes for each two.
        let rounding = if self.is_8_bit { 1.5 * bytes / self.memory } else { 0.0 };
        (work.products / self.products).max(bytes / self.memory) + rounding
    }

    fn rest(&self, work: &Work, tensor: usize) -> f64 {
        (work.bytes + work.wide_bytes / tensor as f64) * self.narrow / self.memory
    }

    fn seconds(&self, work: &Work, tensor: usize) -> f64 {
        self.products(work) + self.attention(work.attention) + self.rest(work, tensor)
    }

    /// What is computed again: a share of the products, with attention where it is all of them, and a share of the rest.
    fn repeated(&self, work: &Work, tensor: usize, products: f64, rest: f64) -> f64 {
        let attention = if products < 1.0 { 0.0 } else { self.attention(work.attention) };
        products * self.products(work) + attention + rest * self.rest(work, tensor)
    }
}

/// Elements of a micro-batch on one rank.
pub(super) struct Shape {
    /// Of the residual stream, over the tensor axis.
    pub(super) wide: f64,
    /// Of what goes to experts, from one rank.
    routed: f64,
    /// Of keys and values together.
    keys: f64,
}

impl Shape {
    fn of(config: &ModelConfig, mesh: Mesh, setup: Setup) -> Shape {
        let tokens = (setup.micro_batch * setup.seq / mesh.sequence) as f64;
        let wide = tokens * config.hidden_size as f64;
        let visits = config.experts.map_or(0, |e| e.per_token) as f64;
        let heads = (config.num_key_value_heads as f64 / mesh.tensor as f64).max(1.0);
        let keys = 2.0 * tokens * heads * config.head_dim as f64;
        Shape { wide, routed: visits * wide / mesh.tensor as f64, keys }
    }
}

/// Seconds that the data axis takes in all, hidden or not: to reduce gradients, and to gather weights once.
pub(super) struct DataTime {
    pub(super) scatter: f64,
    pub(super) gather: f64,
}

impl Recompute {
    /// Bytes of a layer that are kept, of what all of it would be.
    pub(super) fn kept(self, all: f64, input: f64) -> f64 {
        match self {
            Recompute::None => all,
            Recompute::Selective => all / 2.0,
            Recompute::Full => input,
        }
    }
}
