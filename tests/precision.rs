//! Classes of precision, read from plans: a strict one holds no kernel that rounds an operand to f16, whichever candidate is
//! taken of every step, in training, of adapters, and in decoding; a mixed one multiplies no others.

use danlu::base::{DType, Limits, TensorType};
use danlu::compile::{Chooser, Plan, Step, compile};
use danlu::graph::{Constant, Io, Kernel, Op};
use danlu::infer::{Options, decode_graph};
use danlu::model::{Llama, ModelConfig};
use danlu::nn::{BaseDtype, Frozen, LoraConfig};
use danlu::optim::Rule;
use danlu::run::Class;
use danlu::shader::assemble;
use danlu::train::{Precision, Recipe, optimizer, plans, train_plan};
use std::collections::BTreeSet;
use std::sync::Arc;

/// A kernel or step that may run.
struct Candidate {
    op: &'static str,
    variant: String,
    shader: &'static str,
    constants: Vec<Constant>,
    /// What is compiled, without comments.
    text: String,
}

impl Candidate {
    fn is_half(&self) -> bool {
        self.constants.contains(&("HALF", 1))
    }

    /// Whether it updates parameters and a copy of them in f16.
    fn copies(&self) -> bool {
        self.constants.contains(&("COPY", 1))
    }

    /// Whether it stores its result in f16.
    fn writes_half(&self) -> bool {
        self.constants.contains(&("WRITES_F16", 1))
    }

    /// Whether it rounds to f16 anything at all: by its class, with numbers of that type, by packing them, or bit by bit as
    /// shaders/lib/rounded.wgsl does. Unpacking what is stored so rounds nothing.
    fn rounds(&self) -> bool {
        let text = self.text.replace("unpack2x16float", "");
        let marks = ["f16", "pack2x16float", "quantizeToF16", "0xffffe000u"].iter().any(|mark| text.contains(mark));
        marks || self.is_half() || Class::of(self.shader, &self.constants) != Class::F32
    }
}

/// Keeps every candidate that it is asked about, and takes the last: the one that wants most of an adapter.
#[derive(Default)]
struct Every {
    asked: Vec<(&'static str, Kernel)>,
}

impl Chooser for Every {
    fn choose(&mut self, op: &Arc<dyn Op>, _io: &Io, kernels: &[Kernel]) -> usize {
        self.asked.extend(kernels.iter().map(|kernel| (op.name(), kernel.clone())));
        kernels.len() - 1
    }
}

/// An adapter that has everything.
fn limits() -> Limits {
    Limits {
        has_f16: true,
        cooperative: vec![8, 16],
        min_subgroup: 32,
        max_subgroup: 32,
        max_shared_bytes: 48 << 10,
        max_buffer_bytes: 1 << 30,
        ..Limits::default()
    }
}

/// A model of two layers, wide enough for every tile.
fn config() -> ModelConfig {
    let config = serde_json::json!({
        "model_type": "llama", "vocab_size": 512, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "tie_word_embeddings": true,
    });
    ModelConfig::parse(&config.to_string(), std::path::Path::new("config.json")).unwrap()
}

/// Every candidate of every step of the plans that `make` compiles; those of the plans themselves are its last.
fn candidates(make: impl FnOnce(&Limits, &mut dyn Chooser) -> danlu::error::Result<Vec<Plan>>) -> Vec<Candidate> {
    let mut every = Every::default();
    let plans = make(&limits(), &mut every).unwrap();
    let offered = every.asked.iter().flat_map(|(op, kernel)| kernel.stages().map(move |stage| (*op, stage)));
    let offered = offered.map(|(op, k)| (op, &k.variant, k.shader, &k.constants, &k.hooks));
    let taken = plans.iter().flat_map(|plan| &plan.steps).map(|s| (s.op, &s.variant, s.shader, &s.constants, &s.hooks));
    let mut seen = BTreeSet::new();
    let new = offered.chain(taken).filter(|candidate| seen.insert(format!("{candidate:?}")));
    let candidate =
        |(op, variant, shader, constants, hooks): (&'static str, &String, &'static str, &Vec<_>, &Vec<_>)| {
            let code = |line: &str| line.split("//").next().unwrap_or_default().to_string() + "\n";
            let text =
                assemble(shader, constants, hooks).unwrap_or_else(|e| panic!("{e}")).text.lines().map(code).collect();
            Candidate { op, variant: variant.clone(), shader, constants: constants.clone(), text }
        };
    new.map(candidate).collect()
}

/// The step of a recipe's optimizer and precision.
fn training(recipe: &Recipe) -> Vec<Candidate> {
    candidates(|limits, every| Ok(vec![train_plan(&config(), 2, 128, &optimizer(recipe), limits, every)?]))
}

/// Steps of adapters over a base in this dtype, and validation.
fn adapters(dtype: BaseDtype, precision: Precision) -> Vec<Candidate> {
    let lora = LoraConfig { base_dtype: dtype, rank: 16, ..LoraConfig::default() };
    let recipe = Recipe { lora: Some(lora), precision, batch: 2, seq: 128, ..Recipe::finetuning(false) };
    candidates(|limits, every| {
        let plans = plans(&config(), &recipe, None, limits, every)?;
        Ok(vec![plans.train, plans.eval])
    })
}

/// Runs over `time` tokens of each of `batch` texts, with matrices in this dtype and a cache in f32.
fn decoding(dtype: DType, batch: usize, time: usize) -> Vec<Candidate> {
    let model = Llama::new(config());
    let typed = |spec: danlu::nn::ParamSpec| {
        let dtype = if spec.shape.rank() == 2 { dtype } else { DType::F32 };
        (spec.name, TensorType { shape: spec.shape, dtype })
    };
    let frozen = Frozen::new(model.param_specs().into_iter().map(typed).collect());
    let options = Options { batch, ..Options::from(256) };
    candidates(|limits, every| Ok(vec![compile(&decode_graph(&model, &frozen, &options, time)?, limits, every)?]))
}

fn strict(what: &str, candidates: &[Candidate]) {
    // There is something to choose, or this would say nothing.
    let products = candidates.iter().filter(|c| c.shader.starts_with("mat")).map(|c| &c.variant);
    assert!(products.collect::<BTreeSet<_>>().len() > 3, "{what}");
    for c in candidates {
        assert!(!c.rounds(), "{what}: {} by {} {} rounds to f16: {:?}", c.op, c.shader, c.variant, c.constants);
    }
}

#[test]
fn a_strict_run_never_has_a_kernel_that_rounds() {
    for optimizer in [Rule::AdamW, Rule::Muon] {
        let recipe = Recipe { optimizer, ..Recipe::default() };
        assert_eq!(recipe.precision, Precision::F32);
        strict(&format!("training by {optimizer:?}"), &training(&recipe));
    }
    for dtype in [BaseDtype::F32, BaseDtype::Bf16, BaseDtype::F16, BaseDtype::Q8_0, BaseDtype::Nf4] {
        strict(&format!("adapters over {dtype}"), &adapters(dtype, Precision::F32));
    }
    for dtype in DType::WEIGHTS {
        for (batch, time) in [(1, 1), (4, 1), (1, 8), (1, 128)] {
            strict(&format!("decoding {dtype}, {batch}×{time}"), &decoding(dtype, batch, time));
        }
    }
}

#[test]
fn a_mixed_step_has_no_other_product_of_a_linear_layer_or_of_attention() {
    let mixed = Recipe { precision: Precision::Mixed, ..Recipe::default() };
    let attention = |c: &Candidate| c.op.starts_with("attention") && c.op != "attention_delta";
    let product = |c: &Candidate| c.shader.starts_with("matmul");
    for c in training(&mixed) {
        assert_eq!(c.copies(), c.op == "adamw", "{} by {}", c.op, c.shader);
        // What adds up the parts of a split sum is no product; an update rounds what it has computed in f32, and so does what
        // makes something that products alone read.
        let multiplies = (product(&c) || attention(&c)) && c.shader != "matmul_sum" || c.copies();
        let stores = product(&c) || ["rms_norm", "map", "cross_entropy_grad"].contains(&c.op);
        assert!(stores || !c.writes_half(), "{} by {} {}: {:?}", c.op, c.shader, c.variant, c.constants);
        let rounds = multiplies || c.writes_half();
        assert_eq!(rounds, c.rounds(), "{} by {} {}: {:?}", c.op, c.shader, c.variant, c.constants);
        assert_eq!(multiplies, c.is_half(), "{} by {} {}: {:?}", c.op, c.shader, c.variant, c.constants);
    }
}

/// With what takes most of an adapter, every one of them is done by matrices.
#[test]
fn the_last_candidates_of_a_mixed_step_are_those_of_matrices() {
    let mixed = optimizer(&Recipe { precision: Precision::Mixed, ..Recipe::default() });
    let plan = train_plan(&config(), 2, 128, &mixed, &limits(), &mut Every::default()).unwrap();
    // An update rounds parameters for their copy.
    let is_half = |s: &&Step| s.constants.contains(&("HALF", 1)) && !s.constants.contains(&("COPY", 1));
    let product = |s: &&Step| s.shader.starts_with("matmul");
    let halves: Vec<&Step> = plan.steps.iter().filter(is_half).collect();
    let (products, blocks): (Vec<&Step>, Vec<&Step>) = halves.into_iter().partition(product);
    assert!(products.iter().all(|s| s.shader == "matmul_coop"), "{products:?}");
    // Four products a layer (q, k and v are one, and gate and up) and the output's, each forward and twice backward, the
    // output's once more.
    assert_eq!(products.len(), 2 * 4 * 3 + 4);
    // Attention, and its gradients towards queries and towards keys and values.
    assert!(blocks.len() == 2 * 3 && blocks.iter().all(|s| s.shader.ends_with("_coop")), "{blocks:?}");
}

/// Products of f16 operands read the copy of every weight, forward and back, and nothing else does; without copies, and in strict
/// f32, there is no tensor in f16 at all. On an adapter without f16, so that activations are none (tests/halves.rs has these).
#[test]
fn weights_are_read_in_half_their_bytes() {
    let limits = Limits { has_f16: false, cooperative: Vec::new(), ..limits() };
    let of = |recipe: &Recipe| train_plan(&config(), 2, 128, &optimizer(recipe), &limits, &mut Every::default());
    let in_half = |s: &&Step| s.inputs.iter().any(|ty| ty.dtype == DType::F16);
    let mixed = Recipe { precision: Precision::Mixed, ..Recipe::default() };
    let plan = of(&mixed).unwrap();
    // What adds up the parts of a split sum reads these alone.
    let reads = |s: &&Step| s.op != "adamw" && s.shader != "matmul_sum";
    let products: Vec<&Step> = plan.steps.iter().filter(in_half).filter(reads).collect();
    // Forward and towards the input, four a layer; of the output once more forward.
    assert_eq!(products.len(), 2 * 4 * 2 + 3);
    assert!(products.iter().all(|s| s.op.ends_with("matmul") && s.inputs[1].dtype == DType::F16));
    for recipe in [&Recipe { weight_copies: false, ..mixed.clone() }, &Recipe::default()] {
        assert!(!of(recipe).unwrap().steps.iter().any(|s| in_half(&s)));
    }
    // Each of them reads half of what it read, and the update writes each copy once.
    let bytes = |plan: &Plan| plan.steps.iter().map(|s| s.bytes).sum::<u64>();
    let without = of(&Recipe { weight_copies: false, ..mixed.clone() }).unwrap();
    let read: u64 = products.iter().map(|s| s.inputs[1].bytes()).sum();
    let written: u64 = plan.steps.iter().filter(|s| s.op == "adamw").map(|s| s.inputs[5].bytes()).sum();
    assert_eq!(bytes(&without) - bytes(&plan), read - written);
}
