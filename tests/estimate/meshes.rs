//! What the planner chooses for many ranks, and what these would refuse.

use danlu::base::{Bytes, Limits};
use danlu::compile::First;
use danlu::estimate::{Asked, MachineFile, Mesh, Parts, Recompute, Setup, Storage, search};
use danlu::model::{ModelConfig, find_config};
use danlu::optim::{Rule, Shard};
use danlu::train::{Recipe, plans_of_rank};

const SETUP: Setup = Setup { storage: Storage::F32, ..super::SETUP };

/// What the ranks of a run say, if they refuse: some of each kind plan their parts, as they do before they begin.
fn refusal(config: &ModelConfig, run: &Recipe) -> Option<String> {
    let limits = Limits { max_buffer_bytes: Limits::COUNTABLE_BYTES, ..Limits::default() };
    if let Err(error) = run.check() {
        return Some(error.to_string());
    }
    let unlike = run.mesh.unlike();
    let plan = |rank: &usize| plans_of_rank(*rank, config, run, None, &limits, &mut First).err();
    unlike.first().into_iter().chain(unlike.last()).find_map(plan).map(|error| error.to_string())
}

/// Every mesh of so many ranks that can be written down, whatever a model allows.
fn meshes(ranks: usize) -> Vec<Mesh> {
    let divisors = |n: usize| (1..=n).filter(move |d| n.is_multiple_of(*d));
    let mut all = Vec::new();
    for tensor in divisors(ranks) {
        for pipeline in divisors(ranks / tensor) {
            for sequence in divisors(ranks / tensor / pipeline) {
                let data = ranks / tensor / pipeline / sequence;
                all.extend(divisors(data).map(|expert| Mesh { data, tensor, pipeline, expert, sequence }));
            }
        }
    }
    all
}

/// Of every mesh: what is predicted its ranks can plan, and what they cannot is refused.
#[test]
fn what_is_predicted_is_what_ranks_can_plan() {
    let machine = MachineFile::find("h100").unwrap();
    let family = |name: &str| format!("{}/tests/goldens/families/{name}", env!("CARGO_MANIFEST_DIR"));
    // Twelve tokens are no two pieces for each of four ranks, and three micro-batches no groups of two.
    let rows = [
        ("story-1m".to_string(), 4, 1, Shard::None, Rule::AdamW),
        ("story-1m".into(), 4, 2, Shard::Gradients, Rule::AdamW),
        ("story-1m".into(), 4, 2, Shard::None, Rule::AdamW),
        ("story-1m".into(), 2, 1, Shard::Parameters, Rule::Muon),
        (family("olmo2"), 2, 1, Shard::None, Rule::AdamW),
        (family("baichuan-13b"), 2, 1, Shard::None, Rule::AdamW),
        (family("mixtral"), 4, 1, Shard::Optimizer, Rule::AdamW),
    ];
    let (mut planned, mut refused) = (0, Vec::new());
    for (name, ranks, interleave, shard, optimizer) in rows {
        let config = find_config(&name).unwrap();
        let recipe = Recipe { optimizer, ..Recipe::default() };
        let setup = Setup { batch: 6, seq: 12, ..SETUP };
        for mesh in meshes(ranks).into_iter().filter(|mesh| setup.batch.is_multiple_of(mesh.data)) {
            let asked = Asked {
                mesh: Some(mesh),
                shard: Some(shard),
                recompute: Some(Recompute::None),
                micro_batch: Some(1),
                batches: None,
                interleave: Some(interleave),
            };
            let run = Setup { interleave, shard, ..setup }.over(&recipe, mesh);
            let predicted = search(&config, &recipe, setup, asked, ranks, &machine).map_err(|error| error.to_string());
            match (predicted, refusal(&config, &run)) {
                (Ok(found), None) => {
                    planned += 1;
                    assert_eq!(found.best.unwrap().setup.over(&recipe, mesh), run);
                }
                (Err(said), Some(_)) => refused.push(said),
                (predicted, told) => panic!("{name}, {mesh}: {:?}, and ranks say {told:?}", predicted.err()),
            }
        }
    }
    for part in [
        "key and value heads, which 4 ranks cannot share",
        "over all heads at once",
        "the mesh has sequence=2, and the model's heads see distances by slopes of their own",
        "choose a multiple of 8 (--seq)",
        "the model has 2 layers, which cannot be shared out over 4 stages",
        "take micro-batches in groups of",
        "shard is gradients, and mesh is",
        "muon",
        "the model has no experts",
    ] {
        assert!(refused.iter().any(|said| said.contains(part)), "nobody says {part}: {refused:#?}");
    }
    assert!(planned > 15, "{planned}");
}

/// The best of all meshes is none that a run would refuse, whatever is left open.
#[test]
fn the_best_mesh_is_one_that_can_be_trained_on() {
    let small = |name: &str| MachineFile { memory: Some("16GB".parse().unwrap()), ..MachineFile::find(name).unwrap() };
    let any = Asked { micro_batch: Some(1), ..Asked::default() };
    let interleaved = Asked { interleave: Some(2), ..any };
    let gradients = Asked { shard: Some(Shard::Gradients), ..any };
    for (name, machine, ranks, asked) in [
        ("qwen2.5-0.5b", MachineFile::find("h100").unwrap(), 256, any),
        ("llama-3.2-1b", small("h100"), 32, interleaved),
        ("llama-3.1-8b", small("mi300x"), 128, gradients),
        ("llama-2-7b", small("sunway"), 64, any),
        ("mixtral-8x7b", MachineFile::find("h200").unwrap(), 32, any),
    ] {
        let config = find_config(name).unwrap();
        let recipe = Recipe::default();
        let best = search(&config, &recipe, SETUP, asked, ranks, &machine).unwrap().best.unwrap();
        let run = best.setup.over(&recipe, best.mesh);
        run.check().unwrap();
        run.check_split(&config).unwrap();
        assert_eq!((best.mesh.ranks(), run.batch * run.accumulate as usize), (ranks, SETUP.batch), "{name}");
        for rank in best.mesh.unlike() {
            config.interleaved_parts(best.mesh, run.interleave, rank).unwrap();
        }
        println!("{name} on {}: {}", machine.name, best.mesh);
    }
}

/// Where no mesh may be had each kind of reason is told once; and where none has room, what the smallest takes, in bytes that say
/// something of any memory.
#[test]
fn why_there_is_no_mesh_is_told() {
    let (config, machine) = (find_config("models/tiny/config.json").unwrap(), MachineFile::find("h100").unwrap());
    let setup = Setup { batch: 1, seq: 128, ..SETUP };
    let asked = Asked { batches: Some(1), shard: Some(Shard::None), interleave: Some(1), ..Asked::default() };
    let of = |ranks, machine: &MachineFile| search(&config, &Recipe::default(), setup, asked, ranks, machine);
    assert_eq!(
        of(16, &machine).unwrap_err().to_string(),
        "no mesh of 16 ranks goes with a step of 1 x 128 tokens; choose another --batch, or fewer ranks: the mesh has tensor=4, and \
         the model has 2 key and value heads, which 4 ranks cannot share in equal parts; the mesh has tensor=8, and the model has 4 \
         query heads, which 8 ranks cannot share in equal parts (so with 1 more)"
    );
    let small = MachineFile { memory: Some(Bytes(1000)), ..machine };
    let losers = of(4, &small).unwrap().losers;
    let [first, second] = &losers[..] else { panic!("{losers:?}") };
    assert_eq!([first.mesh, second.mesh].map(|mesh| mesh.to_string()), ["tensor=2,pipeline=2", "pipeline=4"]);
    assert!(first.why.contains(" MiB at least, ") && first.why.ends_with(", and a rank has 1000 B"), "{}", first.why);
}

/// Two layers with experts and two without are half of four with and half of four without.
#[test]
fn layers_of_several_kinds_count_by_their_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let products = |dense: &[usize]| {
        let config = serde_json::json!({
            "model_type": "qwen3_moe", "vocab_size": 512, "hidden_size": 64, "intermediate_size": 384, "num_hidden_layers": 4,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "num_experts": 8, "num_experts_per_tok": 2,
            "moe_intermediate_size": 32, "mlp_only_layers": dense,
        });
        let file = folder.path().join("config.json");
        std::fs::write(&file, config.to_string()).unwrap();
        let parts = Parts::of(&find_config(file.to_str().unwrap()).unwrap(), [1, 128, 128], 1).unwrap();
        parts.layer.forward.products
    };
    let (none, all, some) = (products(&[]), products(&[0, 1, 2, 3]), products(&[0, 1]));
    assert!(all > 2.0 * none, "{all} {none}");
    assert!((some / ((none + all) / 2.0) - 1.0).abs() < 1e-9, "{some} of {none} and {all}");
}
