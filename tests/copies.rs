//! Copies of weights in f16, which mixed precision keeps beside the parameters: of which there are some, what they hold, and that no
//! number depends on them.

mod common;

use common::tiny_run::{begin, recipe};
use danlu::model::{Llama, ModelConfig};
use danlu::optim::{Optimizer, Rule, Settings, Shard, Update};
use danlu::parallel::Mesh;
use danlu::train::{GroupOptions, Precision, Recipe, StepResult, Trainer, optimizer};
use half::f16;
use pollster::block_on;
use std::path::Path;

fn step(trainer: &mut Trainer) -> StepResult {
    block_on(trainer.submit()).unwrap();
    block_on(trainer.result()).unwrap()
}

/// Asserts that every copy is what its page rounds to, to the bit; gives how many elements have one.
fn check_copies(trainer: &Trainer, recipe: &Recipe) -> usize {
    let mut elements = 0;
    for page in 0..trainer.layout().pages().len() {
        let Some(copied) = optimizer(recipe).copied(trainer.layout(), page) else { continue };
        let p: Vec<f32> =
            bytemuck::pod_collect_to_vec(&block_on(trainer.states.read(&format!("param.{page}"))).unwrap());
        let copy: Vec<u16> =
            bytemuck::pod_collect_to_vec(&block_on(trainer.states.read(&format!("half.{page}"))).unwrap());
        let rounded: Vec<u16> = p[copied.clone()].iter().map(|&x| f16::from_f32(x).to_bits()).collect();
        assert!(copy == rounded, "page {page}");
        elements += copied.len();
    }
    elements
}

/// With the same kernels a run has the same losses and parameters with copies and without, to the bit, whatever the rule, of one
/// batch a step or several, with padding between groups and without; and copies are what parameters round to after every step.
#[test]
fn copies_change_no_bit() {
    let (gpu, folder) = (common::gpu(), tempfile::tempdir().unwrap());
    // So many rows that a CPU takes its kernel for many, too.
    let plain = Recipe { precision: Precision::Mixed, batch: 4, seq: 64, ..recipe(folder.path(), "copies") };
    let own = GroupOptions { params: "embed_tokens.weight".into(), lr: Some(1e-3), weight_decay: Some(0.0) };
    // Gains of this one end where padding need not begin.
    let wide = std::fs::read_to_string(&plain.config).unwrap().replace(r#""hidden_size": 32"#, r#""hidden_size": 64"#);
    let even = folder.path().join("wide.json");
    std::fs::write(&even, wide).unwrap();
    let even = even.to_str().unwrap().to_string();
    for (optimizer, accumulate, groups, config) in [
        (Rule::AdamW, 1, vec![], &plain.config),
        (Rule::AdamW, 2, vec![own.clone()], &even),
        (Rule::AdamW, 1, vec![], &even),
        (Rule::AdamW8bit, 1, vec![], &even),
        (Rule::Muon, 1, vec![], &plain.config),
        (Rule::Sgd, 2, vec![], &plain.config),
    ] {
        let with = Recipe { optimizer, accumulate, groups, config: config.clone(), ..plain.clone() };
        let without = Recipe { weight_copies: false, ..with.clone() };
        let [mut a, mut b] = [&with, &without].map(|recipe| begin(&gpu, recipe, folder.path()).1);
        // All matrices of both layers and the output; of eight bits, too.
        let matrices = 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 48 * 32) + 300 * 32;
        assert!(check_copies(&a, &with) >= matrices, "{optimizer:?}");
        assert_eq!(check_copies(&b, &without), 0);
        assert!(b.states.get("half.0").is_err());
        for n in 0..3 {
            let [with_copies, alone] = [&mut a, &mut b].map(step);
            assert!(!with_copies.left_out && with_copies.loss.to_bits() == alone.loss.to_bits(), "{optimizer:?}, {n}");
            check_copies(&a, &with);
        }
        for state in a.written_states().iter().map(|state| &state.name) {
            let [with, alone] = [&a, &b].map(|trainer| block_on(trainer.states.read(state)).unwrap());
            assert!(with == alone, "{optimizer:?}: {state}");
        }
        assert_eq!(a.written_states(), b.written_states());
    }
}

fn model(file: &str) -> ModelConfig {
    ModelConfig::parse(file, Path::new("config.json")).unwrap()
}

/// The elements that have a copy, of each page, and the names of the first and the last matrix among them.
fn copied(optimizer: &Optimizer, config: &ModelConfig) -> Vec<Option<(String, String)>> {
    let layout = optimizer.layout(Llama::new(config.clone()).param_specs(), 1 << 30).unwrap();
    let name = |page: usize, of: &dyn Fn(usize, usize) -> bool| {
        let place = &layout.pages()[page];
        let specs = layout.specs()[place.params.clone()].iter().zip(&place.starts);
        let mut found = specs.filter(|(spec, start)| of(**start, **start + spec.shape.elements()));
        found.next().map(|(spec, _)| spec.name.clone()).unwrap_or_default()
    };
    let of = |page: usize| {
        let copied = optimizer.copied(&layout, page)?;
        Some((name(page, &|start, _| start == copied.start), name(page, &|_, end| end == copied.end)))
    };
    (0..layout.pages().len()).map(of).collect()
}

#[test]
fn what_products_do_not_round_has_no_copy() {
    let llama = |more: &str| {
        model(&format!(
            r#"{{"model_type": "llama", "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4,
            "num_key_value_heads": 2, "max_position_embeddings": 64{more}}}"#
        ))
    };
    let kept = Optimizer { copies: true, ..Optimizer::default() };
    let (query, down) = ("model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.down_proj.weight");
    let (table, head) = ("model.embed_tokens.weight", "lm_head.weight");
    let both = |first: &str, last: &str| vec![Some((first.to_string(), last.to_string()))];
    // Tokens are looked up in f32; a table that is the output's as well is multiplied, too.
    assert_eq!(copied(&kept, &llama(r#", "vocab_size": 300, "hidden_size": 64"#)), both(query, head));
    assert_eq!(
        copied(&kept, &llama(r#", "vocab_size": 300, "hidden_size": 64, "tie_word_embeddings": true"#)),
        both(table, down)
    );
    // After a table of so many words no binding can begin.
    assert_eq!(copied(&kept, &llama(r#", "vocab_size": 301, "hidden_size": 64"#)), [None]);
    assert_eq!(
        copied(&Optimizer { copies: false, ..kept.clone() }, &llama(r#", "vocab_size": 300, "hidden_size": 64"#)),
        [None]
    );
    // One between those that are rounded, where settings of their own bring tables together: a copy ends before it, or begins after
    // it where there is more.
    let own = |params: &str| Settings { params: params.into(), rate: 1.0, weight_decay: None };
    let apart = Optimizer { settings: vec![own("embed_tokens.weight"), own("lm_head.weight")], ..kept.clone() };
    assert_eq!(copied(&apart, &llama(r#", "vocab_size": 300, "hidden_size": 64"#)), both(query, down));
    assert_eq!(copied(&apart, &llama(r#", "vocab_size": 3000, "hidden_size": 64"#)), both(head, head));
    // A small one lies between.
    let apart = Optimizer { settings: vec![own("embed_tokens.weight"), own("model.layers.0.mlp.*")], ..kept.clone() };
    assert_eq!(copied(&apart, &llama(r#", "vocab_size": 100, "hidden_size": 64"#)), both(query, down));
    let by_layers = copied(
        &Optimizer { update: Update::Layer, ..kept.clone() },
        &llama(r#", "vocab_size": 300, "hidden_size": 64"#),
    );
    assert!(by_layers.len() > 1 && by_layers.iter().all(Option::is_none));
    // Moments of eight bits leave no binding beside that of a table of gaps, such as behind gains of 32.
    let eight = Optimizer { rule: Rule::AdamW8bit, ..kept.clone() };
    assert_eq!(copied(&eight, &llama(r#", "vocab_size": 300, "hidden_size": 64"#)), both(query, head));
    assert_eq!(copied(&eight, &llama(r#", "vocab_size": 300, "head_dim": 8, "hidden_size": 32"#)), [None]);

    // Of a page that ranks share out each changes a part.
    let config = llama(r#", "vocab_size": 300, "hidden_size": 64"#);
    let layout = || kept.layout(Llama::new(config.clone()).param_specs(), 1 << 30).unwrap();
    for (data, are_some) in [(1, true), (2, false)] {
        let shared = kept.shared(layout(), 1 << 30, Shard::Optimizer, Mesh { data, ..Mesh::ONE }, 0);
        let some = (0..shared.pages().len()).any(|page| kept.copied(&shared, page).is_some());
        assert_eq!(some, are_some, "{data} ranks");
    }

    let mixtral = model(
        r#"{"model_type": "mixtral", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "vocab_size": 300,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "num_local_experts": 4,
        "num_experts_per_tok": 2}"#,
    );
    assert_eq!(copied(&kept, &mixtral), [both(query, head), vec![None]].concat());
}
