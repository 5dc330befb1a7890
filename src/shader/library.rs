//! The shaders of the crate, embedded: every file under `shaders/`, by its path without the ending.

macro_rules! table {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../shaders/", $name, ".wgsl")))),*]
    };
}

/// Sorted by name.
const TABLE: &[(&str, &str)] = table![
    "accumulate",
    "adamw",
    "adamw8",
    "arithmetic",
    "arithmetic_coop",
    "attention",
    "attention_combine",
    "attention_coop",
    "attention_delta",
    "attention_grad_key_value",
    "attention_grad_key_value_coop",
    "attention_grad_key_value_rows",
    "attention_grad_key_value_tile",
    "attention_grad_query",
    "attention_grad_query_coop",
    "attention_grad_query_rows",
    "attention_grad_query_tile",
    "attention_part",
    "attention_part_eight",
    "attention_rows",
    "attention_softmax",
    "attention_softmax_grad",
    "attention_tile",
    "cache_write",
    "cast",
    "cross_entropy_grad",
    "cross_entropy_loss",
    "cross_entropy_merge",
    "cross_entropy_update",
    "dropout",
    "ema",
    "embedding",
    "embedding_grad",
    "expert_grad_rows",
    "expert_grad_tile",
    "expert_linear_few",
    "expert_linear_rows",
    "expert_linear_tile",
    "expert_order",
    "judge",
    "lib/attention_coop",
    "lib/attention_coop_tile",
    "lib/attention_products",
    "lib/attention_tile",
    "lib/block",
    "lib/cache",
    "lib/coop_b",
    "lib/coop_tile",
    "lib/eight",
    "lib/expert_grad_params",
    "lib/expert_linear_params",
    "lib/expert_tiles",
    "lib/expert_weight",
    "lib/four_a",
    "lib/four_b",
    "lib/gaps",
    "lib/half",
    "lib/halves",
    "lib/item",
    "lib/matmul_params",
    "lib/matmul_store",
    "lib/matvec",
    "lib/operand",
    "lib/part",
    "lib/product",
    "lib/queries",
    "lib/query",
    "lib/reduce",
    "lib/rounded",
    "lib/row",
    "lib/scores",
    "lib/seen",
    "lib/update",
    "lib/weight",
    "lib/weight_256",
    "lib/weight_32",
    "lib/weight_64",
    "lib/written",
    "lib/written_item",
    "log_probs",
    "map",
    "matmul_block",
    "matmul_coop",
    "matmul_own",
    "matmul_rows",
    "matmul_sum",
    "matmul_tile",
    "matvec_groups",
    "matvec_lanes",
    "muon_momentum",
    "muon_update",
    "put_rows",
    "rms_norm",
    "rms_norm_grad",
    "rope",
    "route",
    "route_grad",
    "sgd",
    "slot_dot",
    "slot_places",
    "slot_scale",
    "slot_sum",
    "softmax",
    "softmax_grad",
    "sum_parts",
    "sum_rows",
    "sum_squares",
    "top_k",
];

/// Text of a shader, or `None` if there is none of this name (such as `map`, or `lib/x` for a shared part).
pub fn text(name: &str) -> Option<&'static str> {
    TABLE.iter().find(|(n, _)| *n == name).map(|(_, text)| *text)
}

/// Names of all shaders and shared parts.
pub fn names() -> impl Iterator<Item = &'static str> {
    TABLE.iter().map(|(name, _)| *name)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    fn walk(dir: &Path, prefix: &str, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let stem = path.file_stem().unwrap().to_str().unwrap();
            if path.is_dir() {
                walk(&path, &format!("{prefix}{stem}/"), found);
            } else if path.extension().is_some_and(|e| e == "wgsl") {
                found.push(format!("{prefix}{stem}"));
            }
        }
    }

    #[test]
    fn table_and_folder_agree() {
        let mut found = Vec::new();
        walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join("shaders"), "", &mut found);
        found.sort();
        assert_eq!(found, super::names().collect::<Vec<_>>(), "src/shader/library.rs lists every file, sorted");
    }
}
