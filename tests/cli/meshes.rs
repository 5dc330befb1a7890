//! `danlu train --mesh`: ranks as threads of one process.

use super::resuming::{losses, weights};
use super::{EXPERTS, Place, TINY, has_adapter, stderr, stdout};

/// The first rank alone prints and writes; what all of them make is what one makes of as many batches, and a run that stops on
/// four goes on with any other number.
#[test]
fn ranks_make_one_model_and_other_ranks_go_on_with_it() {
    if !has_adapter() {
        return;
    }
    let place = Place::new();
    let flags = "--schedule constant --steps 8 --checkpoint-every 2 --quiet";
    let done = place.train(&format!("{flags} --batch 4 --mesh data=2 --out two")).assert().success();
    assert_eq!((stdout(&done).as_str(), stderr(&done).as_str()), ("two\n", ""));
    let log = std::fs::read_to_string(place.path("two/ranks/rank-1.jsonl")).unwrap();
    assert!(log.lines().filter(|line| line.contains("\"event\":\"step\"")).count() == 8, "{log}");
    assert!(!place.path("two/ranks/rank-0.jsonl").exists());
    place.train(&format!("{flags} --batch 2 --accumulate 2 --out one")).assert().success();
    assert!(weights(&place, "two") == weights(&place, "one"), "two ranks make another model");
    assert_eq!(losses(&place, "two"), losses(&place, "one"));

    let began = "--schedule constant --steps 2 --batch 4 --checkpoint-every 2 --quiet --mesh data=4 --out m";
    place.train(began).assert().success();
    for (steps, mesh) in [(4, 2), (6, 1), (8, 4)] {
        let line = format!("train --resume m --steps {steps} --mesh data={mesh} --tune off --quiet");
        place.danlu(&line).assert().success();
    }
    let (all, calm) = (losses(&place, "m"), losses(&place, "two"));
    assert_eq!(all.len(), 8);
    for (got, expected) in all.iter().zip(&calm) {
        // Roundings of eight steps: the bar of twenty is drawn in tests/mesh.rs, and is wider.
        assert!(got.0 == expected.0 && (got.1 - expected.1).abs() <= 2e-5 * expected.1, "{got:?} for {expected:?}");
    }
    // Who asks one rank to share, and for copies of parts that nobody writes, hears of it.
    let alone = place.train("--shard optimizer --neighbour-copies copies --out alone").assert().success();
    let said = stderr(&alone);
    assert!(said.contains("shard is optimizer, and mesh is data=1: nobody is there to share with"), "{said}");
    assert!(said.contains("neighbour_copies is copies, and the first rank writes checkpoints alone"), "{said}");
    // Of the whole model each holds a part, with what fills it up.
    let parts =
        place.train("--mesh data=2 --shard parameters --steps 1 --log-format json --out parts").assert().success();
    let ready = stdout(&parts).lines().find(|line| line.contains("\"event\":\"ready\"")).unwrap().to_string();
    let ready: serde_json::Value = serde_json::from_str(&ready).unwrap();
    let [all, trained, held] = ["parameters", "trained", "held"].map(|key| ready[key].as_u64().unwrap());
    assert!(all == trained && 2 * held >= all && held < all, "{ready}");
    // A model that several ranks made is one like any other.
    place.danlu("export m exported").assert().success();
    assert!(place.path("exported/model.safetensors").exists());
}

/// Of ranks that write parts of checkpoints, each loses its own once, and its neighbour has it.
#[test]
#[cfg(unix)]
fn a_part_that_is_lost_is_put_back_from_the_neighbours_copy() {
    if !has_adapter() {
        return;
    }
    let place = Place::new();
    // However many steps there are in the end, the rate of each is one.
    place.write("steady.toml", "warmup = 1\n");
    let flags = "--recipe steady.toml --schedule constant --batch 4 --mesh data=2 --shard optimizer --log-format json";
    let copies = format!("--neighbour-copies {}", place.path("copies").display());
    // What it says, until it is told to leave.
    let interrupted = |command: &assert_cmd::Command| {
        let (said, code) = place.signalled(command, "-TERM");
        assert_eq!(code, Some(143), "{said}");
        let steps = place.names("m/checkpoints");
        let last = steps.iter().filter_map(|name| name.strip_prefix("step-")?.parse::<u64>().ok()).max().unwrap();
        (said, last)
    };
    let resume = |steps: u64| place.danlu(&format!("train --resume m --steps {steps} --tune off --log-format json"));
    let lose = |part: String| std::fs::remove_dir_all(place.path("m/checkpoints").join(part)).unwrap();
    let (_, mut step) =
        interrupted(&place.train(&format!("{flags} {copies} --steps 9999 --checkpoint-every 2 --out m")));
    for rank in [1, 0] {
        lose(if rank == 1 { format!("rank-1/step-{step}") } else { format!("step-{step}") });
        let text =
            format!("rank {rank}'s part of the checkpoint of step {step} was lost or damaged, and is put back from");
        let (said, next) = interrupted(&resume(9999));
        assert!(said.contains(&text) && next > step, "{said}");
        step = next;
    }
    // Of a checkpoint one rank has a part only, and no model can be made of that.
    for part in [format!("m/checkpoints/rank-1/step-{step}"), "m/checkpoints/rank-1".into()] {
        let said = stderr(&place.danlu(&format!("export {part} x")).assert().code(1));
        let whole =
            if part.ends_with("rank-1") { "checkpoints/step-N".into() } else { format!("checkpoints/step-{step}") };
        let parts = ["is what rank 1 alone wrote; name the whole checkpoint", &whole];
        assert!(said.lines().count() == 1 && parts.iter().all(|part| said.contains(part)), "{said}");
    }
    // The last one's copies, and no others.
    let of_run = std::fs::read_dir(place.path("copies")).unwrap().next().unwrap().unwrap().path();
    for part in [of_run.clone(), of_run.join("rank-1")] {
        let steps = std::fs::read_dir(part).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let steps: Vec<String> = steps.filter(|name| name.starts_with("step-")).collect();
        assert_eq!(steps, [format!("step-{step}")]);
    }
    // What somebody puts back to an earlier step by hand stays there, though neighbours have a later one.
    lose(format!("rank-1/step-{step}"));
    lose(format!("step-{step}"));
    let (said, next) = interrupted(&resume(9999));
    let text = format!("neighbours have copies of step {step}, of which nothing is in m/checkpoints");
    assert!(said.contains(&text), "{said}");
    assert!(said.contains("put back to step ") && !said.contains("was lost or damaged"), "{said}");
    // Copies of another run that was in this place, be it of the same recipe and step, are not taken up; and go.
    let run = || std::fs::read_to_string(place.path("m/.run")).unwrap();
    let own = run();
    place.write("m/.run", "0123456789abcdef");
    lose(format!("rank-1/step-{next}"));
    let (said, _) = interrupted(&resume(9999));
    assert!(said.contains(&format!("the checkpoint of step {next} is not used")), "{said}");
    assert!(!said.contains("neighbours have copies") && !said.contains("was lost or damaged"), "{said}");
    let kept = place.names("copies");
    assert!(
        run() == "0123456789abcdef\n" && !of_run.exists() && of_run.to_string_lossy().ends_with(own.trim()),
        "{}",
        run()
    );
    assert!(kept.len() == 1 && kept[0].ends_with("-0123456789abcdef"), "{kept:?}");
    // Of a run that has lost its name they may be the only ones: they are named, and stay.
    std::fs::remove_file(place.path("m/.run")).unwrap();
    let (said, step) = interrupted(&resume(9999));
    let text = format!(
        "m/.run does not say which run this is, and neighbours have copies of what was in its place, of which none is put back: {}",
        place.path("copies").join(&kept[0]).display()
    );
    assert!(said.contains(&text), "{text}: {said}");
    assert!(
        place.names("copies").len() == 2 && place.names("copies").contains(&kept[0]),
        "{:?}",
        place.names("copies")
    );
    // It ends as if nothing had happened, and then nobody keeps anything of it.
    resume(step + 2).assert().success();
    assert!(place.names("copies").is_empty(), "{:?}", place.names("copies"));
    place.train(&format!("{flags} --steps {} --out calm", step + 2)).assert().success();
    assert!(weights(&place, "m") == weights(&place, "calm"), "what was put back is not what was lost");
}

/// Only the first rank knows that the last checkpoint failed, where it alone writes them: the others end with it all the same.
#[test]
fn all_ranks_end_alike_where_the_last_checkpoint_failed() {
    if !has_adapter() {
        return;
    }
    let place = Place::new();
    std::fs::create_dir(place.path("m")).unwrap();
    place.write("m/checkpoints", "");
    let copies = place.path("copies").display().to_string();
    let mut train =
        place.train(&format!("--mesh data=2 --checkpoint-every 1 --neighbour-copies {copies} --force --out m"));
    let said = stderr(&train.timeout(std::time::Duration::from_secs(120)).assert().success());
    assert!(said.contains("there is no checkpoint of step 3"), "{said}");
    assert!(!weights(&place, "m").is_empty());
}

/// Room at other ranks' experts is nothing where each has all of them; and where it has not, it may be given again.
#[test]
fn a_run_with_room_for_experts_goes_on_without_their_axis() {
    if !has_adapter() {
        return;
    }
    let place = Place::new();
    place.write("experts.json", EXPERTS);
    let flags = "--config experts.json --schedule constant --checkpoint-every 1 --quiet";
    place.train(&format!("{flags} --steps 1 --mesh data=2,expert=2 --expert-capacity 1.25 --out m")).assert().success();
    let recipe = || std::fs::read_to_string(place.path("m/recipe.toml")).unwrap();
    assert!(recipe().contains("expert_capacity = 1.25"), "{}", recipe());
    let resume = |flags: &str| {
        let done = place.danlu(&format!("train --resume m --tune off {flags}")).assert();
        stderr(&done.success())
    };
    let said = resume("--steps 2 --mesh data=2");
    let part = "the run's expert_capacity of 1.25 is left out: mesh is data=2, where each rank has all experts";
    assert!(said.contains(part) && !recipe().contains("expert_capacity = 1"), "{said}");
    let said = resume("--steps 3 --mesh data=1");
    assert!(!said.contains("expert_capacity"), "{said}");
    resume("--steps 4 --mesh data=2,expert=2 --expert-capacity 2");
    assert!(recipe().contains("expert_capacity = 2"), "{}", recipe());
    assert_eq!(losses(&place, "m").len(), 4);
}

/// Of stages with other parts of the model the one is named that has no room, before anything is read.
#[test]
fn the_rank_whose_part_does_not_fit_is_named() {
    if !has_adapter() {
        return;
    }
    let place = Place::new();
    let said = |memory: &str| {
        let line = "train --config story-1m --batch 2 --seq 64 --mesh pipeline=2 --accumulate 2 --steps 1 --out o";
        stderr(&place.danlu(&format!("{line} --memory {memory}")).assert().code(1))
    };
    // Until there is enough for the first stage, before and after the vocabulary is known, and not for that which has the loss.
    let mut memory = "1KB".to_string();
    for _ in 0..3 {
        let text = said(&memory);
        if text.contains("rank 1: training takes at least") {
            return;
        }
        assert!(text.contains("rank 0: training takes at least"), "{text}");
        memory =
            text.split_once('(').and_then(|(_, rest)| rest.split_once(" bytes)")).expect("bytes are told").0.into();
    }
    panic!("the second stage is never named, at {memory} bytes");
}

#[test]
#[cfg(unix)]
fn one_signal_stops_all_ranks() {
    if !has_adapter() {
        return;
    }
    let place = Place::new();
    let train = place.train("--steps 4000 --mesh data=2 --checkpoint-every 3999 --out m --log-format json");
    let (said, code) = place.signalled(&train, "-TERM");
    assert_eq!(code, Some(143), "{said}");
    assert_eq!(said.matches("\"event\":\"checkpoint\"").count(), 1, "{said}");
    let steps = losses(&place, "m").len();
    assert!(said.contains("\"interrupted\":true") && steps > 0 && steps < 4000);
}

/// A plan is that of one rank, with what it sends and how long it takes.
#[test]
fn plans_of_a_mesh_say_what_a_rank_sends() {
    let place = Place::new();
    let plan = |flags: &str| {
        let line = format!("plan --config story-1m --batch 4 --seq 64 --machine h100 --json {flags}");
        let said = stdout(&place.danlu(&line).assert().success());
        serde_json::from_str::<serde_json::Value>(&said).unwrap()["answer"].clone()
    };
    let (one, two, shared) = (plan(""), plan("--mesh data=2"), plan("--mesh data=2 --shard optimizer"));
    let bytes = |answer: &serde_json::Value, kind: &str| answer["usage"][kind].as_u64().unwrap();
    assert_eq!(one["sent"], serde_json::json!([]));
    let parameters = one["parameters"]["model"].as_u64().unwrap();
    // The table is embedding and output: where it is summed as soon as the output's part of its gradient is there, its rows of all
    // ranks' tokens are once more, and the tokens go to the other.
    for (answer, again) in [(&two, 4 * 256 * 128 + 4 * 128), (&shared, 0)] {
        let (sent, least) = (answer["sent"][0][1].as_u64().unwrap(), 4 * parameters + again);
        assert!(answer["sent"][0][0] == "data" && (least..least + 8192).contains(&sent), "{answer}");
        assert!(answer["time"]["meetings"].as_f64().unwrap() > 0.0);
    }
    // Beside two words a parameter some sums, and what fills up the last part of a page.
    let moments = 8 * parameters;
    assert!((moments..moments + 8192).contains(&bytes(&one, "moments")));
    assert!((moments..moments + 8192).contains(&bytes(&two, "moments")));
    assert!((moments / 2..moments / 2 + 8192).contains(&bytes(&shared, "moments")));
    // Half of the matrices, and of that a half.
    let both = plan("--mesh data=2,tensor=2 --shard optimizer");
    assert!((moments / 4..moments / 4 + 8192).contains(&bytes(&both, "moments")), "{both}");
    // The micro-batches of a pipeline are one plan: residual streams of width 64, the table's gradient, and three sums.
    let piped = plan("--mesh pipeline=2 --accumulate 4");
    let table = piped["sent"][0][1].as_u64().unwrap() - 4 * (4 * 4 * 64 * 64) - 12;
    // A stage keeps what each of its two layers makes of at least one micro-batch: input, queries, gate and up.
    let least = 4 * (4 * 64) * 2 * (2 * 128 + 2 * 352);
    assert!(bytes(&piped, "activations") >= least, "{} of {least}", piped["usage"]);
    assert!(piped["sent"][0][0] == "pipeline" && table % (4 * 64) == 0 && table < 4 * parameters, "{piped}");
    let many =
        "plan --config llama-3.1-8b --batch 16 --seq 1024 --nodes 1 --machine h100 --shard parameters --mesh data=8";
    let said = stdout(&place.danlu(many).assert().success());
    assert!(said.contains("parameters"), "{said}");
    let said = stdout(&place.danlu("plan --batch 4 --seq 64 --mesh data=2 --machine h100").assert().success());
    assert!(said.contains("bytes that a rank sends in a step; all above is of one of data=2"), "{said}");
    assert!(said.contains("\ndata ") && said.contains("\nmeetings "), "{said}");
    let said = stderr(&place.danlu("plan --batch 4 --mesh data=3").assert().code(1));
    assert!(said.contains("batch is 4, which 3 ranks cannot share in equal parts"), "{said}");
    // Slots that have no room take none.
    place.write("experts.json", EXPERTS);
    let experts = |flags: &str| place.danlu(&format!("plan --config experts.json --batch 4 --seq 16 --json {flags}"));
    let expert = |flags: &str| {
        let plan: serde_json::Value = serde_json::from_str(&stdout(&experts(flags).assert().success())).unwrap();
        let sent = plan["answer"]["sent"].as_array().unwrap().clone();
        sent.iter().find(|of| of[0] == "expert").and_then(|of| of[1].as_u64()).unwrap()
    };
    // Of two ranks one has room for as many slots as come on average, half of all; and four bytes more are the norm's.
    let [all, mean] = ["", "--expert-capacity 1"].map(|flags| expert(&format!("--mesh data=2,expert=2 {flags}")));
    assert_eq!(all - 4, 2 * (mean - 4));
    let said = stderr(&experts("--mesh data=2 --expert-capacity 1").assert().code(1));
    assert!(said.contains("expert_capacity is given, and mesh is data=2: it is for ranks"), "{said}");
}

/// What no rank of a mesh has room for is said at once, and not after all of it was planned.
#[test]
fn models_of_a_machine_are_not_planned_for_one_rank() {
    let place = Place::new();
    let mut plan = place.danlu("plan --config mixture-14.5t --mesh data=2");
    let said = stderr(&plan.timeout(std::time::Duration::from_secs(20)).assert().code(1));
    assert!(said.lines().count() == 1, "{said}");
    for part in [
        // 3000 experts of 12288 by 4096.
        "model.layers.0.mlp.experts.gate_proj.weight wants 603979776000 bytes and a buffer of any adapter offers 17179803648",
        "36 times as many ranks at least must have a part of it each, by the expert or the tensor axis of --mesh",
        "this is the plan of one rank of data=2, and --nodes and --machine look for the mesh of a whole machine",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
}

/// The planner's mesh is the run's, which keeps it; what it reckons with is a machine that a flag names, or this one.
#[test]
fn a_mesh_that_is_chosen_is_recorded_and_kept() {
    if !has_adapter() {
        return;
    }
    let place = Place::new();
    // Two layers are all of it that two ranks can share: one row of a batch, and one key head.
    place.write("deep.json", TINY.replace("_hidden_layers\": 1", "_hidden_layers\": 2"));
    let deep =
        "train --config deep.json --data text.txt --seq 16 --batch 1 --accumulate 2 --steps 2 --schedule constant";
    let flags = "--mesh auto --machine h100 --checkpoint-every 1 --tune off --out m";
    let done =
        place.danlu(&format!("launch --with threads --ranks 2 --restarts 0 -- {deep} {flags}")).assert().success();
    let (said, told) = (stdout(&done), stderr(&done));
    let why = "--mesh auto takes pipeline=2 for 2 ranks; no other goes with this run";
    assert!(said.contains(why) || told.contains(why), "{said}{told}");
    let mesh = |run: &str| {
        let recipe = std::fs::read_to_string(place.path(run).join("recipe.toml")).unwrap();
        recipe.lines().find(|line| line.starts_with("mesh")).unwrap().to_string()
    };
    assert_eq!(mesh("m"), "mesh = \"pipeline=2\"");
    place.danlu("train --resume m --steps 3 --tune off --quiet").assert().success();
    assert_eq!((mesh("m").as_str(), losses(&place, "m").len()), ("mesh = \"pipeline=2\"", 3));
    // The tiny model has rows alone to share; and of adapters that are one processor it is known what messages cost.
    let own = place.train("--mesh auto --ranks 2 --steps 1 --quiet --out own").assert();
    if pollster::block_on(danlu::gpu::list())[super::chosen()].limits.is_cpu {
        own.success();
        assert_eq!(mesh("own"), "mesh = \"data=2\"");
        assert!(place.path("own/ranks/rank-1.jsonl").exists());
    } else {
        let said = stderr(&own.code(1));
        assert!(said.contains("--mesh auto has to know what messages between adapters such as"), "{said}");
    }
    for (flags, part) in [
        ("--mesh auto --ranks 2 --batch 1 --machine h100", "no mesh of 2 ranks goes with a step of 1 x 16 tokens"),
        ("--mesh auto --ranks 2 --machine abacus", "\"abacus\" is neither a machine nor a file that describes one"),
        ("--mesh auto --ranks 2 --machine h100 --memory 1kB", "of 2 ranks no mesh fits the memory of NVIDIA H100"),
        (
            "--mesh auto --ranks 2 --machine h100 --lora-rank 2",
            "--mesh auto reckons with all parameters, and this run trains",
        ),
        ("--mesh auto --ranks 2 --machine h100 --interleave 2", "no mesh of 2 ranks goes with a step of 2 x 16 tokens"),
        ("--mesh data=2 --ranks 2", "--ranks is for the mesh that --mesh auto chooses; add that, or leave --ranks out"),
        ("--machine h100", "--machine is for the mesh that --mesh auto chooses; add that, or leave --machine out"),
    ] {
        let said = stderr(&place.train(&format!("{flags} --out o")).assert().code(1));
        assert!(said.lines().count() == 1 && said.contains(part), "{part}: {said}");
    }
    assert!(!place.path("o").exists());
    let launched = |flags: &str, own: &str| {
        let line =
            format!("launch --with threads --dry-run {flags} -- {deep} --mesh auto --machine h100 --out o {own}");
        place.danlu(&line).assert()
    };
    let dry = launched("--ranks 2", "").success();
    let said = stdout(&dry);
    assert!(said.contains(" --mesh auto --machine h100 --out o ") && said.contains(" --ranks 2\n"), "{said}");
    assert!(stderr(&dry).contains(why), "{}", stderr(&dry));
    let said = stderr(&launched("", "").code(1));
    assert!(said.contains("--mesh auto chooses a mesh for the ranks that are started: say how many"), "{said}");
    let said = stderr(&launched("--ranks 4", "--ranks 2").code(1));
    assert!(said.contains("4 ranks are to be started, and --ranks behind the -- is 2"), "{said}");
    let dry = launched("--ranks 3", "").success();
    assert!(stderr(&dry).contains("the ranks would refuse this: no mesh of 3 ranks goes with"), "{}", stderr(&dry));
}

#[test]
fn meshes_that_cannot_be_are_refused() {
    let place = Place::new();
    for (flags, part) in [
        ("--mesh data=3", "batch is 2, which 3 ranks cannot share in equal parts; choose a multiple of 3"),
        (
            "--mesh pipeline=2 --update layer",
            "mesh is pipeline=2, and a stage adds up the gradients of all micro-batches; leave update = \"layer\" out",
        ),
        ("--mesh data=2 --update layer --shard optimizer", "shard is optimizer, whose ranks add up whole gradients"),
        ("--mesh data=2 --expert-capacity 1.25", "expert_capacity is given, and mesh is data=2: it is for ranks"),
        (
            "--mesh pipeline=2 --interleave 2 --accumulate 3",
            "in groups of 2, one for each rank of the pipeline, and a step has 3",
        ),
        ("--interleave 2", "interleave gives each rank of a pipeline several stages, and mesh is data=1; leave it out"),
        (
            "--mesh data=2 --shard optimizer --optimizer muon",
            "shard is optimizer: muon takes whole matrices for its steps",
        ),
        (
            "--mesh data=2,pipeline=2 --shard gradients",
            "shard is gradients, and mesh is data=2,pipeline=2: a stage needs its parameters for every micro-batch",
        ),
    ] {
        let said = stderr(&place.train(&format!("{flags} --out o")).assert().code(1));
        assert!(said.lines().count() == 1 && said.contains(part), "{part}: {said}");
    }
    let said = stderr(&place.train("--mesh two --out o").assert().code(2));
    assert!(said.contains("mesh `two`: `two` has no =; write axes as in data=4,tensor=2"), "{said}");
    let said = stderr(&place.train("--mesh data=2,data=2 --out o").assert().code(2));
    assert!(said.contains("the axis data is named twice"), "{said}");
    assert!(!place.path("o").exists());
}
