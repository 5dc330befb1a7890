//! Adapters of Phi-3, whose files pack queries, keys and values into one layer, and gates and ups: what is trained part by part, what PEFT
//! makes of what is written, and what is read again are the same.

use crate::base::Rng;
use crate::model::ModelConfig;
use crate::nn::{Lora, LoraConfig, LoraModule};
use crate::store::{ADAPTER_CONFIG, ADAPTER_WEIGHTS, PeftAdapter, Tensors, write_adapter};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

const PREFIX: &str = "base_model.model.";

fn phi() -> ModelConfig {
    let map = json!({
        "model_type": "phi3", "vocab_size": 20, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1
    });
    ModelConfig::parse(&map.to_string(), Path::new("c.json")).unwrap()
}

/// s·B·A, row by row.
fn product(scale: f64, a: &[f32], b: &[f32], rank: usize) -> Vec<f64> {
    let columns = a.len() / rank;
    let row = |b: &[f32]| {
        let sum = |k: usize| (0..rank).map(|r| f64::from(b[r]) * f64::from(a[r * columns + k])).sum::<f64>();
        (0..columns).map(|k| scale * sum(k)).collect::<Vec<_>>()
    };
    b.chunks_exact(rank).flat_map(row).collect()
}

/// What the file at `folder` adds to each layer, and its magnitudes, as PEFT reads it: by the configuration's patterns.
fn by_peft(folder: &Path) -> BTreeMap<String, (Vec<f64>, Vec<f32>)> {
    let config: Value = serde_json::from_slice(&std::fs::read(folder.join(ADAPTER_CONFIG)).unwrap()).unwrap();
    let tensors = Tensors::open_safetensors(&folder.join(ADAPTER_WEIGHTS)).unwrap();
    let of = |layer: &str, pattern: &str, key: &str| {
        let patterns = config[pattern].as_object().unwrap();
        let own = patterns.iter().find(|(name, _)| layer == *name || layer.ends_with(&format!(".{name}")));
        own.map_or(&config[key], |(_, value)| value).as_f64().unwrap()
    };
    let values = |name: &str| tensors.get(name).map(|t| bytemuck::pod_collect_to_vec::<u8, f32>(t.bytes));
    let names = tensors.iter().filter_map(|t| t.name.strip_suffix(".lora_A.weight").map(String::from));
    let added = |name: String| {
        let layer = name.strip_prefix(PREFIX).unwrap().to_string();
        let (rank, alpha) = (of(&layer, "rank_pattern", "r"), of(&layer, "alpha_pattern", "lora_alpha"));
        let [a, b] = ["A", "B"].map(|part| values(&format!("{name}.lora_{part}.weight")).unwrap());
        assert_eq!(a.len(), rank as usize * if layer.ends_with("down_proj") { 12 } else { 8 }, "{layer}");
        let scale = alpha / if config["use_rslora"] == true { rank.sqrt() } else { rank };
        let magnitudes = values(&format!("{name}.lora_magnitude_vector")).unwrap_or_default();
        (layer, (product(scale, &a, &b, rank as usize), magnitudes))
    };
    names.map(added).collect()
}

#[test]
fn parts_of_packed_layers_are_one_layer_of_peft_s() {
    let model = phi();
    let few = |names: &[&str]| names.iter().map(|name| name.to_string()).collect::<Vec<_>>();
    let plain = LoraConfig { rank: 2, alpha: 6.0, ..LoraConfig::default() };
    let cases = [
        (plain.clone(), true),
        (LoraConfig { rslora: true, targets: few(&["q_proj", "v_proj", "up_proj", "o_proj"]), ..plain.clone() }, true),
        (LoraConfig { targets: few(&["*.1.self_attn.k_proj"]), ..plain.clone() }, true),
        (LoraConfig { dora: true, ..plain.clone() }, true),
        // What the magnitudes of the other parts would be is not known here.
        (LoraConfig { dora: true, targets: few(&["q_proj"]), ..plain }, false),
    ];
    for (config, is_packed) in cases {
        let lora = Lora::new(&config, &model.param_specs(), 1 << 20).unwrap();
        let mut pages = lora.layout().zeros();
        let mut rng = Rng::new(7, 0);
        pages.iter_mut().flatten().for_each(|x| *x = rng.normal() as f32);
        let folder = tempfile::tempdir().unwrap();
        write_adapter(folder.path(), (&lora, &config), ("phi", &model), &pages, &[], false).unwrap();
        let values: BTreeMap<&str, &[f32]> = lora.layout().tensors(&pages).map(|(s, data)| (&*s.name, data)).collect();
        let trained = |module: &LoraModule| {
            let [a, b, m] = module.names();
            let added = product(f64::from(module.scale), values[&*a], values[&*b], module.rank);
            (added, values.get(&*m).map_or(Vec::new(), |m| m.to_vec()))
        };
        let own: BTreeMap<String, _> = lora.modules().iter().map(|m| (m.name.clone(), trained(m))).collect();
        let near = |x: &[f64], y: &[f64]| x.len() == y.len() && x.iter().zip(y).all(|(x, y)| (x - y).abs() < 1e-5);

        // As PEFT reads it, whole layers of the family.
        let theirs = by_peft(folder.path());
        let mut layers = 0;
        for (layer, parts) in model.packed_layers() {
            let Some((added, magnitudes)) = theirs.get(&layer) else { continue };
            layers += 1;
            let zeros = |rows: usize| (vec![0.0; rows * 8], Vec::new());
            let parts: Vec<_> =
                parts.iter().map(|(n, rows)| own.get(n).cloned().unwrap_or_else(|| zeros(rows.len()))).collect();
            let (expected, all): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
            assert!(near(added, &expected.concat()), "{layer}");
            assert_eq!(*magnitudes, all.concat(), "{layer}");
        }
        assert_eq!(layers > 0, is_packed, "{config:?}");
        let alone = theirs.keys().filter(|layer| own.contains_key(*layer));
        assert!(alone.clone().all(|layer| near(&theirs[layer].0, &own[layer].0)));
        assert_eq!(is_packed, !alone.clone().any(|layer| layer.ends_with("q_proj")));

        // Read again, each part by itself; those of its layer that were not trained add nothing.
        let read = PeftAdapter::open(folder.path(), &model).unwrap();
        for module in read.modules() {
            let (mut added, update) = (Vec::new(), read.update(module));
            for n in 0..module.shape[0] {
                let mut row = vec![0.0; module.shape[1]];
                update.add(n, &mut row);
                added.extend(row.into_iter().map(f64::from));
            }
            match own.get(&module.name) {
                Some((expected, magnitudes)) => {
                    assert!(near(&added, expected), "{}", module.name);
                    assert_eq!(read.magnitudes(module).unwrap_or_default(), *magnitudes);
                }
                None => assert!(added.iter().all(|&x| x == 0.0), "{}", module.name),
            }
            let is_own = read.stored(module) == module.name;
            assert_eq!(is_own, theirs.contains_key(&module.name), "{}", module.name);
        }
        assert!(own.keys().all(|name| read.modules().iter().any(|module| module.name == *name)));
    }
}
