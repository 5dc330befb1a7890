//! Parameters that change layer by layer, in the backward pass: the numbers are those of the usual step, and a billion of
//! them fit eight gigabytes.

mod common;

use danlu::base::{Rng, TensorType};
use danlu::compile::{Chooser, compile};
use danlu::gpu::Gpu;
use danlu::graph::{Graph, Io, Kernel, Op};
use danlu::model::{Llama, find_config};
use danlu::nn::ParamLayout;
use danlu::optim::{HYPER, JUDGE, LossScaling, Optimizer, Rule, UPDATE_NORM, Update};
use danlu::run::{Executor, States, f32s};
use danlu::train::Recipe;
use pollster::block_on;
use std::sync::Arc;

/// A full fine-tune of a Llama-3.2 of a billion parameters, one sequence of 512 tokens, with AdamW in eight bits: what the
/// plans of a step and of validation take together is within eight gigabytes, clipping and all.
#[test]
fn a_full_finetune_of_a_billion_parameters_takes_eight_gigabytes() {
    let (preset, budget) = ("llama-3.2-1b", 8_000_000_000);
    let optimizer = Rule::AdamW8bit;
    let recipe = Recipe { optimizer, update: Update::Layer, ..Recipe::finetuning(true) };
    assert_eq!((recipe.batch, recipe.seq, recipe.clip), (1, 512, 1.0));
    common::check_budget(preset, &recipe, budget);
    // No gradients are kept: with them it would be beyond what there is of memory at all.
    let (_, whole) = common::planned(preset, &Recipe { update: Update::Step, ..recipe });
    assert!(whole > budget + 4_000_000_000);
}

/// What four steps of a small model give: losses, norms, and all that the states then hold.
struct Steps {
    losses: Vec<f32>,
    norms: Vec<f32>,
    updates: Vec<f32>,
    states: Vec<(String, Vec<u8>)>,
}

const IDS: [usize; 2] = [2, 16];

/// Kernels whose sums have one order whatever the size: a part of the vocabulary is a smaller product than all of it, for which
/// another kernel may come first.
struct OneOrder;

impl Chooser for OneOrder {
    fn choose(&mut self, _op: &Arc<dyn Op>, _io: &Io, kernels: &[Kernel]) -> usize {
        kernels.iter().position(|kernel| kernel.shader != "matmul_own").unwrap()
    }
}

fn steps(gpu: &Gpu, model: &Llama, optimizer: &Optimizer, layout: &ParamLayout, words: Option<usize>) -> Steps {
    let mut g = Graph::new();
    let params = layout.declare(&mut g).unwrap();
    let (tokens, targets) = (g.input("tokens", TensorType::u32(IDS)), g.input("targets", TensorType::u32(IDS)));
    let mut loss = |g: &mut Graph| {
        let before = g.nodes().len();
        let loss = model.loss_and_count(g, &params, tokens, targets, None)?;
        if optimizer.loss_scaling.is_some() {
            g.narrow_from(before);
        }
        Ok(loss)
    };
    match words {
        Some(words) => optimizer.layered_step(&mut g, layout, &params, words, None, &mut loss).unwrap(),
        None => {
            let [loss, _] = loss(&mut g).unwrap();
            optimizer.train_step(&mut g, layout, &params, loss).unwrap();
        }
    }
    let plan = compile(&g, gpu.limits(), &mut OneOrder).unwrap();
    let mut states = States::new(gpu);
    let mut executor = block_on(Executor::new(gpu, &plan, &mut states)).unwrap();
    for (i, page) in layout.init(3).iter().enumerate() {
        block_on(states.write(&format!("param.{i}"), 0, bytemuck::cast_slice(page))).unwrap();
    }
    if let Some(scaling) = optimizer.loss_scaling {
        block_on(states.write(JUDGE, 0, bytemuck::cast_slice(&scaling.initial()))).unwrap();
    }
    let mut rng = Rng::new(1, 0);
    let mut made = Steps { losses: Vec::new(), norms: Vec::new(), updates: Vec::new(), states: Vec::new() };
    for _ in 0..4 {
        let mut ids =
            || -> Vec<u32> { (0..IDS.iter().product()).map(|_| rng.below(model.config().vocab_size) as u32).collect() };
        executor.set("tokens", &ids()).unwrap();
        executor.set("targets", &ids()).unwrap();
        executor.set(HYPER, &optimizer.hyper(1e-2)).unwrap();
        let outputs = block_on(executor.run()).unwrap();
        made.losses.push(f32s(&outputs, "loss")[0]);
        made.norms.push(f32s(&outputs, "grad_norm")[0]);
        made.updates.push(f32s(&outputs, UPDATE_NORM)[0]);
    }
    for (name, _) in plan.written_states() {
        made.states.push((name.to_string(), block_on(states.read(name)).unwrap()));
    }
    made.states.sort();
    made
}

/// Without clipping a step by layers is the usual step to the bit, as far as kernels sum in one order, moments and all,
/// whatever the rule; so is one whose norm a first pass finds, but for the order in which the squares are summed up.
#[test]
fn steps_by_layers_are_the_usual_steps() {
    let gpu = common::gpu();
    let config = find_config("models/tiny/config.json").unwrap();
    for tie_word_embeddings in [true, false] {
        let model = Llama::new(danlu::model::ModelConfig { tie_word_embeddings, ..config.clone() });
        let plain = Optimizer { update: Update::Layer, max_norm: f64::INFINITY, ..Optimizer::default() };
        let eight = Optimizer { rule: Rule::AdamW8bit, ..plain.clone() };
        let sgd = Optimizer { rule: Rule::Sgd, ema: 0.9, ..plain.clone() };
        let clipped = Optimizer { max_norm: 0.1, outlier: 9.0, ..plain.clone() };
        let scaling = LossScaling { interval: 2, ..LossScaling::default() };
        let mixed = Optimizer { loss_scaling: Some(scaling), ..plain.clone() };
        let cases = [("8 bit", eight), ("adamw", plain), ("sgd", sgd), ("clipped", clipped), ("mixed", mixed)];
        for (case, optimizer) in cases.into_iter().take(if tie_word_embeddings { 5 } else { 1 }) {
            let layout = optimizer.layout(model.param_specs(), 1 << 30).unwrap();
            assert!(layout.pages().len() > 3 * config.num_hidden_layers, "{case}");
            let usual = steps(&gpu, &model, &optimizer, &layout, None);
            let layers = steps(&gpu, &model, &optimizer, &layout, Some(256));
            for (a, b) in usual.norms.iter().zip(&layers.norms) {
                // Sums of some thousands of parts, in two orders.
                assert!((a - b).abs() <= 8.0 * f32::EPSILON * a, "{case}: norms {a} and {b}");
            }
            for (a, b) in usual.updates.iter().zip(&layers.updates) {
                let bar = if case == "clipped" { 64.0 } else { 8.0 } * f32::EPSILON;
                assert!(*a > 0.0 && (a - b).abs() <= bar * a, "{case}: updates {a} and {b}");
            }
            if case == "clipped" {
                assert!(usual.norms.iter().all(|norm| *norm > 0.1));
                for (a, b) in usual.losses.iter().zip(&layers.losses) {
                    assert!((a - b).abs() <= 64.0 * f32::EPSILON * a, "{case}: losses {a} and {b}");
                }
                continue;
            }
            assert_eq!(usual.losses, layers.losses, "{case}");
            for (a, b) in usual.states.iter().zip(&layers.states).filter(|(a, _)| a.0 != JUDGE) {
                assert!(a == b, "{case}, tied {tie_word_embeddings}: {}", a.0);
            }
        }
    }
}

/// What cannot be combined is refused before anything is loaded, with what to do.
#[test]
fn what_needs_all_gradients_is_refused() {
    let layer = Recipe { update: Update::Layer, ..Recipe::default() };
    layer.check().unwrap();
    let error = |recipe: Recipe| recipe.check().unwrap_err().to_string();
    let several = error(Recipe { accumulate: 2, ..layer.clone() });
    assert!(several.starts_with("update is layer: accumulate is above 1, and the gradients"), "{several}");
    let muon = error(Recipe { optimizer: Rule::Muon, ..layer.clone() });
    assert_eq!(muon, "update is layer: muon takes whole matrices for its steps; choose adamw, adamw8bit or sgd");
    let lora = error(Recipe { lora: Recipe::finetuning(false).lora, ..layer });
    assert!(lora.starts_with("update is layer: lora is given, and adapters' gradients"), "{lora}");
}
