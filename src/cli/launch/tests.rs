//! What is started, as text.

use super::starter::Starter;
use super::*;
use crate::parallel::Mesh;
use crate::train::Recipe;
use clap::Parser;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    launch: LaunchArgs,
}

fn args(line: &str) -> LaunchArgs {
    Line::try_parse_from(std::iter::once("launch").chain(line.split(' '))).unwrap().launch
}

fn attempts(starter: Starter, args: &LaunchArgs) -> Attempts {
    Attempts {
        starter,
        layout: args.layout(Mesh::ONE).unwrap(),
        program: "/opt/danlu".into(),
        command: args.command.clone(),
        out: "runs/a b".into(),
        batch: 12,
        mesh: Mesh::ONE,
        is_auto: false,
        restarts: args.restarts,
        fewer: args.fewer,
        silence: None,
    }
}

/// Compares with a text that is kept; DANLU_WRITE_GOLDENS=1 writes it.
fn golden(name: &str, text: &str) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/goldens/launch/{name}.txt"));
    if std::env::var_os("DANLU_WRITE_GOLDENS").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(kept == text, "{} says otherwise:\n{text}", path.display());
}

#[test]
fn lines_of_launchers_are_explained() {
    let four = args("--ranks 4 -- train --steps 9");
    golden("openmpi", &attempts(Starter::OpenMpi, &four).explain());
    let far = args("--nodes 2 --ranks-per-node 4 --restarts 0 -- train");
    golden("openmpi_two_nodes", &attempts(Starter::OpenMpi, &far).explain());
    golden("mpich_two_nodes", &attempts(Starter::Mpich, &far).explain());
    golden("srun", &attempts(Starter::Srun { mpi: "pmix".into() }, &four).explain());
    let threads = args("--ranks 3 --fewer -- train");
    golden("threads", &attempts(Starter::Threads, &threads).explain());
}

#[test]
fn what_is_taken_up_keeps_its_flags_but_for_those_that_begin_a_run() {
    let given =
        args("--ranks 4 --fewer -- train --recipe r.toml --force --mesh data=4 --share-adapter --tune off --steps=9");
    let attempts = attempts(Starter::OpenMpi, &given);
    let lower = attempts.lower(attempts.layout);
    assert_eq!(lower, Layout { ranks: 3, nodes: 1, per_node: 3 });
    assert_eq!(attempts.lower(Layout { ranks: 2, nodes: 2, per_node: 1 }), Layout { ranks: 1, nodes: 1, per_node: 1 });
    let line = attempts.words(attempts.layout, false).join(" ");
    assert!(
        line.ends_with("/opt/danlu train --recipe r.toml --force --mesh data=4 --share-adapter --tune=off --steps=9"),
        "{line}"
    );
    let line = attempts.words(attempts.layout, true).join(" ");
    assert!(
        line.ends_with("/opt/danlu train --mesh data=4 --share-adapter --tune=off --steps=9 --resume runs/a b"),
        "{line}"
    );
    let line = attempts.words(lower, true).join(" ");
    assert!(line.ends_with("/opt/danlu train --share-adapter --tune=off --steps=9 --resume runs/a b"), "{line}");
}

#[test]
fn other_axes_stay_as_they_are_with_fewer_processes() {
    let given = args("--ranks 8 --fewer -- train --recipe r.toml");
    let of = |starter, mesh: &str| Attempts { mesh: mesh.parse().unwrap(), ..attempts(starter, &given) };
    let lower = |starter, mesh, ranks| of(starter, mesh).lower(Layout { ranks, nodes: 1, per_node: 8 }).ranks;
    assert_eq!([8, 6, 4, 2].map(|n| lower(Starter::OpenMpi, "data=4,tensor=2", n)), [6, 4, 2, 2]);
    assert_eq!([8, 4, 2].map(|n| lower(Starter::OpenMpi, "data=8,expert=2", n)), [6, 2, 2]);
    assert_eq!([8, 4].map(|n| lower(Starter::Threads, "data=4,tensor=2", n)), [6, 3]);
    // What goes with axes goes with them.
    let given = args("--ranks 8 --fewer -- train --mesh data=8,expert=2 --expert-capacity 1.25 --interleave=1 --quiet");
    let of_experts = |starter, ranks| {
        let attempts = Attempts { mesh: "data=8,expert=2".parse().unwrap(), ..attempts(starter, &given) };
        attempts.words(Layout { ranks, nodes: 1, per_node: 8 }, true).join(" ")
    };
    for (starter, ranks, end) in [
        (Starter::Threads, 8, "--mesh data=8,expert=2 --expert-capacity 1.25 --interleave=1 --quiet"),
        (Starter::Threads, 6, "train --quiet --mesh data=6"),
        (Starter::OpenMpi, 6, "train --expert-capacity 1.25 --interleave=1 --quiet"),
    ] {
        let line = of_experts(starter, ranks);
        assert!(line.ends_with(&format!("{end} --resume runs/a b")), "{line}");
    }
    let line = of(Starter::Threads, "data=4,tensor=2").words(given.layout(Mesh::ONE).unwrap(), false).join(" ");
    assert!(line.ends_with("train --recipe r.toml --mesh data=4,tensor=2"), "{line}");
}

/// A mesh is chosen for as many ranks as there are, and stays that of the run as long as there are as many.
#[test]
fn a_mesh_is_chosen_once_for_each_number_of_ranks() {
    let given = args("--ranks 4 --fewer -- train --mesh auto --machine=h100 --interleave 2 --out a");
    let ends = |starter, ranks, resumed, end: &str| {
        let attempts = Attempts { is_auto: true, ..attempts(starter, &given) };
        let line = attempts.words(Layout { ranks, nodes: 1, per_node: ranks }, resumed).join(" ");
        assert!(line.ends_with(&format!(" train {end}")), "{line}");
    };
    ends(Starter::Threads, 4, false, "--mesh auto --machine=h100 --interleave 2 --out a --ranks 4");
    ends(Starter::Threads, 4, true, "--interleave 2 --out a --resume runs/a b");
    ends(Starter::Threads, 3, true, "--mesh auto --machine=h100 --interleave 2 --out a --ranks 3 --resume runs/a b");
    ends(Starter::OpenMpi, 4, false, "--mesh auto --machine=h100 --interleave 2 --out a");
    ends(Starter::OpenMpi, 4, true, "--interleave 2 --out a --resume runs/a b");
    ends(Starter::OpenMpi, 3, true, "--mesh auto --machine=h100 --interleave 2 --out a --resume runs/a b");
}

#[test]
fn scripts_of_slurm_say_why() {
    let script = |line: &str| {
        let args = args(line);
        let layout = args.layout(Mesh::ONE).unwrap();
        let batch = Batch { args: &args.slurm, layout, restarts: args.restarts, fewer: args.fewer };
        batch.script("/opt/danlu", std::path::Path::new("runs/a b"), &args.command)
    };
    golden("slurm", &script("--ranks 4 --with slurm -- train"));
    let all = "--nodes 2 --ranks-per-node 8 --fewer --time 24:00:00 --partition gpu --account me --cpus-per-rank 16 \
        --gpus-per-node 8 --mpi pmi2 --save-ahead 120 --job-name it's --sbatch --constraint=h100 -- train --prompt $HOME";
    golden("slurm_all", &script(all));
}

#[test]
fn ranks_and_nodes_that_do_not_agree_are_refused() {
    let told = |line: &str| args(line).layout(Mesh::ONE).unwrap_err().to_string();
    assert_eq!(
        told("--ranks 5 --nodes 2 -- train"),
        "5 ranks cannot be dealt to 2 nodes in equal parts; say --ranks-per-node"
    );
    assert_eq!(
        told("--ranks 9 --nodes 2 --ranks-per-node 4 -- train"),
        "9 ranks are not what 2 nodes of 4 hold; leave one of the three out"
    );
    assert_eq!(args("--ranks 5 --nodes 2 --ranks-per-node 3 -- train").layout(Mesh::ONE).unwrap().ranks, 5);
}

#[test]
fn ranks_are_the_meshs_where_nothing_else_is_said() {
    let of = |line: &str, mesh: &str| {
        let layout = args(line).layout(mesh.parse().unwrap()).map_err(|error| error.to_string())?;
        Ok::<_, String>([layout.ranks, layout.nodes, layout.per_node])
    };
    assert_eq!(of("--nodes 2 -- train", "data=4"), Ok([4, 2, 2]));
    assert_eq!(of("--nodes 2 -- train", "data=2,tensor=3"), Ok([6, 2, 3]));
    assert_eq!(of("-- train", "data=4"), Ok([4, 1, 4]));
    assert_eq!(of("--nodes 2 --ranks-per-node 1 -- train", "data=4"), Ok([2, 2, 1]));
    // A recipe without a mesh is for any number: one on each machine.
    assert_eq!(of("--nodes 2 -- train", "data=1"), Ok([2, 2, 1]));
    let told = of("--nodes 3 -- train", "data=4").unwrap_err();
    assert_eq!(
        told,
        "4 ranks, those of the mesh data=4, cannot be dealt to 3 nodes in equal parts; say --ranks-per-node"
    );
    let told = of("--nodes 3 -- train", "data=2").unwrap_err();
    assert_eq!(
        told,
        "2 ranks, those of the mesh data=2, cannot be dealt to 3 nodes in equal parts; take fewer --nodes"
    );
}

#[test]
fn gpus_are_as_many_as_ranks() {
    let said = |line: &str, are_shared| {
        let args = args(line);
        args.slurm.check_gpus(args.layout(Mesh::ONE).unwrap(), are_shared).map_err(|error| error.to_string())
    };
    let told = said("--ranks-per-node 8 --gpus-per-node 4 -- train", false).unwrap_err();
    assert!(told.starts_with("8 ranks are to be on each machine, and --gpus-per-node asks for 4: each rank"), "{told}");
    for (line, are_shared) in [("4", true), ("8", false), ("16", false), ("0", false)].map(|(n, s)| (n.to_string(), s))
    {
        assert_eq!(said(&format!("--ranks-per-node 8 --gpus-per-node {line} -- train"), are_shared), Ok(()));
    }
}

#[test]
fn time_limits_are_those_of_slurm() {
    let seconds = |text: &str| text.parse::<TimeLimit>().map(|limit| limit.seconds());
    for (text, wanted) in [
        ("90", Some(5400)),
        ("1:30", Some(90)),
        ("24:00:00", Some(86400)),
        ("2-12", Some(216_000)),
        ("1-0:30", Some(88_200)),
        ("1-0:0:1", Some(86_401)),
        ("0", None),
        ("UNLIMITED", None),
    ] {
        assert_eq!(seconds(text), Ok(wanted), "{text}");
    }
    for text in ["nonsense", "", "-1", "1:2:3:4", "1-", "1-2:3:4:5", "12h", "1 day", "99999999"] {
        assert!(seconds(text).unwrap_err().contains("no time limit that Slurm takes"), "{text}");
    }
    let said = |line: &str| args(line).slurm.check().map_err(|error| error.to_string());
    assert_eq!(said("--time 6 -- train"), Ok(()));
    assert_eq!(said("--time 2 --save-ahead 60 -- train"), Ok(()));
    let told = said("--time 5 -- train").unwrap_err();
    assert!(told.contains("--time 5 is 300 s, and 300 s before its end the run is told to leave"), "{told}");
    assert_eq!(args("--partition gpu -- train").slurm.asked(), Some("--partition"));
    assert_eq!(args("--mpi pmi2 -- train").slurm.asked(), None, "srun heeds it, too");
}

#[test]
fn ranks_that_are_not_the_meshs_are_refused() {
    let layout = Layout { ranks: 2, nodes: 1, per_node: 2 };
    let said = |mesh: &str, flag: Option<&str>, is_resumed, with| {
        let flag = flag.map(|flag| flag.parse().unwrap());
        agree(layout, mesh.parse().unwrap(), flag, is_resumed, with).map_err(|error| error.to_string())
    };
    let told = "2 ranks are to be started, and the mesh data=4 of the recipe is of 4: let the two agree, or leave one of them out";
    assert_eq!(said("data=4", None, false, With::Threads), Err(told.into()));
    // Processes share the batch beside the recipe's other axes, and a run that is taken up goes on with any mesh.
    assert_eq!(said("data=4", None, false, With::Mpirun), Ok(()));
    assert_eq!(said("data=4", None, true, With::Threads), Ok(()));
    assert_eq!(said("data=2", Some("data=2"), true, With::Threads), Ok(()));
    for with in [With::Threads, With::Mpirun, With::Slurm] {
        let told = said("data=2", Some("data=2,tensor=2"), true, with).unwrap_err();
        assert!(told.contains("the mesh data=2,tensor=2 of --mesh is of 4"), "{told}");
    }
}

/// What is refused before it waits in a queue is what its processes refuse, since both ask the same.
#[test]
fn what_waits_in_a_queue_is_what_its_processes_share() {
    let recipe = |mesh: &str, batch| Recipe { mesh: mesh.parse().unwrap(), batch, ..Recipe::default() };
    let said = |recipe: Recipe, ranks, asked| match shared_by(ranks, recipe, asked) {
        Ok(recipe) => recipe.mesh.to_string(),
        Err(error) => error.to_string(),
    };
    let halves = recipe("data=2,tensor=2", 4);
    let of_experts = Recipe { expert_capacity: Some(1.25), ..recipe("data=2,expert=2", 8) };
    let stages = Recipe { interleave: 2, accumulate: 4, ..recipe("pipeline=2", 4) };
    for (recipe, ranks, wanted) in [
        (recipe("data=1", 4), 4, "data=4"),
        // Beside the axes that split the model.
        (halves.clone(), 4, "data=2,tensor=2"),
        (halves.clone(), 8, "data=4,tensor=2"),
        (of_experts.clone(), 4, "data=4,expert=2"),
        (stages, 8, "data=4,pipeline=2"),
        (
            halves.clone(),
            3,
            "the mesh data=2,tensor=2 splits the model into 2 parts, and processes there are 3: start a multiple of 2",
        ),
        (
            halves.clone(),
            6,
            "batch is 4, which 3 ranks cannot share in equal parts; choose a multiple of 3, or another mesh",
        ),
    ] {
        assert_eq!(said(recipe, ranks, false), wanted);
    }
    assert!(
        said(of_experts, 3, false).starts_with("mesh is data=3,expert=2, and experts are spread over the data axis")
    );
    let told = said(halves, 8, true);
    assert!(
        told.starts_with("the mesh data=2,tensor=2 is of 4 ranks, and processes there are 8: let the two"),
        "{told}"
    );
}
