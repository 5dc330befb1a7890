//! Models that are gone on with, adapters, and optimizers, on axes along which ranks have some of the layers, experts or tokens.

use super::common;
use super::common::ranks::{CONFIG, Seen, copy, go_on, layout_of, prepared, ranks, recipe, spread, train};
use danlu::compile::First;
use danlu::nn::{BaseDtype, LoraConfig};
use danlu::optim::{Rule, Shape};
use danlu::store::{Checkpoint, load_folder};
use danlu::train::{Base, Event, GroupOptions, Precision, Recipe, TrainedRun, Trainer, run};
use pollster::block_on;
use std::path::Path;
use std::sync::atomic::AtomicBool;

/// A recipe of a model of two layers, after these changes.
fn changed(folder: &Path, name: &str, file: &str, changes: &[(&str, &str)]) -> Recipe {
    let recipe = Recipe { steps: 3, eval_every: Some(3), ..recipe(folder, name) };
    let two = CONFIG.replace("\"num_hidden_layers\": 1", "\"num_hidden_layers\": 2");
    let config = changes.iter().fold(two, |config, (from, to)| {
        assert!(config.contains(from), "{from}: {config}");
        config.replace(from, to)
    });
    std::fs::write(folder.join(file), config).unwrap();
    Recipe { config: folder.join(file).to_str().unwrap().into(), ..recipe }
}

/// Heads that two ranks can share.
fn layers(folder: &Path, name: &str) -> Recipe {
    changed(folder, name, "layers.json", &[("_value_heads\": 1", "_value_heads\": 2")])
}

/// Matrices whose rows are whole blocks of NF4.
fn wide(folder: &Path, name: &str) -> Recipe {
    let sizes = [("_size\": 16", "_size\": 64"), ("_size\": 24", "_size\": 64")];
    let recipe = changed(folder, name, "wide.json", &sizes);
    Recipe { steps: 2, eval_every: Some(2), batch: 2, seq: 8, ..recipe }
}

/// Four experts in each layer, whose balance is part of the loss, and heads that two ranks can share.
fn experts(folder: &Path, name: &str) -> Recipe {
    let experts = "\"num_local_experts\": 4, \"num_experts_per_tok\": 2, \"output_router_logits\": true, \
                   \"router_aux_loss_coef\": 0.05, \"max_position";
    let changes = [
        ("\"llama\"", "\"mixtral\""),
        ("_value_heads\": 1", "_value_heads\": 2"),
        ("_size\": 24", "_size\": 8"),
        ("\"max_position", experts),
    ];
    Recipe { router_z_loss: Some(0.01), ..changed(folder, name, "experts.json", &changes) }
}

fn lora() -> LoraConfig {
    LoraConfig { rank: 4, ..LoraConfig::default() }
}

/// What was written of a run: an adapter of its model, or the model that all ranks ended with.
fn check_written(recipe: &Recipe, seen: &Seen, folder: &Path) {
    let prepared = prepared(recipe, folder);
    if recipe.lora.is_some() {
        let base = Checkpoint::open(Path::new(recipe.model.as_ref().unwrap())).unwrap();
        assert!(base.merge(&recipe.out).is_ok(), "what is written is no adapter of the model");
    } else {
        let written = load_folder(&recipe.out, &prepared.config, &layout_of(recipe, &prepared)).unwrap();
        assert!(written == seen.pages, "another model lies in the folder");
    }
}

/// Runs on meshes, each against the bars around what one device computes of the step's rows as one batch; and twice the same bits.
fn check(folder: &Path, rows: Vec<(&str, &str, u32, Recipe)>) {
    for (name, mesh, accumulate, one) in rows {
        let prepared = prepared(&one, folder);
        let layout = layout_of(&one, &prepared);
        let mut spread = spread(&one, &prepared, &layout);
        let batch = one.batch / accumulate as usize;
        let recipe = Recipe { mesh: mesh.parse().unwrap(), batch, accumulate, out: folder.join(name), ..one };
        let seen = train(&recipe, folder);
        seen.check(&mut spread, &layout);
        check_written(&recipe, &seen, folder);
        let again = Recipe { out: folder.join("again"), ..recipe };
        assert!(train(&again, folder) == seen, "{name}: another run gives other bits");
        eprintln!("{name}, {mesh}: worst {:?}", spread.worst);
    }
}

/// A model that is gone on with, adapters beside it in f32 and over NF4, in all layers and in those of one stage alone, and Muon:
/// each rank has the weights and the adapters of its layers.
#[test]
fn models_and_adapters_in_layers_are_trained_as_by_one_device() {
    let folder = tempfile::tempdir().unwrap();
    let of = |name: &str| layers(folder.path(), name);
    let base = of("base");
    train(&base, folder.path());
    let large = wide(folder.path(), "large");
    train(&large, folder.path());
    let model = Some(base.out.to_str().unwrap().to_string());
    let adapters = |name: &str| Recipe { model: model.clone(), lora: Some(lora()), ..of(name) };
    let last = GroupOptions { params: "model.layers.1.*.lora_B.weight".into(), lr: Some(1e-3), weight_decay: None };
    let targets = vec!["model.layers.1.*".to_string()];
    let quantised = Recipe {
        model: Some(large.out.to_str().unwrap().into()),
        lora: Some(LoraConfig { base_dtype: BaseDtype::Nf4, ..lora() }),
        ..large
    };
    check(
        folder.path(),
        vec![
            ("model", "pipeline=2", 2, Recipe { model: model.clone(), ..of("") }),
            ("adapters", "pipeline=2", 2, adapters("")),
            ("with data", "data=2,pipeline=2", 2, adapters("")),
            ("with tensor", "tensor=2,pipeline=2", 1, Recipe { groups: vec![last.clone()], ..adapters("") }),
            ("with rings", "pipeline=2,sequence=2", 2, adapters("")),
            (
                "of one stage",
                "pipeline=2",
                4,
                Recipe { lora: Some(LoraConfig { targets, ..lora() }), groups: vec![last], ..adapters("") },
            ),
            ("magnitudes", "pipeline=2", 2, Recipe { lora: Some(LoraConfig { dora: true, ..lora() }), ..adapters("") }),
            ("quantised", "pipeline=2", 2, quantised),
            ("muon", "pipeline=2", 2, Recipe { optimizer: Rule::Muon, ..of("") }),
        ],
    );
}

/// The same where each rank has some of the experts, which stay as they are beside adapters of attention.
#[test]
fn models_and_adapters_with_experts_are_trained_as_by_one_device() {
    let folder = tempfile::tempdir().unwrap();
    let of = |name: &str| experts(folder.path(), name);
    let base = of("base");
    train(&base, folder.path());
    let model = Some(base.out.to_str().unwrap().to_string());
    let adapters = |config: LoraConfig| Recipe { model: model.clone(), lora: Some(config), ..of("") };
    check(
        folder.path(),
        vec![
            ("model", "data=2,expert=2", 1, Recipe { model: model.clone(), ..of("") }),
            ("adapters", "data=4,expert=2", 1, adapters(lora())),
            ("with rings", "data=2,expert=2,sequence=2", 1, adapters(lora())),
            ("magnitudes", "data=2,expert=2", 1, adapters(LoraConfig { dora: true, ..lora() })),
            ("rows alone", "data=2", 1, adapters(lora())),
            ("muon", "data=2,expert=2", 1, Recipe { optimizer: Rule::Muon, ..of("") }),
        ],
    );
    // The balance of two batches is not that of both: with layers in parts, two batches of one device.
    let one = adapters(lora());
    let ready = prepared(&one, folder.path());
    let layout = layout_of(&one, &ready);
    let mut spread = spread(&one, &ready, &layout);
    let two = Recipe { batch: 2, accumulate: 2, out: folder.path().join("two"), ..one };
    let wanted = train(&two, folder.path());
    for mesh in ["data=2,expert=2,pipeline=2", "data=2,tensor=2,expert=2"] {
        let seen = train(&Recipe { mesh: mesh.parse().unwrap(), ..two.clone() }, folder.path());
        for ((spec, got), (_, wanted)) in layout.tensors(&seen.pages).zip(layout.tensors(&wanted.pages)) {
            let [got, wanted] = [got, wanted].map(|x| x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>());
            spread.check(&format!("final.{}", spec.name), &got, &wanted, 0.0);
        }
    }
    eprintln!("worst: {:?}", spread.worst);
}

/// What a pipeline trains beside frozen weights is what one device trains on the same batches one after another, to the bit:
/// adapters with dropout, which leaves out the same, and magnitudes, in mixed precision, of packed rows.
#[test]
fn adapters_on_a_pipeline_have_the_bits_of_its_micro_batches() {
    let folder = tempfile::tempdir().unwrap();
    let base = layers(folder.path(), "base");
    train(&base, folder.path());
    let of = |name: &str, mesh: &str, dora: bool| {
        let config = LoraConfig { dropout: 0.3, dora, ..lora() };
        let (model, precision) = (Some(base.out.to_str().unwrap().into()), Precision::Mixed);
        let recipe = Recipe { model, lora: Some(config), precision, pack: true, clip: 0.0, ..base.clone() };
        let (mesh, out) = (mesh.parse().unwrap(), folder.path().join(name));
        Recipe { mesh, batch: 2, accumulate: 3, steps: 4, eval_every: Some(4), out, ..recipe }
    };
    let see = |recipe: &Recipe| {
        let ready = prepared(recipe, folder.path());
        let seen = ranks(recipe, |world| {
            let gpu = common::gpu();
            let (mut trainer, ..) =
                block_on(Trainer::among(&gpu, recipe, &ready, &mut First, world, &mut |_| {})).unwrap();
            let (mut losses, mut validations, mut samples) = (Vec::new(), Vec::new(), Vec::new());
            let mut observer = |event: &Event| match event {
                Event::Step { loss, .. } => losses.push(loss.to_bits()),
                Event::Validation { loss, .. } => validations.push(*loss),
                Event::Sample { text, .. } => samples.push(text.clone()),
                _ => {}
            };
            block_on(run(&gpu, recipe, &ready, &mut trainer, None, &AtomicBool::new(false), &mut observer)).unwrap();
            (losses, validations, samples, block_on(trainer.whole()).unwrap().1)
        });
        seen.into_iter().next().unwrap()
    };
    for dora in [false, true] {
        let [alone, piped] = [of("alone", "data=1", dora), of("piped", "pipeline=2", dora)].map(|recipe| see(&recipe));
        assert_eq!((alone.0.len(), alone.1.len(), alone.2.len()), (4, 1, 1));
        assert_eq!(piped.0, alone.0, "dora: {dora}: losses differ");
        assert!(piped.3 == alone.3, "dora: {dora}: parameters differ");
        assert!((piped.1[0] - alone.1[0]).abs() <= 1e-6 * alone.1[0], "dora: {dora}: {} {}", piped.1[0], alone.1[0]);
        // The whole model that the first rank keeps for samples has the lengths of all rows, too.
        assert_eq!(piped.2, alone.2, "dora: {dora}: samples differ");
    }
}

/// Each rank writes the adapters of its layers. The same ranks go on as if nothing had happened; one device, and ranks with other
/// parts, within roundings of one device's seven steps; and what is exported of a checkpoint is the adapter that the run wrote.
#[test]
fn adapters_of_stages_are_read_by_any_mesh() {
    let folder = tempfile::tempdir().unwrap();
    let base = layers(folder.path(), "base");
    train(&base, folder.path());
    let of = |name: &str, steps, mesh: &str, interleave| Recipe {
        steps,
        mesh: mesh.parse().unwrap(),
        interleave,
        batch: 2,
        accumulate: 2,
        schedule: Shape::Constant,
        warmup: Some(1),
        eval_every: Some(2),
        model: Some(base.out.to_str().unwrap().into()),
        lora: Some(lora()),
        out: folder.path().join(name),
        ..base.clone()
    };
    let calm = train(&of("calm", 7, "pipeline=2", 1), folder.path());
    train(&of("run", 2, "pipeline=2", 1), folder.path());
    copy(&folder.path().join("run"), &folder.path().join("other"));
    let same = go_on(&of("run", 7, "pipeline=2", 1), folder.path());
    assert!(same.pages == calm.pages && same.steps == calm.steps[2..], "the same ranks go on otherwise");
    let one = Recipe { batch: 4, accumulate: 1, ..of("one", 7, "data=1", 1) };
    let prepared = prepared(&one, folder.path());
    let layout = layout_of(&one, &prepared);
    let mut spread = spread(&one, &prepared, &layout);
    let mut all = Seen { steps: calm.steps[..2].to_vec(), ..calm };
    for (steps, mesh) in [(4, "data=1"), (5, "tensor=2"), (7, "data=2,pipeline=2")] {
        let seen = go_on(&of("other", steps, mesh, 1), folder.path());
        all.steps.extend(seen.steps);
        all.pages = seen.pages;
    }
    all.check(&mut spread, &layout);
    eprintln!("worst: {:?}", spread.worst);
    let run = TrainedRun::open(&folder.path().join("run/checkpoints/step-7")).unwrap();
    let (exported, name) = (folder.path().join("exported"), run.recipe.model.clone().unwrap());
    let base = Base::open(&base.out, &name).unwrap();
    run.write_checkpoint(&exported, Some(&base), &folder.path().join("cache"), &mut |_: &Event| {}).unwrap();
    let [exported, written] = [exported, folder.path().join("run")]
        .map(|folder| std::fs::read(folder.join("adapter_model.safetensors")).unwrap());
    assert!(exported == written, "the checkpoint holds another adapter");
}

/// Adapters, Muon, batches that are added up and products in f16 where each rank has a part of every row; moments of eight bits there
/// with matrices and biases in parts, beside gains that stay alike, and beside experts in parts.
#[test]
fn rings_and_eight_bits_go_with_the_rest() {
    let folder = tempfile::tempdir().unwrap();
    let of = |name: &str| layers(folder.path(), name);
    let base = of("base");
    train(&base, folder.path());
    let model = Some(base.out.to_str().unwrap().to_string());
    let adapters = || Recipe { model: model.clone(), lora: Some(lora()), ..of("") };
    let magnitudes = || Recipe { lora: Some(LoraConfig { dora: true, ..lora() }), ..adapters() };
    check(
        folder.path(),
        vec![
            ("model", "sequence=2", 2, Recipe { model: model.clone(), ..of("") }),
            ("adapters", "data=2,sequence=2", 2, adapters()),
            ("magnitudes", "sequence=2", 1, magnitudes()),
            ("with tensor", "tensor=2,sequence=2", 1, adapters()),
            ("muon", "sequence=2", 1, Recipe { optimizer: Rule::Muon, ..of("") }),
        ],
    );
    // Sums of at most 24 products of factors that f16 rounds, each by 2^-11: what a token's loss may move by. Codes of eight bits
    // turn a rounding into a step of their own, a hundredth of a moment.
    let (f16, codes) = (24.0 * 2f64.powi(-11), 1e-3);
    let mixed = Recipe { precision: Precision::Mixed, accumulate: 2, batch: 2, ..adapters() };
    let eight = |recipe: Recipe| {
        let (optimizer, steps, eval_every, compare_every) = (Rule::AdamW8bit, 6, Some(6), 2);
        Recipe { optimizer, steps, eval_every, compare_every, ..recipe }
    };
    let biases = [("\"llama\"", "\"qwen2\""), ("_value_heads\": 1", "_value_heads\": 2")];
    let biases = || changed(folder.path(), "", "biases.json", &biases);
    for (name, mesh, bar, recipe) in [
        ("f16", "sequence=2", f16, mixed),
        ("eight bits", "tensor=2,sequence=2", codes, eight(biases())),
        ("eight bits of experts", "data=2,expert=2", codes, eight(experts(folder.path(), ""))),
    ] {
        let of = |name: &str, mesh: &str| {
            train(
                &Recipe { mesh: mesh.parse().unwrap(), out: folder.path().join(name), ..recipe.clone() },
                folder.path(),
            )
        };
        let (one, seen) = (of("one", "data=1"), of(name, mesh));
        for (step, (got, expected)) in seen.steps.iter().zip(&one.steps).enumerate() {
            let [got, expected] = [got, expected].map(|(loss, _)| f64::from(f32::from_bits(*loss)));
            assert!((got - expected).abs() <= bar * expected, "{name}: step {step}: {got} where one has {expected}");
        }
        assert!(of("again", mesh) == seen, "{name}: another run gives other bits");
    }
}
