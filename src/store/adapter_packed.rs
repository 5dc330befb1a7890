//! Adapters of layers that a family's files pack into one, as Phi-3's do with `qkv_proj` and `gate_up_proj`, and Baichuan's with `W_pack`.
//! PEFT adapts the packed layer, ΔW = s·B·A; here each part is a layer of its own. What PEFT wrote is the same A for all parts, and of B
//! and of the magnitudes the rows of each. What is written are the parts' A one below the other, and their B as blocks on a diagonal: a
//! rank as many times as large, and an alpha by which s stays what it is.

use crate::base::Shape;
use crate::nn::{Lora, LoraConfig, LoraModule};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;

/// The layers of a model that its files pack, by name: [`crate::model::ModelConfig::packed_layers`].
pub type PackedLayers = BTreeMap<String, Vec<(String, Range<usize>)>>;

/// One of PEFT's tensors.
pub(super) type Part<'a> = (String, Shape, Cow<'a, [f32]>);

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
    /// How many parts of it have an adapter: its rank is so many times as large.
    pub times: usize,
    parts: Vec<(&'a LoraModule, Range<usize>)>,
    rows: usize,
}

/// The layers that PEFT adapts, in the adapters' order. Where magnitudes are trained, and not of all parts, nobody knows what those of the
/// others are: such parts stand alone.
pub(super) fn layers<'a>(lora: &'a Lora, config: &LoraConfig, packed: &PackedLayers) -> Vec<Layer<'a>> {
    let mut all: Vec<Layer<'a>> = Vec::new();
    for module in lora.modules() {
        let found = packed.iter().find_map(|(name, parts)| {
            let (_, rows) = parts.iter().find(|(part, _)| *part == module.name)?;
            let is_there = |part: &str| lora.modules().iter().any(|module| module.name == part);
            let is_whole = parts.iter().all(|(part, _)| is_there(part));
            (is_whole || !config.dora)
                .then(|| (name.clone(), rows.clone(), parts.last().map_or(0, |(_, rows)| rows.end)))
        });
        let (name, own, rows) = found.unwrap_or_else(|| (module.name.clone(), 0..module.shape[0], module.shape[0]));
        match all.iter_mut().find(|layer| layer.name == name) {
            Some(layer) => {
                layer.parts.push((module, own));
                layer.times += 1;
            }
            None => all.push(Layer { name, times: 1, parts: vec![(module, own)], rows }),
        }
    }
    all
}

impl Layer<'_> {
    /// Its A, B and, where they are trained, magnitudes, of those of its parts.
    pub(super) fn tensors<'v>(&self, values: &BTreeMap<&str, &'v [f32]>) -> Vec<Part<'v>> {
        let names = LoraModule { name: self.name.clone(), ..self.parts[0].0.clone() }.names();
        let [rank, columns] = [self.parts[0].0.rank, self.parts[0].0.shape[1]];
        if self.parts.len() == 1 && self.parts[0].1.len() == self.rows {
            let shapes = [Shape::from([rank, columns]), [self.rows, rank].into(), [self.rows].into()];
            let all = names.into_iter().zip(shapes);
            return all
                .filter_map(|(name, shape)| Some((name.clone(), shape, Cow::Borrowed(*values.get(&*name)?))))
                .collect();
        }
        let wide = rank * self.times;
        let (mut a, mut b, mut magnitudes) = (Vec::new(), vec![0.0; self.rows * wide], Vec::new());
        let mut parts: Vec<_> = self.parts.iter().collect();
        parts.sort_by_key(|(_, rows)| rows.start);
        for (block, (module, rows)) in parts.into_iter().enumerate() {
            let [own_a, own_b, own_m] = module.names();
            a.extend_from_slice(values[&*own_a]);
            for (row, own) in rows.clone().zip(values[&*own_b].chunks_exact(rank)) {
                b[row * wide + block * rank..][..rank].copy_from_slice(own);
            }
            magnitudes.extend(values.get(&*own_m).into_iter().copied().flatten());
        }
        let [name_a, name_b, name_m] = names;
        let mut tensors: Vec<Part<'v>> =
            vec![(name_a, [wide, columns].into(), a.into()), (name_b, [self.rows, wide].into(), b.into())];
        if !magnitudes.is_empty() {
            tensors.push((name_m, [self.rows].into(), magnitudes.into()));
        }
        tensors
    }
}

#[cfg(test)]
#[path = "adapter_packed_tests.rs"]
mod tests;
