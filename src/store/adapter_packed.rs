//! Adapters of layers that a family's files pack into one, as Phi-3's do with `qkv_proj` and `gate_up_proj`, and Baichuan's with `W_pack`.
//! PEFT adapts the packed layer, ΔW = s·B·A; here each part is a layer of its own. What PEFT wrote is the same A for all parts, and of B
//! and of the magnitudes the rows of each. What is written are the parts' A one below the other, and their B as blocks on a diagonal: a
//! rank as many times as large, and an alpha by which s stays what it is.

use crate::base::Shape;
use crate::nn::{Lora, LoraConfig, LoraModule};
use std::collections::BTreeMap;
use std::ops::Range;

/// The layers of a model that its files pack, by name: [`crate::model::ModelConfig::packed_layers`].
pub type PackedLayers = BTreeMap<String, Vec<(String, Range<usize>)>>;

/// One of PEFT's tensors.
pub(super) type Part = (String, Shape, Vec<f32>);

/// What an adapter's file holds of a layer, or of a part of one.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Held {
    /// The tensor's name in the file.
    pub tensor: String,
    /// The layer's name in the file.
    pub layer: String,
    /// Which of the tensor's rows, of how many; all without it.
    pub rows: Option<(Range<usize>, usize)>,
}

/// The tensors of A, B and magnitudes that a file holds for a layer, `part` by `part`, for the layers that it is of here.
pub(super) fn unpack(packed: &PackedLayers, layer: &str, part: &str, tensor: &str) -> Vec<(String, Held)> {
    let held = |rows| Held { tensor: tensor.into(), layer: layer.into(), rows };
    let Some(parts) = packed.get(layer) else { return vec![(format!("{layer}.{part}"), held(None))] };
    let all = parts.last().map_or(0, |(_, rows)| rows.end);
    // A is the same for all of them.
    let of = |rows: &Range<usize>| (!part.starts_with("lora_A")).then(|| (rows.clone(), all));
    parts.iter().map(|(name, rows)| (format!("{name}.{part}"), held(of(rows)))).collect()
}

/// A layer as PEFT adapts it.
pub(super) struct Layer<'a> {
    /// The family's name for it.
    pub name: String,
    /// Its parts that have an adapter, in their order, with the rows that they are; of how many.
    parts: Vec<(&'a LoraModule, Range<usize>)>,
    rows: usize,
}

/// The layers that PEFT adapts. Where magnitudes are trained, and not of all parts, nobody knows what those of the
/// others are: such parts stand alone.
pub(super) fn layers<'a>(lora: &'a Lora, config: &LoraConfig, packed: &PackedLayers) -> Vec<Layer<'a>> {
    let mut left: BTreeMap<&str, &LoraModule> = lora.modules().iter().map(|m| (m.name.as_str(), m)).collect();
    let mut all = Vec::new();
    for (name, parts) in packed {
        let there: Vec<_> = parts.iter().filter(|(part, _)| left.contains_key(part.as_str())).collect();
        if !there.is_empty() && (there.len() == parts.len() || !config.dora) {
            let taken = there.into_iter().filter_map(|(part, rows)| Some((left.remove(part.as_str())?, rows.clone())));
            let rows = parts.last().map_or(0, |(_, rows)| rows.end);
            all.push(Layer { name: name.clone(), parts: taken.collect(), rows });
        }
    }
    let alone = |module: &'a LoraModule| {
        let rows = module.shape[0];
        Layer { name: module.name.clone(), parts: vec![(module, 0..rows)], rows }
    };
    all.extend(left.into_values().map(alone));
    all
}

impl Layer<'_> {
    /// How many times as large its rank is as that of a part.
    pub(super) fn times(&self) -> usize {
        self.parts.len()
    }

    /// Its A, B and, where they are trained, magnitudes, of those of its parts.
    pub(super) fn tensors(&self, values: &BTreeMap<&str, &[f32]>) -> Vec<Part> {
        let names = LoraModule { name: self.name.clone(), ..self.parts[0].0.clone() }.names();
        let [rank, columns] = [self.parts[0].0.rank, self.parts[0].0.shape[1]];
        let wide = rank * self.times();
        let (mut a, mut b, mut magnitudes) = (Vec::new(), vec![0.0; self.rows * wide], Vec::new());
        for (block, (module, rows)) in self.parts.iter().enumerate() {
            let [own_a, own_b, own_m] = module.names();
            a.extend_from_slice(values[&*own_a]);
            for (row, own) in rows.clone().zip(values[&*own_b].chunks_exact(rank)) {
                b[row * wide + block * rank..][..rank].copy_from_slice(own);
            }
            magnitudes.extend(values.get(&*own_m).into_iter().copied().flatten());
        }
        let [name_a, name_b, name_m] = names;
        let mut tensors = vec![(name_a, [wide, columns].into(), a), (name_b, [self.rows, wide].into(), b)];
        if !magnitudes.is_empty() {
            tensors.push((name_m, [self.rows].into(), magnitudes));
        }
        tensors
    }
}

#[cfg(test)]
#[path = "adapter_packed_tests.rs"]
mod tests;
