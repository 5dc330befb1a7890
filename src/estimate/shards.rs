//! What each rank holds of a model: parameters, moments, gradients, activations; and what the data axis sends for them.

use super::network::{Group, Network};
use super::part::Parts;
use super::scale::{DataTime, Shape, part_of};
use super::setup::Setup;
use super::{Mesh, Usage};
use crate::model::ModelConfig;
use crate::optim::Shard;

/// Parameters of the rank with most, the first of the pipeline.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Params {
    /// Those that every data rank has.
    pub shared: f64,
    /// Those of experts, which every data rank outside the expert axis has.
    pub experts: f64,
    /// Those of one layer, of both kinds.
    pub layer: f64,
}

impl Params {
    /// Of a model on a mesh.
    pub fn of(config: &ModelConfig, mesh: Mesh) -> Params {
        let (mut shared, mut experts, mut ends) = (0.0, 0.0, 0.0);
        for spec in config.param_specs() {
            let elements = spec.shape.elements() as f64;
            // Gains and biases are on every rank of the tensor axis.
            let split = if spec.shape.rank() > 1 { elements / mesh.tensor as f64 } else { elements };
            match spec.name.as_str() {
                name if name.contains(".experts.") => experts += split / mesh.expert as f64,
                name if name.contains(".layers.") => shared += split,
                // The output is the last pipeline rank's, where that is another one.
                name if name.starts_with("lm_head") && mesh.pipeline > 1 => {}
                _ => ends += split,
            }
        }
        let layers = config.num_hidden_layers as f64;
        let here = (layers / mesh.pipeline as f64).ceil() / layers;
        let layer = (shared + experts) / layers;
        Params { shared: shared * here + ends, experts: experts * here, layer }
    }

    /// All of them.
    pub fn total(&self) -> f64 {
        self.shared + self.experts
    }

    /// What is left to a rank if all that have the same share it.
    pub fn sharded(&self, mesh: Mesh) -> f64 {
        let same = (mesh.data * mesh.sequence) as f64;
        self.shared / same + self.experts / (same / mesh.expert as f64)
    }
}

impl Shape {
    /// Bytes of the rank with most by kind.
    pub(super) fn usage(
        &self,
        parts: &Parts,
        params: &Params,
        mesh: Mesh,
        setup: Setup,
        micro_batches: usize,
    ) -> Usage {
        let (all, own, storage, shard) = (params.total(), params.sharded(mesh), setup.storage, setup.shard);
        let when = |stage: Shard| if shard >= stage { own } else { all };
        // Weights that are sharded are there twice for a layer: while one works, the next comes.
        let ahead = if shard >= Shard::Parameters { 2.0 * params.layer * storage.weights } else { 0.0 };
        let arriving = if shard >= Shard::Gradients { 2.0 * params.layer * storage.gradients } else { 0.0 };
        let narrow = storage.activations / 4.0;
        let layer = (parts.layer.kept + parts.layer.wide_kept / mesh.tensor as f64) * narrow;
        let input = self.wide / mesh.tensor as f64 * storage.activations;
        let layers = (parts.layers as f64 / mesh.pipeline as f64).ceil();
        // Micro-batches that the first rank of a pipeline has begun and not ended; interleaved stages hold some more.
        let p = mesh.pipeline as f64;
        let begun = (p * (1.0 + (p - 1.0) / (p * setup.interleave as f64)))
            .min(micro_batches as f64)
            .min(if setup.interleave > 1 { f64::INFINITY } else { p });
        let activations = begun * layers * setup.recompute.kept(layer, input);
        // What one layer makes while it is computed again, and what the ends keep.
        let working = if input < layer { layer } else { 0.0 };
        let gradients = (when(Shard::Gradients) * storage.gradients + arriving) as u64;
        Usage {
            weights: (when(Shard::Parameters) * storage.weights + ahead + when(Shard::Optimizer) * storage.masters)
                as u64,
            gradients,
            most_gradients: gradients,
            moments: (when(Shard::Optimizer) * storage.moments) as u64,
            activations: activations as u64,
            most_activations: activations as u64,
            workspace: (working + (parts.ends.kept + parts.ends.wide_kept) * narrow) as u64,
            ..Usage::default()
        }
    }

    /// Seconds and bytes sent of the data axis: in all, with every micro-batch where weights are sharded.
    pub(super) fn data(
        &self,
        config: &ModelConfig,
        params: &Params,
        mesh: Mesh,
        setup: Setup,
        network: &Network,
        micro_batches: f64,
    ) -> (DataTime, f64) {
        let inner = mesh.tensor * mesh.sequence;
        // Sequence ranks have the same weights too: one group with the data axis.
        let shared = Group { size: mesh.data * mesh.sequence, stride: mesh.tensor };
        let experts = Group { size: mesh.data / mesh.expert, stride: inner * mesh.expert };
        let (shard, storage) = (setup.shard, setup.storage);
        let (mut scatter, mut gather, mut sent) = (0.0, 0.0, 0.0);
        let layers = (config.num_hidden_layers as f64 / mesh.pipeline as f64).ceil();
        for (group, count) in [(shared, params.shared), (experts, params.experts)] {
            if group.size == 1 || count == 0.0 {
                continue;
            }
            let (gradients, weights) = (count * storage.gradients, count * storage.weights);
            // In as many messages as there are layers: each begins by itself.
            let each = |bytes: f64| layers * network.gather(group, bytes / layers);
            let part = part_of(group.size);
            if shard == Shard::None {
                scatter += 2.0 * each(gradients);
                sent += 2.0 * part * gradients;
                continue;
            }
            scatter += each(gradients);
            gather += each(weights);
            let times = if shard >= Shard::Parameters { 2.0 * micro_batches } else { 1.0 };
            sent += part * (gradients + times * weights);
        }
        (DataTime { scatter, gather }, sent)
    }
}
