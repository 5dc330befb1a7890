//! Weights of a folder in several safetensors files: their index, read by one rule by the loader and by the hub, and how a
//! large model is cut into such files when it is written.

use crate::base::read_text;
use crate::error::{Error, Result};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The file of weights where there is one.
pub(super) const WEIGHTS: &str = "model.safetensors";
/// The index where there are several.
pub(super) const INDEX: &str = "model.safetensors.index.json";
/// Longest index that is believed.
const MOST_INDEX: u64 = 64 << 20;
/// Bytes of tensors in one file, unless another bound is given: that of `transformers` for most of its life.
pub const SHARD_BYTES: u64 = 5_000_000_000;

/// Names of the files that hold a folder's weights, sorted: one, or those that its index lists.
pub(super) fn weight_files(folder: &Path) -> Result<Vec<String>> {
    if folder.join(WEIGHTS).exists() { Ok(vec![WEIGHTS.into()]) } else { listed(&folder.join(INDEX)) }
}

/// Names of the files that an index lists, each once, sorted; all lie beside it.
pub(super) fn listed(index: &Path) -> Result<Vec<String>> {
    let files: BTreeSet<String> = places(index)?.into_values().collect();
    Ok(files.into_iter().collect())
}

/// True for a tensor that an index may name though no file holds it: nobody needs it, and some writers leave it out.
pub(super) fn is_left_out(tensor: &str) -> bool {
    tensor.ends_with(".rotary_emb.inv_freq")
}

/// The tensors that an index lists, and the file of each.
pub(super) fn places(index: &Path) -> Result<BTreeMap<String, String>> {
    let text = read_text(index, MOST_INDEX)?;
    let fail = |why: String| Error::file(index, format!("is not an index of shards ({why}); download it again"));
    let json: Value = serde_json::from_str(&text).map_err(|e| fail(e.to_string()))?;
    let map = json["weight_map"].as_object().ok_or_else(|| fail("\"weight_map\" is missing".into()))?;
    let mut places = BTreeMap::new();
    for (name, file) in map {
        // A name with folders in it could reach outside the model's own folder.
        let plain = |f: &&str| !["", ".", ".."].contains(f) && !f.contains(['/', '\\', ':']);
        let file = file.as_str().filter(plain).ok_or_else(|| fail(format!("{name} lies in {file}")))?;
        places.insert(name.clone(), file.to_string());
    }
    Ok(places)
}

/// How many of the tensors, in order, each file takes: as many as fit into `most` bytes, and never none.
pub(super) fn cut(tensors: impl Iterator<Item = u64>, most: u64) -> Vec<usize> {
    let (mut counts, mut bytes) = (Vec::new(), 0);
    for tensor in tensors {
        match counts.last_mut() {
            Some(count) if bytes + tensor <= most => *count += 1,
            _ => {
                counts.push(1);
                bytes = 0;
            }
        }
        bytes += tensor;
    }
    counts
}

/// The name of file `i` of `count`, as `transformers` names them.
pub(super) fn shard_name(i: usize, count: usize) -> String {
    if count == 1 { WEIGHTS.into() } else { format!("model-{:05}-of-{count:05}.safetensors", i + 1) }
}

/// The index: which tensor lies in which file, and the bytes of all.
pub(super) fn index<'a>(bytes: u64, tensors: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let map: Map<String, Value> = tensors.map(|(tensor, file)| (tensor.to_string(), file.into())).collect();
    let json = json!({"metadata": {"total_size": bytes}, "weight_map": map});
    serde_json::to_string_pretty(&json).expect("numbers and texts always become JSON") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_filled_in_order_and_none_is_empty() {
        for (tensors, most, expected) in [
            (&[3, 3, 3][..], 6, &[2, 1][..]),
            (&[3, 3, 3], 9, &[3]),
            (&[3, 3, 3], 1, &[1, 1, 1]),
            (&[1, 9, 1, 1], 4, &[1, 1, 2]),
            (&[], 4, &[]),
        ] {
            assert_eq!(cut(tensors.iter().copied(), most), expected, "{tensors:?} by {most}");
        }
        assert_eq!(shard_name(0, 1), "model.safetensors");
        assert_eq!(shard_name(1, 3), "model-00002-of-00003.safetensors");
    }
}
